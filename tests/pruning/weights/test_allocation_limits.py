"""What allocation protects, and what it refuses."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from pruning.weights.criteria import CRITERIA
from pruning.weights.masks import Masks
from tests.pruning.weights.weight_problems import (
    Weights,
    calibration_of,
    relaxed,
    rows,
)


@relaxed
@given(st.integers(0, 10**6), st.floats(0.5, 0.9999))
def test_no_layer_is_emptied_and_the_largest_goes_last(seed, sparsity):
    g = np.random.default_rng(seed)
    values = [list(g.normal(size=n) * 10 ** g.normal()) for n in (40, 3, 120, 1)]
    model = Weights(values)
    c = list(10 ** g.normal(size=4))
    N = sum(map(len, values))
    sparsity = min(sparsity, (N - 4) / N)
    for criterion in CRITERIA:
        masks = allocate(
            model, calibration_of(model, c=c, price=c), criterion=criterion, sparsity=sparsity
        ).masks
        for s in model.synapses():
            mask, w = masks[s.name].ravel(), s.layer.weight.detach().abs().ravel()
            assert mask.any()
            if criterion != "wanda":
                assert mask[w.argmax()]
                assert w[mask].min() >= w[~mask].max() if (~mask).any() else True


@relaxed
@given(
    rows,
    st.integers(1, 6),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from(sorted(CRITERIA)),
    st.floats(0, 0.99),
)
def test_protection_holds_and_the_reachable_limit_is_exact(values, min_keep, excluded, criterion, sparsity):
    model = Weights(values)
    calibration = calibration_of(model)
    names = [s.name for s in model.synapses()]
    exclude = [name for name, out in zip(names, excluded, strict=False) if out]
    room = [
        0 if name in exclude else max(0, len(row) - min_keep) for name, row in zip(names, values, strict=True)
    ]
    N = sum(map(len, values))
    arguments = {
        "criterion": criterion,
        "min_keep": min_keep,
        "exclude": exclude,
        "sparsity": sparsity,
    }
    if round(sparsity * N) > sum(room):
        with pytest.raises(ValueError, match="largest possible is") as caught:
            allocate(model, calibration, **arguments)
        largest = float(str(caught.value).rsplit(" ", 1)[1])
        assert largest == pytest.approx(sum(room) / N, abs=1e-6)
        assert sum(
            layer.kept for layer in allocate(model, calibration, **arguments | {"sparsity": largest}).layers
        )
        return
    allocation = allocate(model, calibration, **arguments)
    for layer, limit in zip(allocation.layers, room, strict=True):
        assert layer.numel - layer.kept <= limit
        assert layer.at_minimum == (limit > 0 and layer.numel - layer.kept == limit)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_zero_and_constant_layers_are_safe(criterion):
    values = [[0.0] * 6, [1.0] * 6, list(np.linspace(0.1, 2, 12))]
    model = Weights(values)
    allocation = allocate(model, calibration_of(model), criterion=criterion, sparsity=0.5)
    assert sum(layer.kept for layer in allocation.layers) == 12
    assert all(layer.kept >= 1 for layer in allocation.layers)
    assert all(np.isfinite(layer.distortion) for layer in allocation.layers)
    if criterion in ("lamp", "slamp", "magnitude", "fisher"):
        assert allocation.layers[0].kept == 1  # zeros go first, and cost nothing
        assert allocation.layers[0].distortion == 0
    # Equal weights go by index.
    kept = allocation.masks["layers.1"][0].tolist()
    assert kept == sorted(kept)


def network():
    model = Weights([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    return model, calibration_of(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"sparsity": 0.5, "budget": 0.1}, "exactly one"),
        ({"sparsity": 1.0}, r"sparsity: 1.0"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity": 0.9}, "largest possible is 0.66666"),
        ({"budget": 0}, "budget: 0"),
        ({"budget": -1.0}, "budget: -1"),
        ({"budget": float("nan")}, "budget: nan"),
        ({"budget": 1e-6}, r"budget: 1e-06 does not pay for a single weight; the nearest possible is 0.0370"),
        ({"budget": 1e-6, "budget_over": "max_t", "criterion": "slamp_curve"}, "nearest possible is"),
        ({"budget": 0.1, "budget_over": "max_t"}, "max_t needs the distortion of every timestep"),
        ({"budget": 1e-6, "exclude": ["layers.0", "layers.1"]}, "nothing to prune"),
        ({"budget": 50.0}, r"largest possible is 0\.\d+"),
        ({"budget": 50.0, "budget_over": "max_t", "criterion": "slamp_curve"}, r"largest possible is \d"),
        ({"synops_fraction": 0.0}, "synops_fraction: 0.0"),
        ({"synops_fraction": 0.1}, "smallest possible is 0.33333"),
        ({"sparsity": 0.5, "criterion": "lmap"}, "criterion: 'lmap' is unknown; choose one of slamp"),
        ({"sparsity": 0.5, "objective": "watts"}, "objective"),
        ({"sparsity": 0.5, "budget_over": "time"}, "budget_over"),
        ({"sparsity": 0.5, "exclude": ["layers.7"]}, r"exclude: layer 'layers.7' is unknown.*layers.0"),
        ({"sparsity": 0.5, "min_keep": 0}, "min_keep"),
        ({"sparsity": 0.5, "min_keep": 1.5}, "min_keep"),
    ],
)
def test_refusals_name_the_field_and_the_remedy(arguments, message):
    model, calibration = network()
    with pytest.raises(ValueError, match=message):
        allocate(model, calibration, **arguments)


def test_the_nearest_budgets_that_errors_name_are_possible():
    model, calibration = network()
    for budget, over in itertools.product((1e-6, 50.0), ("sum", "max_t")):
        arguments = {"criterion": "slamp_curve", "budget": budget, "budget_over": over}
        with pytest.raises(ValueError, match="possible is") as caught:
            allocate(model, calibration, **arguments)
        nearest = float(str(caught.value).rsplit(" ", 1)[1])
        assert allocate(model, calibration, **arguments | {"budget": nearest}).sparsity > 0


@pytest.mark.parametrize("criterion", ["slamp", "wanda", "slamp_curve", "fisher"])
def test_missing_or_foreign_calibration_is_refused(criterion):
    model, calibration = network()
    with pytest.raises(ValueError, match="calibration"):
        allocate(model, criterion=criterion, sparsity=0.5)
    for arguments in ({"objective": "synops", "sparsity": 0.5}, {"synops_fraction": 0.5}):
        with pytest.raises(ValueError, match="calibration"):
            allocate(model, criterion="lamp", **arguments)
    with pytest.raises(ValueError, match="other layers"):
        allocate(Weights([[1.0, 2.0]]), calibration, sparsity=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value):
    model, calibration = network()
    model.layers[1].weight.data[0, 1] = value
    with pytest.raises(ValueError, match=r"layers\.1: weights are not finite"):
        allocate(model, calibration, sparsity=0.5)


def test_previous_masks_are_checked():
    model, calibration = network()
    masks = allocate(model, calibration, sparsity=0.5).masks
    with pytest.raises(ValueError, match=r"below the 0\.5"):
        allocate(model, calibration, sparsity=0.3, previous=masks)
    with pytest.raises(ValueError, match=r"layers\.0"):
        allocate(model, calibration, sparsity=0.3, previous=Masks.of(Weights([[1.0, 2.0]])))
    unchanged = allocate(model, calibration, synops_fraction=0.9, previous=masks)
    assert unchanged.masks == masks
    assert unchanged.budget == 0
