"""C3 and C8: abilities along the training, and which checkpoint would be chosen.

Enters: predictions of notebook 07, one student at all its checkpoints, on validation
and test problems. Leaves: the findings that the ledger judges, the curves, and the
choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cotspec.profiles import DataConfig
from cotspec.report.claims import MIN_CHECKPOINTS
from cotspec.report.ledger import Finding, cannot_judge, measured
from cotspec.report.pairing import (
    MATH_MODE,
    compare,
    falls,
    pick,
    right_answers,
    rises,
    too_few,
)
from cotspec.report.specialization import before_and_after, specialization_findings

IN, OUT = "in-distribution", "out of distribution"


def abilities(data: DataConfig) -> dict[str, tuple[Sequence[str], str]]:
    """Return each ability's tasks and prompt mode."""
    return {
        IN: ([data.train_task], MATH_MODE),
        OUT: (data.out_of_distribution_tasks, MATH_MODE),
        "generic CoT": (data.generic_tasks, "chain_of_thought"),
        "generic answer-only": (data.generic_tasks, "answer_only"),
    }


def tradeoff_findings(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> dict[str, Finding]:
    """Return the findings of C3 (where generic tasks were tested) and C8.

    Parameters
    ----------
    predictions : DataFrame
        One student, trained on all formats with each seed.
    data : DataConfig
        Which tasks are in-distribution, out of distribution and generic.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        No predictions, or problems that were answered at some checkpoints only.
    """
    ends = before_and_after(predictions)
    found = specialization_findings(ends, data, seed=seed)
    price = {"C3": found["C3"]} if "C3" in found else {}
    return price | {"C8": _two_choices(predictions, data, seed)}


def ability_curves(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return each ability's accuracy along the training, test and validation.

    Returns
    -------
    DataFrame
        ``ability, split, step, n, num_seeds, accuracy, low, high``: the mean over the
        seeds and the lowest and highest of them; fractions.
    """
    rows = []
    for ability, (tasks, mode) in abilities(data).items():
        for split in ("validation", "test"):
            picked = pick(predictions, tasks, mode, split=split)
            for step, at_step in picked.groupby("step"):
                answers = right_answers(at_step)
                means = answers.mean()
                ends = (means.mean(), means.min(), means.max())
                rows.append((ability, split, step, *answers.shape, *ends))
    columns = "ability split step n num_seeds accuracy low high".split()
    return pd.DataFrame(rows, columns=columns)


def chosen_checkpoints(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the checkpoint that each validation set would choose, seed by seed.

    The one with the highest accuracy, the earliest of equals. The start is no choice.

    Returns
    -------
    DataFrame
        ``chosen_by`` (an ability), ``seed, step, accuracy`` (of validation), and ``n``.
        A set without validation problems has no rows.
    """
    rows = []
    for ability in (IN, OUT):
        tasks, mode = abilities(data)[ability]
        picked = pick(predictions, tasks, mode, split="validation")
        picked = picked[picked["step"] > 0]
        for number, group in picked.groupby("seed"):
            accuracy = group.groupby("step")["is_correct"].mean()
            best, n = accuracy.idxmax(), group["problem_id"].nunique()
            rows.append((ability, number, best, accuracy[best], n))
    columns = ["chosen_by", "seed", "step", "accuracy", "n"]
    return pd.DataFrame(rows, columns=columns)


def abilities_of_choices(predictions: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the test accuracies of the checkpoints that each validation set chooses.

    Returns
    -------
    DataFrame
        ``chosen_by``, then one column per ability: fractions, the mean over seeds.
    """
    choices = chosen_checkpoints(predictions, data)
    rows = []
    for name, chosen in choices.groupby("chosen_by", sort=False):
        row = {"chosen_by": name}
        for ability, (tasks, mode) in abilities(data).items():
            picked = _at_chosen(pick(predictions, tasks, mode), chosen)
            row[ability] = picked["is_correct"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def _at_chosen(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Keep of each seed the rows of its chosen step."""
    return rows[rows["step"] == rows["seed"].map(chosen.set_index("seed")["step"])]


def _two_choices(predictions: pd.DataFrame, data: DataConfig, seed: int) -> Finding:
    """C8: the checkpoint its own validation chooses against the other set's choice."""
    tasks, mode = abilities(data)[OUT]
    test = pick(predictions, tasks, mode)
    num_checkpoints = test.loc[test["step"] > 0, "step"].nunique()
    if num_checkpoints < MIN_CHECKPOINTS:
        return cannot_judge(
            f"{num_checkpoints} checkpoints; the rule needs {MIN_CHECKPOINTS}"
        )
    choices = chosen_checkpoints(predictions, data)
    by_set = {name: choices[choices["chosen_by"] == name] for name in (IN, OUT)}
    missing = [name for name, chosen in by_set.items() if chosen.empty]
    if missing:
        return cannot_judge(f"no validation problems {' and '.join(missing)}")
    sides = [_at_chosen(test, chosen) for chosen in by_set.values()]
    gain = compare(*sides, seed=seed, label="out of distribution")
    steps = choices.pivot(index="seed", columns="chosen_by", values="step")
    differs = (steps[IN] != steps[OUT]).mean() > 0.5
    chosen_steps = "; ".join(
        f"chosen {name}: steps {', '.join(map(str, steps[name]))}" for name in (IN, OUT)
    )
    return measured(
        gain.change,
        f"{chosen_steps}; {gain}",
        is_met=bool(differs) and rises(gain),
        is_opposite=falls(gain),
        reason=too_few([gain]),
    )
