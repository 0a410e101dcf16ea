"""What a search adds to the config tree: its space, its objectives, its budget."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.config import Config
from pipelines.errors import UserError

ObjectiveName = Literal["accuracy", "examples", "seconds", "density", "synops"]
Question = Literal["data", "network", "both"]
Stages = Literal["train", "run"]


def _check(ok: bool, where: str, value: Any, allowed: str) -> None:
    if not ok:
        raise UserError(f"search.{where}", f"{value!r} is not possible; it must be {allowed}")


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """What to search, for what, and for how long."""

    question: Question | None = None
    """Ready-made space: data (how much data can I drop), network (how much of the network), or both;
    both when no space is given."""
    space: dict[str, Any] | None = None
    """Fields by their path: a list of values, or {low, high} with log: true or step. Beside a
    question it adds to that space."""
    objectives: tuple[ObjectiveName, ...] | None = None
    """accuracy (highest), examples, seconds, density, synops (lowest); the question's own when not given."""
    stages: Stages | None = None
    """What a trial does: train, or run (train, prune, retrain); what the space and objectives need when
    not given."""
    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """tpe and nsga2 learn from finished trials; random and grid do not."""
    grid_points: int = 5
    """Values that grid takes from a range without a step."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops trials early whose accuracy lags behind that of others at the same epoch; for the
    objective accuracy alone and trials of one worker."""
    grace_epochs: int = 2
    """Epochs before asha may stop a trial."""
    reduction: int = 3
    """asha keeps one in so many trials at each of its rungs."""
    trials: int | None = None
    """Trials to finish; with neither trials nor minutes 20, or the whole grid."""
    minutes: float | None = None
    """Wall time of a launch, after which running trials are left for --resume."""
    concurrent: int | None = None
    """Trials at once; as many as fit when not given."""

    def __post_init__(self) -> None:
        if self.objectives is not None:
            _check(len(self.objectives) > 0, "objectives", [], "at least one of them")
            unique = len(set(self.objectives)) == len(self.objectives)
            _check(unique, "objectives", list(self.objectives), "without repetition")
        _check(2 <= self.grid_points <= 1000, "grid_points", self.grid_points, "between 2 and 1000")
        _check(self.grace_epochs >= 1, "grace_epochs", self.grace_epochs, "at least 1")
        _check(2 <= self.reduction <= 10, "reduction", self.reduction, "between 2 and 10")
        _check(self.trials is None or self.trials >= 1, "trials", self.trials, "at least 1")
        _check(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "positive")
        _check(self.concurrent is None or self.concurrent >= 1, "concurrent", self.concurrent, "at least 1")


@dataclass(kw_only=True, slots=True)
class SearchTree(Config):
    """A run's config, and the search over it."""

    name: str = "search"
    """Name of the search: its folder below storage."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search."""
