"""Rows that cannot be used: the first one stops, or all are left out, counted and listed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.errors import UserError
from pipelines.storage.atomic import write_json

OnBadRow = Literal["stop", "skip"]
LISTED_IDS = 100  # of one finding; the rest is counted


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Rows that are left out for one reason."""

    file: str
    first_row: int | None
    """Place of the first in its file; ``None`` where the file itself is at fault."""
    rows: int | None
    """How many; ``None`` where nobody can tell."""
    ids: tuple[int, ...]
    """Theirs, as far as known, at most 100."""
    reason: str


@dataclass
class BadRows:
    """What was found to be wrong with rows, and what is done about it."""

    skip: bool = False
    """Leave bad rows out; otherwise the first one is an error."""
    skipped: list[Skipped] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    """Ids to leave out."""

    def found(
        self, file: str, reason: str, *, first_row: int | None = None, rows: int | None = None, ids: Any = ()
    ) -> None:
        """Rows that cannot be used.

        Raises:
            UserError: unless bad rows are skipped.
        """
        if not self.skip:
            place = "" if first_row is None else f"row {first_row}: " if rows in (None, 1) else ""
            raise UserError(file, place + reason)
        ids = np.asarray(ids, dtype=np.int64)
        self.ids.append(ids)
        listed = tuple(int(i) for i in ids[:LISTED_IDS])
        self.skipped.append(Skipped(file=file, first_row=first_row, rows=rows, ids=listed, reason=reason))

    def mistake(
        self, error: UserError, *, first_row: int | None = None, rows: int | None = None, ids: Any = ()
    ) -> None:
        """As `found`, for what came as an error of a whole file or row group."""
        if not self.skip:
            raise error
        self.found(error.where, error.what, first_row=first_row, rows=rows, ids=ids)

    @property
    def num_rows(self) -> int:
        """Rows known to be left out."""
        return sum(s.rows or 0 for s in self.skipped)


def write_skipped(path: Path, splits: dict[str, BadRows]) -> None:
    """Counts and a list of what was skipped in each split, as JSON."""
    found = {
        name: {"rows": bad.num_rows, "skipped": [asdict(s) for s in bad.skipped]}
        for name, bad in splits.items()
    }
    write_json(path, found)
