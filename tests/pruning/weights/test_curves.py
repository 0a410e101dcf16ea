"""Measured curves against definitions, and their allocation against brute force over the grids."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration, calibrate
from pruning.weights.calibration_sums import CalibrationSums
from pruning.weights.curves import DENSITIES, Curve, kept_of, measure_curves
from pruning.weights.masks import Masks
from tests.pruning.weights.test_calibration import convnet, frames
from tests.pruning.weights.weight_problems import Weights, calibration_of

relaxed = settings(deadline=None)


# --- measuring -----------------------------------------------------------------------------------------


def with_batch_statistics(model, x_TB):
    """The same network in train mode: norms use the batch's own statistics."""
    with torch.no_grad():
        return copy.deepcopy(model).train()(x_TB)


def change_of_the_logits(model, x, masks=None):
    """A function of (layer, weights it keeps): the change over the variance, all others under ``masks``."""
    dense = with_batch_statistics(model, x)
    variance = float(((dense - dense.mean(1, keepdim=True)) ** 2).mean(1).sum(1).mean())

    def change(layer: int, kept: int) -> torch.Tensor:
        pruned = copy.deepcopy(model)
        for i, s in enumerate(pruned.synapses()):
            weight = s.layer.weight.data
            if i == layer:
                smallest = weight.abs().flatten().argsort(stable=True)[: weight.numel() - kept]
                weight.view(-1)[smallest] = 0
            elif masks is not None:
                weight.mul_(masks[s.name])
        change = with_batch_statistics(pruned, x) - dense
        return change.square().sum((1, 2)) / (x.shape[0] * x.shape[1] * variance)

    return change


def test_curves_are_the_change_of_the_logits_over_their_variance():
    model, x = convnet(), frames(B=8)
    synapses = model.synapses()
    found, change = measure_curves(model, synapses, x), change_of_the_logits(model, x)
    for i, s in enumerate(synapses):
        numel = s.layer.weight.numel()
        assert float(change(i, numel).abs().max()) == 0
        for density, row in zip(DENSITIES, found[i], strict=True):
            torch.testing.assert_close(row, change(i, kept_of(density, numel)), rtol=1e-9, atol=1e-12)


