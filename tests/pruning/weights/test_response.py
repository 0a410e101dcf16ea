import copy
from math import exp, log

import numpy as np
import pytest
import torch

from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration, CalibrationSums, calibrate, relative_spread
from pruning.weights.criteria import CRITERIA, needs_response
from pruning.weights.response import LEVELS, fitted_response, measure_response
from tests.pruning.weights.test_calibration import Residual, convnet, frames


@torch.no_grad()
def oracle(model, name, x, level):
    """One layer of a copy without its smallest weights, found by adding them up one by one."""
    pruned = copy.deepcopy(model).eval()
    weight = next(s.layer.weight for s in pruned.synapses() if s.name == name)
    flat = weight.view(-1)
    values = flat.tolist()
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    total = sum(v * v for v in values)
    gone = 0.0
    for taken, i in enumerate(order):
        if taken and gone + values[i] ** 2 > level * total:
            break
        gone += values[i] ** 2
        flat[i] = 0
    change = (pruned(x).mean(0) - copy.deepcopy(model).eval()(x).mean(0)).square().sum()
    return float(change), -log(1 - gone / total)


@pytest.mark.parametrize("neuron", [{}, {"beta": 0.9, "reset": "soft"}])
def test_response_is_what_pruning_the_layer_alone_does(neuron):
    model, x = convnet(**neuron), frames(B=5)
    sums = CalibrationSums.collect(model, x.split(2, dim=1), response_examples=5)
    fits = {}
    for name, row in sums.layers.items():
        expected = [oracle(model, name, x, level) for level in LEVELS]
        assert row["change"].tolist() == pytest.approx([d for d, _ in expected], rel=1e-9, abs=1e-15)
        assert row["removed"].tolist() == pytest.approx([5 * phi for _, phi in expected], rel=1e-12)
        logs = [log(d) - log(phi) for d, phi in expected if d > 0]
        fits[name] = sum(logs) / len(logs)
    mean = sum(fits.values()) / len(fits)
    for layer in Calibration.from_sums(model, sums).layers:
        assert layer.rho == pytest.approx(exp(fits[layer.name] - mean), rel=1e-9)


def test_fit_is_the_least_squares_one_on_a_logarithmic_scale():
    change, removed = torch.tensor([1.0, 2.0, 9.0, 5.0]).double(), torch.tensor([0.1, 0.4, 0.7, 1.2]).double()
    design, right = np.ones((4, 1)), np.log(change.numpy()) - np.log(removed.numpy())
    assert log(fitted_response(change, removed)) == pytest.approx(np.linalg.lstsq(design, right)[0][0])
    silent = torch.tensor([0.0, 2.0, 9.0, 5.0]).double()
    assert fitted_response(silent, removed) == pytest.approx(fitted_response(change[1:], removed[1:]))
    assert fitted_response(torch.zeros(4), removed) == 0.0


def test_a_dead_layer_has_the_response_that_was_measured():
    model, x = convnet(), frames()
    first, *_, head = model.synapses()
    with torch.no_grad():
        head.layer.weight[:, ::2] = 0
        first.norm.weight.fill_(500)  # no potential comes near the threshold, some cross it by far
    layers = calibrate(model, [x], response_examples=6).layers
    assert layers[0].dead
    assert layers[0].tau == layers[0].sigma == 1
    fits = []
    for layer in layers:
        logs = [log(d) - log(phi) for d, phi in (oracle(model, layer.name, x, z) for z in LEVELS) if d > 0]
        fits.append(sum(logs) / len(logs))
    expected = [exp(fit - sum(fits) / len(fits)) for fit in fits]
    assert [layer.rho for layer in layers] == pytest.approx(expected, rel=1e-9)
    assert layers[0].rho != 1


def test_only_the_first_examples_are_used_and_shares_add():
    model, x = convnet(), frames(B=6)
    whole = CalibrationSums.collect(model, [x[:, :4], x[:, 4:]], response_examples=5)
    first = CalibrationSums.collect(model, [x[:, :5]], response_examples=5)
    parts = [CalibrationSums.collect(model, [part], response_examples=5) for part in x[:, :5].split(3, dim=1)]
    merged = parts[0].merge(parts[1])
    for name, row in whole.layers.items():
        for key in ("change", "removed"):
            torch.testing.assert_close(row[key], first.layers[name][key], rtol=1e-9, atol=1e-15)
            torch.testing.assert_close(row[key], merged.layers[name][key], rtol=1e-9, atol=1e-15)
    assert not any(row["removed"].any() for row in CalibrationSums.collect(model, [x]).layers.values())


