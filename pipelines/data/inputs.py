"""Decoded examples on their way into the network: to the device, augmented, normalised, over time.

Augmentation is keyed by (seed, epoch, id), so any worker draws the same for an example. Batches are changed
at once, on the device they are on. Scoring and evaluation never augment.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import UserError
from pipelines.config import AugmentConfig
from pipelines.data.dataset import DatasetInfo
from pipelines.data.decode import Examples
from pipelines.data.events import EventBatch, Frames
from pruning.examples.sampling import uniform
from snn.coding import direct

# One stream of random numbers per decision; `pruning.examples.sampling` and the loop use lower ones.
ROW, COLUMN, FLIP, ROLL_ROW, ROLL_COLUMN, CUT_ROW, CUT_COLUMN, DROP_LENGTH, DROP_START = range(201, 210)


def choose_device(asked: str, gpus: int) -> torch.device:
    """What a process that sees ``gpus`` GPUs computes on.

    ``asked`` is ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if asked == "cpu" or (asked == "auto" and not gpus):
        return torch.device("cpu")
    index = int(asked.partition(":")[2] or 0)
    if index >= gpus:
        there = f"{gpus or 'no'} GPU{'s' if gpus != 1 else ''} here"
        raise UserError("cluster.device", f"{asked} is not possible: torch sees {there}; auto takes what is")
    return torch.device("cuda", index)


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on a device; on a CPU the array's own memory.

    To a GPU it goes through pinned memory, so that the host does not wait for the kernels before it.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that stay on a device, float32."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Augmentation:
    """What `AugmentConfig` asks for, under one seed."""

    settings: AugmentConfig
    seed: int

    def move(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """Crop, roll and flip ``[B, ..., H, W]`` before normalisation; pixels from outside are 0."""
        s, (height, width) = self.settings, x.shape[-2:]
        if not (s.crop or s.roll or s.flip):
            return x
        rows = self._positions(height, ids, epoch, ROW, ROLL_ROW)
        columns = self._positions(width, ids, epoch, COLUMN, ROLL_COLUMN)
        if s.flip:
            flip = uniform(self.seed, epoch, ids, FLIP) < 0.5
            columns = np.where(flip[:, None], columns[:, ::-1], columns)
        return _gather(_gather(x, rows, -2), columns, -1)

    def erase(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """Cutout and dropped time of images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``.

        Both set normalised values to 0, the mean.
        """
        s, (height, width) = self.settings, x.shape[-2:]
        if s.cutout:
            rows = self._span(height, s.cutout, ids, epoch, CUT_ROW)
            columns = self._span(width, s.cutout, ids, epoch, CUT_COLUMN)
            hole = rows[:, :, None] & columns[:, None, :]
            hole = hole.reshape(len(ids), *(1,) * (x.ndim - 3), height, width)
            x = x.masked_fill(to_device(hole, x.device), 0)
        if s.drop_time:
            T = x.shape[1]
            length = self._integers(int(s.drop_time * T) + 1, ids, epoch, DROP_LENGTH)
            start = self._integers(T - length + 1, ids, epoch, DROP_START)
            hole = _within(T, start[:, None], length[:, None]).reshape(len(ids), T, *(1,) * (x.ndim - 2))
            x = x.masked_fill(to_device(hole, x.device), 0)
        return x

    def _integers(self, below: int | np.ndarray, ids: np.ndarray, epoch: int, stream: int) -> np.ndarray:
        return (uniform(self.seed, epoch, ids, stream) * below).astype(np.int64)

    def _positions(self, size: int, ids: np.ndarray, epoch: int, crop: int, roll: int) -> np.ndarray:
        """Where each row (or column) of the new image lies in the old one, ``[B, size]``; -1 is outside."""
        s, at = self.settings, np.broadcast_to(np.arange(size), (len(ids), size))
        if s.roll:
            at = (at + self._integers(2 * s.roll + 1, ids, epoch, roll)[:, None] - s.roll) % size
        if s.crop:
            moved = np.arange(size) + self._integers(2 * s.crop + 1, ids, epoch, crop)[:, None] - s.crop
            inside = (moved >= 0) & (moved < size)
            at = np.where(inside, np.take_along_axis(at, moved.clip(0, size - 1), 1), -1)
        return at

    def _span(self, size: int, side: int, ids: np.ndarray, epoch: int, stream: int) -> np.ndarray:
        """Which rows (or columns) a span of ``side`` around a random one covers, bool ``[B, size]``."""
        centre = self._integers(size, ids, epoch, stream)[:, None]
        return _within(size, centre - side // 2, side)


def _within(size: int, first: np.ndarray, length: int | np.ndarray) -> np.ndarray:
    at = np.arange(size)
    return (at >= first) & (at < first + length)


def _gather(x: Tensor, positions: np.ndarray, axis: int) -> Tensor:
    """``x`` at ``positions`` along the last axis but ``-1 - axis``, 0 where the position is -1."""
    index = to_device(positions + 1, x.device)
    padded = F.pad(x, (1, 0) if axis == -1 else (0, 0, 1, 0))
    shape = [len(x), *(1,) * (x.ndim - 2), index.shape[1]]
    index = index.view(shape) if axis == -1 else index.view(*shape[:-2], shape[-1], 1)
    return padded.gather(axis, index.expand(x.shape))


@dataclass(frozen=True)
class Inputs:
    """Decoded examples to currents: normalised per channel, for ``T`` timesteps.

    Images and features are presented at every timestep, frames one by one; recordings become frames here.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    T: int
    frames: Frames | None = None
    augmentation: Augmentation | None = None

    @classmethod
    def of(cls, info: DatasetInfo, T: int, augmentation: Augmentation | None = None) -> "Inputs":
        """For a dataset's statistics."""
        return cls(info.mean, info.std, T, info.frames, augmentation)

    def __call__(self, x_B: Examples, device: torch.device | str = "cpu") -> Tensor:
        """Images, features, frames (see `decode`) or recordings to currents ``[T, B, ...]``, float32."""
        return self._over_time(self._normalised(self._tensor(x_B, device)))

    def training(
        self, x_B: Examples, ids: np.ndarray, epoch: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As `__call__`, augmented: what training sees of the examples ``ids`` in an epoch."""
        if self.augmentation is None:
            return self(x_B, device)
        x = self.augmentation.move(self._tensor(x_B, device), ids, epoch)
        return self._over_time(self.augmentation.erase(self._normalised(x), ids, epoch))

    def _tensor(self, x_B: Examples, device: torch.device | str) -> Tensor:
        if isinstance(x_B, EventBatch):
            assert self.frames is not None
            x_B = self.frames.batch(x_B)
        return to_device(x_B, device).float()  # bytes travel, not floats

    def _normalised(self, x: Tensor) -> Tensor:
        axes = (-1, 1, 1) if x.ndim > 2 else (-1,)
        return (x - _constants(self.mean, x.device).view(axes)) / _constants(self.std, x.device).view(axes)

    def _over_time(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1) if x.ndim == 5 else direct(x, self.T)
