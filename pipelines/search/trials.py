"""A trial: our own runs for one config, inside a process that Ray Tune places.

With one worker a trial trains in its own process, which starts once and takes trial after trial; with
more it launches Ray Train runs. Both give the results of `spikeprune run` on the trial's config.
"""

import logging
import os
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train import Checkpoint, UserCallback

from pipelines.data.dataset import describe
from pipelines.errors import UserError
from pipelines.own_code import OwnCode, activate
from pipelines.preflight import CheckedData
from pipelines.reading import window_rows
from pipelines.run_folder import create_run
from pipelines.search.config import Stages
from pipelines.search.journal import Journal, Record
from pipelines.search.objectives import measure
from pipelines.search.stages import ACCURACY, Stage, history_of, stages_of
from pipelines.storage.atomic import write_beside
from pipelines.training.worker import RunSpec

WAIT_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all trials have in common; one copy in the object store."""

    journal: Journal
    stages: Stages
    nested: bool
    """Whether trials launch Ray Train runs."""
    asha: bool
    """Whether every epoch is reported, for trials to be stopped early."""
    checked: CheckedData
    """The dataset."""
    code: OwnCode | None
    """The user's own model and policy, if the config names any."""
    train: Any
    """Encoded training rows: an Arrow table, or a materialised dataset where trials are nested; ``None``
    where row groups are read as a trial goes on."""
    test: Any
    """As ``train``, for the test rows."""
    claims: Any
    """Handle of `pipelines.search.stages.Claims`."""
    command: list[str]
    """Command line of the search."""


def run_trial(config: dict[str, Any], shared: Shared) -> None:
    """Tune's trainable: do what is left of the trial whose number ``config`` holds, and write it down."""
    torch.set_num_threads(1)  # as Ray Train's workers
    activate(shared.code)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    journal = shared.journal
    record = journal.read(config["number"])
    if record.status == "open":
        started = time.monotonic()
        record.node, record.process = ray.get_runtime_context().get_node_id(), os.getpid()
        journal.write(record)
        try:
            _work(record, shared)
            record.status = "finished"
        except ray.exceptions.RayError:
            raise  # the cluster's trouble, not the trial's: Tune starts it again
        except Exception as error:
            record.status, record.reason, record.metrics = "failed", _reason(error), {}
            trace = traceback.format_exc()
            path = journal.path(record.number).with_suffix(".error.txt")
            write_beside(path, lambda p: p.write_text(trace))
        record.seconds = round(time.monotonic() - started, 3)
        journal.write(record)
    tune.report({"status": record.status})


def _work(record: Record, shared: Shared) -> None:
    journal = shared.journal
    config = journal.space.config_of(record.values)
    stages = stages_of(config, journal.folder, shared.stages)
    record.stages = [s.name for s in stages]
    journal.write(record)  # asha may stop it within a stage
    for stage in stages:
        if _complete(stage, shared) and stage.name not in record.trained:
            record.trained.append(stage.name)
        journal.write(record)
    record.metrics = measure([s.folder for s in stages])


def _complete(stage: Stage, shared: Shared) -> bool:
    """Run what is left of a stage, or wait until another trial has; whether this one worked on it."""
    owner, claims = tune.get_context().get_trial_id(), shared.claims
    tell = _report if shared.asha else _keep_quiet
    while not stage.finished:
        if not ray.get(claims.claim.remote(stage.name, owner)):
            time.sleep(WAIT_SECONDS)
            continue
        try:
            if not stage.finished:
                create_run(stage.config, shared.command, shared.code)
                _tell_history(stage, tell)
                _launch(stage, shared, tell)
                return True
        finally:
            ray.get(claims.release.remote(stage.name, owner))
    _tell_history(stage, tell)
    return False


def _launch(stage: Stage, shared: Shared, tell: Callable[[dict[str, object]], None]) -> None:
    config, checked = stage.config, shared.checked
    info = checked.info
    if info.frames is not None:  # recordings become frames in a way that may be searched
        info = describe(checked.train, checked.test, config.data.path, config.data, config.model.T)
    spec = RunSpec(
        config=config,
        info=info,
        phases=stage.phases,
        folder=str(stage.folder),
        train=checked.train,
        test=checked.test,
        shards=config.data.reading == "shards",
        window_rows=window_rows(config, checked.train),
        code=shared.code,
        initial=None if stage.initial is None else str(stage.initial),
    )
    rows = {"train": shared.train, "test": shared.test}
    if shared.nested:
        from ray.tune.integration.ray_train import TuneReportCallback

        from pipelines.training.distributed import train_on_datasets

        owner = tune.get_context().get_trial_id()
        callbacks: list[UserCallback] = [TellLeader(shared.claims, owner)]
        if shared.asha:
            callbacks.append(TuneReportCallback())
        started = partial(_tell_place, shared.claims, owner)
        train_on_datasets(spec, **rows, watch=_keep_quiet, callbacks=callbacks, started=started)
    else:
        from pipelines.training.local import train_on_tables

        device = torch.device("cuda" if config.cluster.gpus_per_worker else "cpu")
        train_on_tables(spec, **rows, watch=_keep_quiet, told=tell, device=device)


class TellLeader(UserCallback):
    """In the actor that leads a trial's workers: makes it known, before asha can stop the trial."""

    def __init__(self, claims: Any, owner: str) -> None:
        self._claims, self._owner, self._told = claims, owner, False

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Once is enough."""
        if not self._told:
            leader = ray.get_runtime_context().current_actor
            ray.get(self._claims.lead.remote(self._owner, leader))
            self._told = True


def _tell_place(claims: Any, owner: str) -> None:
    """Called in a Ray Train worker: what the trial's workers hold of the cluster."""
    placement_group = ray.util.get_current_placement_group()
    if placement_group is not None:
        ray.get(claims.hold.remote(owner, placement_group))


def _tell_history(stage: Stage, tell: Callable[[dict[str, object]], None]) -> None:
    """Tell of the epochs that were done before, by whichever trial: asha compares from the first on."""
    for record in history_of([stage.folder]):
        tell(record)


def _report(record: dict[str, object]) -> None:
    tune.report({ACCURACY: record[ACCURACY]})


def _keep_quiet(record: dict[str, object]) -> None:
    pass


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, ray.train.TrainingFailedError):  # holds the workers' traces
        return next((s for s in reversed(lines) if re.match(r"[A-Za-z_][\w.]*: ", s)), lines[-1])
    return f"{type(error).__name__}: {lines[0]}"
