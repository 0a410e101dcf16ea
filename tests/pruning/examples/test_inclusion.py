import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pruning.examples.inclusion import (
    ScoreHistogram,
    bin_counts,
    bracketing_bin,
    inclusion_probabilities,
    subset_size,
    water_level,
)

FINITE = st.floats(0, 1e6, width=32)
ALPHAS = st.sampled_from([0.0, 0.1, 0.3, 1.0])


def by_bisection(scores, m, alpha):
    """Water-filling by bisection on the scale, float64."""
    s = scores.astype(np.float64)
    mixed = (1 - alpha) * s / s.mean() + alpha if s.any() else np.ones_like(s)
    low, high = 0.0, 1.0
    while np.minimum(1, high * mixed).sum() < m - 1e-9 and high < 1e60:
        high *= 2
    for _ in range(300):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1, c * mixed).sum() < m else (low, c)
    return np.minimum(1, high * mixed)


@st.composite
def problems(draw, elements=FINITE, alphas=ALPHAS):
    scores = draw(hnp.arrays(np.float32, st.integers(1, 60), elements=elements))
    return scores, draw(st.integers(1, len(scores))), draw(alphas)


@pytest.mark.parametrize(("n", "ratio", "m"), [(10, 0.0, 10), (10, 0.5, 5), (3, 0.99, 1), (1000, 0.3, 700)])
def test_subset_size(n, ratio, m):
    assert subset_size(n, ratio) == m


@pytest.mark.parametrize(("n", "ratio"), [(0, 0.5), (10, 1.0), (10, -0.1), (10, float("nan"))])
def test_subset_size_refuses(n, ratio):
    with pytest.raises(ValueError, match="must be"):
        subset_size(n, ratio)


@given(problems())
def test_sum_range_and_floor(problem):
    scores, m, alpha = problem
    pi = inclusion_probabilities(scores, m, alpha=alpha)
    N = len(scores)
    assert pi.dtype == np.float64
    assert abs(pi.sum() - m) <= 1e-8 * N
    assert (pi >= alpha * m / N).all()
    assert (pi <= 1).all()


@given(problems(elements=st.floats(np.float32(1e-3), 1e3, width=32)))
def test_equals_bisection(problem):
    scores, m, alpha = problem
    np.testing.assert_allclose(
        inclusion_probabilities(scores, m, alpha=alpha), by_bisection(scores, m, alpha), rtol=1e-9
    )


@given(problems(alphas=st.just(0.0)))
def test_proportional_below_the_cap(problem):
    scores, m, _ = problem
    pi = inclusion_probabilities(scores, m, alpha=0.0)
    open_ = (pi < 1) & (scores > 1e-30)
    if m < np.count_nonzero(scores) and open_.any():
        rate = pi[open_] / scores[open_].astype(np.float64)
        np.testing.assert_allclose(rate, rate[0], rtol=1e-9)
        # Whatever is capped has at least the scores of what is not.
        assert (scores[pi == 1] >= scores[open_].max()).all()


@given(problems())
def test_order_of_scores_is_kept_and_permutation_moves_along(problem):
    scores, m, alpha = problem
    pi = inclusion_probabilities(scores, m, alpha=alpha)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(pi[order]) >= 0).all()
    np.testing.assert_array_equal(inclusion_probabilities(scores[order], m, alpha=alpha), pi[order])


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_scaling_by_a_power_of_two_changes_nothing_and_by_another_constant_next_to_nothing(alpha):
    scores = np.random.default_rng(0).lognormal(size=500).astype(np.float32)
    pi = inclusion_probabilities(scores, 200, alpha=alpha)
    np.testing.assert_array_equal(inclusion_probabilities(scores * 2.0**40, 200, alpha=alpha), pi)
    np.testing.assert_allclose(inclusion_probabilities(scores * 7.3, 200, alpha=alpha), pi, rtol=1e-6)


def test_it_minimises_the_bound_of_the_variance():
    """No other feasible probabilities give a smaller sum s^2 / pi: random perturbations, exactly feasible."""
    rng = np.random.default_rng(1)
    scores = rng.lognormal(0, 1.5, 40).astype(np.float32)
    pi = inclusion_probabilities(scores, 15, alpha=0.0)
    best = (scores**2 / pi).sum()
    tried = 0
    for _ in range(2000):
        i, j = rng.choice(40, 2, replace=False)
        step = rng.uniform(0, 0.5) * min(pi[i], 1 - pi[j])
        if step > 1e-6:
            other = pi.copy()
            other[i] -= step
            other[j] += step
            assert (scores**2 / other).sum() > best
            tried += 1
    assert tried > 500


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("value", [0.0, 3.5, float("nan"), float("inf"), -2.0])
def test_equal_scores_are_uniform(alpha, value):
    np.testing.assert_allclose(inclusion_probabilities(np.full(8, value), 3, alpha=alpha), 3 / 8, rtol=1e-12)


