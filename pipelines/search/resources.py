"""How many trials run at once, so that each has what it needs and none waits for another's for ever."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config import ClusterConfig, Config
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
    nothing is asked for. Where examples are scored on GPUs, room for one scorer is left likewise, however
    Ray spreads the workers.

    Args:
        config: of the trials.
        wanted: ``search.concurrent``.
        nodes: of the cluster.

    Raises:
        UserError: not one trial fits, or fewer than wanted; with the number that would.
    """
    c = config.cluster
    usual = fits = _trials(c, c.workers, nodes)
    if fits < 1:
        raise UserError(*_too_small(config, nodes))
    if nests(config):
        each = c.workers * c.cpus_per_worker + TRIAL_CPUS + SCORING_CPUS
        usual = max(1, min(fits, math.floor(_cpus(nodes) / each + 1e-9)))
        request = {"CPU": TRIAL_CPUS}
    else:
        gpus = {"GPU": c.gpus_per_worker} if c.gpus_per_worker else {}
        request = {"CPU": _alone(c), **gpus}
    if wanted is not None and wanted > fits:
        raise UserError("search.concurrent", f"{wanted} trials at once do not fit; set it to {fits} or less")
    return TrialResources(nested=nests(config), concurrent=wanted or usual, request=request)


def _trials(c: ClusterConfig, workers: int, nodes: Sequence[Node]) -> int:
    """How many trials of so many workers fit at once, with the scoring that they share."""
    if workers == 1:
        return _slots(nodes, _alone(c), c.gpus_per_worker)
    processes: float = _slots(nodes, c.cpus_per_worker, c.gpus_per_worker)
    if c.gpus_per_scorer:
        processes = min(processes, _beside_scorer(nodes, c.gpus_per_worker, c.gpus_per_scorer))
    beside = (_cpus(nodes) - SCORING_CPUS) / (workers * c.cpus_per_worker + TRIAL_CPUS)
    return math.floor(min(processes // workers, beside + 1e-9))


def _alone(c: ClusterConfig) -> float:
    """CPUs of a trial that trains by itself."""
    return max(1.0, c.cpus_per_worker)


def _cpus(nodes: Sequence[Node]) -> float:
    return sum(n.cpus for n in nodes)


def _slots(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many processes of this size fit, none over two nodes."""
    return sum(int(min(n.cpus / cpus + 1e-9, _gpu_slots(n.gpus, gpus))) for n in nodes)


def _gpu_slots(have: float, each: float) -> float:
    """How many processes a node's GPUs hold: parts of one are never taken from two."""
    if not each or math.isinf(have):
        return math.inf
    return math.floor(have) * math.floor(1 / each + 1e-9) if each <= 1 else math.floor(have / each)


def _beside_scorer(nodes: Sequence[Node], worker: float, scorer: float) -> float:
    """How many workers leave room for a scoring actor, whichever GPUs they are on: one less than the
    fewest that could leave none."""
    return sum(_fewest_that_block(n.gpus, worker, scorer) for n in nodes) - 1


def _fewest_that_block(have: float, worker: float, scorer: float) -> float:
    """Fewest workers on a node that leave no room for a scorer there; infinite where none can."""
    if scorer > have:
        return 0
    if not worker or math.isinf(have):
        return math.inf
    if max(worker, scorer) > 1 >= worker:
        return have - scorer + 1  # each on a GPU of its own
    bins, size = (have, 1.0) if max(worker, scorer) <= 1 else (1, have)
    each = math.floor((size - scorer) / worker + 1e-9) + 1
    return bins * each if each * worker <= size + 1e-9 else math.inf


def _too_small(config: Config, nodes: Sequence[Node]) -> tuple[str, str]:
    c = config.cluster
    largest = max((n.cpus for n in nodes), default=0.0)
    gpus = max((n.gpus for n in nodes), default=0.0)
    if c.gpus_per_worker > gpus:
        return "cluster.gpus_per_worker", (
            f"{c.gpus_per_worker:g} GPUs per worker do not fit any node; set it to {gpus:g} or less"
        )
    if nests(config) and c.gpus_per_scorer > gpus:
        return "cluster.gpus_per_scorer", (
            f"{c.gpus_per_scorer:g} GPUs per scorer do not fit any node; set it to {gpus:g} or less"
        )
    if not nests(config):
        return "cluster.cpus_per_worker", (
            f"{c.cpus_per_worker:g} CPUs do not fit any node; set it to {largest:g} or less"
        )
    fitting = max((w for w in range(1, c.workers) if _trials(c, w, nodes) > 0), default=0)
    remedy = f"set it to {fitting} or less" if fitting else "use a larger cluster"
    each, room = f"{c.cpus_per_worker:g} CPUs", f"{_cpus(nodes):g}"
    scoring, lower = "one CPU", "cluster.cpus_per_worker"
    if c.gpus_per_worker or c.gpus_per_scorer:
        each += f" and {c.gpus_per_worker:g} GPUs"
        room += f" CPUs and {sum(n.gpus for n in nodes):g} GPUs"
        lower += " or cluster.gpus_per_worker"
    if c.gpus_per_scorer:
        scoring += f" and {c.gpus_per_scorer:g} GPUs"
    return "cluster.workers", (
        f"a trial of {c.workers} workers of {each} each, and {scoring} for scoring, does not fit the "
        f"cluster's {room}; {remedy}, or lower {lower}"
    )
