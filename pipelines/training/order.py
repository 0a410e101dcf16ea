"""Which row stands where in an epoch: pure functions of (ids, seed, epoch, worker count).

Nothing here knows who fetches the rows or how fast; so neither can change a batch.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.data.layout import chunked
from pruning.examples.sampling import hash64, shuffled

STREAM_PIECES = 105


@dataclass(frozen=True)
class EpochOrder:
    """The rows of one worker for one epoch, in training order.

    Every worker has ``steps * batch_size`` rows. The last global batch is filled with rows of weight
    0 (copies of the epoch's first rows), so that all workers take the same number of steps and no
    chosen row is dropped.
    """

    ids: np.ndarray
    """int64 ``[steps * batch_size]``."""
    weights: np.ndarray
    """float32, as ``ids``; 0 marks padding."""
    batch_size: int
    """Rows per step of this worker."""
    nominal_batch: float
    """The global batch by the number of workers: what a worker's sum of losses is divided by."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the epoch."""
        return len(self.ids) // self.batch_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights of one step."""
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.ids[rows], self.weights[rows]


def epoch_order(
    ids: np.ndarray,
    weights: np.ndarray,
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    rank: int,
    world_size: int,
) -> EpochOrder:
    """This worker's rows of an epoch.

    Args:
        ids: the chosen examples, int64 ``[m]``, ascending.
        weights: theirs, float32 ``[m]``.
        seed: of the run.
        epoch: together with ``seed`` it keys the shuffle.
        global_batch: rows per step over all workers. Where workers do not divide it, each takes the next
            whole number of rows and the rows too many have weight 0.
        rank: this worker.
        world_size: number of workers.
    """
    order = np.searchsorted(ids, shuffled(ids, seed=seed, epoch=epoch))
    steps = -(-len(ids) // global_batch)
    share = -(-global_batch // world_size)
    within = rank * share + np.arange(share)
    slots = (np.arange(steps)[:, None] * global_batch + within).reshape(-1)
    real = np.tile(within < global_batch, steps) & (slots < len(ids))
    rows = order[slots % len(ids)]
    return EpochOrder(
        ids=ids[rows],
        weights=np.where(real, weights[rows], np.float32(0)),
        batch_size=share,
        nominal_batch=global_batch / world_size,
    )


@dataclass(frozen=True)
class Window:
    """Row groups whose chosen rows are shuffled together, and which of these a worker trains on."""

    pieces: np.ndarray
    """Positions of the row groups in their layout, int64."""
    skip: int
    """Rows of the shuffled window that belong to the worker before."""
    take: int
    """Rows that are this worker's."""


@dataclass(frozen=True)
class ShardOrder:
    """The rows of one worker for one epoch where data are read by row groups, window by window.

    All workers take ``steps``; those that run out of rows repeat their last ones with weight 0.
    """

    windows: tuple[Window, ...]
    rows: int
    """Chosen rows of this worker; with none, the one row of its only window is padding."""
    steps: int
    batch_size: int
    """Rows per step of this worker."""
    real: int
    """How many of these are not padding, as long as there are rows."""
    nominal_batch: float
    """As of `EpochOrder`."""


def shard_order(
    counts: np.ndarray,
    *,
    seed: int,
    epoch: int,
    window_rows: int,
    global_batch: int,
    rank: int,
    world_size: int,
) -> ShardOrder:
    """This worker's part of an epoch that is read by row groups.

    The row groups that hold chosen rows are permuted by a hash of (seed, epoch, row group) and cut into
    windows of at least ``window_rows`` chosen rows, the rows of each window are shuffled by a hash of (seed,
    epoch, id): that sequence does not depend on the workers. Each worker trains on an equal range of
    it, so that every row group is read once an epoch, except where two workers' ranges meet.

    Args:
        counts: chosen rows of each row group, int64 ``[P]``.
        seed: of the run.
        epoch: of the run.
        window_rows: rows that are shuffled together.
        global_batch: rows per step over all workers, shared as in `epoch_order`.
        rank: this worker.
        world_size: number of workers.
    """
    used = np.flatnonzero(counts)
    used = used[np.argsort(hash64(seed, epoch, used, STREAM_PIECES))]
    total = int(counts.sum())
    share = -(-global_batch // world_size)
    before, after = min(rank * share, global_batch), min((rank + 1) * share, global_batch)
    low, high = total * before // global_batch, total * after // global_batch
    windows: list[Window] = []
    at = 0
    for part in chunked(counts[used], window_rows):
        size = int(counts[used[part]].sum())
        first = min(low, total - 1)  # one row at least, to pad with
        skip, stop = max(first - at, 0), min(max(high, first + 1) - at, size)
        if skip < stop:
            windows.append(Window(used[part], skip, stop - skip))
        at += size
    return ShardOrder(
        windows=tuple(windows),
        rows=high - low,
        steps=-(-total // global_batch),
        batch_size=share,
        real=after - before,
        nominal_batch=global_batch / world_size,
    )
