"""Batch norm and the neurons behind it in one pass: the normalised currents are never written.

The backward pass keeps the weight layer's output alone and computes normalised currents and potentials
from it again. Per channel, with the batch's mean and biased variance (training) or the running ones::

    I = scale y + shift     scale = weight rstd, shift = bias - mean scale, rstd = 1 / sqrt(var + eps)

rounded after the product and after the sum; statistics are taken in float64 on a CPU, float32 on CUDA.
"""

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snn.kernels.eager import LIFConstants, state_dtype


class Engine(Protocol):
    """One implementation; ``*_TOCI`` are ``[T, outer, channels, inner]`` and dense within a timestep.

    Stride 0 over T is one row of memory repeated; statistics then count it once, and its gradient is the
    sum over T. ``mean``, ``var`` (biased) and ``rstd`` are per channel, in the engine's own precision;
    an engine also takes a float64 ``rstd``.
    """

    @property
    def dtypes(self) -> Collection[torch.dtype]:
        """Dtypes of ``y`` that it takes."""
        ...

    @property
    def max_norm_steps(self) -> int | None:
        """Most timesteps that it takes, where there is a limit."""
        ...

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
        """Write the spikes of values normalised by their own statistics: (mean, var, rstd)."""
        ...

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
        """Write the spikes of values normalised by given statistics."""
        ...

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
        """Write the gradient of ``y``, return those of weight, bias and beta."""
        ...


def covers(engine: Engine, y: Tensor, T: int, norm: nn.Module) -> bool:
    """Whether an engine that takes tensors like ``y`` can run this norm on it."""
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or y.ndim not in (2, 3, 4) or not y.numel():
        return False
    if type(norm) is nn.BatchNorm2d and y.ndim != 4:
        return False
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if y.ndim == 4 and type(norm) is nn.BatchNorm1d:
        return False
    if engine.max_norm_steps is not None and engine.max_norm_steps < T:
        return False
    held = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]
    if y.dtype not in engine.dtypes or any(t.device != y.device for t in held):
        return False
    # one value per channel has no variance: torch's own module says so
    return (
        y.shape[1] == norm.num_features
        and y.numel() > y.shape[1]
        and all(t.dtype == state_dtype(y.dtype) and t.is_contiguous() for t in held)
    )


def spikes(
    engine: Engine,
    y: Tensor,
    T: int,
    static: bool,
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
    beta: Tensor | None,
    parameters: LIFConstants,
) -> Tensor:
    """Spikes ``[T, B, ...]`` of the neurons behind ``norm``, whose running statistics move as in its forward.

    Args:
        engine: one that `covers` this.
        y: the weight layer's output, ``[T*B, C, ...]``, or ``[B, C, ...]`` when ``static``.
        T: timesteps.
        static: every timestep has the same ``y``.
        norm: the batch norm.
        beta: scalar tensor that replaces ``parameters.beta``.
        parameters: the neurons' constants.
    """
    if beta is not None:
        beta = beta.to(state_dtype(y.dtype))
    factor = _averaging(norm)
    own = norm.training or norm.running_mean is None
    found = _NormLIF.apply(
        engine, y, T, static, norm.weight, norm.bias, beta, None if own else norm.running_mean,
        None if own else norm.running_var, norm.eps, parameters,
    )  # fmt: skip
    if own and factor is not None and norm.running_mean is not None and norm.running_var is not None:
        n = y.numel() // y.shape[1]
        with torch.no_grad():
            norm.running_mean.lerp_(found[1].to(norm.running_mean.dtype), factor)
            norm.running_var.lerp_((found[2] * (n / (n - 1))).to(norm.running_var.dtype), factor)
    return found[0].unflatten(0, (T, -1))


def _averaging(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> float | None:
    """Weight of this batch in the running statistics, counted as torch's batch norm counts; or ``None``."""
    if not (norm.training and norm.track_running_stats):
        return None
    if norm.num_batches_tracked is None:
        return norm.momentum or 0.0
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _format(y: Tensor) -> torch.memory_format:
    """The memory format to keep ``y`` in."""
    if y.ndim == 4 and not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _viewed(y: Tensor, T: int, static: bool) -> Tensor:
    """``[T*B, C, ...]``, dense in one of the two formats, as ``[T, outer, channels, inner]``."""
    C = y.shape[1]
    steps = 1 if static else T
    if _format(y) == torch.channels_last:
        view = y.permute(0, 2, 3, 1).view(steps, -1, C, 1)
    else:
        inner = y[0, 0].numel()
        view = y.view(steps, y.shape[0] // steps, C, inner)
    return view.expand(T, *view.shape[1:])


class _NormLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        y: Tensor,
        T: int,
        static: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        beta: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        p: LIFConstants,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        form = _format(y)
        y = y.contiguous(memory_format=form)
        out = torch.empty(
            (y.shape[0] * T if static else y.shape[0], *y.shape[1:]),
            dtype=y.dtype,
            device=y.device,
            memory_format=form,
        )
        y_TOCI, out_TOCI = _viewed(y, T, static), _viewed(out, T, False)
        leak = p.beta if beta is None else beta
        ctx.own = mean is None or var is None
        if mean is None or var is None:
            mean, var, rstd = engine.norm_train(y_TOCI, weight, bias, eps, leak, p, out_TOCI)
            ctx.mark_non_differentiable(mean, var)
        else:
            mean, rstd = mean.clone(), (var.double() + eps).rsqrt()
            engine.norm_forward(y_TOCI, mean, rstd, weight, bias, leak, p, out_TOCI)
        ctx.save_for_backward(y, weight, bias, beta, mean, rstd)
        ctx.engine, ctx.T, ctx.static, ctx.p = engine, T, static, p
        return out, mean if ctx.own else None, var if ctx.own else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes: Tensor, *_: Any):  # type: ignore[no-untyped-def]
        y, weight, bias, beta, mean, rstd = ctx.saved_tensors
        grad_y = torch.empty_like(y)
        grad_spikes = grad_spikes.contiguous(memory_format=_format(y))
        grad_y_TOCI = _viewed(grad_y, ctx.T, ctx.static)
        grad_weight, grad_bias, grad_beta = ctx.engine.norm_backward(
            _viewed(y, ctx.T, ctx.static),
            *(mean, rstd, weight, bias),
            ctx.own,
            ctx.p.beta if beta is None else beta,
            ctx.p,
            _viewed(grad_spikes, ctx.T, False),
            grad_y_TOCI,
            beta is not None and ctx.needs_input_grad[6],
        )
        return (
            None, grad_y, None, None, grad_weight if weight is not None else None,
            grad_bias if bias is not None else None, grad_beta, None, None, None, None,
        )  # fmt: skip
