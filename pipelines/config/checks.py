"""What the groups of the config check their values with, and how a mistake shows a value."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any, ClassVar, get_type_hints

from cluster.errors import UserError
from pipelines.storage.paths import secret_in

_SHOWN = 80


def is_own(name: str) -> bool:
    """Whether a model's, policy's or criterion's name is ``module:attribute`` of a user's own."""
    return ":" in name


def shown(value: Any) -> str:
    """A value as an error names it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...{text[-1]}"


def shown_word(word: str) -> str:
    """A word of a command line as it is, or as `shown` where a terminal would not show it so."""
    return word if len(word) <= _SHOWN and word.isprintable() else shown(word)


def closest(word: str, names: Iterable[str]) -> str:
    """A hint at the name that may be meant; empty where none is close."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check(ok: bool, where: str, value: Any, allowed: str) -> None:
    """Raise where a field has a value that is not allowed."""
    if not ok:
        raise UserError(where, f"{shown(value)} is not possible; it must be {allowed}")


def check_no_secret(where: str, uri: str, remedy: str | None = None) -> None:
    """That an address holds no key or password: the config is kept with the run."""
    if (what := secret_in(uri, remedy)) is not None:
        raise UserError(where, what)


@dataclass(frozen=True)
class Allowed:
    """What a field may be, said in its annotation; ``None`` always is where the type has it."""

    text: str
    holds: Callable[[Any], bool]


def at_least(n: int) -> Allowed:
    """A number of that size."""
    return Allowed(f"at least {n}" if n else "zero or more", lambda v: v >= n)


def between(low: float, high: float) -> Allowed:
    """A number in a range, its ends included."""
    return Allowed(f"between {low} and {high}", lambda v: low <= v <= high)


RATIO = Allowed("in [0, 1)", lambda v: 0 <= v < 1)
SHARE = Allowed("in (0, 1)", lambda v: 0 < v < 1)
CLOSED = Allowed("in [0, 1]", lambda v: 0 <= v <= 1)
FINITE = Allowed("a positive number", lambda v: 0 < v < inf)
POSITIVE = Allowed("positive", lambda v: v > 0)


class Checked:
    """A group of fields, held against what their annotations allow when it is made."""

    __slots__ = ()
    PATH: ClassVar[str]
    """Of the group, as errors name it."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, allowed in _rules(kind):
            value = getattr(self, name)
            check(value is None or allowed.holds(value), f"{self.PATH}.{name}", value, allowed.text)
        self.check_together()

    def check_together(self) -> None:
        """What several fields, or a field and its meaning, ask for."""


@cache
def _rules(cls: Any) -> list[tuple[str, Allowed]]:
    hints = get_type_hints(cls, include_extras=True).items()
    return [
        (name, m) for name, hint in hints for m in getattr(hint, "__metadata__", ()) if isinstance(m, Allowed)
    ]
