"""The Pareto front: the trials that no other trial beats in every objective."""

from collections.abc import Sequence

import numpy as np

from pipelines.search.objectives import Objective


def costs_of(metrics: Sequence[dict[str, float]], objectives: Sequence[Objective]) -> np.ndarray:
    """Objective values turned so that lower is better, float64 ``[trials, objectives]``."""
    rows = [[o.cost(m[o.name]) for o in objectives] for m in metrics]
    return np.array(rows, np.float64).reshape(len(metrics), len(objectives))


def on_front(costs: np.ndarray) -> np.ndarray:
    """Which points no other point dominates.

    A point dominates another if it is nowhere higher and somewhere lower; equal points do not dominate
    one another.

    Args:
        costs: finite, lower is better, ``[points, objectives]``.

    Returns:
        bool ``[points]``.
    """
    front = np.ones(len(costs), bool)
    for i, point in enumerate(costs):
        dominated = (costs <= point).all(axis=1) & (costs < point).any(axis=1)
        front[i] = not dominated.any()
    return front


def best_of(costs: np.ndarray, objectives: Sequence[Objective]) -> dict[str, int]:
    """The best point of each kind, as indices: for each objective alone, and ``balanced``.

    Among equals in an objective the one on the front that is nearest to balanced is taken. ``balanced``
    is the front's point nearest to the best of every objective, each scaled by the front's extent.

    Args:
        costs: as `on_front`, at least one point.
        objectives: names of the columns.
    """
    front = np.flatnonzero(on_front(costs))
    low, high = costs[front].min(axis=0), costs[front].max(axis=0)
    scaled = (costs[front] - low) / np.where(high > low, high - low, 1.0)
    distance = np.linalg.norm(scaled, axis=1)
    best = {o.name: int(front[np.lexsort((distance, costs[front, i]))[0]]) for i, o in enumerate(objectives)}
    if len(objectives) > 1:
        best["balanced"] = int(front[distance.argmin()])
    return best
