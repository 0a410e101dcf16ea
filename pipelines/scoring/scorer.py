"""Scores of examples: the function that every launcher runs on a block of rows, and its Ray Data pass."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.connect import prepare_data, usable_cpus
from cluster.errors import mistake
from pipelines.config import ClusterConfig, DataPruningConfig, TrainConfig, plugins
from pipelines.data.inputs import Inputs, to_device
from pipelines.data.layout import Ids, Layout, Rows, naming_rows, read_rows
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
    """Which scores, of which training, on which inputs."""

    scores: tuple[str, ...]
    """Names of `pruning.examples.scores.SCORES`."""
    train: TrainConfig
    examples: DataPruningConfig
    inputs: Inputs

    def scorer(self, model: SpikingNetwork) -> ExampleScorer:
        """The scorer of a network."""
        return ExampleScorer(
            model,
            self.scores,
            loss=self.train.loss,
            label_smoothing=self.train.label_smoothing,
            tail_depth=self.examples.tail_depth,
            timesteps=self.examples.score_timesteps,
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
    found = [  # left on their device: rows are decoded while a GPU computes
        scorer.score(scoring.inputs(x, device), to_device(labels, device))
        for _, x, labels in rows.batches(CHUNK)
    ]
    scores = {n: torch.cat([part[n] for part in found]).float().cpu().numpy() for n in scoring.scores}
    return pa.table({"id": rows.ids, **scores})


def parts_of(layout: Layout, cores: int = 1) -> Iterator[Layout]:
    """The row groups that are scored by one task each. Scores do not depend on how they are parted."""
    parts = max(PARTS, PARTS_PER_CORE * cores)
    return layout.parts(min(max(int(layout.rows.sum()) // parts, LEAST_ROWS), MOST_ROWS))


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
    cpus: float = 1
    """CPUs of each task."""


def scorers_without_training(cluster: ClusterConfig) -> Scorers:
    """As the config says, where nobody else computes on the cluster.

    A Ray of its own is told of more CPUs than a small machine has. Tasks that share cores cost each
    other a tenth of their speed for every one too many; one too many fills the pauses between tasks.
    """
    import ray

    cpus, tasks = ray.cluster_resources().get("CPU", 1.0), cluster_cores() + 1
    share = max(1.0, math.floor(cpus / tasks * 1e4) / 1e4)
    return Scorers(actors=cluster.scorers, gpus=cluster.gpus_per_scorer, cpus=share)


@dataclass(frozen=True, kw_only=True)
class ScoringPass:
    """A network that scores, and how: what travels once, through the object store, to whoever scores."""

    weights: dict[str, torch.Tensor]
    """On the CPU."""
    architecture: dict[str, Any]
    scoring: Scoring
    scorers: Scorers = Scorers()
    code: plugins.OwnCode | None = field(default_factory=plugins.active)


def stream_scores(layout: Layout, wanted: np.ndarray | Ids, pass_: ScoringPass) -> Iterator[pa.Table]:
    """Tables of scores of the wanted ids (ascending, or a set), in order, as Ray Data finishes them.

    Every task reads and scores the row groups of its own, so that no more rows than theirs are in
    memory anywhere.

    Raises:
        UserError: an image that cannot be decoded or a row group that cannot be read, with its file.
    """
    import ray.data

    prepare_data()
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    parts = list(parts_of(layout.holding(wanted), cluster_cores()))
    # A block each.
    numbers: Any = ray.data.from_arrow([pa.table({"id": [part]}) for part in range(len(parts))])
    scorers, given = pass_.scorers, {"given": [ray.put((pass_, wanted, parts))]}
    shared: Any = {"fn_kwargs": given, "batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
    if scorers.actors:
        share = {"num_gpus": scorers.gpus} if scorers.gpus else {"num_cpus": 1}
        pool = ray.data.ActorPoolStrategy(size=scorers.actors)
        scored = numbers.map_batches(_ScoringActor, compute=pool, **share, **shared)
    else:
        scored = numbers.map_batches(_score_block, num_cpus=scorers.cpus, **shared)
    try:
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            if table.num_rows:
                yield table
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None


def score_into(table: Any, epoch: int, layout: Layout, wanted: np.ndarray, pass_: ScoringPass) -> None:
    """Bring the first score of the wanted ids into a score table's actor, as `stream_scores` yields them."""
    import ray

    for part in stream_scores(layout, wanted, pass_):
        scores = part.column(pass_.scoring.scores[0]).to_numpy()
        ray.get(table.observe.remote(part.column("id").to_numpy(), scores, epoch, "pass"))


def cluster_cores() -> int:
    """Cores of the cluster; a machine of its own may be told to Ray with more CPUs than it has."""
    import ray

    cores = int(ray.cluster_resources().get("CPU", 1))
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        cores = min(cores, usable_cpus())
    return max(cores, 1)


class Scorer:
    """A pass's network, ready for blocks of numbers of parts."""

    def __init__(self, pass_: ScoringPass, wanted: np.ndarray | Ids, parts: list[Layout]) -> None:
        plugins.activate(pass_.code)
        tune_allocator()
        torch.set_num_threads(1)
        self._scoring, self._wanted, self._parts = pass_.scoring, wanted, parts
        self._device = "cuda" if pass_.scorers.gpus else "cpu"
        self._model = in_layout(
            build_described(pass_.architecture), channels_last=is_channels_last(pass_.weights)
        )
        self._model.load_state_dict(pass_.weights)
        self._model.to(self._device)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Tables of the scores of a block's parts, of the rows that are wanted."""
        for part in block.column("id").to_pylist():
            yield score_layout(self._parts[part], self._wanted, self._model, self._scoring, self._device)


@lru_cache(maxsize=1)
def _scorer(given: Any) -> Scorer:
    """The process keeps the network for the pass's other blocks."""
    import ray

    return Scorer(*ray.get(given))


def _score_block(block: pa.Table, given: list[Any]) -> Iterator[pa.Table]:
    return _scorer(given[0])(block)


class _ScoringActor:
    """A member of a pool: Ray Data asks for a class."""

    def __call__(self, block: pa.Table, given: list[Any]) -> Iterator[pa.Table]:
        return _score_block(block, given)
