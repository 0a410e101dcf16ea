import copy
import json
from math import log

import pytest
import torch
from torch import nn

from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration, calibrate, relative_spread
from pruning.weights.calibration_sums import CalibrationSums
from snn.activity import measure
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.layers import Folded, SpikingLayer, Synapses
from snn.models import SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters
from snn.surrogate import Surrogate


def randomise_norms(model: nn.Module) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2.0)
            nn.init.uniform_(m.bias, 0.0, 0.8)
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.2, 2)
    return model


def convnet(seed=0, **neuron) -> SpikingNetwork:
    torch.manual_seed(seed)
    p = NeuronParameters(**neuron)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=3, neuron=p, channels=(4, 6), hidden=(8,))
    return randomise_norms(model.double()).eval()


def numbers(layer) -> dict[str, torch.Tensor]:
    return {
        k: torch.tensor(v, dtype=torch.float64)
        for k, v in vars(layer).items()
        if k not in ("name", "sensitivity") and v is not None
    }


def frames(B=6, T=4, seed=1, shape=(2, 8, 8)) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(T, B, *shape, generator=g, dtype=torch.float64).mul(3).floor()


@torch.no_grad()
def oracle(model: SpikingNetwork, x_TB: torch.Tensor) -> dict[str, dict]:
    """Squared inputs and spikes step by step, for a chain of spiking layers."""
    found, signal = {}, x_TB
    for block in [*model.features, *model.readout]:
        if isinstance(block, Folded):
            signal = torch.stack([block.module(x) for x in signal])
            continue
        layer = block.weight_layer if isinstance(block, SpikingLayer) else block
        channels = signal.square().mean((0, 1))
        channels = channels.flatten(1).sum(1) if channels.ndim > 1 else channels
        rate = None
        if isinstance(block, SpikingLayer):
            p = block.neuron.constants
            current = torch.stack([block.norm(layer(x)) for x in signal])
            v, spikes = torch.zeros_like(current[0]), []
            for c in current:
                u = p.beta * v + p.gain * c
                s = (u >= p.theta).double()
                v = u * (1 - s) if p.reset == "hard" else u - p.theta * s
                spikes.append(s)
            signal = torch.stack(spikes)
            rate = signal.flatten(1).mean(1)
        found[id(layer)] = {"channels": channels, "rate": rate}
    return {s.name: found[id(s.layer)] for s in model.synapses()}


@pytest.mark.parametrize(
    "neuron",
    [
        {},
        {"beta": 0.9, "reset": "soft", "theta": 0.7},
        {"beta": 0.3, "decay_input": True, "theta": 0.5},
    ],
)
def test_statistics_equal_the_definitions(neuron):
    model, x = convnet(**neuron), frames()
    calibration = calibrate(model, [x], measure=())
    for name, expected in oracle(model, x).items():
        layer = calibration[name]
        assert layer.sensitivity is None
        torch.testing.assert_close(
            torch.tensor(layer.channels, dtype=torch.float64), expected["channels"], rtol=1e-9, atol=1e-12
        )
        if expected["rate"] is not None:
            torch.testing.assert_close(
                torch.tensor(layer.rate_t, dtype=torch.float64), expected["rate"], rtol=1e-9, atol=0
            )
            assert layer.firing_rate == pytest.approx(float(expected["rate"].mean()))


def test_prices_are_the_operations_that_activity_counts():
    model, x = convnet(), frames()
    calibration, activity = calibrate(model, [x]), measure(model, [x])
    for layer in activity.layers:
        assert calibration[layer.name].price == pytest.approx(layer.dense_synops / layer.weights, rel=1e-12)
    first = measure(model, [direct(x[0], 4)]).layers[0]
    assert calibrate(model, [direct(x[0], 4)]).layers[0].price == pytest.approx(
        first.dense_synops / first.weights, rel=1e-12
    )


def test_static_input_equals_its_copies():
    model, x = convnet(beta=0.7), frames()[0]
    a = calibrate(model, [direct(x, 4)])
    b = calibrate(model, [x.expand(4, *x.shape).contiguous()])
    for one, other in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(numbers(one), numbers(other), rtol=1e-12, atol=1e-15)


