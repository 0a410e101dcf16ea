"""Which row stands where in an epoch: pure functions of (ids, seed, epoch, worker count).

Nothing here knows who fetches the rows or how fast; so neither can change a batch.
"""

from dataclasses import dataclass

import numpy as np

from pruning.examples.sampling import shuffled, uniform


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

    def parts(self, step: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A step's rows in at most ``count`` parts of nearly equal size."""
        ids, weights = self.batch(step)
        count = min(count, len(ids))
        return list(zip(np.array_split(ids, count), np.array_split(weights, count), strict=True))


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


def uniform_sample(
    ids: np.ndarray, size: int, *, seed: int, epoch: int, stream: int, rank: int, world_size: int
) -> np.ndarray:
    """This worker's share of a uniform sample without replacement, of equal size on every worker.

    Args:
        ids: all examples, int64 ``[N]``.
        size: of the sample over all workers; fewer when there are fewer examples.
        seed: of the run.
        epoch: keys the sample together with ``seed`` and ``stream``.
        stream: tells samples for different purposes apart.
        rank: this worker.
        world_size: number of workers.

    Returns:
        int64, ascending; at least one row.
    """
    size = min(size, len(ids))
    keys = uniform(seed, epoch, ids, stream=stream)
    chosen = ids[np.argsort(keys, kind="stable")[:size]]
    share = max(size // world_size, 1)
    start = rank * share % size
    return np.sort(chosen[start : start + share])
