"""Generic families: answers follow from programs, no constant solves one."""

import json
from collections import Counter

import pytest

from cotspec.micro import generic

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def option(choices, answer):
    return f"({'ABC'[choices.index(answer)]})"


def shuffled(program):
    held = dict(zip(program["names"], program["things"], strict=True))
    for one, two in program["swaps"]:
        held[one], held[two] = held[two], held[one]
    return option(program["things"], held[program["asked"]])


def honest(program):
    truth = program["first"]
    for claim in program["claims"]:
        truth = claim == truth
    return "Yes" if truth else "No"


def weekday(program):
    day = DAYS[(DAYS.index(program["today"]) + program["ahead"]) % 7]
    return option(program["choices"], day)


# Each family's answer once more, from its program alone.
SOLVERS = {
    "last_letters": lambda words: "".join(word[-1] for word in words),
    "word_sorting": lambda words: " ".join(sorted(words)),
    "object_counting": lambda counts: str(sum(counts)),
    "boolean_expressions": lambda text: str(eval(text, {"__builtins__": {}})),
    "navigate": lambda moves: "No" if sum(s * n for s, n in moves) else "Yes",
    "tracking_shuffled_objects": shuffled,
    "date_understanding": weekday,
    "web_of_lies": honest,
    "reasoning_about_colored_objects": lambda p: option(
        p["choices"], p["colors"][p["asked"]]
    ),
    "logical_deduction": lambda p: option(p["choices"], p["order"][p["place"]]),
}


def test_there_are_at_least_eight_families_and_each_has_a_solver_here():
    assert len(generic.FAMILIES) >= 8
    assert set(generic.FAMILIES) == set(SOLVERS)


@pytest.mark.parametrize("family", generic.FAMILIES)
def test_the_answer_follows_from_the_items_own_program(family):
    for item in generic.generate(family, "train", 200, seed=1):
        assert SOLVERS[family](json.loads(item["program"])) == item["answer"], item


@pytest.mark.parametrize("family", generic.FAMILIES)
def test_few_answers_come_equally_often_and_no_test_question_twice(family):
    items = generic.generate(family, "test", 240, seed=0)
    counts = Counter(item["answer"] for item in items)
    if len(counts) <= 3:
        assert max(counts.values()) == min(counts.values())
    assert max(counts.values()) <= 120
    assert len({item["question"] for item in items}) == 240


@pytest.mark.parametrize("family", generic.FAMILIES)
def test_every_item_has_a_rationale_that_leaves_the_answer_sentence_out(family):
    for item in generic.generate(family, "train", 50, seed=2):
        assert item["rationale"].endswith(".")
        assert "answer" not in item["rationale"]
