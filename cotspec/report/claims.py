"""The paper's claims, the rules that judge them, and what the rules can tell.

Enters: conditions, each an effect with its interval. Leaves: a verdict per claim, and a
table of how often each rule would say what. A claim has one or more conditions and is
reproduced only if each of them holds on its own, which needs no correction for their
number.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from cotspec import artifacts, statistics

DATA_FILES = ("claims.json",)  # part of the keys of stages that read them
VERDICTS = "reproduced", "opposite", "not reproduced", "undecided", "not testable here"
REPRODUCED, OPPOSITE, NOT_REPRODUCED, UNDECIDED, NOT_TESTABLE = VERDICTS
MIN_PROBLEMS = 100  # fewer pairs cannot resolve a change of ten points
MIN_SEEDS = 3  # of each training: fewer cannot tell one's luck
MIN_SIZES = 3  # a bend needs three points
MIN_CHECKPOINTS = 3  # fewer cannot peak at different places
SMALLEST = 0.05  # effect of interest, of accuracy; half the paper's where smaller
MAX_KINK = 0.1  # bend of a smooth curve, up or down: accuracy per doubling of the size
RULES_DATE = "2026-11-26"


# Each claim has
# - id, statement: as the paper makes it
# - rule: what must hold, in words; every part has its own 95% interval
# - notebook: the one whose numbers judge it
# - former: what the rule was before `RULES_DATE`, and why it changed
# - judged_formerly: pattern of the conditions that the former rule asked about; "" if
#   it asked for something else, see `former_verdict`
_TEXTS = artifacts.read_json(Path(__file__).with_name("claims.json"))
CLAIMS = tuple(SimpleNamespace(**texts) for texts in _TEXTS)


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
    squares : MeanSquares, optional
        Behind the interval; one over seeds alone counts them as problems of one seed.
        None if there was one seed.
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
    squares: statistics.MeanSquares | None = None
    unit: str = "points"

    @property
    def status(self) -> str:
        """``met``, ``opposite``, ``excluded`` (an effect of interest) or ``open``."""
        return str(self.statuses(self.ci_low, self.ci_high))

    def statuses(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """Return the status of intervals with these ends."""
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
        options = {"count": count, "generator": generator}
        drawn = statistics.simulate_differences(effect, self.squares, **options)
        return self.statuses(drawn[:, 1], drawn[:, 2])

    def enlarged(self, seeds: int, problems: int) -> "Condition":
        """Return it as of a run with so many times the seeds and problems.

        Only the mean squares change, as `simulate` reads them: each holds the spread of
        its own kind and the rest (`statistics.MeanSquares`).
        """
        s, p, of_seeds, of_problems, rest = self.squares
        if s == 1:  # over seeds alone
            seeds, problems = 1, seeds
        of_seeds = problems * max(0.0, of_seeds - rest) + rest
        of_problems = seeds * max(0.0, of_problems - rest) + rest
        larger = s * seeds, p * problems, of_seeds, of_problems, rest
        return replace(self, squares=statistics.MeanSquares(*larger))


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
    conditions: tuple[Condition, ...] = ()
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
        ranks = [(order.index(one.status), one.ci_low) for one in self.conditions]
        return self.conditions[ranks.index(min(ranks))] if ranks else None


Findings = Mapping[str, Finding]  # by claim


def former_verdict(claim: SimpleNamespace, finding: Finding) -> str:
    """Say what the rule before `RULES_DATE` would have said; "" if it cannot be told.

    It knew no *undecided*: an effect whose interval holds 0 was not reproduced. Its
    intervals covered 98.7 to 100% where 95% was meant, about twice too wide, so those
    of today are doubled here.
    """
    if finding.reason or not claim.judged_formerly:
        return ""
    asked = [c for c in finding.conditions if re.search(claim.judged_formerly, c.label)]
    statuses = {
        str(c.statuses(2 * c.ci_low - c.estimate, 2 * c.ci_high - c.estimate))
        for c in asked
    }
    if not statuses:
        return ""
    if statuses == {"met"}:
        return REPRODUCED
    return OPPOSITE if "opposite" in statuses else NOT_REPRODUCED


def verdict_of(statuses: Sequence[str]) -> str:
    """Return the verdict of a rule whose conditions came out so."""
    found = set(statuses)
    if found <= {"met"}:
        return REPRODUCED
    # What must be equal has no other side.
    if found == {"opposite"}:
        return OPPOSITE
    return NOT_REPRODUCED if found & {"opposite", "excluded"} else UNDECIDED


def too_few(conditions: Sequence[Condition]) -> str:
    """Say why a claim cannot be judged; "" if problems and seeds suffice."""
    problems = min(one.num_problems for one in conditions)
    seeds = min(one.num_seeds for one in conditions)
    if problems < MIN_PROBLEMS:
        return f"{problems} problems; the rule needs {MIN_PROBLEMS}"
    return f"{seeds} seeds; the rule needs {MIN_SEEDS}" if seeds < MIN_SEEDS else ""


def conditions_table(findings: Findings) -> pd.DataFrame:
    """Return every condition of every claim, one row each.

    Columns: ``claim, condition, effect, ci_low, ci_high, smallest, paper, unit, status,
    n, num_seeds``.
    """
    rows = [
        {"id": claim, "status": one.status} | vars(one)
        for claim, finding in findings.items()
        for one in finding.conditions
    ]
    columns = "claim condition effect ci_low ci_high smallest paper unit status n"
    return _named(rows, f"{columns} num_seeds")


def _named(rows: list[dict], columns: str) -> pd.DataFrame:
    """A table of claims and conditions, their fields named as readers see them."""
    names = {"id": "claim", "label": "condition", "estimate": "effect"}
    table = pd.DataFrame(rows).rename(columns=names | {"num_problems": "n"})
    return table.reindex(columns=columns.split())


def power_table(
    findings: Findings, *, seed: int, count: int = 2_000, times: tuple = (1, 1)
) -> pd.DataFrame:
    """Simulate how often each rule says what in runs with this run's variances.

    Parameters
    ----------
    findings : mapping
        Claim to what was measured; those that cannot be judged are left out.
    seed : int
    count : int
        Runs simulated per claim and world.
    times : tuple of int
        How many times this run's seeds and problems they have.

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
        if finding.reason:
            continue
        for world in ("no effect", "smallest of interest", "the paper's"):
            drawn = [
                one.enlarged(*times).simulate(_effect_in(one, world), count, generator)
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


def claims_table(findings: Findings, *, scale: str, withheld: str = "") -> pd.DataFrame:
    """Return the ledger: every claim, ours, and a verdict.

    Parameters
    ----------
    findings : mapping
        From `findings.find`: claim id to what was measured.
    scale : str
        Where ours was measured, said in each row ("micro-world", "FlanT5").
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
        finding = findings[claim.id]
        reason = withheld or finding.reason
        said = finding.ours and f"{scale}: {finding.ours}"
        unsaid = reason and f"not judged: {reason}"
        one = finding.weakest
        row = vars(claim) | (vars(one) if one else {"unit": "points"})
        row["ours"] = "; ".join(filter(None, [said, unsaid]))
        row["verdict"] = NOT_TESTABLE if reason else finding.verdict
        row["former_verdict"] = "" if reason else former_verdict(claim, finding)
        rows.append(row)
    columns = "claim statement ours condition effect ci_low ci_high unit verdict"
    return _named(rows, f"{columns} former_verdict")


def rules_table() -> pd.DataFrame:
    """Return each claim's rule, what it was before `RULES_DATE`, and why it changed."""
    rows = [(one.id, one.rule, one.former, one.notebook) for one in CLAIMS]
    columns = ["claim", "rule", "before, and why it changed", "from"]
    return pd.DataFrame(rows, columns=columns)
