"""What the paper's figures 2 to 4 draw, from our predictions.

Enters: predictions of `experiments`. Leaves: small tidy tables with the columns
``panel, series, x, value, low, high, n, num_seeds``: means over seeds and problems with
95% intervals over both; fractions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.findings import ZERO_SHOT_MODE, chance
from cotspec.report.pairing import (
    MATH_MODE,
    at_last_step,
    at_start,
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
            rows += [
                (model, ability, step, *_mean(at_step))
                for step, at_step in picked.groupby("step")
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def format_curves(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return two trainings, each asked both ways along the tuning: figure 4."""
    rows = []
    for name in ("in_context", "zero_shot"):
        trained = predictions[predictions["data_formats"] == name]
        if trained.empty:
            continue
        for mode, asked in (
            (MATH_MODE, "asked in context"),
            (ZERO_SHOT_MODE, "asked zero-shot"),
        ):
            picked = pick(trained, [data.train_task], mode, split="validation")
            panel = f"tuned on {name.replace('_', '-')} data"
            rows += [
                (panel, asked, step, *_mean(at_step))
                for step, at_step in picked.groupby("step")
            ]
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
        Drawn with the students as they start; the paper's panel A has GPT variants.
    """
    rows = []
    math = pick(predictions, [data.train_task], MATH_MODE)
    names = {"instruction_tuned": "instruction-tuned", "raw": "raw", "random": "random"}
    panels = {
        "A: as they start": [("", at_start)],
        "B: raw, specialized": [("after", at_last_step)],
        "C: instruction-tuned": [("before", at_start), ("after", at_last_step)],
    }
    for panel, stages in panels.items():
        only = {"B": "raw", "C": "instruction_tuned"}.get(panel[0])
        for start, group in math.groupby("start", sort=False):
            if only and start != only:
                continue
            for stage, ends in stages:
                rows += [
                    (panel, stage or names[start], size, *_mean(at_size))
                    for size, at_size in ends(group).groupby("size")
                ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    if teacher:
        parameters, accuracy = teacher
        row = ("A: as they start", "teacher", parameters, *[accuracy] * 3, 0, 1)
        table.loc[len(table)] = row
    return table


def loss_curves(logs: pd.DataFrame, *, window: int = 20) -> pd.DataFrame:
    """Return the training losses above their floor, means of a window: figure 3 B.

    Parameters
    ----------
    logs : DataFrame
        ``loss, seed, step, excess``, nats per target token.
    window : int
        Updates that are averaged.
    """
    rows = []
    for loss, group in logs.groupby("loss", sort=False):
        binned = group.assign(x=(group["step"] - 1) // window * window + window / 2)
        means = binned.pivot_table(index="x", columns="seed", values="excess")
        for x, values in means.iterrows():
            ends = (values.mean(), values.min(), values.max())
            name = loss.replace("_", " ")
            rows.append(("training", name, x, *ends, 0, values.notna().sum()))
    return pd.DataFrame(rows, columns=COLUMNS)


def chosen_checkpoints(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the checkpoint that each validation set would choose, seed by seed.

    The one with the highest accuracy, the earliest of equals. The start is no choice.

    Returns
    -------
    DataFrame
        ``model, chosen_by`` (an ability), ``seed, step, accuracy`` (of validation).
    """
    rows = []
    for model, group in by_size(predictions):
        for ability in (IN, OUT):
            tasks, mode, _ = abilities(data)[ability]
            picked = pick(group, tasks, mode, split="validation")
            picked = picked[picked["step"] > 0]
            for seed, of_seed in picked.groupby("seed"):
                accuracy = of_seed.groupby("step")["is_correct"].mean()
                best = accuracy.idxmax()
                rows.append((model, ability, seed, best, accuracy[best]))
    return pd.DataFrame(rows, columns="model chosen_by seed step accuracy".split())


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
                picked = pick(group, tasks, mode, split=split)
                picked = picked[picked["step"] == picked["seed"].map(steps)]
                row[f"{ability}, {split}"] = picked["is_correct"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def what_was_seen(curves: pd.DataFrame) -> list[str]:
    """Say where each curve starts, peaks and ends, one sentence each."""
    said = []
    for (panel, series), curve in curves.groupby(["panel", "series"], sort=False):
        curve = curve.sort_values("x")
        first, last = curve["value"].iloc[0], curve["value"].iloc[-1]
        text = f"{panel}, {series}: {first:.1%} → {last:.1%}"
        best = curve.loc[curve["value"].idxmax()]
        if best["value"] > max(first, last):
            text += f", highest at {best['x']:,.0f} with {best['value']:.1%}"
        said.append(text)
    return said


def chance_level(problems: pd.DataFrame, data: DataConfig) -> float:
    """Return what always giving the most frequent answer scores on generic tasks."""
    return chance(problems, data.generic_tasks)


def _mean(rows: pd.DataFrame) -> tuple[float, float, float, int, int]:
    """Mean accuracy, its interval cut at 0 and 1, problems and seeds."""
    table = right_answers(rows)
    answers = table.to_numpy().T  # (seeds, problems)
    repeats = independent(table, rows["model"].iloc[0]).to_numpy().T
    found = statistics.paired_difference(np.zeros_like(repeats), repeats)
    low, high = np.clip([found.ci_low, found.ci_high], 0, 1)
    return found.estimate, low, high, answers.shape[1], answers.shape[0]
