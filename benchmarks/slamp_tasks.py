"""The datasets and networks of `slamp_quality`: each is trained on one core within a quarter of an hour.

Five small sets with convolutional networks of four to six layers, and three deep networks on CIFAR-10 at
16x16 (20,000 training rows, flips and shifts).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from benchmarks.real_data import folder, load
from pruning.weights.masks import Masks
from snn.coding import direct
from snn.interchange import Architecture, build_described, describe
from snn.losses import rate_cross_entropy
from snn.models import SpikingNetwork

Schedule = Callable[[torch.optim.Optimizer, int], LRScheduler]
"""Of the learning rate, given the optimizer and its steps in all."""
BATCH = 64
STEPS = {"digits": 4, "nmnist": 6, "cifar10": 4, "dvs128": 6, "cifar-dvs": 6}
"""Timesteps of each small task."""
DEEP_STEPS = 4


@dataclass
class Task:
    """A dataset in memory and how to train on it."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    T: int
    events: bool
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    epochs: int
    retrain_epochs: int
    model: str = "convnet"
    options: dict[str, Any] = field(default_factory=dict)
    augment: bool = False
    """Random flips and shifts by up to two pixels."""
    retrain_rows: int | None = None
    """Rows of one epoch of retraining; all of them if None."""

    @property
    def architecture(self) -> Architecture:
        """As `snn.interchange` keeps it in a checkpoint."""
        widths = {"channels": self.channels, "hidden": self.hidden}
        return describe(
            self.model,
            input_shape=tuple(self.x_train.shape[2 if self.events else 1 :]),
            num_classes=int(self.y_train.max()) + 1,
            **(self.options or widths),
        )

    def inputs(self, x: Tensor) -> Tensor:
        """``x_TB`` of examples: frames ``[B, T, ...]``, or images coded as a constant current."""
        return x.float().transpose(0, 1) if self.events else direct(x, self.T)

    def batches(self, x: Tensor) -> Iterator[Tensor]:
        """Inputs in batches, in order."""
        for part in x.split(BATCH):
            yield self.inputs(part)

    def network(self, seed: int) -> SpikingNetwork:
        """The untrained network."""
        torch.manual_seed(seed)
        return build_described(self.architecture)


def _split(x: Tensor, y: Tensor, train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:train], y[:train], x[train:], y[train:]


