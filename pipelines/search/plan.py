"""What a search is: its settings, where it lies, what it varies, what its trials do and aim at."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.config.load import load_tree
from pipelines.errors import UserError
from pipelines.runs.run_folder import run_path
from pipelines.search.config import SearchConfig, SearchTree, Stages
from pipelines.search.objectives import Objective, choose_objectives
from pipelines.search.space import Space, make_space
from pipelines.training.phases import phases_of

SETTINGS = "search.yaml"
DEFAULT_TRIALS = 20


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
    """The plan of a search.

    Raises:
        UserError: something is wrong with the space, the objectives or the scheduler.
    """
    space = make_space(tree)
    stages = _stages(tree.search, space)
    objectives = choose_objectives(tree.search.objectives, tree.search.question, stages)
    plan = Plan(tree=tree, folder=run_path(tree), space=space, stages=stages, objectives=objectives)
    if tree.search.scheduler == "asha":
        _check_asha(plan)
    return plan


def read_plan(folder: Path) -> Plan:
    """The plan of a search's folder, as it lies now.

    Raises:
        UserError: it is not a search's folder.
    """
    if not (folder / SETTINGS).exists():
        raise UserError(str(folder), f"is not a search: it has no {SETTINGS}")
    tree = load_tree(SearchTree, folder / SETTINGS)
    place = folder.absolute()
    return make_plan(replace(tree, name=place.name, storage=str(place.parent)))


def _stages(settings: SearchConfig, space: Space) -> Stages:
    """What trials do: as asked for, or what space and objectives need."""
    prunes = [p for p in space.paths if p.startswith("weights.")]
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
