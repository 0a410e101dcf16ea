"""Batch norm with the LIF behind it on CUDA: the programs of `snn.kernels.triton_norm_jit`.

Forward, ``y`` is read once for its statistics and once more to write the spikes; backward, ``y`` and the
spikes' gradient once for the sums and once more to write the gradient of ``y``: arithmetic is cheap there,
and nothing in between is kept.
"""

from typing import Any

import torch
from torch import Tensor

from snn.kernels import triton
from snn.kernels.eager import LIFConstants


class _Engine:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    max_norm_steps = 16
    """The potentials of all timesteps must fit in registers in the backward pass."""

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
        from snn.kernels import triton_norm_jit

        y = y_TOCI if y_TOCI.stride(0) else y_TOCI[:1]
        some = y[0, : max(1, 16 // y.shape[3]), :, :64]
        pivots = some.float().mean((0, 2))
        grid, sizes, partial = _launch(y)
        with triton.device_of(y):
            triton_norm_jit.sums[grid](y, y.stride(0), pivots, partial, *_counts(y), T=len(y), **sizes)
        n = y.numel() // y.shape[2]
        first, second = partial.double().sum(0) / n
        mean = pivots + first
        var = (second - first.square()).clamp(min=0)
        rstd = (var + eps).rsqrt()
        mean, var, rstd = mean.float(), var.float(), rstd.float()
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
        from snn.kernels import triton_norm_jit

        rstd = rstd.float()
        grid, sizes, _ = _launch(y_TOCI)
        with triton.device_of(y_TOCI):
            triton_norm_jit.forward[grid](
                y_TOCI,
                y_TOCI.stride(0),
                spikes_TOCI,
                spikes_TOCI.stride(0),
                *(mean, rstd, weight, bias),
                *_numbers(beta, p, y_TOCI),
                T=len(y_TOCI),
                **_constants(weight, bias, beta, p),
                **sizes,
            )

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
        rstd = rstd.float()
        static = len(y_TOCI) > 1 and y_TOCI.stride(0) == 0
        grid, sizes, partial = _launch(y_TOCI)
        grad_beta = torch.empty(grid[0] * grid[1], device=y_TOCI.device) if want_grad_beta else None

        def run(apply: bool, down: Tensor | None, along: Tensor | None) -> None:
            from snn.kernels import triton_norm_jit

            with triton.device_of(y_TOCI):
                triton_norm_jit.backward[grid](
                    y_TOCI,
                    y_TOCI.stride(0),
                    grad_spikes_TOCI[-1],
                    grad_spikes_TOCI.stride(0),
                    grad_y_TOCI[-1],
                    grad_y_TOCI.stride(0),
                    *(mean, rstd, weight, bias, down, along, partial, grad_beta),
                    *_numbers(beta, p, y_TOCI),
                    float(p.surrogate.scale or 0),
                    T=len(y_TOCI),
                    APPLY=apply,
                    SUM_OVER_T=static,
                    HAS_GRAD_BETA=want_grad_beta and not apply,
                    DETACH=p.detach_reset,
                    SURROGATE=p.surrogate.name,
                    **_constants(weight, bias, beta, p),
                    **sizes,
                )

        run(False, None, None)
        total, along_y = partial.double().sum(0)
        grad_weight = (along_y * rstd).float()
        scale = rstd if weight is None else rstd * weight
        n = y_TOCI.numel() // y_TOCI.shape[2] // (len(y_TOCI) if static else 1)
        share = 1 / n if own_statistics else 0.0
        down, along = scale * total * share, scale * rstd * rstd * along_y * share
        run(True, down.float(), along.float())
        return grad_weight, total.float(), None if grad_beta is None else grad_beta.sum()


ENGINE = _Engine()


def _counts(y_TOCI: Tensor) -> tuple[int, int, int]:
    """Positions, channels, and positions that lie together."""
    _, O, C, I = y_TOCI.shape  # noqa: E741
    return O * I, C, I


def _launch(y_TOCI: Tensor) -> tuple[tuple[int, int], dict[str, Any], Tensor]:
    """Grid, block sizes, and memory for sums per program and channel."""
    P, C, inner = _counts(y_TOCI)
    block, warps = triton.block_size(len(y_TOCI))
    columns = 1 if inner > 1 else min(64, 1 << (C - 1).bit_length())
    rows = block // columns
    grid = -(-P // rows), -(-C // columns)
    partial = torch.empty(grid[0], 2, C, device=y_TOCI.device)
    return grid, {"ROWS": rows, "COLUMNS": columns, "num_warps": warps, **triton.exact()}, partial


def _numbers(beta: float | Tensor, p: LIFConstants, y_TOCI: Tensor) -> tuple[Any, ...]:
    if isinstance(beta, Tensor):
        return beta, *_counts(y_TOCI), 0.0, 0.0, float(p.theta)
    return None, *_counts(y_TOCI), float(beta), 1 - beta if p.decay_input else 1.0, float(p.theta)


def _constants(
    weight: Tensor | None, bias: Tensor | None, beta: float | Tensor, p: LIFConstants
) -> dict[str, Any]:
    return {
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
        "LEARNED": isinstance(beta, Tensor),
        "DECAY": p.decay_input,
        "HARD": p.reset == "hard",
    }
