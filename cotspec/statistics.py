"""Intervals, paired differences and estimators over scored answers.

Enters: counts or boolean arrays of right answers. Leaves: intervals and
estimates as plain numbers; fractions are 0 to 1. Nothing here knows what was scored.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95  # of every interval but Wilson's, which the profile sets


class MeanSquares(NamedTuple):
    """Of ``d[s, p] = effect + seed + problem + rest``, an analysis of variance.

    Attributes
    ----------
    num_seeds, num_problems : int
    seeds, problems, rest : float
        Fractions squared; arrays of them for many simulated runs.
    """

    num_seeds: int
    num_problems: int
    seeds: np.ndarray | float
    problems: np.ndarray | float
    rest: np.ndarray | float


class Difference(NamedTuple):
    """A paired difference in accuracy, second minus first, fractions.

    Attributes
    ----------
    estimate, ci_low, ci_high : float
        The mean difference and its interval, see `paired_difference`.
    squares : MeanSquares, optional
        Behind the interval, for `simulate_differences`.
    """

    estimate: float
    ci_low: float
    ci_high: float
    squares: MeanSquares | None = None


def wilson_interval(
    num_correct: int, n: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Raises
    ------
    ValueError
        By scipy, unless ``0 <= num_correct <= n`` and ``n > 0``.

    Source: Wilson 1927; `scipy.stats.binomtest`.
    """
    test = stats.binomtest(int(num_correct), int(n))
    interval = test.proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def settled(values: np.ndarray | float) -> np.ndarray:
    """Round to where the sums of a matrix product agree on every processor.

    Which end of ±1e-17 a sum that is 0 comes out at depends on the BLAS, and a rule
    asks whether an interval lies above 0. Answers are 1 in 10⁶ or coarser.
    """
    return np.round(values, 12) + 0.0  # no -0


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Return second minus first with a 95% interval over seeds and problems.

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
        If there is no second problem, or the shapes differ.

    Source: Satterthwaite 1946; Searle, Casella & McCulloch 1992, chapter 4.
    """
    a, b = np.atleast_2d(first).astype(float), np.atleast_2d(second).astype(float)
    s, p = a.shape
    if p < 2 or a.shape != b.shape:
        shapes = f"shapes {a.shape} and {b.shape}"
        raise ValueError(f"first, second: {shapes}. Allowed: equal, 2 problems or more")
    difference = b - a  # (seeds, problems)
    by_seed, by_problem = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_problem + difference.mean()
    seeds = p * by_seed.var(ddof=1) if s > 1 else 0.0
    rest_square = float(np.square(rest).sum()) / max(1, (s - 1) * (p - 1))
    squares = MeanSquares(s, p, seeds, s * by_problem.var(ddof=1), rest_square)
    mean, half = float(settled(difference.mean())), _half_width(squares)
    low, high = settled(np.array([mean - half, mean + half])).tolist()
    return Difference(mean, low, high, squares)


def _half_width(squares: MeanSquares) -> np.ndarray:
    """Of Student's interval of the mean; degrees of freedom after Satterthwaite."""
    s, p, seeds, problems, rest = squares
    if s == 1:
        error, df = np.sqrt(problems / p), p - 1
    else:
        # Seeds that agree can make the sum negative; then problems alone count.
        total = problems + seeds - rest
        total = np.where(total > 0, total, problems)
        parts = (problems, p - 1), (seeds, s - 1), (rest, (s - 1) * (p - 1))
        spread = sum(np.square(square) / df for square, df in parts)
        df = np.maximum(1, np.square(total) / np.maximum(spread, 1e-300))
        error = np.sqrt(total / (s * p))
    # Where all pairs agree the spread is unknown, not 0: what none of p problems
    # showed has at most this share (Clopper and Pearson; 3/p is the rule of thumb).
    unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / p)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, df) * error
    return np.where(np.asarray(error) > 1e-12, half, unseen)


def mean_interval(values: Sequence[float] | np.ndarray) -> Difference:
    """Return the mean of some shares and its interval, cut at 0 and 1.

    Parameters
    ----------
    values : array, shape (num_seeds, num_problems) or (num_problems,)
        Of one value nothing is known but itself; else see `paired_difference`.
    """
    if np.size(values) == 1:
        return Difference(float(np.mean(values)), 0.0, 1.0)
    found = paired_difference(np.zeros_like(values, dtype=float), values)
    return Difference(found.estimate, *np.clip(found[1:3], 0, 1).tolist())


def simulate_differences(
    effect: float, squares: MeanSquares, *, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw what `paired_difference` would find in runs like this one.

    Parameters
    ----------
    effect : float
        The true difference, a fraction.
    squares : MeanSquares
        This run's, of which the variances are estimated; none is below 0.
    count : int
        Number of runs, N.

    Returns
    -------
    array, shape (N, 3)
        Estimate and both ends of its interval.
    """
    s, p, seeds, problems, rest = squares
    seed, problem = max(0.0, (seeds - rest) / p), max(0.0, (problems - rest) / s)
    expected = (p * seed + rest, s - 1), (s * problem + rest, p - 1)
    drawn = [
        mean * generator.chisquare(df, count) / df if df else np.zeros(count)
        for mean, df in (*expected, (rest, (s - 1) * (p - 1)))
    ]
    variance = seed / s + problem / p + rest / (s * p)
    means = generator.normal(effect, math.sqrt(variance), count)
    half = _half_width(MeanSquares(s, p, *drawn))
    return np.stack([means, means - half, means + half], axis=1)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that one of k samples is right.

    Raises
    ------
    ValueError
        Unless ``1 <= k <= num_samples``.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    _check_k(num_samples, k)
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


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
