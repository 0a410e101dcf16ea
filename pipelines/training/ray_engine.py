"""One Ray Train worker's surroundings: its rows, the score table, scoring, the other workers.

Encoded rows that are held in memory are one table in Ray's object store, which all workers of a node share;
each selects those of its batches from there, before anything is decoded.
"""

import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.collective
import torch
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from cluster.errors import mistake
from pipelines.data.layout import Layout, read_rows
from pipelines.networks import architecture
from pipelines.scoring.scorer import Scorers, Scoring, ScoringPass, score_into
from pipelines.training.engine import Engine, Shared
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import RemoteTable, ScoreTable
from snn.models import SpikingNetwork

PROGRESS_SECONDS = 0.2
READ_ROWS = 4096  # of row groups that one task reads at least
MAX_READS = 8  # tasks that read for a worker at once


class RayEngine(Engine):
    """One Ray Train worker's surroundings.

    Args:
        spec: of the run.
        train: reference to the table of the training rows, encoded; none where they are read by row groups.
        table: handle of the score table's actor, which also keeps progress.
    """

    def __init__(self, spec: RunSpec, train: Any, table: Any) -> None:
        context = ray.train.get_context()
        rows = None if train is None else _result(train)
        place = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
        super().__init__(spec, cast(ScoreTable, RemoteTable(table)), get_device(), rows, **place)
        self._actor = table
        self._noted = 0.0

    def warm_up(self) -> None:
        """The processes of tasks that read."""
        self.fetch(self.spec.ids.first(1).array())
        self.held_out(self.spec.watched)
        self.barrier()

    def read(self, layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
        """In a few tasks, each of which owns a stretch of the row groups."""
        # Not within the workers' placement group, which they would pass on below a search.
        read = ray.remote(read_rows).options(scheduling_strategy="DEFAULT")
        rows = max(READ_ROWS, -(-int(layout.rows.sum()) // MAX_READS))
        refs = [read.remote(part, ids) for part in layout.parts(rows)]
        return lambda: pa.concat_tables([table for table in _result(refs) if table.num_rows])

    def rescore(self, model: SpikingNetwork, scoring: Scoring, epoch: int) -> int:
        """By Ray Data, from a process that needs no CPU of its own."""
        spec, ids, cluster = self.spec, self.table.rescore(epoch), self.spec.config.cluster
        if ids is None:
            return 0
        pass_ = ScoringPass(
            weights={name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
            architecture=architecture(spec.config.model, spec.info),
            scoring=scoring,
            scorers=Scorers(actors=cluster.scorers, gpus=cluster.gpus_per_scorer),
        )
        score = ray.remote(score_into).options(num_cpus=0, scheduling_strategy="DEFAULT")
        _result(score.remote(self._actor, epoch, spec.train.layout, ids, pass_))
        return len(ids)

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
            self._actor.note.remote(event)

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


def _result(ref: Any) -> Any:
    """A task's result; a user's mistake that it met is raised as such."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None
