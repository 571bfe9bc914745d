"""The report's tables: our students before and after, and the paper's Tables 1 to 3.

Enters: predictions before and after, the choices of notebook 07 and ``published.csv``
(260 numbers, a source each). Leaves: one table for ``main_table.csv``, fractions, and
tables of text in percent: the paper's layout, with ours below on a scale of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report import pairing
from cotspec.report.pairing import MATH_MODE

Groups = Mapping[str, Sequence[str]]  # tasks by what they test, see `task_groups`
DATA_FILES = ("published.csv",)  # part of the keys of stages that read them
COLUMNS = (
    "model start size task prompt_mode n num_seeds before before_low before_high "
    "after after_low after_high change change_low change_high "
    "before_reference after_reference before_lm_eval after_lm_eval"
).split()
# Other readings of the same math answers; generic tasks have none.
SCORERS = {"reference": "reference_is_correct", "lm_eval": "lm_eval_is_correct"}
STUDENT, PLACE = ["size", "model", "start"], ["task", "prompt_mode"]
# Columns of the summary: the group of tasks and the prompt mode.
SUMMARY = {
    "in-distribution": ("in-distribution", MATH_MODE),
    "out of distribution": ("out of distribution", MATH_MODE),
    "generic, CoT": ("generic ability", "chain_of_thought"),
    "generic, answer-only": ("generic ability", "answer_only"),
}
MATH_SETS = "GSM8K MultiArith ASDiv SVAMP".split()
SETS = {name: (name.lower(), "chain_of_thought") for name in MATH_SETS}
SETS |= {"BBH-AO": ("bbh", "answer_only"), "BBH-CoT": ("bbh", "chain_of_thought")}


def load_published() -> pd.DataFrame:
    """Return the published numbers: ``model, size, kind, dataset, prompt, stage,
    value_percent, source``."""
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def _of_table(published: pd.DataFrame, number: int) -> pd.DataFrame:
    """The numbers of one of the paper's tables, in its order."""
    source = f"Fu et al. 2023, arXiv 2301.12726v1, Table {number}"
    return published[published["source"].str.startswith(source)]


def task_groups(data: DataConfig) -> Groups:
    """Return the tasks by what they test; also the panels of `before_and_after`."""
    return {
        "in-distribution": [data.train_task],
        "out of distribution": list(data.out_of_distribution_tasks),
        "generic ability": list(data.generic_tasks),
    }


def pooled_name(group: str, tasks: Sequence[str]) -> str:
    """Return how the table names all problems of a group."""
    return tasks[0] if len(tasks) == 1 else f"all {group}"


def main_table(predictions: pd.DataFrame, groups: Groups) -> pd.DataFrame:
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
    for (size, model, start), student in predictions.groupby(STUDENT):
        for task, tasks in sets.items():
            picked = student[student["task"].isin(tasks)]
            for mode, asked in picked.groupby("prompt_mode", sort=False):
                key = zip(COLUMNS, (model, start, size, task, mode), strict=False)
                rows.append(dict(key) | _change(asked))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _change(rows: pd.DataFrame) -> dict[str, float]:
    change = statistics.paired_difference(*pairing.before_and_after(rows))
    # Student's interval knows no ends; an accuracy cannot change by more than all.
    low, high = np.clip([change.ci_low, change.ci_high], -1, 1)
    row = {"change": change.estimate, "change_low": low, "change_high": high}
    ends = zip(("before", "after"), pairing.both_ends(rows), strict=True)
    for side, answered in ends:
        answers = pairing.right_answers(answered).to_numpy().T
        num_seeds, n = answers.shape
        row |= {"n": n, "num_seeds": num_seeds, side: answers.mean()}
        each = [statistics.wilson_interval(right, n) for right in answers.sum(axis=1)]
        row[f"{side}_low"], row[f"{side}_high"] = np.mean(each, axis=0)
        for name, column in SCORERS.items():
            row[f"{side}_{name}"] = answered[column].astype(float).mean()
    return row


def percent(*numbers: float, signed: bool = False) -> str:
    """Write a fraction, or it and its interval, in percent; "" where not known."""
    form = "{:+.1f}" if signed else "{:.1f}"
    known = [form.format(100 * number) for number in numbers if pd.notna(number)]
    return "{} [{}, {}]".format(*known) if len(known) == 3 else "".join(known[:1])


def _sides(rows: pd.DataFrame, suffix: str = "") -> list[str]:
    sides = zip(rows[f"before{suffix}"], rows[f"after{suffix}"], strict=True)
    return [f"{100 * before:.1f} → {100 * after:.1f}" for before, after in sides]


def _cells(rows: pd.DataFrame, name: str, *, signed: bool = False) -> list[str]:
    columns = [rows[name], rows[f"{name}_low"], rows[f"{name}_high"]]
    return [percent(*cell, signed=signed) for cell in zip(*columns, strict=True)]


def _wide(rows: pd.DataFrame, texts: list[str], places: Mapping) -> pd.DataFrame:
    """A line per student, a column per named place; empty where there is no text."""
    table = rows.assign(text=texts).pivot(index=STUDENT, columns=PLACE, values="text")
    table = table.reindex(columns=list(places.values())).fillna("")
    table = table.set_axis(list(places), axis=1).reset_index()
    return table.assign(start=table["start"].str.replace("_", " "))


