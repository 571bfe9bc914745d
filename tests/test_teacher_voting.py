"""Votes over several samples, and what filtering leaves."""

import pandas as pd
import pytest
from datasets import Dataset

from cotspec.teacher import studies


def marked(*questions):
    """Rows of ``(gold, [predicted, …])`` per question."""
    rows = [
        {
            "problem_id": str(number),
            "answer": gold,
            "predicted_answer": predicted,
            "is_correct": predicted == gold,
        }
        for number, (gold, votes) in enumerate(questions)
        for predicted in votes
    ]
    return Dataset.from_list(rows)


def value(curves, series, k):
    row = curves[(curves["series"] == series) & (curves["k"] == k)]
    return row["accuracy"].item()


def test_majority_and_pass_rates_of_two_questions():
    curves = studies.vote_curves(
        marked(("12", ["12", "12", "7"]), ("5", ["1", "5", "1"]))
    )
    assert value(curves, "pass@k", 1) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert value(curves, "pass@k", 3) == 1
    assert value(curves, "majority@k", 3) == 0.5
    assert curves["k"].max() == 3


def test_a_sample_without_an_answer_does_not_vote():
    curves = studies.vote_curves(marked(("12", [None, "12", None])))
    assert value(curves, "majority@k", 3) == 1


def test_k_goes_up_to_the_fewest_samples():
    curves = studies.vote_curves(marked(("1", ["1", "1"]), ("2", ["2"])))
    assert curves["k"].max() == 1


def test_the_funnel_adds_up_and_names_what_was_dropped():
    reasons = ["truncated", "no_answer", "wrong", "unaligned", "duplicate", "over_cap"]
    counts = [10, 1, 0, 4, 0, 2, 0, 3]
    funnel = pd.DataFrame(
        {"stage": ["sampled", *reasons, "kept"], "num_solutions": counts}
    )
    left = studies.funnel_stages(funnel)
    assert left["count"].to_list() == [10, 9, 5, 3]
    assert left["reason"].to_list() == ["", "truncated", "wrong", "duplicate"]
