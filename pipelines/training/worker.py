"""What a worker carries through a run: the run's spec, the network so far, and how far it is."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.inputs import Augmentation, Inputs
from pipelines.errors import UserError
from pipelines.networks import architecture, make_network
from pipelines.storage.atomic import write_beside
from pipelines.storage.sync import Mirror, beside_checkpoints, in_checkpoints, local_file, mirror_of
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Progress
from pipelines.training.engine import Engine
from pipelines.training.metrics import Tracker, gauges, make_trackers, progress_line, write_metrics
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import ScoreTable
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork

TABLE_IDS = 1 << 20  # of scores.parquet that pass through a worker at once


@dataclass(kw_only=True)
class Worker:
    """One worker's state: the network so far, its masks, and how far the run is."""

    spec: RunSpec
    engine: Engine
    model: SpikingNetwork
    inputs: Inputs
    progress: Progress = field(default_factory=Progress)
    masks: Masks | None = None
    trackers: list[Tracker] = field(default_factory=list)
    """On worker 0, who else is told of every record."""
    mirror: Mirror | None = None
    """On worker 0 of a run on remote storage."""
    start_seconds: float = 0.0
    """What `Engine.warm_up` took; told with the first record."""
    report_seconds: float = 0.0
    """What registering the records since the last told one took; told with the next."""

    def report(
        self,
        record: dict[str, Any],
        *,
        next_phase: int,
        next_epoch: int,
        optimizer: dict[str, Any] | None = None,
        table: ScoreTable | None = None,
    ) -> None:
        """Add a record to the history, write metrics.jsonl, and register a checkpoint."""
        index = self.progress.phase
        if self.start_seconds:
            record["start_seconds"], self.start_seconds = round(self.start_seconds, 3), 0.0
        if "seconds" in record:
            record["seconds"]["report"], self.report_seconds = round(self.report_seconds, 3), 0.0
        began = time.perf_counter()
        self.progress = Progress(phase=next_phase, epoch=next_epoch, history=[*self.progress.history, record])
        if self.engine.rank == 0:
            if not Path(self.spec.folder).is_dir():  # never begin another one in its place
                raise FileNotFoundError(f"{self.spec.folder} has vanished")
            write_metrics(Path(self.spec.folder), self.progress.history)
        self.push()  # what the checkpoint has behind it is there before it
        self.engine.report(
            record,
            checkpoint.checkpoint_name(index, record["phase"], record["epoch"]),
            lambda folder: checkpoint.save(
                folder,
                progress=self.progress,
                model=self.model,
                architecture=architecture(self.spec.config.model, self.spec.info),
                optimizer=optimizer,
                table=table,
                masks=self.masks,
            ),
        )
        self.push()
        self.report_seconds += time.perf_counter() - began
        for tracker in self.trackers:
            tracker.record(len(self.progress.history) - 1, record)
        self.engine.publish(record["phase"], gauges(record))
        self.engine.progress(
            {
                "phase": record["phase"],
                "epoch": record["epoch"],
                "doing": progress_line(record),
                "finished": next_phase != index,
            }
        )

    def push(self) -> None:
        """Bring what has changed to remote storage."""
        if self.mirror is not None:
            self.mirror.push(removed=in_checkpoints)

    def save_final(self, phase: str) -> None:
        """Keep the network under its phase's name, beyond the checkpoints that later ones replace."""
        if self.engine.rank == 0:
            folder = Path(self.spec.folder) / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(
                folder / f"{phase}.safetensors",
                self.model,
                architecture(self.spec.config.model, self.spec.info),
            )

    def keep_scores(self, epoch: int) -> None:
        """Write scores.parquet: what ``epoch``, just drawn, was drawn by. Others must not train meanwhile."""
        ids = self.spec.ids
        if self.engine.rank != 0 or self.engine.table.rows(epoch, 0, 0) is None:
            return
        parts = (
            pa.table(self.engine.table.rows(epoch, low, min(low + TABLE_IDS, ids.end)))
            for low in range(0, ids.end, TABLE_IDS)
        )
        write_beside(Path(self.spec.folder) / "scores.parquet", lambda path: _write_parts(path, parts))


def _write_parts(path: Path, parts: Iterator[pa.Table]) -> None:
    first = next(parts)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for part in chain([first], parts):
            if part.num_rows:
                writer.write_table(part)


def start(spec: RunSpec, engine: Engine, resume: Path | None) -> Worker:
    """A worker at the beginning of a run, or where a checkpoint left off."""
    worker = Worker(
        spec=spec,
        engine=engine,
        model=make_network(spec.config.model, spec.info, spec.config.seed).to(engine.device),
        inputs=Inputs.of(
            spec.info, spec.config.model.T, Augmentation(spec.config.data.augment, spec.config.seed)
        ),
    )
    if resume is not None:
        worker.progress = checkpoint.load_progress(resume, spec.phases)
        worker.masks = checkpoint.load_model(resume, worker.model)
    elif spec.initial is not None:
        try:
            with local_file(spec.initial) as initial:
                load_weights(initial, worker.model, architecture(spec.config.model, spec.info))
        except ValueError as error:
            raise UserError("model", str(error)) from None
    if engine.rank == 0:
        worker.mirror = mirror_of(Path(spec.folder), spec.remote)
        if worker.mirror is not None:
            worker.mirror.pull(beside_checkpoints)  # this may be another machine than before
        worker.trackers = make_trackers(spec.config, Path(spec.folder), len(worker.progress.history))
    started = time.perf_counter()
    engine.warm_up()
    worker.start_seconds = time.perf_counter() - started
    return worker
