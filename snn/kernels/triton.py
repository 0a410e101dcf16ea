"""The CUDA engine: calls of the programs of `snn.kernels.triton_jit`, each over all timesteps."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snn.kernels.fused import Engine, Run
from snn.parameters import NeuronParameters

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_EXACT: dict[str, Any] = {} if _INTERPRETED else {"enable_fp_fusion": False}
"""No fused multiply-adds: spikes must equal the eager engine's."""


class _Engine(Engine):
    devices = ("cuda", "cpu") if _INTERPRETED else ("cuda",)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    most_timesteps = 32  # the loop is unrolled: 64 take most of a minute to compile

    def unavailable(self) -> str | None:
        return _why_unavailable()

    def forward(self, run: Run, spikes_TN: Tensor) -> None:
        from snn.kernels import triton_jit

        grid, numbers, options = _launch(run)
        with _device_of(run.current):
            triton_jit.forward[grid](
                run.current, run.current.stride(0), spikes_TN, spikes_TN.stride(0), *numbers, **options
            )

    def backward(
        self, run: Run, grad_spikes_TN: Tensor, grad_current_TN: Tensor, want_grad_beta: bool
    ) -> Tensor | None:
        from snn.kernels import triton_jit

        grid, numbers, options = _launch(run)
        partials = torch.empty(grid, device=run.current.device) if want_grad_beta else None
        with _device_of(run.current):
            triton_jit.backward[grid](
                run.current,
                run.current.stride(0),
                grad_spikes_TN[-1],
                grad_spikes_TN.stride(0),
                grad_current_TN[-1],
                grad_current_TN.stride(0),
                partials,
                *numbers,
                float(run.p.surrogate.scale or 0),
                HAS_GRAD_BETA=want_grad_beta,
                DETACH=run.p.detach_reset,
                SURROGATE=run.p.surrogate.name,
                **options,
            )
        return None if partials is None else partials.sum()


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
        ENGINE.forward(Run(x, 0.5, NeuronParameters()), torch.empty_like(x))
        torch.cuda.synchronize()
    except Exception as error:  # whatever keeps Triton from compiling here, eager still works
        return f"triton cannot compile here: {error}"
    return None


def _launch(run: Run) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    """Grid, numbers and options that both programs take."""
    (T, N), p, learned = (len(run.current), run.current[0].numel()), run.p, isinstance(run.beta, Tensor)
    block = 1024 if T <= 4 else 512  # fewer neurons a thread where it holds more potentials
    gain = 1 - p.beta if p.decay_input else 1.0
    numbers = (run.beta if learned else None, N, float(p.beta), gain, float(p.theta))
    options = {"T": T, "LEARNED": learned, "DECAY": p.decay_input, "HARD": p.reset == "hard", "BLOCK": block}
    return (-(-N // block),), numbers, {**options, "num_warps": 4, **_EXACT}


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launches go to the tensor's device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
