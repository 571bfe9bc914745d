"""What the paper's figures 2 to 4 draw, from our predictions.

Enters: predictions of `experiments`. Leaves: small tidy tables with the columns
``panel, series, x, value, low, high, n, num_seeds``: means over seeds and problems with
95% intervals over both; fractions.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.pairing import (
    MATH_MODE,
    ZERO_SHOT_MODE,
    at_chosen,
    at_last_step,
    at_start,
    best_steps,
    by_size,
    independent,
    pick,
    right_answers,
)

COLUMNS = "panel series x value low high n num_seeds".split()
IN, OUT = "in-distribution", "out of distribution"


def abilities(data: DataConfig) -> dict[str, tuple[Sequence[str], str, str]]:
    """Return each ability's tasks, prompt mode and the split that draws its curve.

    Generic tasks have no validation problems.
    """
    return {
        IN: ([data.train_task], MATH_MODE, "validation"),
        OUT: (data.out_of_distribution_tasks, MATH_MODE, "validation"),
        "generic, CoT": (data.generic_tasks, "chain_of_thought", "test"),
        "generic, answer-only": (data.generic_tasks, "answer_only", "test"),
    }


def ability_curves(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return four abilities along the training, a panel a size: figure 3 A."""
    rows = []
    for model, group in by_size(predictions):
        for ability, (tasks, mode, split) in abilities(data).items():
            picked = pick(group, tasks, mode, split=split)
            rows += _curve(model, ability, picked, "step")
    return pd.DataFrame(rows, columns=COLUMNS)


def format_curves(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return two trainings, each asked both ways along the tuning: figure 4."""
    rows = []
    modes = {MATH_MODE: "asked in context", ZERO_SHOT_MODE: "asked zero-shot"}
    for name in ("in_context", "zero_shot"):
        for mode, asked in modes.items():
            picked = pick(predictions, [data.train_task], mode, split="validation")
            picked = picked[picked["data_formats"] == name]
            panel = f"tuned on {name.replace('_', '-')} data"
            rows += _curve(panel, asked, picked, "step")
    return pd.DataFrame(rows, columns=COLUMNS)


def size_curves(
    predictions: pd.DataFrame,
    data: DataConfig,
    *,
    teacher: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Return accuracy on the training task against size: figure 2.

    Parameters
    ----------
    predictions : DataFrame
        Of notebook 10.
    data : DataConfig
    teacher : (parameters, accuracy), optional
        Drawn in A, where the paper has GPT variants, and in C to compare with.
    """
    rows = []
    math = pick(predictions, [data.train_task], MATH_MODE)
    for start, group in math.groupby("start", sort=False):
        name = start.replace("_", "-")
        rows += _curve("A: as they start", name, at_start(group), "size")
    for panel, start, series, end in (
        ("B: raw", "raw", "before", at_start),
        ("B: raw", "raw", "after", at_last_step),
        ("C: instruction-tuned", "instruction_tuned", "before", at_start),
        ("C: instruction-tuned", "instruction_tuned", "after", at_last_step),
    ):
        group = math[math["start"] == start]
        rows += _curve(panel, series, end(group), "size")
    table = pd.DataFrame(rows, columns=COLUMNS)
    if teacher:
        parameters, accuracy = teacher
        for panel in ("A: as they start", "C: instruction-tuned"):
            row = (panel, "teacher", parameters, *[accuracy] * 3, 0, 1)
            table.loc[len(table)] = row  # keeps sizes whole numbers
    return table


def chosen_checkpoints(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the checkpoint that each validation set would choose, seed by seed.

    The one with the highest accuracy, the earliest of equals. The start is no choice.

    Returns
    -------
    DataFrame
        ``model, chosen_by`` (an ability), ``seed, step``.
    """
    rows = []
    for model, group in by_size(predictions):
        for ability in (IN, OUT):
            tasks, mode, split = abilities(data)[ability]
            steps = best_steps(pick(group, tasks, mode, split=split))
            rows += [(model, ability, *choice) for choice in steps.items()]
    return pd.DataFrame(rows, columns="model chosen_by seed step".split())


def abilities_of_choices(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return what the chosen checkpoints can do: table 3.

    Returns
    -------
    DataFrame
        ``model, chosen_by``, then per math ability its validation accuracy (the
        paper's: on the sets that chose) and its test accuracy; means over seeds.
    """
    choices = chosen_checkpoints(predictions, data)
    rows = []
    for (model, name), chosen in choices.groupby(["model", "chosen_by"], sort=False):
        steps = chosen.set_index("seed")["step"]
        row = {"model": model, "chosen_by": name}
        for ability in (IN, OUT):
            tasks, mode, _ = abilities(data)[ability]
            for split in ("validation", "test"):
                group = predictions[predictions["model"] == model]
                picked = at_chosen(pick(group, tasks, mode, split=split), steps)
                row[f"{ability}, {split}"] = picked["is_correct"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def what_was_seen(curves: pd.DataFrame) -> list[str]:
    """Say where each curve starts, peaks and ends, one sentence each."""
    said = []
    for (panel, series), curve in curves.groupby(["panel", "series"], sort=False):
        curve = curve.sort_values("x")
        first, last = curve["value"].iloc[0], curve["value"].iloc[-1]
        start, end = curve["x"].iloc[0], curve["x"].iloc[-1]
        text = f"{panel}, {series}: {first:.1%} at {start:,.0f}"
        if len(curve) > 1:
            text += f", {last:.1%} at {end:,.0f}"
        best = curve.loc[curve["value"].idxmax()]
        if best["value"] > max(first, last):
            text += f", highest at {best['x']:,.0f} with {best['value']:.1%}"
        said.append(text)
    return said


def _curve(panel: str, series: str, rows: pd.DataFrame, by: str) -> list[tuple]:
    """A row of `COLUMNS` per step or size: means, intervals cut at 0 and 1."""
    points = []
    for x, group in rows.groupby(by):
        table = right_answers(group)
        repeats = independent(table, group["model"].iloc[0]).to_numpy().T
        found = statistics.mean_interval(repeats)
        values = found.estimate, found.ci_low, found.ci_high
        points.append((panel, series, x, *values, *table.shape))
    return points
