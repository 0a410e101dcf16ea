"""The common order against a sort by hand, ties, and suffix sums at size."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from pruning.weights.criteria import CRITERIA
from pruning.weights.order import suffix_costs
from tests.pruning.weights.weight_problems import Weights

relaxed = settings(deadline=None)


def values_of(seed: int, ties: bool) -> list[list[float]]:
    g = np.random.default_rng(seed)
    rows = [g.standard_t(2, size=n) * 10 ** g.normal() for n in (300, 1, 40, 700)]
    if ties:
        rows = [np.round(row, 0) for row in rows]
    return [row.tolist() for row in rows]


@relaxed
@given(st.integers(0, 10**6), st.booleans(), st.floats(0, 0.99), st.sampled_from(["lamp", "magnitude"]))
def test_equals_a_global_stable_sort(seed, ties, sparsity, criterion):
    model = Weights(values_of(seed, ties))
    rows = [np.array(v) for v in values_of(seed, ties)]
    scores, owners = [], []
    for i, row in enumerate(rows):
        e = np.sort(np.abs(row)) ** 2
        if criterion == "lamp":
            kept = [e[k + 1 :].sum() for k in range(len(e) - 1)]
            e = np.array(
                [-np.log1p(-e[k] / (e[k] + kept[k])) if e[k] + kept[k] else 0 for k in range(len(e) - 1)]
            )
        else:
            e = e[:-1]
        scores.append(e)
        owners.append(np.full(len(e), i))
    order = np.argsort(np.round(np.concatenate(scores), 13), kind="stable")
    wanted = round(sparsity * 1041)
    counts = np.bincount(np.concatenate(owners)[order][:wanted], minlength=4)
    got = allocate(model, criterion=criterion, sparsity=sparsity)
    removed = [layer.numel - layer.kept for layer in got.layers]
    # Rounding may exchange one weight between layers whose scores tie.
    assert sum(removed) == wanted
    if not ties:
        assert removed == counts.tolist()


def test_suffix_form_is_finite_and_monotone_at_a_million():
    """Where a float32 `sum - cumsum` exceeds 1 (and its log1p is NaN), the suffix sum does not."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(1_000_000, generator=g).abs().numpy()
    w.sort()
    naive = w**2 / (np.sum(w**2, dtype=np.float32) - np.cumsum(w**2, dtype=np.float32) + w**2)
    assert naive.max() != 1.0
    cost = suffix_costs(w.astype(np.float64) ** 2)
    assert np.isinf(cost[-1])
    assert np.isfinite(cost[:-1]).all()
    assert (np.diff(cost[:-1]) >= -1e-15).all()
    exact = -np.log1p(-(w[500_000].astype(np.float64) ** 2) / np.sum(w[500_000:].astype(np.float64) ** 2))
    assert cost[500_000] == pytest.approx(exact, rel=1e-12)


def test_every_criterion_is_named_by_its_function():
    assert {name: function.__name__ for name, function in CRITERIA.items()} == {n: n for n in CRITERIA}


def test_memory_is_some_numbers_a_weight():
    g = torch.Generator().manual_seed(0)
    model = Weights([[1.0]])
    model.layers.extend(torch.nn.Linear(100_000, 1, bias=False) for _ in range(30))
    for layer in model.layers[1:]:
        layer.weight.data = torch.randn(1, 100_000, generator=g)
    tracemalloc.start()
    result = allocate(model, criterion="lamp", sparsity=0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.sparsity == pytest.approx(0.9, abs=1e-6)
    assert peak < 64 * 3_000_000