def test_one_hot_without_mixture_spreads_the_rest_over_the_zeros():
    scores = np.zeros(11)
    scores[4] = 5
    pi = inclusion_probabilities(scores, 3, alpha=0.0)
    assert pi[4] == 1
    np.testing.assert_allclose(np.delete(pi, 4), 0.2)


def test_no_pruning_is_certain():
    scores = np.array([0.0, 1.0, np.nan, 1e30])
    np.testing.assert_array_equal(inclusion_probabilities(scores, 4, alpha=0.1), np.ones(4))


def repaired(scores):
    """Scores as the docstring says that bad ones count."""
    largest = max((max(s, 0.0) for s in scores.tolist() if np.isfinite(s)), default=1.0)
    return np.float32([max(s, 0.0) if np.isfinite(s) else largest for s in scores.tolist()])


def test_scores_that_failed_count_as_the_largest():
    pi = inclusion_probabilities(np.array([1.0, np.nan, -3.0, np.inf, 4.0, -np.inf, 1e300]), 3, alpha=0.0)
    np.testing.assert_allclose(pi, np.array([1, 4, 0, 4, 4, 4, 4]) / 7)
    np.testing.assert_allclose(inclusion_probabilities(np.array([np.nan, np.inf]), 1, alpha=0.0), 0.5)


@given(problems(elements=st.floats(width=32)))
def test_any_floats_are_as_if_repaired(problem):
    scores, m, alpha = problem
    pi = inclusion_probabilities(scores, m, alpha=alpha)
    np.testing.assert_array_equal(pi, inclusion_probabilities(repaired(scores), m, alpha=alpha))
    assert np.isfinite(pi).all()
    assert abs(pi.sum() - m) <= 1e-8 * len(scores)


@given(problems(), st.data())
def test_absent_examples_are_as_if_not_there(problem, data):
    scores, m, alpha = problem
    extra = data.draw(st.integers(0, 20))
    where = np.random.default_rng(extra).permutation(len(scores) + extra)[: len(scores)]
    where.sort()
    wide = np.full(len(scores) + extra, np.nan)
    wide[where] = scores
    present = np.zeros(len(wide), bool)
    present[where] = True
    pi = inclusion_probabilities(wide, m, alpha=alpha, present=present)
    np.testing.assert_array_equal(pi[present], inclusion_probabilities(scores, m, alpha=alpha))
    assert (pi[~present] == 0).all()


def sharded(scores, m, alpha, cuts, order, present=None):
    parts = np.split(np.arange(len(scores)), cuts)
    keep = [None if present is None else present[p] for p in parts]
    histogram = None
    for k in order:
        h = ScoreHistogram.of(scores[parts[k]], keep[k])
        histogram = h if histogram is None else histogram + h
    which = bracketing_bin(histogram, m, alpha)
    fill = histogram.completed().top
    inside = sum(bin_counts(scores[parts[k]], which, fill, keep[k]) for k in order)
    level = water_level(histogram, which, inside, m, alpha)
    return np.concatenate([level.probabilities(scores[p], q) for p, q in zip(parts, keep, strict=True)])


@pytest.mark.parametrize("shards", [1, 3, 17])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_sharding_changes_no_bit(shards, alpha):
    rng = np.random.default_rng(shards)
    scores = rng.lognormal(0, 3, 5003).astype(np.float32)
    scores[rng.integers(0, 5003, 40)] = [np.nan, np.inf, 0, -1] * 10
    present = rng.random(5003) < 0.9
    cuts = np.sort(rng.integers(0, 5003, shards - 1))
    pi = sharded(scores, 1000, alpha, cuts, rng.permutation(shards), present)
    np.testing.assert_array_equal(pi, inclusion_probabilities(scores, 1000, alpha=alpha, present=present))


@settings(max_examples=50)
@given(problems(elements=st.floats(width=32)), st.data())
def test_any_sharding_changes_no_bit(problem, data):
    scores, m, alpha = problem
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=6)))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    np.testing.assert_array_equal(
        sharded(scores, m, alpha, cuts, order), inclusion_probabilities(scores, m, alpha=alpha)
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": 0}, "size"),
        ({"size": 5}, "size"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.1}, "alpha"),
        ({"present": np.ones(3, bool)}, "present"),
        ({"present": np.zeros(4, bool)}, "size"),
        ({"scores": np.ones((2, 2))}, "scores"),
    ],
)
def test_refuses(change, match):
    arguments = {"scores": np.ones(4), "size": 2, "alpha": 0.1, "present": None} | change
    with pytest.raises(ValueError, match=match):
        inclusion_probabilities(
            arguments["scores"], arguments["size"], alpha=arguments["alpha"], present=arguments["present"]
        )
