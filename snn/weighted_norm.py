"""Batch norm on weighted examples.

An example drawn with inclusion probability ``pi`` counts ``1 / pi`` times in the loss. It must count as
often in the batch statistics, or the network is trained on a mixture of examples that it is never evaluated
on. For an input ``x`` with ``P`` positions and timesteps per example and weights ``w``::

    mean = sum_i w_i sum_p x_ip / W        W = P sum_i w_i
    var  = sum_i w_i sum_p (x_ip - mean)^2 / W
    dL/dx_i = gamma / sigma (g_i - w_i / W (sum_j g_j + xhat_i sum_j g_j xhat_j))       g = dL/dy
"""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""Batch norms of any number of dimensions."""
_ACTIVE: ContextVar[Tensor | None] = ContextVar("weights of batch statistics", default=None)


def weighted_statistics(weights_B: Tensor | None) -> AbstractContextManager[object]:
    """Within it, batch norms in training mode weight the examples of a batch in their statistics.

    It covers every module that calls `torch.nn.functional.batch_norm`, of any library, on ``[T*B, C, ...]``
    (timesteps outermost) or ``[B, C, ...]``. Norms in eval mode, and weights that are all 1, give plain batch
    norm, bit for bit. Each worker of a distributed run takes the statistics of its own batch, as usual;
    `torch.nn.SyncBatchNorm` ignores the weights. `torch.utils.checkpoint` computes again outside the context
    and needs ``context_fn=lambda: (nullcontext(), weighted_statistics(weights_B))``.

    Args:
        weights_B: weights of the examples, ``[B]``, not negative; an example of weight 0 (padding) has no
            influence on the others. ``None`` for plain batch norm. Weights on the CPU are moved to the
            input's device.

    Raises:
        ValueError: weights of another shape; inside, an input whose rows are no multiple of ``B``.
    """
    if weights_B is None:
        return nullcontext()
    if weights_B.ndim != 1 or not len(weights_B):
        raise ValueError(f"weights: shape {tuple(weights_B.shape)} must be [B] with at least one example")
    if weights_B.device.type == "cpu" and bool((weights_B == 1).all()):
        return nullcontext()
    return _WeightedStatistics(weights_B.detach())


def active_weights() -> Tensor | None:
    """The weights of the innermost `weighted_statistics` around, for whoever runs layers again later."""
    return _ACTIVE.get()


def batch_statistics(x: Tensor, weights_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, ``[C]`` each, of a batch norm's input in training mode.

    ``[T*B, C, ...]`` or ``[B, C, ...]``; weights as for `weighted_statistics`.
    """
    share_B = _shares(torch.ones(1, device=x.device) if weights_B is None else weights_B)
    return _moments(wide(x), _row_shares(share_B, x))


class _WeightedStatistics(TorchFunctionMode):
    """Calls of ``batch_norm`` in training mode run `_weighted_norm`; all others run as they are."""

    def __init__(self, weights_B: Tensor) -> None:
        super().__init__()
        self.weights_B, self.share_B = weights_B, _shares(weights_B)
        self.effective = 1 / self.share_B.square().sum()
        """Kish's effective number of examples, ``(sum w)^2 / sum w^2``."""

    def __enter__(self) -> Self:
        self._token = _ACTIVE.set(self.weights_B)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        _ACTIVE.reset(self._token)
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _weighted_norm(self.share_B, self.effective, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weighted_norm(
    share_B: Tensor,
    effective: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` (its arguments) with weighted statistics where it is training."""
    values = input.numel() // input.shape[1]
    if not training or values <= 1:  # torch refuses a single value
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y, mean, var = _WeightedNorm.apply(input, weight, bias, _row_shares(share_B, input), eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            n = effective * (values // len(share_B))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / (n - 1).clamp(min=1))).to(running_var.dtype), momentum)
    return y


class _WeightedNorm(torch.autograd.Function):
    """Normalised values, mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, share_N: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = wide(x)
        mean, var = _moments(values, share_N)
        scale, shift = (None if v is None else v.to(values.dtype) for v in (weight, bias))
        y = F.batch_norm(values, mean, var, scale, shift, eps=eps)
        ctx.save_for_backward(x, weight, bias, share_N, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, *_: Any):  # type: ignore[no-untyped-def]
        x, weight, bias, share_N, mean, rstd = ctx.saved_tensors
        grad_y, values = wide(grad_y), wide(x)
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, values, None, None, None, mean, rstd, True, 0.0, [False, True, True]
        )
        scale = rstd if weight is None else weight * rstd
        slope, shift = -scale * rstd * grad_weight, -scale * grad_bias
        grad_x = _input_gradient(grad_y, values, share_N, mean, scale, slope, shift)
        return (
            grad_x.to(x.dtype),
            None if weight is None else grad_weight,
            None if bias is None else grad_bias,
            None,
            None,
        )


def _input_gradient(
    grad: Tensor, x: Tensor, share_N: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, shift: Tensor
) -> Tensor:
    """``scale grad + share (slope (x - mean) + shift)``."""
    slope_NC, shift_NC = torch.outer(share_N, slope), torch.outer(share_N, shift - slope * mean)
    space = [1] * (x.ndim - 2)
    grad_x = grad * _per_channel(scale, x)
    grad_x.addcmul_(x, slope_NC.view(*slope_NC.shape, *space))
    return grad_x.add_(shift_NC.view(*shift_NC.shape, *space))


def _shares(weights_B: Tensor) -> Tensor:
    """``w / sum w``, ``[B]``; equal where all are 0."""
    weights = wide(weights_B)
    weights = torch.where(weights.any(), weights, 1.0)
    return weights / weights.sum()


def _row_shares(share_B: Tensor, x: Tensor) -> Tensor:
    """``w / W`` of every row of ``x``, ``[N]``, in the precision of the statistics."""
    N, B = len(x), len(share_B)
    if N % B:
        raise ValueError(
            f"batch norm: {N} rows are no multiple of the batch size {B} of the example weights;"
            " an input must be [T*B, C, ...] or [B, C, ...]"
        )
    share = share_B.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
    if share.dtype != share_B.dtype:
        share = share / share.sum()  # which rounding has left beside 1
    return (share / (x.numel() // (B * x.shape[1]))).repeat(N // B)


def _moments(x: Tensor, share_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and biased variance per channel, ``[C]`` each."""
    mean = _weighted_sum(share_N, _row_sums(x))
    squares = F.mse_loss(x, _per_channel(mean, x).expand_as(x), reduction="none")  # in one pass over x
    return mean, _weighted_sum(share_N, _row_sums(squares))


def _weighted_sum(share_N: Tensor, values_NC: Tensor) -> Tensor:
    """Over rows, ``[C]``; autocast leaves it in full precision, which it does not a matrix product."""
    return (share_N[:, None] * values_NC).sum(0)


def _row_sums(x: Tensor) -> Tensor:
    """Sums over positions, ``[N, C]``."""
    return x.sum(tuple(range(2, x.ndim))) if x.ndim > 2 else x


def wide(x: Tensor) -> Tensor:
    """Half precisions to float32."""
    return x if x.dtype == torch.float64 else x.float()


def _per_channel(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.view(1, -1, *[1] * (x.ndim - 2))
