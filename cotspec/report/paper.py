"""The paper's Tables 1 to 3, with our numbers below them on a scale of their own.

Enters: ``published.csv`` (260 numbers, a source each), the main table, the choices of
notebook 07. Leaves: tables of text in the paper's layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cotspec.report.pairing import MATH_MODE

DATA_FILES = ("published.csv",)  # part of the keys of stages that read them
SETS = {
    "GSM8K": ("gsm8k", "chain_of_thought"),
    "MultiArith": ("multiarith", "chain_of_thought"),
    "ASDiv": ("asdiv", "chain_of_thought"),
    "SVAMP": ("svamp", "chain_of_thought"),
    "BBH-AO": ("bbh", "answer_only"),
    "BBH-CoT": ("bbh", "chain_of_thought"),
}
# Table 1's rows, the paper's order; what it does not report: "–", what it asks: "?".
ROWS = (
    ("code-davinci-002", ">=175B", "–"),
    ("LaMDA", "137B", "–"),
    ("PaLM", "60B", "–"),
    ("UL2", "20B", "–"),
    ("T5, Magister et al. 2022", "11B", "?"),
    ("GPT, Shridhar et al. 2022", "6B", "?"),
    ("GPT, Ho et al. 2022", "6B", "?"),
    ("FlanT5", "11B", ""),
    ("FlanT5", "3B", ""),
    ("FlanT5", "760M", ""),
    ("FlanT5", "250M", ""),
)
SIZES = ("3B", "760M", "250M")
_TABLE = "Fu et al. 2023, arXiv 2301.12726v1, Table "


def load_published() -> pd.DataFrame:
    """Return the published numbers: ``model, size, kind, dataset, prompt, stage,
    value_percent, source``."""
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def table1(
    published: pd.DataFrame, main: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return Table 1: every row of the paper, then our students, before → after.

    Parameters
    ----------
    published : DataFrame
    main : DataFrame
        From `tables.main_table`: our students.
    groups : mapping
        From `tables.task_groups`.
    """
    rows = []
    for model, size, mark in ROWS:
        known = published[(published["model"] == model) & (published["size"] == size)]
        known = known[known["source"].str.startswith(_TABLE + "1")]
        row = {"where": "paper", "model": model, "size": size}
        for name, (dataset, prompt) in SETS.items():
            cell = known[(known["dataset"] == dataset) & (known["prompt"] == prompt)]
            is_generic = name.startswith("BBH")
            missing = mark if is_generic or mark != "?" else "–"
            row[name] = _cell(cell) or missing
        rows.append(row)
    for key, student in main.groupby(["size", "model", "start"], sort=False):
        row = {"where": "here", "model": f"{key[1]}, {key[2].replace('_', ' ')}"}
        row["size"] = f"{key[0]:,.0f}"
        known = student.set_index(["task", "prompt_mode"])
        for name, place in zip(SETS, _our_places(groups), strict=True):
            row[name] = _ours(known.loc[place]) if place in known.index else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _our_places(groups: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Our set and prompt for each column: tasks are in the paper's order, by name."""
    others = list(groups["out of distribution"])
    named = [next((t for t in others if n.lower() in t), "") for n in list(SETS)[1:4]]
    generic = groups["generic ability"]
    pooled = generic[0] if len(generic) == 1 else "all generic ability"
    math = [(task, MATH_MODE) for task in (groups["in-distribution"][0], *named)]
    return [*math, (pooled, "answer_only"), (pooled, "chain_of_thought")]


def _ours(row: pd.Series) -> str:
    return f"{100 * row['before']:.1f} → {100 * row['after']:.1f}"


def _cell(rows: pd.DataFrame) -> str:
    """Before → after, or the one number; several sources that differ: all of them."""
    stages = {s: g["value_percent"].tolist() for s, g in rows.groupby("stage")}
    if {"before", "after"} <= set(stages):
        return f"{stages['before'][0]} → {stages['after'][0]}"
    return " / ".join(map(str, dict.fromkeys(stages.get("published", []))))


def table2(published: pd.DataFrame, main: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return Table 2: tuned and raw starts, before → after, on the training task.

    The paper's are validation numbers; ours are test numbers, which chose nothing.
    """
    valid = published[published["dataset"] == "gsm8k (validation)"]
    valid = valid[valid["stage"].isin(["before", "after"])]
    valid = valid[valid["kind"].isin(["paper's student", "paper's student, raw start"])]
    rows = []
    for size in SIZES:
        row = {"where": "paper (validation)", "size": size}
        for model, name in (("FlanT5", "instruction-tuned"), ("T5", "raw")):
            of = valid[(valid["model"] == model) & (valid["size"] == size)]
            row[name] = _cell(of)
        rows.append(row)
    ours = main[main["task"] == task]
    ours = ours[ours["prompt_mode"] == MATH_MODE]
    for model, group in ours.groupby("model", sort=False):
        by_start = group.set_index("start")
        row = {"where": "here (test)", "size": model}
        for start, name in (("instruction_tuned", "instruction-tuned"), ("raw", "raw")):
            row[name] = _ours(by_start.loc[start]) if start in by_start.index else ""
        rows.append(row)
    return pd.DataFrame(rows)


def table3(published: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """Return Table 3: what each validation set's choice can do, on both sides.

    Parameters
    ----------
    choices : DataFrame
        From `curves.abilities_of_choices`. Its test columns are the sharper question:
        does the choice pay on problems that did not choose?
    """
    rows = []
    chosen = published[published["kind"].str.contains("chosen by")]
    chosen = chosen[~chosen["kind"].str.contains("minus")]
    for (size, kind), group in chosen.groupby(["size", "kind"], sort=False):
        values = group.set_index("dataset")["value_percent"]
        rows.append(
            {
                "where": "paper",
                "model": f"FlanT5 {size}",
                "chosen by": kind.split("chosen by ")[1],
                "in distribution, validation": values["gsm8k (validation)"],
                "out of it, validation": values["M-A-S (validation mean)"],
            }
        )
    for row in choices.to_dict("records"):
        percent = {
            k: "" if pd.isna(v) else f"{100 * v:.1f}"
            for k, v in row.items()
            if "," in k
        }
        rows.append(
            {
                "where": "here",
                "model": row["model"],
                "chosen by": row["chosen_by"],
                "in distribution, validation": percent["in-distribution, validation"],
                "out of it, validation": percent["out of distribution, validation"],
                "in distribution, test": percent["in-distribution, test"],
                "out of it, test": percent["out of distribution, test"],
            }
        )
    return pd.DataFrame(rows).fillna("")
