"""The main table: our students before and after.

Enters: predictions before and after. Leaves: one table for ``main_table.csv`` and
Markdown tables for the report; fractions in the first, percent in the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.pairing import (
    MATH_MODE,
    at_last_step,
    at_start,
    compare,
    right_answers,
)

COLUMNS = (
    "model start size task prompt_mode n num_seeds before before_low before_high "
    "after after_low after_high change change_low change_high "
    "before_reference after_reference before_lm_eval after_lm_eval"
).split()
# Other readings of the same math answers; generic tasks have none.
SCORERS = {"reference": "reference_is_correct", "lm_eval": "lm_eval_is_correct"}
_SUMMARY = (
    ("in-distribution", "in-distribution", MATH_MODE),
    ("out of distribution", "out of distribution", MATH_MODE),
    ("generic, CoT", "generic ability", "chain_of_thought"),
    ("generic, answer-only", "generic ability", "answer_only"),
)


def task_groups(data: DataConfig) -> dict[str, list[str]]:
    """Return the tasks by what they test; also the panels of `accuracy_bars`."""
    return {
        "in-distribution": [data.train_task],
        "out of distribution": list(data.out_of_distribution_tasks),
        "generic ability": list(data.generic_tasks),
    }


def pooled_name(group: str, tasks: Sequence[str]) -> str:
    """Return how the table names all problems of a group."""
    return tasks[0] if len(tasks) == 1 else f"all {group}"


def main_table(
    predictions: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return every student before and after, per set and prompt mode.

    Parameters
    ----------
    predictions : DataFrame
        From `own_trainings`.
    groups : mapping
        From `task_groups`: groups of several tasks get a row, their problems pooled.

    Returns
    -------
    DataFrame
        One row per student, set and prompt mode, smallest student first. Accuracies
        are means over the seeds; their ends are 95% Wilson intervals, averaged too,
        which is wider than the interval of the mean. Changes are paired by problem and
        seed, with 95% intervals over both. ``before_reference`` and its like are
        accuracies by `SCORERS`, empty for generic tasks. Fractions.

    Raises
    ------
    ValueError
        Problems that were answered on one side only.
    """
    sets = {task: [task] for tasks in groups.values() for task in tasks}
    sets |= {pooled_name(name, tasks): tasks for name, tasks in groups.items()}
    rows = []
    for key, student in predictions.groupby(["size", "model", "start"]):
        size, model, start = key
        for task, tasks in sets.items():
            picked = student[student["task"].isin(tasks)]
            for mode, asked in picked.groupby("prompt_mode", sort=False):
                row = {"model": model, "start": start, "size": size}
                row |= {"task": task, "prompt_mode": mode}
                rows.append(row | _change(asked))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _change(rows: pd.DataFrame) -> dict[str, float]:
    sides = at_start(rows), at_last_step(rows)
    _, _, change = compare(*sides)
    before, after = (right_answers(side).to_numpy().T for side in sides)
    row = {"n": before.shape[1], "num_seeds": before.shape[0]}
    for name, answers in (("before", before), ("after", after)):
        row[name] = answers.mean()
        row[f"{name}_low"], row[f"{name}_high"] = _interval(answers)
    row |= {"change": change.estimate}
    row |= {"change_low": change.ci_low, "change_high": change.ci_high}
    for name, column in SCORERS.items():
        for side, answered in zip(("before", "after"), sides, strict=True):
            row[f"{side}_{name}"] = answered[column].astype(float).mean()
    return row


def _interval(answers: np.ndarray) -> np.ndarray:
    """The Wilson interval of each seed's accuracy, averaged."""
    n = answers.shape[1]
    ends = [statistics.wilson_interval(int(right), n) for right in answers.sum(axis=1)]
    return np.mean(ends, axis=0)


