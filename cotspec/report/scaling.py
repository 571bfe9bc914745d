"""C1, C2, C4 and C5: students of several sizes, from tuned and from raw starts.

Enters: predictions of notebook 10, each training at its start and last step. Leaves:
the findings that the ledger judges, and the slopes behind C5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.profiles import DataConfig
from cotspec.report.claims import MAX_KINK, MIN_SIZES
from cotspec.report.ledger import Finding, cannot_judge, measured
from cotspec.report.pairing import (
    MATH_MODE,
    at_last_step,
    at_start,
    compare_arrays,
    falls,
    math_tasks,
    pair,
    pick,
    rises,
    too_few,
)
from cotspec.report.specialization import (
    changes_by_size,
    in_words,
    joint_p_value,
    specialization_findings,
)


def scaling_findings(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> dict[str, Finding]:
    """Return the findings of C1, C2, C4 and C5.

    Parameters
    ----------
    predictions : DataFrame
        Of trainings on all formats, one a size, start and seed.
    data : DataConfig
        Which tasks are in-distribution and out of distribution.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        No predictions, or problems that were answered on one side only.
    """
    lifts = specialization_findings(predictions, data, seed=seed)
    tasks = math_tasks(data)
    math = pick(predictions, tasks, MATH_MODE)
    return {claim: lifts[claim] for claim in ("C1", "C2") if claim in lifts} | {
        "C4": _starts(math, seed),
        "C5": _curve(math[math["start"] != "raw"], tasks, seed),
    }


def size_slopes(rows: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Fit accuracy on log size, and a second slope above the middle size.

    Parameters
    ----------
    rows : DataFrame
        One row per size, seed and problem.
    seed : int
        Of the bootstrap, over seeds and problems as everywhere.

    Returns
    -------
    DataFrame
        ``term`` ("slope": of the straight fit; "kink": the second slope),
        ``per_doubling`` (fraction of accuracy per doubling of the size), ``ci_low,
        ci_high, p_value``.

    Raises
    ------
    ValueError
        Under `MIN_SIZES` sizes, or sizes with other problems or seeds.
    """
    sizes = sorted(rows["size"].unique())
    if len(sizes) < MIN_SIZES:
        raise ValueError(f"rows: {len(sizes)} sizes. Allowed: at least {MIN_SIZES}")
    smallest = rows[rows["size"] == sizes[0]]
    answers = np.stack([pair(smallest, rows[rows["size"] == s])[1] for s in sizes])
    doublings = np.log2(np.asarray(sizes, dtype=float))
    above = np.maximum(0, doublings - np.median(doublings))
    line = np.stack([np.ones_like(doublings), doublings], axis=1)  # (K, 2)
    bent = np.column_stack([line, above])  # (K, 3)
    found = []
    for term, design in (("slope", line), ("kink", bent)):
        # The last coefficient of least squares is a weighted sum over the sizes.
        weights = np.linalg.pinv(design)[-1]  # (K,)
        # They sum to 0: what all sizes share is taken off before it can round.
        shared = answers - answers[0]
        coefficient = np.tensordot(weights, shared, axes=1)  # (seeds, problems)
        fit = statistics.paired_bootstrap(0 * coefficient, coefficient, seed=seed)
        found.append((term, fit.estimate, fit.ci_low, fit.ci_high, fit.p_value))
    return pd.DataFrame(
        found, columns=["term", "per_doubling", "ci_low", "ci_high", "p_value"]
    )


def _starts(math: pd.DataFrame, seed: int) -> Finding:
    """C4: instruction-tuned minus raw start, after specialization."""
    after = at_last_step(math)
    raw = after[after["start"] == "raw"]
    tuned = after[after["start"] == "instruction_tuned"]
    sizes = sorted(set(raw["size"]) & set(tuned["size"]))
    if not sizes:
        return cannot_judge("no size was specialized from both starts")
    pairs = [pair(raw[raw["size"] == s], tuned[tuned["size"] == s]) for s in sizes]
    means = [np.mean(side, axis=0) for side in zip(*pairs, strict=True)]
    label = f"raw → instruction-tuned start, mean of {len(sizes)} sizes:"
    mean = compare_arrays(*means, seed=seed, label=label)
    return measured(
        mean.change,
        str(mean),
        is_met=rises(mean),
        is_opposite=falls(mean),
        reason=too_few([mean]),
    )


def _curve(tuned: pd.DataFrame, tasks: Sequence[str], seed: int) -> Finding:
    """C5: the lift at each size, the slopes before and after, and their kinks."""
    num_sizes = tuned["size"].nunique()
    if num_sizes < MIN_SIZES:
        return cannot_judge(f"{num_sizes} sizes; the rule needs {MIN_SIZES}")
    lifts = changes_by_size(tuned, tasks, MATH_MODE, seed=seed)
    fits = {
        "before": size_slopes(at_start(tuned), seed=seed).set_index("term"),
        "after": size_slopes(at_last_step(tuned), seed=seed).set_index("term"),
    }
    slopes = [fit.loc["slope"] for fit in fits.values()]
    grows = all(slope["ci_low"] > 0 for slope in slopes)
    has_risen = all(map(rises, lifts)) and grows
    is_straight, open_kinks = _shape([fit.loc["kink"] for fit in fits.values()])
    is_opposite = any(map(falls, lifts))
    p_value = joint_p_value(lifts, falls)
    if not is_opposite:
        p_value = max(p_value, *(slope["p_value"] for slope in slopes))
    return measured(
        min((one.change for one in lifts), key=lambda change: change.estimate),
        "; ".join([in_words(lifts), *map(_fit_in_words, fits, fits.values())]),
        p_value=p_value,
        is_met=has_risen and is_straight,
        is_opposite=is_opposite,
        reason=too_few(lifts) or (open_kinks if has_risen else ""),
    )


def _shape(kinks: Sequence[pd.Series]) -> tuple[bool, str]:
    """Tell whether all kinks are small, or why that is open; "" if it is not."""
    small = [-MAX_KINK <= one["ci_low"] and one["ci_high"] <= MAX_KINK for one in kinks]
    holds_zero = [one["ci_low"] <= 0 <= one["ci_high"] for one in kinks]
    is_bent = any(not s and not z for s, z in zip(small, holds_zero, strict=True))
    if all(small) or is_bent:
        return all(small), ""
    return False, (
        f"a kink of more than {100 * MAX_KINK:.0f} points per doubling is neither seen "
        "nor excluded"
    )


def _fit_in_words(name: str, fit: pd.DataFrame) -> str:
    parts = [
        f"{term} {100 * row['per_doubling']:+.1f} "
        f"[{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"
        for term, row in fit.iterrows()
    ]
    return f"{name}, points per doubling: {', '.join(parts)}"
