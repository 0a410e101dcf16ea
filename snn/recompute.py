"""Modules that run again in the backward pass, so that the graph keeps their packed input alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snn.packing import pack, unpack
from snn.torch_private import BatchNorm
from snn.weighted_norm import active_weights, weighted_statistics


def recomputed(module: nn.Module, run: Any, x: Tensor) -> Tensor:
    """``run(x)``, of which the graph keeps ``x``, packed, and no more.

    Args:
        module: whose parameters ``run`` uses, and whose batch norms' running statistics see ``x`` once.
        run: deterministic; from a tensor like ``x`` to spikes.
        x: dense.
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