def scaled_threshold(model):
    other = convnet(beta=0.6, theta=2.5)
    other.load_state_dict(model.state_dict())
    for s in other.synapses():
        if s.norm is not None:
            s.norm.weight.data.mul_(2.5)
            s.norm.bias.data.mul_(2.5)
    return other


def scaled_weights(model):
    other = copy.deepcopy(model)
    for s in other.synapses():
        if s.norm is not None:
            s.layer.weight.data.mul_(3.0)
            s.norm.running_mean.mul_(3.0)
            s.norm.running_var.mul_(9.0).add_(8 * s.norm.eps)
    return other


def scaled_head(model):
    """Ten times the scores: every layer's response grows alike."""
    other = copy.deepcopy(model)
    for parameter in other.synapses()[-1].layer.parameters():
        parameter.data.mul_(10)
    return other


@pytest.mark.parametrize("rescale", [scaled_threshold, scaled_weights, scaled_head])
def test_rescaling_the_network_changes_no_response(rescale):
    model, x = convnet(beta=0.6), frames()
    for a, b in zip(
        calibrate(model, [x], response_examples=6).layers,
        calibrate(rescale(model), [x], response_examples=6).layers,
        strict=True,
    ):
        assert a.rho == pytest.approx(b.rho, rel=1e-9)


def test_the_network_is_left_as_it_was_also_after_an_error():
    model, x = Residual().double(), frames()
    layers = [s.layer for s in model.synapses()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure_response(model, layers, [x])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    calls = iter(range(100))

    def failing(x_TB):
        if next(calls) > 2:
            raise RuntimeError("stopped")
        return model(x_TB)

    with pytest.raises(RuntimeError, match="stopped"):
        measure_response(failing, layers, [x])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_layers_without_weights_or_answer_are_neutral():
    model, x = convnet(), frames()
    with torch.no_grad():
        model.synapses()[1].layer.weight.zero_()
    calibration = calibrate(model, [x], response_examples=6)
    assert calibration.layers[1].rho == 1.0
    living = [layer.rho for layer in calibration.layers if layer.rho != 1.0]
    assert sum(map(log, living)) == pytest.approx(0, abs=1e-9)
    allocate(model, calibration, criterion="slamp_response", objective="synops", synops_fraction=0.5)


def test_weights_of_an_earlier_round_count_as_gone():
    model, x = convnet(), frames()
    weight = model.synapses()[0].layer.weight
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0
    row = CalibrationSums.collect(model, [x], response_examples=6).layers["features.0.weight_layer"]
    assert row["removed"].tolist() == sorted(row["removed"].tolist())
    assert bool((row["removed"] > 0).all())


def test_coefficient_tempers_the_static_part_of_the_response():
    model, x = convnet(), frames()
    calibration = calibrate(model, [x], response_examples=6)
    rules = CRITERIA["slamp_response"](model.synapses(), calibration, "synops")
    for rule, layer in zip(rules, calibration.layers, strict=True):
        assert rule.coefficient == pytest.approx(layer.tau ** (1 / 4) * layer.rho ** (3 / 4), rel=1e-12)
        assert sum(rule.profile) == pytest.approx(1)


def test_a_calibration_without_responses_is_refused_above_one_timestep():
    model = convnet()
    with pytest.raises(ValueError, match="response_examples"):
        allocate(model, calibrate(model, [frames()]), criterion="slamp_response", sparsity=0.5)
    one = allocate(model, calibrate(model, [frames(T=1)]), criterion="slamp_response", sparsity=0.5)
    assert one.masks == allocate(model, criterion="lamp", sparsity=0.5).masks
    assert {layer.coefficient for layer in one.layers} == {1.0}


def test_spread_of_responses_over_draws():
    model = convnet()
    draws = [calibrate(model, [frames(seed=s)], response_examples=6) for s in range(3)]
    name = draws[0].layers[1].name
    rho = [d[name].rho for d in draws]
    spread = relative_spread(draws, "response")
    assert spread[name] == pytest.approx(max(abs(v - sum(rho) / 3) for v in rho) / (sum(rho) / 3))
    with pytest.raises(ValueError, match="not measured"):
        relative_spread([calibrate(model, [frames()])] * 2, "response")


def test_which_criteria_ask_for_responses():
    model = convnet()
    calibration = calibrate(model, [frames()])
    for criterion in CRITERIA:
        if needs_response(criterion):
            with pytest.raises(ValueError, match="response_examples"):
                allocate(model, calibration, criterion=criterion, sparsity=0.5)
        else:
            allocate(model, calibration, criterion=criterion, sparsity=0.5)
