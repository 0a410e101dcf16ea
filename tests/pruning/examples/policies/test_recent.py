"""SeTa, RePB and OrderDP against slow computations of their rules."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.examples.policies import make_policy
from pruning.examples.policies.seta import group_bounds
from pruning.examples.sampling import STREAM_SUBSET, hash64

N = 60
BASE = {"num_examples": N, "ratio": 0.5, "seed": 3, "epochs": 12}
NAMES = ["seta", "seta_matched", "repb", "repb_matched", "orderdp"]
FIXED = ["seta_matched", "repb_matched", "orderdp"]


def lognormal(seed, n=N):
    return np.random.default_rng(seed).lognormal(size=n).astype(np.float32)


def trained(name, losses, *, epoch=0, **options):
    policy = make_policy(name, **(BASE | {"num_examples": len(losses)} | options))
    policy.observe(np.arange(len(losses)), losses, epoch, "train", np.arange(len(losses)) // 8)
    return policy


def random_ids(ids, size, epoch):
    """The ids with the smallest hashes."""
    return set(sorted(ids, key=lambda i: int(hash64(3, epoch, np.array([i]), STREAM_SUBSET)[0]))[:size])


# K-means and SeTa.


@given(st.integers(1, 6), st.integers(0, 999), st.booleans())
@settings(max_examples=60)
def test_groups_are_a_fixed_point_of_k_means(groups, seed, ties):
    losses = np.sort(lognormal(seed, 40)).astype(np.float64)
    losses = np.round(losses) if ties else losses
    bounds = group_bounds(losses, groups)
    assert bounds[0] == 0
    assert bounds[-1] == 40
    assert (np.diff(bounds) >= 0).all()
    if len(set(losses)) < groups:
        assert np.diff(bounds).max() - np.diff(bounds).min() <= 1
        return
    parts = [losses[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    means = np.array([part.mean() for part in parts])
    for own, part in enumerate(parts):
        for loss in part:
            assert abs(loss - means[own]) <= np.abs(loss - means).min() + 1e-12


def test_separate_groups_are_found():
    rng = np.random.default_rng(0)
    losses = np.sort(np.concatenate([rng.normal(c, 0.1, n) for c, n in [(1, 5), (4, 30), (9, 11)]]))
    np.testing.assert_array_equal(group_bounds(losses, 3), [0, 5, 35, 46])
    costs = {
        cut: sum(((part - part.mean()) ** 2).sum() for part in np.split(losses, cut))
        for cut in itertools.combinations(range(1, 46), 2)
    }
    assert min(costs, key=costs.__getitem__) == (5, 35)  # the best of all partitions


@given(st.integers(0, 999), st.integers(1, 10), st.integers(1, 7), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@settings(max_examples=60)
def test_seta_takes_the_windows_part_of_a_random_subset(seed, epoch, groups, window):
    losses = lognormal(seed)
    policy = trained("seta", losses, groups=groups, window=window)
    candidates = sorted(random_ids(range(60), 30, epoch), key=lambda i: losses[i])
    bounds = group_bounds(losses[np.array(candidates)].astype(np.float64), groups)
    width = next(w for w in range(1, groups + 1) if w >= window * groups - 1e-9)
    start = epoch % (groups - width + 1)
    expected = sorted(candidates[bounds[start] : bounds[start + width]])
    plan = policy.plan(epoch)
    assert plan.ids.tolist() == expected
    assert (plan.weights == 1).all()
    assert policy.examples(epoch) == pytest.approx(len(expected) / N)


def test_setas_window_goes_from_easy_to_hard_and_starts_anew():
    losses = np.repeat([1, 4, 9, 20], 15) + np.linspace(0, 0.5, N)
    policy = trained("seta", losses.astype(np.float32), groups=4, window=0.5)
    for epoch, allowed in [(3, {0, 1}), (4, {1, 2}), (5, {2, 3}), (6, {0, 1})]:
        assert set(policy.plan(epoch).ids // 15) == allowed
    matched = trained("seta_matched", losses.astype(np.float32), groups=4, window=0.5)
    assert matched.plan(4).ids.tolist() == list(range(15, 45))  # the window holds exactly m
    narrow = trained("seta_matched", losses.astype(np.float32), groups=4, window=0.25)
    assert narrow.plan(5).ids.tolist() == [*range(8, 38)]  # one group, widened on both sides
    assert narrow.plan(7).ids.tolist() == [*range(30, 60)]


def test_setas_annealing_is_partial_and_the_matched_forms_is_full():
    policy = trained("seta", lognormal(0), anneal_epochs=2, rescore_every=1)
    assert [policy.plan(e).full for e in (0, 9, 10, 11)] == [True, False, False, False]
    rival = make_policy("random", **BASE, anneal_epochs=0)
    for epoch in (10, 11):
        np.testing.assert_array_equal(policy.plan(epoch).ids, rival.plan(epoch).ids)
        assert policy.rescore(epoch) is None
        assert policy.cost(epoch).total == 0.5
    assert policy.rescore(9) is not None
    assert trained("seta_matched", lognormal(0)).plan(11).full
    assert trained("seta", lognormal(0), ratio=0.0).plan(5).full


def test_setas_expected_size():
    assert make_policy("seta", **BASE).examples(3) == 0.25  # groups count as equal
    assert make_policy("seta", **BASE, groups=3, window=0.5).examples(3) == pytest.approx(0.5 * 2 / 3)
    assert trained("seta_matched", lognormal(0)).examples(3) == 0.5


# RePB.


class Rule:
    """RePB on dictionaries, example by example."""

    def __init__(self, ratio, window):
        self.ratio, self.window, self.trainings, self.last = ratio, window, {}, {}

    def train(self, order, losses, batch):
        """An epoch in this order; ``last`` tells who is at or above the mean of its window."""
        self.last = {}
        size = batch * self.window
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            mean = sum(float(losses[i]) for i in ids) / len(ids)
            for i in ids:
                self.last[i] = float(losses[i]) >= mean
                self.trainings[i] = self.trainings.get(i, 0) + 1

    def probability(self, i):
        return 1.0 if self.last.get(i) else 1 - self.ratio


def deliver(policy, order, losses, batch, epoch, cuts, rng):
    """The same losses in any number of deliveries, which arrive in any order, some of them twice."""
    parts = np.split(np.arange(len(order)), cuts)
    for part in [parts[k] for k in rng.permutation(len(parts))] + parts[:1]:
        at = order[part]
        policy.observe(at, losses[at], epoch, "train", part // batch)


@given(
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([0.25, 0.5, 0.8]),
    st.lists(st.integers(0, N), max_size=6),
)
@settings(max_examples=50)
def test_repb_follows_its_rule(seed, window, batch, ratio, cuts):
    rng = np.random.default_rng(seed)
    policy = make_policy("repb", **(BASE | {"ratio": ratio}), window=window)
    rule = Rule(ratio, window)
    for epoch in range(5):
        plan = policy.plan(epoch)
        if epoch:
            pi, size = policy.inclusion(epoch)
            low = np.array([rule.probability(i) < 1 for i in range(N)])
            kept = max(1, round((1 - ratio) * low.sum())) if low.any() else 0
            np.testing.assert_allclose(pi, np.where(low, kept / max(low.sum(), 1), 1.0))
            assert size == len(plan.ids) == N - low.sum() + kept
            w = np.array([(epoch + 1) / (rule.trainings[i] + 1) for i in plan.ids])
            np.testing.assert_allclose(plan.weights, w / w.mean(), rtol=1e-6)
        order, losses = rng.permutation(plan.ids), lognormal([seed, epoch])
        rule.train(order.tolist(), losses, batch)
        deliver(policy, order, losses, batch, epoch, sorted(c for c in cuts if c < len(order)), rng)
        restarted = make_policy("repb", **(BASE | {"ratio": ratio}), window=window)
        restarted.load(policy.state())
        policy = restarted


def test_repb_compares_within_windows_only():
    losses = np.array([1, 3, 11, 13, 101, 103], np.float32)  # three batches, each far above the one before
    common = BASE | {"num_examples": 6}
    policy = make_policy("repb", **common)
    policy.observe(np.arange(6), losses, 0, "train", np.arange(6) // 2)
    assert (policy.inclusion(1)[0] == 1).tolist() == [False, True] * 3
    for steps, source in [(np.zeros(6, int), "train"), (None, "train"), (None, "pass")]:  # one window
        policy = make_policy("repb", **common)
        policy.observe(np.arange(6), losses, 1, source, steps)
        epoch = 2 if source == "train" else 1
        assert (policy.inclusion(epoch)[0] == 1).tolist() == [False] * 4 + [True] * 2
        assert policy.visits.tolist() == [int(source == "train")] * 6


def test_repb_forgets_comparisons_older_than_an_epoch():
    policy = trained("repb", lognormal(0))
    assert (policy.inclusion(1)[0] == 1).any()
    np.testing.assert_allclose(policy.inclusion(2)[0], 0.5)
    fresh = make_policy("repb", **BASE, warmup_epochs=0)
    np.testing.assert_allclose(fresh.inclusion(0)[0], 0.5)


def test_repb_sees_every_example_equally_in_the_long_run():
    """``E / N_i`` evens out hard and easy examples, as its unbiasedness in the limit says."""
    n, epochs = 200, 300
    policy = make_policy("repb", **(BASE | {"num_examples": n, "epochs": epochs + 1}))
    level, seen, times = np.linspace(0, 3, n), np.zeros(n), np.zeros(n)
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        plan = policy.plan(epoch)
        at = plan.ids
        if epoch >= epochs // 3:
            seen[at] += plan.weights * len(at)
            times[at] += 1
        order = rng.permutation(at)
        losses = level[order] + rng.normal(0, 1, len(order))
        policy.observe(order, losses, epoch, "train", np.arange(len(order)) // 20)
    hard, easy = slice(n // 2, n), slice(0, n // 2)
    assert times[hard].mean() > 1.3 * times[easy].mean()
    assert seen[hard].mean() == pytest.approx(seen[easy].mean(), rel=0.02)
    trained_share = times.sum() / n / (epochs - epochs // 3)
    assert policy.examples(epochs) == pytest.approx(trained_share, abs=0.05)


def test_repb_matched_keeps_the_ratio_of_its_probabilities():
    losses = lognormal(1)
    pi, size = trained("repb_matched", losses, ratio=0.8).inclusion(1)
    certain = trained("repb", losses, ratio=0.8).inclusion(1)[0] == 1
    assert size == 12
    assert pi.sum() == pytest.approx(12)
    np.testing.assert_allclose(pi[~certain], 0.2 * pi[certain][0])
    assert make_policy("repb", **BASE).examples(5) == pytest.approx(2 / 3)
    assert make_policy("repb_matched", **BASE).examples(5) == 0.5


# OrderDP.


@given(st.integers(0, 999), st.integers(1, 10), st.sampled_from([None, 0.5, 0.7, 1.0]))
@settings(max_examples=50)
def test_orderdp_takes_the_highest_of_a_random_subset(seed, epoch, candidates):
    losses = lognormal(seed)
    policy = trained("orderdp", losses, candidates=candidates)
    size = round(N * (candidates or 0.5**0.5))
    pool = random_ids(range(60), size, epoch)
    expected = sorted(sorted(pool, key=lambda i: -losses[i])[:30])
    plan = policy.plan(epoch)
    assert plan.ids.tolist() == expected
    assert (plan.weights == 1).all()


def test_orderdp_is_unbiased_for_its_surrogate():
    """Each rank is drawn as often as the paper's weights of the order statistics say."""
    n, s, q, epochs = 8, 5, 2, 4000
    policy = trained("orderdp", np.arange(n, 0, -1.0), ratio=0.75, candidates=s / n, epochs=epochs + 2)
    counts = np.zeros(n)
    for epoch in range(1, epochs + 1):
        counts[policy.plan(epoch).ids] += 1
    gamma = np.array(
        [sum(comb(j - 1, k - 1) * comb(n - j, s - k) for k in range(1, q + 1)) for j in range(1, n + 1)]
    ) / comb(n, s)
    assert gamma.sum() == pytest.approx(q)
    np.testing.assert_allclose(counts / epochs, gamma, atol=5 * 0.5 / epochs**0.5)
    assert (counts[gamma == 0] == 0).all()


