"""Batch norm statistics estimated again, for a network whose weights have changed.

Pruned weights leave running statistics behind that no longer describe what a layer sees. They are estimated
again on a uniform sample of examples.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from snn.coding import direct
from snn.layers import is_static
from snn.observing import evaluating
from snn.weighted_norm import BatchNorm


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """The batch norms of ``model`` that keep running statistics, by their path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }


def reestimate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    average: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Replace the running statistics of every batch norm by those of ``batches``, in place.

    Every batch is normalised by its own statistics, as in training; the pooled mean and the pooled
    unbiased variance over all batches become the running statistics. Everything else (dropout,
    weights, ``num_batches_tracked``, the modes of all modules) stays as it was, and so do norms that the
    forward pass does not reach.

    Args:
        model: any module that takes one batch; without batch norm nothing happens.
        batches: inputs ``x_TB``, ``[T, B, ...]``, on the model's device; large batches are better. A
            batch of one example, such as a remainder, is merged into a larger one beside it.
        average: sum (exact) or mean over all workers of a float64 vector on the model's device (an
            all-reduce); every worker calls it exactly once, one without a batch of its own too.

    Raises:
        ValueError: no batch at all, a norm with one value per channel only (a single example), or
            statistics that are not finite; the model is then unchanged.
    """
    norms = batch_norms(model)
    if not norms:
        return
    device = next(iter(norms.values())).running_mean.device  # type: ignore[union-attr]
    sizes = [1 + 2 * m.num_features for m in norms.values()]
    vector = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
    _accumulate(model, norms, dict(zip(norms, vector.split(sizes), strict=True)), batches)
    if average is not None:
        vector = average(vector)
    parts = list(zip(norms.items(), vector.split(sizes), strict=True))
    reached = [((name, m), part) for (name, m), part in parts if part[0] > 0]
    if not reached:
        raise ValueError("batches: re-estimating batch norm needs at least one batch")
    pooled = [_pooled(name, part, m.num_features) for (name, m), part in reached]
    with torch.no_grad():
        for ((_, m), _), (mean, var) in zip(reached, pooled, strict=True):
            m.running_mean.copy_(mean)  # type: ignore[union-attr]
            m.running_var.copy_(var)  # type: ignore[union-attr]


@contextmanager
def own_statistics(model: nn.Module, momentum: float) -> Iterator[dict[str, BatchNorm]]:
    """Its batch norms, normalising by their batch; their modes, momenta and buffers are put back."""
    norms = batch_norms(model)
    each = norms.values()
    before = [(m, m.training, m.momentum, [b.clone() for b in m.buffers(recurse=False)]) for m in each]
    try:
        for m in each:
            m.train()
            m.momentum = momentum
        yield norms
    finally:
        with torch.no_grad():
            for m, training, own, buffers in before:
                m.training, m.momentum = training, own
                for buffer, value in zip(m.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(value)


def _accumulate(
    model: nn.Module, norms: dict[str, BatchNorm], sums: dict[str, Tensor], batches: Iterable[Tensor]
) -> None:
    """Add (values, values x mean, values x mean square) of every call of every norm to ``sums``."""

    def add(name: str, module: BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert module.running_mean is not None
        assert module.running_var is not None
        # With momentum 1 the running statistics are this call's: mean and unbiased variance.
        n = inputs[0].numel() // module.num_features
        mean = module.running_mean.double()
        square = module.running_var.double() * ((n - 1) / n) + mean.square()
        sums[name] += torch.cat([mean.new_ones(1), mean, square]) * n

    with ExitStack() as hooks, evaluating(model), own_statistics(model, 1.0), torch.no_grad():
        for name, m in norms.items():
            m.reset_running_stats()  # 0 times NaN or infinity, which training may have left, is NaN
            hooks.callback(m.register_forward_hook(partial(add, name)).remove)
        for x_TB in _singles_joined(x_TB for x_TB in batches if x_TB.shape[1]):
            model(x_TB)


def _singles_joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, those of one example together with a larger neighbour: one value has no variance."""
    held: Tensor | None = None
    for x_TB in batches:
        if held is None:
            held = x_TB
        elif (held.shape[1] == 1) != (x_TB.shape[1] == 1) and held[:, :1].shape == x_TB[:, :1].shape:
            yield joined(held, x_TB)
            held = None
        else:
            yield held
            held = x_TB
    if held is not None:
        yield held


def joined(a_TB: Tensor, b_TB: Tensor) -> Tensor:
    """Two batches as one; timesteps that are all alike stay one and the same memory."""
    if is_static(a_TB) and is_static(b_TB):
        return direct(torch.cat([a_TB[0], b_TB[0]]), len(a_TB))
    return torch.cat([a_TB, b_TB], 1)


def _pooled(name: str, part: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance from sums over all workers.

    Averaging them over workers divides the count as well, so the ratio is exact; the correction
    n / (n - 1) then uses the mean count per worker, a relative difference below 1 / n.
    """
    n, total, square = part[0], part[1 : 1 + features], part[1 + features :]
    mean = total / n
    var = (square / n - mean.square()).clamp(min=0) * (n / (n - 1).clamp(min=1))
    if not (mean.isfinite().all() and var.isfinite().all()):
        raise ValueError(f"{name}: batch norm statistics are not finite on these batches")
    return mean, var
