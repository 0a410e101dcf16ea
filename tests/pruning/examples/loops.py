"""A small network, its data, and a training loop with a `DataPruner`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pruning.examples.loader import DataPruner
from snn.coding import direct
from snn.models import SpikingNetwork, build

N, B, T, EPOCHS = 90, 16, 4, 6


def network() -> SpikingNetwork:
    torch.manual_seed(0)
    return build("mlp", input_shape=(9,), num_classes=4, hidden=(16, 12))


def dataset(n: int = N) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 9, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


def losses_of(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits_TBK.mean(0), y, reduction="none")


def pruner_of(model: nn.Module, data: Dataset[Any] | None = None, **options: Any) -> DataPruner:
    return DataPruner(
        dataset() if data is None else data, model, **{"ratio": 0.5, "epochs": EPOCHS, "seed": 7, **options}
    )


def train(
    model: nn.Module,
    pruner: DataPruner,
    *,
    stop: tuple[int, int] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = losses_of,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> list[tuple[int, Tensor, Tensor]]:
    """(epoch, index, weighted loss) of every step; in the middle of epoch and step ``stop`` it breaks off."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler, **options)
    found = []
    for epoch in pruner.epochs():
        model.train()
        for step, (x, y, index) in enumerate(loader):
            if (epoch, step) == stop:
                return found
            value = pruner.loss(loss(model(direct(x, T)), y), index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append((epoch, index, value.detach()))
    return found


def same(a: list[tuple[int, Tensor, Tensor]], b: list[tuple[int, Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        e == f and torch.equal(i, j) and torch.equal(v, w) for (e, i, v), (f, j, w) in zip(a, b, strict=True)
    )