def test_batch_size_order_and_workers_do_not_matter():
    model, x = convnet(), frames(B=12)
    one = CalibrationSums.collect(model, [x]).to_vector()
    singles = list(x.split(1, dim=1))
    many = CalibrationSums.collect(model, reversed(singles)).to_vector()
    torch.testing.assert_close(one, many, rtol=1e-11, atol=1e-15)
    shares = [CalibrationSums.collect(model, s) for s in (singles[:1], singles[1:5], singles[5:])]
    added = sum(s.to_vector() for s in [*shares, CalibrationSums.collect(model, [], T=4)])
    torch.testing.assert_close(one, added, rtol=1e-11, atol=1e-15)
    again = CalibrationSums.from_vector(model, added, 4)
    assert torch.equal(again.to_vector(), added)
    a, b = Calibration.from_sums(model, again), calibrate(model, [x], measure=())
    for p, q in zip(a.layers, b.layers, strict=True):
        assert p.price == pytest.approx(q.price, rel=1e-12)
        assert p.channels == pytest.approx(q.channels, rel=1e-12)
    assert a.examples == 12


def test_rescaling_weights_with_running_statistics_changes_nothing():
    model, x = convnet(), frames()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for s in scaled.synapses():
            if s.norm is not None:
                s.layer.weight.mul_(3.0)
                s.norm.running_mean.mul_(3.0)
                s.norm.running_var.mul_(9.0).add_(8 * s.norm.eps)
    for a, b in zip(calibrate(model, [x]).layers, calibrate(scaled, [x]).layers, strict=True):
        assert a.sensitivity == pytest.approx(b.sensitivity, rel=1e-9)
        torch.testing.assert_close(numbers(a), numbers(b), rtol=1e-9, atol=1e-12)


def test_rescaling_the_threshold_the_affine_norm_and_the_surrogate_changes_nothing():
    """The surrogate derivative is a function of the distance to the threshold, in the potential's unit."""
    model, x = convnet(theta=1.0, surrogate=Surrogate("atan", 2.0)), frames()
    scaled = convnet(theta=2.5, surrogate=Surrogate("atan", 2.0 / 2.5))
    scaled.load_state_dict(model.state_dict())
    with torch.no_grad():
        for s in scaled.synapses():
            if s.norm is not None:
                s.norm.weight.mul_(2.5)
                s.norm.bias.mul_(2.5)
    for a, b in zip(calibrate(model, [x]).layers, calibrate(scaled, [x]).layers, strict=True):
        assert a.sensitivity == pytest.approx(b.sensitivity, rel=1e-6)
        torch.testing.assert_close(numbers(a), numbers(b), rtol=1e-9, atol=1e-12)


def test_layers_without_a_gradient_have_coefficient_one_and_stay_outside_the_mean():
    model, x = convnet(), frames()
    reference = calibrate(model, [x])
    with torch.no_grad():
        model.synapses()[0].layer.weight.zero_()
    calibration = calibrate(model, [x])
    first, *rest = calibration.layers
    assert first.sensitivity == 1.0
    assert sum(log(layer.sensitivity) for layer in rest) == pytest.approx(0, abs=1e-12)
    assert [layer.sensitivity for layer in rest] != [layer.sensitivity for layer in reference.layers[1:]]


