"""The passes of calibration: sums per layer and timestep that merge exactly over workers."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pruning.weights.curves import DENSITIES, measure_curves
from pruning.weights.gradients import recorded, signs, squared_gradients
from snn.layers import Synapses, WeightLayer, is_static
from snn.neurons import membrane_potential
from snn.observing import HasModes, Observed, evaluating, observe

HALF_WIDTH = 0.2
"""Half width, in thresholds, of the window in which potentials count as near the threshold."""


class CalibratedNetwork(HasModes, Observed, Protocol):
    """A network as calibration sees it: callable on ``x_TB``, with synapses."""


Measure = Literal["gradients", "fisher", "curves"]
"""What a criterion may need beyond the forward pass: squared gradients by layer, by weight, and curves."""

# One row of sums per layer: [T] each for these, scalars, then one value per input channel, and what is
# measured on request.
_PER_STEP = ("near", "potentials", "spikes", "energy", "trace_energy")
_SCALARS = ("outputs", "synops")
_PART = 32
"""Examples of one backward pass: memory does not depend on the batch size."""


def _input_channels(layer: WeightLayer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


class CalibrationSums:
    """Sums over examples, float64: sums of disjoint examples add, in any order and on any worker.

    Attributes:
        T: timesteps.
        examples: number of examples.
        layers: by layer name, the sums by their name: ``near``, ``potentials``, ``spikes``, ``energy``,
            ``trace_energy`` ``[T]``; ``outputs``, ``synops`` ``[1]``; ``channels`` ``[C_in]``, the trace
            energy by input channel, summed over time; where they were measured ``sensitivity`` ``[1]``, the
            sum of ``w^2 F``, ``fisher`` ``[numel]``, that of ``F`` (`pruning.weights.gradients`), ``curve``
            ``[P T]`` and ``curve_examples`` ``[1]`` (`pruning.weights.curves`).
    """

    def __init__(self, T: int, examples: float, layers: dict[str, dict[str, Tensor]]) -> None:
        self.T = T
        self.examples = examples
        self.layers = layers

    @classmethod
    @torch.no_grad()
    def collect(
        cls,
        model: CalibratedNetwork,
        batches: Iterable[Tensor],
        *,
        T: int | None = None,
        measure: Collection[Measure] = (),
        curve_examples: int = 128,
    ) -> "CalibrationSums":
        """Sums over ``batches`` of inputs ``x_TB``, ``[T, B, ...]``, with ``model`` in eval mode.

        Neither weights nor statistics change; every module's training flag is restored. Elementwise work
        is in the model's dtype, sums are float64. With ``T`` given, no batch at all gives sums of no
        examples (a worker without a share). Curves are measured on the first ``curve_examples``, held in
        memory, with a forward pass per layer and density.

        Raises:
            ValueError: no batch, batches of different ``T``, inputs of a shape that a layer refuses, a layer
                whose input `snn.observing.observe` cannot tell, or fewer than two examples for curves.
        """
        sums = None if T is None else cls.zeros(model, T, measure)
        held: list[Tensor] = []
        wanted, taps = curve_examples if "curves" in measure else 0, _Taps()
        with evaluating(model):
            for x_TB in batches:
                if x_TB.ndim < 3 or x_TB.shape[0] < 1:
                    raise ValueError(f"batches: shape {tuple(x_TB.shape)} must be [T, B, ...]")
                if sums is None:
                    sums = cls.zeros(model, x_TB.shape[0], measure)
                if x_TB.shape[0] != sums.T:
                    raise ValueError(f"batches: T={x_TB.shape[0]} where T={sums.T}; all need the same T")
                for part_TB in _parts(x_TB):
                    _collect_part(model, part_TB, sums, taps, measure)
                if wanted > 0 and x_TB.shape[1]:
                    held.append(x_TB[:, :wanted])
                    wanted -= held[-1].shape[1]
            if sums is not None and held:
                _collect_curves(model, torch.cat(held, 1), sums)
        if sums is None:
            raise ValueError("batches: calibration needs at least one")
        return sums

    @classmethod
    def zeros(cls, model: CalibratedNetwork, T: int, measure: Collection[Measure] = ()) -> "CalibrationSums":
        """Sums of no examples (the share of a worker that has none)."""
        if T < 1:
            raise ValueError(f"T: {T!r} must be at least 1")

        def of(layer: WeightLayer) -> dict[str, Tensor]:
            sizes = dict.fromkeys(_PER_STEP, T) | dict.fromkeys(_SCALARS, 1)
            sizes["channels"] = _input_channels(layer)
            if "gradients" in measure:
                sizes["sensitivity"] = 1
            if "fisher" in measure:
                sizes["fisher"] = layer.weight.numel()
            if "curves" in measure:
                sizes |= {"curve": len(DENSITIES) * T, "curve_examples": 1}
            return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

        return cls(T, 0.0, {s.name: of(s.layer) for s in model.synapses()})

    def to_vector(self) -> Tensor:
        """All sums as one float64 vector on the CPU: adding vectors merges the measurements."""
        parts = [torch.tensor([self.examples], dtype=torch.float64)]
        parts += [value for sums in self.layers.values() for value in sums.values()]
        return torch.cat(parts)

    @classmethod
    def from_vector(
        cls, model: CalibratedNetwork, vector: Tensor, T: int, measure: Collection[Measure] = ()
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

    def merge(self, other: "CalibrationSums") -> "CalibrationSums":
        """Sums of both sets of examples.

        Raises:
            ValueError: sums of another network or number of timesteps.
        """
        shapes = [
            (s.T, {layer: {n: v.shape for n, v in sums.items()} for layer, sums in s.layers.items()})
            for s in (self, other)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError("sums: of different networks or timesteps, cannot be merged")
        return CalibrationSums(
            self.T,
            self.examples + other.examples,
            {
                layer: {name: value + other.layers[layer][name] for name, value in sums.items()}
                for layer, sums in self.layers.items()
            },
        )


class _Taps:
    """How many outputs of a convolution each input position feeds, remembered by layer and size."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.Size], Tensor] = {}

    def __call__(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """``[H, W]`` in the dtype of ``x``."""
        key = (id(conv), x.shape[2:])
        if key not in self._known:
            one = nn.Conv2d(1, 1, conv.kernel_size, dtype=torch.float64, bias=False)  # type: ignore[arg-type]
            one.stride, one.padding, one.dilation = conv.stride, conv.padding, conv.dilation
            one.padding_mode = conv.padding_mode
            one._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
            nn.init.ones_(one.weight)
            with torch.enable_grad():
                probe = torch.zeros(1, 1, *x.shape[2:], dtype=torch.float64, requires_grad=True)
                (taps,) = torch.autograd.grad(one(probe).sum(), probe)
            self._known[key] = taps[0, 0].to(x)
        return self._known[key]


def _parts(x_TB: Tensor) -> Iterator[Tensor]:
    """Of at most ``_PART`` examples, and never as many as timesteps: `observe` would run those in halves."""
    T = len(x_TB)
    for part_TB in x_TB.split(_PART, dim=1):
        B = part_TB.shape[1]
        if B:
            yield from part_TB.split(-(-B // 2), dim=1) if T == B > 1 else (part_TB,)


def _collect_part(
    model: CalibratedNetwork,
    x_TB: Tensor,
    sums: CalibrationSums,
    taps: _Taps,
    measure: Collection[Measure],
) -> None:
    synapses = model.synapses()
    fed = {id(s.neuron): [sums.layers[t.name] for t in synapses if t.neuron is s.neuron] for s in synapses}
    neurons = {id(s.neuron): s.neuron for s in synapses if s.neuron is not None}

    @torch.no_grad()
    def at_layer(i: int, x_TB: Tensor, outputs: int) -> None:
        s = synapses[i]
        beta = 0.0 if s.neuron is None else s.neuron.constants.beta
        _add_inputs(sums.layers[s.name], s.layer, x_TB, beta, taps)
        sums.layers[s.name]["outputs"] += x_TB.shape[1] * outputs

    def at_neuron(layers: list[dict[str, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        @torch.no_grad()
        def hook(neuron: Any, inputs: tuple[Tensor, ...]) -> None:
            p = neuron.constants
            u_TX = membrane_potential(inputs[0], p).flatten(1)
            near = ((u_TX / p.theta - 1).abs() < HALF_WIDTH).sum(1).double().cpu()
            spikes = (u_TX >= p.theta).sum(1).double().cpu()
            for layer in layers:
                layer["near"] += near
                layer["spikes"] += spikes
                layer["potentials"] += u_TX.shape[1]

        return hook

    backward = not {"gradients", "fisher"}.isdisjoint(measure)
    with ExitStack() as hooks:
        for s in synapses:
            hooks.callback(s.layer.register_forward_pre_hook(_check_shape(s)).remove)
        for key, neuron in neurons.items():
            hooks.callback(neuron.register_forward_pre_hook(at_neuron(fed[key])).remove)
        hooks.enter_context(torch.enable_grad() if backward else nullcontext())
        calls = hooks.enter_context(recorded(synapses)) if backward else []
        logits_TBK = observe(model, x_TB, at_layer)
    sums.examples += x_TB.shape[1]
    if backward:
        found = squared_gradients(synapses, calls, logits_TBK, signs(x_TB, logits_TBK.shape[-1]))
        for s, squares in zip(synapses, found, strict=True):
            row = sums.layers[s.name]
            if "gradients" in measure:
                row["sensitivity"] += (s.layer.weight.double().cpu().square() * squares).sum()
            if "fisher" in measure:
                row["fisher"] += squares.flatten()


def _collect_curves(model: CalibratedNetwork, x_TB: Tensor, sums: CalibrationSums) -> None:
    if x_TB.shape[1] < 2:
        raise ValueError("batches: curves need at least two examples on every worker")
    synapses = model.synapses()
    for s, curve in zip(synapses, measure_curves(model, synapses, x_TB), strict=True):
        sums.layers[s.name]["curve"] += curve.flatten() * x_TB.shape[1]
        sums.layers[s.name]["curve_examples"] += x_TB.shape[1]


def _check_shape(s: Synapses) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    axis, needed = (-1, s.layer.in_features) if isinstance(s.layer, nn.Linear) else (1, s.layer.in_channels)

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = tuple(inputs[0].shape)
        if shape[axis] != needed or (isinstance(s.layer, nn.Conv2d) and len(shape) != 4):
            raise ValueError(
                f"batches: {s.name} gets {shape} where it takes {needed} channels or features:"
                " calibration examples have another shape than the network's input"
            )

    return hook


def _add_inputs(row: dict[str, Tensor], layer: WeightLayer, x_TB: Tensor, beta: float, taps: _Taps) -> None:
    """Add the energies of the input and of its trace, and the operations, summed over positions."""
    if isinstance(layer, nn.Conv2d):
        # Summed over positions, a patch's square is each input's square times the patches it is in;
        # an output channel of a grouped convolution sees one group: the mean over channels is 1 / groups.
        count = taps(layer, x_TB[0])
        fanout = layer.out_channels // layer.groups
        channel_dims, groups = [d for d in range(x_TB.ndim - 1) if d != 1], layer.groups
    else:
        count = torch.ones((), dtype=x_TB.dtype, device=x_TB.device)
        fanout = layer.out_features
        channel_dims, groups = list(range(x_TB.ndim - 2)), 1
    if x_TB.dtype in (torch.float16, torch.bfloat16):
        x_TB, count = x_TB.float(), count.float()
    by_channel = torch.zeros(())
    trace = torch.zeros_like(x_TB[0])
    for t, x in enumerate(x_TB):
        if t == 0 or not is_static(x_TB):
            by_channel = (x.square() * count).sum(channel_dims, dtype=torch.float64)
            energy = by_channel.sum().cpu() / groups
            synops = ((x != 0) * count).sum(dtype=torch.float64).cpu() * fanout
        # Without leak, and at the first step, the trace is the input: bit-equal sums, so that one
        # timestep gives ratios of exactly 1.
        trace_by_channel, trace_energy = by_channel, energy
        if t and beta:
            trace = x + beta * trace
            trace_by_channel = (trace.square() * count).sum(channel_dims, dtype=torch.float64)
            trace_energy = trace_by_channel.sum().cpu() / groups
        else:
            trace = x
        row["energy"][t] += energy
        row["trace_energy"][t] += trace_energy
        row["synops"] += synops
        row["channels"] += trace_by_channel.cpu()
