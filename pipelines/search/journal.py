"""What is known of each trial: one file a trial, whole or absent, from which a search goes on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.config_io import dump_config
from pipelines.errors import UserError
from pipelines.search.front import costs_of, on_front
from pipelines.search.objectives import Objective
from pipelines.search.space import Choice, Space
from pipelines.storage.atomic import read_json, write_beside, write_json

Status = Literal["open", "finished", "stopped", "failed"]


@dataclass(kw_only=True)
class Record:
    """One trial."""

    number: int
    """Its place among all, from 0."""
    values: dict[str, Any]
    """What the searched fields are."""
    status: Status = "open"
    """open (not done yet, or to be resumed), finished, stopped (early, by asha) or failed."""
    reason: str | None = None
    """Why it failed or was stopped."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Every objective's value and ``scored``, once finished; the accuracy so far, when stopped."""
    stages: list[str] = field(default_factory=list)
    """Its stages' folders below ``stages``, in order."""
    trained: list[str] = field(default_factory=list)
    """Those of them that this trial itself worked on; other trials left it the rest."""
    records: int = 0
    """Epochs and pruning steps that were done when asha stopped it."""
    seconds: float = 0.0
    """Wall time of its last launch."""
    node: str | None = None
    """Ray's id of the node that its last launch was on."""
    process: int | None = None
    """Its process there."""


class Journal:
    """The records of a search's folder."""

    def __init__(self, folder: Path, space: Space, objectives: Sequence[Objective]) -> None:
        self.folder, self.space, self.objectives = folder, space, tuple(objectives)
        self._configs: dict[int, str | None] = {}

    def path(self, number: int) -> Path:
        """The record's file."""
        return self.folder / "trials" / f"{number:05d}.json"

    def read(self, number: int) -> Record:
        """One record.

        Raises:
            UserError: its file is missing or damaged.
        """
        stored = read_json(self.path(number))
        try:
            record = Record(**stored)
        except TypeError:
            raise UserError(str(self.path(number)), "is not a trial's record") from None
        choices = {d.path for d in self.space.dimensions if isinstance(d, Choice)}
        for path, value in record.values.items():  # JSON has no tuples
            if path in choices and isinstance(value, list):
                record.values[path] = tuple(value)
        return record

    def write(self, record: Record) -> None:
        """Replace the record's file."""
        write_json(self.path(record.number), asdict(record))

    def records(self) -> list[Record]:
        """All records, by number."""
        return [self.read(int(p.stem)) for p in sorted((self.folder / "trials").glob("[0-9]*.json"))]

    def config_text(self, record: Record) -> str | None:
        """The trial's config as YAML; ``None`` for an impossible combination, whose reason says so."""
        if record.number not in self._configs:  # a record's values never change
            try:
                self._configs[record.number] = dump_config(self.space.config_of(record.values))
            except UserError:
                self._configs[record.number] = None
        return self._configs[record.number]

    def stage_folders(self, record: Record) -> list[Path]:
        """Where the trial's stages are."""
        return [self.folder / "stages" / name for name in record.stages]


def front_numbers(records: Sequence[Record], objectives: Sequence[Objective]) -> set[int]:
    """The numbers of the finished trials on the Pareto front."""
    finished = [r for r in records if r.status == "finished"]
    marks = on_front(costs_of([r.metrics for r in finished], objectives))
    return {r.number for r, mark in zip(finished, marks, strict=True) if mark}


def write_table(journal: Journal, records: Sequence[Record]) -> Path:
    """Write search.parquet: a row per trial with its values, metrics, place on the front and config."""
    front = front_numbers(records, journal.objectives)
    columns: dict[str, Any] = {
        "trial": [r.number for r in records],
        "status": [r.status for r in records],
        "on_front": [r.number in front for r in records],
        "reason": pa.array([r.reason for r in records], pa.string()),
        "wall_seconds": [r.seconds for r in records],
        "records": [r.records for r in records],
        "node": pa.array([r.node for r in records], pa.string()),
        "process": pa.array([r.process for r in records], pa.int64()),
        "stages": pa.array([r.stages for r in records], pa.list_(pa.string())),
        "trained": pa.array([r.trained for r in records], pa.list_(pa.string())),
    }
    for name in ("accuracy", "examples", "seconds", "density", "synops", "scored"):
        columns[name] = pa.array([r.metrics.get(name) for r in records], pa.float64())
    for path in journal.space.paths:
        columns[path] = _column([r.values[path] for r in records])
    columns["config"] = pa.array([journal.config_text(r) for r in records], pa.string())
    file = journal.folder / "search.parquet"
    write_beside(file, lambda p: pq.write_table(pa.table(columns), p, compression="zstd"))
    return file


def _column(values: list[Any]) -> pa.Array:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return pa.array(values, pa.int64() if all(isinstance(v, int) for v in values) else pa.float64())
    return pa.array([value_text(v) for v in values], pa.string())


def value_text(value: Any) -> str:
    """A field's value as one would write it in YAML."""
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n...\n").strip()
