"""Intervals and paired tests against closed forms and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cotspec import statistics


@given(st.integers(1, 500), st.data())
def test_wilson_interval_matches_its_formula_and_stays_in_zero_to_one(n, data):
    k = data.draw(st.integers(0, n))
    low, high = statistics.wilson_interval(k, n)
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(n, data):
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    is_right = [True] * correct + [False] * (n - correct)
    expected = np.mean([any(subset) for subset in itertools.combinations(is_right, k)])
    assert statistics.pass_at_k(n, correct, k) == pytest.approx(expected)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([1, 2, 3, None]), min_size=1, max_size=8), st.data())
def test_majority_at_k_is_the_mean_over_all_subsets(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    shares = []
    for subset in itertools.combinations(samples, k):
        votes = [answer for answer in subset if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        winners = {answer for answer in votes if votes.count(answer) == most}
        shares.append((1 in winners) / max(1, len(winners)))
    found = statistics.majority_at_k(samples, 1, k)
    assert found == pytest.approx(np.mean(shares))


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match="k: 3. Allowed: 1 to the 2 samples"):
        statistics.pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="k: 0"):
        statistics.majority_at_k([1], 1, 0)


# --- the interval over seeds and problems --------------------------------------------


def answers_of_two_systems(generator, seeds, problems, effect, seed_sd):
    """Right or wrong of two systems that share what is hard; 40% right the first."""
    hard = generator.normal(size=problems) * math.sqrt(0.6)
    slope = stats.norm.pdf(stats.norm.ppf(0.4 + effect))
    shift = generator.normal(size=(seeds, 1)) * seed_sd / slope
    noise = generator.normal(size=(2, seeds, problems)) * math.sqrt(0.4)
    first = stats.norm.ppf(0.4) + hard + noise[0] > 0
    second = stats.norm.ppf(0.4 + effect) + shift + hard + noise[1] > 0
    # The mean over all seeds there could be.
    spread = math.sqrt(1 + (seed_sd / slope) ** 2)
    truth = stats.norm.cdf(stats.norm.ppf(0.4 + effect) / spread) - 0.4
    return first, second, truth


@pytest.mark.parametrize("seed_sd", [0, 0.01, 0.03, 0.05])
@pytest.mark.parametrize("effect", [0, 0.1])
def test_a_95_percent_interval_covers_95_percent(effect, seed_sd):
    generator = np.random.default_rng(20261126)
    covered = []
    for _ in range(1500):
        *systems, truth = answers_of_two_systems(generator, 5, 300, effect, seed_sd)
        found = statistics.paired_difference(*systems)
        covered.append(found.ci_low <= truth <= found.ci_high)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_one_seed_gives_students_interval_over_problems():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 40)) < 0.5
    found = statistics.paired_difference(first, second)
    d = second.astype(float) - first
    low, high = stats.t.interval(0.95, 39, d.mean(), stats.sem(d))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))


def test_simulated_runs_vary_as_real_ones_do():
    generator = np.random.default_rng(2)
    runs = [answers_of_two_systems(generator, 5, 300, 0.1, 0.03) for _ in range(600)]
    found = [statistics.paired_difference(a, b) for a, b, _ in runs]
    real = np.array([(d.estimate, d.ci_low, d.ci_high) for d in found])
    squares = [(d.squares.seeds, d.squares.problems, d.squares.rest) for d in found]
    mean = statistics.MeanSquares(5, 300, *np.mean(squares, axis=0))
    drawn = statistics.simulate_differences(
        runs[0][2], mean, count=20_000, generator=generator
    )
    assert drawn[:, 0].std() == pytest.approx(real[:, 0].std(), rel=0.1)
    width = (drawn[:, 2] - drawn[:, 1]).mean()
    assert width == pytest.approx((real[:, 2] - real[:, 1]).mean(), rel=0.1)


@pytest.mark.parametrize(("seeds", "n"), [(1, 9), (3, 9), (1, 16), (5, 300)])
def test_systems_that_answer_alike_differ_by_a_share_not_yet_seen(seeds, n):
    found = statistics.paired_difference(np.ones((seeds, n)), np.ones((seeds, n)))
    unseen = stats.binomtest(0, n).proportion_ci(method="exact").high
    assert found.estimate == 0
    assert [-found.ci_low, found.ci_high] == pytest.approx([unseen, unseen], abs=1e-9)
    assert unseen > 0.05 or n > 16  # sixteen pairs exclude no effect of five points
    drawn = statistics.simulate_differences(
        0.0, found.squares, count=5, generator=np.random.default_rng(0)
    )
    np.testing.assert_allclose(drawn[:, 2], unseen)


def test_a_difference_needs_two_problems_that_both_answered():
    with pytest.raises(ValueError, match="first, second: .* 2 problems or more"):
        statistics.paired_difference([1], [1])
    for other in ([1, 0, 1], [[1, 0], [0, 1]]):  # numpy would repeat the second's row
        with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(., .\)"):
            statistics.paired_difference([1, 0], other)
