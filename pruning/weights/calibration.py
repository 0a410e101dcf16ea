"""Calibration: one forward pass over a few hundred examples, kept as sums that merge exactly.

What the time-aware coefficients need to know of each weight layer ``l`` (docs/methods-slamp.md), in
units of the threshold: potentials are ``u / theta``, and the effective weight of a neuron with input
gain ``k`` behind a batch norm in eval mode, ``G = gamma / sqrt(var + eps)``, is ``W_hat = k G W / theta``.

==========  ========================================================================================
kappa[t]    density of potentials at the threshold: share of neurons with ``|u / theta - 1| < 0.2``,
            per unit of potential; 1 for the head, which has no threshold
P[t]        squared input of a neuron, summed over the layer's positions, mean over examples
R[t]        the same of the trace ``r[t] = x[t] + beta r[t-1]`` of the layer's input ``x``; ``beta = 0``
            for the head
tau         ``sum_t (kappa[t] / mean kappa) (R[t] / mean P) / T``: leak, timesteps, threshold distance
sigma       ``mean kappa mean P ||W_hat||^2 / (fan n)``, over its geometric mean over living layers
rho         measured squared change of the class scores per -log kept energy share of the layer pruned
            alone, over its geometric mean over layers that respond (`pruning.weights.response`); on
            request; 1 for a layer that does not
price       synaptic operations that one weight costs per example (rule of `snn.activity`)
==========  ========================================================================================

``fan`` counts the weights of one neuron, ``n`` the layer's neurons per example. A dead layer (no input,
no weight, or no potential near the threshold) has ``tau = sigma = 1``; its response is measured like any
other. With one timestep ``tau`` is exactly 1. Several layers that feed one neuron take that neuron's
``kappa`` and ``beta``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from typing import Any, Literal

import torch
from torch import Tensor

from pruning.weights.collection import HALF_WIDTH, CalibratedNetwork, CalibrationSums
from pruning.weights.response import fitted_response
from snn.layers import Synapses

__all__ = [
    "Calibration",
    "CalibrationSums",
    "LayerCalibration",
    "calibrate",
    "effective_weight",
    "relative_spread",
]


@dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """Statistics of one weight layer; symbols as in the module's table."""

    name: str
    numel: int
    tau: float
    """Time coefficient; exactly 1 at one timestep."""
    sigma: float
    """Static sensitivity over its geometric mean over living layers."""
    tau_t: tuple[float, ...]
    """Share of each timestep in ``tau`` (they add up to it)."""
    kappa_t: tuple[float, ...]
    P_t: tuple[float, ...]
    R_t: tuple[float, ...]
    rate_t: tuple[float, ...] | None
    """Spikes per neuron at each timestep; ``None`` for the head."""
    fan: int
    n: float
    energy: float
    """``||W_hat||^2`` of the weights as they were."""
    price: float
    channels: tuple[float, ...]
    """Mean squared trace of each input channel as a neuron sees it, mean over time."""
    dead: bool
    rho: float | None = None
    """Response at the readout over its geometric mean over layers that respond; None if not measured."""

    @property
    def firing_rate(self) -> float | None:
        """Spikes per neuron and timestep."""
        return None if self.rate_t is None else sum(self.rate_t) / len(self.rate_t)


