"""The end of an ingestion: what was bad, and the manifest of the rest, with ids that are dense."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.shards import Layout, OnBad, Shard, ShardReport, parquet_writer, sha256_of
from pipelines.data.sources.base import Bad, Source
from pipelines.data.statistics import Statistics
from pipelines.errors import UserError
from pipelines.storage.atomic import write_beside, write_json


def refuse_bad(
    source: Source, shards: list[Shard], reports: list[ShardReport], staging: Path, on_bad: OnBad
) -> dict[str, Any]:
    """What was bad, for the manifest.

    Raises:
        UserError: there was something, and it is not to be skipped.
    """
    rows = sum(r.bad_rows for r in reports) + len(source.bad)
    if not rows:
        return {}
    named: list[Bad] = [*source.bad, *(b for r in reports for b in r.bad)]
    if on_bad == "refuse":
        for report in reports:  # to be written anew once the source is mended
            if report.bad_rows:
                (staging / report.file).with_suffix(".json").unlink()
        first = "; ".join(f"{b.path}: {b.what}" for b in named[:5])
        listed = staging / "bad.json"
        write_json(listed, [b._asdict() for b in named])
        raise UserError(
            "--input",
            f"{rows} of {sum(s.stop - s.start for s in shards)} examples are bad, nothing is published ("
            f"{first}{'; ...' if rows > 5 else ''}); {listed} names them; mend them, or --on-bad skip",
        )
    return {"rows": rows, "skipped": [b._asdict() for b in named]}


def publish(
    name: str,
    source: Source,
    shards: list[Shard],
    reports: list[ShardReport],
    layout: Layout,
    staging: Path,
) -> dict[str, Any]:
    """The manifest, after shards behind a skipped row were renumbered."""
    splits: dict[str, Any] = {}
    statistics: Statistics | None = None
    for split in source.splits:
        total, next_id = Statistics(), 0
        files: list[dict[str, Any]] = []
        for shard, report in zip(shards, reports, strict=True):
            if shard.split != split:
                continue
            rows = report.statistics.rows
            if rows == 0:
                (staging / shard.file).unlink()
                continue
            file = f"{split}-{len(files):05d}.parquet"
            if next_id != shard.start:
                _renumber(staging / shard.file, next_id, layout.group_rows)
                report.sha256 = sha256_of(staging / shard.file)
            if file != shard.file:  # a kill after this has the shard written anew
                (staging / shard.file).with_suffix(".json").unlink(missing_ok=True)
                os.replace(staging / shard.file, staging / file)
            files.append({"path": file, "rows": rows, "first_id": next_id, "sha256": report.sha256})
            next_id += rows
            total.merge(report.statistics)
        if not files:
            raise UserError(split, "has no good rows")
        counts = {str(k): total.classes[k] for k in sorted(total.classes)}
        splits[split] = {"rows": next_id, "files": files, "class_counts": counts}
        splits[split]["statistics"] = total.result()
        statistics = statistics or total
    assert statistics is not None
    (staging / "bad.json").unlink(missing_ok=True)
    kind = pq.read_schema(staging / splits["train"]["files"][0]["path"])
    return {
        "format": 1,
        "source": name,
        "splits": splits,
        "statistics": statistics.result(),
        "class_names": list(source.class_names),
        **({"sensor_size": list(source.sensor)} if source.sensor else {}),
        "columns": {field.name: str(field.type) for field in kind},
        "row_group_rows": layout.group_rows,
        **source.notes,
    }


def _renumber(path: Path, first_id: int, group_rows: int) -> None:
    """Give a shard's rows the ids from ``first_id`` on; nothing is decoded.

    Written twice it stays the same, so that a kill in between does no harm.
    """

    def write(partial: Path) -> None:
        next_id = first_id
        with pq.ParquetFile(path) as file, parquet_writer(partial, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                ids = pa.array(range(next_id, next_id + table.num_rows), pa.int64())
                next_id += table.num_rows
                writer.write_table(table.set_column(0, "id", ids), row_group_size=group_rows)

    write_beside(path, write)
