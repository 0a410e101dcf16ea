"""What a network does: firing rates, synaptic operations of the surviving weights, and their energy.

Counting rule (NeuroBench, Yik et al. 2025, arXiv 2304.04640): one operation per nonzero input and
surviving (nonzero) weight that it meets, over all timesteps of one inference. The operations of a
layer are accumulates (AC) when all its inputs are spikes, in {-1, 0, 1}, and multiply-accumulates
(MAC) otherwise, as in a first layer on analog pixels. Biases, norms and neurons are not counted, nor
are products of activations (attention). A static input counts at every timestep, also where our
layers compute it once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn.layers import WeightLayer, is_static
from snn.models.base import SpikingNetwork
from snn.observing import evaluating, observe

AC_PICOJOULES = 0.9
"""Energy of one float32 addition in 45 nm CMOS (Horowitz 2014, ISSCC)."""
MAC_PICOJOULES = 4.6
"""Energy of one float32 multiplication and addition in 45 nm CMOS (Horowitz 2014, ISSCC)."""

_COLUMNS = ("synops", "dense_synops", "analog", "inputs_nonzero", "inputs", "spikes", "neuron_steps")
_SYNOPS, _DENSE, _ANALOG, _NONZERO, _INPUTS, _SPIKES, _STEPS = range(len(_COLUMNS))


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """One weight layer; operations are per inference (all timesteps), means over the examples."""

    name: str
    """As in `SpikingNetwork.synapses`."""
    weights: int
    surviving: int
    """Weights that are not zero."""
    input_rate: float
    """Share of nonzero inputs."""
    firing_rate: float | None
    """Spikes per timestep of the neurons it drives; ``None`` for the head."""
    synops: float
    dense_synops: float
    """Operations if no weight were zero, at the measured activity."""
    spiking_input: bool
    """Whether all inputs were in {-1, 0, 1}."""

    @property
    def density(self) -> float:
        """Share of surviving weights."""
        return self.surviving / self.weights

    @property
    def acs(self) -> float:
        """Accumulates of surviving weights."""
        return self.synops if self.spiking_input else 0.0

    @property
    def macs(self) -> float:
        """Multiply-accumulates of surviving weights."""
        return 0.0 if self.spiking_input else self.synops


@dataclass(frozen=True)
class Activity:
    """All weight layers of a network in forward order, and their totals per inference."""

    layers: tuple[LayerActivity, ...]
    examples: int
    """Examples measured."""

    @property
    def acs(self) -> float:
        """Accumulates of surviving weights."""
        return sum(layer.acs for layer in self.layers)

    @property
    def macs(self) -> float:
        """Multiply-accumulates of surviving weights."""
        return sum(layer.macs for layer in self.layers)

    @property
    def synops(self) -> float:
        """Operations of surviving weights, accumulates and multiply-accumulates together."""
        return self.acs + self.macs

    @property
    def dense_synops(self) -> float:
        """Operations if no weight were zero, at the measured activity."""
        return sum(layer.dense_synops for layer in self.layers)

    @property
    def density(self) -> float:
        """Share of surviving weights."""
        return sum(layer.surviving for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def energy_pj(self) -> float:
        """Energy of the operations in picojoules: an estimate that leaves out memory traffic."""
        return AC_PICOJOULES * self.acs + MAC_PICOJOULES * self.macs


def measure(model: SpikingNetwork, batches: Iterable[Tensor]) -> Activity:
    """Activity of ``model`` in eval mode over ``batches`` of currents ``[T, B, ...]``.

    Raises:
        ValueError: no example, or a weight layer whose input `snn.observing.observe` cannot tell.
    """
    return from_sums(model, collect(model, batches))


@torch.no_grad()
def collect(model: SpikingNetwork, batches: Iterable[Tensor]) -> Tensor:
    """The sums of `measure`; those of other workers, on disjoint examples, can be added to them.

    Every module's training flag is restored; weights and norm statistics are left alone.

    Returns:
        float64 ``[L * 7 + 1]``, whole numbers and so exact in any order of addition below 2^53.
    """
    sums = torch.zeros(len(model.synapses()) * len(_COLUMNS) + 1, dtype=torch.float64)
    with evaluating(model):
        for x_TB in batches:
            sums += _collect_batch(model, x_TB)
    return sums


def from_sums(model: SpikingNetwork, sums: Tensor) -> Activity:
    """The measurement from `collect`'s sums, with the weights as they are in ``model`` now.

    Raises:
        ValueError: no example was measured, or the sums are of a network with other layers.
    """
    synapses, rows, examples = model.synapses(), sums[:-1].view(-1, len(_COLUMNS)).tolist(), int(sums[-1])
    if len(rows) != len(synapses):
        raise ValueError(f"sums: of {len(rows)} layers, the model has {len(synapses)}")
    if examples < 1:
        raise ValueError("batches: no example to measure activity on")
    layers = (
        LayerActivity(
            name=s.name,
            weights=s.layer.weight.numel(),
            surviving=int(s.layer.weight.count_nonzero()),
            input_rate=row[_NONZERO] / max(row[_INPUTS], 1),
            firing_rate=None if s.neuron is None else row[_SPIKES] / max(row[_STEPS], 1),
            synops=row[_SYNOPS] / examples,
            dense_synops=row[_DENSE] / examples,
            spiking_input=row[_ANALOG] == 0,
        )
        for s, row in zip(synapses, rows, strict=True)
    )
    return Activity(tuple(layers), examples)


def _collect_batch(model: SpikingNetwork, x_TB: Tensor) -> Tensor:
    synapses = model.synapses()
    rows = torch.zeros(len(synapses), len(_COLUMNS), dtype=torch.int64, device=x_TB.device)

    def at_layer(i: int, x_TB: Tensor, _: int) -> None:
        # Timesteps that are all alike are counted once.
        x, repeats = (x_TB[0], len(x_TB)) if is_static(x_TB) else (x_TB.flatten(0, 1), 1)
        row, nonzero = rows[i], x != 0
        synops, dense = synaptic_operations(synapses[i].layer, nonzero)
        row[_SYNOPS] += repeats * synops
        row[_DENSE] += repeats * dense
        row[_ANALOG] += (nonzero & (x.abs() != 1)).any()
        row[_NONZERO] += repeats * nonzero.sum()
        row[_INPUTS] += repeats * x.numel()

    def at_neuron(i: int, spikes_TB: Tensor) -> None:
        rows[i][_SPIKES] += spikes_TB.count_nonzero()
        rows[i][_STEPS] += spikes_TB.numel()

    observe(model, x_TB, at_layer, at_neuron)
    examples = torch.tensor([float(x_TB.shape[1])], dtype=torch.float64)
    return torch.cat([rows.cpu().flatten().to(torch.float64), examples])


def synaptic_operations(layer: WeightLayer, active: Tensor) -> tuple[Tensor, Tensor]:
    """Operations of surviving weights and of all weights for inputs that are ``active`` (bool, batched).

    Exact: a convolution's weight ``[o, c, i, j]`` meets as many inputs as are active in channel ``c``
    at the positions that tap ``(i, j)`` visits, whatever ``o``.
    """
    alive = layer.weight != 0
    if isinstance(layer, nn.Linear):
        met = active.flatten(0, -2).sum(0)
        return (alive.sum(0) * met).sum(), layer.out_features * met.sum()
    met = _active_per_tap(layer, active.sum(0))
    alive_per_tap = alive.unflatten(0, (layer.groups, -1)).sum(1).flatten(0, 1)
    return (alive_per_tap * met).sum(), layer.out_channels // layer.groups * met.sum()


def _active_per_tap(conv: nn.Conv2d, active_CHW: Tensor) -> Tensor:
    """``[C, kh, kw]``: active inputs (summed over examples) that each tap of a kernel visits."""
    before_after = conv._reversed_padding_repeated_twice  # as F.pad takes it, for "same" as well
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(active_CHW.double()[None], before_after, mode=mode)[0].long()
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    rows = (padded.shape[1] - dh * (kh - 1) - 1) // sh * sh + 1
    columns = (padded.shape[2] - dw * (kw - 1) - 1) // sw * sw + 1
    taps = [
        padded[:, i * dh : i * dh + rows : sh, j * dw : j * dw + columns : sw].sum((1, 2))
        for i in range(kh)
        for j in range(kw)
    ]
    return torch.stack(taps, 1).unflatten(1, (kh, kw))
