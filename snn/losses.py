"""Losses of spiking networks, one value per example."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def rate_cross_entropy(logits_TBK: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the time mean of the logits, ``[B]``."""
    return F.cross_entropy(logits_TBK.mean(0), labels_B, reduction="none", label_smoothing=label_smoothing)


def tet(logits_TBK: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Temporal efficient training: the time mean of every timestep's cross entropy, ``[B]``.

    Deng et al. 2022, arXiv 2202.11946, equation 8, without its regulariser.
    """
    T, B, _ = logits_TBK.shape
    loss = F.cross_entropy(
        logits_TBK.flatten(0, 1), labels_B.repeat(T), reduction="none", label_smoothing=label_smoothing
    )
    return loss.view(T, B).mean(0)


LOSSES: dict[str, Loss] = {"rate_ce": rate_cross_entropy, "tet": tet}
"""Every loss by its name."""
