"""A trial: the runs of one config, in a process that Ray Tune places; and what Tune has of all trials.

Its stages are runs of their own, in folders named by a hash of what their results depend on. Trials that
differ in pruning alone share the training: whoever comes first trains, the others wait for its lock. A trial
that is started again goes on from the last epoch.
"""

import hashlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from rich.console import Console

from cluster.errors import UserError
from pipelines.config import ClusterConfig, Config, WeightPruningConfig
from pipelines.config.load import dump_config
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.search.plan import RECORDED, Plan, field_value, measure

FAILURE = "failure"
"""Reported by a trial of an impossible config: why."""
TRAINING = "training"
"""Reported by a finished trial: the name of its training, which others may share."""
ANALYSES = "tune-*"
"""Tune's folders in the search's, one for every launch that added trials."""


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
    are raised, and Tune starts the trial again. ``command`` is the search's, for the runs' provenance.
    """
    from ray import tune

    sys.argv = command
    asha = plan.tree.search.scheduler == "asha"
    try:
        stages = stages_of(plan, suggested)
        for stage in stages:
            _complete(stage, (lambda r: tune.report({"accuracy": r[RECORDED]})) if asha else None)
        tune.report({**measure([s.folder for s in stages]), TRAINING: stages[0].config.name})
    except UserError as error:
        tune.report({**{o.name: math.nan for o in plan.objectives}, FAILURE: str(error)})


def stages_of(plan: Plan, suggested: dict[str, Any]) -> list[Stage]:
    """The stages of a trial, in order: train, or train and prune (which retrains, too)."""
    config = plan.space.config_of(suggested)
    c = config.cluster
    cluster = replace(
        c,
        engine="ray" if plan.nested else "local",
        address=c.address if plan.nested else None,  # else it trains in a process of the search's cluster
        threads=c.threads or max(1, int(c.cpus_per_worker)),
    )
    config = replace(config, storage=str(plan.folder / "stages"), cluster=cluster)
    dense = replace(config, weight_pruning=WeightPruningConfig())
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


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial."""

    number: int
    """Its place among all, from 0."""
    suggested: dict[str, Any]
    """What Optuna suggested, by path; `value` is what the config takes."""
    status: Literal["finished", "stopped", "failed", "open"]
    """stopped early by asha; open: left to do."""
    running: bool
    """Whether Tune would go on with it."""
    metrics: dict[str, Any]
    """What it reported last."""
    reason: str | None
    """Why it failed."""

    def value(self, path: str) -> Any:
        """The value of a searched field."""
        return field_value(self.suggested[path])


def read_trials(plan: Plan) -> list[Trial]:
    """The trials of a search by number, as far as Tune has written them down."""
    trials: list[Trial] = []
    for _, found in read_analyses(plan.folder):
        trials = [t for t in trials if t.status != "open"]  # the next launch did them again
        before = next_number(trials)
        trials += sorted((trial_of(trial, before) for trial in found), key=lambda t: t.number)
    return trials


def read_analyses(folder: Path) -> list[tuple[Path, list[Any]]]:
    """Tune's folders in order, with its trials; without one that was killed before it began."""
    from ray.tune import ExperimentAnalysis

    analyses = []
    for part in sorted(folder.glob(ANALYSES), key=part_number):
        with suppress(ValueError):  # no state yet
            analyses.append((part, ExperimentAnalysis(str(part)).trials or []))
    return analyses


def part_number(part: Path) -> int:
    """The place of one of Tune's folders."""
    return int(part.name.rpartition("-")[2])


def next_number(trials: Sequence[Trial]) -> int:
    """The number that the first trial of the next launch gets."""
    return 1 + max((t.number for t in trials if t.status != "open"), default=-1)


def trial_of(trial: Any, before: int, *, ended: bool | None = None) -> Trial:
    """One of Tune's trials, of a launch whose first has the number ``before``.

    Whether it has ``ended`` is as Tune says when not given.
    """
    last = {k: v for k, v in (trial.last_result or {}).items() if v == v}  # without what is not a number
    status: Literal["finished", "stopped", "failed", "open"] = "open"
    if trial.status == "ERROR" or FAILURE in last:
        status = "failed"
    elif (trial.is_finished() if ended is None else ended) and "accuracy" in last:
        status = "finished" if TRAINING in last else "stopped"
    return Trial(
        number=before + int(trial.experiment_tag.partition("_")[0]) - 1,
        suggested=dict(trial.config),
        status=status,
        running=not trial.is_finished(),
        metrics=last,
        reason=(last.get(FAILURE) or _reason(trial.get_error())) if status == "failed" else None,
    )


def _reason(error: Any) -> str:
    """The line of a trace that names the exception."""
    lines = str(error).strip().splitlines() or ["no message"]
    return next((s for s in reversed(lines) if re.match(r"[A-Za-z_][\w.]*: ", s)), lines[-1])


def study_of(plan: Plan, trials: Sequence[Trial], **where: Any) -> Any:
    """Optuna's study of those trials that reached something, in order; ``where`` it keeps them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize" if o.mode == "max" else "minimize" for o in plan.objectives], **where
    )
    study.add_trials(
        optuna.trial.create_trial(values=values, params=t.suggested, distributions=plan.space.distributions)
        for t in trials
        if (values := objective_values(plan, t)) is not None
    )
    return study


def objective_values(plan: Plan, trial: Trial) -> list[float] | None:
    """What a trial reached in each objective; ``None`` where it has not or could not."""
    values = [float(trial.metrics.get(o.name, math.nan)) for o in plan.objectives]
    ended = trial.status in ("finished", "stopped")
    return values if ended and all(map(math.isfinite, values)) else None
