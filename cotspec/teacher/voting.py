"""What several samples of a question are worth together, and what filtering leaves.

Enters: filtered traces (all rows, with ``is_correct`` and ``drop_reason``). Leaves:
tables for the figures of notebook 02.
"""

from __future__ import annotations

import pandas as pd
from datasets import Dataset

from cotspec import answers, statistics
from cotspec.teacher.filtering import DROP_REASONS

# What is left after solutions with this drop reason are gone.
_LEFT = {
    "truncated": "complete",
    "no_answer": "with an answer",
    "wrong": "right",
    "unaligned": "tokens intact",
    "duplicate": "distinct",
    "over_cap": "within the cap",
}


def funnel_stages(funnel: pd.DataFrame) -> pd.DataFrame:
    """Turn counts by drop reason into what is left after each.

    Parameters
    ----------
    funnel : DataFrame
        From `filtering.funnel`.

    Returns
    -------
    DataFrame
        ``stage, count, reason`` for `figures.funnel`; reasons that dropped nothing are
        left out, but ``wrong`` stays.
    """
    counts = dict(zip(funnel["stage"], funnel["num_solutions"], strict=True))
    left = counts["sampled"]
    rows = [("sampled", left, "")]
    for reason in DROP_REASONS:
        left -= counts[reason]
        if counts[reason] or reason == "wrong":
            rows.append((_LEFT[reason], left, reason.replace("_", " ")))
    return pd.DataFrame(rows, columns=["stage", "count", "reason"])


def vote_curves(marked: Dataset) -> pd.DataFrame:
    """Return unbiased pass@k and majority@k over the questions.

    Parameters
    ----------
    marked : Dataset
        Filtered traces of math questions, all rows.

    Returns
    -------
    DataFrame
        ``series`` ("pass@k", "majority@k"), ``k, accuracy, ci_low, ci_high``; 95%
        bootstrap intervals over questions. k goes up to the fewest samples of a
        question.

    Source: `statistics.pass_at_k`, `statistics.majority_at_k`.
    """
    questions = votes_by_question(marked)
    largest = min(len(votes) for votes, _ in questions)
    rows = []
    for k in range(1, largest + 1):
        passed = [
            statistics.pass_at_k(len(v), v.count(gold), k) for v, gold in questions
        ]
        won = [statistics.majority_at_k(v, gold, k) for v, gold in questions]
        rows += [_point("pass@k", k, passed), _point("majority@k", k, won)]
    return pd.DataFrame(rows)


def votes_by_question(marked: Dataset) -> list[tuple[list[str | None], str]]:
    """Return each math question's predicted answers and its gold, spelled alike.

    A sample without an answer is None.
    """
    columns = ["problem_id", "answer", "predicted_answer", "is_correct"]
    frame = marked.select_columns(columns).to_pandas()
    return [_votes(group) for _, group in frame.groupby("problem_id", sort=False)]


def _votes(group: pd.DataFrame) -> tuple[list[str | None], str]:
    """Return the answers of one question's samples and its gold, spelled alike."""
    gold = str(answers.parse_number(group["answer"].iloc[0]))
    votes = [
        gold if is_correct else (None if pd.isna(predicted) else str(predicted))
        for predicted, is_correct in zip(
            group["predicted_answer"], group["is_correct"], strict=True
        )
    ]
    return votes, gold


def _point(series: str, k: int, values: list[float]) -> dict[str, object]:
    mean = statistics.mean_interval(values)
    return {
        "series": series,
        "k": k,
        "accuracy": mean.estimate,
        "ci_low": mean.ci_low,
        "ci_high": mean.ci_high,
    }
