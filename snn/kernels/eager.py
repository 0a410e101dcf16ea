"""The reference engine: one plain torch operation after the other, on any device and dtype."""

from typing import Protocol

import torch
from torch import Tensor

from snn.surrogate import Surrogate


class LIFConstants(Protocol):
    """What an engine needs to know of a neuron (see `snn.neurons.NeuronParameters`)."""

    @property
    def beta(self) -> float: ...  # noqa: D102
    @property
    def theta(self) -> float: ...  # noqa: D102
    @property
    def gain(self) -> float: ...  # noqa: D102
    @property
    def reset(self) -> str: ...  # noqa: D102
    @property
    def detach_reset(self) -> bool: ...  # noqa: D102
    @property
    def surrogate(self) -> Surrogate: ...  # noqa: D102


def lif(current_TB: Tensor, state: Tensor | None, parameters: LIFConstants) -> tuple[Tensor, Tensor]:
    """Spikes and final state of `snn.neurons.lif`."""
    spikes, _, v = _run(current_TB, state, parameters)
    return torch.stack(spikes), v


def potentials(current_TB: Tensor, state: Tensor | None, parameters: LIFConstants) -> Tensor:
    """Potentials before the reset, ``[T, B, ...]``."""
    return torch.stack(_run(current_TB, state, parameters)[1])


def _run(
    current_TB: Tensor, state: Tensor | None, p: LIFConstants
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    v = torch.zeros_like(current_TB[0]) if state is None else state
    spikes, potentials = [], []
    for current in current_TB.unbind(0):
        u = p.beta * v + (current if p.gain == 1 else p.gain * current)
        s = p.surrogate(u - p.theta)
        reset = s.detach() if p.detach_reset else s
        v = u * (1 - reset) if p.reset == "hard" else u - p.theta * reset
        spikes.append(s)
        potentials.append(u)
    return spikes, potentials, v
