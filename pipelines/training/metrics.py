"""A run's records: metrics.jsonl, their speed and line in the terminal, and who else is told of them."""

import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.config import Config
from pipelines.config.load import flat_tree
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json, write_beside, write_json
from pipelines.storage.paths import short
from pruning.examples.policies.settings import FORWARD_COST

_log = logging.getLogger(__name__)
EXPERIMENT = "spikeprune"
_WITHOUT_SERVER = ("offline", "disabled")  # values of WANDB_MODE

_APART = ("evaluate", "norm", "diagnose", "table", "report", "total")
"""Laps that full and pruned epochs have alike, whatever is trained."""


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """All records as metrics.jsonl, one line each."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_beside(folder / "metrics.jsonl", lambda p: p.write_text(lines))


def pace(
    earlier: Sequence[dict[str, Any]],
    record: dict[str, Any],
    *,
    num_examples: int,
    scoring_share: float = 1.0,
) -> dict[str, float]:
    """An epoch's speed, for its record.

    The unit is what the phase's full epochs took so far (validation apart). In theory a pruned epoch takes
    its share of the examples of that, and a scoring pass `FORWARD_COST` of it.

    Args:
        earlier: the phase's records so far.
        record: the epoch's, with ``examples``, ``rescored`` and ``seconds``.
        num_examples: of a full epoch.
        scoring_share: of the timesteps that a scoring pass runs.

    Returns:
        ``examples_per_second`` (trained, of this epoch) and, once there have been a full and a pruned epoch,
        ``achieved_over_theoretical`` speed-up over the pruned epochs so far.
    """
    found = {"examples_per_second": round(record["examples"] / max(record["seconds"]["train"], 1e-9), 1)}
    epochs = [*earlier, record]
    full = [_seconds(r) for r in epochs if r["examples"] >= num_examples]
    pruned = [r for r in epochs if r["examples"] < num_examples]
    if full and pruned:
        shares = (
            r["examples"] / num_examples + FORWARD_COST * scoring_share * r["rescored"] / num_examples
            for r in pruned
        )
        theory = sum(full) / len(full) * sum(shares)
        found["achieved_over_theoretical"] = round(theory / max(sum(map(_seconds, pruned)), 1e-9), 3)
    return found


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


def _seconds(record: dict[str, Any]) -> float:
    return sum(s for lap, s in record["seconds"].items() if lap not in _APART)


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


def gauges(record: Mapping[str, Any]) -> dict[str, float]:
    """What dashboards show of a record while a run goes on."""
    speed = record.get("speed", {})
    found = {
        "epoch": record["epoch"],
        "accuracy": next(iter(accuracies(record).values())),
        "examples": record.get("examples"),
        "examples_per_second": speed.get("examples_per_second"),
        "achieved_over_theoretical_speedup": speed.get("achieved_over_theoretical"),
        "score_age_epochs": record.get("mean_score_age"),
        "workers": record.get("workers"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


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
        # Not its SummaryWriter, which writes from a thread and whose flush does not wait for it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"))
        # What a killed run wrote beyond its last checkpoint is told again.
        begun = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=records, session_log=begun))

    def record(self, index: int, record: Mapping[str, Any]) -> None:
        """All numbers, at step ``index``."""
        values = [self._summary.Value(tag=n, simple_value=v) for n, v in scalars(record).items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(wall_time=time.time(), step=index, summary=summary))
        self._writer.flush()

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
        values = [Param(name, str(value)[:500]) for name, value in flat_tree(asdict(config)).items()]
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
