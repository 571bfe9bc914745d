"""Two systems on the same problems and seeds: the ground of every finding.

Enters: predictions of `experiments` (one row per cell, step, problem and prompt mode).
Leaves: rows picked from them, and arrays of right answers in one order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cotspec.grids import TRAINING
from cotspec.profiles import NUM_BASES

MATH_MODE = "in_context_chain_of_thought"
ZERO_SHOT_MODE = "zero_shot_chain_of_thought"
ASKED = {MATH_MODE: "asked in context", ZERO_SHOT_MODE: "asked zero-shot"}
ONE_SETTING = (
    "Allowed: one setting in a report. Run notebooks 05 to 10 with the same OVERRIDES"
)


def pick(
    predictions: pd.DataFrame, tasks: Sequence[str], mode: str, *, split: str = "test"
) -> pd.DataFrame:
    """Return the rows of some tasks in one prompt mode and split."""
    is_asked = (predictions["prompt_mode"] == mode) & (predictions["split"] == split)
    return predictions[is_asked & predictions["task"].isin(tasks)]


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
    found = {name: sorted(set(rows["settings"])) for name, rows in frames.items()}
    if len(set().union(*found.values())) > 1:
        groups = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in found.items())
        raise ValueError(f"predictions: settings differ ({groups}). {ONE_SETTING}")


def at_start(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of step 0, the student before its training."""
    return rows[rows["step"] == 0]


def at_last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each training's last checkpoint."""
    steps = rows.groupby(TRAINING, dropna=False)["step"]
    return rows[rows["step"] == steps.transform("max")]


def both_ends(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the start and of the last step of some trainings."""
    return at_start(rows), at_last_step(rows)


def by_size(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return each model's name and rows, smallest first."""
    return [(model, g) for (_, model), g in rows.groupby(["size", "model"])]


def right_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """Return right (1) or wrong (0), problems down and seeds across, both sorted.

    Raises
    ------
    ValueError
        Two rows for one problem and seed, or a seed that lacks a problem.
    """
    keys = ["task", "problem_id", "seed"]
    counts = rows.groupby(keys)["is_correct"].count().unstack(fill_value=0)
    if (counts != 1).any(axis=None):
        found = f"{np.unique(counts)} rows a problem and seed"
        raise ValueError(f"predictions: {found}. Allowed: 1, of one step and mode")
    table = rows.pivot(index=keys[:2], columns="seed", values="is_correct")
    return table.astype(float)


def independent(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Average the columns (seeds) whose trainings start from one base model.

    The micro-world has `NUM_BASES` of them; two seeds that share one, counted as two
    repeats, make intervals too narrow (with five seeds over three bases a 95% interval
    covered 85.6% in a simulation). A pretrained model from outside has one base for
    all: its intervals are about that base, and every seed counts.
    """
    if not model.startswith("micro-"):
        return table
    return table.T.groupby(table.columns % NUM_BASES).mean().T


def pair(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return right or wrong of two systems, each (repeats, problems), in one order.

    A repeat is a seed, or the mean of those that share a base: see `independent`.

    Raises
    ------
    ValueError
        They did not answer the same problems with the same seeds.
    """
    a, b = right_answers(first), right_answers(second)
    if not (a.index.equals(b.index) and a.columns.equals(b.columns)):
        shapes = f"{a.shape} and {b.shape} problems and seeds"
        raise ValueError(f"predictions: not paired, got {shapes}. Allowed: the same")
    model = first["model"].iloc[0]
    return tuple(independent(table, model).to_numpy().T for table in (a, b))


def before_and_after(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return `pair` of the start and the last step of some trainings."""
    return pair(*both_ends(rows))


def best_steps(validation: pd.DataFrame) -> pd.Series:
    """Return each seed's step of highest accuracy, the earliest of equals.

    The start is no choice.
    """
    rows = validation[validation["step"] > 0]
    means = rows.pivot_table(index="step", columns="seed", values="is_correct")
    return means.idxmax()


def at_chosen(rows: pd.DataFrame, steps: pd.Series) -> pd.DataFrame:
    """Return the rows of the step that was chosen for their seed."""
    return rows[rows["step"] == rows["seed"].map(steps)]
