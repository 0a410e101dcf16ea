"""Optimiser and learning rate from the config."""

from collections.abc import Iterable
from math import cos, pi

import torch
from torch import nn

from pipelines.config import TrainConfig


def make_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that ``train.optimizer`` names."""
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        nesterov=train.momentum > 0,
    )


def learning_rate(train: TrainConfig, fraction: float) -> float:
    """Learning rate after ``fraction`` in [0, 1] of the training; subset sizes cannot shift it."""
    if fraction < train.warmup:
        return train.lr * (fraction / train.warmup)
    if train.schedule == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + cos(pi * (fraction - train.warmup) / (1 - train.warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
