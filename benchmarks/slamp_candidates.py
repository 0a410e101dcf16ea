"""Layer coefficients that were compared for the default `slamp`, and the response at the readout.

Each is one number per layer from a calibration; `register` makes them criteria of the product's
allocation. `slamp` itself stands in `pruning.weights.criteria`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from pruning.weights import criteria
from pruning.weights.calibration import Calibration
from pruning.weights.criteria import LayerRule, Objective
from snn.layers import Synapses

GRADIENT_POWERS = {
    "gradient": 1.0,
    "gradient_3/4": 0.75,
    "gradient_root": 0.5,
    "gradient_3/8": 0.375,
    "gradient_1/4": 0.25,
}
"""Powers of ``sum_w w^2 F_w``."""
LEVELS = (0.1, 0.3, 0.5, 0.7)
"""Shares of a layer's energy that are taken away for the response, one after the other."""


def coefficients(
    calibration: Calibration, tau: Sequence[float], sigma: Sequence[float], rho: Sequence[float]
) -> dict[str, list[float]]:
    """By candidate the coefficient of every layer.

    Args:
        calibration: with gradients.
        tau: `benchmarks.slamp_membrane.membrane_statistics`.
        sigma: of the same.
        rho: `measure_response`.
    """
    even = 1 - 1 / calibration.T
    s = [layer.sensitivity or 1.0 for layer in calibration.layers]
    membrane = [t * x**even for t, x in zip(tau, _relative(sigma), strict=True)]
    response = [t * (r / t) ** even for t, r in zip(tau, _relative(rho), strict=True)]
    found = {
        "time": list(tau),
        "membrane": membrane,
        "root": [c**0.5 for c in membrane],
        "response": response,
    }
    for name, power in GRADIENT_POWERS.items():
        found[name] = [x ** (2 * power) for x in s]
    return found


def _magnitude(s: Synapses) -> Tensor:
    return s.layer.weight.detach().abs().flatten()


def register(found: Mapping[str, Sequence[float]], T: int) -> None:
    """Candidates as criteria ``benchmarks:NAME``; later ones replace earlier ones."""

    def criterion(c: Sequence[float]) -> criteria.Criterion:
        def rules(
            synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
        ) -> list[LayerRule]:
            return [
                LayerRule(key=partial(_magnitude, s), coefficient=value)
                for s, value in zip(synapses, c if T > 1 else [1.0] * len(c), strict=True)
            ]

        return rules

    for name, c in found.items():
        criteria.CRITERIA.register(f"benchmarks:{name}", criterion(c))


def _relative(values: Sequence[float]) -> list[float]:
    """Over their geometric mean; 1 for those that are 0."""
    living = [value for value in values if value > 0]
    mean = exp(sum(map(log, living)) / len(living)) if living else 1.0
    return [value / mean if value > 0 else 1.0 for value in values]


@torch.no_grad()
def measure_response(model: Any, synapses: Sequence[Synapses], batches_TB: Sequence[Tensor]) -> list[float]:
    """``rho`` by layer: squared change of the time-mean logits per -log kept energy share.

    Each layer in turn loses its smallest weights, worth a share `LEVELS` of its energy; geometric mean
    over levels, 0 where nothing changed. One forward pass per layer and level, ``model`` in eval mode.
    """
    reference = [model(x).mean(0) for x in batches_TB]
    found = []
    for s in synapses:
        weight, whole = s.layer.weight, s.layer.weight.detach().clone()
        order = whole.abs().flatten().argsort(stable=True)
        share = whole.flatten()[order].double().square().cumsum(0)
        share /= share[-1].clamp(min=1e-300)
        ratios = []
        for z in LEVELS:
            count = min(max(int((share <= z).sum()), 1), len(order) - 1)
            phi = -log(1 - float(share[count - 1])) if count else 0.0
            if phi <= 0:
                continue
            pruned = whole.flatten().clone()
            pruned[order[:count]] = 0
            weight.copy_(pruned.view_as(whole))
            change = sum(
                float((model(x).mean(0) - y).double().square().sum())
                for x, y in zip(batches_TB, reference, strict=True)
            )
            if change > 0:
                ratios.append(change / phi)
        weight.copy_(whole)
        found.append(exp(sum(map(log, ratios)) / len(ratios)) if ratios else 0.0)
    return found
