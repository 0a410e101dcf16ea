"""Scores of examples: the function that every launcher runs on a block of rows, and its Ray Data pass."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.connect import prepare_data, usable_cpus
from pipelines.config import ClusterConfig, LossName, plugins
from pipelines.data.ids import Ids
from pipelines.data.layout import Layout, chunked, naming_rows, read_rows, select
from pipelines.data.rows import Inputs, Rows
from pipelines.data.transfer import to_device
from pipelines.errors import UserError
from pipelines.networks import in_layout, is_channels_last
from pruning.examples.scores import ExampleScorer
from snn.interchange import build_described
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork

PARTS, PARTS_PER_CORE = 32, 4
"""Tasks that share a dataset's rows: so many, or so many for each core of the cluster if that is more."""
LEAST_ROWS, MOST_ROWS = 2048, 131072
"""What one of them reads and scores, row group by row group, if row groups are smaller than that."""
CHUNK = 256  # rows per forward: tensors stay below the size at which the C library maps memory anew


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which scores, of which loss, on which inputs."""

    scores: tuple[str, ...]
    """Names of `pruning.examples.scores.SCORES`."""
    loss: LossName
    label_smoothing: float
    tail_depth: int
    timesteps: int | None
    inputs: Inputs

    def scorer(self, model: SpikingNetwork) -> ExampleScorer:
        """The scorer of a network."""
        return ExampleScorer(
            model,
            self.scores,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            tail_depth=self.tail_depth,
            timesteps=self.timesteps,
        )


def score_table(
    table: pa.Table, model: SpikingNetwork, scoring: Scoring, device: torch.device | str = "cpu"
) -> pa.Table:
    """Columns id (ascending) and one float32 per score, for rows with columns id, image and label.

    Raises:
        UserError: an image that cannot be decoded.
    """
    rows = Rows(table)
    scorer = scoring.scorer(model)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in scoring.scores}
    for _, x, labels in rows.batches(CHUNK):
        found = scorer.score(scoring.inputs(x, device), to_device(labels, device))
        for name in scoring.scores:
            parts[name].append(found[name])  # left on its device: rows are decoded while a GPU computes
    scores = {name: torch.cat(part).float().cpu().numpy() for name, part in parts.items()}
    return pa.table({"id": rows.ids, **scores})


def part_rows(layout: Layout, cores: int) -> int:
    """Rows of one task, at least: few enough that every core has some, many enough to be worth a task."""
    parts = max(PARTS, PARTS_PER_CORE * cores)
    return min(max(int(layout.rows.sum()) // parts, LEAST_ROWS), MOST_ROWS)


def parts_of(layout: Layout, cores: int = 1) -> Iterator[Layout]:
    """The row groups that are scored by one task each. Scores do not depend on how they are parted."""
    for part in chunked(layout.rows, part_rows(layout, cores)):
        yield layout.take(part)


def score_layout(
    layout: Layout,
    wanted: np.ndarray | Ids,
    model: SpikingNetwork,
    scoring: Scoring,
    device: torch.device | str = "cpu",
) -> pa.Table:
    """As `score_table`, for the wanted rows of row groups, one row group in memory at a time.

    Raises:
        UserError: an image that cannot be decoded or a row group that cannot be read, with its file.
    """
    layout, found = layout.holding(wanted), []
    for i in range(len(layout)):
        piece = layout.take([i])
        with naming_rows(piece):
            found.append(score_table(read_rows(piece, wanted), model, scoring, device))
    return pa.concat_tables(found) if found else pa.table({"id": np.zeros(0, np.int64)})


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """Who scores on Ray."""

    actors: int = 0
    """Long-lived actors; 0 for tasks, which need no start of their own between passes."""
    gpus: float = 0
    """GPUs of each actor."""
    spare: bool = False
    """On a CPU, compute only where nobody else wants the core: training beside it goes first."""
    tasks: int | None = None
    """Most tasks at once, where they are tasks; ``None`` for as many as Ray has CPUs for."""
    cpus: float = 1
    """CPUs of each task."""


def scorers_of(cluster: ClusterConfig) -> Scorers:
    """As the config says."""
    return Scorers(actors=cluster.scorers, gpus=cluster.gpus_per_scorer)


def scorers_alone(cluster: ClusterConfig) -> Scorers:
    """As the config says, where nobody else computes on the cluster.

    A Ray of its own is told of more CPUs than a small machine has. Tasks that share cores cost each
    other a tenth of their speed for every one too many; one too many fills the pauses between tasks.
    """
    import ray

    cpus, tasks = ray.cluster_resources().get("CPU", 1.0), cluster_cores() + 1
    return replace(scorers_of(cluster), cpus=max(1.0, math.floor(cpus / tasks * 1e4) / 1e4))


def score_dataset(
    dataset: Any,
    weights: dict[str, torch.Tensor],
    architecture: dict[str, Any],
    ids: np.ndarray,
    scoring: Scoring,
    scorers: Scorers = Scorers(),
) -> np.ndarray:
    """The first score of the rows with these ids in a Ray Dataset, computed by its tasks.

    The weights travel once, through the object store; tasks keep the network between blocks.

    Args:
        dataset: materialised rows with columns id, image and label.
        weights: of the network that scores, on the CPU.
        architecture: of the network.
        ids: ascending.
        scoring: what to compute.
        scorers: who does it.

    Returns:
        float32, in the order of ``ids``.
    """
    import ray

    job = _Job(architecture, weights, scoring, wanted=ids)
    blocks = _mapped(dataset, job, scorers).to_arrow_refs()
    table = pa.concat_tables([t for t in ray.get(blocks) if t.num_rows])
    found, scores = table.column("id").to_numpy(), table.column(scoring.scores[0]).to_numpy()
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], ids):
        raise RuntimeError(f"scored {len(found)} rows of {len(ids)}: the dataset changed under the run")
    return scores[order]


def stream_scores(
    layout: Layout,
    wanted: np.ndarray | Ids,
    weights: dict[str, torch.Tensor],
    architecture: dict[str, Any],
    scoring: Scoring,
    scorers: Scorers = Scorers(),
) -> Iterator[pa.Table]:
    """Tables of scores of row groups, in their order, as Ray Data finishes them; nothing is kept.

    Every task reads and scores the row groups of its own, so that no more rows than theirs are in
    memory anywhere.

    Args:
        layout: the row groups.
        wanted: ascending ids, or a set of ids.
        weights: of the network, on the CPU.
        architecture: of the network.
        scoring: what to compute.
        scorers: who does it.

    Raises:
        UserError: an image that cannot be decoded or a row group that cannot be read, with its file.
    """
    import ray.data

    prepare_data()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    rows = part_rows(layout, cluster_cores())
    parts = sum(1 for _ in chunked(layout.rows, rows))
    job = _Job(architecture, weights, scoring, wanted=wanted, layout=layout, part_rows=rows)
    numbers = ray.data.from_arrow([pa.table({"id": [part]}) for part in range(parts)])  # a block each
    scored = _mapped(numbers, job, scorers)
    try:
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            if table.num_rows:
                yield table
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None


@dataclass(frozen=True)
class _Job:
    architecture: dict[str, Any]
    weights: dict[str, torch.Tensor]
    scoring: Scoring
    wanted: Any
    layout: Layout | None = None
    part_rows: int = 0
    code: plugins.OwnCode | None = field(default_factory=plugins.active)
    device: str = "cpu"
    spare: bool = False


def _mapped(dataset: Any, job: _Job, scorers: Scorers) -> Any:
    import ray

    device = "cuda" if scorers.gpus else "cpu"
    ref = ray.put(replace(job, device=device, spare=scorers.spare and device == "cpu"))
    shared = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
    if not scorers.actors:
        told = {"job": [ref], "key": ref.hex()}
        return dataset.map_batches(
            _score_block, fn_kwargs=told, concurrency=scorers.tasks, num_cpus=scorers.cpus, **shared
        )
    return dataset.map_batches(
        _ScoringActor,
        fn_constructor_kwargs={"job": [ref]},
        compute=ray.data.ActorPoolStrategy(size=scorers.actors),
        **({"num_gpus": scorers.gpus} if scorers.gpus else {"num_cpus": 1}),
        **shared,
    )


def cluster_cores() -> int:
    """Cores of the cluster; a machine of its own may be told to Ray with more CPUs than it has."""
    import ray

    cores = int(ray.cluster_resources().get("CPU", 1))
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        cores = min(cores, usable_cpus())
    return max(cores, 1)


class _Runner:
    """A job with its network, ready for blocks."""

    def __init__(self, job: _Job) -> None:
        plugins.activate(job.code)
        tune_allocator()
        torch.set_num_threads(1)
        self._job = job
        self._device = job.device
        self._model = in_layout(
            build_described(job.architecture), channels_last=is_channels_last(job.weights)
        )
        self._model.load_state_dict(job.weights)
        self._model.to(self._device)
        self._parts = [] if job.layout is None else list(chunked(job.layout.rows, job.part_rows))

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Tables of scores of a block's rows."""
        if not self._job.spare:
            yield from self._scored(block)
            return
        with ThreadPoolExecutor(1, "scoring", initializer=_give_way) as thread:
            yield from thread.submit(lambda: list(self._scored(block))).result()

    def _scored(self, block: pa.Table) -> Iterator[pa.Table]:
        job = self._job
        if job.layout is None:
            rows = select(block, job.wanted)
            if rows.num_rows:
                yield score_table(rows, self._model, job.scoring, self._device)
            return
        for part in block.column("id").to_pylist():
            layout = job.layout.take(self._parts[part])
            scores = score_layout(layout, job.wanted, self._model, job.scoring, self._device)
            if scores.num_rows:
                yield scores


def _give_way() -> None:
    """Let the calling thread run only on cores that nobody else wants, where the system knows how."""
    torch.set_num_threads(1)
    if hasattr(os, "SCHED_IDLE"):  # of this thread alone: the process goes on to other work
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class _ScoringActor:
    """A member of a pool of scoring actors."""

    def __init__(self, job: list[Any]) -> None:
        import ray

        self._runner = _Runner(ray.get(job[0]))

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        return self._runner(block)


_cached: tuple[str, _Runner] | None = None


def _score_block(block: pa.Table, job: list[Any], key: str) -> Iterator[pa.Table]:
    global _cached
    if _cached is None or _cached[0] != key:
        import ray

        _cached = (key, _Runner(ray.get(job[0])))
    return _cached[1](block)


def mistake(error: BaseException) -> UserError | None:
    """The user's mistake that a task's failure stems from, if one does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(seen.where, seen.what)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
