"""What the fused engines share: memory layout, and one autograd function that recomputes.

An engine sees a current as ``T`` rows of ``N`` neurons in whatever order the memory has them, so
contiguous and channels-last tensors run without a copy, and a static current (stride 0 over time) is
one row read ``T`` times.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn.kernels.eager import state_dtype
from snn.parameters import NeuronParameters


@dataclass(frozen=True)
class Run:
    """What both loops over time start from."""

    current: Tensor
    """``[T, N]``, stride 0 over time where it is static."""
    beta: float | Tensor
    """A scalar tensor where it is learned."""
    p: NeuronParameters


class Engine:
    """One implementation of the two loops over time."""

    devices: tuple[str, ...]
    """Device types it runs on."""
    dtypes: tuple[torch.dtype, ...]
    """Dtypes of the currents it takes."""
    most_timesteps = 1 << 30

    def unavailable(self) -> str | None:
        """Why the engine cannot run on this machine, or ``None``."""
        raise NotImplementedError

    def forward(self, run: Run, spikes_TN: Tensor) -> None:
        """Write spikes."""
        raise NotImplementedError

    def backward(
        self, run: Run, grad_spikes_TN: Tensor, grad_current_TN: Tensor, want_grad_beta: bool
    ) -> Tensor | None:
        """Write the gradient of the current, return that of ``beta``."""
        raise NotImplementedError


def lif(engine: Engine, current_TB: Tensor, parameters: NeuronParameters, beta: Tensor | None) -> Tensor:
    """Spikes of `snn.neurons.lif` by a fused engine."""
    if beta is not None:
        beta = beta.to(state_dtype(current_TB.dtype))
    spikes: Tensor = _LIF.apply(engine, current_TB, beta, parameters)
    return spikes


def _is_dense(x: Tensor) -> bool:
    """Whether the axes fill their memory without gaps or overlap, in any order."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _steps_like(x_TB: Tensor) -> Tensor:
    """Memory for ``T`` timesteps, each laid out as those of ``x_TB``."""
    one = x_TB[0]
    return torch.empty_strided(x_TB.shape, (one.numel(), *one.stride()), dtype=x_TB.dtype, device=x_TB.device)


def _as_laid_out(x_TB: Tensor, like_TB: Tensor) -> Tensor:
    """``x_TB`` with each timestep laid out as those of ``like_TB``, copied only where they are not."""
    sizes = zip(x_TB.stride()[1:], like_TB.stride()[1:], x_TB.shape[1:], strict=True)
    return x_TB if all(s == t for s, t, n in sizes if n != 1) else _steps_like(like_TB).copy_(x_TB)


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, current: Tensor, beta: Tensor | None, p: NeuronParameters
    ) -> Tensor:
        if not _is_dense(current[0]):
            current = current.contiguous()
        spikes = _steps_like(current)
        if spikes.numel():
            engine.forward(Run(current, p.beta if beta is None else beta, p), spikes)
        ctx.save_for_backward(current, beta)
        ctx.engine, ctx.p = engine, p
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes: Tensor):  # type: ignore[no-untyped-def]
        current, beta = ctx.saved_tensors
        grad_current = _steps_like(current)
        grad_beta = None if beta is None else torch.zeros_like(beta)
        if current.numel():
            grad_beta = ctx.engine.backward(
                Run(current, ctx.p.beta if beta is None else beta, ctx.p),
                _as_laid_out(grad_spikes, current),
                grad_current,
                beta is not None and ctx.needs_input_grad[2],
            )
        return None, grad_current, grad_beta, None
