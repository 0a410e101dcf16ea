import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.examples.policies import POLICIES, make_policy
from pruning.examples.policies.chosen import highest
from tests.pruning.examples.policies.policy_problems import (
    BASE,
    EVERY,
    UNBIASED,
    N,
    same,
    scored,
    scores,
)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("masked", [False, True])
def test_plans(name, options, masked):
    present = np.random.default_rng(1).random(N) < 0.7 if masked else None
    policy = scored(name, present=present, **options)
    n = policy.settings.num_present
    existing = np.arange(N) if present is None else np.flatnonzero(present)
    for epoch in range(12):
        plan = policy.plan(epoch)
        same(plan, policy.plan(epoch))
        assert plan.ids.dtype == np.int64
        assert plan.weights.dtype == np.float32
        assert (np.diff(plan.ids) > 0).all()
        assert set(plan.ids.tolist()) <= set(existing.tolist())
        assert plan.full == (name == "full" or epoch == 0 or (epoch == 11 and name != "seta"))
        if plan.full:
            np.testing.assert_array_equal(plan.ids, existing)
            assert (plan.weights == 1).all()
        elif name not in ("infobatch", "seta", "repb"):
            assert len(plan.ids) == round(0.6 * n)
        if plan.probabilities is not None and name.startswith("repb"):
            assert plan.weights.mean() == pytest.approx(1)
        elif plan.probabilities is not None:
            np.testing.assert_allclose(plan.weights, len(plan.ids) / n / plan.probabilities, rtol=1e-6)
            assert plan.weights.max() <= 1 / policy.settings.alpha * (1 + 1e-6)


@pytest.mark.parametrize(("name", "options"), UNBIASED)
@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_the_weighted_gradient_is_unbiased(name, options, design):
    policy = scored(name, epochs=602, stale_alpha=0.1, design=design, **options)
    gradients = np.random.default_rng(2).normal(1, 1, (N, 5)) * scores()[:, None]
    nominal = policy.inclusion(1)[1]  # the loss is divided by the nominal size, not by the drawn one
    estimates = []
    for epoch in range(1, 601):
        plan = policy.plan(epoch)
        estimates.append((plan.weights[:, None] * gradients[plan.ids]).sum(0) / nominal)
    error = np.mean(estimates, 0) - gradients.mean(0)
    assert (np.abs(error) < 4.5 * np.std(estimates, 0) / np.sqrt(600)).all()


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_state_restores_everything(name, options):
    policy = scored(name, **options)
    policy.observe(np.arange(100), scores(3, 100), 2, "train")
    other = make_policy(name, **(BASE | options))
    other.load(policy.state())
    for epoch in range(12):
        same(policy.plan(epoch), other.plan(epoch))
        np.testing.assert_array_equal(policy.rescore(epoch), other.rescore(epoch))
    state = policy.state()
    for array in state.values():
        array[:] = 0  # a copy
    same(policy.plan(5), other.plan(5))


def test_load_refuses_other_states():
    with pytest.raises(ValueError, match="visits"):
        make_policy("ucb", **BASE).load(scored("sadp").state())
    with pytest.raises(ValueError, match="scores"):
        make_policy("sadp", **(BASE | {"num_examples": 4})).load(scored("sadp").state())


deliveries = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["pass", "train"]), st.sets(st.integers(0, N - 1), max_size=20)
    ),
    max_size=6,
)


@settings(max_examples=40)
@given(deliveries, st.randoms(), st.sampled_from(["sadp", "static", "infobatch", "seta", "orderdp"]))
def test_scores_are_the_freshest_in_any_order_and_however_often_delivered(items, random, name):
    value = lambda i, e, s: np.float32(1 + i + 1000 * e + 500 * (s == "train"))  # noqa: E731

    def deliver(order):
        policy = make_policy(name, **BASE)
        for epoch, source, ids in order:
            at = np.array(sorted(ids), dtype=np.int64)
            policy.observe(at, np.array([value(i, epoch, source) for i in at]), epoch, source)
        return policy

    twice = [*items, *items]
    random.shuffle(twice)
    a, b = deliver(items), deliver(twice)
    for key, array in a.state().items():
        np.testing.assert_array_equal(array, b.state()[key])
    if name != "static":
        newest = {}
        for epoch, source, ids in items:
            for i in ids:
                newest[i] = max(newest.get(i, (-1, "")), (epoch, source))
        for i, (epoch, source) in newest.items():
            assert a.scores[i] == value(i, epoch, source)


