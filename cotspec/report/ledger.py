"""The ledger: what was found for each claim, beside the paper's numbers, and a verdict.

Enters: one `Finding` per claim that was measured, the published numbers. Leaves: the
claims table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cotspec import statistics
from cotspec.report.claims import CLAIMS, SIGNIFICANCE
from cotspec.report.scales import scale_of

DATA_FILES = ("published.csv",)  # part of the keys of stages that read them
COLUMNS = "claim statement paper ours effect ci_low ci_high verdict".split()


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim.

    Attributes
    ----------
    ours : str
        Before and after in words, with n.
    effect, ci_low, ci_high : float
        The effect of `Claim.effect` and its 95% interval, fractions.
    p_value : float
        Two-sided, not yet corrected; NaN if there is none.
    is_met, is_opposite : bool
        Whether the rule's conditions hold, significance aside.
    reason : str
        Why it cannot be judged; "" if it can.
    """

    ours: str
    effect: float
    ci_low: float
    ci_high: float
    p_value: float
    is_met: bool
    is_opposite: bool
    reason: str = ""


def measured(
    change: statistics.Difference,
    ours: str,
    *,
    is_met: bool,
    is_opposite: bool,
    reason: str = "",
    p_value: float | None = None,
) -> Finding:
    """Return a finding with a change as its effect.

    Parameters
    ----------
    p_value : float, optional
        Where the rule asks for more than this change; default the change's own.
    """
    p_value = change.p_value if p_value is None else p_value
    effect = (change.estimate, change.ci_low, change.ci_high)
    return Finding(ours, *effect, p_value, is_met, is_opposite, reason)


def cannot_judge(reason: str, ours: str = "") -> Finding:
    """Return the finding of a claim without an effect, and why there is none."""
    return Finding(ours, *[math.nan] * 4, False, False, reason)


def load_published() -> pd.DataFrame:
    """Return the published numbers, one source each; NaN where none is known here."""
    return pd.read_csv(
        Path(__file__).with_name("published.csv"),
        dtype={"accuracy": float},
        keep_default_na=False,
        na_values={"accuracy": [""]},
    )


def paper_effects(published: pd.DataFrame) -> dict[str, float]:
    """Return the paper's effect, after minus before, of claims that have both."""
    effects = {}
    for claim, rows in published[published["claim"] != ""].groupby("claim"):
        stages = rows.set_index("stage")["accuracy"]
        if {"before", "after"} <= set(stages.index):
            effects[claim] = float(stages["after"] - stages["before"])
    return effects


def judge(findings: Mapping[str, Finding], profile_name: str) -> pd.DataFrame:
    """Return `claims_table` for a run of a profile: its scale and what it withholds."""
    scale = scale_of(profile_name)
    return claims_table(
        findings, load_published(), scale=scale.name, withheld=scale.withheld
    )


def claims_table(
    findings: Mapping[str, Finding],
    published: pd.DataFrame,
    *,
    scale: str,
    withheld: str = "",
) -> pd.DataFrame:
    """Return the ledger: every claim, the paper's number, ours, and a verdict.

    Parameters
    ----------
    findings : mapping
        Claim id to what was measured; a claim without one was not tested.
    published : DataFrame
        From `load_published`.
    scale : str
        Where ours was measured, said in each row ("micro-world", "FlanT5-base").
    withheld : str
        Why no claim can be judged at this scale, whatever was measured; "" if claims
        can be judged.

    Returns
    -------
    DataFrame
        ``claim, statement, paper, ours, effect, ci_low, ci_high, verdict``.

    Raises
    ------
    ValueError
        A finding for an unknown claim.
    """
    known = [claim.id for claim in CLAIMS]
    unknown = sorted(set(findings) - set(known))
    if unknown:
        raise ValueError(f"findings: unknown claims {unknown}. Allowed: {known}")
    judged = {
        claim.id: findings[claim.id]
        for claim in CLAIMS
        if claim.id in findings and not (withheld or findings[claim.id].reason)
    }
    corrected = statistics.holm([finding.p_value for finding in judged.values()])
    p_values = dict(zip(judged, corrected, strict=True))
    rows = []
    for claim in CLAIMS:
        finding = findings.get(claim.id) or cannot_judge(
            f"this run has no result of notebook {claim.notebook}"
        )
        reason = withheld or finding.reason
        ours = f"{scale}: {finding.ours}" if finding.ours else ""
        row = {"claim": claim.id, "statement": claim.statement}
        row["paper"] = _evidence(published[published["claim"] == claim.id])
        row["ours"] = "; ".join(
            filter(None, (ours, reason and f"not judged: {reason}"))
        )
        row |= {
            name: getattr(finding, name) for name in ("effect", "ci_low", "ci_high")
        }
        row["verdict"] = _verdict(finding, reason, p_values.get(claim.id, math.nan))
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _verdict(finding: Finding, reason: str, p_value: float) -> str:
    if reason:
        return "not testable at this scale"
    is_significant = p_value < SIGNIFICANCE
    if finding.is_met and is_significant:
        return "reproduced"
    return "opposite" if finding.is_opposite and is_significant else "not reproduced"


def _evidence(rows: pd.DataFrame) -> str:
    """Say the paper's numbers for one claim: models apart, before → after."""
    parts = []
    for (model, size, task), group in rows.groupby(
        ["model", "size", "task"], sort=False
    ):
        values = " → ".join(f"{value:.1%}" for value in group["accuracy"])
        parts.append(f"{model}-{size} {task or '(test set not known)'} {values}")
    return ", ".join(parts)
