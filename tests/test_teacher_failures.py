"""Equations that do not hold, and the kinds of failure."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from cotspec.teacher import studies


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7.",
        "3 + 4 * 2 = 11",
        "2 x 3 × 4 = 24",
        "$5 * 3 = $15, so",
        "1,000 - 1 = 999",
        "10 / 3 = 3.33",
        "10 - 12 = -2",
        "8 ÷ 2 / 2 = 2",
        "20 - 5 - 5 = 10",
        "Then, 3 + 4 = 7",
        "- 3 + 4 = 7",
    ],
)
def test_a_true_equation_is_found_and_not_reported(text):
    assert studies.num_equations(text) == 1
    assert studies.false_equations(text) == []


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("3 + 4 = 8.", "3 + 4 = 8"),
        ("3 + 4 * 2 = 14", "3 + 4 * 2 = 14"),
        ("so $5 * 3 = $16 in all", "$5 * 3 = $16"),
        ("10 / 3 = 3.3", None),
        ("10 / 3 = 3.4", "10 / 3 = 3.4"),
        ("10 / 3 = 3", "10 / 3 = 3"),
        ("1,000 + 1 = 1,002", "1,000 + 1 = 1,002"),
    ],
)
def test_a_false_equation_is_reported_as_it_stands(text, reported):
    assert studies.false_equations(text) == ([reported] if reported else [])


@pytest.mark.parametrize(
    "text",
    [
        "20% * 5 + 3 = 4",  # begins in the middle of something longer
        "(3 + 4) * 2 = 14",
        "2 * (3 + 4) = 14",
        "a + 3 + 4 = 12",
        "3 + 4 = 14 / 2",  # goes on behind the result
        "100 - 20 = 80%",
        "5 / 0 = 1",
        "2 = 3",
        "no numbers = here",
    ],
)
def test_what_is_not_numbers_and_signs_on_both_sides_is_left_alone(text):
    assert studies.num_equations(text) == 0


def solution(completion: str, answer=None, *, right=False, reason="wrong") -> dict:
    verdict = {"predicted_answer": answer, "is_correct": right, "drop_reason": reason}
    return {"completion": completion} | verdict


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (solution("3 + 4 = 7.", right=True, reason=""), "right"),
        (solution("3 + 4 = 7.", right=True, reason="duplicate"), "right"),
        (solution("3 + 4 = 8. The answer is 8.", "8"), "wrong arithmetic"),
        (solution("3 + 4 = 7. The answer is 7.", "7"), "wrong plan"),
        (solution("3 + 4 = 7. The answer is 9.", "9"), "unsupported answer"),
        (solution("1 / 2 = 0.5. The answer is 0.5.", "1/2"), "wrong plan"),
        (solution("The answer is 9."), "no equation"),
        (solution("Who knows?", reason="no_answer"), "no answer"),
        (solution("3 + 4 = 7", right=True, reason="truncated"), "cut off"),
    ],
)
def test_the_kind_of(row, kind):
    assert studies.kind_of(row) == kind
    assert kind in studies.KINDS


def test_solutions_are_counted_by_the_steps_of_their_question():
    problems = Dataset.from_dict(
        {
            "problem_id": ["a", "b", "c"],
            "rationale": ["1 + 1 = 2.", "1+1=2, 2+2=4.", ""],
        }
    )
    rows = [
        {"problem_id": "a"} | solution("1 + 1 = 2.", right=True, reason=""),
        {"problem_id": "a"} | solution("1 + 1 = 3."),
        {"problem_id": "b"} | solution("1 + 1 = 2.", "2"),
        {"problem_id": "c"} | solution("", reason="no_answer"),
    ]
    for number, row in enumerate(rows):
        row |= {"sample_id": number, "token_logprobs": [-0.5, -1.5] if number else []}
    frame = studies.classify(Dataset.from_list(rows), problems)
    assert frame["num_steps"].fillna(-1).tolist() == [1, 1, 2, -1]
    assert frame["probability"].iloc[1] == pytest.approx(np.exp(-1))
    assert np.isnan(frame["probability"].iloc[0])
    shares = studies.shares_by_steps(frame)
    assert shares["steps"].unique().tolist() == ["1", "2", "?"]
    found = shares[shares["count"] > 0]
    assert found[["steps", "kind", "share"]].to_numpy().tolist() == [
        ["1", "right", 0.5],
        ["1", "wrong arithmetic", 0.5],
        ["2", "wrong plan", 1.0],
        ["?", "no answer", 1.0],
    ]
    assert shares.groupby("steps")["share"].sum().tolist() == [1, 1, 1]


def test_long_questions_share_a_bar():
    frame = pd.DataFrame(
        {"problem_id": ["a", "b"], "num_steps": [6.0, 11.0], "kind": "right"}
    )
    shares = studies.shares_by_steps(frame)
    assert shares["steps"].unique().tolist() == ["6+"]
    assert shares["num_questions"].iloc[0] == 2
