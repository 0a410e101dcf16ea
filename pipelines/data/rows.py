"""Fetched examples, still encoded, and their way into the network."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.data.augment import Augmentation
from pipelines.data.dataset import DatasetInfo
from pipelines.data.decode import Examples, decode
from pipelines.data.events import EventBatch
from pipelines.data.frames import Frames
from pipelines.data.transfer import constants, to_device
from snn.coding import direct


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
        return cls(info.mean, info.std, T, info.frames, augmentation or None)

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
        return (x - constants(self.mean, x.device).view(axes)) / constants(self.std, x.device).view(axes)

    def _over_time(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1) if x.ndim == 5 else direct(x, self.T)


class Rows:
    """Encoded examples that are found by id; decoded only when a batch wants them."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("id").to_numpy()
        if (np.diff(ids) < 0).any():  # a copy of all images, so only where it is needed
            table = table.take(pa.array(np.argsort(ids, kind="stable")))
        self.ids = table.column("id").to_numpy()
        self._images = table.column("image").combine_chunks()
        self._labels = table.column("label").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, ids: np.ndarray) -> tuple[Examples, np.ndarray]:
        """Decoded examples ``[B, ...]`` and labels int64 ``[B]``, in the order of ``ids`` (repeats allowed).

        Raises:
            KeyError: an id that was not fetched.
        """
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        missing = self.ids[at] != ids
        if missing.any():
            raise KeyError(f"id {ids[missing][0]} was not fetched")
        images = self._images.take(pa.array(at))
        return decode(images, ids), self._labels[at]

    def table(self, ids: np.ndarray) -> pa.Table:
        """Some of the rows (ascending ids that were fetched), as they came."""
        at = np.searchsorted(self.ids, ids)
        return pa.table({"id": ids, "image": self._images.take(pa.array(at)), "label": self._labels[at]})

    def head(self, rows: int) -> "Rows":
        """At least the first ``rows`` rows: all of them."""
        return self

    def share(self, rank: int, world_size: int) -> "Rows":
        """Every ``world_size``-th row, from the ``rank``-th on."""
        at = np.arange(rank, len(self), world_size)
        images = self._images.take(pa.array(at))
        return Rows(pa.table({"id": self.ids[at], "image": images, "label": self._labels[at]}))

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, Examples, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        for start in range(0, len(self), batch_size):
            ids = self.ids[start : start + batch_size]
            yield ids, *self.get(ids)