def percent(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """Write a fraction and its interval in percent (changes: percentage points)."""
    if pd.isna(value):
        return ""
    form = "{:+.1f}" if signed else "{:.1f}"
    text = form.format(100 * value)
    if pd.isna(low) or pd.isna(high):
        return text
    return f"{text} [{form.format(100 * low)}, {form.format(100 * high)}]"


def summary_rows(
    table: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return one line per student: each ability before → after, and the change.

    Parameters
    ----------
    table : DataFrame
        From `main_table`.
    groups : mapping
        From `task_groups`.

    Returns
    -------
    DataFrame
        Text, in percent and points; empty where a student was not tested.
    """
    ours = table.set_index(["task", "prompt_mode"])
    lines = []
    for key, student in ours.groupby(["model", "start", "size"], sort=False):
        line = {"student": key[0], "start": key[1].replace("_", " ")}
        line["parameters"] = f"{int(key[2]):,}"
        for column, group, mode in _SUMMARY:
            place = (pooled_name(group, groups[group]), mode)
            known = place in student.index
            line[column] = _before_after(student.loc[place]) if known else ""
        lines.append(line)
    return pd.DataFrame(lines)


def _before_after(row: pd.Series) -> str:
    change = percent(row["change"], row["change_low"], row["change_high"], signed=True)
    return f"{100 * row['before']:.1f} → {100 * row['after']:.1f} ({change})"


def scorer_rows(
    table: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return math before → after as three scorers read the same answers, in percent.

    Parameters
    ----------
    table : DataFrame
        From `main_table`.
    groups : mapping
        From `task_groups`.

    Returns
    -------
    DataFrame
        A line per student for the training task and for the pooled
        out-of-distribution sets, asked in context with chain of thought.
    """
    sets = [pooled_name(g, groups[g]) for _, g, mode in _SUMMARY if mode == MATH_MODE]
    is_shown = table["task"].isin(sets) & (table["prompt_mode"] == MATH_MODE)
    rows = table[is_shown]
    return pd.DataFrame(
        {
            "student": rows["model"],
            "start": rows["start"].str.replace("_", " "),
            "set": rows["task"],
            "ours": _sides(rows, ""),
            "reference's regex": _sides(rows, "_reference"),
            "lm-eval, flexible": _sides(rows, "_lm_eval"),
        }
    )


def _sides(rows: pd.DataFrame, suffix: str) -> list[str]:
    sides = zip(rows[f"before{suffix}"], rows[f"after{suffix}"], strict=True)
    return [f"{100 * before:.1f} → {100 * after:.1f}" for before, after in sides]


def form_rows(form: pd.DataFrame) -> pd.DataFrame:
    """Return notebook 06's table of form and reasoning as text, in percent.

    Parameters
    ----------
    form : DataFrame
        From `evaluation.form_and_reasoning`.
    """
    names = {
        "with_form": "texts that state an answer",
        "right": "right, of all",
        "right_with_form": "right, of these",
        "right_without": "right, of the others",
    }
    shown = form[["checkpoint", "prompt_mode", "n"]].copy()
    shown["prompt_mode"] = shown["prompt_mode"].str.replace("_", " ")
    for column, title in names.items():
        shown[title] = [percent(value, np.nan, np.nan) for value in form[column]]
    return shown


def our_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the main table as a reader sees it, in percent."""
    rows = table
    return pd.DataFrame(
        {
            "student": rows["model"],
            "start": rows["start"].str.replace("_", " "),
            "set": rows["task"],
            "prompt": rows["prompt_mode"].str.replace("_", " "),
            "n": rows["n"].astype(int).map("{:,}".format),
            "seeds": rows["num_seeds"].astype(int),
            "before, %": _cells(rows, "before"),
            "after, %": _cells(rows, "after"),
            "change, points": _cells(rows, "change", signed=True),
        }
    )


def _cells(rows: pd.DataFrame, name: str, *, signed: bool = False) -> list[str]:
    columns = [rows[name], rows[f"{name}_low"], rows[f"{name}_high"]]
    return [percent(*cell, signed=signed) for cell in zip(*columns, strict=True)]
