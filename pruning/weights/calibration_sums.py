"""The passes of calibration: sums per layer that merge over workers."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor, nn

from pruning.weights.curves import DENSITIES, measure_curves
from snn.activity import synaptic_operations
from snn.batchnorm import joined
from snn.layers import Synapses, WeightLayer, is_static
from snn.observing import Network, evaluating, observe

Measure = Literal["gradients", "fisher", "curves"]
"""What a criterion may need beyond the forward pass: squared gradients by layer, by weight, and curves."""

PART = 16
"""Examples of one backward pass: fewer give more draws and take longer."""
MEASURED = 200
"""Examples on which gradients and curves are measured."""


def _input_channels(layer: WeightLayer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


@dataclass
class CalibrationSums:
    """Sums over examples, float64: sums of disjoint examples add, in any order and on any worker."""

    T: int
    examples: float
    layers: dict[str, dict[str, Tensor]]
    """By layer name, the sums by their name: ``spikes`` ``[T]`` of the neurons that the layer drives,
    ``neurons`` ``[1]`` (times examples), ``synops`` ``[1]`` of the dense layer, ``channels`` ``[C_in]``,
    squared inputs. On request, over ``measured`` ``[1]`` examples: ``sensitivity`` ``[1]``, the sum of
    ``w^2 F``, ``fisher`` ``[numel]``, that of ``F`` (`squared_gradients`), and ``curve`` ``[P T]``."""

    @classmethod
    @torch.no_grad()
    def collect(
        cls,
        model: Network,
        batches: Iterable[Tensor],
        *,
        T: int | None = None,
        measure: Collection[Measure] = (),
        measure_examples: int = MEASURED,
    ) -> "CalibrationSums":
        """Sums over ``batches`` of inputs ``x_TB``, ``[T, B, ...]``, with ``model`` in eval mode.

        The model is left as it was. With ``T`` given, no batch at all gives sums of no examples (a worker
        without a share). What is to be measured is measured on the first ``measure_examples``, which are held
        in memory: gradients with a backward pass per `PART` of them and the same signs in every call, curves
        with a forward pass per layer and density.

        Raises:
            ValueError: no batch, batches of different ``T``, inputs of a shape that a layer refuses, a layer
                whose input `snn.observing.observe` cannot tell, or fewer than two examples for curves.
        """
        sums = None if T is None else cls.zeros(model, T, measure)
        held: list[Tensor] = []
        wanted = measure_examples if measure else 0
        with evaluating(model):
            for x_TB in batches:
                if x_TB.ndim < 3 or x_TB.shape[0] < 1:
                    raise ValueError(f"batches: shape {tuple(x_TB.shape)} must be [T, B, ...]")
                if sums is None:
                    sums = cls.zeros(model, x_TB.shape[0], measure)
                if x_TB.shape[0] != sums.T:
                    raise ValueError(f"batches: T={x_TB.shape[0]} where T={sums.T}; all need the same T")
                if not x_TB.shape[1]:
                    continue
                _collect_batch(model, x_TB, sums)
                if wanted > 0:
                    held.append(x_TB[:, :wanted])
                    wanted -= held[-1].shape[1]
            if sums is None:
                raise ValueError("batches: calibration needs at least one")
            if held:
                _measure(model, held, sums, measure)
        return sums

    @classmethod
    def zeros(cls, model: Network, T: int, measure: Collection[Measure] = ()) -> "CalibrationSums":
        """Sums of no examples (the share of a worker that has none)."""
        if T < 1:
            raise ValueError(f"T: {T!r} must be at least 1")

        def of(layer: WeightLayer) -> dict[str, Tensor]:
            sizes = {"spikes": T, "neurons": 1, "synops": 1, "channels": _input_channels(layer)}
            if "gradients" in measure:
                sizes["sensitivity"] = 1
            if "fisher" in measure:
                sizes["fisher"] = layer.weight.numel()
            if "curves" in measure:
                sizes["curve"] = len(DENSITIES) * T
            if measure:
                sizes["measured"] = 1
            return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

        return cls(T, 0.0, {s.name: of(s.layer) for s in model.synapses()})

    def to_vector(self) -> Tensor:
        """All sums as one float64 vector on the CPU: adding vectors of workers merges their examples."""
        parts = [torch.tensor([self.examples], dtype=torch.float64)]
        parts += [value for sums in self.layers.values() for value in sums.values()]
        return torch.cat(parts)

    @classmethod
    def from_vector(
        cls, model: Network, vector: Tensor, T: int, measure: Collection[Measure] = ()
    ) -> "CalibrationSums":
        """The inverse of ``to_vector``.

        Raises:
            ValueError: a vector of another length than ``model`` has at ``T`` timesteps.
        """
        sums = cls.zeros(model, T, measure)
        expected = sums.to_vector().numel()
        if vector.shape != (expected,):
            raise ValueError(
                f"vector: shape {tuple(vector.shape)}, must be ({expected},) for this model at T={T}"
            )
        rest = vector.detach().to("cpu", torch.float64)
        sums.examples, rest = float(rest[0]), rest[1:]
        for layer in sums.layers.values():
            for name, value in layer.items():
                layer[name], rest = rest[: value.numel()].clone(), rest[value.numel() :]
        return sums


def _collect_batch(model: Network, x_TB: Tensor, sums: CalibrationSums) -> None:
    synapses = model.synapses()

    def at_layer(i: int, x_TB: Tensor, _: int) -> None:
        _add_inputs(sums.layers[synapses[i].name], synapses[i].layer, x_TB)

    def at_neuron(i: int, spikes_TB: Tensor) -> None:
        row = sums.layers[synapses[i].name]
        row["spikes"] += spikes_TB.flatten(1).count_nonzero(1).double().cpu()
        row["neurons"] += spikes_TB[0].numel()

    with ExitStack() as hooks:
        for s in synapses:
            hooks.callback(s.layer.register_forward_pre_hook(partial(_check_shape, s)).remove)
        observe(model, x_TB, at_layer, at_neuron)
    sums.examples += x_TB.shape[1]


def _measure(
    model: Network, batches: list[Tensor], sums: CalibrationSums, measure: Collection[Measure]
) -> None:
    synapses, count = model.synapses(), sum(x.shape[1] for x in batches)
    if "curves" in measure:
        if count < 2:
            raise ValueError("batches: curves need at least two examples on every worker")
        for s, curve in zip(synapses, measure_curves(model, synapses, reduce(joined, batches)), strict=True):
            sums.layers[s.name]["curve"] += curve.flatten() * count
    generator = torch.Generator().manual_seed(0)
    backward = not {"gradients", "fisher"}.isdisjoint(measure)
    for part_TB in (part for x in batches for part in x.split(PART, dim=1)) if backward else ():
        squares = squared_gradients(synapses, partial(model, part_TB), generator)
        for s, square in zip(synapses, squares, strict=True):
            row = sums.layers[s.name]
            if "sensitivity" in row:
                row["sensitivity"] += (s.layer.weight.detach().double().cpu().square() * square).sum()
            if "fisher" in row:
                row["fisher"] += square.flatten()
    for s in synapses:
        sums.layers[s.name]["measured"] += count


def _check_shape(s: Synapses, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    axis, needed = -1 if isinstance(s.layer, nn.Linear) else -3, _input_channels(s.layer)
    shape = tuple(inputs[0].shape)
    if len(shape) < -axis or shape[axis] != needed:
        raise ValueError(
            f"batches: {s.name} gets {shape} where it takes {needed} channels or features:"
            " calibration examples have another shape than the network's input"
        )


def _add_inputs(row: dict[str, Tensor], layer: WeightLayer, x_TB: Tensor) -> None:
    """Squares by channel and the dense layer's operations; timesteps that are all alike count once."""
    x, repeats = (x_TB[0], len(x_TB)) if is_static(x_TB) else (x_TB.flatten(0, 1), 1)
    channel = 0 if isinstance(layer, nn.Conv2d) else x.ndim - 2
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    squares = x.square().sum(0).double()  # over examples first: whole rows are added
    rest = [d for d in range(squares.ndim) if d != channel]
    row["channels"] += repeats * (squares.sum(rest) if rest else squares).cpu()
    # As numbers: sums of booleans are slow.
    row["synops"] += repeats * synaptic_operations(layer, (x != 0).to(x.dtype))[1].cpu()


def squared_gradients(
    synapses: Sequence[Synapses], forward: Callable[[], Tensor], generator: torch.Generator
) -> list[Tensor]:
    """One draw of ``B F_w`` by layer, float64 in the shape of its weight, on the CPU.

    ``F_w = sum_k E (dy_k / dw)^2``, with ``y`` the time mean of the logits. The squared gradient of
    ``sum_bk v_bk y_bk`` for random signs ``v`` is an unbiased draw (docs/methods-slamp.md, section 2).

    ``forward`` gives the logits ``[T, B, K]`` of a few examples, ``generator`` draws the signs; frozen
    weights are measured too.
    """
    weights = [s.layer.weight for s in synapses]
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            scores_BK = forward().mean(0)
        signs_BK = torch.randint(0, 2, scores_BK.shape, generator=generator).to(scores_BK) * 2 - 1
        found = torch.autograd.grad(scores_BK, weights, signs_BK, allow_unused=True)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return [
        torch.zeros(w.shape, dtype=torch.float64) if g is None else g.double().square().cpu()
        for w, g in zip(weights, found, strict=True)
    ]
