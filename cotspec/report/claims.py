"""The paper's claims, the rules that judge them, and what the rules can tell.

Enters: conditions, each an effect with its interval. Leaves: a verdict per claim, and a
table of how often each rule would say what. A claim has one or more conditions and is
reproduced only if each of them holds on its own (an intersection-union test, which
needs no correction for their number).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from cotspec import statistics

REPRODUCED, OPPOSITE = "reproduced", "opposite"
NOT_REPRODUCED, UNDECIDED = "not reproduced", "undecided"
NOT_TESTABLE = "not testable here"
VERDICTS = (REPRODUCED, OPPOSITE, NOT_REPRODUCED, UNDECIDED, NOT_TESTABLE)
MIN_PROBLEMS = 100  # fewer pairs cannot resolve a change of ten points
MIN_SEEDS = 3  # of each training: fewer cannot tell one's luck
MIN_SIZES = 3  # a jump needs three points
MIN_CHECKPOINTS = 3  # fewer cannot peak at different places
SMALLEST = 0.05  # effect of interest, of accuracy; half the paper's where smaller
MAX_KINK = 0.1  # of a curve without a jump: accuracy per doubling of the size
RULES_DATE = "2026-11-26"


@dataclass(frozen=True)
class Claim:
    """One claim as the paper makes it, and the conditions of its rule.

    Attributes
    ----------
    statement : str
    rule : str
        What must hold, in words; every part has its own 95% interval.
    notebook : str
        The notebook whose question it is.
    former : str
        What the rule was before `RULES_DATE`, and why it changed.
    judged_formerly : str
        Pattern of the conditions that the former rule asked about; "" if it asked
        for something else. See `former_verdict`.
    """

    id: str
    statement: str
    rule: str
    notebook: str
    former: str
    judged_formerly: str = ".*"


CLAIMS = (
    Claim(
        "C1",
        "specialization lifts in-distribution math at every size",
        "At every size, accuracy after minus before (in-context CoT, test problems of "
        "the training task) lies above 0. Of interest: 4.5 points, half of the paper's "
        "smallest.",
        "10_scaling",
        "The same, with intervals twice too wide and Holm's correction over all "
        "claims: a true gain of 10 points at four sizes was called reproduced in 0 of "
        "100 runs.",
    ),
    Claim(
        "C2",
        "it lifts out-of-distribution math; at the largest size the mean",
        "At every size, accuracy after minus before, all out-of-distribution sets "
        "pooled, lies above 0. Of interest: 5 points; at the largest size 1.4, half of "
        "the paper's.",
        "10_scaling",
        "Every size alike; the paper shows a mean gain of 2.8 points at the largest, "
        "and a set that falls.",
    ),
    Claim(
        "C3",
        "the price is generic ability: CoT is lost whole, answer-only in large part",
        "At every size whose start is above chance, generic CoT falls and ends at most "
        "5 points above chance, and generic answer-only falls. Chance is what always "
        "giving the most frequent answer would score.",
        "07_ability_tradeoff",
        "A fifth of the start's accuracy had to be left at most, though chance alone "
        "may score more than that.",
        "falls$",
    ),
    Claim(
        "C4",
        "an instruction-tuned start ends higher than a raw one; the raw one gains more",
        "Over the sizes with both starts, the mean accuracy after specialization is "
        "higher from the tuned start, and the mean gain is higher from the raw one "
        "(training task, in-context CoT). Of interest: half of the paper's, 1.6 and "
        "1.7 points.",
        "10_scaling",
        "The second half was missing.",
        "higher$",
    ),
    Claim(
        "C5",
        "accuracy grows smoothly with log size, and specialization lifts the curve",
        "The slope over log size lies above 0 for both starts after specialization; "
        "the curve of the tuned start is lifted at every size; and no second slope "
        "above the middle size exceeds 10 points per doubling (the training task, "
        "in-context CoT).",
        "10_scaling",
        "Raw starts did not count; the bend was judged by whether it differs from 0.",
        "(slope|bend), tuned|lift",
    ),
    Claim(
        "C6",
        "in-context data gives both abilities; zero-shot data gives zero-shot ability "
        "and costs in-context ability",
        "Against the start: tuned on in-context data, both in-context and zero-shot "
        "CoT accuracy rise; tuned on zero-shot data, zero-shot rises and in-context "
        "falls (training task).",
        "08_format_ablation",
        "Two of these four changes were judged.",
        "in-context data, asked zero-shot|zero-shot data, asked in context",
    ),
    Claim(
        "C7",
        "distribution matching converges faster and to a lower loss; accuracy does not "
        "differ substantially",
        "The training loss, less its best possible value (for samples their entropy), "
        "is lower by distribution matching on average over the training and over its "
        "last quarter; and accuracy after it differs from sample matching's by at most "
        "5 points (training task, in-context CoT).",
        "09_loss_ablation",
        "Accuracy along the training had to be higher, which the paper does not say. "
        "The scale of the losses was set with those of an earlier world in view.",
        "",
    ),
    Claim(
        "C8",
        "the two validation sets choose different checkpoints, each better on its own "
        "side",
        "In- and out-of-distribution validation peak at different checkpoints more "
        "often than two draws of one set do; and each choice is better than the other "
        "on test problems of its own side.",
        "07_ability_tradeoff",
        "Only the gain out of distribution was judged; which checkpoint is chosen was "
        "not tested against chance.",
        "out of distribution$",
    ),
)


@dataclass(frozen=True)
class Condition:
    """One effect that a rule asks about; positive is what the claim says.

    Attributes
    ----------
    label : str
    estimate, ci_low, ci_high : float
        With a 95% interval; fractions of accuracy unless `unit` says otherwise.
    smallest : float
        The smallest effect of interest, in the same unit.
    is_equivalence : bool
        The effect must lie within `smallest` of 0 instead of above it.
    paper : float
        The paper's effect; NaN where it is not known.
    num_problems, num_seeds : int
    variances : Components, optional
        Behind an interval over seeds and problems; without, it is one over seeds.
    unit : str
    """

    label: str
    estimate: float
    ci_low: float
    ci_high: float
    smallest: float
    num_seeds: int
    num_problems: int = MIN_PROBLEMS
    is_equivalence: bool = False
    paper: float = math.nan
    variances: statistics.Components | None = None
    unit: str = "points"

    @property
    def status(self) -> str:
        """``met``, ``opposite``, ``excluded`` (an effect of interest) or ``open``."""
        return str(self.statuses(np.array([[self.ci_low, self.ci_high]]))[0])

    def statuses(self, ends: np.ndarray) -> np.ndarray:
        """Return the status of each interval, ends of shape (N, 2)."""
        low, high = ends.T
        if self.is_equivalence:
            met = (low > -self.smallest) & (high < self.smallest)
            gone = (low > self.smallest) | (high < -self.smallest)
            return np.select([met, gone], ["met", "excluded"], "open")
        kinds = [low > 0, high < 0, high < self.smallest]
        return np.select(kinds, ["met", "opposite", "excluded"], "open")

    def simulate(
        self, effect: float, count: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw the statuses of `count` runs like this one with a true effect."""
        if self.variances is not None:
            drawn = statistics.simulate_differences(
                effect, self.variances, count=count, generator=generator
            )
            return self.statuses(drawn[:, 1:])
        df = max(1, self.num_seeds - 1)
        quantile = stats.t.ppf(0.975, df)
        error = (self.ci_high - self.ci_low) / 2 / quantile
        means = generator.normal(effect, error, count)
        half = quantile * error * np.sqrt(generator.chisquare(df, count) / df)
        return self.statuses(np.stack([means - half, means + half], axis=1))


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim.

    Attributes
    ----------
    ours : str
        The paper's quantity in this run, in words, with n.
    conditions : tuple of Condition
    reason : str
        Why it cannot be judged; "" if it can.
    """

    ours: str
    conditions: tuple[Condition, ...] = field(default=())
    reason: str = ""

    @property
    def verdict(self) -> str:
        """By the claim's rule."""
        if self.reason:
            return NOT_TESTABLE
        return verdict_of([one.status for one in self.conditions])

    @property
    def weakest(self) -> Condition | None:
        """The condition that is furthest from being met."""
        order = ("opposite", "excluded", "open", "met")
        return min(
            self.conditions,
            key=lambda one: (order.index(one.status), one.ci_low),
            default=None,
        )