def test_double_delivery_does_not_count_as_a_second_visit():
    policy = make_policy("ucb", **BASE)
    for _ in range(3):
        policy.observe(np.array([1, 2, 2]), np.array([5.0, 6.0, 6.0]), 0, "train")
    assert policy.visits[:4].tolist() == [0, 1, 1, 0]
    policy.observe(np.array([1]), np.array([10.0]), 1, "train")
    assert policy.scores[1] == pytest.approx(0.8 * 5 + 0.2 * 10)
    policy.observe(np.array([1]), np.array([np.nan]), 2, "train")
    assert policy.visits[1] == 2


def test_ucb_prefers_unseen_then_high_losses():
    policy = make_policy("ucb", **(BASE | {"exploration": 0.0}))
    policy.observe(np.arange(10, N), scores()[10:], 0, "train")
    plan = policy.plan(1)
    expected = set(range(10)) | set((np.argsort(scores()[10:])[::-1][: len(plan.ids) - 10] + 10).tolist())
    assert set(plan.ids.tolist()) == expected


def test_static_keeps_its_subset_whatever_comes_later():
    policy = scored("static")
    first = policy.plan(1).ids
    np.testing.assert_array_equal(first, np.sort(np.argsort(scores())[-180:]))
    policy.observe(np.arange(N), scores(9), 1, "train")
    policy.observe(np.arange(N), scores(9), 5, "pass")
    np.testing.assert_array_equal(policy.plan(8).ids, first)
    assert [policy.rescore(e) is not None for e in range(12)] == [False] * 12
    fresh = make_policy("static", **BASE)
    assert [fresh.rescore(e) is not None for e in range(12)] == [e == 1 for e in range(12)]


def test_unknown_scores_are_counted_and_never_dropped():
    policy = make_policy("sadp", **BASE)
    np.testing.assert_allclose(policy.inclusion(1)[0], 0.6)
    policy.observe(np.arange(10, N), np.full(N - 10, 0.001), 1, "pass")
    policy.observe(np.array([20]), np.array([3.0]), 1, "train")
    assert policy.plan(2).replaced_scores == 10
    assert set(range(10)) | {20} <= set(policy.plan(2).ids.tolist())


@pytest.mark.parametrize("name", ["static", "ucb", "seta", "seta_matched", "orderdp"])
def test_biased_policies_include_what_they_select(name):
    policy = scored(name)
    pi, size = policy.inclusion(3)
    np.testing.assert_array_equal(np.flatnonzero(pi), policy.plan(3).ids)
    assert pi.sum() == size
    assert size == 180 or name == "seta"


def test_infobatch_thins_below_the_mean_only():
    policy = scored("infobatch", ratio=0.5)
    low = scores().astype(np.float32) < scores().mean()
    plan = policy.plan(1)
    kept_low = low[plan.ids].sum()
    assert set(np.flatnonzero(~low)) <= set(plan.ids.tolist())
    assert kept_low == round(0.5 * low.sum())
    ratio = plan.weights[low[plan.ids]][0] / plan.weights[~low[plan.ids]][0]
    assert ratio == pytest.approx(low.sum() / kept_low)
    assert policy.cost(1).examples == pytest.approx(1 - 0.5 * low.mean())


def test_matched_infobatch_meets_the_budget_in_the_same_proportion():
    pi, size = scored("infobatch_matched", ratio=0.9).inclusion(1)
    low = scores().astype(np.float32) < scores().mean()
    assert size == 30
    assert pi.sum() == pytest.approx(30)
    assert pi[low] == pytest.approx(0.1 * pi[~low][0])


