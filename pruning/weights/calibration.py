"""Calibration: what criteria need to know of each weight layer, from one pass over a few hundred examples."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

from torch import Tensor

from pruning.weights.calibration_sums import MEASURED, CalibrationSums, Measure
from pruning.weights.curves import Curve
from snn.layers import Synapses
from snn.observing import Network

_DEFAULT: tuple[Measure, ...] = ("gradients",)  # what the default criterion needs


@dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """Statistics of one weight layer; those not measured are None."""

    name: str
    numel: int
    rate_t: tuple[float, ...] | None
    """Spikes per neuron at each timestep; ``None`` for the head."""
    price: float
    """Synaptic operations that one weight costs per example (rule of `snn.activity`)."""
    channels: tuple[float, ...]
    """Squared input by channel, mean over examples and timesteps."""
    sensitivity: float | None = None
    """``sqrt(sum_w w^2 F_w)`` over its geometric mean over the layers where it is not 0; 1 where it is."""
    curve: Curve | None = None
    """Measured distortion by density and timestep."""
    fisher: Tensor | None = field(default=None, compare=False, repr=False)
    """``F_w``, mean squared gradient of the class scores through time, float64 in the shape of the weight;
    not kept in files."""

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
    def from_sums(cls, model: Network, sums: CalibrationSums) -> "Calibration":
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
            if not s.layer.weight.isfinite().all():
                raise ValueError(f"{s.name}: weights are not finite")
            if s.neuron is not None and not sums.layers[s.name]["neurons"] > 0:
                raise ValueError(f"{s.name}: the forward pass never ran its neurons on [T, B, ...]")
        for name, row in sums.layers.items():
            if not all(value.isfinite().all() for value in row.values()):
                raise ValueError(f"{name}: calibration statistics are not finite; check inputs and weights")
        if not any(row["spikes"].sum() > 0 for row in sums.layers.values()):
            raise ValueError(
                "batches: no neuron spiked on the calibration examples"
                " (check the inputs' scale and the batch norm statistics)"
            )
        return cls(tuple(_statistics(synapses, sums)), sums.T, round(sums.examples))

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
    model: Network,
    batches: Iterable[Tensor],
    *,
    measure: Collection[Measure] = _DEFAULT,
    measure_examples: int = MEASURED,
) -> Calibration:
    """Statistics of ``batches`` in one process.

    Args:
        model: network; it is not changed.
        batches: inputs ``[T, B, ...]``; a few hundred examples.
        measure: what the criteria need (`pruning.weights.criteria.needs`): ``gradients`` for ``slamp`` (a
            backward pass), ``fisher`` for ``fisher``, ``curves`` for ``slamp_curve``.
        measure_examples: examples of the backward passes and the curves.

    Raises:
        ValueError: as `CalibrationSums.collect` and `Calibration.from_sums`.
    """
    sums = CalibrationSums.collect(model, batches, measure=measure, measure_examples=measure_examples)
    return Calibration.from_sums(model, sums)


def _geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values)) if values else 1.0


def relative_spread(calibrations: Sequence[Calibration]) -> dict[str, float]:
    """By layer, the largest relative deviation of the sensitivity from its mean over several draws.

    Of the price where sensitivities were not measured.

    Raises:
        ValueError: fewer than two calibrations.
    """
    if len(calibrations) < 2:
        raise ValueError("calibrations: a spread needs at least two draws")
    spread = {}
    for layer in calibrations[0].layers:
        of = [calibration[layer.name] for calibration in calibrations]
        c = [one.price if one.sensitivity is None else one.sensitivity for one in of]
        mean = sum(c) / len(c)
        spread[layer.name] = max(abs(one - mean) for one in c) / mean if mean else 0.0
    return spread


def _statistics(synapses: Sequence[Synapses], sums: CalibrationSums) -> Iterator[LayerCalibration]:
    rows = [sums.layers[s.name] for s in synapses]
    measured = float(rows[0].get("measured", 0))

    def mean(row: dict[str, Tensor], name: str) -> Tensor | None:
        return row[name] / measured if measured and name in row else None

    found = [None if (m := mean(row, "sensitivity")) is None else float(m) ** 0.5 for row in rows]
    typical = _geometric_mean([value for value in found if value])
    for s, row, value in zip(synapses, rows, found, strict=True):
        numel, curve, fisher = s.layer.weight.numel(), mean(row, "curve"), mean(row, "fisher")
        by_density = None if curve is None else curve.view(-1, sums.T).tolist()
        yield LayerCalibration(
            name=s.name,
            numel=numel,
            rate_t=None if s.neuron is None else tuple((row["spikes"] / row["neurons"]).tolist()),
            price=float(row["synops"]) / sums.examples / numel,
            channels=tuple((row["channels"] / (sums.examples * sums.T)).tolist()),
            sensitivity=None if value is None else value / typical if value > 0 else 1.0,
            curve=None if by_density is None else Curve(tuple(map(tuple, by_density))),
            fisher=None if fisher is None else fisher.view(s.layer.weight.shape),
        )
