"""A trial: the runs of one config, in a process that Ray Tune places.

Its stages are runs of their own, in folders named by a hash of what their results depend on. Trials that
differ in pruning alone share the training: whoever comes first trains, the others wait for its lock. A trial
that is started again goes on from the last epoch.
"""

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from rich.console import Console

from pipelines.config import ClusterConfig, Config, WeightsConfig
from pipelines.config.load import dump_config
from pipelines.errors import UserError
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.search.objectives import RECORDED, measure
from pipelines.search.plan import Plan

FAILURE = "failure"
"""Reported by a trial of an impossible config: why."""
TRAINING = "training"
"""Reported by a finished trial: the name of its training, which others may share."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a trial."""

    command: Literal["train", "prune"]
    config: Config
    """Complete, with the stage's own name and storage."""
    initial: Path | None
    """The network that it starts from."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.storage) / self.config.name


def run_trial(suggested: dict[str, Any], plan: Plan, command: list[str]) -> None:
    """Tune's trainable: run the config of these values, report every objective at its end.

    A config that turns out to be impossible is reported with objectives that are not numbers; other errors
    are raised, and Tune starts the trial again.

    Args:
        suggested: values by the fields' paths.
        plan: of the search.
        command: the search's command line, for the runs' provenance.
    """
    from ray import tune

    sys.argv = command
    asha = plan.settings.scheduler == "asha"
    try:
        stages = stages_of(plan, suggested)
        for stage in stages:
            _complete(stage, (lambda r: tune.report({"accuracy": r[RECORDED]})) if asha else None)
        tune.report({**measure([s.folder for s in stages]), TRAINING: stages[0].config.name})
    except UserError as error:
        tune.report({**{o.name: math.nan for o in plan.objectives}, FAILURE: str(error)})


def stages_of(plan: Plan, suggested: dict[str, Any]) -> list[Stage]:
    """The stages of a trial, in order: train, or train and prune (which retrains, too).

    Raises:
        UserError: the values exclude one another.
    """
    config = plan.space.config_of(suggested)
    c = config.cluster
    engine: Literal["ray", "local"] = "ray" if plan.nested else "local"
    cluster = replace(c, engine=engine, threads=c.threads or max(1, int(c.cpus_per_worker)))
    config = replace(config, storage=str(plan.folder / "stages"), cluster=cluster)
    dense = replace(config, weights=WeightsConfig())
    train = Stage(command="train", config=replace(dense, name=f"train-{_key(dense)}"), initial=None)
    if plan.stages == "train":
        return [train]
    network = train.folder / "checkpoints" / "train.safetensors"
    prune = replace(config, name=f"prune-{_key(config)}")
    return [train, Stage(command="prune", config=prune, initial=network)]


def _complete(stage: Stage, told: Callable[[dict[str, Any]], None] | None) -> None:
    """Run what is left of a stage, once whoever else is at it has finished or died."""
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stage.folder.with_suffix(".lock")):
        if told is not None:  # asha compares from the first epoch on
            for record in read_metrics(stage.folder):
                told(record)
        run(
            stage.config,
            stage.command,
            resume=True,
            initial=None if stage.initial is None else str(stage.initial),
            on_record=told,
            console=Console(quiet=True),
        )


def _key(config: Config) -> str:
    """A hash of what a stage's results depend on: names and places are not among it."""
    same = replace(
        config,
        name="x",
        storage="x",
        code=None,
        data=replace(config.data, path="x"),
        cluster=replace(ClusterConfig(), workers=config.cluster.workers),
    )
    return hashlib.sha256(dump_config(same).encode()).hexdigest()[:16]
