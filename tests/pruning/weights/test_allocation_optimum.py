"""Allocation against brute force over all masks."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from tests.pruning.weights.weight_problems import (
    Weights,
    calibration_of,
    coefficient,
    phi,
    relaxed,
    rows,
    spent,
    tiny_rows,
)


def all_masks(model):
    """Every mask that empties no layer, as ``(masks, phi_L)``."""
    weights = [s.layer.weight.detach().numpy().ravel() for s in model.synapses()]
    per_layer = []
    for w in weights:
        options = [np.array(bits, dtype=bool) for bits in itertools.product([False, True], repeat=len(w))]
        per_layer.append([(o, phi(w, o)) for o in options if o.any()])
    for choice in itertools.product(*per_layer):
        yield [m for m, _ in choice], np.array([p for _, p in choice])


@settings(relaxed, max_examples=150)
@given(tiny_rows, st.lists(coefficient, min_size=3, max_size=3), st.floats(0.01, 0.99))
def test_no_mask_beats_the_weight_budget(values, c, part):
    model = Weights(values)
    c = c[: len(values)]
    everything = [(sum(m.sum() for m in masks), float(p @ np.array(c))) for masks, p in all_masks(model)]
    # Up to what keeping the largest weight of each layer costs.
    epsilon = part * min(d for kept, d in everything if kept == len(values))
    calibration = calibration_of(model, c=c)
    N = sum(map(len, values))
    best = min(kept for kept, d in everything if d <= epsilon * (1 - 1e-9))
    assume(epsilon > 0)
    if best == N:
        with pytest.raises(ValueError, match="single weight"):
            allocate(model, calibration, criterion="slamp", budget=epsilon * (1 - 1e-9) / sum(c))
        return
    allocation = allocate(model, calibration, criterion="slamp", budget=epsilon / sum(c))
    kept = sum(layer.kept for layer in allocation.layers)
    assert spent(model, allocation.masks, c) <= epsilon * (1 + 1e-9)
    assert kept <= best


@settings(relaxed, max_examples=150)
@given(tiny_rows, st.lists(coefficient, min_size=3, max_size=3), st.integers(0, 12))
def test_no_mask_beats_the_distortion_at_a_sparsity(values, c, pruned):
    model = Weights(values)
    c, N = c[: len(values)], sum(map(len, values))
    assume(pruned <= N - len(values))
    allocation = allocate(model, calibration_of(model, c=c), criterion="slamp", sparsity=pruned / N)
    assert sum(layer.kept for layer in allocation.layers) == N - pruned
    best = min(
        float(p @ np.array(c)) for masks, p in all_masks(model) if sum(m.sum() for m in masks) == N - pruned
    )
    assert spent(model, allocation.masks, c) <= best * (1 + 1e-9) + 1e-12
    assert allocation.budget * sum(c) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(relaxed, max_examples=150)
@given(
    tiny_rows,
    st.lists(coefficient, min_size=3, max_size=3),
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.floats(0.02, 0.98),
)
def test_synops_are_optimal_at_breakpoints_and_one_weight_off_between(values, c, price, part):
    model = Weights(values)
    c, price = np.array(c[: len(values)]), np.array(price[: len(values)])
    calibration = calibration_of(model, c=list(c), price=list(price))
    everything = [
        (float(sum(m.sum() * v for m, v in zip(masks, price, strict=True))), float(p @ c))
        for masks, p in all_masks(model)
    ]
    epsilon = part * max(d for _, d in everything)
    try:
        allocation = allocate(
            model, calibration, criterion="slamp", objective="synops", budget=epsilon / c.sum()
        )
    except ValueError:
        return
    kept = sum(layer.kept * v for layer, v in zip(allocation.layers, price, strict=True))
    used = spent(model, allocation.masks, c)
    assert used <= epsilon * (1 + 1e-9)
    # Between breakpoints: at most the largest price off what any masks reach.
    assert kept <= min(k for k, d in everything if d <= epsilon) + price.max() + 1e-9
    # At this breakpoint: nothing that costs no more saves more.
    assert kept <= min(k for k, d in everything if d <= used * (1 - 1e-12)) + 1e-9


@relaxed
@given(rows, st.data())
def test_synops_target_is_met_by_the_shortest_prefix(values, data):
    model = Weights(values)
    price = data.draw(st.lists(st.floats(0.1, 10), min_size=len(values), max_size=len(values)))
    fraction = data.draw(st.floats(0.05, 1))
    calibration = calibration_of(model, price=price)
    total = sum(v * len(row) for v, row in zip(price, values, strict=True))
    arguments = {"criterion": "slamp", "objective": "synops"}
    if sum(price) > fraction * total * (1 + 1e-9):
        with pytest.raises(ValueError, match="smallest possible"):
            allocate(model, calibration, synops_fraction=fraction, **arguments)
        return
    allocation = allocate(model, calibration, synops_fraction=fraction, **arguments)
    kept = sum(v * layer.kept for v, layer in zip(price, allocation.layers, strict=True))
    assert allocation.synops_fraction == pytest.approx(kept / total)
    assert kept <= fraction * total * (1 + 1e-9)
    pruned = sum(map(len, values)) - sum(layer.kept for layer in allocation.layers)
    if pruned:  # one weight fewer would not be enough
        N = sum(map(len, values))
        fewer = allocate(model, calibration, sparsity=(pruned - 1) / N, **arguments)
        kept = sum(v * layer.kept for v, layer in zip(price, fewer.layers, strict=True))
        assert kept > fraction * total * (1 - 1e-9)


@relaxed
@given(rows, st.lists(coefficient, min_size=4, max_size=4), st.floats(0.01, 3))
def test_budget_is_spent_to_the_last_weight(values, c, budget):
    model = Weights(values)
    c = c[: len(values)]
    calibration = calibration_of(model, c=c)
    try:
        allocation = allocate(model, calibration, criterion="slamp", budget=budget)
    except ValueError:  # beyond what the problem can spend, tested below
        return
    used = spent(model, allocation.masks, c) / sum(c)
    assert used <= budget * (1 + 1e-9)
    assert allocation.budget == pytest.approx(used, rel=1e-9, abs=1e-12)
    N, kept = sum(map(len, values)), sum(layer.kept for layer in allocation.layers)
    if kept > len(values):
        further = allocate(model, calibration, criterion="slamp", sparsity=(N - kept + 1) / N)
        assert further.budget > budget * (1 - 1e-9)
    again = allocate(model, calibration, criterion="slamp", budget=allocation.budget)
    assert again.masks == allocation.masks
