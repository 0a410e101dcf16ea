"""The search space: which fields of the config tree take which values, checked before anything runs."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import numpy as np

from pipelines.config import Config, field_paths, is_own
from pipelines.config.load import with_values
from pipelines.config.parser import leaf_hint
from pipelines.errors import UserError
from pipelines.search.config import Question, SearchTree

READY_MADE: dict[Question, dict[str, Any]] = {
    "data": {
        "examples.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
        "examples.policy": ["sadp", "random"],
    },
    "network": {
        "weights.budget": {"low": 0.05, "high": 3.0, "log": True},
        "weights.criterion": ["slamp", "lamp"],
    },
    "both": {
        "examples.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
        "weights.budget": {"low": 0.05, "high": 3.0, "log": True},
    },
}
_FIXED = ("name", "storage", "code", "baseline", "cluster", "search")
_FREE_DATA = ("data.frames.", "data.augment.")  # all other data is loaded once, for all trials
_TARGETS = ("weights.sparsity", "weights.budget", "weights.synops")
_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A field that takes one of some values."""

    path: str
    values: tuple[Any, ...]

    def at(self, u: float) -> Any:
        """The value at ``u`` in [0, 1)."""
        return self.values[int(u * len(self.values))]

    def grid(self, points: int) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def bounds(self) -> tuple[Any, ...]:
        """Values that the config must accept."""
        return self.values

    def position(self, value: Any) -> float:
        """Where the value lies among all, in [0, 1]."""
        return self.values.index(value) / max(len(self.values) - 1, 1)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A field that takes a number between two others, both included."""

    path: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.step is not None:  # the last step may end below high
            object.__setattr__(self, "high", self._number(self.low + self.step * (self._steps - 1)))

    @property
    def _steps(self) -> int:
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1), evenly over the range or its logarithm."""
        if self.step is not None:
            return self._number(self.low + self.step * int(u * self._steps))
        if self.whole and not self.log:
            return self._number(self.low + math.floor(u * (self.high - self.low + 1)))
        low, high = self._scale(self.low), self._scale(self.high)
        value = low + u * (high - low)
        return self._number(min(max(math.exp(value) if self.log else value, self.low), self.high))

    def grid(self, points: int) -> tuple[float, ...]:
        """Every step, or ``points`` evenly spaced values."""
        if self.step is not None:
            return tuple(self._number(self.low + self.step * i) for i in range(self._steps))
        spaced = (np.geomspace if self.log else np.linspace)(self.low, self.high, points)
        return tuple(dict.fromkeys(self._number(float(v)) for v in spaced))

    def bounds(self) -> tuple[float, ...]:
        """The ends, which the config must accept."""
        return (self._number(self.low), self._number(self.high))

    def position(self, value: float) -> float:
        """Where the value lies between the ends, in [0, 1]."""
        low, high = self._scale(self.low), self._scale(self.high)
        return (self._scale(value) - low) / (high - low)

    def snap(self, value: float) -> float:
        """The nearest value of the range to a sampler's."""
        if self.step is not None:
            value = self.low + self.step * round((value - self.low) / self.step)
        return self._number(value)

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value

    def _number(self, value: float) -> float:
        return round(value) if self.whole else float(f"{value:.12g}")


Dimension = Choice | Range


@dataclass(frozen=True, kw_only=True)
class Space:
    """The fields that a search varies."""

    dimensions: tuple[Dimension, ...]
    config: Config
    """What all other fields are."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The varied fields."""
        return tuple(d.path for d in self.dimensions)

    def config_of(self, values: Mapping[str, Any]) -> Config:
        """The config with these values.

        Raises:
            UserError: a value that is impossible beside the others.
        """
        return with_values(self.config, values)

    def grid(self, points: int) -> Iterator[dict[str, Any]]:
        """All combinations. Fields of the training vary fastest, so that neighbours in time train
        different networks instead of waiting for the same one."""
        slow_first = sorted(self.dimensions, key=lambda d: not d.path.startswith("weights."))
        for values in itertools.product(*(d.grid(points) for d in slow_first)):
            yield dict(zip((d.path for d in slow_first), values, strict=True))

    def grid_size(self, points: int) -> int:
        """How many combinations there are."""
        return math.prod(len(d.grid(points)) for d in self.dimensions)

    def draw(self, seed: int, index: int) -> dict[str, Any]:
        """The values of a random trial: a function of the seed and the trial's place among all."""
        u = np.random.default_rng([seed, 211, index]).random(len(self.dimensions))
        return {d.path: d.at(float(x)) for d, x in zip(self.dimensions, u, strict=True)}


