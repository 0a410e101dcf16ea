"""What a search is: its settings, where it lies, what it varies, what its trials do and aim at."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import numpy as np
import yaml

from cluster.errors import UserError
from pipelines.config import Config, field_paths, is_own
from pipelines.config.load import TARGETS, load_tree, with_values
from pipelines.config.parser import leaf_hint, no_field
from pipelines.config.schema import Question, SearchConfig, SearchTree, Stages
from pipelines.report.summary import summarise
from pipelines.runs.run_folder import run_path
from pipelines.training.phases import phases_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SETTINGS = "search.yaml"
DEFAULT_TRIALS = 20
RECORDED = "val_accuracy"
"""What a run's records call the accuracy that a search goes by."""


_RATIO = {"data_pruning.ratio": {"low": 0.1, "high": 0.9, "step": 0.1}}
_BUDGET = {"weight_pruning.budget": {"low": 0.05, "high": 3.0, "log": True}}
READY_MADE: dict[Question, dict[str, Any]] = {
    "data": {**_RATIO, "data_pruning.policy": ["sadp", "random"]},
    "network": {**_BUDGET, "weight_pruning.criterion": ["slamp", "lamp"]},
    "both": {**_RATIO, **_BUDGET},
}
_FIXED = ("name", "storage", "code", "baseline", "cluster", "search")
_FREE_DATA = ("data.frames.", "data.augment.")  # all other data is the same for all trials


@dataclass(frozen=True, kw_only=True)
class Space:
    """The fields that a search varies."""

    distributions: "dict[str, BaseDistribution]"
    """By the field's path; lists among a field's values are YAML text, as Optuna's choices are scalars."""
    config: Config
    """All other fields."""
    stepped: frozenset[str]
    """Fields whose range has a step; Optuna's ranges of whole numbers all have."""

    def config_of(self, suggested: Mapping[str, Any]) -> Config:
        """The config of a trial."""
        return with_values(self.config, {path: field_value(v) for path, v in suggested.items()})

    def grid(self, points: int) -> list[dict[str, Any]]:
        """All combinations, with so many ``points`` of a range without a step.

        Fields of the training vary fastest, so that trials that run side by side train different networks
        instead of waiting for the same one.
        """
        slow_first = sorted(self.distributions, key=lambda path: not path.startswith("weight_pruning."))
        values = [_points(self.distributions[p], None if p in self.stepped else points) for p in slow_first]
        return [dict(zip(slow_first, combination, strict=True)) for combination in itertools.product(*values)]


def field_value(suggested: Any) -> Any:
    """A suggested value as the config takes it: lists from their text, steps without rounding errors."""
    if isinstance(suggested, str) and suggested.startswith(("[", "{")):
        return yaml.safe_load(suggested)
    return float(f"{suggested:.12g}") if isinstance(suggested, float) else suggested


def make_space(tree: SearchTree) -> Space:
    """The space of a search.

    Raises:
        UserError: Optuna is missing, unknown path, reversed range, a value that the config refuses, fields
            that exclude one another or that a search cannot vary.
    """
    if find_spec("optuna") is None:
        raise UserError("search", "needs the extra search: pip install 'spikeprune[search]'")
    given = tree.search.space
    if given is not None and not isinstance(given, dict):
        raise UserError("search.space", f"{given!r} is not possible; it must hold fields by their path")
    question = tree.search.question or (None if given else "both")
    wanted: dict[str, Any] = {**(READY_MADE[question] if question else {}), **(given or {})}
    distributions = {str(path): _distribution(str(path), values) for path, values in wanted.items()}
    targets = [path for path in distributions if path in TARGETS]
    if len(targets) > 1:
        raise UserError(
            f"search.space.{targets[1]}", f"excludes {targets[0]}, which is searched too; keep one"
        )
    own = {f.name: getattr(tree, f.name) for f in fields(Config)}
    space = Space(
        distributions=distributions,
        config=Config(**{**own, "baseline": "none"}),
        stepped=frozenset(p for p, values in wanted.items() if isinstance(values, dict) and "step" in values),
    )
    bounds = {
        path: _points(d, None if path in space.stepped and d.step != 1 else 2)  # type: ignore[attr-defined]
        for path, d in distributions.items()
    }
    for path, ends in bounds.items():
        for value in ends:
            _check_value(space, path, value, bounds)
    return space


def _check_value(space: Space, path: str, value: Any, bounds: Mapping[str, Sequence[Any]]) -> None:
    """That the config takes the value, as it is or beside some value of another searched field."""
    others = [{other: v} for other, ends in bounds.items() if other != path for v in ends]
    refusals = []
    for beside in ({}, *others):
        try:
            space.config_of({**beside, path: value})
            return
        except UserError as error:
            refusals.append(error)
    first = refusals[0]
    what = first.what if first.where == path else f"{value!r}: {first}"
    raise UserError(f"search.space.{path}", what) from None


