"""Intervals, paired differences and estimators over scored answers.

Enters: counts or boolean arrays of right answers. Leaves: intervals and
estimates as plain numbers; fractions are 0 to 1. Nothing here knows what was scored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy, second minus first, fractions.

    Attributes
    ----------
    estimate, ci_low, ci_high : float
        The mean difference and its interval, see `paired_difference`.
    """

    estimate: float
    ci_low: float
    ci_high: float


def wilson_interval(
    num_correct: int, n: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Raises
    ------
    ValueError
        Unless ``0 <= num_correct <= n``, ``n > 0`` and ``0 < confidence < 1``.

    Source: Wilson 1927; `scipy.stats.binomtest`.
    """
    if n <= 0:
        raise ValueError(f"n: {n!r}. Allowed: > 0; nothing was scored")
    if not 0 <= num_correct <= n:
        raise ValueError(f"num_correct: {num_correct!r}. Allowed: 0 to n = {n}")
    _check_confidence(confidence)
    test = stats.binomtest(int(num_correct), int(n))
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _settled(values: np.ndarray) -> np.ndarray:
    """Round to where the sums of a matrix product agree on every processor.

    Which end of ±1e-17 a sum that is 0 comes out at depends on the BLAS, and a rule
    asks whether an interval lies above 0. Answers are 1 in 10⁶ or coarser.
    """
    return np.round(values, 12) + 0.0  # no -0


@dataclass(frozen=True)
class Components:
    """What a mean difference varies with: ``d[s, p] = effect + seed + problem + rest``.

    Attributes
    ----------
    num_seeds, num_problems : int
    seed, problem, rest : float
        Variances, of fractions squared; estimated ones may be 0, never below.
    """

    num_seeds: int
    num_problems: int
    seed: float
    problem: float
    rest: float


@dataclass(frozen=True)
class _Squares:
    """Mean squares of an analysis of variance, and their degrees of freedom.

    Numbers, or arrays of them for many simulated runs.
    """

    seeds: np.ndarray | float
    problems: np.ndarray | float
    rest: np.ndarray | float
    num_seeds: int
    num_problems: int

    def interval(self, mean, confidence: float):
        """Student's interval of the mean; degrees of freedom after Satterthwaite."""
        s, p = self.num_seeds, self.num_problems
        if s == 1:
            error, df = np.sqrt(self.problems / p), p - 1
        else:
            # Seeds that agree can make the sum negative; then problems alone count.
            total = self.problems + self.seeds - self.rest
            total = np.where(total > 0, total, self.problems)
            parts = [(self.problems, p - 1), (self.seeds, s - 1)]
            parts += [(self.rest, (s - 1) * (p - 1))]
            spread = sum(np.square(square) / df for square, df in parts)
            df = np.maximum(1, np.square(total) / np.maximum(spread, 1e-300))
            error = np.sqrt(total / (s * p))
        # Where all pairs agree the spread is unknown, not 0: what none of p problems
        # showed has at most this share (Clopper and Pearson; 3/p is the rule of thumb).
        unseen = 1 - ((1 - confidence) / 2) ** (1 / p)
        is_spread = np.asarray(error) > 1e-12
        half = stats.t.ppf((1 + confidence) / 2, df) * error
        half = np.where(is_spread, half, unseen)
        return mean - half, mean + half


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95
) -> Difference:
    """Return second minus first with an interval over seeds and problems.

    A mixed model of two crossed factors: the variance of the mean is (problems +
    seeds − rest) / number of answers in mean squares, its degrees of freedom are
    Satterthwaite's. Simulated with 3 and 5 seeds, 300 to 1,000 problems and seeds that
    spread by 0 to 5 points, a 95% interval covers 94 to 97.5%; one seed gives an
    interval over problems alone. Differences that are all equal leave the interval as
    wide as a share of which none was seen: 20 points either way with 16 problems.

    Parameters
    ----------
    first, second : array, shape (num_seeds, num_problems) or (num_problems,)
        Right (1) or wrong (0), or means of them; seeds and problems in one order.

    Raises
    ------
    ValueError
        If the shapes differ, or there is no second problem.

    Source: Satterthwaite 1946; Searle, Casella & McCulloch 1992, chapter 4.
    """
    a, b = np.atleast_2d(first).astype(float), np.atleast_2d(second).astype(float)
    _check_same_shape(a, b)
    _check_confidence(confidence)
    difference = b - a  # (seeds, problems)
    mean = float(_settled(difference.mean()))
    squares = _squares(difference)
    low, high = _settled(np.array(squares.interval(mean, confidence))).tolist()
    return Difference(mean, low, high)


def mean_interval(values: Sequence[float]) -> Difference:
    """Return the mean of some shares and its interval, cut at 0 and 1.

    Student's t with the values as the sample; of one value nothing is known but itself.
    """
    if len(values) == 1:
        return Difference(float(values[0]), 0.0, 1.0)
    found = paired_difference(np.zeros(len(values)), np.asarray(values))
    low, high = np.clip([found.ci_low, found.ci_high], 0, 1)
    return Difference(found.estimate, float(low), float(high))