@pytest.mark.parametrize(("losses", "ratio"), [([1, 1, 1, 1, 100], 0.3), ([1] * 1012 + [50] * 3, 0.1)])
def test_matched_infobatch_has_no_chance_above_one(losses, ratio):
    """Rounding can make the budget more than its two probabilities give."""
    n = len(losses)
    policy = make_policy("infobatch_matched", num_examples=n, ratio=ratio, seed=0, epochs=3, warmup_epochs=1)
    policy.observe(np.arange(n), np.array(losses, float), 0, "train")
    pi, size = policy.inclusion(1)
    assert size == round((1 - ratio) * n) > n * (1 - ratio)
    assert pi.max() <= 1
    assert pi.sum() == pytest.approx(size)
    assert len(policy.plan(1).ids) == size


def test_highest_breaks_ties_by_hash_and_takes_unknown_first():
    values = np.array([1, 5, 1, 1, np.nan, 0, 1], dtype=np.float32)
    assert {1, 4} < set(highest(values, 4, seed=0).tolist())
    ties = [frozenset(highest(np.zeros(10), 5, seed=s).tolist()) for s in range(20)]
    assert len(set(ties)) > 10
    present = np.array([1, 0, 1, 1, 1, 1, 0], bool)
    assert highest(values, 1, seed=0, present=present).tolist() == [4]


def test_registry():
    assert list(POLICIES) == [policy.name for policy in POLICIES.values()]
    assert {name for name, _ in EVERY} == set(POLICIES)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "nope"}, "policy: 'nope'"),
        ({"ratio": 1.0}, "ratio"),
        ({"num_examples": 0}, "num_examples"),
        ({"epochs": 1}, "epochs"),
        ({"alpha": 2.0}, "alpha"),
        ({"stale_alpha": -1.0}, "stale_alpha"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"score_from": -1}, "score_from"),
        ({"score_from": 13}, "score_from"),
        ({"rescore_who": "some"}, "rescore_who"),
        ({"rescore_share": 0.0}, "rescore_share"),
        ({"design": "cube"}, "design"),
        ({"present": np.ones(3, bool)}, "present"),
        ({"present": np.zeros(N, bool)}, "present"),
        ({"matched": True}, "unknown option 'matched'"),
        ({"name": "ucb", "exploration": -1.0}, "exploration"),
        ({"name": "ucb", "smoothing": 1.0}, "smoothing"),
    ],
)
def test_refuses_settings(change, match):
    with pytest.raises(ValueError, match=match):
        make_policy(**({"name": "sadp"} | BASE | change))


@pytest.mark.parametrize(
    ("ids", "values", "epoch", "source", "match"),
    [
        ([N], [1.0], 0, "pass", "ids: 300"),
        ([-1], [1.0], 0, "pass", "ids: -1"),
        ([3], [1.0], 0, "pass", "ids: 3"),
        ([1, 2], [1.0], 0, "pass", "scores"),
        ([1], [1.0], -1, "pass", "epoch"),
        ([1], [1.0], 0, "guess", "source"),
    ],
)
def test_refuses_scores(ids, values, epoch, source, match):
    policy = make_policy("sadp", **BASE, present=np.arange(N) != 3)
    with pytest.raises(ValueError, match=match):
        policy.observe(np.array(ids), np.array(values), epoch, source)


@pytest.mark.parametrize("steps", [[0], [0, -1]])
def test_refuses_steps(steps):
    with pytest.raises(ValueError, match="steps"):
        make_policy("sadp", **BASE).observe(np.arange(2), np.ones(2), 0, "train", np.array(steps))


@pytest.mark.parametrize("epoch", [-1, 12])
def test_refuses_epochs_that_the_run_does_not_have(epoch):
    for name in POLICIES:
        with pytest.raises(ValueError, match="epoch"):
            make_policy(name, **BASE).plan(epoch)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_power_of_the_weights_keeps_their_mean_and_lowers_their_spread(power):
    plain, tempered = (
        scored("sadp", weight_power=p, stale_alpha=0.1).plan(1).loss_weights.astype(float)
        for p in (1.0, power)
    )
    plan = scored("sadp", weight_power=power, stale_alpha=0.1).plan(1)
    np.testing.assert_array_equal(plan.weights.astype(float), plain)
    if power == 1:
        np.testing.assert_array_equal(tempered, plain)
        return
    assert tempered.mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(tempered, plain**power / (plain**power).mean(), rtol=1e-6)
    assert tempered.std() < plain.std()
    with pytest.raises(ValueError, match="weight_power"):
        scored("sadp", weight_power=1.5)
