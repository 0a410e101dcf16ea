"""Calibration: a few hundred examples in one pass, kept as sums that merge exactly.

What the criteria need to know of each weight layer ``l`` (docs/methods-slamp.md), in units of the
threshold: potentials are ``u / theta``, and the effective weight of a neuron with input gain ``k`` behind a
batch norm in eval mode, ``G = gamma / sqrt(var + eps)``, is ``W_hat = k G W / theta``.

===========  =======================================================================================
kappa[t]     density of potentials at the threshold: share of neurons with ``|u / theta - 1| < 0.2``,
             per unit of potential; 1 for the head, which has no threshold
P[t]         squared input of a neuron, summed over the layer's positions, mean over examples
R[t]         the same of the trace ``r[t] = x[t] + beta r[t-1]`` of the layer's input ``x``; ``beta = 0``
             for the head
tau          ``sum_t (kappa[t] / mean kappa) (R[t] / mean P) / T``: leak, timesteps, threshold distance
sensitivity  ``sqrt(sum_w w^2 F_w)``, ``F`` the mean squared gradient of the class scores through time
             (`pruning.weights.gradients`), over its geometric mean over the layers where it is not 0
fisher       ``F_w`` by weight, on request; it is not kept in files
curve        measured distortion by density and timestep (`pruning.weights.curves`), on request
price        synaptic operations that one weight costs per example (rule of `snn.activity`)
===========  =======================================================================================

``fan`` counts the weights of one neuron, ``n`` the layer's neurons per example. A dead layer (no input,
no weight, or no potential near the threshold) has ``tau = 1``, a layer without any gradient a sensitivity
of 1. With one timestep ``tau`` is exactly 1. Several layers that feed one neuron take that neuron's
``kappa`` and ``beta``.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from pruning.weights.calibration_sums import HALF_WIDTH, CalibratedNetwork, CalibrationSums, Measure
from pruning.weights.curves import Curve
from snn.layers import Synapses

__all__ = [
    "Calibration",
    "CalibrationSums",
    "LayerCalibration",
    "calibrate",
    "effective_weight",
    "relative_spread",
]


DEFAULT_MEASURE: tuple[Measure, ...] = ("gradients",)
"""What the default criterion needs."""


@dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """Statistics of one weight layer; symbols as in the module's table."""

    name: str
    numel: int
    tau: float
    """Time coefficient; exactly 1 at one timestep."""
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
    sensitivity: float | None = None
    """Over its geometric mean over layers; None if not measured."""
    curve: Curve | None = None
    fisher: Tensor | None = field(default=None, compare=False, repr=False)
    """Mean squared gradient of each weight, float64 in the shape of the weight."""

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
        for s in synapses:
            if not effective_weight(s).isfinite().all():
                raise ValueError(f"{s.name}: weights or norm are not finite")
        for name, row in sums.layers.items():
            if not all(value.isfinite().all() for value in row.values()):
                raise ValueError(f"{name}: calibration statistics are not finite; check inputs and weights")
        if not any(row["spikes"].sum() > 0 for row in sums.layers.values()):
            raise ValueError(
                "batches: no neuron spiked on the calibration examples; time-aware coefficients need"
                " spikes (check the inputs' scale and the batch norm statistics)"
            )
        return cls(tuple(_compared(synapses, sums)), sums.T, round(sums.examples))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them. Fisher values of single weights are left out."""
        layers = []
        for layer in self.layers:
            plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(layer).items()}
            del plain["fisher"]
            if layer.curve is not None:
                plain["curve"] = {
                    "distortion": [list(row) for row in layer.curve.distortion],
                    "densities": list(layer.curve.densities),
                }
            layers.append(plain)
        return {"T": self.T, "examples": self.examples, "layers": layers}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """The inverse of ``to_dict``."""
        layers = []
        for layer in values["layers"]:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in layer.items()}
            if (curve := layer["curve"]) is not None:
                rows = tuple(map(tuple, curve["distortion"]))
                plain["curve"] = Curve(rows, tuple(curve["densities"]))
            layers.append(LayerCalibration(**plain))
        return cls(tuple(layers), values["T"], values["examples"])


def calibrate(
    model: CalibratedNetwork,
    batches: Iterable[Tensor],
    *,
    measure: Collection[Measure] = DEFAULT_MEASURE,
    curve_examples: int = 128,
) -> Calibration:
    """Statistics of ``batches`` in one process.

    Args:
        model: network; it is not changed.
        batches: inputs ``[T, B, ...]``; a few hundred examples.
        measure: what the criteria need (`pruning.weights.criteria.needs`): ``gradients`` for ``slamp`` (a
            backward pass), ``fisher`` for ``fisher``, ``curves`` for ``slamp_curve``.
        curve_examples: examples of the curves' forward passes.

    Raises:
        ValueError: as `CalibrationSums.collect` and `Calibration.from_sums`.
    """
    sums = CalibrationSums.collect(model, batches, measure=measure, curve_examples=curve_examples)
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


def relative_spread(calibrations: Sequence[Calibration]) -> dict[str, float]:
    """By layer, the largest relative deviation from its mean over several draws of one network.

    Of the sensitivity, or of ``tau`` where that was not measured.

    Raises:
        ValueError: fewer than two calibrations.
    """
    if len(calibrations) < 2:
        raise ValueError("calibrations: a spread needs at least two draws")
    spread = {}
    for layer in calibrations[0].layers:
        of = [calibration[layer.name] for calibration in calibrations]
        c = [one.tau if one.sensitivity is None else one.sensitivity for one in of]
        mean = sum(c) / len(c)
        spread[layer.name] = max(abs(one - mean) for one in c) / mean
    return spread


def _compared(synapses: Sequence[Synapses], sums: CalibrationSums) -> list[LayerCalibration]:
    """Layers with what is in proportion to the other layers, or measured on request."""
    layers = [_statistics(s, sums) for s in synapses]
    rows = [sums.layers[s.name] for s in synapses]
    if "sensitivity" in rows[0]:
        values = [(float(row["sensitivity"]) / sums.examples) ** 0.5 for row in rows]
        mean = _geometric_mean([value for value in values if value > 0])
        layers = [
            replace(layer, sensitivity=value / mean if value > 0 else 1.0)
            for layer, value in zip(layers, values, strict=True)
        ]
    for i, (s, row) in enumerate(zip(synapses, rows, strict=True)):
        if "fisher" in row:
            layers[i] = replace(layers[i], fisher=(row["fisher"] / sums.examples).view(s.layer.weight.shape))
        if "curve" in row and row["curve_examples"] > 0:
            measured = (row["curve"] / row["curve_examples"]).view(-1, sums.T).tolist()
            layers[i] = replace(layers[i], curve=Curve(tuple(map(tuple, measured))))
    return layers


def _statistics(s: Synapses, sums: CalibrationSums) -> LayerCalibration:
    """One layer by itself."""
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
    # At one timestep both ratios are x / x: tau is 1.0 exactly.
    tau_t = kappa_t / kappa * (R_t / P) / T
    dead = not (float(kappa * P) * energy > 0 and float(tau_t.sum()) > 0)
    if dead:
        tau_t = torch.full((T,), 1 / T, dtype=torch.float64)
    return LayerCalibration(
        name=s.name,
        numel=numel,
        tau=1.0 if dead else float(tau_t.sum()),
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