def test_weights_statistics_and_modes_are_put_back():
    model, x = convnet().train(), frames(B=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    calibrate(model, [x], measure=["curves"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


def test_curves_merge_over_workers_and_cover_the_first_examples():
    model, x = convnet(), frames(B=12)
    sums = [
        CalibrationSums.collect(model, part.split(3, 1), measure=["curves"], measure_examples=5)
        for part in (x[:, :6], x[:, 6:])
    ]
    vector = sums[0].to_vector() + sums[1].to_vector()
    both = CalibrationSums.from_vector(model, vector, 4, ["curves"])
    merged = Calibration.from_sums(model, both)
    parts = [measure_curves(model, model.synapses(), x[:, a : a + 5]) for a in (0, 6)]
    for layer, one, other in zip(merged.layers, *parts, strict=True):
        assert torch.allclose(torch.tensor(layer.curve.distortion, dtype=torch.float64), (one + other) / 2)


def test_pruned_networks_are_measured_over_their_survivors():
    model, x = convnet(), frames(B=8)
    masks = allocate(model, criterion="lamp", sparsity=0.7).masks
    masks.apply_(model)
    calibration = calibrate(model, [x], measure=["curves"])
    next_ = allocate(model, calibration, criterion="slamp_curve", sparsity=0.8, previous=masks)
    assert next_.masks & masks == next_.masks
    assert next_.masks.sparsity == pytest.approx(0.8, abs=0.01)


def test_clear_errors():
    model = convnet()
    with pytest.raises(ValueError, match="at least two examples"):
        calibrate(model, [frames(B=1)], measure=["curves"])
    with pytest.raises(ValueError, match=r"needs curves; calibrate with measure=\['curves'\]"):
        allocate(model, calibrate(model, [frames()]), criterion="slamp_curve", sparsity=0.5)
    for s in model.synapses()[-1:]:
        s.layer.weight.data.zero_()
    with pytest.raises(ValueError, match="the same for all examples"):
        calibrate(model, [frames()], measure=["curves"])


# --- hulls ---------------------------------------------------------------------------------------------

GRID = (0.75, 0.5, 0.25)


def curves(draw, layers, T):
    value = st.floats(0, 5).map(lambda v: round(v, 3))
    rows = st.lists(st.lists(value, min_size=T, max_size=T), min_size=3, max_size=3)
    return [Curve(tuple(map(tuple, draw(rows))), GRID) for _ in range(layers)]


@relaxed
@given(st.data(), st.integers(2, 40))
def test_the_hull_is_the_largest_convex_function_below_the_points(data, n):
    (curve,) = curves(data.draw, 1, 2)
    slopes = curve.slopes(n)
    counts = np.arange(n)
    spent = slopes.spent(counts)
    assert (np.diff(spent, 2, axis=0) >= -1e-9).all()
    assert (np.diff(spent, axis=0) >= 0).all()
    assert (spent[0] == 0).all()
    points = {0: np.zeros(2)}
    for density, row in zip(GRID, curve.distortion, strict=True):
        points.setdefault(n - kept_of(density, n), np.array(row))
    x = sorted(points)
    for t in range(2):
        y = [points[k][t] for k in x]
        hull = [
            min(
                y[a] + (y[b] - y[a]) * (k - x[a]) / (x[b] - x[a]) if b > a else y[a]
                for a in range(len(x))
                for b in range(a, len(x))
                if x[a] <= k <= x[b] and (b > a or x[a] == k)
            )
            for k in range(x[-1] + 1)
        ]
        if all(b >= a for a, b in itertools.pairwise(hull)):  # slopes below 0 are cut off
            np.testing.assert_allclose(spent[: x[-1] + 1, t], hull, atol=1e-9)


def test_beyond_the_last_density_every_halving_costs_the_same():
    curve = Curve(((0.0,), (0.5,), (1.0,)), GRID)
    slopes = curve.slopes(1024)
    spent = slopes.spent(1024 - np.array([256, 128, 64, 32]))[:, 0]
    np.testing.assert_allclose(np.diff(spent), np.diff(spent)[0], rtol=1e-6)
    assert slopes.spent(np.array([1024 - 256]))[0, 0] == pytest.approx(1.0)


# --- allocation against brute force --------------------------------------------------------------------


def tiny(data, T):
    sizes = data.draw(st.lists(st.integers(2, 5), min_size=2, max_size=3))
    model = Weights([[1.0 + j for j in range(n)] for n in sizes])
    found = curves(data.draw, len(sizes), T)
    price = data.draw(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=3, max_size=3))[: len(sizes)]
    calibration = calibration_of(model, curves=found, price=price, T=T)
    spent = [curve.slopes(n).spent(np.arange(n)) for curve, n in zip(found, sizes, strict=True)]
    every = [
        (np.array(k), np.sum([d[i] for d, i in zip(spent, k, strict=True)], axis=0))
        for k in itertools.product(*map(range, sizes))
    ]
    return model, calibration, sizes, np.array(price), every


@settings(relaxed, max_examples=150)
@given(st.data())
def test_no_masks_have_a_smaller_sum_at_a_sparsity(data):
    model, calibration, sizes, _, every = tiny(data, 3)
    pruned = data.draw(st.integers(0, sum(sizes) - len(sizes)))
    allocation = allocate(model, calibration, criterion="slamp_curve", sparsity=pruned / sum(sizes))
    best = min(d.sum() for k, d in every if k.sum() == pruned)
    assert allocation.budget == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert sum(allocation.step_distortion) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(relaxed, max_examples=150)
@given(st.data(), st.floats(0.05, 0.95))
def test_a_budget_removes_all_but_one_weights_worth_of_synops(data, part):
    model, calibration, _sizes, price, every = tiny(data, 2)
    epsilon = part * max(d.sum() for _, d in every)
    assume(epsilon > 0)
    try:
        allocation = allocate(model, calibration, criterion="slamp_curve", objective="synops", budget=epsilon)
    except ValueError:
        return
    removed = np.array([layer.numel - layer.kept for layer in allocation.layers])
    used = next(d.sum() for k, d in every if (k == removed).all())
    assert used <= epsilon * (1 + 1e-9)
    best = max(k @ price for k, d in every if d.sum() <= epsilon)
    assert removed @ price >= best - price.max() - 1e-9


@settings(relaxed, max_examples=150)
@given(st.data())
def test_the_least_maximum_over_timesteps_and_its_gap(data):
    model, calibration, sizes, _, every = tiny(data, 3)
    pruned = data.draw(st.integers(1, sum(sizes) - len(sizes)))
    arguments = {"criterion": "slamp_curve", "sparsity": pruned / sum(sizes)}
    allocation = allocate(model, calibration, budget_over="max_t", **arguments)
    best = min(d.max() for k, d in every if k.sum() == pruned)
    worst = max(allocation.step_distortion)
    assert best <= worst * (1 + 1e-9) + 1e-12
    assert worst * (1 - allocation.duality_gap) <= best * (1 + 1e-9) + 1e-12
    by_sum = allocate(model, calibration, **arguments)
    assert worst <= max(by_sum.step_distortion) * (1 + 1e-9) + 1e-12
    assert allocation.budget == pytest.approx(3 * worst)


@settings(relaxed, max_examples=150)
@given(st.data(), st.floats(0.05, 0.95))
def test_every_timestep_stays_within_its_part_of_the_budget(data, part):
    model, calibration, _sizes, _, every = tiny(data, 2)
    epsilon = part * 2 * max(d.max() for _, d in every)
    assume(epsilon > 0)
    try:
        allocation = allocate(
            model, calibration, criterion="slamp_curve", budget=epsilon, budget_over="max_t"
        )
    except ValueError:
        return
    removed = sum(layer.numel - layer.kept for layer in allocation.layers)
    best = max(k.sum() for k, d in every if (d <= epsilon / 2).all())
    assert max(allocation.step_distortion) <= epsilon / 2 * (1 + 1e-9)
    assert removed <= best <= removed * (1 + allocation.duality_gap) + 1e-9


@relaxed
@given(st.data())
def test_one_measurement_serves_nested_targets(data):
    model, calibration, sizes, _, _ = tiny(data, 2)
    calibration = Calibration.from_dict(calibration.to_dict())
    before = Masks.of(model)
    for pruned in range(sum(sizes) - len(sizes) + 1):
        masks = allocate(model, calibration, criterion="slamp_curve", sparsity=pruned / sum(sizes)).masks
        assert masks & before == masks
        before = masks
