"""Uniform samples of a dataset's examples, by a hash of (seed, epoch, id)."""

import numpy as np

from pipelines.data.ids import Ids
from pruning.examples.sampling import uniform


def uniform_sample(
    ids: Ids, size: int, *, seed: int, epoch: int, stream: int, rank: int, world_size: int
) -> np.ndarray:
    """This worker's share of a uniform sample without replacement, of equal size on every worker.

    Args:
        ids: all examples.
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
    chosen, keys = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for block in ids.blocks():  # the lowest keys so far; of equal ones the earlier
        chosen = np.concatenate([chosen, block])
        keys = np.concatenate([keys, uniform(seed, epoch, block, stream=stream)])
        order = np.argsort(keys, kind="stable")[:size]
        chosen, keys = chosen[order], keys[order]
    share = max(size // world_size, 1)
    start = rank * share % size
    return np.sort(chosen[start : start + share])
