"""Rows of a long benchmark, kept as they come: one JSON object a line, beside the result that they become."""

import json
import os
from pathlib import Path
from typing import Any

from pipelines.storage.atomic import write_beside

Row = dict[str, Any]


class Journal:
    """Rows that are done, after those of a stored result. A line that a kill cut short is dropped.

    Args:
        path: of the journal; made if need be.
        key: fields that tell rows apart.
        result: JSON file with ``rows``, where a new journal begins.
    """

    def __init__(self, path: Path, key: tuple[str, ...], result: Path | None = None) -> None:
        self.path, self.key = path, key
        text = path.read_text() if path.exists() else ""
        self.rows: list[Row] = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if not self.rows and result is not None and result.exists():
            self.rows = json.loads(result.read_text())["rows"]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_beside(path, lambda p: p.write_text(lines))
        self._known = {self._of(row) for row in self.rows}

    def __contains__(self, row: Row) -> bool:
        return self._of(row) in self._known

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self._known.add(self._of(row))

    def store(self, path: Path, about: Row) -> None:
        """The result as one JSON file, a line for each row."""
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        text = f'{{"about": {json.dumps(about, indent=1)},\n"rows": [\n{lines}\n]}}\n'
        write_beside(path, lambda p: p.write_text(text))

    def _of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row.get(field) for field in self.key)
