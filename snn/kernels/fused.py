"""What the fused engines share: memory layout, and one autograd function that recomputes.

An engine sees a current as ``T`` rows of ``N`` neurons in whatever order the memory has them, so
contiguous and channels-last tensors run without a copy, and a static current (stride 0 over time) is
one row read ``T`` times, whose gradient comes back already summed over time.
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
    """What both loops over time start from; the tensors of one call share one layout."""

    current: Tensor
    """``[T, N]``, stride 0 over time where it is static."""
    state: Tensor | None
    """``[N]``."""
    beta: float | Tensor
    """A scalar tensor where it is learned."""
    p: NeuronParameters


class Engine:
    """One implementation of the two loops over time."""

    devices: tuple[str, ...]
    """Device types it runs on."""
    dtypes: tuple[torch.dtype, ...]
    """Dtypes of the currents it takes."""

    def unavailable(self) -> str | None:
        """Why the engine cannot run on this machine, or ``None``."""
        raise NotImplementedError

    def forward(self, run: Run, spikes_TN: Tensor, end_N: Tensor | None) -> None:
        """Write spikes and, where wanted, the potential after the last step."""
        raise NotImplementedError

    def backward(
        self,
        run: Run,
        grad_spikes_TN: Tensor,
        grad_end_N: Tensor | None,
        grad_current_TN: Tensor,
        grad_state_N: Tensor | None,
        want_grad_beta: bool,
    ) -> Tensor | None:
        """Write gradients, return that of ``beta``; a stride-0 ``grad_current_TN`` takes the sum over T."""
        raise NotImplementedError


def lif(
    engine: Engine,
    current_TB: Tensor,
    state: Tensor | None,
    parameters: NeuronParameters,
    beta: Tensor | None,
    with_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Spikes and final state of `snn.neurons.lif` by a fused engine."""
    dtype = state_dtype(current_TB.dtype)
    if state is not None:
        state = state.to(dtype)
    if beta is not None:
        beta = beta.to(dtype)
    T = current_TB.shape[0]
    steps, current = None, current_TB
    if T > 1 and current_TB.stride(0) == 0:
        steps, current = T, _expanded_from(current_TB)
    return _LIF.apply(engine, current, steps, state, beta, parameters, with_state)


def _expanded_from(current_TB: Tensor) -> Tensor:
    """The one timestep behind a static current, where possible the very tensor that was expanded.

    ``current_TB[0]`` has the same values, but its backward would write all ``T`` steps to sum them again.
    """
    base = current_TB._base
    if (
        base is not None
        and base.shape == current_TB.shape[1:]
        and base.stride() == current_TB.stride()[1:]
        and base.storage_offset() == current_TB.storage_offset()
    ):
        if not current_TB.requires_grad:
            return base.detach()
        node = current_TB.grad_fn
        if node is not None and node.name() == "ExpandBackward0":
            before = node.next_functions[0][0]
            if before is base.grad_fn or getattr(before, "variable", None) is base:
                return base
    return current_TB[0]


def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether the axes fill their memory without gaps or overlap, in any order."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _same_order(a: Tensor, strides: tuple[int, ...]) -> bool:
    return all(s == t for s, t, n in zip(a.stride(), strides, a.shape, strict=True) if n != 1)


def _as_laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``x`` (one timestep) in memory order ``strides``, copied only where it differs."""
    if _same_order(x, strides):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _steps_as_laid_out(x_TB: Tensor, strides: tuple[int, ...]) -> Tensor:
    if _same_order(x_TB[0], strides):
        return x_TB
    if x_TB.stride(0) == 0:
        return _as_laid_out(x_TB[0], strides).expand_as(x_TB)
    return _empty_steps(x_TB.shape[0], x_TB[0], strides).copy_(x_TB)


def _empty_steps(T: int, like_B: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(
        (T, *like_B.shape), (like_B.numel(), *strides), dtype=like_B.dtype, device=like_B.device
    )


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        current: Tensor,
        steps: int | None,
        state: Tensor | None,
        beta: Tensor | None,
        p: NeuronParameters,
        with_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        one = current if steps is not None else current[0]
        if not _is_dense(one.shape, one.stride()):
            current = current.contiguous()
            one = current if steps is not None else current[0]
        strides = one.stride()
        current_TN = current if steps is None else current.expand(steps, *current.shape)
        spikes = _empty_steps(current_TN.shape[0], one, strides)
        end = None
        if with_state:
            end = torch.empty_strided(one.shape, strides, dtype=state_dtype(one.dtype), device=one.device)
        if state is not None:
            state = _as_laid_out(state, strides)
        if one.numel():
            engine.forward(Run(current_TN, state, p.beta if beta is None else beta, p), spikes, end)
        ctx.save_for_backward(current, state, beta)
        ctx.engine, ctx.steps, ctx.p = engine, steps, p
        ctx.set_materialize_grads(False)
        return spikes, end

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes: Tensor | None, grad_end: Tensor | None):  # type: ignore[no-untyped-def]
        if grad_spikes is None and grad_end is None:
            return (None,) * 7
        current, state, beta = ctx.saved_tensors
        p, steps = ctx.p, ctx.steps
        one = current if steps is not None else current[0]
        strides = one.stride()
        current_TN = current if steps is None else current.expand(steps, *current.shape)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(one).expand_as(current_TN)
        if grad_end is not None:
            grad_end = _as_laid_out(grad_end, strides)
        if steps is None:
            grad_current = _empty_steps(current.shape[0], one, strides)
            grad_current_TN = grad_current
        else:
            grad_current = torch.empty_strided(one.shape, strides, dtype=one.dtype, device=one.device)
            grad_current_TN = grad_current.expand_as(current_TN)
        grad_state = torch.empty_like(state) if state is not None and ctx.needs_input_grad[3] else None
        grad_beta = torch.zeros_like(beta) if beta is not None else None
        if one.numel():
            grad_beta = ctx.engine.backward(
                Run(current_TN, state, p.beta if beta is None else beta, p),
                _steps_as_laid_out(grad_spikes, strides),
                grad_end,
                grad_current_TN,
                grad_state,
                beta is not None and ctx.needs_input_grad[4],
            )
        return None, grad_current, None, grad_state, grad_beta, None, None
