"""What a worker carries through a run, and what it records: metrics.jsonl, checkpoints, trackers.

Who is told of a record: `metrics.jsonl`, and TensorBoard, MLflow and Weights & Biases where the config asks.
"""

import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.load import values_of
from pipelines.data.inputs import Augmentation, Inputs
from pipelines.networks import architecture, make_network
from pipelines.storage.atomic import read_json, write_beside, write_json, write_parquet
from pipelines.storage.paths import short
from pipelines.storage.sync import Mirror, beside_checkpoints, in_checkpoints, local_file, mirror_of
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Progress
from pipelines.training.engine import Engine
from pipelines.training.phases import RunSpec
from pipelines.training.score_table import ScoreTable
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork

_log = logging.getLogger(__name__)
EXPERIMENT = "spikeprune"
TABLE_IDS = 1 << 20  # of scores.parquet that pass through a worker at once
_WITHOUT_SERVER = ("offline", "disabled")  # values of WANDB_MODE


class Clock:
    """Wall and CPU seconds of this process between laps."""

    def __init__(self) -> None:
        self._last = (time.perf_counter(), time.process_time())
        self._laps: dict[str, tuple[float, float]] = {}

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``, beside what is there."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = self._laps.get(name, (0.0, 0.0))
        self._laps[name] = (wall + now[0] - self._last[0], cpu + now[1] - self._last[1])
        self._last = now

    def record(self) -> dict[str, dict[str, float]]:
        """All laps and their total, to milliseconds, as ``seconds`` and ``cpu_seconds``."""
        laps = {**self._laps, "total": tuple(map(sum, zip(*self._laps.values(), strict=True)))}
        return {
            name: {lap: round(times[i], 3) for lap, times in laps.items()}
            for i, name in enumerate(("seconds", "cpu_seconds"))
        }


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """All records as metrics.jsonl, one line each."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_beside(folder / "metrics.jsonl", lambda p: p.write_text(lines))


def accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's accuracies by split (``val``, ``test``): first that which every epoch has."""
    names = {split: f"{split}_accuracy" for split in ("val", "test")}
    return {split: record[name] for split, name in names.items() if name in record}


def progress_line(record: dict[str, Any]) -> str:
    """A record's accuracy and speed, for the terminal; metrics.jsonl has the rest."""
    found = accuracies(record)
    line = f"{'/'.join(found)} accuracy {' / '.join(f'{value:.2%}' for value in found.values())}"
    speed = record.get("speed")
    return f"{line}, {speed['examples_per_second']:,.0f} examples/s" if speed else line


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by their path: ``train/test_accuracy``, ``train/seconds/score``, ..."""
    phase = f"{record['phase']}/" if "phase" in record else ""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= {phase + name: v for name, v in scalars(value, f"{prefix}{key}/").items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{phase}{prefix}{key}"] = float(value)
    return found


def check_trackers(config: Config) -> None:
    """That what the config asks for is installed and answers."""
    if config.tracking.tensorboard:
        _import("tensorboardX", "tracking.tensorboard")
    if config.tracking.mlflow is not None:
        mlflow = _import("mlflow", "tracking.mlflow")
        # The client's own patience is minutes; a server that is not there is better known at once.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        try:
            mlflow.MlflowClient(tracking_uri=config.tracking.mlflow).search_experiments(max_results=1)
        except Exception as error:
            raise UserError(
                "tracking.mlflow", f"{config.tracking.mlflow} does not answer ({short(error)})"
            ) from error
    if config.tracking.wandb is not None:
        wandb = _import("wandb", "tracking.wandb")
        try:
            known = os.environ.get("WANDB_MODE") in _WITHOUT_SERVER or wandb.login(prompt=False)
        except Exception as error:
            what = f"the server refuses or does not answer ({short(error)})"
            raise UserError("tracking.wandb", what) from error
        if not known:
            raise UserError(
                "tracking.wandb", "needs a login: `wandb login`, WANDB_API_KEY or WANDB_MODE=offline"
            )


class Tracker(ABC):
    """Takes one record of a run after the other."""

    @abstractmethod
    def record(self, index: int, record: Mapping[str, Any]) -> None:
        """Show the run's ``index``-th record: all of its numbers."""

    @abstractmethod
    def close(self) -> None:
        """The run has come to its end."""


