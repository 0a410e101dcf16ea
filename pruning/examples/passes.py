"""Scores of a whole dataset, batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from pruning.examples.scores import ExampleScorer


def score_dataset(
    scorer: ExampleScorer,
    loader: Iterable[Any],
    *,
    encode: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """Scores of all examples of a loader, in its order.

    Args:
        scorer: of a network; inputs and labels are moved to its device.
        loader: batches of inputs and labels int64 ``[B]`` (and anything else behind them), not shuffled.
        encode: a batch's inputs to the network's ``x_TB``, ``[T, B, ...]``; as they are when not given.

    Returns:
        float32 ``[N]`` on the CPU, by name.

    Raises:
        ValueError: a loader that shuffles or is empty, or batches without labels.
    """
    if isinstance(getattr(loader, "sampler", None), RandomSampler):
        raise ValueError("loader: shuffles, so nobody could tell whose score is whose; use shuffle=False")
    device = next(scorer.model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in scorer.names}
    for batch in loader:
        x, labels = inputs_and_labels(batch)
        for name, scores in scorer.score(encode(x.to(device)), labels.to(device)).items():
            parts[name].append(scores)
    if not parts[scorer.names[0]]:
        raise ValueError("loader: gives no batch")
    return {name: torch.cat(scores).cpu() for name, scores in parts.items()}


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """The first two parts of a loader's batch.

    Raises:
        ValueError: a batch of another kind, or labels that are not int64 ``[B]``.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ValueError(f"loader: a batch must be (inputs, labels), not {type(batch).__name__}")
    x, labels = batch[0], batch[1]
    if not (isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype == torch.int64):
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
        raise ValueError(f"loader: labels must be int64 [B], not {found}")
    return x, labels
