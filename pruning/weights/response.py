"""How the class scores answer when one layer alone loses weights: every layer in one unit.

Thresholds crossed in a hidden layer and currents into the head are no common measure. The readout is:
each layer in turn loses its smallest weights, worth a share ``z`` of its energy, and the squared change
of the time-mean logits is counted. No gradient; one forward pass per layer and level.
"""

from collections.abc import Sequence
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from snn.layers import WeightLayer

LEVELS = (0.1, 0.3, 0.5, 0.7)
"""Shares of a layer's energy that are taken away, one after the other."""


@torch.no_grad()
def measure_response(
    model: Any, layers: Sequence[WeightLayer], batches_TB: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Sums over the examples of what removing the smallest weights of one layer does.

    Args:
        model: network in eval mode; its weights are put back as they were, also after an error.
        layers: weight layers of ``model``.
        batches_TB: inputs ``[T, B, ...]``.

    Returns:
        by layer, per level (float64 ``[len(LEVELS)]``): squared change of the time-mean logits, summed
        over classes and examples; and -log kept energy share, summed over examples. Both are 0 where a
        layer has no weights to give.
    """
    reference = [model(x).mean(0) for x in batches_TB]
    examples = sum(len(scores) for scores in reference)
    found = []
    for layer in layers:
        whole = layer.weight.detach().clone()
        change, removed = (torch.zeros(len(LEVELS), dtype=torch.float64) for _ in range(2))
        try:
            for i, (count, phi) in enumerate(_removals(whole)):
                if not count:
                    continue
                layer.weight.copy_(_without_smallest(whole, count))
                removed[i] = phi * examples
                for x, scores in zip(batches_TB, reference, strict=True):
                    change[i] += (model(x).mean(0) - scores).double().square().sum().cpu()
        finally:
            layer.weight.copy_(whole)
        found.append((change, removed))
    return found


def fitted_response(change: Tensor, removed: Tensor) -> float:
    """``rho``: geometric mean over levels of squared change per -log kept energy share.

    It is the least-squares fit of ``log(change) = log(rho) + log(removed)``. 0 where nothing changed.
    """
    ratios = [
        c / r for c, r in zip(change.tolist(), removed.tolist(), strict=True) if c > 0 and r > 0
    ]  # a level that flips no spike says nothing on a logarithmic scale
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else 0.0


def _removals(weight: Tensor) -> list[tuple[int, float]]:
    """By level, how many of the smallest weights fit into its share of the energy, and what they cost."""
    squares = weight.double().square().flatten().sort().values
    energy = squares.cumsum(0)
    total = float(energy[-1])
    if not total:
        return [(0, 0.0)] * len(LEVELS)
    # At least one weight with energy goes, at least one stays.
    zeros, least = int((squares == 0).sum()), len(squares) - 1
    counts = [min(max(int((energy <= z * total).sum()), zeros + 1), least) for z in LEVELS]
    return [
        (count, -log(1 - float(energy[count - 1]) / total)) if count > zeros else (0, 0.0) for count in counts
    ]


def _without_smallest(weight: Tensor, count: int) -> Tensor:
    order = weight.abs().flatten().argsort(stable=True)
    kept = weight.flatten().clone()
    kept[order[:count]] = 0
    return kept.view_as(weight)
