"""The curves behind C5 and C7: accuracy against size, and along the training.

Enters: predictions of `experiments`. Leaves: small tables that the figures draw.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import AlignmentConfig, DataConfig, LossConfig
from cotspec.report.claims import MIN_SIZES
from cotspec.report.pairing import (
    MATH_MODE,
    at_last_step,
    at_start,
    math_tasks,
    pick,
    right_answers,
)
from cotspec.report.scaling import size_slopes

SLOPE_COLUMNS = "term per_doubling ci_low ci_high p_value".split()
NUM_RESAMPLES = 2000  # of each interval drawn; verdicts use more


def loss_curves(
    predictions: pd.DataFrame,
    data: DataConfig,
    *,
    loss: LossConfig,
    alignment: AlignmentConfig,
) -> pd.DataFrame:
    """Return validation accuracy along the training, one series per loss.

    Parameters
    ----------
    predictions : DataFrame
        Of notebook 09.
    data : DataConfig
        Which task is in-distribution.
    loss, alignment
        The profile's; a series that differs is named by what differs.

    Returns
    -------
    DataFrame
        ``series, step, n, num_seeds, accuracy, low, high``: the mean over the seeds and
        the lowest and highest of them; fractions.
    """
    rows = pick(predictions, [data.train_task], MATH_MODE, split="validation")
    names = variant_names(rows, loss=loss, alignment=alignment)
    found = []
    for (name, step), group in rows.groupby([names, "step"], sort=False):
        answers = right_answers(group)
        means = answers.mean()
        ends = (means.mean(), means.min(), means.max())
        found.append((name, step, *answers.shape, *ends))
    columns = "series step n num_seeds accuracy low high".split()
    return pd.DataFrame(found, columns=columns)


def loss_table(
    predictions: pd.DataFrame,
    data: DataConfig,
    *,
    loss: LossConfig,
    alignment: AlignmentConfig,
    seed: int,
) -> pd.DataFrame:
    """Return how fast and how far each loss gets, one row a series.

    Parameters
    ----------
    predictions, data, loss, alignment
        As for `loss_curves`.
    seed : int
        Of the bootstrap, over seeds and problems.

    Returns
    -------
    DataFrame
        ``series``; ``mean_validation``, over the checkpoints; ``half_way``, the first
        update at which the mean over the seeds is half way from the start to the best
        of all series (NaN: never); ``last_validation``; ``test, test_low, test_high``
        of the last checkpoint with a 95% interval.
    """
    curves = loss_curves(predictions, data, loss=loss, alignment=alignment)
    start = curves.loc[curves["step"] == 0, "accuracy"].mean()
    half = (start + curves["accuracy"].max()) / 2
    tests = at_last_step(pick(predictions, [data.train_task], MATH_MODE))
    names = variant_names(tests, loss=loss, alignment=alignment)
    found = []
    for name, curve in curves[curves["step"] > 0].groupby("series", sort=False):
        reached = curve.loc[curve["accuracy"] >= half, "step"].min()
        answers = right_answers(tests[names == name]).to_numpy().T
        accuracy = curve.sort_values("step")["accuracy"]
        values = (accuracy.mean(), reached, accuracy.iloc[-1])
        found.append((name, *values, *_accuracy(answers, seed)))
    columns = "series mean_validation half_way last_validation test test_low test_high"
    return pd.DataFrame(found, columns=columns.split())


def variant_names(
    rows: pd.DataFrame, *, loss: LossConfig, alignment: AlignmentConfig
) -> pd.Series:
    """Return what tells each row's training from the profile's loss and alignment.

    ``distribution_matching`` and ``sample_matching`` are the two losses; a variant of
    distribution matching is named by what differs, such as ``tail paper``.
    """
    usual = {
        "tail": loss.tail,
        "divergence": loss.divergence,
        "cross_entropy_weight": loss.cross_entropy_weight,
        "alignment": alignment.method,
    }
    names = pd.Series("", index=rows.index)
    for column, value in usual.items():
        said = column.replace("_", " ") + " " + rows[column].astype(str) + ", "
        names += said.where(rows[column] != value, "")
    names = names.str.removesuffix(", ")
    is_plain = (rows["loss"] == "sample_matching") | (names == "")
    return names.where(~is_plain, rows["loss"]).rename("series")


def size_curves(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> pd.DataFrame:
    """Return accuracy by size, before and after, with a line fitted to log size.

    Parameters
    ----------
    predictions : DataFrame
        Of notebook 10.
    data : DataConfig
        In-distribution and out-of-distribution tasks get a panel each.
    seed : int
        Of the bootstrap, over seeds and problems.

    Returns
    -------
    DataFrame
        ``panel, start, stage`` (before, after), ``size, n, num_seeds, accuracy, ci_low,
        ci_high, fit, fit_low, fit_high``: fractions with 95% intervals. The line is
        least squares on log size; NaN under three sizes.
    """
    panels = {
        "in-distribution": [data.train_task],
        "out of distribution": data.out_of_distribution_tasks,
    }
    tables = []
    for panel, tasks in panels.items():
        rows = pick(predictions, tasks, MATH_MODE)
        for start, group in rows.groupby("start", sort=False):
            for stage, ends in (("before", at_start), ("after", at_last_step)):
                fitted = _fitted(ends(group), seed)
                tables.append(fitted.assign(panel=panel, start=start, stage=stage))
    first = ["panel", "start", "stage"]
    table = pd.concat(tables, ignore_index=True)
    return table[first + [name for name in table if name not in first]]


def slopes_table(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> pd.DataFrame:
    """Return slope and kink in log size of all math problems, before and after.

    Parameters
    ----------
    predictions, data, seed
        As for `size_curves`.

    Returns
    -------
    DataFrame
        ``start, stage``, then the columns of `size_slopes`; no rows for a start with
        too few sizes.
    """
    rows = pick(predictions, math_tasks(data), MATH_MODE)
    tables = [pd.DataFrame(columns=["start", "stage", *SLOPE_COLUMNS])]
    for start, group in rows.groupby("start", sort=False):
        for stage, ends in (("before", at_start), ("after", at_last_step)):
            if group["size"].nunique() >= MIN_SIZES:
                slopes = size_slopes(ends(group), seed=seed)
                tables.append(slopes.assign(start=start, stage=stage))
    return pd.concat(tables[1:] or tables)[list(tables[0])]


def _fitted(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Accuracy and the line's height at every size."""
    sizes = sorted(rows["size"].unique())
    answers = np.stack(
        [right_answers(rows[rows["size"] == size]).to_numpy().T for size in sizes]
    )  # (sizes, seeds, problems)
    heights = _line_weights(np.log2(np.asarray(sizes, dtype=float)))
    found = []
    for index, size in enumerate(sizes):
        _, num_seeds, n = answers.shape
        point = _accuracy(answers[index], seed)
        line = (math.nan,) * 3
        if len(sizes) >= MIN_SIZES:
            line = _mean(np.tensordot(heights[index], answers, axes=1), seed)
        found.append((size, n, num_seeds, *point, *line))
    columns = "size n num_seeds accuracy ci_low ci_high fit fit_low fit_high".split()
    return pd.DataFrame(found, columns=columns)


def _line_weights(x: np.ndarray) -> np.ndarray:
    """What each size's accuracy weighs in the fitted line's heights, shape (K, K)."""
    design = np.stack([np.ones_like(x), x], axis=1)
    return design @ np.linalg.pinv(design)


def _accuracy(answers: np.ndarray, seed: int) -> np.ndarray:
    """Mean of right answers with its interval, cut at 0 and 1."""
    return np.clip(_mean(answers, seed), 0, 1)


def _mean(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Mean of (seeds, problems) with its interval."""
    found = statistics.paired_bootstrap(
        np.zeros_like(values), values, seed=seed, num_resamples=NUM_RESAMPLES
    )
    return found.estimate, found.ci_low, found.ci_high
