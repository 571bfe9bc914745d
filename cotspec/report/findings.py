"""C1 to C3 from one student's predictions before and after specialization.

Enters: predictions (artifact 8) of both checkpoints on the same problems. Leaves:
paired changes with intervals, and the findings that the ledger judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.claims import (
    MAX_GENERIC_KEPT,
    MIN_GENERIC_ACCURACY,
    MIN_PROBLEMS,
)
from cotspec.report.ledger import Finding

MATH_MODE = "in_context_chain_of_thought"


def paired_changes(
    predictions: pd.DataFrame,
    *,
    seed: int,
    checkpoints: tuple[str, str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Return the change in accuracy per task and prompt mode, paired by problem.

    Parameters
    ----------
    predictions : DataFrame
        ``problem_id, task, prompt_mode, checkpoint, is_correct`` and, where several
        were run, ``seed``.
    seed : int
        Of the bootstrap.
    groups : mapping, optional
        From `task_groups`: groups of several tasks get a row, their problems pooled.
    checkpoints : (str, str)
        Before and after, as the column ``checkpoint`` names them.

    Returns
    -------
    DataFrame
        ``task, prompt_mode, change, change_low, change_high, mcnemar_p``; 95%
        intervals; the exact McNemar p-value is uncorrected (NaN with several seeds).
    """
    sets = {task: [task] for task in dict.fromkeys(predictions["task"])}
    sets |= {
        f"all {name}": tasks for name, tasks in (groups or {}).items() if len(tasks) > 1
    }
    tested = [
        (name, tasks, mode)
        for name, tasks in sets.items()
        for mode in dict.fromkeys(
            predictions["prompt_mode"][predictions["task"].isin(tasks)]
        )
    ]
    rows = []
    for task, tasks, mode in tested:
        before, after = _paired(predictions, tasks, mode, checkpoints)
        change = statistics.paired_bootstrap(before, after, seed=seed)
        single = len(before) == 1
        p_value = statistics.mcnemar(before[0], after[0]) if single else np.nan
        rows.append(
            {
                "task": task,
                "prompt_mode": mode,
                "change": change.estimate,
                "change_low": change.ci_low,
                "change_high": change.ci_high,
                "mcnemar_p": p_value,
            }
        )
    return pd.DataFrame(rows)


def specialization_findings(
    predictions: pd.DataFrame,
    data: DataConfig,
    *,
    seed: int,
    checkpoints: tuple[str, str],
) -> dict[str, Finding]:
    """Return the findings of C1, C2 and C3.

    Parameters
    ----------
    predictions : DataFrame
        As for `paired_changes`; several sizes have a column ``size``.
    data : DataConfig
        Which tasks are in-distribution, out of distribution and generic.
    seed : int
        Of the bootstrap.
    checkpoints : (str, str)
        Before and after, as the column ``checkpoint`` names them.

    Raises
    ------
    ValueError
        No predictions, or problems that only one checkpoint answered.
    """
    if predictions.empty:
        raise ValueError("predictions: empty; run notebook 06_evaluation first")
    groups = {
        "C1": ([data.train_task], (MATH_MODE,)),
        "C2": (data.out_of_distribution_tasks, (MATH_MODE,)),
        "C3": (data.generic_tasks, ("chain_of_thought", "answer_only")),
    }
    found = {}
    for claim, (tasks, modes) in groups.items():
        measured = [
            _measure(predictions, tasks, mode, seed, checkpoints) for mode in modes
        ]
        if not all(measured):
            continue
        found[claim] = _price(*measured) if claim == "C3" else _lift(measured[0])
    return found


