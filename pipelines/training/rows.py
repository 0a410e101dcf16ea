"""Fetched examples, still encoded, and their way into the network."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.data.dataset import DatasetInfo
from pipelines.data.decode import decode
from snn.coding import direct


@dataclass(frozen=True)
class Inputs:
    """Decoded examples to currents: normalised per channel, presented for ``T`` timesteps."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    T: int

    @classmethod
    def of(cls, info: DatasetInfo, T: int) -> "Inputs":
        """For a dataset's statistics."""
        return cls(info.mean, info.std, T)

    def __call__(self, x_B: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """``[B, C, H, W]`` (or ``[B, N]``) to currents ``[T, B, ...]``, float32."""
        x = torch.from_numpy(x_B).to(device, torch.float32)
        axes = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 2 else (1, -1)
        mean = torch.tensor(self.mean, device=device).view(axes)
        std = torch.tensor(self.std, device=device).view(axes)
        return direct((x - mean) / std, self.T)


class Rows:
    """Encoded examples that are found by id; decoded only when a batch wants them."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("id").to_numpy()
        order = np.argsort(ids, kind="stable")
        self._images = table.column("image").combine_chunks().take(pa.array(order))
        self.ids = ids[order]
        self._labels = table.column("label").to_numpy()[order].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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

    def share(self, rank: int, world_size: int) -> "Rows":
        """Every ``world_size``-th row, from the ``rank``-th on."""
        at = np.arange(rank, len(self), world_size)
        images = self._images.take(pa.array(at))
        return Rows(pa.table({"id": self.ids[at], "image": images, "label": self._labels[at]}))

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Ids, decoded examples and labels in ascending order of the ids."""
        for start in range(0, len(self), batch_size):
            ids = self.ids[start : start + batch_size]
            yield ids, *self.get(ids)
