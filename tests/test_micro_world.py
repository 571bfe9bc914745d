"""Problems: right, disjoint between splits, independent of order, different."""

import hashlib
import json
import re
from collections import Counter

import pytest

from cotspec.micro import generic, world

math_families = pytest.mark.parametrize("family", world.MATH)
generic_families = pytest.mark.parametrize("family", world.GENERIC)
all_families = pytest.mark.parametrize("family", world.FAMILIES)


def evaluate(expression):
    return eval(expression, {"__builtins__": {}})


@math_families
def test_the_answer_is_the_value_of_the_program_and_of_the_rationales_equations(family):
    for item in world.generate(family, "train", 200, seed=3):
        assert evaluate(item["program"]) == int(item["answer"]), item
        equations = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", item["rationale"])
        assert len(equations) == item["num_steps"]
        assert all(evaluate(left) == int(right) for left, right in equations), item
        assert equations[-1][1] == item["answer"]


@math_families
def test_numbers_stay_within_twenty_and_every_one_in_a_program_is_told(family):
    for item in world.generate(family, "test", 100, seed=5):
        told = re.findall(r"\d+", item["question"])
        assert all(int(number) <= 20 for number in [*told, item["answer"]])
        assert set(re.findall(r"\d+", item["program"])) <= set(told), item


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
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    day = days[(days.index(program["today"]) + program["ahead"]) % 7]
    return option(program["choices"], day)


# Each generic family's answer once more, from its program alone.
SOLVERS = {
    "last_letters": lambda words: "".join(word[-1] for word in words),
    "word_sorting": lambda words: " ".join(sorted(words)),
    "object_counting": lambda counts: str(sum(counts)),
    "boolean_expressions": lambda text: str(evaluate(text)),
    "navigate": lambda moves: "No" if sum(s * n for s, n in moves) else "Yes",
    "tracking_shuffled_objects": shuffled,
    "date_understanding": weekday,
    "web_of_lies": honest,
    "reasoning_about_colored_objects": lambda p: option(
        p["choices"], p["colors"][p["asked"]]
    ),
    "logical_deduction": lambda p: option(p["choices"], p["order"][p["place"]]),
}


@generic_families
def test_a_generic_answer_follows_from_the_items_own_program(family):
    for item in world.generate(family, "train", 200, seed=1):
        assert SOLVERS[family](json.loads(item["program"])) == item["answer"], item
        assert item["rationale"].endswith(".")
        assert "answer" not in item["rationale"]


@generic_families
def test_few_answers_come_equally_often_and_no_test_question_twice(family):
    items = world.generate(family, "test", 240, seed=0)
    counts = Counter(item["answer"] for item in items)
    if len(counts) <= 3:
        assert max(counts.values()) == min(counts.values())
    assert max(counts.values()) <= 120
    assert len({item["question"] for item in items}) == 240


@all_families
def test_item_i_is_the_same_however_many_are_asked_for(family):
    few = world.generate(family, "train", 3, seed=0)
    assert few == world.generate(family, "train", 30, seed=0)[:3]
    assert few != world.generate(family, "train", 3, seed=1)


def test_problems_are_those_that_the_shipped_models_learned_from():
    families = [world.generate(f, "pretraining", 20, seed=0) for f in world.FAMILIES]
    found = hashlib.sha256(json.dumps(families).encode()).hexdigest()
    assert found.startswith("bafeae644bb5")


@all_families
def test_splits_share_no_question_and_each_question_knows_its_split(family):
    num = 400 if family in world.MATH else 120
    questions = {
        split: {row["question"] for row in world.generate(family, split, num, seed=0)}
        for split in world.SPLITS
    }
    for split, found in questions.items():
        assert {world.split_of(question) for question in found} == {split}
    together = set().union(*questions.values())
    assert sum(map(len, questions.values())) == len(together)


def test_other_entities_never_occur_in_training():
    def words(family):
        items = world.generate(family, "train", 500, seed=0)
        return {w for item in items for w in re.findall("[a-z]+", item["question"])}

    assert not words("math") & set(world.THINGS)
    assert not words("multiarith") & set(world.FOODS)


def test_distracting_numbers_are_told_but_not_used():
    num_distracted = 0
    for item in world.generate("svamp", "train", 300, seed=0):
        told, used = (re.findall(r"\d+", item[key]) for key in ("question", "program"))
        num_distracted += len(told) > len(used)
    assert num_distracted > 150


def test_problems_have_one_to_three_steps_and_rationales_vary_in_wording():
    items = world.generate("math", "train", 300, seed=0)
    counts = Counter(item["num_steps"] for item in items)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 60
    items = [item for item in items if item["num_steps"] == 1]
    shapes = {re.sub(r"\d+|[A-Z][a-z]+", "_", item["rationale"]) for item in items}
    assert len(shapes) > 50


@math_families
def test_no_constant_answer_solves_a_third(family):
    answers = [item["answer"] for item in world.generate(family, "test", 300, seed=0)]
    assert max(Counter(answers).values()) / 300 < 0.33


@all_families
def test_demonstrations_are_from_no_split_that_is_trained_or_tested_on(family):
    shown = world.demonstrations(family)
    assert len(shown) == (4 if family in world.MATH else 2)
    assert {world.split_of(one.question) for one in shown} == {"demonstrations"}


def test_an_empty_split_is_an_error_and_not_an_endless_search(monkeypatch):
    always = generic.Problem("always", "", "1", 1, "1")
    monkeypatch.setitem(generic.FAMILIES, "navigate", (lambda rng: always, ()))
    with pytest.raises(ValueError, match="no 1th 'test' question"):
        world.generate("navigate", "test", 1, seed=0)