def make_trackers(config: Config, folder: Path, records: int) -> list[Tracker]:
    """The config's trackers of a run that has ``records`` records already."""
    found: list[Tracker] = []
    if config.tracking.tensorboard:
        found.append(TensorBoard(folder / "tensorboard", records))
    if config.tracking.mlflow is not None:
        found.append(Mlflow(config, folder))
    if config.tracking.wandb is not None:
        found.append(Wandb(config, config.tracking.wandb, folder))
    return found


class TensorBoard(Tracker):
    """Event files below a run's folder: ``tensorboard --logdir runs``."""

    def __init__(self, folder: Path, records: int) -> None:
        from tensorboardX import SummaryWriter

        # What a killed run wrote beyond its last checkpoint is told again, in a file of its own: without the
        # suffix, one that is begun within the same second would overwrite the first.
        suffix = f".{records}"
        self._writer = SummaryWriter(str(folder), purge_step=records, flush_secs=1, filename_suffix=suffix)

    def record(self, index: int, record: Mapping[str, Any]) -> None:
        """All numbers, at step ``index``."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, index)
        self._writer.flush()  # the checkpoint is there already: a killed run does not tell it again

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Mlflow(Tracker):
    """One run of an MLflow server, continued when ours is."""

    def __init__(self, config: Config, folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=config.tracking.mlflow)
        known = folder / "mlflow.json"
        if known.exists():
            self._run = read_json(known)["run_id"]
            return
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        id_ = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        self._run = self._client.create_run(id_, run_name=config.name).info.run_id
        values = [Param(name, str(value)[:500]) for name, value in values_of(config).items()]
        for start in range(0, len(values), 100):  # the server's limit per request
            self._client.log_batch(self._run, params=values[start : start + 100])
        write_json(known, {"run_id": self._run, "experiment": EXPERIMENT})

    def record(self, index: int, record: Mapping[str, Any]) -> None:
        """All numbers, at step ``index``; a server that is away for a while does not stop the training."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, index) for name, value in scalars(record).items()]
        try:
            self._client.log_batch(self._run, metrics=metrics)
        except Exception as error:
            _log.warning("MLflow did not take record %d: %s", index, error)

    def close(self) -> None:
        """Tell the server that the run has finished."""
        try:
            self._client.set_terminated(self._run)
        except Exception as error:
            _log.warning("MLflow was not told of the end: %s", error)


class Wandb(Tracker):
    """One run of Weights & Biases, continued when ours is; offline, files below the run's folder."""

    def __init__(self, config: Config, project: str, folder: Path) -> None:
        import wandb

        known = folder / "wandb.json"
        if not known.exists():
            write_json(known, {"run_id": uuid4().hex[:8], "project": project})
        self._run = wandb.init(
            project=project,
            name=config.name,
            id=read_json(known)["run_id"],
            resume="allow",
            dir=str(folder),
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def record(self, index: int, record: Mapping[str, Any]) -> None:
        """All numbers, at step ``index``; wandb sends them beside the training."""
        self._run.log(scalars(record), step=index)

    def close(self) -> None:
        """Wait until everything is sent, or written."""
        self._run.finish()


def _import(package: str, where: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(where, f"needs the package {package}; install it on every node") from None


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
        ids = self.spec.ids
        if self.engine.rank != 0 or self.engine.table.rows(epoch, 0, 0) is None:
            return
        parts = (
            pa.table(self.engine.table.rows(epoch, low, min(low + TABLE_IDS, ids.end)))
            for low in range(0, ids.end, TABLE_IDS)
        )
        write_parquet(Path(self.spec.folder) / "scores.parquet", parts)


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
