"""The reference engine: one plain torch operation after the other, on any device and dtype."""

import torch
from torch import Tensor

from snn.parameters import NeuronParameters


def lif(
    current_TB: Tensor, state: Tensor | None, p: NeuronParameters, learned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes and final state of `snn.neurons.lif`."""
    dtype = state_dtype(current_TB.dtype)
    beta = p.beta if learned is None else learned.to(dtype)
    v = torch.zeros_like(current_TB[0], dtype=dtype) if state is None else state.to(dtype)
    spikes = []
    for current in current_TB.to(dtype).unbind(0):
        u = beta * v + ((1 - beta) * current if p.decay_input else current)
        s = p.surrogate(u - p.theta)
        reset = s.detach() if p.detach_reset else s
        v = u * (1 - reset) if p.reset == "hard" else u - p.theta * reset
        spikes.append(s)
    return torch.stack(spikes).to(current_TB.dtype), v


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the potentials for currents of ``dtype``: never below float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype
