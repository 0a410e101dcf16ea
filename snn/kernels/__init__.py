"""Engines that run the multi-step LIF behind one function."""

from torch import Tensor

from snn.kernels import eager
from snn.kernels.eager import LIFConstants

__all__ = ["LIFConstants", "eager", "lif"]


def lif(current_TB: Tensor, state: Tensor | None, parameters: LIFConstants) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, B, ...]`` and the potential after the last step, as `snn.neurons.lif` defines them."""
    return eager.lif(current_TB, state, parameters)
