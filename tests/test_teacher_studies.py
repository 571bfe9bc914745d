"""Tables of what was sampled: lengths, votes, temperatures, kinds of failure."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from test_teacher_store import completion, problems

from cotspec.teacher import studies
from cotspec.teacher.traces import as_dataset, as_row


def traces(*completions):
    [problem] = problems(["?"])
    return as_dataset(as_row(problem, i, made) for i, made in enumerate(completions))


@pytest.mark.parametrize("at_once", [1, 2, 1024])
def test_solutions_are_counted_token_by_token(monkeypatch, at_once):
    monkeypatch.setattr(studies, "_AT_ONCE", at_once)
    two = dataclasses.replace(
        completion("né"),
        token_logprobs=[-1.0, -0.5, -0.75],
        topk_logprobs=[[-1.0, -2.0], [-0.5], [-0.75, -1.5]],
        finish_reason="length",
    )
    other_text = dataclasses.replace(completion("3"), text="4")
    table = studies.summarize_solutions(traces(two, completion(""), other_text))
    assert table["tokens"].tolist() == [3, 0, 1]
    assert table["finish_reason"].tolist() == ["length", "stop", "stop"]
    assert table["task"].tolist() == ["gsm8k"] * 3
    probability = table["probability_per_token"]
    assert probability[0] == pytest.approx(np.exp(-0.75)) and probability[2] == 1
    assert np.isnan(probability[1]) and np.isnan(table["top_five_mass"][1])
    mass = [np.exp(-1) + np.exp(-2), np.exp(-0.5), np.exp(-0.75) + np.exp(-1.5)]
    assert table["top_five_mass"][0] == pytest.approx(np.mean(mass))
    assert table["most_mass"][0] == pytest.approx(max(mass))
    assert table["is_whole"].tolist() == [True, True, False]


def marked(questions, **columns):
    """Rows of ``problem_id: (gold, [predicted, …])``."""
    rows = [
        (problem_id, gold, predicted, predicted == gold)
        for problem_id, (gold, votes) in questions.items()
        for predicted in votes
    ]
    names = ("problem_id", "answer", "predicted_answer", "is_correct")
    made = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Dataset.from_dict(made | columns)


@pytest.mark.parametrize(
    ("questions", "largest", "accuracy"),
    [
        (
            {"a": ("12", ["12", "12", "7"]), "b": ("5", ["1", "5", "1"])},
            3,
            {("pass@k", 1): 1 / 2, ("pass@k", 3): 1, ("majority@k", 3): 1 / 2},
        ),
        # A sample without an answer does not vote.
        ({"a": ("12", [None, "12", None])}, 3, {("majority@k", 3): 1}),
        # k goes up to the fewest samples.
        ({"a": ("1", ["1", "1"]), "b": ("2", ["2"])}, 1, {("majority@k", 1): 1}),
    ],
)
def test_majority_and_pass_rates(questions, largest, accuracy):
    curves = studies.vote_curves(marked(questions))
    assert curves["k"].max() == largest
    found = curves.set_index(["series", "k"])["accuracy"]
    assert found[list(accuracy)].to_dict() == pytest.approx(accuracy)


def test_accuracy_and_diversity_of_literal_votes():
    questions = {"a": ("5", ["5", "5", "4"]), "b": ("5", ["1", "5", "1"])}
    texts = ["x 5", "x  5", "y", "z", "w", "v"]
    study = marked(questions, completion=texts, temperature=[0.5] * 6)
    table = studies.compare_temperatures(study)
    expected = {
        "any of 3": 1,
        "majority of 3": 1 / 2,
        "one sample": (2 / 3 + 1 / 3) / 2,
        "different texts": (2 / 3 + 1) / 2,
        "different answers": 2 / 3,
    }
    assert table.set_index("measure")["value"].to_dict() == pytest.approx(expected)
    assert (table["ci_low"] <= table["value"]).all()


TRUE = (
    "3 + 4 = 7. | 3 + 4 * 2 = 11 | 2 x 3 × 4 = 24 | $5 * 3 = $15, so | 1,000 - 1 = 999 "
    "| 10 / 3 = 3.33 | 10 / 3 = 3.3 | 10 - 12 = -2 | 8 ÷ 2 / 2 = 2 | 20 - 5 - 5 = 10 "
    "| Then, 3 + 4 = 7 | 3 + 4 = 7m | 3 + 4 = 7kg | - 3 + 4 = 7"
)
FALSE = {
    "3 + 4 = 8.": "3 + 4 = 8",
    "3 + 4 * 2 = 14": "3 + 4 * 2 = 14",
    "so $5 * 3 = $16 in all": "$5 * 3 = $16",
    "10 / 3 = 3.4": "10 / 3 = 3.4",
    "10 / 3 = 3": "10 / 3 = 3",
    "1,000 + 1 = 1,002": "1,000 + 1 = 1,002",
}
NO_EQUATION = (  # begins, or goes on, in the middle of something longer; or words
    "20% * 5 + 3 = 4 | (3 + 4) * 2 = 14 | 2 * (3 + 4) = 14 | a + 3 + 4 = 12 "
    "| 3 + 4 = 14 / 2 | 100/5 = 5A/5 | 100 - 20 = 80% | 5 / 0 = 1 | 2 = 3 "
    "| no numbers = here"
)


@pytest.mark.parametrize(
    ("text", "num_found", "reported"),
    [
        *((text, 1, []) for text in TRUE.split(" | ")),
        *((text, 1, [reported]) for text, reported in FALSE.items()),
        *((text, 0, []) for text in NO_EQUATION.split(" | ")),
    ],
)
def test_equations_are_found_and_false_ones_reported(text, num_found, reported):
    assert len(list(studies.equations(text))) == num_found
    assert studies.false_equations(text) == reported


def solution(completion: str, answer=None, *, right=False, reason="wrong") -> dict:
    verdict = {"predicted_answer": answer, "is_correct": right, "drop_reason": reason}
    return {"completion": completion} | verdict


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (solution("3 + 4 = 7.", right=True, reason=""), "right"),
        (solution("3 + 4 = 7.", right=True, reason="duplicate"), "right"),
        (solution("3 + 4 = 8. The answer is 8.", "8"), "wrong arithmetic"),
        (solution("3 + 4 = 7. The answer is 7.", "7"), "another number"),
        (solution("3 * 4 = 12. The answer is 12.", "12"), "other operations"),
        (solution("3 + 4 = 7, 7 + 1 = 8. The answer is 8.", "8"), "other operations"),
        (solution("The answer is 9."), "no equation"),
        (solution("Who knows?", reason="no_answer"), "no answer"),
        (solution("3 + 4 = 7", right=True, reason="truncated"), "cut off"),
    ],
)
def test_the_kind_of(row, kind):
    assert studies.kind_of(row, "3 + 5 = 8.") == kind
    assert kind in studies.KINDS


def test_solutions_are_counted_by_the_steps_of_their_question():
    rationales = ["1 + 1 = 2.", "1+1=2, 2+2=4.", ""]
    asked = Dataset.from_dict({"problem_id": list("abc"), "rationale": rationales})
    rows = [
        {"problem_id": "a"} | solution("1 + 1 = 2.", right=True, reason=""),
        {"problem_id": "a"} | solution("1 + 1 = 3."),
        {"problem_id": "b"} | solution("1 + 1 = 2.", "2"),
        {"problem_id": "c"} | solution("", reason="no_answer"),
    ]
    for number, row in enumerate(rows):
        row |= {"sample_id": number, "token_logprobs": [-0.5, -1.5] if number else []}
    frame = studies.classify(Dataset.from_list(rows), asked)
    assert frame["num_steps"].fillna(-1).tolist() == [1, 1, 2, -1]
    assert frame["probability"].iloc[1] == pytest.approx(np.exp(-1))
    assert np.isnan(frame["probability"].iloc[0])
    shares = studies.shares_by_steps(frame)
    assert shares["steps"].unique().tolist() == ["1", "2", "?"]
    found = shares[shares["count"] > 0]
    assert found[["steps", "kind", "share"]].to_numpy().tolist() == [
        ["1", "right", 0.5],
        ["1", "wrong arithmetic", 0.5],
        ["2", "other operations", 1.0],
        ["?", "no answer", 1.0],
    ]
    assert shares.groupby("steps")["share"].sum().tolist() == [1, 1, 1]


def test_long_questions_share_a_bar():
    long = {"problem_id": ["a", "b"], "num_steps": [6.0, 11.0], "kind": "right"}
    shares = studies.shares_by_steps(pd.DataFrame(long))
    assert shares["steps"].unique().tolist() == ["6+"]
    assert shares["num_questions"].iloc[0] == 2