class Residual(nn.Module):
    """Two layers whose currents add up before one neuron, and a grouped, padded convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", groups=2)
        self.skip = nn.Conv2d(2, 4, 1)
        self.first, self.second = LIF(), LIF(NeuronParameters(beta=0.9))
        self.head = nn.Linear(4, 3)
        nn.init.constant_(self.a.bias, 0.5)

    def forward(self, x_TB):
        T, B = x_TB.shape[:2]
        x = x_TB.flatten(0, 1)
        s = self.first(self.a(x).unflatten(0, (T, B)))
        y = self.b(s.flatten(0, 1)) + self.skip(x)
        return self.head(self.second(y.unflatten(0, (T, B))).mean((-1, -2)))

    def synapses(self):
        return [
            Synapses("a", self.a, None, self.first),
            Synapses("b", self.b, None, self.second),
            Synapses("skip", self.skip, None, self.second),
        ]


def test_layers_of_one_neuron_share_its_statistics():
    model, x = Residual().double(), frames()
    calibration = calibrate(model, [x])
    assert calibration["b"].rate_t == calibration["skip"].rate_t != calibration["a"].rate_t
    assert calibration["skip"].channels == calibration["a"].channels


class Unfolded(nn.Module):
    """A network of two linear layers, which run on ``[T, B, ...]`` or folded."""

    def __init__(self, fold):
        super().__init__()
        torch.manual_seed(0)
        self.fold = fold
        self.first, self.neuron, self.readout = nn.Linear(5, 6), LIF(), nn.Sequential(nn.Linear(6, 3))

    def forward(self, x_TB):
        def run(layer, x_TB):
            return layer(x_TB.flatten(0, 1)).unflatten(0, x_TB.shape[:2]) if self.fold else layer(x_TB)

        return run(self.readout, self.neuron(run(self.first, x_TB)))

    def synapses(self):
        return [
            Synapses("first", self.first, None, self.neuron),
            Synapses("readout.0", self.readout[0], None, None),
        ]


@pytest.mark.parametrize("B", [6, 4])
def test_statistics_do_not_depend_on_how_a_network_folds_time(B):
    x = frames(B=B, T=4, shape=(5,))
    a, b = (calibrate(Unfolded(fold).double(), [x]) for fold in (True, False))
    for one, other in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(numbers(one), numbers(other), rtol=1e-12, atol=0)


def test_modes_and_weights_are_restored():
    model = convnet().train()
    model.features[1].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate(model, [frames()])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="batches"):
        calibrate(model, [frames(), frames(T=3)])
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_survives_json():
    calibration = calibrate(convnet(), [frames()], measure=["gradients", "fisher", "curves"])
    assert calibration.layers[0].curve is not None
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_spread_over_draws():
    model = convnet()
    draws = [calibrate(model, [frames(seed=s)]) for s in range(3)]
    spread = relative_spread(draws)
    name = draws[0].layers[1].name
    c = [d[name].sensitivity for d in draws]
    assert spread[name] == pytest.approx(max(abs(v - sum(c) / 3) for v in c) / (sum(c) / 3))
    assert relative_spread([draws[0], draws[0]])[name] == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one"),
        ([torch.zeros(4, 0, 2, 8, 8).double()], "at least one example"),
        ([torch.zeros(4)], r"\[T, B"),
        ([frames(shape=(3, 8, 8))], "features.0.weight_layer.*2 channels"),
        ([frames(shape=(2, 12, 12))], "weight_layer gets .* takes 24"),
        ([frames() * float("nan")], "not finite"),
        ([frames() * 0 - 100], "no neuron spiked"),
    ],
)
def test_clear_errors(batches, message):
    model = build("convnet", input_shape=(2, 8, 8), num_classes=3, channels=(4, 6), hidden=(8,)).double()
    model.input_shape = None  # as a network of one's own, that does not check
    for s in model.synapses():
        if message == "no neuron spiked":
            s.layer.weight.data.abs_()
    with pytest.raises(ValueError, match=message):
        calibrate(model, batches)


def test_nan_weights_are_named():
    model = convnet()
    model.synapses()[-1].layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"readout\.0"):
        calibrate(model, [frames()])


def test_sums_of_another_network_are_refused():
    model, other = convnet(), build("mlp", input_shape=(2, 8, 8), num_classes=3)
    sums = CalibrationSums.collect(model, [frames()])
    with pytest.raises(ValueError, match="other layers"):
        Calibration.from_sums(other, sums)
    with pytest.raises(ValueError, match="vector"):
        CalibrationSums.from_vector(other, sums.to_vector(), 4)


@pytest.mark.parametrize("name", ["vgg9", "sew_resnet18", "ms_resnet18", "spikformer"])
def test_every_family_is_calibrated_and_pruned(name):
    """One timestep gives LAMP in residual networks and transformers too; operations are as counted."""
    torch.manual_seed(0)
    model = build(name, input_shape=(2, 16, 16), num_classes=3)
    x = (torch.rand(2, 3, 2, 16, 16) * 3).floor()
    reestimate(model, [x])
    calibration, activity = calibrate(model, [x]), measure(model, [x])
    for layer in activity.layers:
        assert calibration[layer.name].price == pytest.approx(layer.dense_synops / layer.weights, rel=1e-9)
    assert sum(layer.sensitivity != 1 for layer in calibration.layers) > len(calibration.layers) / 2
    masks = allocate(model, calibration, objective="synops", synops_fraction=0.2).masks
    assert 0 < masks.density < 1
    masks.apply_(model)
    assert model(x).isfinite().all()
    at_one = allocate(model, calibrate(model, [x[:1]]), sparsity=0.9)
    assert {layer.coefficient for layer in at_one.layers} == {1.0}
