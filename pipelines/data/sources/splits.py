"""Which split a file of a folder belongs to: its name tells, else the nearest folder that does."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipelines.errors import UserError

_WORDS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_BEGINS = re.compile(r"train|test|validation|valid|val(?![a-z])")  # values.parquet is no validation


def split_of(path: str) -> str | None:
    """``train``, ``test`` or ``validation``; ``None`` where no part of the path begins with such a word.

    Raises:
        UserError: the name tells one split, and a folder called exactly after another holds the file.
    """
    parts = PurePosixPath(path).parts[::-1]
    told = next((_WORDS[found[0]] for part in parts if (found := _BEGINS.match(part))), None)
    for folder in parts[1:]:
        if _WORDS.get(folder, told) != told:
            raise UserError(
                "--input",
                f"{path} is named as both {told} and {_WORDS[folder]}; move it, or let --input name a folder "
                "further down",
            )
    return told


def by_split(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The files of every split that has any, in their order; others are left out.

    Raises:
        UserError: a file of two splits.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        if (split := split_of(path)) is not None:
            found.setdefault(split, []).append(path)
    return {split: tuple(files) for split, files in found.items()}