@dataclass(frozen=True)
class Calibration:
    """Statistics of all weight layers in forward order, the head last."""

    layers: tuple[LayerCalibration, ...]
    T: int
    examples: int

    def __getitem__(self, name: str) -> LayerCalibration:
        """The layer ``name``; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @classmethod
    def from_sums(cls, model: CalibratedNetwork, sums: CalibrationSums) -> "Calibration":
        """Statistics from sums over all examples, with the weights as they are in ``model`` now.

        Raises:
            ValueError: no example, sums or weights that are not finite, no spike in the whole network,
                or sums of another network.
        """
        synapses = model.synapses()
        if list(sums.layers) != [s.name for s in synapses]:
            raise ValueError("sums: of a network with other layers")
        if sums.examples < 1:
            raise ValueError("batches: calibration needs at least one example")
        for name, row in sums.layers.items():
            if not all(value.isfinite().all() for value in row.values()):
                raise ValueError(f"{name}: calibration statistics are not finite; check inputs and weights")
        if not any(row["spikes"].sum() > 0 for row in sums.layers.values()):
            raise ValueError(
                "batches: no neuron spiked on the calibration examples; time-aware coefficients need"
                " spikes (check the inputs' scale and the batch norm statistics)"
            )
        raw = [_statistics(s, sums) for s in synapses]
        mean = _geometric_mean([layer.sigma for layer in raw if not layer.dead])
        layers = [replace(r, sigma=1.0 if r.dead else r.sigma / mean) for r in raw]
        if any(bool(row["removed"].any()) for row in sums.layers.values()):
            responses = [fitted_response(row["change"], row["removed"]) for row in sums.layers.values()]
            mean = _geometric_mean([r for r in responses if r > 0])
            layers = [
                replace(layer, rho=r / mean if r > 0 else 1.0)
                for layer, r in zip(layers, responses, strict=True)
            ]
        return cls(tuple(layers), sums.T, round(sums.examples))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        layers = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in vars(layer).items()}
            for layer in self.layers
        ]
        return {"T": self.T, "examples": self.examples, "layers": layers}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """The inverse of ``to_dict``."""
        layers = []
        for layer in values["layers"]:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in layer.items()}
            layers.append(LayerCalibration(**plain))
        return cls(tuple(layers), values["T"], values["examples"])


def calibrate(
    model: CalibratedNetwork, batches: Iterable[Tensor], *, response_examples: int = 0
) -> Calibration:
    """Statistics of ``batches`` in one process; 100 examples give ``tau sigma`` within a few percent.

    With ``response_examples`` the layers' responses are measured on that many of them.
    """
    sums = CalibrationSums.collect(model, batches, response_examples=response_examples)
    return Calibration.from_sums(model, sums)


def _geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values)) if values else 1.0


def gain(s: Synapses) -> Tensor:
    """``k G / theta`` per output channel, float64 ``[C_out]``: effective weight over raw weight."""
    weight = s.layer.weight
    factor = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
    if s.norm is not None:
        if s.norm.running_var is None:
            raise ValueError(f"{s.name}: its batch norm keeps no running statistics")
        factor = factor / (s.norm.running_var.double() + s.norm.eps).sqrt()
        if s.norm.weight is not None:
            factor = factor * s.norm.weight.detach().double()
    if s.neuron is not None:
        factor = factor * (s.neuron.constants.gain / s.neuron.constants.theta)
    return factor


def effective_weight(s: Synapses) -> Tensor:
    """``W_hat``, float64, in the shape of the layer's weight; in thresholds of the driven neuron."""
    weight = s.layer.weight.detach().double()
    return weight * gain(s).view(-1, *[1] * (weight.ndim - 1))


def relative_spread(
    calibrations: Sequence[Calibration], of: Literal["membrane", "response"] = "membrane"
) -> dict[str, float]:
    """By layer, the largest relative deviation from its mean over several draws.

    Args:
        calibrations: of one network.
        of: ``membrane`` for ``tau sigma``, ``response`` for ``rho``.

    Raises:
        ValueError: fewer than two calibrations, or responses that were not measured.
    """
    if len(calibrations) < 2:
        raise ValueError("calibrations: a spread needs at least two draws")

    def value(layer: LayerCalibration) -> float:
        if of == "membrane":
            return layer.tau * layer.sigma
        if layer.rho is None:
            raise ValueError("calibrations: the layers' responses were not measured")
        return layer.rho

    spread = {}
    for layer in calibrations[0].layers:
        c = [value(calibration[layer.name]) for calibration in calibrations]
        mean = sum(c) / len(c)
        spread[layer.name] = max(abs(one - mean) for one in c) / mean
    return spread


def _statistics(s: Synapses, sums: CalibrationSums) -> LayerCalibration:
    """One layer, its ``sigma`` not yet over the geometric mean."""
    row, T, B = sums.layers[s.name], sums.T, sums.examples
    numel, rows = s.layer.weight.numel(), s.layer.weight.shape[0]
    fan, n = numel // rows, float(row["outputs"]) / B
    if n == 0:
        raise ValueError(f"{s.name}: the forward pass never used this layer")
    P_t, R_t = row["energy"] / B, row["trace_energy"] / B
    rate_t = None
    kappa_t = torch.ones(T, dtype=torch.float64)
    if s.neuron is not None:
        seen = row["potentials"].clamp(min=1)
        kappa_t = row["near"] / seen / (2 * HALF_WIDTH)
        rate_t = tuple((row["spikes"] / seen).tolist())
    kappa, P = kappa_t.sum() / T, P_t.sum() / T
    energy = float(effective_weight(s).square().sum())
    if not isfinite(energy):
        raise ValueError(f"{s.name}: weights or norm are not finite")
    sigma = float(kappa * P) * energy / (fan * n)
    # At one timestep both ratios are x / x: tau is 1.0 exactly.
    tau_t = kappa_t / kappa * (R_t / P) / T
    dead = not (sigma > 0 and float(tau_t.sum()) > 0)
    if dead:
        tau_t = torch.full((T,), 1 / T, dtype=torch.float64)
    return LayerCalibration(
        name=s.name,
        numel=numel,
        tau=1.0 if dead else float(tau_t.sum()),
        sigma=sigma,
        tau_t=tuple(tau_t.tolist()),
        kappa_t=tuple(kappa_t.tolist()),
        P_t=tuple(P_t.tolist()),
        R_t=tuple(R_t.tolist()),
        rate_t=rate_t,
        fan=fan,
        n=n,
        energy=energy,
        price=float(row["synops"]) / B / numel,
        channels=tuple((row["channels"] / (B * T * n / rows)).tolist()),
        dead=dead,
    )
