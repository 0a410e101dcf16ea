"""What the groups of the config check their values with, and how a mistake shows a value."""

from typing import Any

from pipelines.errors import UserError
from pipelines.storage.credentials import secret_in

_SHOWN = 80


def is_own(name: str) -> bool:
    """Whether a model's, policy's or criterion's name is ``module:attribute`` of a user's own."""
    return ":" in name


def shown(value: Any) -> str:
    """A value as an error names it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...{text[-1]}"


def check(ok: bool, where: str, value: Any, allowed: str) -> None:
    """Raise where a field has a value that is not allowed.

    Raises:
        UserError: ``ok`` is false.
    """
    if not ok:
        raise UserError(where, f"{shown(value)} is not possible; it must be {allowed}")


def check_no_secret(where: str, uri: str, remedy: str | None = None) -> None:
    """That an address holds no key or password: the config is kept with the run.

    Raises:
        UserError: the address holds one.
    """
    if (what := secret_in(uri, remedy)) is not None:
        raise UserError(where, what)