def _distribution(path: str, given: Any) -> "BaseDistribution":
    where = f"search.space.{path}"
    if path not in field_paths():
        raise UserError(where, no_field(path).what)
    if path.split(".")[0] in _FIXED or (path.startswith("data.") and not path.startswith(_FREE_DATA)):
        raise UserError(where, "cannot be searched: all trials of a search share it")
    if not isinstance(given, list | dict):
        raise UserError(where, f"{given!r} is not possible; list values, or give {{low: , high: }}")
    try:
        with warnings.catch_warnings():  # of a last step that ends below high
            warnings.simplefilter("ignore")
            return _choice(given, where) if isinstance(given, list) else _range(path, given, where)
    except ValueError as error:  # Optuna's own checks
        raise UserError(where, str(error).replace("`", "")) from None


def _choice(given: Sequence[Any], where: str) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution

    if own := [v for v in given if isinstance(v, str) and is_own(v)]:
        what = "cannot be searched: one search uses one model, policy or criterion of yours"
        raise UserError(where, f"{own[0]!r} {what}")
    if any(given[i] in given[:i] for i in range(len(given))):
        raise UserError(where, f"{list(given)!r} lists a value twice")
    return CategoricalDistribution([as_yaml(v) if isinstance(v, list | dict) else v for v in given])


def _range(path: str, given: Mapping[str, Any], where: str) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    hints = {leaf_hint(path), *get_args(leaf_hint(path))}
    if not hints & {int, float} or any(get_origin(h) is tuple for h in hints):
        raise UserError(where, "is no number and has no range; list its values")
    if not {"low", "high"} <= given.keys() <= {"low", "high", "step", "log"}:
        raise UserError(where, f"{dict(given)!r} is not possible; give {{low: , high: }}, or step or log too")
    numbers = {key: _number(value, f"{where}.{key}") for key, value in given.items() if key != "log"}
    if not isinstance(log := given.get("log", False), bool):
        raise UserError(f"{where}.log", f"{log!r} is not possible; it must be true or false")
    made: BaseDistribution = FloatDistribution(**numbers, log=log)
    if int in hints:
        if any(v != int(v) for v in numbers.values()):
            raise UserError(where, f"{dict(given)!r} is not possible; it must be whole numbers")
        made = IntDistribution(**{key: int(v) for key, v in numbers.items()}, log=log)
    if made.single():
        raise UserError(where, f"{dict(given)!r} holds a single value; list it, or widen the range")
    return made


def _number(value: Any, where: str) -> float:
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and math.isfinite(number := float(value)):  # YAML reads 1e-3 as text
            return number
    raise UserError(where, f"{value!r} is not possible; it must be a number")


def _points(distribution: Any, points: int | None) -> list[Any]:
    """All choices, or so many evenly spaced values of a range; without ``points`` all its steps."""
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step
    whole = isinstance(low, int)
    if points is None:
        steps = np.arange(round((high - low) / step) + 1)
        return [low + int(i) * step if whole else field_value(low + float(i) * step) for i in steps]
    spaced = (np.geomspace if distribution.log else np.linspace)(low, high, points)
    values = [round(v) if whole else min(max(field_value(float(v)), low), high) for v in spaced]
    return list(dict.fromkeys(values))


def as_yaml(value: Any) -> str:
    """A field's value in a line, as one would write it in YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One quantity of a trial that is to be high or low."""

    name: str
    mode: Literal["max", "min"]
    title: str

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


def _objectives(settings: SearchConfig, stages: Stages) -> tuple[Objective, ...]:
    names: Sequence[str] | None = settings.objectives
    if names is None:
        default = _OF_QUESTION[settings.question or "both"]
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
    def nested(self) -> bool:
        """Whether every trial launches Ray Train; one worker trains in the trial's own process."""
        return self.tree.cluster.workers > 1

    @property
    def trials(self) -> int | None:
        """How many trials; ``None`` when only the time ends the search."""
        wanted = self.tree.search.trials
        if self.tree.search.sampler == "grid":
            size = len(self.space.grid(self.tree.search.grid_points))
            return min(size, wanted or size)
        return wanted or (DEFAULT_TRIALS if self.tree.search.minutes is None else None)

    @property
    def steps(self) -> int:
        """Epochs and pruning steps of a trial, as asha counts them."""
        return sum(max(p.epochs, 1) for p in phases_of(self.space.config, self.stages))


def make_plan(tree: SearchTree) -> Plan:
    """The plan of a search."""
    space = make_space(tree)
    stages = _stages(tree.search, space)
    objectives = _objectives(tree.search, stages)
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
    prunes = [p for p in space.distributions if p.startswith("weight_pruning.")]
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
    grace = plan.tree.search.grace_epochs
    if grace > plan.steps:
        raise UserError("search.grace_epochs", f"{grace} is more than a trial's {plan.steps} epochs")


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
