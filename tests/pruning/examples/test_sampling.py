from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.examples import sampling
from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.sampling import (
    UNIT,
    draw,
    hash64,
    mean_power,
    points_hit,
    quantise,
    settle,
    shuffled,
    tempered,
    uniform,
)

MASK = (1 << 64) - 1


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_reference(seed, epoch, id_, stream):
    step = lambda x: mix((x + 0x9E3779B97F4A7C15) & MASK)  # noqa: E731
    key = step(step(step(seed & MASK) ^ (epoch & MASK)) ^ stream)
    return mix(mix((id_ + key) & MASK) ^ step(key))


@given(st.integers(-5, 2**70), st.integers(0, 2**40), st.integers(0, 2**62), st.integers(0, 9))
def test_hash_is_the_integer_arithmetic_it_claims(seed, epoch, id_, stream):
    assert int(hash64(seed, epoch, np.array([id_]), stream)[0]) == hash_reference(seed, epoch, id_, stream)


def test_hash_golden():
    assert [hex(h) for h in hash64(0, 0, np.arange(2)).tolist()] == [
        hex(hash_reference(0, 0, i, 0)) for i in (0, 1)
    ]
    assert int(hash64(1, 2, np.array([2**53 + 1]))[0]) != int(hash64(1, 2, np.array([2**53]))[0])


