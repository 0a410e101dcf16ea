"""The benchmark of weight criteria: its candidates are what they say."""

from math import log

import pytest
import torch

from benchmarks import slamp_candidates, slamp_quality, slamp_tables
from benchmarks.slamp_membrane import membrane_statistics
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.curves import DENSITIES, kept_of
from snn.observing import evaluating
from tests.pruning.weights.test_calibration import convnet, frames
from tests.pruning.weights.test_curves import change_of_the_logits


def test_candidates_are_criteria_and_lamp_at_one_timestep() -> None:
    model = convnet()
    for T in (1, 4):
        x = frames(T=T)
        calibration = calibrate(model, [x])
        tau, sigma = membrane_statistics(model, [x])
        assert (tau == [1.0] * 4) == (T == 1)
        with evaluating(model):
            rho = slamp_candidates.measure_response(model, model.synapses(), [x])
        found = slamp_candidates.coefficients(calibration, tau, sigma, rho)
        slamp_candidates.register(found, T)
        lamp = allocate(model, criterion="lamp", sparsity=0.8).masks
        for name in found:
            masks = allocate(model, calibration, criterion=f"benchmarks:{name}", sparsity=0.8).masks
            assert T > 1 or masks == lamp
    slamp = allocate(model, calibration, sparsity=0.8).layers
    assert [layer.coefficient for layer in slamp] == pytest.approx(found["gradient_3/8"])


@torch.no_grad()
def test_membrane_statistics_of_the_first_layer_step_by_step() -> None:
    model, x = convnet(beta=0.6), frames()
    tau, _ = membrane_statistics(model, x.split(2, dim=1))
    block = model.features[0]
    conv, norm = block.weight_layer, block.norm
    trace, v = torch.zeros_like(x[0]), None
    kappa, R, P = [], [], []
    for frame in x:
        trace = frame + 0.6 * trace
        squares = [
            torch.nn.functional.unfold(z, 3, padding=1, stride=2).square().sum() for z in (trace, frame)
        ]
        R.append(float(squares[0]))
        P.append(float(squares[1]))
        current = norm(conv(frame))
        u = current if v is None else 0.6 * v + current
        v = u * (u < 1)
        kappa.append(float(((u - 1).abs() < 0.2).double().mean()))
    mean_kappa, mean_P = sum(kappa) / 4, sum(P) / 4
    expected = sum(k / mean_kappa * r / mean_P for k, r in zip(kappa, R, strict=True)) / 4
    assert tau[0] == pytest.approx(expected, rel=1e-9)


def test_curves_around_masks_are_what_each_layer_adds_to_the_others() -> None:
    model, x = convnet(), frames(B=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = allocate(model, criterion="uniform", sparsity=0.5).masks
    found = slamp_quality.around(model, calibrate(model, [x]), x, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    change = change_of_the_logits(model, x, masks)
    for i, layer in enumerate(found.layers):
        assert layer.curve is not None
        for density, row in zip(DENSITIES, layer.curve.distortion, strict=True):
            expected = change(i, kept_of(density, layer.numel)) - change(i, layer.numel)
            torch.testing.assert_close(
                torch.tensor(row, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12
            )


def test_tables_set_every_criterion_beside_priced_lamp() -> None:
    common = {"task": "vgg9", "part": "synops", "retrain_epochs": 2, "one_shot": 0.3, "drop": 0.1}
    common |= {"density": 0.1, "synops_of_dense": 0.1, "synops": 1000.0}
    runs = {  # level, criterion, objective: accuracy, energy
        (0.1, "lamp", "synops"): (0.5, 2.0),
        (0.1, "slamp", "synops"): (0.56, 3.0),
        (0.1, "lamp", "weights"): (0.4, 5.0),
        (0.2, "lamp", "synops"): (0.7, 4.0),
    }
    rows = [
        {**common, "seed": seed, "level": level, "criterion": name, "objective": objective}
        | {"accuracy": accuracy + seed / 100, "energy_nj": energy}
        for seed in (0, 1)
        for (level, name, objective), (accuracy, energy) in runs.items()
    ]
    dense = {"task": "vgg9", "part": "dense", "accuracy": 0.8, "synops": 9000.0, "energy_nj": 20.0}
    lines = slamp_tables.tables([*rows, *({**dense, "seed": seed} for seed in (0, 1, 2))]).splitlines()
    assert "| | dense | 2 | | 80.0 (0.0) | | | | 100% | 100% | 9,000 | 20.0 |" in lines
    # At 3 nJ LAMP, between its two levels, would be at 60.
    gains = {"slamp": "+6.0 ± 0.0 | -4.0 ± 0.0", "lamp, not priced": "-10.0 ± 0.0 | "}
    for name, gain in gains.items():
        assert any(line.startswith(f"| 10% | {name} | 2 |") and f"| {gain} |" in line for line in lines)


def test_small_sets_share_a_table_beside_lamp_and_the_earlier_default() -> None:
    common = {"task": "digits", "part": "synops", "level": 0.2, "retrain_epochs": 2, "objective": "synops"}
    accuracies = {"lamp": 0.5, "root": 0.58, "slamp": 0.56}
    rows = [
        {**common, "seed": seed, "criterion": name, "accuracy": value + seed / 100}
        for seed in (0, 1)
        for name, value in accuracies.items()
    ]
    rows.append({"task": "digits", "part": "dense", "seed": 0, "accuracy": 0.9})
    line = slamp_tables.tables(rows).splitlines()[-1]
    assert line == "| digits | 20% of the SynOps | 90.0 | 50.5 | 56.5 | +6.0 ± 0.0 | -2.0 ± 0.0 |"


def test_a_prediction_in_proportion_has_no_spread() -> None:
    sensitivity, removed = (1.5, 0.4, 3.0), (0.1, 0.5, 0.8)
    measured = [
        {
            "layer": str(i),
            "removed_energy": r,
            "measured": 7 * s ** (1 - 1 / 4) * -log(1 - r),
            "curve": None,
        }
        for i, s in enumerate(sensitivity)
        for r in removed
    ]
    row = {"task": "vgg9", "measured": measured, "candidates": {"gradient_root": sensitivity}}
    found = slamp_tables.spread_of_logs(row)
    assert found["slamp"] == pytest.approx(0, abs=1e-12)
    assert found["lamp"] > 0.3
