"""Squared gradients against one backward pass per example and class, and what they predict."""

import pytest
import torch
from torch import nn

from pruning.weights.calibration import calibrate
from pruning.weights.calibration_sums import CalibrationSums, squared_gradients
from tests.pruning.weights.test_calibration import Residual, Unfolded, convnet, frames

MEASURE = ("gradients", "fisher")


def one_by_one(model: nn.Module, x_TB: torch.Tensor) -> list[torch.Tensor]:
    """``sum_b sum_k (dy_bk / dw)^2`` by autograd, example by example and class by class."""
    weights = [s.layer.weight for s in model.synapses()]
    found = [torch.zeros_like(w) for w in weights]
    for b in range(x_TB.shape[1]):
        for k in range(3):
            y = model(x_TB[:, b : b + 1]).mean(0)[0, k]
            for total, g in zip(found, torch.autograd.grad(y, weights), strict=True):
                total += g.square()
    return found


@pytest.mark.parametrize(
    "model",
    [convnet(beta=0.9, reset="soft"), Residual().double(), Unfolded(False).double()],
    ids=["chain", "branches and groups", "linear over time"],
)
def test_the_mean_over_signs_is_the_sum_over_examples_and_classes(model):
    model.eval()
    x = frames(B=4, shape=(5,) if isinstance(model, Unfolded) else (2, 8, 8))
    synapses, draws = model.synapses(), 800
    generator = torch.Generator().manual_seed(0)
    totals = [torch.zeros_like(s.layer.weight) for s in synapses]
    for _ in range(draws):
        for total, square in zip(
            totals, squared_gradients(synapses, lambda: model(x), generator), strict=True
        ):
            total += square / draws
    for found, expected in zip(totals, one_by_one(model, x), strict=True):
        assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=0.1)
        largest = expected > 0.2 * expected.max()
        ratio = found[largest] / expected[largest]
        assert (ratio - 1).abs().max() < 0.35


def test_the_signs_of_one_example_and_class_do_not_matter():
    """With a single score the draw is exact."""
    model, x = convnet(), frames(B=1)
    synapses = model.synapses()

    def forward():
        return model(x)[..., :1]

    (*found,) = squared_gradients(synapses, forward, torch.Generator().manual_seed(3))
    expected = torch.autograd.grad(forward().mean(), [s.layer.weight for s in synapses])
    for square, g in zip(found, expected, strict=True):
        torch.testing.assert_close(square, g.square(), rtol=1e-9, atol=1e-18)


def test_layer_sums_are_the_weighted_sums_of_single_weights():
    model, x = convnet(), frames(B=20)
    sums = CalibrationSums.collect(model, [x], measure=MEASURE)
    again = CalibrationSums.collect(model, [x], measure=MEASURE)
    assert torch.equal(sums.to_vector(), again.to_vector())
    calibration = calibrate(model, [x], measure=MEASURE)
    values = []
    for s, layer in zip(model.synapses(), calibration.layers, strict=True):
        weighted = float((s.layer.weight.detach().square() * layer.fisher).sum())
        assert weighted == pytest.approx(float(sums.layers[s.name]["sensitivity"]) / 20, rel=1e-12)
        values.append(weighted**0.5)
    mean = torch.tensor(values).double().log().mean().exp()
    assert [layer.sensitivity for layer in calibration.layers] == pytest.approx(
        [value / float(mean) for value in values], rel=1e-6
    )


def test_batches_change_no_more_than_the_signs_do():
    model, x = convnet(), frames(B=256)
    a = calibrate(model, [x], measure_examples=256)
    b = calibrate(model, x.split(24, dim=1), measure_examples=256)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.sensitivity == pytest.approx(other.sensitivity, rel=0.2)


def test_frozen_weights_are_measured_too_and_nothing_is_left_behind():
    model, x = convnet(), frames()
    reference = calibrate(model, [x])
    model.requires_grad_(False)
    frozen = calibrate(model, [x])
    for a, b in zip(reference.layers, frozen.layers, strict=True):
        assert a.sensitivity == pytest.approx(b.sensitivity, rel=1e-12)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_independent_small_changes_of_the_head_move_the_scores_as_predicted():
    """The head is linear: Monte Carlo over perturbations in proportion to the weights."""
    model, x = convnet(), frames(B=256)
    model.eval()
    head = model.synapses()[-1].layer
    calibration = calibrate(model, [x], measure=["fisher"], measure_examples=256)
    predicted = float((head.weight.detach().square() * calibration.layers[-1].fisher).sum()) * 0.01
    reference, whole = model(x).mean(0).detach(), head.weight.detach().clone()
    changes = []
    for seed in range(200):
        noise = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed), dtype=whole.dtype)
        head.weight.data = whole * (1 + 0.1 * noise)
        changes.append(float((model(x).mean(0).detach() - reference).square().sum(1).mean()))
    assert sum(changes) / 200 == pytest.approx(predicted, rel=0.3)
