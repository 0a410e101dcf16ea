"""What a search trades off, and how a trial's run folders tell it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError
from pipelines.report.summary import summarise
from pipelines.search.config import Question, Stages

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
    """The objectives of a search.

    Raises:
        UserError: one that the stages do not produce.
    """
    if names is None:
        default = _OF_QUESTION[question] if question else ("accuracy", "examples", "density")
        names = [n for n in default if not (stages == "train" and n == "density")]
    for name in names:
        if name == "density" and stages == "train":
            raise UserError(
                "search.objectives",
                "density is not produced by the stage train, which removes no weights; "
                "set search.stages to run or leave density out",
            )
    return tuple(OBJECTIVES[name] for name in names)


def measure(folders: Sequence[Path]) -> dict[str, float]:
    """All objectives' values of a trial, from the run folders of its stages in order.

    Counts and seconds are sums over the stages, the rest is the network's at the end. ``scored`` (examples
    scored in passes of their own) comes along.

    Raises:
        UserError: a value that is not finite, or a folder without records.
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
