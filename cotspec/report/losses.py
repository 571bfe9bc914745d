"""C7: distribution matching against sample matching.

Enters: predictions of notebook 09, one student trained with both losses. Leaves: the
finding that the ledger judges.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cotspec.profiles import AlignmentConfig, DataConfig, LossConfig
from cotspec.report.claims import MAX_INFERIORITY
from cotspec.report.ledger import Finding, cannot_judge, measured
from cotspec.report.pairing import (
    MATH_MODE,
    Comparison,
    at_last_step,
    compare_arrays,
    falls,
    pair,
    pick,
    require_rows,
    rises,
    too_few,
)

_LOSS, _ALIGNMENT = LossConfig(), AlignmentConfig()


def loss_findings(
    predictions: pd.DataFrame,
    data: DataConfig,
    *,
    seed: int,
    loss: LossConfig = _LOSS,
    alignment: AlignmentConfig = _ALIGNMENT,
) -> dict[str, Finding]:
    """Return the finding of C7.

    Parameters
    ----------
    predictions : DataFrame
        One student; in-distribution validation at all checkpoints, test at the last.
    data : DataConfig
        Which task is in-distribution.
    seed : int
        Of the bootstrap.
    loss, alignment
        Which variant of distribution matching is judged; others are left out.

    Raises
    ------
    ValueError
        No predictions, or problems or checkpoints on one side only.
    """
    require_rows(predictions)
    rows = predictions[predictions["alignment"] == alignment.method]
    fields = ("tail", "divergence", "cross_entropy_weight")
    is_variant = (rows[list(fields)] == [getattr(loss, f) for f in fields]).all(axis=1)
    sides = (
        rows[rows["loss"] == "sample_matching"],
        rows[(rows["loss"] == "distribution_matching") & is_variant],
    )
    for name, side in zip(("sample", "distribution"), sides, strict=True):
        if side.empty:
            return {"C7": cannot_judge(f"no student was trained by {name} matching")}
    curve = _along_training(*sides, data, seed)
    tests = [at_last_step(pick(side, [data.train_task], MATH_MODE)) for side in sides]
    if curve is None or any(test.empty for test in tests):
        return {"C7": cannot_judge("validation or test problems were not measured")}
    return {"C7": _judge(curve, *pair(*tests), seed)}


def _judge(
    curve: Comparison, sample: np.ndarray, distribution: np.ndarray, seed: int
) -> Finding:
    """Faster along the training, and at its end not inferior by the margin.

    Both have to be significant, so the larger p-value counts; "opposite" rests on the
    curve alone.
    """
    label = "last checkpoint on test problems"
    end = compare_arrays(sample, distribution, seed=seed, label=label)
    margin = compare_arrays(sample, distribution + MAX_INFERIORITY, seed=seed)
    is_faster, is_slower = rises(curve), falls(curve)
    low, high = 100 * end.change.ci_low, 100 * end.change.ci_high
    ours = f"sample → distribution matching: {curve}; {end}, {low:+.1f} to {high:+.1f}"
    ours += " points"
    if is_faster and not rises(margin):
        ours += f": faster, but {100 * MAX_INFERIORITY:.0f} points lower not ruled out"
    p_values = [curve.change.p_value] + [margin.change.p_value] * (not is_slower)
    return measured(
        curve.change,
        ours,
        is_met=is_faster and rises(margin),
        is_opposite=is_slower,
        reason=too_few([curve, end]),
        p_value=max(p_values),
    )


def _along_training(
    sample: pd.DataFrame, distribution: pd.DataFrame, data: DataConfig, seed: int
) -> Comparison | None:
    """Compare the mean accuracy over the checkpoints; None if none was measured."""
    sides = [
        pick(side, [data.train_task], MATH_MODE, split="validation")
        for side in (sample, distribution)
    ]
    sides = [side[side["step"] > 0] for side in sides]
    steps = [sorted(side["step"].unique().tolist()) for side in sides]
    if steps[0] != steps[1]:
        raise ValueError(
            f"predictions: not paired, checkpoints {steps[0]} of sample matching and "
            f"{steps[1]} of distribution matching. Allowed: the same"
        )
    if not steps[0]:
        return None
    pairs = [pair(*(side[side["step"] == step] for side in sides)) for step in steps[0]]
    means = [np.mean(arrays, axis=0) for arrays in zip(*pairs, strict=True)]
    label = f"mean of {len(steps[0])} checkpoints on validation problems"
    return compare_arrays(*means, seed=seed, label=label)
