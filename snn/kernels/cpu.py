"""The CPU engine: calls into the compiled library (`cpu_library`), spread over torch's threads.

Results do not depend on the number of threads: neurons are independent, and sums over examples are
taken in pieces that depend on the shape alone.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snn.kernels import cpu_library
from snn.parameters import NeuronParameters

_SURROGATES = {"atan": 0, "sigmoid": 1, "triangle": 2, "fast_sigmoid": 3}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_PIECE = 64
"""As in `engine.c`."""
_ELEMENTS_PER_THREAD = 1 << 18
"""Element-steps below which another thread costs more than it saves."""


class _Engine:
    devices = ("cpu",)
    dtypes = tuple(_NAMES)

    def unavailable(self) -> str | None:
        return cpu_library.load()[1]

    def forward(
        self,
        current_TN: Tensor,
        state_N: Tensor | None,
        beta: float | Tensor,
        p: NeuronParameters,
        spikes_TN: Tensor,
        end_N: Tensor | None,
    ) -> None:
        run, neuron = _function("lif_forward", current_TN), _neuron(beta, p)
        T, step, spikes_step = len(current_TN), current_TN.stride(0), spikes_TN.stride(0)

        def part(start: int, n: int) -> None:
            run(
                _at(current_TN, start), step, _at(state_N, start), _at(spikes_TN, start), spikes_step,
                _at(end_N, start), T, n, neuron,
            )  # fmt: skip

        _in_parts(part, current_TN[0].numel(), T)

    def backward(
        self,
        current_TN: Tensor,
        state_N: Tensor | None,
        beta: float | Tensor,
        p: NeuronParameters,
        grad_spikes_TN: Tensor,
        grad_end_N: Tensor | None,
        grad_current_TN: Tensor,
        grad_state_N: Tensor | None,
        want_grad_beta: bool,
    ) -> Tensor | None:
        run, neuron = _function("lif_backward", current_TN), _neuron(beta, p)
        T = len(current_TN)
        grad_step = 0 if T == 1 else grad_current_TN.stride(0)

        neurons = current_TN[0].numel()
        grad_beta = torch.zeros(-(-neurons // _PIECE), dtype=torch.float64) if want_grad_beta else None

        def part(start: int, n: int) -> None:
            _check(
                run(
                    _at(current_TN, start), current_TN.stride(0), _at(state_N, start),
                    _at(grad_spikes_TN, start), grad_spikes_TN.stride(0), _at(grad_end_N, start),
                    _at(grad_current_TN, start), grad_step, _at(grad_state_N, start),
                    _at(grad_beta, start // _PIECE), T, n, neuron,
                ),
                T,
            )  # fmt: skip

        _in_parts(part, neurons, T)
        return None if grad_beta is None else _total(grad_beta).to(current_TN.dtype)


ENGINE = _Engine()


def _neuron(beta: float | Tensor, p: NeuronParameters) -> cpu_library.Neuron:
    b = float(beta)
    return cpu_library.Neuron(
        b, 1 - b if p.decay_input else 1.0, p.theta, p.surrogate.scale or 0, p.reset == "hard",
        p.detach_reset, p.decay_input, _SURROGATES[p.surrogate.name],
    )  # fmt: skip


def _at(x: Tensor | None, start: int) -> int | None:
    return None if x is None else x.data_ptr() + start * x.element_size()


def _total(sums: Tensor) -> Tensor:
    """Sum over the first axis, whatever the number of threads: torch's own sum of many depends on it."""
    return torch.as_tensor(sums.numpy().sum(0))


def _ranges(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _check(failed: int, T: int) -> None:
    if failed:
        raise MemoryError(f"no memory for the potentials of {T} timesteps")


def _in_parts(part: Callable[[int, int], Any], n: int, T: int) -> list[Any]:
    """``part(start, size)`` over ``n`` neurons, on as many of torch's threads as it pays for."""
    threads = min(torch.get_num_threads(), n * T // _ELEMENTS_PER_THREAD)
    if threads <= 1:
        return [part(0, n)]
    size = -(-n // threads // _PIECE) * _PIECE
    return spread(part, [(s, min(size, n - s)) for s in range(0, n, size)], threads)


def spread(part: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], threads: int) -> list[Any]:
    """``part(*piece)`` of all pieces, in order, on so many threads."""
    if threads <= 1 or len(pieces) == 1:
        return [part(*piece) for piece in pieces]
    return list(_pool(os.getpid(), threads).map(lambda piece: part(*piece), pieces))


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    del pid  # part of the key: a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="lif")


def _function(name: str, like: Tensor) -> Any:
    library, why_not = cpu_library.load()
    if library is None:
        raise RuntimeError(why_not)
    return getattr(library, f"{name}_{_NAMES[like.dtype]}")
