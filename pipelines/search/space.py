"""The search space: which config fields take which values, as Optuna's distributions, checked at once."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args, get_origin

import numpy as np
import yaml

from pipelines.config import Config, field_paths, is_own
from pipelines.config.load import TARGETS, with_values
from pipelines.config.parser import leaf_hint, no_field
from pipelines.config.schema import Question, SearchTree
from pipelines.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

READY_MADE: dict[Question, dict[str, Any]] = {
    "data": {
        "data_pruning.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
        "data_pruning.policy": ["sadp", "random"],
    },
    "network": {
        "weight_pruning.budget": {"low": 0.05, "high": 3.0, "log": True},
        "weight_pruning.criterion": ["slamp", "lamp"],
    },
    "both": {
        "data_pruning.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
        "weight_pruning.budget": {"low": 0.05, "high": 3.0, "log": True},
    },
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

    @property
    def paths(self) -> tuple[str, ...]:
        """The varied fields."""
        return tuple(self.distributions)

    def config_of(self, suggested: Mapping[str, Any]) -> Config:
        """The config of a trial."""
        return with_values(self.config, {path: field_value(v) for path, v in suggested.items()})

    def grid(self, points: int) -> list[dict[str, Any]]:
        """All combinations, with so many ``points`` of a range without a step.

        Fields of the training vary fastest, so that trials that run side by side train different networks
        instead of waiting for the same one.
        """
        slow_first = sorted(self.paths, key=lambda path: not path.startswith("weight_pruning."))
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
