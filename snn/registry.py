"""Things of one kind by their names: ours, and a user's own under ``module:attribute``."""

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """What goes by a name; a user's own are found by theirs, but not listed.

    Looking up an unknown name raises a ``ValueError`` that tells the names.
    """

    def __init__(self, kind: str, listed: Mapping[str, T]) -> None:
        super().__init__(listed)
        self._kind = kind
        self._own: dict[str, T] = {}

    def register(self, name: str, thing: T) -> None:
        """Make your own thing known by ``module:attribute``; a later one of this name replaces it.

        Raises:
            ValueError: a name without a colon.
        """
        if ":" not in name:
            raise ValueError(f"{self._kind}: {name!r} must have the form module:attribute")
        self._own[name] = thing

    def knows(self, name: Any) -> bool:
        """Whether it is listed or registered."""
        return name in self or name in self._own

    def __missing__(self, name: str) -> T:
        if name in self._own:
            return self._own[name]
        hint = "import it and register it" if ":" in name else f"choose one of {', '.join(self)}"
        raise ValueError(f"{self._kind}: {name!r} is unknown; {hint}")
