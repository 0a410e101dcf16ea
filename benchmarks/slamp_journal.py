"""Rows of a long benchmark, kept as they come: one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Rows in a file. A line that a kill cut short is dropped when the file is opened.

    Args:
        path: of the file; made if need be.
        key: fields that tell rows apart.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.rows = read(path) if path.exists() else []
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if path.exists() and path.read_text() != text:
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_text(text)
            os.replace(beside, path)
        self._known = {self._of(row) for row in self.rows}

    def __contains__(self, row: Row) -> bool:
        return self._of(row) in self._known

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self._known.add(self._of(row))

    def _of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row.get(field) for field in self.key)


def read(path: Path) -> list[Row]:
    """All whole rows of a journal."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
