"""What a search is: its settings, where it lies, what it varies, what its trials do and aim at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipelines.config.load import load_tree
from pipelines.config.schema import Question, SearchConfig, SearchTree, Stages
from pipelines.errors import UserError
from pipelines.report.summary import summarise
from pipelines.runs.run_folder import run_path
from pipelines.search.space import Space, make_space
from pipelines.training.phases import phases_of

SETTINGS = "search.yaml"
DEFAULT_TRIALS = 20
RECORDED = "val_accuracy"
"""What a run's records call the accuracy that a search goes by."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One quantity of a trial that is to be high or low."""

    name: str
    mode: Literal["max", "min"]
    title: str

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The mode as Optuna calls it."""
        return "maximize" if self.mode == "max" else "minimize"

    @property
    def sign(self) -> float:
        """By which values are multiplied so that lower ones are better."""
        return -1.0 if self.mode == "max" else 1.0

    def text(self, value: float) -> str:
        """The value as tables show it."""
        if self.name in ("accuracy", "density"):
            return f"{value:.2%}"
        return f"{value:.1f}" if self.name == "seconds" else f"{value:,.0f}"


OBJECTIVES = {
    o.name: o
    for o in (
        Objective(name="accuracy", mode="max", title="validation accuracy"),
        Objective(name="examples", mode="min", title="examples processed"),
        Objective(name="seconds", mode="min", title="training seconds"),
        Objective(name="density", mode="min", title="density"),
        Objective(name="synops", mode="min", title="SynOps per inference"),
    )
}

_OF_QUESTION: dict[Question, tuple[str, ...]] = {
    "data": ("accuracy", "examples"),
    "network": ("accuracy", "density"),
    "both": ("accuracy", "examples", "density"),
}


def choose_objectives(
    names: Sequence[str] | None, question: Question | None, stages: Stages
) -> tuple[Objective, ...]:
    """The objectives of a search."""
    if names is None:
        default = _OF_QUESTION[question] if question else ("accuracy", "examples", "density")
        names = [n for n in default if not (stages == "train" and n == "density")]
    elif stages == "train" and "density" in names:
        raise UserError(
            "search.objectives",
            "density is not produced by the stage train, which removes no weights; "
            "set search.stages to run or leave density out",
        )
    return tuple(OBJECTIVES[name] for name in names)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search, whether it has begun or not; travels to its trials."""

    tree: SearchTree
    folder: Path
    """Of the search, absolute."""
    space: Space
    stages: Stages
    objectives: tuple[Objective, ...]

    @property
    def settings(self) -> SearchConfig:
        """What the config says below ``search:``."""
        return self.tree.search

    @property
    def nested(self) -> bool:
        """Whether every trial launches Ray Train; one worker trains in the trial's own process."""
        return self.tree.cluster.workers > 1

    @property
    def trials(self) -> int | None:
        """How many trials; ``None`` when only the time ends the search."""
        wanted = self.settings.trials
        if self.settings.sampler == "grid":
            size = len(self.space.grid(self.settings.grid_points))
            return min(size, wanted or size)
        return wanted or (DEFAULT_TRIALS if self.settings.minutes is None else None)

    @property
    def steps(self) -> int:
        """Epochs and pruning steps of a trial, as asha counts them."""
        return sum(max(p.epochs, 1) for p in phases_of(self.space.config, self.stages))


def make_plan(tree: SearchTree) -> Plan:
    """The plan of a search."""
    space = make_space(tree)
    stages = _stages(tree.search, space)
    objectives = choose_objectives(tree.search.objectives, tree.search.question, stages)
    plan = Plan(tree=tree, folder=run_path(tree), space=space, stages=stages, objectives=objectives)
    if tree.search.scheduler == "asha":
        _check_asha(plan)
    return plan


def read_plan(folder: Path) -> Plan:
    """The plan of a search's folder, as it lies now."""
    if not (folder / SETTINGS).exists():
        raise UserError(str(folder), f"is not a search: it has no {SETTINGS}")
    tree = load_tree(SearchTree, folder / SETTINGS)
    place = folder.absolute()
    return make_plan(replace(tree, name=place.name, storage=str(place.parent)))


def _stages(settings: SearchConfig, space: Space) -> Stages:
    """What trials do: as asked for, or what space and objectives need."""
    prunes = [p for p in space.paths if p.startswith("weight_pruning.")]
    if settings.stages is None:
        wants = "density" in (settings.objectives or ())
        return "run" if prunes or wants or settings.question in ("network", "both") else "train"
    if settings.stages == "train" and prunes:
        raise UserError(
            f"search.space.{prunes[0]}", "changes nothing in the stage train; set search.stages to run"
        )
    return settings.stages


def _check_asha(plan: Plan) -> None:
    names = [o.name for o in plan.objectives]
    if names != ["accuracy"]:
        raise UserError(
            "search.scheduler",
            f"asha compares trials by accuracy alone, not by {', '.join(names)}; "
            "set search.objectives to accuracy, or search.scheduler to none",
        )
    if plan.nested:
        raise UserError("search.scheduler", "asha needs trials of one worker; set cluster.workers to 1")
    if plan.settings.grace_epochs > plan.steps:
        raise UserError(
            "search.grace_epochs", f"{plan.settings.grace_epochs} is more than a trial's {plan.steps} epochs"
        )


def measure(folders: Sequence[Path]) -> dict[str, float]:
    """All objectives' values of a trial, from the run folders of its stages in order.

    Counts and seconds are sums over the stages, the rest is the network's at the end. ``scored`` (examples
    scored in passes of their own) comes along.
    """
    phases = [phase for folder in folders for phase in summarise(folder).phases]
    last = phases[-1]
    values = {
        "accuracy": math.nan if last.val_accuracy is None else last.val_accuracy,
        "examples": float(sum(p.examples for p in phases)),
        "seconds": sum(p.seconds for p in phases),
        "density": last.density if last.density is not None else 1.0,
        "synops": last.synops if last.synops is not None else math.nan,
        "scored": float(sum(p.scored for p in phases)),
    }
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(name, f"is {value} at the trial's end")
    return values
