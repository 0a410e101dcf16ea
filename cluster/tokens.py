"""Tokens of clusters that ask for one: where they come from, and nothing that could show them.

Variables and lookup order are Ray's: ``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``,
``~/.ray/auth_token``.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import UserError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PLACES = f"set {TOKEN_PATH} to its file, or put the token into ~/.ray/auth_token"
"""What to do where a command has no option for it."""
REMEDY = f"give --token-file FILE, or {PLACES}"


@dataclass(frozen=True)
class Token:
    """A token and where it was found; the value is in no representation of it."""

    value: str = field(repr=False)
    source: str
    """The variable or the file."""

    def exposed(self) -> str | None:
        """That others can read the token's file, and the remedy; ``None`` where they cannot."""
        path = Path(os.path.expanduser(self.source))
        if self.source == TOKEN or not path.exists() or not path.stat().st_mode & 0o077:
            return None
        return f"{self.source} can be read by others; chmod 600 {self.source}"


def find_token(path: Path | None = None) -> Token | None:
    """The token to use: of ``path``, or where Ray would look; ``None`` when there is none."""
    if path is not None:
        return _read(path, "--token-file")
    if os.environ.get(MODE, "").lower() == "disabled":
        return None
    if value := os.environ.get(TOKEN, "").strip():
        return Token(_checked(value, TOKEN), TOKEN)
    if named := os.environ.get(TOKEN_PATH):
        return _read(Path(named), TOKEN_PATH)
    default = Path.home() / ".ray" / "auth_token"
    return _read(default, str(default)) if default.exists() else None


def _read(path: Path, where: str) -> Token:
    try:
        value = Path(os.path.expanduser(path)).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(where, f"no token can be read from {path} ({reason})") from None
    return Token(_checked(value, f"{where} ({path})" if where != str(path) else where), str(path))


def _checked(value: str, where: str) -> str:
    if not value or not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        raise UserError(where, "holds no token; a token is one line of printable characters")
    return value
