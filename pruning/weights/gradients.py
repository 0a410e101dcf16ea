"""Squared gradients of the class scores through time: what pruning a weight can change.

For random signs ``v`` in {-1, 1} of all examples and classes, the squared gradient of ``sum_bk v_bk y_bk``
(``y``: time mean of the logits) has the mean ``sum_b sum_k (dy_bk / dw)^2``: cross terms cancel. So one
backward pass over a few examples is an unbiased draw of their

    F_w = sum_k E (dy_k / dw)^2,     and to first order     E ||y' - y||^2 ~ sum_w w^2 F_w

is what removing weights independently of one another changes. The pass goes through time, leak, reset and
the surrogate derivative at each threshold.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snn.layers import Synapses

PART = 16
"""Examples of one backward pass: fewer give more draws and take longer."""


def squared_gradients(
    synapses: Sequence[Synapses], forward: Callable[[], Tensor], generator: torch.Generator
) -> list[Tensor]:
    """One draw of ``B F_w`` by layer, float64 in the shape of its weight, on the CPU.

    Args:
        synapses: the layers; frozen weights are measured too.
        forward: gives the logits ``[T, B, K]`` of a few examples.
        generator: of the signs.
    """
    weights = [s.layer.weight for s in synapses]
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            scores_BK = forward().mean(0)
        signs_BK = torch.randint(0, 2, scores_BK.shape, generator=generator).to(scores_BK) * 2 - 1
        found = torch.autograd.grad(scores_BK, weights, signs_BK, allow_unused=True)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return [
        torch.zeros(w.shape, dtype=torch.float64) if g is None else g.double().square().cpu()
        for w, g in zip(weights, found, strict=True)
    ]