def former_verdict(claim: Claim, finding: Finding) -> str:
    """Say what the rule before `RULES_DATE` would have said; "" if it cannot be told.

    It knew no *undecided*: an effect whose interval holds 0 was not reproduced. Its
    intervals covered 98.7 to 100% where 95% was meant, about twice too wide, so those
    of today are doubled here.
    """
    judged = [
        one
        for one in finding.conditions
        if claim.judged_formerly and re.search(claim.judged_formerly, one.label)
    ]
    if finding.reason or not judged:
        return ""
    ends = [
        (2 * one.ci_low - one.estimate, 2 * one.ci_high - one.estimate)
        for one in judged
    ]
    statuses = [
        str(one.statuses(np.array([pair]))[0])
        for one, pair in zip(judged, ends, strict=True)
    ]
    if all(status == "met" for status in statuses):
        return REPRODUCED
    return OPPOSITE if "opposite" in statuses else NOT_REPRODUCED


def verdict_of(statuses: Sequence[str]) -> str:
    """Return the verdict of a rule whose conditions came out so."""
    if all(status == "met" for status in statuses):
        return REPRODUCED
    # What must be equal has no other side.
    if all(status == "opposite" for status in statuses):
        return OPPOSITE
    is_against = any(status in ("opposite", "excluded") for status in statuses)
    return NOT_REPRODUCED if is_against else UNDECIDED


