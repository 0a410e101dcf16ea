"""How many trials run at once, so that each has what it needs and none waits for another's for ever."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config import Config
from pipelines.errors import UserError

TRIAL_CPUS = 0.01  # of a trial that only waits for its Ray Train workers; Tune refuses 0
SCORING_CPUS = 1.0  # of the Ray Data tasks of one run


@dataclass(frozen=True)
class Node:
    """What a node of the cluster offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """How trials are placed."""

    nested: bool
    """Whether each trial launches a Ray Train run of several workers; otherwise it trains by itself."""
    concurrent: int
    """Trials at once."""
    request: dict[str, float]
    """What a trial itself reserves."""


def nests(config: Config) -> bool:
    """Whether a trial needs Ray Train: one worker trains within the trial, with the same results."""
    return config.cluster.workers > 1


def plan_resources(config: Config, wanted: int | None, nodes: Sequence[Node]) -> TrialResources:
    """Place trials on a cluster.

    A trial of one worker reserves ``cluster.cpus_per_worker`` CPUs, at least one, and its share of a GPU.
    One of several workers holds next to nothing itself; its workers, and the Ray Data tasks that feed
    them, are what the limit counts: Tune does not see them. At the limit one CPU is left for those tasks,
    which all trials can share; as many trials as can each have one of their own is what is taken when
    nothing is asked for.

    Args:
        config: of the trials.
        wanted: ``search.concurrent``.
        nodes: of the cluster.

    Raises:
        UserError: not one trial fits, or fewer than wanted; with the number that would.
    """
    c = config.cluster
    if not nests(config):
        cpus = max(1.0, c.cpus_per_worker)
        fits = _slots(nodes, cpus, c.gpus_per_worker)
        usual = fits
        request = {"CPU": cpus, **({"GPU": c.gpus_per_worker} if c.gpus_per_worker else {})}
    else:
        own = c.workers * c.cpus_per_worker + TRIAL_CPUS
        total = sum(n.cpus for n in nodes)
        slots = _slots(nodes, c.cpus_per_worker, c.gpus_per_worker) // c.workers
        fits = min(slots, math.floor((total - SCORING_CPUS) / own + 1e-9))
        usual = max(1, min(slots, math.floor(total / (own + SCORING_CPUS) + 1e-9)))
        request = {"CPU": TRIAL_CPUS}
    if fits < 1:
        raise UserError(*_too_small(config, nodes))
    if wanted is not None and wanted > fits:
        raise UserError("search.concurrent", f"{wanted} trials at once do not fit; set it to {fits} or less")
    return TrialResources(nested=nests(config), concurrent=wanted or usual, request=request)


def _slots(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many processes of this size fit, none over two nodes."""
    return sum(
        math.floor(min(n.cpus / cpus + 1e-9, n.gpus / gpus + 1e-9 if gpus else math.inf)) for n in nodes
    )


def _too_small(config: Config, nodes: Sequence[Node]) -> tuple[str, str]:
    c = config.cluster
    largest = max((n.cpus for n in nodes), default=0.0)
    gpus = max((n.gpus for n in nodes), default=0.0)
    if c.gpus_per_worker > gpus:
        return "cluster.gpus_per_worker", (
            f"{c.gpus_per_worker:g} GPUs per worker do not fit any node; set it to {gpus:g} or less"
        )
    if not nests(config):
        return "cluster.cpus_per_worker", (
            f"{c.cpus_per_worker:g} CPUs do not fit any node; set it to {largest:g} or less"
        )
    total = sum(n.cpus for n in nodes)
    fitting = 0
    while fitting < c.workers and (fitting + 1) * c.cpus_per_worker + TRIAL_CPUS + SCORING_CPUS <= total:
        fitting += 1
    remedy = f"set it to {fitting} or less" if fitting else "use a larger cluster"
    return "cluster.workers", (
        f"a trial of {c.workers} workers of {c.cpus_per_worker:g} CPUs and one CPU for scoring does not fit "
        f"the cluster's {total:g}; {remedy}, or lower cluster.cpus_per_worker"
    )
