"""Word problems: right, disjoint between splits, independent of order, different."""

import ast
import operator
import re

import pytest

from cotspec.micro import generic, world

EVERY = [(module, name) for module in (world, generic) for name in module.FAMILIES]

_SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub}
_SIGNS |= {ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(node: ast.AST) -> float:
    """Evaluate plain arithmetic, independently of the package."""
    if isinstance(node, ast.Expression):
        return value(node.body)
    if isinstance(node, ast.Constant):
        return node.value
    return _SIGNS[type(node.op)](value(node.left), value(node.right))


def evaluate(program: str) -> float:
    return value(ast.parse(program, mode="eval"))


@pytest.mark.parametrize("family", world.FAMILIES)
def test_the_answer_is_the_value_of_the_items_own_program(family):
    for item in world.generate(family, "train", 200, seed=3):
        assert evaluate(item["program"]) == int(item["answer"]), item


@pytest.mark.parametrize("family", world.FAMILIES)
def test_every_equation_of_a_rationale_holds_and_the_last_gives_the_answer(family):
    for item in world.generate(family, "train", 200, seed=4):
        equations = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", item["rationale"])
        assert len(equations) == item["num_steps"]
        assert all(evaluate(left) == int(right) for left, right in equations), item
        assert equations[-1][1] == item["answer"]


@pytest.mark.parametrize("family", world.FAMILIES)
def test_numbers_stay_within_twenty_and_every_one_in_a_program_is_told(family):
    for item in world.generate(family, "test", 100, seed=5):
        told = re.findall(r"\d+", item["question"])
        assert all(int(number) <= 20 for number in [*told, item["answer"]])
        assert set(re.findall(r"\d+", item["program"])) <= set(told), item


@pytest.mark.parametrize(("module", "family"), EVERY)
def test_item_i_is_the_same_however_many_are_asked_for(module, family):
    few = module.generate(family, "train", 3, seed=0)
    assert few == module.generate(family, "train", 30, seed=0)[:3]
    assert few != module.generate(family, "train", 3, seed=1)


def test_the_first_item_is_pinned():
    item = world.generate("math", "test", 1, seed=0)[0]
    assert item["problem_id"] == "micro/math/test/000000"
    assert item["question"] == (
        "Eric has 2 beans. Eric gets 15 more. Eric finds 3 more. Eric puts them into 2 "
        "equal bags. How many beans are in each bag?"
    )
    assert item["program"] == "((2 + 15) + 3) / 2"
    assert (item["answer"], item["num_steps"]) == ("10", 3)


@pytest.mark.parametrize(("module", "family"), EVERY)
def test_splits_share_no_question_and_each_question_knows_its_split(module, family):
    num = 400 if module is world else 120
    questions = {
        split: {row["question"] for row in module.generate(family, split, num, seed=0)}
        for split in world.SPLITS
    }
    for split, found in questions.items():
        assert {world.split_of(question) for question in found} == {split}
    together = set().union(*questions.values())
    assert sum(map(len, questions.values())) == len(together)


def test_problems_have_one_to_three_steps_about_equally_often():
    counts = [
        item["num_steps"] for item in world.generate("math", "train", 300, seed=0)
    ]
    assert min(counts.count(steps) for steps in (1, 2, 3)) > 60


def test_other_entities_never_occur_in_training():
    def words(family):
        items = world.generate(family, "train", 500, seed=0)
        return {w for item in items for w in re.findall("[a-z]+", item["question"])}

    assert not words("math") & set(world.THINGS)
    assert not words("multiarith") & set(world.FOODS)


def test_distracting_numbers_are_told_but_not_used():
    items = world.generate("svamp", "train", 300, seed=0)
    distracted = [
        item
        for item in items
        if len(re.findall(r"\d+", item["question"]))
        > len(re.findall(r"\d+", item["program"]))
    ]
    assert len(distracted) > 150


def test_rationales_of_like_problems_vary_in_wording():
    items = world.generate("math", "train", 300, seed=0)
    items = [item for item in items if item["num_steps"] == 1]
    shapes = {re.sub(r"\d+|[A-Z][a-z]+", "_", item["rationale"]) for item in items}
    assert len(shapes) > 50


def test_no_constant_answer_solves_a_third():
    for family in world.FAMILIES:
        answers = [i["answer"] for i in world.generate(family, "test", 300, seed=0)]
        assert max(map(answers.count, answers)) / 300 < 0.33


@pytest.mark.parametrize(("module", "family"), EVERY)
def test_demonstrations_are_from_no_split_that_is_trained_or_tested_on(module, family):
    shown = module.demonstrations(family)
    assert len(shown) == (4 if module is world else 2)
    assert {item["split"] for item in shown} == {"demonstrations"}
    assert {world.split_of(item["question"]) for item in shown} == {"demonstrations"}


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (world, ("maths", "train", 1), "family: 'maths'. Allowed: math,"),
        (world, ("math", "dev", 1), "split: 'dev'. Allowed: train,"),
        (world, ("math", "train", -1), "n: -1"),
        (generic, ("snarks", "train", 1), "family: 'snarks'. Allowed: last_letters,"),
    ],
)
def test_what_is_unknown_is_named(module, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        module.generate(*arguments, seed=0)


def test_an_empty_split_is_an_error_and_not_an_endless_search():
    always = world.Problem("always", "", "1", 1, "1")
    with pytest.raises(ValueError, match="no 1th 'test' question"):
        world.draw_items({"x": (lambda rng: always, ())}, "x", "test", 1, seed=0)
