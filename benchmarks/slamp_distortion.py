"""Each layer pruned alone: measured change of the scores against the predicted one, and the certificate."""

import copy
import statistics
from collections.abc import Callable
from math import log
from typing import Any

import torch

from benchmarks.slamp_tasks import Task, scores
from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration
from pruning.weights.certificate import certify
from pruning.weights.masks import Masks
from snn.models import SpikingNetwork

Row = dict[str, Any]


def distortion_rows(task: Task, dense: SpikingNetwork, calibration: Calibration) -> list[Row]:
    """Every layer alone, at several levels: measured on the test examples, and the certificate on 20."""
    reference = scores(task, dense)
    sample = task.inputs(task.x_test[:20]).double()
    exact = copy.deepcopy(dense).double()
    before = _means(exact, sample)
    keep = Masks.of(dense)
    rows = []
    for density in (0.7, 0.5, 0.3, 0.15, 0.05):
        uniform = allocate(dense, criterion="uniform", sparsity=1 - density)
        for layer in uniform.layers:
            masks = Masks({n: uniform.masks[n] if n == layer.name else keep[n] for n in keep})
            model = copy.deepcopy(dense)
            masks.apply_(model)
            measured = float((scores(task, model) - reference).square().sum(1).mean())
            changed = (_means(model.double(), sample) - before).abs()
            certificate = certify(dense, masks, sample)
            known = calibration[layer.name]
            rows.append(
                {
                    "layer": layer.name,
                    "density": layer.density,
                    "removed_energy": layer.removed_energy,
                    "measured": measured,
                    "tau": known.tau,
                    "sigma": known.sigma,
                    "rho": known.rho,
                    "violations": int((changed > certificate.bound).sum()),
                    "bound_over_change": float(
                        (certificate.bound.mean() / changed.mean().clamp(min=1e-12)).clamp(max=1e12)
                    ),
                }
            )
    return rows


@torch.no_grad()
def _means(model: SpikingNetwork, x_TB: torch.Tensor) -> torch.Tensor:
    return model.eval()(x_TB).mean(0)


def coefficients_of(row: Row, T: int) -> dict[str, float]:
    """``c`` of every criterion that predicts distortion."""
    tau, rho = row["tau"], row.get("rho")
    membrane = tau * row["sigma"] ** (1 - 1 / T)
    found = {
        "lamp": 1.0,
        "slamp_time": tau,
        "slamp_membrane": membrane,
        "slamp_local": tau * row["sigma"],
        "slamp_root": membrane**0.5,
    }
    if rho is not None:  # results before this criterion have none
        found["slamp_response"] = tau * (rho / tau) ** (1 - 1 / T)
    return found


def spread_of_logs(rows: list[Row], T: int) -> dict[str, dict[str, float]]:
    """Standard deviation of log(measured / predicted) by criterion.

    ``c z``: the prediction is c times the removed share of the energy; ``c phi``: c times -log of the kept
    share, which is what allocation adds up.
    """
    usable = [r for r in rows if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
    return {
        name: {
            form: statistics.stdev(
                log(r["measured"] / (coefficients_of(r, T)[name] * loss(r["removed_energy"]))) for r in usable
            )
            for form, loss in _LOSSES.items()
        }
        for name in coefficients_of(usable[0], T)
    }


_LOSSES: dict[str, Callable[[float], float]] = {"c z": lambda z: z, "c phi": lambda z: -log(1 - z)}
