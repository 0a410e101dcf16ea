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
    def reset(self) -> str: ...  # noqa: D102
    @property
    def detach_reset(self) -> bool: ...  # noqa: D102
    @property
    def decay_input(self) -> bool: ...  # noqa: D102
    @property
    def surrogate(self) -> Surrogate: ...  # noqa: D102


def lif(
    current_TB: Tensor, state: Tensor | None, parameters: LIFConstants, beta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes and final state of `snn.neurons.lif`."""
    spikes, _, v = _run(current_TB, state, parameters, beta)
    return torch.stack(spikes).to(current_TB.dtype), v


def potentials(
    current_TB: Tensor, state: Tensor | None, parameters: LIFConstants, beta: Tensor | None = None
) -> Tensor:
    """Potentials before the reset, ``[T, B, ...]``."""
    return torch.stack(_run(current_TB, state, parameters, beta)[1])


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the potentials for currents of ``dtype``: never below float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def _run(
    current_TB: Tensor, state: Tensor | None, p: LIFConstants, learned: Tensor | None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    dtype = state_dtype(current_TB.dtype)
    beta = p.beta if learned is None else learned.to(dtype)
    v = torch.zeros_like(current_TB[0], dtype=dtype) if state is None else state.to(dtype)
    spikes, potentials = [], []
    for current in current_TB.to(dtype).unbind(0):
        u = beta * v + ((1 - beta) * current if p.decay_input else current)
        s = p.surrogate(u - p.theta)
        reset = s.detach() if p.detach_reset else s
        v = u * (1 - reset) if p.reset == "hard" else u - p.theta * reset
        spikes.append(s)
        potentials.append(u)
    return spikes, potentials, v
