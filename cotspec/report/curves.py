"""What the paper's figures 2 to 4 draw, from our predictions.

Enters: predictions of `experiments`. Leaves: small tidy tables with the columns
``panel, series, x, value, low, high, n, num_seeds``: means over seeds and problems with
95% intervals over both; fractions.
"""

import itertools
from collections.abc import Sequence

import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report import pairing
from cotspec.report.pairing import ASKED, MATH_MODE

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
    for model, group in pairing.by_size(predictions):
        for ability, (tasks, mode, split) in abilities(data).items():
            picked = pairing.pick(group, tasks, mode, split=split)
            rows += _curve(model, ability, picked, "step")
    return pd.DataFrame(rows, columns=COLUMNS)


def format_curves(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return two trainings, each asked both ways along the tuning: figure 4."""
    rows, tasks = [], [data.train_task]
    for name, mode in itertools.product(("in_context", "zero_shot"), ASKED):
        rows_of = predictions[predictions["data_formats"] == name]
        picked = pairing.pick(rows_of, tasks, mode, split="validation")
        panel = f"tuned on {name.replace('_', '-')} data"
        rows += _curve(panel, ASKED[mode], picked, "step")
    return pd.DataFrame(rows, columns=COLUMNS)


def size_curves(
    predictions: pd.DataFrame, data: DataConfig, *, teacher: tuple | None = None
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
    math = pairing.pick(predictions, [data.train_task], MATH_MODE)
    for start, group in math.groupby("start", sort=False):
        name = start.replace("_", "-")
        rows += _curve("A: as they start", name, pairing.at_start(group), "size")
    panels = {"raw": "B: raw", "instruction_tuned": "C: instruction-tuned"}
    for start, panel in panels.items():
        before, after = pairing.both_ends(math[math["start"] == start])
        rows += _curve(panel, "before", before, "size")
        rows += _curve(panel, "after", after, "size")
    if teacher:
        size, accuracy = teacher
        point = ("teacher", int(size), *[accuracy] * 3, 0, 1)
        rows += [("A: as they start", *point), (panel, *point)]
    return pd.DataFrame(rows, columns=COLUMNS)


def chosen_checkpoints(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the checkpoint that each validation set would choose, seed by seed.

    The one with the highest accuracy, the earliest of equals. The start is no choice.

    Returns
    -------
    DataFrame
        ``model, chosen_by`` (an ability), ``seed, step``.
    """
    rows = []
    for model, group in pairing.by_size(predictions):
        for ability in (IN, OUT):
            tasks, mode, split = abilities(data)[ability]
            steps = pairing.best_steps(pairing.pick(group, tasks, mode, split=split))
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
        group = predictions[predictions["model"] == model]
        for ability, split in itertools.product((IN, OUT), ("validation", "test")):
            tasks, mode, _ = abilities(data)[ability]
            picked = pairing.pick(group, tasks, mode, split=split)
            chosen_rows = pairing.at_chosen(picked, steps)
            row[f"{ability}, {split}"] = chosen_rows["is_correct"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def what_was_seen(curves: pd.DataFrame) -> list[str]:
    """Say where each curve starts, peaks and ends, one sentence each."""
    said = []
    for (panel, series), curve in curves.groupby(["panel", "series"], sort=False):
        values = curve.sort_values("x").set_index("x")["value"]
        first, last = values.iloc[0], values.iloc[-1]
        text = f"{panel}, {series}: {first:.1%} at {values.index[0]:,.0f}"
        if len(values) > 1:
            text += f", {last:.1%} at {values.index[-1]:,.0f}"
        if values.max() > max(first, last):
            text += f", highest at {values.idxmax():,.0f} with {values.max():.1%}"
        said.append(text)
    return said


def _curve(panel: str, series: str, rows: pd.DataFrame, by: str) -> list[tuple]:
    """A row of `COLUMNS` per step or size: means, intervals cut at 0 and 1."""
    points = []
    for x, group in rows.groupby(by):
        table = pairing.right_answers(group)
        repeats = pairing.independent(table, group["model"].iloc[0]).to_numpy().T
        found = statistics.mean_interval(repeats)
        points.append((panel, series, x, *found[:3], *table.shape))
    return points
