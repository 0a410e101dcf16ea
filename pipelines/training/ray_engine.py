"""One Ray Train worker's surroundings: its rows, the score table, scoring beside it, the other workers.

Encoded rows are put into Ray's object store once; each worker selects those of its batches from there, in
Ray Data tasks, before anything is decoded.
"""

import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.collective
import torch
from ray.train.torch import get_device, prepare_model
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor, nn

from cluster.connect import prepare_data
from pipelines.config import ClusterConfig
from pipelines.config.plugins import OwnCode, activate
from pipelines.data.layout import Layout, Rows, read_rows
from pipelines.errors import mistake
from pipelines.networks import architecture
from pipelines.scoring.scorer import (
    Scoring,
    ScoringPass,
    cluster_cores,
    score_dataset,
    scorers_of,
    stream_scores,
)
from pipelines.training.engine import Engine, Shared
from pipelines.training.phases import HeldOut, RunSpec
from pipelines.training.score_table import RemoteTable, ScoreTable
from pipelines.training.stored_rows import select_rows
from snn.models import SpikingNetwork

PROGRESS_SECONDS = 0.2
READ_ROWS = 4096  # of row groups that one task reads at least
MAX_READS = 8  # tasks that read for a worker at once


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every Ray Train worker is started with."""

    spec: RunSpec
    train: Any
    """Materialised Ray Dataset of the training rows, encoded; ``None`` where they are read by row groups."""
    held_out: dict[HeldOut, Any]
    """As ``train``, of each split that is evaluated on; empty where they are read by row groups."""
    table: Any
    """Handle of the score table's actor, which also keeps progress."""


class RayEngine(Engine):
    """One Ray Train worker's surroundings."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        table = cast(ScoreTable, RemoteTable(job.table))
        place = context.get_world_rank(), context.get_world_size()
        super().__init__(job.spec, table, get_device(), *place)
        self._job = job
        self._noted = 0.0
        self._gauges: dict[str, Gauge] = {}
        self._beside: Any = None

    def warm_up(self) -> None:
        """Ray Data's executor and task processes."""
        self.fetch(self.spec.ids.first(1).array())
        self.barrier()

    def select(self, ids: np.ndarray) -> pa.Table:
        """By tasks that read the object store and nothing else."""
        return select_rows(self._job.train, ids)

    def load(self, split: HeldOut) -> Rows:
        """From the object store."""
        return Rows(pa.concat_tables(ray.get(self._job.held_out[split].to_arrow_refs())))

    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """In a few tasks, each of which owns a stretch of the row groups."""
        # Not within the workers' placement group, which they would pass on below a search.
        read = ray.remote(read_rows).options(scheduling_strategy="DEFAULT")
        rows = max(READ_ROWS, -(-int(layout.rows.sum()) // MAX_READS))
        refs = [read.remote(part, ids) for part in layout.parts(rows)]
        return lambda: pa.concat_tables([table for table in _result(refs) if table.num_rows])

    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """By an actor that needs no CPU of its own; its Ray Data tasks take the spare ones."""
        spec = self.spec
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        # A pass for a later epoch runs beside training; for this one, training waits for it.
        scorers = scorers_of(spec.config.cluster)
        if epoch > stamp:
            scorers = replace(scorers, spare=True, tasks=_spare_cores(self.world_size, spec.config.cluster))
        described = architecture(spec.config.model, spec.info)
        pass_ = ScoringPass(weights=weights, architecture=described, scoring=scoring, scorers=scorers)
        ids = self.table.rescore(epoch)
        # Passes to come have their process started behind the first epoch; scores from the steps need none.
        if self._beside is None and (ids is not None or spec.config.data_pruning.rescore_every):
            self._beside = _start_beside(spec.code)
        beside = self._beside
        if ids is None:
            return lambda: 0
        if spec.shards:  # straight into the table
            ref = beside.stream.remote(pass_, spec.train.layout, ids, self._job.table, stamp)
            return lambda: _result(ref) or len(ids)
        ref = beside.score.remote(pass_, self._job.train, ids)

        def deliver() -> int:
            self.table.observe(ids, _result(ref), stamp, "pass")
            return len(ids)

        return deliver

    def distribute(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel; batch norm statistics are re-estimated, so buffers stay put."""
        # A sum of three or more terms depends on their order, and that on where a gradient lies in its
        # bucket. DDP lays the buckets out again after the first step, which a resumed run would take in
        # another layout than a run that was never stopped. Where it looks for unused parameters it does not.
        keep_buckets = self.world_size > 2
        settings = {"broadcast_buffers": False, "find_unused_parameters": keep_buckets}
        return prepare_model(model, parallel_strategy_kwargs=settings)

    def progress(self, event: dict[str, object]) -> None:
        """A few times a second, from rank 0, without waiting."""
        now = time.monotonic()
        if self.rank == 0 and (now - self._noted > PROGRESS_SECONDS or "step" not in event):
            self._noted = now
            self._job.table.note.remote(event)

    def publish(self, phase: str, values: dict[str, float]) -> None:
        """As Ray metrics ``spikeprune_*``, with tags run and phase, from rank 0."""
        if self.rank != 0:
            return
        tags = {"run": self.spec.config.name, "phase": phase}
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"spikeprune_{name}", name.replace("_", " "), tuple(tags))
            self._gauges[name].set(value, tags)

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce."""
        if self.world_size > 1:
            total = tensor.to(self.device, copy=True)
            torch.distributed.all_reduce(total)
            return total.to(tensor.device)
        return tensor

    def share(self, value: Shared) -> Shared:
        """By an actor of Ray Train's, which no long scoring pass times out, on all workers."""
        # As bytes: the actor would load all that the value's class imports, while everybody waits.
        shared: Shared = pickle.loads(ray.train.collective.broadcast_from_rank_zero(pickle.dumps(value)))
        return shared

    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """A Ray Train checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                write(Path(folder))
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(folder) if self.rank == 0 else None,
                checkpoint_dir_name=name,
            )


def _spare_cores(workers: int, cluster: ClusterConfig) -> int:
    """Cores that training leaves, and at least one."""
    # A worker trains on a whole core, however little of one it reserves.
    return max(1, cluster_cores() - int(workers * max(cluster.cpus_per_worker, 1)))


class Beside:
    """Runs passes on Ray Data beside the worker that asks for them: one process for all of a run's."""

    def __init__(self, code: OwnCode | None) -> None:
        prepare_data()
        activate(code)

    def score(self, pass_: ScoringPass, rows: Any, ids: np.ndarray) -> np.ndarray:
        """Scores of some rows of a dataset."""
        return score_dataset(rows, ids, pass_)

    def stream(self, pass_: ScoringPass, layout: Layout, ids: np.ndarray, table: Any, stamp: int) -> None:
        """Scores of some rows of row groups, delivered as they come."""
        for part in stream_scores(layout, ids, pass_):
            scores = part.column(pass_.scoring.scores[0]).to_numpy()
            ray.get(table.observe.remote(part.column("id").to_numpy(), scores, stamp, "pass"))


def _start_beside(code: OwnCode | None) -> Any:
    """On this node if it can; it ends with the worker that started it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Beside)
    return actor.options(num_cpus=0, max_restarts=-1, max_task_retries=3, scheduling_strategy=here).remote(
        code
    )


def _result(ref: Any) -> Any:
    """A task's result; a user's mistake that it met is raised as such."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None
