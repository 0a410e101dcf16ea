"""Learning rates follow the fraction of training, whatever a subset's size."""

from math import cos, pi

import pytest
import torch

from pipelines.config import TrainConfig
from pipelines.training.optim import learning_rate, make_optimizer


def test_cosine_with_warmup() -> None:
    train = TrainConfig(lr=0.4, warmup=0.1)
    assert learning_rate(train, 0.0) == 0
    assert learning_rate(train, 0.05) == pytest.approx(0.2)
    assert learning_rate(train, 0.1) == pytest.approx(0.4)
    assert learning_rate(train, 0.55) == pytest.approx(0.4 * (1 + cos(pi / 2)) / 2)
    assert learning_rate(train, 1.0) == pytest.approx(0, abs=1e-12)


def test_constant_without_warmup() -> None:
    train = TrainConfig(lr=0.4, warmup=0, schedule="constant")
    assert [learning_rate(train, f) for f in (0, 0.5, 1)] == [0.4] * 3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_take_their_settings(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([parameter], TrainConfig(optimizer=name, lr=0.3, weight_decay=0.1))  # type: ignore[arg-type]
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
