"""Files that are either whole or absent."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file next to ``path``, then rename it, so that no reader sees half of it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(str(path), f"cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON."""
    write_beside(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))


def read_json(path: Path) -> Any:
    """JSON from a file.

    Raises:
        UserError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"is not readable JSON ({error})") from None
