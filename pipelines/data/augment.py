"""Random changes of training examples, keyed by (seed, epoch, id): any worker draws the same for an example.

Batches are changed at once, in torch, on the device they are on. Scoring and evaluation never pass here.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pipelines.config import AugmentConfig
from pipelines.data.transfer import to_device
from pruning.examples.sampling import uniform

# One stream of random numbers per decision; `pruning.examples.sampling` and the loop use lower ones.
ROW, COLUMN, FLIP, ROLL_ROW, ROLL_COLUMN, CUT_ROW, CUT_COLUMN, DROP_LENGTH, DROP_START = range(201, 210)


@dataclass(frozen=True)
class Augmentation:
    """What `AugmentConfig` asks for, under one seed."""

    settings: AugmentConfig
    seed: int

    def __bool__(self) -> bool:
        s = self.settings
        return bool(s.crop or s.flip or s.cutout or s.roll or s.drop_time)

    def move(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """Crop, roll and flip: what only moves pixels.

        Args:
            x: ``[B, ..., H, W]`` as decoded.
            ids: int64 ``[B]``.
            epoch: of the training phase.

        Returns:
            as ``x``; pixels from outside the image are 0.
        """
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
        """Cutout and dropped time: what sets normalised values to 0, the mean.

        Args:
            x: ``[B, C, H, W]`` images or ``[B, T, C, H, W]`` frames.
            ids: int64 ``[B]``.
            epoch: of the training phase.
        """
        s, (height, width) = self.settings, x.shape[-2:]
        if s.cutout:
            rows = self._within(height, s.cutout, ids, epoch, CUT_ROW)
            columns = self._within(width, s.cutout, ids, epoch, CUT_COLUMN)
            hole = (rows[:, :, None] & columns[:, None, :]).reshape(
                len(ids), *(1,) * (x.ndim - 3), height, width
            )
            x = x.masked_fill(to_device(hole, x.device), 0)
        if s.drop_time:
            T = x.shape[1]
            length = self._integers(int(s.drop_time * T) + 1, ids, epoch, DROP_LENGTH)
            start = (uniform(self.seed, epoch, ids, DROP_START) * (T - length + 1)).astype(np.int64)
            step = np.arange(T)
            dropped = (step >= start[:, None]) & (step < (start + length)[:, None])
            hole = dropped.reshape(len(ids), T, *(1,) * (x.ndim - 2))
            x = x.masked_fill(to_device(hole, x.device), 0)
        return x

    def _integers(self, below: int, ids: np.ndarray, epoch: int, stream: int) -> np.ndarray:
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

    def _within(self, size: int, side: int, ids: np.ndarray, epoch: int, stream: int) -> np.ndarray:
        """Which rows (or columns) a span of ``side`` around a random one covers, bool ``[B, size]``."""
        first = self._integers(size, ids, epoch, stream)[:, None] - side // 2
        at = np.arange(size)
        return (at >= first) & (at < first + side)


def _gather(x: Tensor, positions: np.ndarray, axis: int) -> Tensor:
    """``x`` at ``positions`` along the last axis but ``-1 - axis``, 0 where the position is -1."""
    index = to_device(positions + 1, x.device)
    padded = F.pad(x, (1, 0) if axis == -1 else (0, 0, 1, 0))
    shape = [len(x), *(1,) * (x.ndim - 2), index.shape[1]]
    index = index.view(shape) if axis == -1 else index.view(*shape[:-2], shape[-1], 1)
    return padded.gather(axis, index.expand(x.shape))
