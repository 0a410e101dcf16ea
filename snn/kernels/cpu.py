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
from snn.kernels.fused import Engine, Run

_SURROGATES = {"atan": 0, "sigmoid": 1, "triangle": 2, "fast_sigmoid": 3}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_PIECE = 64
"""As in `engine.c`."""
_PIECE_ELEMENTS = 1 << 18
"""Of a batch norm's input, whose rows are summed in pieces of about so many."""
_ELEMENTS_PER_THREAD = 1 << 18
"""Element-steps below which another thread costs more than it saves."""


class _Engine(Engine):
    devices = ("cpu",)
    dtypes = tuple(_NAMES)

    def unavailable(self) -> str | None:
        return cpu_library.load()[1]

    def forward(self, run: Run, spikes_TN: Tensor, end_N: Tensor | None) -> None:
        call, neuron, current_TN = _function("lif_forward", run.current.dtype), _neuron(run), run.current

        def part(start: int, n: int) -> None:
            call(
                _at(current_TN, start), current_TN.stride(0), _at(run.state, start),
                _at(spikes_TN, start), spikes_TN.stride(0), _at(end_N, start), len(current_TN), n, neuron,
            )  # fmt: skip

        _in_parts(part, current_TN)

    def backward(
        self,
        run: Run,
        grad_spikes_TN: Tensor,
        grad_end_N: Tensor | None,
        grad_current_TN: Tensor,
        grad_state_N: Tensor | None,
        want_grad_beta: bool,
    ) -> Tensor | None:
        call, neuron, current_TN = _function("lif_backward", run.current.dtype), _neuron(run), run.current
        T = len(current_TN)
        grad_step = 0 if T == 1 else grad_current_TN.stride(0)
        pieces = -(-current_TN[0].numel() // _PIECE)
        grad_beta = torch.zeros(pieces, dtype=torch.float64) if want_grad_beta else None

        def part(start: int, n: int) -> None:
            failed = call(
                _at(current_TN, start), current_TN.stride(0), _at(run.state, start),
                _at(grad_spikes_TN, start), grad_spikes_TN.stride(0), _at(grad_end_N, start),
                _at(grad_current_TN, start), grad_step, _at(grad_state_N, start),
                _at(grad_beta, start // _PIECE), T, n, neuron,
            )  # fmt: skip
            if failed:
                raise MemoryError(f"no memory for the potentials of {T} timesteps")

        _in_parts(part, current_TN)
        if grad_beta is None:
            return None
        # NumPy's sum: torch's own of many depends on the number of threads.
        return torch.as_tensor(grad_beta.numpy().sum(0)).to(current_TN.dtype)


ENGINE = _Engine()


def weighted_moment(x: Tensor, share_N: Tensor, mean_C: Tensor | None) -> Tensor:
    """``sum_n share_n sum_p x_ncp`` per channel, or of ``(x_ncp - mean_c)^2`` where a mean is given; float64.

    ``x`` of shape ``[N, C, ...]``, contiguous or channels-last, float32 or float64 like the others.
    """
    call, (pieces, C, P, last) = _function("weighted_moment", x.dtype), _by_rows(x)
    sums = torch.zeros(len(pieces), C, dtype=torch.float64)

    def part(i: int, first: int, n: int) -> None:
        call(
            _at(x, first * C * P), n, C, P, last, _at(share_N, first), _at(mean_C, 0), _at(sums, i * C),
        )  # fmt: skip

    _spread_rows(part, pieces, x)
    return sums.sum(0)


def weighted_gradient(grad: Tensor, x: Tensor, share_N: Tensor, *by_channel: Tensor) -> Tensor:
    """``scale_c grad_ncp + share_n (slope_c (x_ncp - mean_c) + shift_c)``, of one layout with ``x``.

    ``by_channel`` are mean, scale, slope and shift; all as for `weighted_moment`.
    """
    call, (pieces, C, P, last) = _function("weighted_gradient", x.dtype), _by_rows(x)
    out = torch.empty_like(x)

    def part(i: int, first: int, n: int) -> None:
        at = first * C * P
        call(
            _at(grad, at), _at(x, at), n, C, P, last, _at(share_N, first),
            *(_at(values_C, 0) for values_C in by_channel), _at(out, at),
        )  # fmt: skip

    _spread_rows(part, pieces, x)
    return out


def _by_rows(x: Tensor) -> tuple[list[tuple[int, int, int]], int, int, bool]:
    """Pieces of ``[N, C, ...]`` (number, first row, rows), channels, positions, whether channels are last."""
    (N, C), P = x.shape[:2], x[0, 0].numel()
    rows = max(1, _PIECE_ELEMENTS // (C * P))
    pieces = [(i, first, min(rows, N - first)) for i, first in enumerate(range(0, N, rows))]
    return pieces, C, P, P == 1 or not x.is_contiguous()


def _spread_rows(
    part: Callable[[int, int, int], None], pieces: list[tuple[int, int, int]], x: Tensor
) -> None:
    spread(part, pieces, min(torch.get_num_threads(), x.numel() // _ELEMENTS_PER_THREAD))


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
