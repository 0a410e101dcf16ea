"""The CPU engine: calls into the compiled library (`cpu_library`), spread over torch's threads.

Results do not depend on the number of threads: neurons are independent, and the gradient of ``beta`` is
summed in pieces that depend on the shape alone.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snn.kernels import cpu_library
from snn.kernels.fused import Engine, Run

_SURROGATES = {"atan": 0, "sigmoid": 1, "triangle": 2, "fast_sigmoid": 3}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_PIECE = 64
"""As in `engine.c`."""
_ELEMENTS_PER_THREAD = 1 << 18
"""Element-steps below which another thread costs more than it saves."""


class _Engine(Engine):
    devices = ("cpu",)
    dtypes = tuple(_NAMES)

    def unavailable(self) -> str | None:
        return cpu_library.load()[1]

    def forward(self, run: Run, spikes_TN: Tensor) -> None:
        call, neuron, current_TN = _function("lif_forward", run.current.dtype), _neuron(run), run.current

        def part(start: int, n: int) -> None:
            call(
                _at(current_TN, start), current_TN.stride(0), _at(spikes_TN, start), spikes_TN.stride(0),
                len(current_TN), n, neuron,
            )  # fmt: skip

        _in_parts(part, current_TN)

    def backward(
        self, run: Run, grad_spikes_TN: Tensor, grad_current_TN: Tensor, want_grad_beta: bool
    ) -> Tensor | None:
        call, neuron, current_TN = _function("lif_backward", run.current.dtype), _neuron(run), run.current
        pieces = -(-current_TN[0].numel() // _PIECE)
        grad_beta = torch.zeros(pieces, dtype=torch.float64) if want_grad_beta else None

        def part(start: int, n: int) -> None:
            failed = call(
                _at(current_TN, start), current_TN.stride(0), _at(grad_spikes_TN, start),
                grad_spikes_TN.stride(0), _at(grad_current_TN, start), grad_current_TN.stride(0),
                _at(grad_beta, start // _PIECE), len(current_TN), n, neuron,
            )  # fmt: skip
            if failed:
                raise MemoryError(f"no memory for the potentials of {len(current_TN)} timesteps")

        _in_parts(part, current_TN)
        if grad_beta is None:
            return None
        # NumPy's sum: torch's own of many depends on the number of threads.
        return torch.as_tensor(grad_beta.numpy().sum(0)).to(current_TN.dtype)


ENGINE = _Engine()


def _neuron(run: Run) -> cpu_library.Neuron:
    b, p = float(run.beta), run.p
    return cpu_library.Neuron(
        b, 1 - b if p.decay_input else 1.0, p.theta, p.surrogate.scale or 0, p.reset == "hard",
        p.detach_reset, p.decay_input, _SURROGATES[p.surrogate.name],
    )  # fmt: skip


def _at(x: Tensor | None, start: int) -> int | None:
    return None if x is None else x.data_ptr() + start * x.element_size()


def _in_parts(part: Callable[[int, int], Any], current_TN: Tensor) -> None:
    """``part(start, size)`` over all neurons, on as many of torch's threads as it pays for."""
    n = current_TN[0].numel()
    threads = max(1, min(torch.get_num_threads(), n * len(current_TN) // _ELEMENTS_PER_THREAD))
    size = n if threads == 1 else -(-n // threads // _PIECE) * _PIECE
    spread(part, [(s, min(size, n - s)) for s in range(0, n, size)], threads)


def spread(part: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], threads: int) -> list[Any]:
    """``part(*piece)`` of all pieces, in order, on so many threads."""
    if threads <= 1 or len(pieces) == 1:
        return [part(*piece) for piece in pieces]

    def every(first: int) -> list[Any]:
        return [part(*piece) for piece in pieces[first::threads]]

    found: list[Any] = [None] * len(pieces)
    for first, done in enumerate(_pool(os.getpid()).map(every, range(threads))):
        found[first::threads] = done
    return found


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """One for calls of any size; a thread begins when none is idle."""
    del pid  # the key: a forked process has none of its parent's threads
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="cpu")


def _function(name: str, dtype: torch.dtype) -> Any:
    library, why_not = cpu_library.load()
    if library is None:
        raise RuntimeError(why_not)
    return getattr(library, f"{name}_{_NAMES[dtype]}")
