"""Every policy, and one that has seen scores."""

import numpy as np

from pruning.examples.policies import make_policy

N = 300
BASE = {"num_examples": N, "ratio": 0.4, "seed": 7, "epochs": 12}
UNBIASED = [
    ("random", {}),
    ("el2n", {}),
    ("loss", {}),
    ("sadp", {}),
    ("infobatch", {}),
    ("infobatch_matched", {}),
]
RECENT = [(name, {}) for name in ("seta", "seta_matched", "repb", "repb_matched", "orderdp")]
EVERY = [*UNBIASED, ("full", {}), ("static", {}), ("static", {"score": None}), ("ucb", {}), *RECENT]


def scores(seed=0, n=N):
    return np.random.default_rng(seed).lognormal(size=n)


def scored(name, **options):
    policy = make_policy(name, **(BASE | options))
    ids = np.arange(policy.settings.num_examples)
    if policy.settings.present is not None:
        ids = ids[policy.settings.present]
    policy.observe(ids, scores(n=len(ids)), 1, "pass")
    return policy


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.weights, b.weights)
    assert (a.epoch, a.full, a.mean_score_age) == (b.epoch, b.full, b.mean_score_age)
