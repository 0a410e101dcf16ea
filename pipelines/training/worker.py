"""What a worker carries through a run: the run's spec, the network so far, and how far it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.data.inputs import Augmentation, Inputs
from pipelines.errors import UserError
from pipelines.networks import architecture, make_network
from pipelines.storage.atomic import write_parquet
from pipelines.storage.sync import Mirror, beside_checkpoints, in_checkpoints, local_file, mirror_of
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Progress
from pipelines.training.engine import Engine
from pipelines.training.metrics import Tracker, make_trackers, progress_line, write_metrics
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import ScoreTable
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork


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
        for tracker in self.trackers:
            tracker.record(len(self.progress.history) - 1, record)
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
        rows = self.engine.table.rows(epoch) if self.engine.rank == 0 else None
        if rows is not None:
            write_parquet(Path(self.spec.folder) / "scores.parquet", [pa.table(rows)])


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
    engine.warm_up()
    return worker
