"""Intervals, paired tests and estimators over scored answers.

Enters: counts or boolean arrays of right answers. Leaves: intervals, p-values and
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
        The mean difference and its interval, see `paired_bootstrap`.
    p_value : float
        Two-sided, of the bootstrap alone: twice the smaller share of resamples on one
        side of zero.
    """

    estimate: float
    ci_low: float
    ci_high: float
    p_value: float


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


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value of two systems on the same problems.

    Parameters
    ----------
    first, second : sequence of bool, shape (num_problems,)
        Whether each system answered each problem right, in one order.

    Raises
    ------
    ValueError
        If the lengths differ.

    Source: McNemar 1947, exact (binomial) form on the discordant pairs.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    _check_same_shape(a, b)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """Return second minus first with an interval over seeds and problems.

    Each resample draws seeds and, independently, problems, with replacement; both
    systems get the same draw. A bootstrap over few seeds is too narrow once seeds
    differ: it calls 16% of null effects significant with three seeds that spread by 10
    points. Of several seeds the interval therefore covers Student's t interval of the
    seeds' means too (degrees of freedom: seeds - 1). Seeds that agree leave that one
    narrow, and the bootstrap's share of the problems counts. One seed gives an interval
    over problems alone.

    The p-value stays the bootstrap's, which can be corrected for several tests: with
    two degrees of freedom a corrected t test would find almost nothing. It must be read
    beside the interval, never alone.

    Parameters
    ----------
    first, second : array, shape (num_seeds, num_problems) or (num_problems,)
        Right (1) or wrong (0), seeds and problems in one order.

    Raises
    ------
    ValueError
        If the shapes differ or are empty.

    Source: Efron & Tibshirani 1993, percentile interval; two crossed factors as in
    Owen 2007, "The pigeonhole bootstrap"; Student 1908.
    """
    a, b = np.atleast_2d(first).astype(float), np.atleast_2d(second).astype(float)
    _check_same_shape(a, b)
    _check_confidence(confidence)
    if a.size == 0:
        raise ValueError(f"first: shape {a.shape}. Allowed: at least one problem")
    difference = b - a  # (seeds, problems)
    generator = np.random.default_rng(seed)
    draws = _settled(_crossed_resamples(difference, num_resamples, generator))
    outside = (1 - confidence) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    if len(difference) > 1:
        t_low, t_high = _t_interval(difference.mean(axis=1), confidence)
        low, high = min(low, t_low), max(high, t_high)
    low, high = _settled(np.array([low, high])).tolist()
    p_value = 2 * min((draws <= 0).mean(), (draws >= 0).mean())
    # A share of zero only says "less than one in num_resamples".
    p_value = min(1.0, max(p_value, 1 / num_resamples))
    estimate = float(_settled(difference.mean()))
    return Difference(estimate, low, high, float(p_value))


def _crossed_resamples(
    values: np.ndarray, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Means of `values` (S, P) with rows and columns drawn with replacement."""
    num_seeds, num_problems = values.shape
    seeds = _weights(num_seeds, num_resamples, generator)  # (R, S)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, 256):
        rows = seeds[start : start + 256] @ values  # (256, P)
        drawn = generator.integers(num_problems, size=rows.shape, dtype=np.int32)
        means[start : start + 256] = np.take_along_axis(rows, drawn, axis=1).mean(1)
    return means


def _settled(values: np.ndarray) -> np.ndarray:
    """Round to where the sums of a matrix product agree on every processor.

    Which end of ±1e-17 a sum that is 0 comes out at depends on the BLAS, and a rule
    asks whether an interval lies above 0. Answers are 1 in 10⁶ or coarser.
    """
    return np.round(values, 12) + 0.0  # no -0


def _t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student's interval of the mean of at least two values."""
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def _weights(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` bootstrap draws as weights of `size` items, each row summing to 1."""
    return generator.multinomial(size, np.full(size, 1 / size), size=count) / size


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
        half = stats.t.ppf((1 + confidence) / 2, df) * error
        return mean - half, mean + half


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95
) -> Difference:
    """Return second minus first with an interval over seeds and problems.

    A mixed model of two crossed factors: the variance of the mean is (problems +
    seeds − rest) / number of answers in mean squares, its degrees of freedom are
    Satterthwaite's. Simulated with 3 and 5 seeds, 300 to 1,000 problems and seeds that
    spread by 0 to 5 points, a 95% interval covers 94 to 97.5%; one seed gives an
    interval over problems alone.

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
    return Difference(mean, low, high, math.nan)


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


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for their number (family-wise), in the given order.

    Missing ones (NaN: a claim that was not tested) stay missing and do not count.

    Raises
    ------
    ValueError
        If a p-value is outside 0 to 1.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values: {p_values!r}. Allowed: 0 to 1, or NaN")
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


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