def summary_rows(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Return a line per student: before → after, and the change.

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
    places = {
        column: (pooled_name(group, groups[group]), mode)
        for column, (group, mode) in SUMMARY.items()
    }
    changes = zip(_sides(table), _cells(table, "change", signed=True), strict=True)
    texts = [f"{sides} ({change})" for sides, change in changes]
    rows = _wide(table, texts, places)
    rows["size"] = rows["size"].astype(int).map("{:,}".format)
    names = {"model": "student", "start": "start", "size": "parameters"}
    return rows[[*names, *places]].rename(columns=names)


def scorer_rows(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
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
    sets = [pooled_name(name, groups[name]) for name in list(groups)[:2]]
    rows = table[table["task"].isin(sets) & (table["prompt_mode"] == MATH_MODE)]
    shown = {
        "student": rows["model"],
        "start": rows["start"].str.replace("_", " "),
        "set": rows["task"],
        "ours": _sides(rows),
        "reference's regex": _sides(rows, "_reference"),
        "lm-eval, flexible": _sides(rows, "_lm_eval"),
    }
    return pd.DataFrame(shown)


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
    shown = form[["checkpoint", "prompt_mode", "n"]].replace("_", " ", regex=True)
    return shown.join(form[list(names)].map(percent).rename(columns=names))


def our_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the main table as a reader sees it, in percent."""
    shown = {
        "student": table["model"],
        "start": table["start"].str.replace("_", " "),
        "set": table["task"],
        "prompt": table["prompt_mode"].str.replace("_", " "),
        "n": table["n"].astype(int).map("{:,}".format),
        "seeds": table["num_seeds"].astype(int),
        "before, %": _cells(table, "before"),
        "after, %": _cells(table, "after"),
        "change, points": _cells(table, "change", signed=True),
    }
    return pd.DataFrame(shown)


def table1(published: pd.DataFrame, main: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Return Table 1: every row of the paper, then our students, before → after.

    Parameters
    ----------
    published : DataFrame
    main : DataFrame
        From `main_table`: our students.
    groups : mapping
        From `task_groups`.
    """
    rows = []
    by_model = _of_table(published, 1).groupby(["model", "size", "kind"], sort=False)
    for (model, size, kind), known in by_model:
        row = {"where": "paper", "model": model, "size": size}
        for name, (dataset, prompt) in SETS.items():
            cell = known[(known["dataset"] == dataset) & (known["prompt"] == prompt)]
            # What it does not report; of others' generic ability it asks.
            is_asked = kind == "contemporary" and dataset == "bbh"
            row[name] = _cell(cell) or ("?" if is_asked else "–")
        rows.append(row)
    places = dict(zip(SETS, _our_places(groups), strict=True))
    ours = _wide(main, _sides(main), places)
    ours["model"] += ", " + ours.pop("start")
    ours["size"] = ours["size"].map("{:,.0f}".format)
    return pd.concat([pd.DataFrame(rows), ours.assign(where="here")], ignore_index=True)


def _our_places(groups: Groups) -> list[tuple[str, str]]:
    """Our set and prompt for each column: tasks are in the paper's order, by name."""
    others = groups["out of distribution"]
    named = [next((t for t in others if n.lower() in t), "") for n in MATH_SETS[1:]]
    generic = pooled_name("generic ability", groups["generic ability"])
    math = [(task, MATH_MODE) for task in (groups["in-distribution"][0], *named)]
    return [*math, (generic, "answer_only"), (generic, "chain_of_thought")]


def _cell(rows: pd.DataFrame) -> str:
    """Before → after, or the one number; "" if there is none."""
    values = rows.set_index("stage")["value_percent"]
    if "before" in values:
        return f"{values['before']} → {values['after']}"
    return str(values.get("published", ""))


def table2(published: pd.DataFrame, main: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return Table 2: tuned and raw starts, before → after, on the training task.

    The paper's are validation numbers; ours are test numbers, which chose nothing.
    """
    rows = []
    for size, known in _of_table(published, 2).groupby("size", sort=False):
        cells = {model: _cell(group) for model, group in known.groupby("model")}
        rows.append(("paper (validation)", size, cells["FlanT5"], cells["T5"]))
    ours = main[(main["task"] == task) & (main["prompt_mode"] == MATH_MODE)]
    ours = ours.assign(text=_sides(ours))
    texts = ours.pivot(index=STUDENT[:2], columns="start", values="text")
    texts = texts.reindex(columns=["instruction_tuned", "raw"]).fillna("")
    rows += [("here (test)", model, *both) for (_, model), *both in texts.itertuples()]
    return pd.DataFrame(rows, columns=["where", "size", "instruction-tuned", "raw"])


def table3(published: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """Return Table 3: what each validation set's choice can do, on both sides.

    Parameters
    ----------
    choices : DataFrame
        From `curves.abilities_of_choices`. Its test columns are the sharper question:
        does the choice pay on problems that did not choose?
    """
    names = {"chosen_by": "chosen by"}
    for split in ("validation", "test"):
        names[f"in-distribution, {split}"] = f"in distribution, {split}"
        names[f"out of distribution, {split}"] = f"out of it, {split}"
    columns = ["where", "model", *names.values()]
    rows, chosen = [], _of_table(published, 3)
    chosen = chosen[chosen["stage"] == "after"]
    for (size, kind), group in chosen.groupby(["size", "kind"], sort=False):
        values = group.set_index("dataset")["value_percent"]
        own = values["gsm8k (validation)"], values["M-A-S (validation mean)"]
        rows.append(("paper", f"FlanT5 {size}", kind.split("chosen by ")[1], *own))
    ours = choices.rename(columns=names).reindex(columns=columns).assign(where="here")
    ours[columns[3:]] = ours[columns[3:]].map(percent)
    papers = pd.DataFrame(rows, columns=columns[:5])
    return pd.concat([papers, ours], ignore_index=True).fillna("")