def test_hash_bits_are_balanced_and_uncorrelated_between_keys():
    n = 1 << 16
    streams = [hash64(s, e, np.arange(n), k) for s, e, k in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]]
    bits = np.array(
        [[(h >> np.uint64(b)) & np.uint64(1) for b in range(64)] for h in streams], dtype=np.float64
    )
    assert np.abs(bits.mean(-1) - 0.5).max() < 5.5 * 0.5 / np.sqrt(n)
    u = np.array([uniform(0, 0, np.arange(n)), uniform(0, 1, np.arange(n)), uniform(1, 0, np.arange(n))])
    assert ((u >= 0) & (u < 1)).all()
    assert np.abs(np.corrcoef(u)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(n)
    assert abs(np.corrcoef(u[0][1:], u[0][:-1])[0, 1]) < 5 / np.sqrt(n)


@st.composite
def designs(draw_):
    n = draw_(st.integers(1, 40))
    scores = np.array(draw_(st.lists(st.floats(0, 100), min_size=n, max_size=n)))
    return inclusion_probabilities(scores, draw_(st.integers(1, n)), alpha=draw_(st.sampled_from([0.0, 0.1])))


@given(designs(), st.integers(0, 2**32), st.integers(0, 1000))
def test_systematic_size_is_exact_and_certain_examples_are_in(pi, seed, epoch):
    m = round(pi.sum())
    subset = draw(pi, size=m, seed=seed, epoch=epoch)
    assert len(subset.ids) == m
    assert (np.diff(subset.ids) > 0).all()
    assert set(np.flatnonzero(pi == 1)) <= set(subset.ids.tolist())
    assert not set(np.flatnonzero(pi == 0)) & set(subset.ids.tolist())
    np.testing.assert_allclose(subset.probabilities, pi[subset.ids], atol=4 / UNIT)
    N = np.count_nonzero(pi)
    np.testing.assert_allclose(subset.weights, m / N / subset.probabilities, rtol=1e-6)
    assert (subset.ids.dtype, subset.weights.dtype, subset.probabilities.dtype) == (
        np.int64,
        np.float32,
        np.float64,
    )


@given(designs(), st.integers(0, 100))
def test_enumeration_of_all_starts_gives_exactly_the_stated_probabilities(pi, seed):
    """Integrates the systematic design over every start ``u`` in exact rational arithmetic."""
    units = quantise(pi)
    settle(units, round(pi.sum()))
    assert int(units.sum()) == round(pi.sum()) * UNIT
    units = units[np.random.default_rng(seed).permutation(len(units))]
    # Which intervals hold a point changes only where a point passes an interval's end.
    breaks = sorted({0, UNIT, *(np.cumsum(units) % UNIT).tolist()})
    inclusion = [Fraction(0)] * len(units)
    value = np.random.default_rng(seed).integers(-50, 50, len(units))
    estimate = Fraction(0)
    for a, b in pairwise(breaks):
        hit = np.flatnonzero(points_hit(units, -a % UNIT)).tolist()
        # First points at a .. b - 1 all hit the same intervals, which are closed below and open above.
        assert hit == np.flatnonzero(points_hit(units, -(b - 1) % UNIT)).tolist()
        assert len(hit) == round(pi.sum())
        for i in hit:
            inclusion[i] += Fraction(b - a, UNIT)
        estimate += Fraction(b - a, UNIT) * sum(Fraction(int(value[i]) * UNIT, int(units[i])) for i in hit)
    assert inclusion == [Fraction(int(q), UNIT) for q in units]
    assert estimate == sum(int(v) for v, q in zip(value, units, strict=True) if q)


@given(st.lists(st.integers(0, UNIT), min_size=1, max_size=20), st.integers(0, UNIT - 1))
def test_points_hit_against_a_walk_over_the_points(units, start):
    hit, at = [], start
    for q in units:
        first = -(-at // UNIT) * UNIT
        hit.append(at <= first < at + q)
        at += q
    assert points_hit(np.array(units), start).tolist() == hit


def walked(pi, m, seed, epoch):
    """The systematic design as the module describes it, one id after the other, in Python's integers."""
    units = quantise(pi)
    settle(units, m)
    ids = np.arange(len(pi))
    blocks, within = (
        np.argsort(np.argsort(hash64(seed, epoch, of, stream)))
        for of, stream in (
            (np.unique(ids // sampling.BLOCK), sampling.STREAM_BLOCKS),
            (ids, sampling.STREAM_ORDER),
        )
    )
    line = np.lexsort((within, blocks[ids // sampling.BLOCK]))
    point, end, found = (
        int(hash64(seed, epoch, np.zeros(1, np.int64), sampling.STREAM_START)[0]) % UNIT,
        0,
        [],
    )
    for at in line.tolist():
        end += int(units[at])
        if point < end:
            found.append(int(ids[at]))
            point += UNIT
    return sorted(found)


def test_the_systematic_design_walks_the_canonical_order(monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 64)
    rng = np.random.default_rng(0)
    pi = inclusion_probabilities(rng.lognormal(0, 2, 64 * 40 + 7), 700, alpha=0.1)
    for epoch in range(3):
        subset = draw(pi, size=700, seed=5, epoch=epoch)
        assert subset.ids.tolist() == walked(pi, 700, 5, epoch)


def test_real_blocks_and_a_part_of_a_poisson_design():
    rng = np.random.default_rng(0)
    n = 3 * sampling.BLOCK
    pi = inclusion_probabilities(rng.lognormal(size=n), n // 2, alpha=0.1)
    subset = draw(pi, size=n // 2, seed=1, epoch=0)
    assert len(subset.ids) == n // 2
    assert abs(subset.weights.mean(dtype=np.float64) - 1) < 0.01
    assert abs(subset.ids.mean() - n / 2) < 5 * n / np.sqrt(12 * n / 2)
    poisson = draw(pi, size=n // 2, seed=1, epoch=0, first_id=1000, design="poisson")
    sd = np.sqrt((pi * (1 - pi)).sum())
    assert abs(len(poisson.ids) - n // 2) < 5 * sd
    # Poisson: each id decides alone, so any slice of the ids decides the same.
    half = draw(pi[:5000], size=int(pi[:5000].sum()), seed=1, epoch=0, first_id=1000, design="poisson")
    np.testing.assert_array_equal(half.ids, poisson.ids[poisson.ids < 6000])


def test_prefix_sums_beyond_64_bits():
    """9 million examples: the sum of units exceeds 2^63."""
    n = 9_000_000
    pi = np.ones(n)
    pi[::1000] = 0.5
    m = n - n // 2000
    subset = draw(pi, size=m, seed=0, epoch=0)
    assert len(subset.ids) == m


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_inclusion_frequencies(design):
    draws, n, m = 4000, 120, 40
    pi = inclusion_probabilities(np.random.default_rng(3).lognormal(0, 1, n), m, alpha=0.1)
    counts, totals = np.zeros(n), []
    for epoch in range(draws):
        subset = draw(pi, size=m, seed=11, epoch=epoch, design=design)
        counts[subset.ids] += 1
        totals.append(subset.weights.sum(dtype=np.float64) / m)
    open_ = pi < 1
    z = (counts - draws * pi)[open_] / np.sqrt(draws * pi * (1 - pi))[open_]
    assert np.abs(z).max() < 4.5
    assert 0.75 < np.sqrt((z**2).mean()) < 1.25
    assert abs(np.mean(totals) - 1) < 5 * np.std(totals) / np.sqrt(draws)


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_variance_is_that_of_the_formula(design):
    """sum (1 - pi) / pi g^2 / N^2, exact for Poisson; systematic in random order comes close."""
    rng = np.random.default_rng(4)
    n, m, draws = 400, 200, 3000
    g = rng.normal(size=(n, 8)) * rng.lognormal(0, 1, (n, 1))
    g -= g.mean(
        0
    )  # systematic sampling also removes the variance of the size, seen only where the mean is not 0
    norms = np.linalg.norm(g, axis=1)
    pi = inclusion_probabilities(norms * rng.lognormal(0, 0.3, n), m, alpha=0.1)
    formula = ((1 - pi) / pi * norms**2).sum() / n**2
    sampled = np.zeros((draws, 8))
    for epoch in range(draws):
        s = draw(pi, size=m, seed=0, epoch=epoch, design=design)
        sampled[epoch] = (s.weights[:, None] * g[s.ids]).sum(0) / m
    spread = ((sampled - g.mean(0)) ** 2).sum(1)
    assert abs(spread.mean() / formula - 1) < (0.05 if design == "poisson" else 0.08)
    error = sampled.mean(0) - g.mean(0)
    assert (np.abs(error) < 5 * sampled.std(0) / np.sqrt(draws)).all()


def test_epochs_and_seeds_differ_and_repeat():
    pi = np.full(1000, 0.5)
    a = [draw(pi, size=500, seed=s, epoch=e).ids.tolist() for s, e in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert a[0] == a[3]
    assert a[0] != a[1]
    assert a[0] != a[2]
    assert a[1] != a[2]


@given(st.lists(st.integers(0, 2**50), unique=True, max_size=50), st.integers(0, 99), st.randoms())
@settings(max_examples=50)
def test_training_order_is_a_function_of_the_set(ids, seed, random):
    order = shuffled(np.array(ids, dtype=np.int64), seed=seed, epoch=3)
    mixed = list(ids)
    random.shuffle(mixed)
    np.testing.assert_array_equal(order, shuffled(np.array(mixed, dtype=np.int64), seed=seed, epoch=3))
    assert sorted(order.tolist()) == sorted(ids)


def test_training_order_positions_are_uniform():
    positions = np.array([np.argsort(shuffled(np.arange(50), seed=0, epoch=e)) for e in range(2000)])
    sd = np.sqrt((50**2 - 1) / 12 / 2000)
    assert np.abs(positions.mean(0) - 24.5).max() < 4.5 * sd


@pytest.mark.parametrize(
    ("pi", "size", "options", "match"),
    [
        ([0.5, 0.6], 1, {}, "sum"),
        ([1.0, 1.0], 1, {}, "sum"),
        ([1.5, 0.5], 2, {}, r"\[0, 1\]"),
        ([float("nan"), 0.5], 1, {}, r"\[0, 1\]"),
        ([0.5, 0.5], 1, {"design": "pivotal"}, "design"),
        ([0.5, 0.5], 1, {"first_id": -1, "design": "poisson"}, "first_id"),
        ([0.5, 0.5], 1, {"first_id": 1}, "first_id"),
        ([[0.5, 0.5]], 1, {}, "shape"),
    ],
)
def test_refuses(pi, size, options, match):
    with pytest.raises(ValueError, match=match):
        draw(np.array(pi), size=size, seed=0, epoch=0, **options)


@given(
    st.lists(st.floats(0.05, 20), min_size=1, max_size=50),
    st.floats(0, 1),
)
def test_padding_keeps_weight_0(values, power):
    weights = np.array(values, np.float32)
    exact = weights.astype(float) ** power
    assert mean_power(weights, power) == pytest.approx(exact.mean() if power < 1 else 1)
    padded = np.append(weights, np.float32(0))
    found = tempered(padded, power, exact.mean())
    np.testing.assert_allclose(found[:-1], exact / exact.mean() if power < 1 else weights, rtol=1e-6)
    assert found[-1] == 0
