"""Which weights go first: every criterion as one function from layers to rules, behind one registry.

A `LayerRule` says in which order a layer gives up its weights (ascending ``key``, ties by index) and how
its ``k``-th weight compares with those of other layers (its *score*; the globally smallest go first).
With ``e = w^2`` in that order and the surviving energy ``E_k = sum_{j >= k} e_j``:

==========  ==============================  ========================================================
score       value                           what the common order then optimises
==========  ==============================  ========================================================
distortion  ``c log(E_k / E_{k+1})``        least ``sum_l c_l (-log kept energy share)``, exactly
            or the slope of a curve         least sum of the curves' lower convex hulls, exactly
energy      ``key_k^2``                     least sum of the removed ``key^2``
share       ``numel share / rank``          layer densities proportional to ``share``
==========  ==============================  ========================================================

(``numel`` is the dense layer's, ``rank`` counts from its largest weight, 1.) Under the SynOps objective
distortion and energy scores, not shares, are divided by the layer's SynOps per weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pruning.weights.calibration import Calibration, LayerCalibration
from pruning.weights.calibration_sums import Measure
from pruning.weights.curves import Curve
from snn.layers import Synapses
from snn.registry import Registry

Objective = Literal["weights", "synops"]


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """One layer's part in the common order (see the module's table)."""

    key: Callable[[], Tensor]
    """Importance of each weight, flat and not negative; called when needed, so that one layer's worth of
    memory is enough."""
    energy: Callable[[], Tensor] | None = None
    """Energy of each weight where it is not ``key^2``."""
    score: Literal["distortion", "energy", "share"] = "distortion"
    share: float = 1.0
    coefficient: float = 1.0
    """``c``: distortion per unit of -log kept energy share."""
    curve: Curve | None = None
    """Measured distortion by timestep, in place of ``c`` times -log kept energy share."""


Criterion = Callable[[Sequence[Synapses], Calibration | None, Objective], list[LayerRule]]


def _magnitude(s: Synapses) -> Tensor:
    weight = s.layer.weight.detach()
    return (weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight).abs().flatten()


def _square(s: Synapses) -> Tensor:
    return _magnitude(s).double().square()


def _calibrated(calibration: Calibration | None, criterion: str) -> Calibration:
    if calibration is None:
        raise ValueError(f"calibration: criterion {criterion!r} needs one")
    return calibration


def _measured(value: Any, criterion: str) -> Any:
    if value is None:
        measure = _NEEDS[criterion]
        raise ValueError(
            f"calibration: criterion {criterion!r} needs {measure}; calibrate with measure=[{measure!r}]"
        )
    return value


def uniform(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """The same density in every layer, by magnitude."""
    return [LayerRule(key=partial(_magnitude, s), score="share") for s in synapses]


def magnitude(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """The smallest magnitudes of the whole network."""
    return [LayerRule(key=partial(_magnitude, s), score="energy") for s in synapses]


def erk(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """Erdos-Renyi kernel: densities proportional to the sum of a weight's axes over their product.

    By magnitude within layers. Evci et al. 2020, arXiv 1911.11134.
    """
    return [
        LayerRule(
            key=partial(_magnitude, s),
            score="share",
            share=sum(s.layer.weight.shape) / s.layer.weight.numel(),
        )
        for s in synapses
    ]


def lamp(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """Layer-adaptive magnitude: ``w_k^2 / E_k``, in the equivalent form ``-log(1 - .)`` that adds up.

    Lee et al. 2021, arXiv 2010.07611.
    """
    return [LayerRule(key=partial(_magnitude, s)) for s in synapses]


def wanda(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """``|w| ||x||`` compared within each neuron's weights, all neurons at one density.

    After Sun et al. 2024, arXiv 2306.11695; the norm is that of an input channel over all timesteps.
    """
    known = _calibrated(calibration, "wanda")
    return [
        LayerRule(key=partial(_row_rank, s, known[s.name]), energy=partial(_square, s), score="share")
        for s in synapses
    ]


def _row_rank(s: Synapses, layer: LayerCalibration) -> Tensor:
    """Rank of each weight among its neuron's, over their number."""
    weight = s.layer.weight.detach()
    x = torch.tensor(layer.channels, dtype=torch.float64, device=weight.device).sqrt()
    # A grouped convolution's neurons see their group's channels only.
    groups = len(layer.channels) // weight.shape[1]
    x_rows = x.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1).flatten(0, 1)
    value = weight.double().abs().flatten(1) * x_rows.repeat_interleave(weight[0, 0].numel(), dim=1)
    rank = value.argsort(dim=1, stable=True).argsort(dim=1)
    return ((rank + 1) / rank.shape[1]).flatten()


def fisher(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """``w^2 F`` in one order: the second-order change of the class scores, weight by weight."""
    known = _calibrated(calibration, "fisher")

    def key(s: Synapses, squares: Tensor) -> Tensor:
        return (_square(s) * squares.to(s.layer.weight.device).flatten()).sqrt()

    squares = [_measured(known[s.name].fisher, "fisher") for s in synapses]
    return [
        LayerRule(key=partial(key, s, square), energy=partial(_square, s), score="energy")
        for s, square in zip(synapses, squares, strict=True)
    ]


def slamp(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """The default: LAMP with a coefficient for every layer, ``c = s^(1 - 1/T)``, ``s`` its sensitivity.

    At one timestep ``c = 1``: LAMP, exactly. Our derivation, docs/methods-slamp.md.
    """
    known = _calibrated(calibration, "slamp")
    if known.T == 1:
        return lamp(synapses, known, _)
    return [
        LayerRule(
            key=partial(_magnitude, s),
            coefficient=float(_measured(known[s.name].sensitivity, "slamp") ** (1 - 1 / known.T)),
        )
        for s in synapses
    ]


def slamp_curve(
    synapses: Sequence[Synapses], calibration: Calibration | None, objective: Objective
) -> list[LayerRule]:
    """By the distortion measured at each timestep when a layer alone loses its smallest weights.

    At one timestep ``slamp``, that is LAMP.
    """
    known = _calibrated(calibration, "slamp_curve")
    if known.T == 1:
        return lamp(synapses, known, objective)
    return [
        LayerRule(key=partial(_magnitude, s), curve=_measured(known[s.name].curve, "slamp_curve"))
        for s in synapses
    ]


_OURS: dict[str, Criterion] = {
    "slamp": slamp,
    "slamp_curve": slamp_curve,
    "lamp": lamp,
    "magnitude": magnitude,
    "erk": erk,
    "uniform": uniform,
    "wanda": wanda,
    "fisher": fisher,
}
CRITERIA = Registry("criterion", _OURS)
"""Every criterion by its name."""
_NEEDS: dict[str, Measure] = {"slamp": "gradients", "slamp_curve": "curves", "fisher": "fisher"}


def needs(*criteria: str) -> list[Measure]:
    """What calibration measures for these criteria (its ``measure``); gradients for one of your own."""
    wanted = {_NEEDS.get(name, "gradients") for name in criteria if name in _NEEDS or name not in CRITERIA}
    return sorted(wanted)
