"""C6: what each data format teaches, asked in every prompt mode.

Enters: predictions of notebook 08, one student trained on several sets of formats.
Leaves: the finding that the ledger judges, and the matrix.
"""

from __future__ import annotations

import pandas as pd

from cotspec.profiles import DATA_FORMATS, DataConfig
from cotspec.report.ledger import Finding, cannot_judge, measured
from cotspec.report.pairing import (
    MATH_MODE,
    Comparison,
    at_last_step,
    at_start,
    compare,
    falls,
    math_tasks,
    pick,
    rises,
    too_few,
)

ZERO_SHOT_MODE = "zero_shot_chain_of_thought"
_ASKED = {
    MATH_MODE: "in context with CoT",
    "in_context_answer_only": "in context for answers alone",
    ZERO_SHOT_MODE: "zero-shot with CoT",
    "zero_shot_answer_only": "zero-shot for answers alone",
}


def format_findings(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> dict[str, Finding]:
    """Return the finding of C6.

    Parameters
    ----------
    predictions : DataFrame
        One student; ``data_formats`` "in_context" and "zero_shot" are compared with
        the start each of them had (step 0).
    data : DataConfig
        Which tasks are math.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        No predictions, or problems that were answered on one side only.
    """
    gain = _change(predictions, data, "in_context", ZERO_SHOT_MODE, seed)
    cost = _change(predictions, data, "zero_shot", MATH_MODE, seed)
    missing = [
        f"no student tuned on {name} data asked {_ASKED[mode]}"
        for name, mode, one in (
            ("in-context", ZERO_SHOT_MODE, gain),
            ("zero-shot", MATH_MODE, cost),
        )
        if one is None
    ]
    if missing:
        return {"C6": cannot_judge("; ".join(missing))}
    both = (gain, cost)
    return {
        "C6": measured(
            gain.change,
            f"{gain}; {cost}",
            p_value=max(one.change.p_value for one in both),
            is_met=rises(gain) and falls(cost),
            is_opposite=falls(gain) and rises(cost),
            reason=too_few(both),
        )
    }


def format_matrix(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> pd.DataFrame:
    """Return accuracy by the formats trained on and the prompt mode asked in.

    Parameters
    ----------
    predictions, data, seed
        As for `format_findings`.

    Returns
    -------
    DataFrame
        ``data_formats`` ("start": before training), ``prompt_mode, n, num_seeds,
        accuracy, change, ci_low, ci_high``: all math test problems, mean over seeds,
        the change against the start with its 95% interval; fractions.
    """
    starts, tuned = {}, []
    for name, group in predictions.groupby("data_formats", sort=False):
        for mode in DATA_FORMATS:
            one = _change(group, data, name, mode, seed)
            if one is None:
                continue
            size, change = (mode, one.num_problems, one.num_seeds), one.change
            starts.setdefault(mode, ("start", *size, one.first, 0.0, 0.0, 0.0))
            ends = (change.estimate, change.ci_low, change.ci_high)
            tuned.append((name, *size, one.second, *ends))
    columns = "data_formats prompt_mode n num_seeds accuracy change ci_low ci_high"
    return pd.DataFrame([*starts.values(), *tuned], columns=columns.split())


def _change(
    predictions: pd.DataFrame, data: DataConfig, name: str, mode: str, seed: int
) -> Comparison | None:
    """Compare a student tuned on some formats with its start; None if not tested."""
    rows = pick(predictions, math_tasks(data), mode)
    rows = rows[rows["data_formats"] == name]
    if rows.empty:
        return None
    words = f"tuned on {name.replace('_', '-')} data, asked {_ASKED[mode]}"
    return compare(at_start(rows), at_last_step(rows), seed=seed, label=words)