def _squares(difference: np.ndarray) -> _Squares:
    num_seeds, num_problems = difference.shape
    if num_problems < 2:
        raise ValueError(
            f"first: shape {difference.shape}. Allowed: at least two problems"
        )
    by_seed, by_problem = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_problem + difference.mean()
    df = max(1, (num_seeds - 1) * (num_problems - 1))
    return _Squares(
        seeds=num_problems * by_seed.var(ddof=1) if num_seeds > 1 else 0.0,
        problems=num_seeds * by_problem.var(ddof=1),
        rest=float(np.square(rest).sum()) / df,
        num_seeds=num_seeds,
        num_problems=num_problems,
    )


def components(first: np.ndarray, second: np.ndarray) -> Components:
    """Return the variances behind a difference, for `simulate_differences`."""
    found = _squares(np.atleast_2d(second).astype(float) - np.atleast_2d(first))
    s, p = found.num_seeds, found.num_problems
    return Components(
        num_seeds=s,
        num_problems=p,
        seed=max(0.0, (found.seeds - found.rest) / p),
        problem=max(0.0, (found.problems - found.rest) / s),
        rest=found.rest,
    )


def simulate_differences(
    effect: float,
    variances: Components,
    *,
    count: int,
    generator: np.random.Generator,
    confidence: float = 0.95,
) -> np.ndarray:
    """Draw what `paired_difference` would find in runs like this one.

    Parameters
    ----------
    effect : float
        The true difference, a fraction.
    variances : Components
    count : int
        Number of runs, N.

    Returns
    -------
    array, shape (N, 3)
        Estimate and both ends of its interval.
    """
    s, p = variances.num_seeds, variances.num_problems
    expected = {
        "seeds": (p * variances.seed + variances.rest, s - 1),
        "problems": (s * variances.problem + variances.rest, p - 1),
        "rest": (variances.rest, (s - 1) * (p - 1)),
    }
    drawn = {
        name: mean * generator.chisquare(df, count) / df if df else np.zeros(count)
        for name, (mean, df) in expected.items()
    }
    variance = variances.seed / s + variances.problem / p + variances.rest / (s * p)
    means = generator.normal(effect, math.sqrt(variance), count)
    squares = _Squares(num_seeds=s, num_problems=p, **drawn)
    return np.stack([means, *squares.interval(means, confidence)], axis=1)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that one of k samples is right.

    Raises
    ------
    ValueError
        Unless ``0 <= num_correct <= num_samples`` and ``1 <= k <= num_samples``.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    _check_k(num_samples, k)
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct: {num_correct!r}. Allowed: 0 to {num_samples}")
    wrong = num_samples - num_correct
    return 1 - math.comb(wrong, k) / math.comb(num_samples, k)


def majority_at_k(answers: Sequence[Hashable | None], gold: Hashable, k: int) -> float:
    """Return the unbiased chance that the majority of k samples is right.

    The exact mean over all subsets of k samples; a tie is broken at random, a sample
    without an answer (None) does not vote.

    Parameters
    ----------
    answers : sequence
        One answer per sample, compared with ``==``.

    Raises
    ------
    ValueError
        Unless ``1 <= k <= len(answers)``.

    Source: the majority vote of Wang et al. 2022, arXiv 2203.11171; counted as the
    multivariate hypergeometric distribution.
    """
    _check_k(len(answers), k)
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    right = votes.pop(gold, 0)
    favourable = sum(
        math.comb(right, wins) * _ways_to_lose(votes.values(), silent, wins, k - wins)
        for wins in range(1, min(right, k) + 1)
    )
    return float(favourable / math.comb(len(answers), k))


def _ways_to_lose(
    wrong_counts: Sequence[int], silent: int, wins: int, num_drawn: int
) -> float:
    """Ways to draw `num_drawn` others so that none beats `wins`; a t-way tie is 1/t."""
    # ways[d][t]: d samples drawn, t wrong answers tied with the right one.
    ways = {(0, 0): 1}
    for count in wrong_counts:
        following: Counter[tuple[int, int]] = Counter()
        for (drawn, ties), number in ways.items():
            for x in range(min(count, wins, num_drawn - drawn) + 1):
                key = drawn + x, ties + (x == wins)
                following[key] += number * math.comb(count, x)
        ways = following
    return sum(
        number * math.comb(silent, num_drawn - drawn) / (ties + 1)
        for (drawn, ties), number in ways.items()
    )


def _check_k(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k: {k!r}. Allowed: 1 to the {num_samples} samples")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence!r}. Allowed: between 0 and 1")


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"second: shape {b.shape}. Allowed: that of first, {a.shape}; paired "
            "tests need the same problems in the same order"
        )
