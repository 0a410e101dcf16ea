"""The CUDA engine: programs of `snn.kernels.triton_jit` over segments of the timesteps.

A sequence longer than one program holds runs in segments: the forward hands the state on, and the
backward first runs the forward once more for the states between segments.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snn.kernels.fused import Engine, Run
from snn.parameters import NeuronParameters

MAX_STEPS = 16
"""Timesteps of one program: their potentials must fit in registers in the backward pass."""
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_EXACT: dict[str, Any] = {} if _INTERPRETED else {"enable_fp_fusion": False}
"""No fused multiply-adds: spikes must equal the eager engine's."""


class _Engine(Engine):
    devices = ("cuda", "cpu") if _INTERPRETED else ("cuda",)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def unavailable(self) -> str | None:
        return _why_unavailable()

    def forward(self, run: Run, spikes_TN: Tensor, end_N: Tensor | None) -> None:
        T, state = len(run.current), run.state
        with _device_of(run.current):
            for first in _segments(run):
                end = end_N if first + MAX_STEPS >= T else _state_like(run.current)
                _run_forward(_segment(run, first, state), _steps(spikes_TN, first), end)
                state = end

    def backward(
        self,
        run: Run,
        grad_spikes_TN: Tensor,
        grad_end_N: Tensor | None,
        grad_current_TN: Tensor,
        grad_state_N: Tensor | None,
        want_grad_beta: bool,
    ) -> Tensor | None:
        current_TN = run.current
        with _device_of(current_TN):
            states = [run.state]
            for first in _segments(run)[:-1]:
                end = _state_like(current_TN)
                _run_forward(_segment(run, first, states[-1]), None, end)
                states.append(end)
            # Halves would lose the sum over T of several segments: add it up in float32.
            static = len(current_TN) > 1 and grad_current_TN.stride(0) == 0
            summed = _state_like(current_TN) if static and len(states) > 1 else None
            grad_v, grad_beta, added = grad_end_N, None, False
            for first, state in reversed(list(zip(_segments(run), states, strict=True))):
                out = grad_state_N if first == 0 else _state_like(current_TN)
                partial = _run_backward(
                    _segment(run, first, state),
                    _steps(grad_spikes_TN, first),
                    grad_v,
                    _steps(grad_current_TN, first) if summed is None else summed[None],
                    static,
                    added,
                    out,
                    want_grad_beta,
                )
                grad_v, added = out, summed is not None
                if partial is not None:
                    grad_beta = partial if grad_beta is None else grad_beta + partial
            if summed is not None:
                grad_current_TN[0].copy_(summed)
            return grad_beta


ENGINE = _Engine()


@cache
def _why_unavailable() -> str | None:
    if not (_INTERPRETED or torch.cuda.is_available()):
        return "no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    if _INTERPRETED:
        return None
    x = torch.zeros(1, 16, device="cuda")
    try:
        ENGINE.forward(Run(x, None, 0.5, NeuronParameters()), torch.empty_like(x), None)
        torch.cuda.synchronize()
    except Exception as error:  # whatever keeps Triton from compiling here, eager still works
        return f"triton cannot compile here: {error}"
    return None


def _run_forward(run: Run, spikes_TN: Tensor | None, end: Tensor | None) -> None:
    from snn.kernels import triton_jit

    current_TN, p = run.current, run.p
    T, N = len(current_TN), current_TN[0].numel()
    block = _block(T)
    triton_jit.forward[(-(-N // block),)](
        current_TN,
        current_TN.stride(0),
        run.state,
        spikes_TN,
        0 if spikes_TN is None else spikes_TN.stride(0),
        end,
        *_numbers(run, N),
        T=T,
        HAS_STATE=run.state is not None,
        HAS_SPIKES=spikes_TN is not None,
        HAS_END=end is not None,
        LEARNED=isinstance(run.beta, Tensor),
        DECAY=p.decay_input,
        HARD=p.reset == "hard",
        BLOCK=block,
        num_warps=4,
        **_EXACT,
    )


def _run_backward(
    run: Run,
    grad_spikes_TN: Tensor,
    grad_end: Tensor | None,
    grad_current_TN: Tensor,
    sum_over_t: bool,
    add: bool,
    grad_state: Tensor | None,
    want_grad_beta: bool,
) -> Tensor | None:
    from snn.kernels import triton_jit

    current_TN, p = run.current, run.p
    T, N = len(current_TN), current_TN[0].numel()
    block = _block(T)
    programs = -(-N // block)
    partials = torch.empty(programs, device=current_TN.device) if want_grad_beta else None
    triton_jit.backward[(programs,)](
        current_TN,
        current_TN.stride(0),
        run.state,
        grad_spikes_TN[-1],
        grad_spikes_TN.stride(0),
        grad_end,
        grad_current_TN[-1],
        grad_current_TN.stride(0),
        grad_state,
        partials,
        *_numbers(run, N),
        float(p.surrogate.scale or 0),
        T=T,
        HAS_STATE=run.state is not None,
        HAS_GRAD_END=grad_end is not None,
        SUM_OVER_T=sum_over_t,
        ADD=add,
        HAS_GRAD_STATE=grad_state is not None,
        HAS_GRAD_BETA=want_grad_beta,
        LEARNED=isinstance(run.beta, Tensor),
        DECAY=p.decay_input,
        HARD=p.reset == "hard",
        DETACH=p.detach_reset,
        SURROGATE=p.surrogate.name,
        BLOCK=block,
        num_warps=4,
        **_EXACT,
    )
    return None if partials is None else partials.sum()


def _numbers(run: Run, N: int) -> tuple[Tensor | None, int, float, float, float]:
    beta, p = run.beta, run.p
    if isinstance(beta, Tensor):
        return beta, N, 0.0, 0.0, p.theta
    return None, N, float(beta), 1 - beta if p.decay_input else 1.0, float(p.theta)


def _block(T: int) -> int:
    """Neurons of one program: fewer a thread where it holds more potentials."""
    return 1024 if T <= 4 else 512


def _segments(run: Run) -> range:
    return range(0, len(run.current), MAX_STEPS)


def _segment(run: Run, first: int, state_N: Tensor | None) -> Run:
    return replace(run, current=_steps(run.current, first), state=state_N)


def _steps(x_TN: Tensor, first: int) -> Tensor:
    return x_TN[first : first + MAX_STEPS]


def _state_like(x_TN: Tensor) -> Tensor:
    return torch.empty_strided(x_TN.shape[1:], x_TN.stride()[1:], dtype=torch.float32, device=x_TN.device)


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches go to the tensor's device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
