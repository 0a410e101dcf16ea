"""Squared gradients against one backward pass per example, and what they predict."""

import pytest
import torch
from torch import nn

from pruning.weights.calibration import calibrate
from pruning.weights.calibration_sums import CalibrationSums
from pruning.weights.gradients import signs
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.models import build
from tests.pruning.weights.test_calibration import Residual, Unfolded, convnet, frames

MEASURE = ("gradients", "fisher")


def one_by_one(model: nn.Module, x_TB: torch.Tensor) -> dict[str, torch.Tensor]:
    """By autograd, example by example."""
    synapses = model.synapses()
    found = {s.name: torch.zeros_like(s.layer.weight) for s in synapses}
    for b in range(x_TB.shape[1]):
        x = x_TB[:, b : b + 1]
        y = model(x).mean(0)
        total = (y * signs(x, y.shape[-1]).to(y)).sum()
        gradients = torch.autograd.grad(total, [s.layer.weight for s in synapses])
        for s, g in zip(synapses, gradients, strict=True):
            found[s.name] += g.square()
    return found


def networks():
    yield "convnet", convnet(), frames()
    yield "static input", convnet(), direct(frames()[0], 4)
    yield "soft reset", convnet(beta=0.9, reset="soft"), frames()
    yield "groups, strides, padding modes", Residual().double(), frames()
    yield "folded", Unfolded(True).double(), frames(shape=(5,))
    yield "unfolded, as many examples as steps", Unfolded(False).double(), frames(B=4, shape=(5,))
    yield "one step", convnet(), frames(T=1)


@pytest.mark.parametrize(("name", "model", "x"), networks(), ids=[name for name, *_ in networks()])
def test_equal_to_one_backward_pass_per_example(name, model, x):
    model.eval()
    sums = CalibrationSums.collect(model, [x], measure=MEASURE)
    for s in model.synapses():
        expected = one_by_one(model, x)[s.name]
        row = sums.layers[s.name]
        torch.testing.assert_close(row["fisher"].view(expected.shape), expected, rtol=1e-9, atol=1e-15)
        weighted = float((expected * s.layer.weight.detach().square()).sum())
        assert float(row["sensitivity"]) == pytest.approx(weighted, rel=1e-9)


@pytest.mark.parametrize("name", ["sew_resnet18", "ms_resnet18", "spikformer"])
def test_deep_networks(name):
    torch.manual_seed(0)
    model = build(name, input_shape=(2, 16, 16), num_classes=3).double()
    x = (torch.rand(2, 3, 2, 16, 16, dtype=torch.float64) * 3).floor()
    reestimate(model, [x])
    model.eval()
    sums, expected = CalibrationSums.collect(model, [x], measure=["fisher"]), one_by_one(model, x)
    for s in model.synapses():
        found = sums.layers[s.name]["fisher"].view(s.layer.weight.shape)
        torch.testing.assert_close(found, expected[s.name], rtol=1e-7, atol=1e-15)


def test_frozen_weights_are_measured_too_and_nothing_is_left_behind():
    model, x = convnet(), frames()
    reference = calibrate(model, [x])
    model.requires_grad_(False)
    frozen = calibrate(model, [x])
    for a, b in zip(reference.layers, frozen.layers, strict=True):
        assert a.sensitivity == pytest.approx(b.sensitivity, rel=1e-12)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_signs_are_balanced_and_belong_to_the_example():
    x = torch.randn(3, 400, 7)
    v = signs(x, 10)
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    assert v.mean().abs() < 0.1
    products = (v.T @ v / 400).fill_diagonal_(0)
    assert products.abs().max() < 0.25
    order = torch.randperm(400)
    assert torch.equal(signs(x[:, order], 10), v[order])


def test_independent_small_changes_of_a_layer_move_the_scores_as_predicted():
    """The head is linear: Monte Carlo over perturbations in proportion to the weights."""
    model, x = convnet(), frames(B=64)
    model.eval()
    head = model.synapses()[-1].layer
    calibration = calibrate(model, [x], measure=["fisher"])
    predicted = float((head.weight.detach().square() * calibration.layers[-1].fisher).sum()) * 0.01
    reference, whole = model(x).mean(0).detach(), head.weight.detach().clone()
    changes = []
    for seed in range(200):
        noise = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed), dtype=whole.dtype)
        head.weight.data = whole * (1 + 0.1 * noise)
        changes.append(float((model(x).mean(0).detach() - reference).square().sum(1).mean()))
    assert sum(changes) / 200 == pytest.approx(predicted, rel=0.15)