# All of them.


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 999),
    kind=st.sampled_from(["plain", "unknown", "none", "equal", "few", "odd"]),
    ratio=st.sampled_from([0.05, 0.37, 0.5, 0.95]),
    masked=st.booleans(),
)
@settings(max_examples=40)
def test_any_losses(name, seed, kind, ratio, masked):
    """Budgets are exact, plans repeat and survive a restart, whatever is known of the losses."""
    rng = np.random.default_rng(seed)
    present = rng.random(N) < 0.6 if masked else None
    if masked:
        present[rng.integers(N)] = True
    existing = np.arange(N) if present is None else np.flatnonzero(present)
    losses = {"equal": np.full(N, 2.0), "few": rng.integers(0, 3, N).astype(float)}.get(kind, lognormal(seed))
    if kind == "odd":
        losses[rng.integers(0, N, 9)] = [np.nan, np.inf, -np.inf] * 3
    known = existing[rng.random(len(existing)) < 0.5] if kind == "unknown" else existing
    policy = make_policy(name, **(BASE | {"ratio": ratio}), present=present)
    if kind != "none":
        policy.observe(known, losses[known], 0, "train", rng.integers(0, 4, len(known)))
    other = make_policy(name, **(BASE | {"ratio": ratio}), present=present)
    other.load(policy.state())
    for epoch in (1, 2, 7):
        plan, again = policy.plan(epoch), other.plan(epoch)
        np.testing.assert_array_equal(plan.ids, again.ids)
        np.testing.assert_array_equal(plan.weights, again.weights)
        assert set(plan.ids) <= set(existing)
        assert plan.weights.mean() == pytest.approx(1)
        assert (plan.weights > 0).all()
        assert len(plan.ids) >= 1
        budget = max(1, round((1 - ratio) * len(existing)))
        if name in FIXED:
            assert len(plan.ids) == budget
        if name == "seta":
            assert len(plan.ids) <= budget
        assert 0 < policy.examples(epoch) <= 1
        assert policy.theoretical_speedup() >= 1