def digits() -> Task:
    """1,797 handwritten digits of scikit-learn, 8x8, 1,200 to train on; a convolutional net, T = 4."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    data = _split(x, torch.tensor(found.target), 1200)
    return Task(*data, STEPS["digits"], False, (16, 32), (64,), 20, 2)


def cifar10() -> Task:
    """The first 4,000 training and 2,000 test images (JPEG re-encode), 32x32, T = 4."""
    import pyarrow.parquet as pq
    from PIL import Image

    def read(kind: str, rows: int) -> tuple[Tensor, Tensor]:
        table = pq.read_table(sorted(folder("cifar10").glob(f"{kind}-*"))[0]).slice(0, rows)
        pixels = [np.asarray(Image.open(io.BytesIO(r["bytes"]))) for r in table["image"].to_pylist()]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        return (x - 0.47) / 0.25, torch.tensor(table["label"].to_pylist())

    data = *read("train", 4000), *read("test", 2000)
    return Task(*data, STEPS["cifar10"], False, (32, 64, 96, 128), (128,), 16, 1)


def _frames_of(name: str, pattern: str, size: int, T: int, pool: int) -> tuple[Tensor, Tensor]:
    """Event counts by polarity in ``T`` equal windows of each recording, ``[N, T, 2, H, W]``."""
    import pyarrow.parquet as pq

    x, y = [], []
    for path in sorted(folder(name).glob(pattern)):
        table = pq.read_table(path, columns=["t", "x", "y", "p", "label"])
        for row in table.to_pylist():
            t = np.asarray(row["t"], dtype=np.int64)
            frame = np.zeros((T, 2, size // pool, size // pool), dtype=np.float32)
            window = np.minimum(t * T // (t[-1] + 1 if len(t) else 1), T - 1)
            cell = [np.minimum(np.asarray(row[k], dtype=np.int64) // pool, size // pool - 1) for k in "yx"]
            np.add.at(frame, (window, np.asarray(row["p"], dtype=np.int64), *cell), 1.0)
            x.append(frame)
            y.append(row["label"])
    return torch.from_numpy(np.stack(x)), torch.tensor(y)


def nmnist() -> Task:
    """1,100 real N-MNIST recordings, 700 to train on; 34x34, T = 6."""
    data = _split(*_frames_of("nmnist", "*.parquet", 34, STEPS["nmnist"], 1), 700)
    return Task(*data, STEPS["nmnist"], True, (16, 32, 48, 64), (128,), 25, 1)


def dvs128() -> Task:
    """Five objects before a DVS128 camera, 1,631 windows; tested on the last fifth of each recording.

    Pooled to 32x32; windows of one recording are correlated, so the split is the dataset's own.
    """
    train, test = (
        _frames_of("dvs128", f"{part}-*.parquet", 128, STEPS["dvs128"], 4) for part in ("train", "val")
    )
    return Task(*train, *test, STEPS["dvs128"], True, (16, 32, 48, 64), (128,), 10, 1)


def cifar_dvs() -> Task:
    """Simulated events of 2,000 CIFAR-10 images, 500 to test on; 48x48, T = 6."""
    train, test = (
        _frames_of("cifar10-dvs", f"{part}-*.parquet", 48, STEPS["cifar-dvs"], 1)
        for part in ("train", "test")
    )
    return Task(*train, *test, STEPS["cifar-dvs"], True, (16, 32, 48, 64), (128,), 25, 1)


def _cifar16(model: str, **options: Any) -> Task:
    """20,000 training and 4,000 test images (JPEG re-encode) averaged to 16x16, T = 4."""
    x, y, _ = load("cifar10", 20_000, 1, 16)
    x_test, y_test, _ = load("cifar10", 4_000, 1, 16, split="test")
    return Task(
        x[0].contiguous(),
        y,
        x_test[0].contiguous(),
        y_test,
        DEEP_STEPS,
        False,
        (),
        (),
        10,
        2,
        model=model,
        options=options,
        augment=True,
        retrain_rows=8_000,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "nmnist": nmnist,
    "cifar10": cifar10,
    "dvs128": dvs128,
    "cifar-dvs": cifar_dvs,
    "sew18": lambda: _cifar16("sew_resnet18", width=16),
    "ms18": lambda: _cifar16("ms_resnet18", width=16),
    "vgg9": lambda: _cifar16("vgg9", channels=(16, 16, 32, 32, 64, 64, 64), hidden=(256,), grid=4),
}
DEEP = ("sew18", "vgg9", "ms18")
"""The networks of at least nine layers."""


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped left to right with probability 1/2 and shifted by up to 2 pixels each way."""
    n, side = len(x), x.shape[-1]
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    down, right = torch.randint(0, 5, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(side))[:, None, :, None]
    columns = (right[:, None] + torch.arange(side))[:, None, None, :]
    return padded[
        torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns
    ]


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Up to the optimizer's learning rate and down to nothing."""
    return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps)


def train(
    task: Task,
    model: SpikingNetwork,
    epochs: int,
    lr: float,
    seed: int,
    masks: Masks | None = None,
    schedule: Schedule = one_cycle,
) -> None:
    """AdamW; with ``masks`` their weights stay zero.

    With masks (retraining) an epoch has ``task.retrain_rows`` rows.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    rows = len(task.x_train)
    if masks is not None and task.retrain_rows:
        rows = min(rows, task.retrain_rows)
    steps = max(epochs * (rows // BATCH), 1)
    rate = schedule(optimizer, steps)
    hold = None if masks is None else masks.keep(model, optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(task.x_train), generator=generator)[:rows]
        for ids in order.split(BATCH)[: len(order) // BATCH]:
            optimizer.zero_grad()
            x = task.x_train[ids]
            logits_TBK = model(task.inputs(_augmented(x, generator) if task.augment else x))
            rate_cross_entropy(logits_TBK, task.y_train[ids]).mean().backward()
            optimizer.step()
            rate.step()
    if hold is not None:
        hold.remove()


@torch.no_grad()
def scores(task: Task, model: SpikingNetwork, examples: int | None = None) -> Tensor:
    """Time-mean logits of the first test examples, or all, in eval mode, ``[N, K]``."""
    model.eval()
    return torch.cat([model(x).mean(0) for x in task.batches(task.x_test[:examples])])


def accuracy(task: Task, outputs: Tensor) -> float:
    """Share of test examples whose largest score is their label's."""
    return float((outputs.argmax(1) == task.y_test).float().mean())
