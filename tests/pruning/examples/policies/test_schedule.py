"""When a policy scores, draws by scores, and what its epochs cost."""

import numpy as np
import pytest

from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.policies import POLICIES, make_policy
from pruning.examples.policies.settings import FORWARD_COST
from tests.pruning.examples.policies.policy_problems import (
    BASE,
    RECENT,
    N,
    same,
    scored,
    scores,
)


def test_rescoring_all():
    policy = make_policy("sadp", **(BASE | {"rescore_every": 3, "warmup_epochs": 2}))
    assert [e for e in range(12) if policy.rescore(e) is not None] == [2, 5, 8]
    np.testing.assert_array_equal(policy.rescore(5), np.arange(N))
    policy.observe(np.arange(100), scores(n=100), 5, "pass")
    np.testing.assert_array_equal(policy.rescore(5), np.arange(100, N))
    policy.observe(np.arange(100, N), scores(n=N - 100), 5, "pass")
    assert policy.rescore(5) is None
    assert make_policy("sadp", **(BASE | {"rescore_every": 0})).rescore(1) is None
    assert make_policy("random", **BASE).rescore(1) is None
    assert make_policy("full", **BASE).rescore(1) is None


def test_rescoring_the_unselected():
    policy = scored("sadp", rescore_every=1, rescore_who="unselected")
    chosen = policy.plan(1).ids
    policy.observe(chosen, np.ones(len(chosen)), 1, "train")
    np.testing.assert_array_equal(policy.rescore(2), np.setdiff1d(np.arange(N), chosen))


def test_rescoring_a_sample():
    policy = scored("sadp", rescore_every=1, rescore_who="sample", rescore_share=0.2)
    samples = [set(policy.rescore(e).tolist()) for e in (2, 3)]
    for sample in samples:
        assert 0.1 * N < len(sample) < 0.3 * N
    assert samples[0] != samples[1]