@pytest.mark.parametrize("name", NAMES)
def test_one_example(name):
    policy = trained(name, np.array([0.7]))
    for epoch in range(12):
        assert policy.plan(epoch).ids.tolist() == [0]
        assert policy.plan(epoch).weights.tolist() == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_ties_fall_anew_every_epoch(name):
    policy = trained(name, np.full(N, 1.5))
    draws = [frozenset(policy.plan(e).ids.tolist()) for e in range(1, 11)]
    assert len(set(draws)) == 10
    assert len({i for draw in draws for i in draw}) > 0.8 * N


def test_unknown_losses_are_trained_on():
    losses = lognormal(0)
    losses[:5] = np.nan
    for epoch in range(1, 8):
        pool = random_ids(range(60), 30, epoch) & set(range(5))
        assert pool <= set(trained("seta", losses).plan(epoch).ids.tolist())
        pool = random_ids(range(60), round(30 * 2**0.5), epoch) & set(range(5))
        assert pool <= set(trained("orderdp", losses).plan(epoch).ids.tolist())
    assert set(range(5)) <= set(trained("repb", losses).plan(1).ids.tolist())


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("seta", {"groups": 0}, "groups: 0"),
        ("seta", {"groups": 2.5}, "groups: 2.5"),
        ("seta_matched", {"window": 0.0}, "window: 0.0"),
        ("seta", {"window": 1.5}, "window: 1.5"),
        ("repb", {"window": 0}, "window: 0"),
        ("repb_matched", {"window": 0.5}, "window: 0.5"),
        ("orderdp", {"candidates": 0.0}, "candidates: 0.0"),
        ("orderdp", {"candidates": 1.5}, "candidates: 1.5"),
        ("orderdp", {"candidates": 0.4}, "candidates: 0.4"),
        ("orderdp", {"window": 1}, "unknown option 'window'"),
    ],
)
def test_refuses_options(name, options, match):
    with pytest.raises(ValueError, match=match):
        make_policy(name, **BASE, **options)
