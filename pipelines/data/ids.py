"""Ids are positions: the k-th row of a split, in the order of its files, has the id k."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pruning.examples.sampling import uniform

MOST_IDS = 100_000_000
"""Ids that one process draws from: 16 bytes of memory each for their scores, and about 40 for a draw."""
BLOCK = 1 << 16
"""Ids that are looked at together: what walking a set costs in memory."""


@dataclass(frozen=True, eq=False)
class Ids:
    """The ids 0 to ``end - 1``, except those of rows that are left out."""

    end: int
    absent: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64, ascending, unique."""

    def __len__(self) -> int:
        return self.end - len(self.absent)

    def array(self, low: int = 0, high: int | None = None) -> np.ndarray:
        """The ids in ``[low, high)``, int64, ascending; all by default."""
        low, high = max(low, 0), self.end if high is None else min(high, self.end)
        a, b = np.searchsorted(self.absent, [low, high])
        return np.delete(np.arange(low, high), self.absent[a:b] - low)

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids, int64, ascending, a bounded number at a time."""
        for low in range(0, self.end, BLOCK):
            ids = self.array(low, low + BLOCK)
            if len(ids):
                yield ids

    def counts(self, ranges: np.ndarray) -> np.ndarray:
        """How many ids there are in ranges ``[low, high)``, int64 ``[P, 2]``: int64 ``[P]``."""
        cut = np.clip(ranges, 0, self.end)
        absent = np.searchsorted(self.absent, cut)
        return np.maximum((cut - absent) @ [-1, 1], 0)

    def present(self) -> np.ndarray | None:
        """Which of the ids there are, bool ``[end]``; ``None`` for all."""
        if not len(self.absent):
            return None
        mask = np.ones(self.end, bool)
        mask[self.absent] = False
        return mask

    def without(self, ids: np.ndarray) -> "Ids":
        """The set without these ids; ``end`` stays."""
        return Ids(self.end, np.union1d(self.absent, ids[(ids >= 0) & (ids < self.end)]))

    def first(self, count: int) -> "Ids":
        """The ``count`` lowest ids (of at least so many)."""
        before = self.absent - np.arange(len(self.absent))  # ids there are below each absent one
        end = count + int(np.searchsorted(before, count - 1, side="right"))
        return Ids(end, self.absent[self.absent < end])


def uniform_sample(
    ids: Ids, size: int, *, seed: int, epoch: int, stream: int, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """This worker's equal share of a uniform sample without replacement: int64, ascending, at least one id.

    Drawn by a hash of (seed, epoch, id, stream); streams tell samples for different purposes apart. ``size``
    is that of all workers together.
    """
    size = min(size, len(ids))
    chosen, keys = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for block in ids.blocks():  # the lowest keys so far; of equal ones the earlier
        chosen = np.concatenate([chosen, block])
        keys = np.concatenate([keys, uniform(seed, epoch, block, stream=stream)])
        order = np.argsort(keys, kind="stable")[:size]
        chosen, keys = chosen[order], keys[order]
    share = max(size // world_size, 1)
    start = rank * share % size
    return np.sort(chosen[start : start + share])