def _paired(
    predictions: pd.DataFrame,
    tasks: Sequence[str],
    mode: str,
    checkpoints: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return right or wrong, (seeds, problems), of both checkpoints in one order."""
    rows = predictions[
        predictions["task"].isin(tasks) & (predictions["prompt_mode"] == mode)
    ]
    if "seed" not in rows:
        rows = rows.assign(seed=0)
    table = rows.pivot(
        index=["task", "problem_id"],
        columns=["checkpoint", "seed"],
        values="is_correct",
    )
    both = [table.get(name, pd.DataFrame()) for name in checkpoints]
    sides = [side.to_numpy(dtype=float, na_value=np.nan).T for side in both]
    if sides[0].shape != sides[1].shape or any(np.isnan(side).any() for side in sides):
        counts = rows["checkpoint"].value_counts().to_dict()
        raise ValueError(
            f"predictions: {mode} on {list(tasks)} is not paired; checkpoints "
            f"{list(checkpoints)} must answer the same problems, got {counts}"
        )
    return sides[0], sides[1]


def _measure(
    predictions: pd.DataFrame,
    tasks: Sequence[str],
    mode: str,
    seed: int,
    checkpoints: tuple[str, str],
) -> list[dict]:
    """Return one measurement per size; none if the mode was not tested."""
    if "size" not in predictions:
        predictions = predictions.assign(size="")
    measured = []
    for size, group in predictions.groupby("size", sort=False):
        before, after = _paired(group, tasks, mode, checkpoints)
        if not before.size:
            continue
        change = statistics.paired_bootstrap(before, after, seed=seed)
        named = {"size": size, "mode": mode, "n": before.shape[1]}
        means = {"before": before.mean(), "after": after.mean()}
        measured.append(named | means | {"change": change})
    return measured


def _in_words(measured: list[dict]) -> str:
    parts = []
    for one in measured:
        size = f"{one['size']} " if one["size"] != "" else ""
        seen = f"{one['before']:.1%} → {one['after']:.1%} (n = {one['n']})"
        parts.append(size + seen)
    return ", ".join(parts)


def _too_few(measured: list[dict]) -> str:
    fewest = min(one["n"] for one in measured)
    if fewest >= MIN_PROBLEMS:
        return ""
    return f"{fewest} problems; the rule needs {MIN_PROBLEMS}"


def _lift(measured: list[dict]) -> Finding:
    """C1 and C2: the change at the size where it is smallest."""
    changes = [one["change"] for one in measured]
    least = min(changes, key=lambda change: change.estimate)
    return Finding(
        ours=_in_words(measured),
        effect=least.estimate,
        ci_low=least.ci_low,
        ci_high=least.ci_high,
        p_value=max(change.p_value for change in changes),
        is_met=all(change.ci_low > 0 for change in changes),
        is_opposite=any(change.ci_high < 0 for change in changes),
        reason=_too_few(measured),
    )


def _price(chain_of_thought: list[dict], answer_only: list[dict]) -> Finding:
    """C3: the fall of generic CoT, with generic answer-only beside it."""
    both = chain_of_thought + answer_only
    changes = [one["change"] for one in both]
    largest = max((one["change"] for one in chain_of_thought), key=_estimate)
    ours = f"CoT {_in_words(chain_of_thought)}; answer-only {_in_words(answer_only)}"
    start = min(one["before"] for one in chain_of_thought)
    reason = _too_few(both)
    if not reason and start < MIN_GENERIC_ACCURACY:
        reason = (
            f"the start solves {start:.1%} of the generic problems with CoT; the rule "
            f"needs {MIN_GENERIC_ACCURACY:.0%}"
        )
    kept = [
        one["after"] <= MAX_GENERIC_KEPT * one["before"] for one in chain_of_thought
    ]
    return Finding(
        ours=ours,
        effect=largest.estimate,
        ci_low=largest.ci_low,
        ci_high=largest.ci_high,
        p_value=max(change.p_value for change in changes),
        is_met=all(kept) and all(change.ci_high < 0 for change in changes),
        is_opposite=any(change.ci_low > 0 for change in changes),
        reason=reason,
    )


def _estimate(change: statistics.Difference) -> float:
    return change.estimate
