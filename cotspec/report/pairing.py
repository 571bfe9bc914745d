"""Two systems on the same problems and seeds: the ground of every finding.

Enters: predictions of `experiments` (one row per cell, step, problem and prompt mode).
Leaves: rows picked from them, arrays of right answers in one order, and comparisons:
the paired change in accuracy with an interval over seeds and problems
(`statistics.paired_bootstrap`: with few seeds it covers Student's t too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.claims import MIN_PROBLEMS, MIN_SEEDS

MATH_MODE = "in_context_chain_of_thought"
GENERIC_MODES = ("chain_of_thought", "answer_only")
# What tells one training from another in the predictions.
TRAINING = (
    "model start size seed data_formats loss tail divergence cross_entropy_weight "
    "alignment"
).split()


@dataclass(frozen=True)
class Comparison:
    """A paired change in accuracy, second system minus first; fractions.

    Attributes
    ----------
    label : str
        What is compared, in words ("" if the reader knows).
    first, second : float
        Mean accuracy over seeds and problems.
    num_problems, num_seeds : int
    change : statistics.Difference
    """

    label: str
    first: float
    second: float
    num_problems: int
    num_seeds: int
    change: statistics.Difference

    def __str__(self) -> str:
        seeds = f", {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        seen = f"{self.first:.1%} → {self.second:.1%} (n = {self.num_problems}{seeds})"
        return f"{self.label} {seen}".lstrip()


def math_tasks(data: DataConfig) -> list[str]:
    """Return the training task and the out-of-distribution sets."""
    return [data.train_task, *data.out_of_distribution_tasks]


def pick(
    predictions: pd.DataFrame, tasks: Sequence[str], mode: str, *, split: str = "test"
) -> pd.DataFrame:
    """Return the rows of some tasks in one prompt mode and split.

    Raises
    ------
    ValueError
        No predictions at all.
    """
    require_rows(predictions)
    return predictions[
        predictions["task"].isin(tasks)
        & (predictions["prompt_mode"] == mode)
        & (predictions["split"] == split)
    ]


def require_rows(predictions: pd.DataFrame) -> None:
    """Refuse an empty table of predictions.

    Raises
    ------
    ValueError
        It is empty.
    """
    if predictions.empty:
        raise ValueError("predictions: empty; the notebook that measures them must run")


def require_one_setting(frames: Mapping[str, pd.DataFrame]) -> None:
    """Refuse predictions of trainings or decodings with different settings.

    Parameters
    ----------
    frames : mapping
        Predictions by the notebook that made them.

    Raises
    ------
    ValueError
        Naming which notebooks agree with which.
    """
    found: dict[str, list[str]] = {}
    for name, rows in frames.items():
        for setting in rows["settings"].unique():
            found.setdefault(setting, []).append(name)
    if len(found) > 1:
        groups = "; ".join(f"{key}: {', '.join(names)}" for key, names in found.items())
        raise ValueError(
            "predictions: made with different training or evaluation settings "
            f"({groups}). Allowed: one setting in a report. Run notebooks 05 to 10 "
            "with the same OVERRIDES"
        )


def at_start(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of step 0, the student before its training."""
    return rows[rows["step"] == 0]


def at_last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each training's last checkpoint."""
    steps = rows.groupby(TRAINING, dropna=False)["step"]
    return rows[rows["step"] == steps.transform("max")]


def right_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """Return right (1) or wrong (0), problems down and seeds across, both sorted.

    Raises
    ------
    ValueError
        Two rows for one problem and seed, or a seed that lacks a problem.
    """
    keys = ["task", "problem_id", "seed"]
    if rows.duplicated(keys).any():
        task, problem, seed = rows.loc[rows.duplicated(keys), keys].iloc[0]
        raise ValueError(
            f"predictions: several rows for {problem!r} and seed {seed}. Allowed: one "
            "system, step and prompt mode"
        )
    table = rows.pivot(index=keys[:2], columns="seed", values="is_correct")
    if table.isna().any(axis=None):
        counts = table.notna().sum().to_dict()
        raise ValueError(f"predictions: seeds lack problems, got {counts} by seed")
    return table.astype(float)


def pair(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return right or wrong of two systems, each (seeds, problems), in one order.

    Raises
    ------
    ValueError
        They did not answer the same problems with the same seeds.
    """
    tables = right_answers(first), right_answers(second)
    same_problems = tables[0].index.equals(tables[1].index)
    if not (same_problems and tables[0].columns.equals(tables[1].columns)):
        shapes = " and ".join(f"{t.shape[0]} × {t.shape[1]}" for t in tables)
        raise ValueError(
            f"predictions: not paired, got {shapes} problems × seeds. Allowed: both "
            "systems on the same problems with the same seeds"
        )
    return tables[0].to_numpy().T, tables[1].to_numpy().T


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    seed: int,
    label: str = "",
    num_resamples: int = 10_000,
) -> Comparison:
    """Compare the accuracies of two systems, given by their rows.

    Parameters
    ----------
    first, second : DataFrame
        One row per problem and seed, of the same problems and seeds.
    seed : int
        Of the bootstrap.
    label : str
        Kept for the words.
    num_resamples : int
    """
    return compare_arrays(
        *pair(first, second), seed=seed, label=label, num_resamples=num_resamples
    )


def compare_arrays(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int,
    label: str = "",
    num_resamples: int = 10_000,
) -> Comparison:
    """Compare two arrays, shape (seeds, problems): right answers or means of them."""
    return Comparison(
        label=label,
        first=float(first.mean()),
        second=float(second.mean()),
        num_problems=first.shape[1],
        num_seeds=first.shape[0],
        change=statistics.paired_bootstrap(
            first, second, seed=seed, num_resamples=num_resamples
        ),
    )


def rises(one: Comparison) -> bool:
    """True where the whole interval lies above 0."""
    return one.change.ci_low > 0


def falls(one: Comparison) -> bool:
    """True where the whole interval lies below 0."""
    return one.change.ci_high < 0


def too_few(comparisons: Sequence[Comparison]) -> str:
    """Say why a claim cannot be judged; "" if problems and seeds suffice."""
    problems = min(one.num_problems for one in comparisons)
    seeds = min(one.num_seeds for one in comparisons)
    if problems < MIN_PROBLEMS:
        return f"{problems} problems; the rule needs {MIN_PROBLEMS}"
    return f"{seeds} seeds; the rule needs {MIN_SEEDS}" if seeds < MIN_SEEDS else ""
