"""What a search adds to the config tree: its space, its objectives, its budget."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pipelines.config import Config
from pipelines.config.checks import POSITIVE, Checked, at_least, between, check

ObjectiveName = Literal["accuracy", "examples", "seconds", "density", "synops"]
Question = Literal["data", "network", "both"]
Stages = Literal["train", "run"]


@dataclass(kw_only=True, slots=True)
class SearchConfig(Checked):
    """What to search, for what, and for how long."""

    PATH: ClassVar[str] = "search"
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
    grid_points: Annotated[int, between(2, 1000)] = 5
    """Values that grid takes from a range without a step."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops trials early whose accuracy lags behind that of others at the same epoch; for the
    objective accuracy alone and trials of one worker."""
    grace_epochs: Annotated[int, at_least(1)] = 2
    """Epochs before asha may stop a trial."""
    reduction: Annotated[int, between(2, 10)] = 3
    """asha keeps one in so many trials at each of its rungs."""
    trials: Annotated[int | None, at_least(1)] = None
    """Trials to finish; with neither trials nor minutes 20, or the whole grid."""
    minutes: Annotated[float | None, POSITIVE] = None
    """Wall time of a launch, after which running trials are left for --resume."""
    concurrent: Annotated[int | None, at_least(1)] = None
    """Trials at once; as many as fit when not given."""

    def check_together(self) -> None:
        """Some objectives, each once."""
        names = list(self.objectives or ())
        if self.objectives is not None:
            check(len(names) > 0, "search.objectives", [], "at least one of them")
        check(len(set(names)) == len(names), "search.objectives", names, "without repetition")


@dataclass(kw_only=True, slots=True)
class SearchTree(Config):
    """A run's config, and the search over it."""

    name: str = "search"
    """Name of the search: its folder below storage."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search."""
