"""Which weights go first: every criterion as one function from layers to rules, behind one registry.

A `LayerRule` says in which order a layer gives up its weights (ascending ``key``, ties by index) and how
its ``k``-th weight compares with those of other layers (its *score*; the globally smallest go first).
With ``e = key^2`` ascending and the surviving energy ``E_k = sum_{j >= k} e_j``:

==========  ==============================  ========================================================
score       value                           what the common order then optimises
==========  ==============================  ========================================================
distortion  ``c log(E_k / E_{k+1})``        least ``sum_l c_l (-log kept energy share)``, exactly
energy      ``e_k``                         least removed energy: global magnitude
share       ``numel share / rank``          layer densities proportional to ``share``
==========  ==============================  ========================================================

(``numel`` is the dense layer's, ``rank`` counts from its largest weight, 1.) Under the SynOps objective
distortion and energy scores are divided by the layer's price, synaptic operations per weight; shares are
not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pruning.weights.calibration import Calibration, LayerCalibration, effective_weight
from snn.layers import Synapses

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
    profile: tuple[float, ...] | None = None
    """Share of each timestep in ``c``, adding up to 1; ``None``: all alike."""


Criterion = Callable[[Sequence[Synapses], Calibration | None, Objective], list[LayerRule]]


def _magnitude(s: Synapses) -> Tensor:
    weight = s.layer.weight.detach()
    return (weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight).abs().flatten()


def _square(s: Synapses) -> Tensor:
    return _magnitude(s).double().square()


def _folded(s: Synapses) -> Tensor:
    return effective_weight(s).abs().flatten()


def _calibrated(calibration: Calibration | None, criterion: str) -> Calibration:
    if calibration is None:
        raise ValueError(f"calibration: criterion {criterion!r} needs one")
    return calibration


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


def lamp_folded(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """LAMP on effective weights: batch norm folded in, in units of the threshold."""
    return [LayerRule(key=partial(_folded, s)) for s in synapses]


def wanda(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """``|w| ||x||`` compared within each neuron's weights, all neurons at one density.

    After Sun et al. 2024, arXiv 2306.11695; the input's norm is that of its trace in time, by channel.
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


def _slamp(
    form: Callable[[LayerCalibration, int], float],
    name: str,
    synapses: Sequence[Synapses],
    calibration: Calibration | None,
) -> list[LayerRule]:
    known = _calibrated(calibration, name)
    rules = []
    for s in synapses:
        layer = known[s.name]
        rules.append(
            LayerRule(
                key=partial(_magnitude, s),
                coefficient=form(layer, known.T),
                profile=tuple(share / layer.tau for share in layer.tau_t),
            )
        )
    return rules


def slamp(
    synapses: Sequence[Synapses], calibration: Calibration | None, objective: Objective
) -> list[LayerRule]:
    """Our default: ``slamp_time`` for the weight objective, ``slamp_root`` for SynOps.

    Our derivation, docs/methods-slamp.md; at one timestep exactly LAMP.
    """
    variant = slamp_time if objective == "weights" else slamp_root
    return variant(synapses, calibration, objective)


def slamp_time(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """``c = tau``: leak accumulation, timestep profile and threshold density, nothing static."""
    return _slamp(lambda layer, T: layer.tau, "slamp_time", synapses, calibration)


def slamp_membrane(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """``c = tau sigma^(1 - 1/T)``: expected threshold crossings; the exponent makes T = 1 LAMP's."""
    return _slamp(
        lambda layer, T: layer.tau * layer.sigma ** (1 - 1 / T), "slamp_membrane", synapses, calibration
    )


def slamp_local(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """``c = tau sigma``: expected threshold crossings at every T; not LAMP at T = 1."""
    return _slamp(lambda layer, T: layer.tau * layer.sigma, "slamp_local", synapses, calibration)


def slamp_root(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """``c = sqrt(tau sigma^(1 - 1/T))``: half way between LAMP and ``slamp_membrane``."""
    return _slamp(
        lambda layer, T: (layer.tau * layer.sigma ** (1 - 1 / T)) ** 0.5, "slamp_root", synapses, calibration
    )


def slamp_response(
    synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective
) -> list[LayerRule]:
    """``c = tau (rho / tau)^(1 - 1/T)``: the layer's measured response at the readout, in squared logits.

    ``rho / tau`` is the static part of the response, tempered as ``sigma`` is in ``slamp_membrane``.
    """

    def form(layer: LayerCalibration, T: int) -> float:
        if layer.rho is None:
            if T > 1:
                raise ValueError(
                    "calibration: criterion 'slamp_response' needs the layers' responses; calibrate with"
                    " response_examples"
                )
            return layer.tau
        return float(layer.tau * (layer.rho / layer.tau) ** (1 - 1 / T))

    return _slamp(form, "slamp_response", synapses, calibration)


CRITERIA: dict[str, Criterion] = {
    "uniform": uniform,
    "magnitude": magnitude,
    "erk": erk,
    "lamp": lamp,
    "lamp_folded": lamp_folded,
    "wanda": wanda,
    "slamp": slamp,
    "slamp_time": slamp_time,
    "slamp_membrane": slamp_membrane,
    "slamp_local": slamp_local,
    "slamp_root": slamp_root,
    "slamp_response": slamp_response,
}
"""Every criterion by its name."""
_OWN: dict[str, Criterion] = {}


def register(name: str, criterion: Criterion) -> None:
    """Make a criterion of one's own known as ``module:attribute``; a later one of this name replaces it."""
    _OWN[name] = criterion


def criterion_of(name: str) -> Criterion:
    """The criterion of this name.

    Raises:
        ValueError: unknown criterion.
    """
    if name in _OWN:
        return _OWN[name]
    if name not in CRITERIA:
        hint = (
            "import it and call criteria.register" if ":" in name else f"choose one of {', '.join(CRITERIA)}"
        )
        raise ValueError(f"criterion: {name!r} is unknown; {hint}")
    return CRITERIA[name]


def needs_response(criterion: str) -> bool:
    """Whether the criterion asks calibration for the layers' responses (above one timestep)."""
    return criterion == "slamp_response"
