"""Less kept for the backward pass, without loss: spikes as bits, sums of them as bytes; modules run again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from snn.weighted_norm import BatchNorm, active_weights, weighted_statistics


@dataclass(frozen=True)
class Packed:
    """How a tensor was packed; the packed tensor itself lies elsewhere, so that autograd can hold it."""

    kind: str
    """``bits``, ``bytes``, or ``plain`` for a tensor as it was."""
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def pack(x: Tensor) -> tuple[Tensor, Packed]:
    """The smallest exact form of a tensor, and what `unpack` needs to restore it.

    Args:
        x: dense, of any shape and floating dtype; without gradient.

    Returns:
        uint8 of an eighth as many elements where all of ``x`` are 0 or 1, as many where all are whole
        numbers from 0 to 255; else ``x``.
    """
    small = x.to(torch.uint8)
    if not (x.numel() and _is_dense(x) and bool((small == x).all())):
        return x, Packed("plain", x.shape, x.stride(), x.dtype)
    flat = small.as_strided((small.numel(),), (1,))  # in the order of memory
    kind = "bits" if bool(small.max() <= 1) else "bytes"
    return _to_bits(flat) if kind == "bits" else flat, Packed(kind, x.shape, small.stride(), x.dtype)


def unpack(packed: Tensor, how: Packed) -> Tensor:
    """The tensor that was packed, equal in every element, with its strides."""
    if how.kind == "plain":
        return packed
    flat = _from_bits(packed, how.shape.numel()) if how.kind == "bits" else packed
    return flat.to(how.dtype).as_strided(how.shape, how.stride)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _to_bits(flat: Tensor) -> Tensor:
    """Eight zeros and ones (uint8) to a byte, the first in the lowest bit."""
    if flat.device.type != "cpu":
        return _torch_to_bits(flat)
    return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little")).clone()  # in torch's memory


def _from_bits(packed: Tensor, count: int) -> Tensor:
    if packed.device.type != "cpu":
        return _torch_from_bits(packed, count)
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little"))


def _torch_to_bits(flat: Tensor) -> Tensor:
    rows = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (rows << _shifts(flat)).sum(1, dtype=torch.uint8)


def _torch_from_bits(packed: Tensor, count: int) -> Tensor:
    return ((packed[:, None] >> _shifts(packed)) & 1).view(-1)[:count]


def _shifts(of: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=of.device)


def recomputed(module: nn.Module, run: Any, x: Tensor) -> Tensor:
    """``run(x)`` of a dense ``x``, of which the graph keeps ``x``, packed, and no more.

    ``run`` is deterministic and uses the parameters of ``module``, whose running statistics see ``x`` once.
    """
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    y: Tensor = _Recomputed.apply(x, run, norms, *module.parameters())
    return y


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Any, norms: list[BatchNorm], *parameters: Tensor) -> Tensor:
        packed, ctx.how = pack(x)
        ctx.save_for_backward(packed)
        ctx.run, ctx.norms, ctx.parameters, ctx.weights = run, norms, parameters, active_weights()
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        y: Tensor = run(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (packed,) = ctx.saved_tensors
        x = unpack(packed, ctx.how).detach().requires_grad_(ctx.needs_input_grad[0])
        enabled, dtype = ctx.autocast
        with (
            torch.enable_grad(),
            torch.autocast(x.device.type, dtype, enabled=enabled),
            weighted_statistics(ctx.weights),
            _unseen(ctx.norms),
        ):
            y = ctx.run(x)
        wanted = [t for t in (x, *ctx.parameters) if t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
        grad_x, *grads = (next(found) if t.requires_grad else None for t in (x, *ctx.parameters))
        return grad_x, None, None, *grads


@contextmanager
def _unseen(norms: list[BatchNorm]) -> Iterator[None]:
    """What batch norms compute on their batch is not counted in their running statistics."""
    counted = [norm for norm in norms if norm.training and norm.track_running_stats]
    for norm in counted:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in counted:
            norm.track_running_stats = True