def test_age_counts_epochs_and_old_scores_get_the_larger_mixture():
    policy = scored("sadp")
    assert policy.plan(1).mean_score_age == 0
    assert policy.plan(2).mean_score_age == 1
    policy.observe(np.arange(N // 2), np.ones(N // 2), 1, "train")
    assert policy.plan(2).mean_score_age == 0.75
    policy = scored("sadp")
    for epoch, alpha in [(1, 0.1), (2, 0.1), (3, 0.3), (9, 0.3)]:
        pi = inclusion_probabilities(scores(), 180, alpha=alpha)
        np.testing.assert_allclose(policy.inclusion(epoch)[0], pi)
    assert make_policy("sadp", **BASE).plan(3).mean_score_age is None


SCORED = sorted(set(POLICIES) - {"random", "full"})


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_before_score_from_a_scored_policy_is_random(name, design):
    present = np.random.default_rng(1).random(N) < 0.7
    common = {"design": design, "present": present}
    policy = scored(name, score_from=4, **common)
    policy.observe(np.flatnonzero(present)[:50], scores(3, 50), 2, "train")
    rival = make_policy("random", **(BASE | common))
    for epoch in range(4):
        plan, expected = policy.plan(epoch), rival.plan(epoch)
        np.testing.assert_array_equal(plan.ids, expected.ids)
        np.testing.assert_array_equal(plan.weights, expected.weights)
        np.testing.assert_allclose(plan.weights, 1, rtol=1e-6)
        np.testing.assert_array_equal(policy.inclusion(epoch)[0], rival.inclusion(epoch)[0])
        assert policy.rescore(epoch) is None
        assert policy.cost(epoch) == rival.cost(epoch)
        if epoch:
            assert (plan.mean_score_age, plan.replaced_scores) == (None, 0)


@pytest.mark.parametrize("name", [n for n in SCORED if n != "static"])
def test_from_score_from_on_it_is_itself(name):
    late, early = (make_policy(name, **BASE, score_from=s) for s in (4, 0))
    for policy in (late, early):
        for epoch in range(4):
            policy.observe(np.arange(N), scores(epoch), epoch, "train")
    for epoch in (4, 7, 11):
        same(late.plan(epoch), early.plan(epoch))
        np.testing.assert_array_equal(late.inclusion(epoch)[0], early.inclusion(epoch)[0])


def test_passes_and_their_cost_begin_at_score_from():
    policy = make_policy("sadp", **BASE, score_from=4, rescore_every=3)
    assert [e for e in range(12) if policy.rescore(e) is not None] == [4, 7, 10]
    assert [e for e in range(12) if policy.cost(e).scoring] == [4, 7, 10]
    assert policy.theoretical_speedup() == pytest.approx(12 / (2 + 10 * 0.6 + 3 * FORWARD_COST))
    never = make_policy("sadp", **BASE, score_from=12)
    assert never.theoretical_speedup() == make_policy("random", **BASE).theoretical_speedup()
    warm = make_policy(
        "sadp", **BASE, score_from=1, warmup_epochs=3, rescore_every=2
    )  # the later of the two counts
    assert [e for e in range(12) if warm.rescore(e) is not None] == [3, 5, 7, 9]


def test_static_chooses_at_score_from():
    policy = make_policy("static", **BASE, score_from=3)
    assert [e for e in range(12) if policy.rescore(e) is not None] == [3]
    assert [e for e in range(12) if policy.cost(e).scoring] == [3]
    policy.observe(np.arange(N), scores(5), 2, "train")
    policy.observe(np.arange(N), scores(), 3, "pass")
    policy.observe(np.arange(N), scores(9), 3, "train")
    chosen = np.sort(np.argsort(scores())[-180:])
    assert not np.array_equal(policy.plan(2).ids, chosen)
    for epoch in (3, 10):
        np.testing.assert_array_equal(policy.plan(epoch).ids, chosen)
    fixed = make_policy("static", **BASE, score=None, score_from=3)  # no scores to wait for
    np.testing.assert_array_equal(fixed.plan(1).ids, fixed.plan(5).ids)


def test_losses_met_in_uniform_epochs_count():
    for name in ("infobatch", "ucb", *dict(RECENT)):
        policy = make_policy(name, **BASE, score_from=4)
        for epoch in range(4):
            ids = policy.plan(epoch).ids
            policy.observe(ids, scores()[ids], epoch, "train")
        assert np.isfinite(policy.scores).all()
        if name == "ucb" or name.startswith("repb"):
            visits = sum(np.isin(np.arange(N), policy.plan(e).ids).astype(int) for e in range(4))
            np.testing.assert_array_equal(policy.visits, visits)
        assert [policy.rescore(e) for e in range(12)] == [None] * 12
    assert make_policy("infobatch", **BASE, score_from=4).cost(3).examples == 0.6


def test_without_warm_up_the_unselected_are_all():
    policy = make_policy("sadp", **BASE, warmup_epochs=0, rescore_every=2, rescore_who="unselected")
    np.testing.assert_array_equal(policy.rescore(0), np.arange(N))


def test_costs():
    assert make_policy("full", **BASE).theoretical_speedup() == 1
    assert make_policy("random", **BASE).theoretical_speedup() == pytest.approx(12 / (2 + 10 * 0.6))
    every = make_policy("sadp", **BASE, rescore_every=1)
    assert every.cost(0).total == 1
    assert every.cost(1).total == pytest.approx(0.6 + FORWARD_COST)
    assert every.theoretical_speedup() == pytest.approx(12 / (2 + 10 * 0.91))
    assert every.equal_compute_ratio() == pytest.approx(0.09)
    second = make_policy("sadp", **BASE, rescore_every=2, scoring_cost=0.15)
    assert second.theoretical_speedup() == pytest.approx(12 / (2 + 10 * 0.6 + 5 * 0.15))
    unselected = make_policy("sadp", **BASE, rescore_every=1, rescore_who="unselected")
    assert unselected.cost(1).scoring == 0  # the epoch before trained on all
    assert unselected.cost(2).scoring == pytest.approx(FORWARD_COST * 0.4)
    cold = make_policy("sadp", **BASE, rescore_every=2, rescore_who="unselected", warmup_epochs=0)
    assert cold.cost(0).scoring == FORWARD_COST
    static = make_policy("static", **BASE)
    assert static.theoretical_speedup() == pytest.approx(12 / (2 + 10 * 0.6 + FORWARD_COST))
    rival = make_policy("random", **(BASE | {"ratio": every.equal_compute_ratio()}))
    assert rival.theoretical_speedup() == pytest.approx(every.theoretical_speedup(), rel=1e-3)


def test_a_ratio_that_grows_is_linear_from_the_first_pruned_epoch_to_the_last():
    policy = scored("sadp", ratio=0.9, ratio_from=0.5)
    pruned = [len(policy.plan(e).ids) / N for e in range(1, 11)]
    np.testing.assert_allclose(pruned, np.linspace(0.5, 0.1, 10), atol=0.5 / N + 1e-9)
    assert policy.cost(1).examples == pytest.approx(0.5)
    assert scored("random", ratio=0.9, ratio_from=0.5).theoretical_speedup() == pytest.approx(
        12 / (2 + np.linspace(0.5, 0.1, 10).sum()), rel=1e-3
    )
    with pytest.raises(ValueError, match="ratio_from"):
        scored("sadp", ratio_from=1.0)