def too_few(conditions: Sequence[Condition]) -> str:
    """Say why a claim cannot be judged; "" if problems and seeds suffice."""
    problems = min(one.num_problems for one in conditions)
    seeds = min(one.num_seeds for one in conditions)
    if problems < MIN_PROBLEMS:
        return f"{problems} problems; the rule needs {MIN_PROBLEMS}"
    return f"{seeds} seeds; the rule needs {MIN_SEEDS}" if seeds < MIN_SEEDS else ""


def conditions_table(findings: Mapping[str, Finding]) -> pd.DataFrame:
    """Return every condition of every claim, one row each.

    Columns: ``claim, condition, effect, ci_low, ci_high, smallest, paper, unit, status,
    n, num_seeds``.
    """
    rows = [
        {
            "claim": claim,
            "condition": one.label,
            "effect": one.estimate,
            "ci_low": one.ci_low,
            "ci_high": one.ci_high,
            "smallest": one.smallest,
            "paper": one.paper,
            "unit": one.unit,
            "status": one.status,
            "n": one.num_problems,
            "num_seeds": one.num_seeds,
        }
        for claim, finding in findings.items()
        for one in finding.conditions
    ]
    columns = "claim condition effect ci_low ci_high smallest paper unit status n"
    return pd.DataFrame(rows, columns=[*columns.split(), "num_seeds"])


def power_table(
    findings: Mapping[str, Finding], *, seed: int, count: int = 2_000
) -> pd.DataFrame:
    """Simulate how often each rule says what in runs with this run's variances.

    Parameters
    ----------
    findings : mapping
        Claim to what was measured; those that cannot be judged are left out.
    seed : int
    count : int
        Runs simulated per claim and world.

    Returns
    -------
    DataFrame
        ``claim, world``, then a column per verdict: fractions of runs. The worlds are
        no effect, the smallest effect of interest, and the paper's, each in every
        condition at once; where the paper's is not known, 10 points stand for it. What
        must be equal is equal in each.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for claim, finding in findings.items():
        if finding.reason or not finding.conditions:
            continue
        for world in ("no effect", "smallest of interest", "the paper's"):
            drawn = [
                one.simulate(_effect_in(one, world), count, generator)
                for one in finding.conditions
            ]
            said = Counter(map(verdict_of, zip(*drawn, strict=True)))
            shares = {verdict: said[verdict] / count for verdict in VERDICTS[:4]}
            rows.append({"claim": claim, "world": world} | shares)
    return pd.DataFrame(rows, columns=["claim", "world", *VERDICTS[:4]])


def _effect_in(one: Condition, world: str) -> float:
    if one.is_equivalence or world == "no effect":
        return 0.0
    if world == "smallest of interest":
        return one.smallest
    # Unknown: 10 points, or four times what is of interest in another unit.
    unknown = 0.1 if one.unit == "points" else 4 * one.smallest
    return unknown if math.isnan(one.paper) else one.paper


def claims_table(
    findings: Mapping[str, Finding], *, scale: str, withheld: str = ""
) -> pd.DataFrame:
    """Return the ledger: every claim, ours, and a verdict.

    Parameters
    ----------
    findings : mapping
        Claim id to what was measured; a claim without one was not tested.
    scale : str
        Where ours was measured, said in each row ("micro-world", "FlanT5-base").
    withheld : str
        Why no claim can be judged at this scale, whatever was measured.

    Returns
    -------
    DataFrame
        ``claim, statement, ours, condition, effect, ci_low, ci_high, unit, verdict,
        former_verdict``; the effect is that of the condition that is furthest from
        being met.
    """
    rows = []
    for claim in CLAIMS:
        missing = f"this run has no result of notebook {claim.notebook}"
        finding = findings.get(claim.id) or Finding("", reason=missing)
        reason = withheld or finding.reason
        said = (
            finding.ours and f"{scale}: {finding.ours}",
            reason and f"not judged: {reason}",
        )
        row = {"claim": claim.id, "statement": claim.statement}
        row["ours"] = "; ".join(filter(None, said))
        row |= dict(condition="", effect=math.nan, ci_low=math.nan, ci_high=math.nan)
        if one := finding.weakest:
            row |= {"condition": one.label, "effect": one.estimate}
            row |= {"ci_low": one.ci_low, "ci_high": one.ci_high}
        row["unit"] = finding.weakest.unit if finding.weakest else "points"
        row["verdict"] = NOT_TESTABLE if reason else finding.verdict
        row["former_verdict"] = "" if reason else former_verdict(claim, finding)
        rows.append(row)
    return pd.DataFrame(rows)


def rules_table() -> pd.DataFrame:
    """Return each claim's rule, what it was before `RULES_DATE`, and why it changed."""
    return pd.DataFrame(
        {
            "claim": [one.id for one in CLAIMS],
            "rule": [one.rule for one in CLAIMS],
            "before, and why it changed": [one.former for one in CLAIMS],
            "from": [one.notebook for one in CLAIMS],
        }
    )
