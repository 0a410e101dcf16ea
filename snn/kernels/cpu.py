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
from snn.kernels.eager import LIFConstants

_SURROGATES = {"atan": 0, "sigmoid": 1, "triangle": 2, "fast_sigmoid": 3}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_BLOCK, _PIECE = 1024, 64
"""As in `engine.c`."""
_ELEMENTS_PER_THREAD = 1 << 18
"""Element-steps below which another thread costs more than it saves."""


class _Engine:
    devices = ("cpu",)
    dtypes = tuple(_NAMES)
    max_norm_steps = None

    def unavailable(self) -> str | None:
        return cpu_library.load()[1]

    def forward(
        self,
        current_TN: Tensor,
        state_N: Tensor | None,
        beta: float | Tensor,
        p: LIFConstants,
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
        p: LIFConstants,
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

    def norm_train(
        self,
        y_TOCI: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        beta: float | Tensor,
        p: LIFConstants,
        spikes_TOCI: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = _Rows(y_TOCI)
        mean, var, rstd, pivots = (torch.empty(y.channels, dtype=torch.float64) for _ in range(4))
        sums = torch.zeros(2, y.channels, dtype=torch.float64)
        norm = _norm(mean, rstd, weight, bias, y.values)
        neuron = _neuron(beta, p)
        spikes = spikes_TOCI.data_ptr(), spikes_TOCI.stride(0)
        if y.by_channel:
            run = _function("norm_lif_train", y_TOCI)
            y.over_channels(
                lambda c0, c1: run(
                    *y.memory, *spikes, y.T, y.shape, c0, c1, norm, eps, pivots.data_ptr(), sums.data_ptr(),
                    mean.data_ptr(), var.data_ptr(), rstd.data_ptr(), neuron,
                )
            )  # fmt: skip
            return mean, var, rstd
        _function("norm_pivots", y_TOCI)(y.memory[0], y.shape, 0, y.channels, pivots.data_ptr())
        add = _function("norm_sums", y_TOCI)
        sums = y.summed(
            2,
            lambda o0, o1, own: add(
                *y.memory, y.steps, y.shape, o0, o1, 0, y.channels, pivots.data_ptr(), own.data_ptr()
            ),
        )
        _function("norm_moments", y_TOCI)(
            y.shape, 0, y.channels, pivots.data_ptr(), sums.data_ptr(), y.values, eps, mean.data_ptr(),
            var.data_ptr(), rstd.data_ptr(),
        )  # fmt: skip
        self.norm_forward(y_TOCI, mean, rstd, weight, bias, beta, p, spikes_TOCI)
        return mean, var, rstd

    def norm_forward(
        self,
        y_TOCI: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        beta: float | Tensor,
        p: LIFConstants,
        spikes_TOCI: Tensor,
    ) -> None:
        y, neuron = _Rows(y_TOCI), _neuron(beta, p)
        mean, rstd = mean.double(), rstd.double()
        norm = _norm(mean, rstd, weight, bias, 0)
        run = _function("norm_lif_forward", y_TOCI)
        spikes = spikes_TOCI.data_ptr(), spikes_TOCI.stride(0)

        def part(o0: int, o1: int, c0: int, c1: int) -> None:
            run(*y.memory, *spikes, y.T, y.shape, o0, o1, c0, c1, norm, neuron)

        if y.by_channel:
            y.over_channels(lambda c0, c1: part(0, y.outer, c0, c1))
        else:
            y.over_rows(lambda o0, o1: part(o0, o1, 0, y.channels))

    def norm_backward(
        self,
        y_TOCI: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        own_statistics: bool,
        beta: float | Tensor,
        p: LIFConstants,
        grad_spikes_TOCI: Tensor,
        grad_y_TOCI: Tensor,
        want_grad_beta: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        y, neuron = _Rows(y_TOCI), _neuron(beta, p)
        mean, rstd = mean.double(), rstd.double()
        norm = _norm(mean, rstd, weight, bias, y.values if own_statistics else 0)
        sums = torch.zeros(3 if want_grad_beta else 2, y.channels, dtype=torch.float64)
        grad_spikes = grad_spikes_TOCI.data_ptr(), grad_spikes_TOCI.stride(0)
        grad_y = grad_y_TOCI.data_ptr(), grad_y_TOCI.stride(0)

        def into(sums: Tensor) -> tuple[Any, ...]:
            return norm, sums.data_ptr(), sums[2].data_ptr() if want_grad_beta else None, neuron

        if y.by_channel:
            both = _function("norm_lif_gradient", y_TOCI)

            def channels(c0: int, c1: int) -> None:
                _check(both(*y.memory, *grad_spikes, *grad_y, y.T, y.shape, c0, c1, *into(sums)), y.T)

            y.over_channels(channels)
        else:
            currents, apply = (_function(name, y_TOCI) for name in ("norm_lif_backward", "norm_gradient"))

            def rows(o0: int, o1: int, own: Tensor) -> None:
                where = y.shape, o0, o1, 0, y.channels
                _check(currents(*y.memory, *grad_spikes, *grad_y, y.T, *where, *into(own)), y.T)

            sums = y.summed(len(sums), rows)
            y.over_rows(
                lambda o0, o1: apply(
                    *y.memory, *grad_y, y.steps, y.shape, o0, o1, 0, y.channels, norm, sums.data_ptr()
                )
            )
        grad_beta = _total(sums[2]).to(y_TOCI.dtype) if want_grad_beta else None
        return (sums[1] * rstd).to(y_TOCI.dtype), sums[0].to(y_TOCI.dtype), grad_beta


ENGINE = _Engine()


class _Rows:
    """How the library sees ``[T, outer, channels, inner]`` (stride 0 over T: one step, ``steps`` = 1)."""

    def __init__(self, y_TOCI: Tensor) -> None:
        self.T, self.outer, self.channels, self.inner = y_TOCI.shape
        self.memory = y_TOCI.data_ptr(), y_TOCI.stride(0)
        self.steps = self.T if y_TOCI.stride(0) else 1
        self.shape = cpu_library.Shape(self.outer, self.channels, self.inner)
        self.values = float(self.steps * self.outer * self.inner)
        row = self.channels * self.inner
        # Rows that share a tile (see norm_lif.h) are added up together: then channels cannot be divided.
        self.divisible = row > _BLOCK
        # Whole planes pay more for every piece: a single one goes through all at once, in the cache.
        least = _ELEMENTS_PER_THREAD * (1 if self.inner == 1 else 4)
        self.pieces = _ranges(self.outer, self._visits(max(least // (self.T * row), -(-self.outer // 16))))
        """Of rows, by the shape alone."""
        self.by_channel = len(self.pieces) == 1 or (self.inner > 1 and self.divisible)
        """Work is divided by channels, each of them whole; else by rows."""

    def over_channels(self, part: Callable[[int, int], Any]) -> None:
        """``part(from, to)`` on ranges of channels."""
        threads = self._threads() if self.divisible else 1
        spread(part, _ranges(self.channels, -(-self.channels // threads)), threads)

    def over_rows(self, part: Callable[[int, int], Any]) -> None:
        """``part(from, to)`` on ranges of rows."""
        threads = self._threads()
        spread(part, _ranges(self.outer, self._visits(-(-self.outer // threads))), threads)

    def summed(self, kinds: int, part: Callable[[int, int, Tensor], Any]) -> Tensor:
        """What ``part(from, to, sums)`` adds to float64 ``[kinds, channels]``, in all pieces together."""
        sums = torch.zeros(len(self.pieces), kinds, self.channels, dtype=torch.float64)
        pieces = [(*rows, own) for rows, own in zip(self.pieces, sums.unbind(), strict=True)]
        spread(part, pieces, self._threads())
        return _total(sums)

    def _visits(self, rows: int) -> int:
        """At least so many rows, and whole visits of a tile (see norm_lif.h)."""
        visit = _BLOCK if self.inner == 1 else max(1, _BLOCK // (self.channels * self.inner))
        return max(1, -(-rows // visit)) * visit

    def _threads(self) -> int:
        elements = self.T * self.outer * self.channels * self.inner
        return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))


def _neuron(beta: float | Tensor, p: LIFConstants) -> cpu_library.Neuron:
    b = float(beta)
    return cpu_library.Neuron(
        b, 1 - b if p.decay_input else 1.0, p.theta, p.surrogate.scale or 0, p.reset == "hard",
        p.detach_reset, p.decay_input, _SURROGATES[p.surrogate.name],
    )  # fmt: skip


def _norm(
    mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, of: float
) -> cpu_library.Norm:
    return cpu_library.Norm(mean.data_ptr(), rstd.data_ptr(), _at(weight, 0), _at(bias, 0), of)


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