def make_space(tree: SearchTree, base: Config) -> Space:
    """The space of a search.

    Args:
        tree: with the search's settings.
        base: the config of its trials.

    Raises:
        UserError: unknown path, reversed range, a value that the config refuses, fields that exclude one
            another or that a search cannot vary; all as ``search.space.PATH``.
    """
    given = tree.search.space
    if given is not None and not isinstance(given, dict):
        raise UserError("search.space", f"{given!r} is not possible; it must hold fields by their path")
    question = tree.search.question or (None if given else "both")
    wanted: dict[str, Any] = {**(READY_MADE[question] if question else {}), **(given or {})}
    space = Space(dimensions=tuple(_dimension(str(path), d) for path, d in wanted.items()), config=base)
    targets = [p for p in space.paths if p in _TARGETS]
    if len(targets) > 1:
        raise UserError(
            f"search.space.{targets[1]}", f"excludes {targets[0]}, which is searched too; keep one"
        )
    for dimension in space.dimensions:
        for value in dimension.bounds():
            _check_value(space, dimension, value)
    return space


def _check_value(space: Space, dimension: Dimension, value: Any) -> None:
    """That the config takes the value, as it is or beside some value of another searched field."""
    others = [{d.path: v} for d in space.dimensions if d is not dimension for v in d.bounds()]
    refusals = []
    for beside in ({}, *others):
        try:
            space.config_of({**beside, dimension.path: value})
            return
        except UserError as error:
            refusals.append(error)
    first = refusals[0]
    where = f"search.space.{dimension.path}"
    raise UserError(where, first.what if first.where == dimension.path else f"{value!r}: {first}") from None


def _dimension(path: str, given: Any) -> Dimension:
    where, hint = f"search.space.{path}", leaf_hint(path)
    if path not in field_paths():
        import difflib

        close = difflib.get_close_matches(path, field_paths(), n=1)
        hint_text = f"; did you mean {close[0]}?" if close else "; spikeprune train --help lists all"
        raise UserError(where, f"is not a field of the config{hint_text}")
    if path.split(".")[0] in _FIXED or (path.startswith("data.") and not path.startswith(_FREE_DATA)):
        raise UserError(where, "cannot be searched: all trials of a search share it")
    if isinstance(given, list):
        return _choice(path, given, where)
    if isinstance(given, dict):
        return _range(path, given, where, {hint, *get_args(hint)})
    raise UserError(where, f"{given!r} is not possible; list values, or give {{low: , high: }}")


def _choice(path: str, given: Sequence[Any], where: str) -> Choice:
    if not given:
        raise UserError(where, "lists no values")
    hint = leaf_hint(path)
    for value in given:
        own = path in ("model.name", "examples.policy", "weights.criterion")
        if own and isinstance(value, str) and is_own(value):
            raise UserError(
                where,
                f"{value!r} cannot be searched: one search uses one model, policy or criterion of yours",
            )
    values = [1.0 * v if hint is float and type(v) is int else v for v in given]
    if any(values[i] in values[:i] for i in range(len(values))):
        raise UserError(where, f"{list(given)!r} lists a value twice")
    return Choice(path=path, values=tuple(tuple(v) if isinstance(v, list) else v for v in values))


def _range(path: str, given: Mapping[str, Any], where: str, hints: set[Any]) -> Range:
    for key in given:
        if key not in _RANGE:
            raise UserError(where, f"{key!r} is unknown; a range has {', '.join(_RANGE)}")
    if not hints & {int, float} or any(get_origin(h) is tuple for h in hints):
        raise UserError(where, "is no number and has no range; list its values")
    for key in ("low", "high"):
        if key not in given:
            raise UserError(where, f"needs {key}; a range has low and high")
    numbers = {k: _number(given[k], f"{where}.{k}") for k in ("low", "high", "step") if k in given}
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if not isinstance(log := given.get("log", False), bool):
        raise UserError(f"{where}.log", f"{log!r} is not possible; it must be true or false")
    if low >= high:
        raise UserError(where, f"is reversed or empty: low is {low:g} and high is {high:g}")
    if log and step is not None:
        raise UserError(where, "has log and step, which exclude one another; list the values instead")
    if log and low <= 0:
        raise UserError(where, f"low is {low:g}; a logarithmic range starts above 0")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{where}.step", f"{step:g} is not possible; it must be in (0, {high - low:g}]")
    whole = int in hints
    if whole and any(v != int(v) for v in numbers.values()):
        raise UserError(where, f"{dict(given)!r} is not possible; it must be whole numbers")
    return Range(path=path, low=low, high=high, log=log, step=step, whole=whole)


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(where, f"{value!r} is not possible; it must be a number")
    return number
