"""Write a dataset as Parquet: dense ids, class names in the schema, and a manifest beside it.

Shards are written into a hidden folder beside the output, each by a task of its own, and the folder is
renamed once all of them are good: a dataset is there as a whole or not at all. A second start goes on with
the shards that are there.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files import read_json, write_beside, write_json
from pipelines.data.shards import (
    Layout,
    OnBad,
    ShardReport,
    example_shape,
    parquet_writer,
    sha256_of,
    write_shard,
)
from pipelines.data.sources import SOURCES
from pipelines.data.sources.base import Bad, Example, Options, Source, Split
from pipelines.data.statistics import Statistics
from pipelines.data.verify import verify
from pipelines.errors import UserError

MANIFEST = "manifest.json"
IMAGE_ROWS = (8192, 1024)  # of a shard and of a row group; 65,536 (a block of the draw) is a multiple
EVENT_ROWS = (512, 32)  # recordings are up to megabytes
SMALL = 20_000  # rows below which starting Ray takes longer than the work

Told = Callable[[int, int], None]
"""Called with the rows that are done and all rows."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a dataset is written."""

    shard_rows: int | None = None
    """Rows of a file; the kind's default (8,192 images, 512 recordings) when not given."""
    group_rows: int | None = None
    """Rows of a row group; the kind's default (1,024 images, 32 recordings) when not given."""
    size: tuple[int, ...] | None = None
    """Height and width that images are brought to."""
    on_bad: OnBad = "refuse"
    workers: int | None = None
    """Processes; one for small sources, else one per CPU of the cluster, when not given."""
    address: str | None = None
    """Of a running Ray cluster."""


@dataclass(frozen=True)
class _Shard:
    split: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05d}.parquet"


def ingest(
    source: str,
    output: Path | str,
    input: Path | str | None = None,
    *,
    options: Options | None = None,
    writing: Writing | None = None,
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Write a source as a dataset folder, unless it is there already.

    Args:
        source: a key of ``SOURCES``.
        output: folder to write.
        input: where the source lies, for those that read files.
        options: of the source; ``input`` in them is replaced.
        writing: shards, bad rows and processes.
        told: of progress.

    Returns:
        the manifest: splits with their files, rows, hashes and class counts, and statistics.

    Raises:
        UserError: unknown source, a folder that holds something else, what the source refuses, or bad rows.
    """
    if source not in SOURCES:
        raise UserError("source", f"{source!r} is unknown; choose one of {', '.join(SOURCES)}")
    output, writing = Path(output).absolute(), writing or Writing()
    if (output / MANIFEST).exists():
        manifest = read_json(output / MANIFEST)
        if manifest.get("source") != source:
            raise UserError(str(output), f"holds {manifest.get('source')!r} already; choose another --output")
        verify(output)
        return manifest
    given = {} if options is None else vars(options)
    opened = SOURCES[source](Options(**{**given, "input": None if input is None else str(input)}))
    return write_dataset(source, opened, output, writing, told)


def write_dataset(name: str, source: Source, output: Path, writing: Writing, told: Told) -> dict[str, Any]:
    """Write an opened source; see `ingest`."""
    _check_output(output)
    with _staging(output) as staging:
        shards, layout = _plan(source, writing, staging)
        reports = _write_all(source, shards, layout, staging, writing, told)
        bad = _refuse_bad(source, shards, reports, staging, writing.on_bad)
        manifest = _publish(name, source, shards, reports, layout, staging, writing)
        if bad:
            manifest["bad"] = bad
        write_json(staging / MANIFEST, manifest)
        for report in staging.glob("*-*.json"):
            report.unlink()
        _remove_partials(staging)
        (staging / "plan.json").unlink()
        (staging / "lock").unlink()
        try:
            os.rename(staging, output)
        except OSError as error:
            raise UserError(str(output), f"cannot be written ({error.strerror})") from None
    return manifest


def _check_output(output: Path) -> None:
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(
                str(output),
                "cannot be written: it is no folder or holds other files; choose another",
            )
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(str(output), f"cannot be written ({error.strerror})") from None


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """The hidden folder, locked against a second ingestion."""
    folder = output.with_name(f".{output.name}.ingest")
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise UserError(str(output), f"cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(str(output), "is being written by another process") from None
        yield folder


def _plan(source: Source, writing: Writing, staging: Path) -> tuple[list[_Shard], Layout]:
    """The shards; what an ingestion of something else left in the folder is removed."""
    shard_rows, group_rows = EVENT_ROWS if source.sensor else IMAGE_ROWS
    shard_rows, group_rows = writing.shard_rows or shard_rows, writing.group_rows or group_rows
    size = None if writing.size is None else (writing.size[0], writing.size[-1])
    layout = Layout(
        class_names=source.class_names,
        sensor=source.sensor,
        group_rows=group_rows,
        size=size,
        shape=None if source.sensor else _first_shape(source.splits["train"], size),
        on_bad=writing.on_bad,
    )
    shards = []
    for split, rows in source.splits.items():
        if rows.rows == 0:
            raise UserError(split, "the source has no rows")
        for number, start in enumerate(range(0, rows.rows, shard_rows)):
            shards.append(_Shard(split, number, start, min(start + shard_rows, rows.rows)))
    # Whether bad rows are skipped or refused changes no shard.
    alike = repr(replace(layout, on_bad="sort" if writing.on_bad == "sort" else "skip"))
    plan = {"fingerprint": source.fingerprint, "shard_rows": shard_rows, "layout": alike}
    if not (staging / "plan.json").exists() or read_json(staging / "plan.json") != plan:
        for old in staging.iterdir():
            if old.name != "lock":
                old.unlink()
        write_json(staging / "plan.json", plan)
    _remove_partials(staging)
    return shards, layout


def _remove_partials(staging: Path) -> None:
    """What processes that died were writing."""
    for partial in staging.glob(".*.partial-*"):
        partial.unlink()


def _first_shape(split: Split, size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    for row in split.read(0, min(split.rows, 64)):
        if isinstance(row, Example):
            try:
                return example_shape(row.value, size)
            except ValueError:
                continue
    return None


def _write_all(
    source: Source, shards: list[_Shard], layout: Layout, staging: Path, writing: Writing, told: Told
) -> list[ShardReport]:
    reports = {s: _finished(staging, s) for s in shards}
    left = [s for s in shards if reports[s] is None]
    total, done = sum(s.stop - s.start for s in shards), 0
    done = total - sum(s.stop - s.start for s in left)
    told(done, total)
    alone = writing.workers == 1 or len(left) < 2
    if writing.workers is None and writing.address is None:
        alone = alone or sum(s.stop - s.start for s in left) * (50 if source.sensor else 1) < SMALL
    for shard, report in (_one_by_one if alone else _on_ray)(source, left, layout, staging, writing):
        reports[shard] = report
        done += shard.stop - shard.start
        told(done, total)
    return [r for s in shards if (r := reports[s]) is not None]


def _finished(staging: Path, shard: _Shard) -> ShardReport | None:
    path = staging / shard.file
    report = path.with_suffix(".json")
    return ShardReport.from_dict(read_json(report)) if report.exists() and path.exists() else None


def _one_by_one(
    source: Source, shards: list[_Shard], layout: Layout, staging: Path, writing: Writing
) -> Iterator[tuple[_Shard, ShardReport]]:
    for s in shards:
        yield s, write_shard(source.splits[s.split], s.start, s.stop, str(staging), s.file, layout)


def _on_ray(
    source: Source, shards: list[_Shard], layout: Layout, staging: Path, writing: Writing
) -> Iterator[tuple[_Shard, ShardReport]]:
    """One task a shard, never more of them at once than processes."""
    from cluster.connect import connect

    with connect(writing.address) as cluster:
        import ray

        splits = {name: ray.put(split) for name, split in source.splits.items()}
        task = ray.remote(write_shard).options(num_cpus=1, max_retries=3)
        limit = writing.workers or (os.cpu_count() or 1 if writing.address is None else int(cluster.cpus))
        waiting = list(reversed(shards))
        running: dict[Any, _Shard] = {}
        try:
            while waiting or running:
                while waiting and len(running) < max(limit, 1):
                    s = waiting.pop()
                    running[task.remote(splits[s.split], s.start, s.stop, str(staging), s.file, layout)] = s
                (ready,), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ready), ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise UserError(cause.where, cause.what) from None
            raise
        finally:
            for ref in running:
                ray.cancel(ref)


def _refuse_bad(
    source: Source, shards: list[_Shard], reports: list[ShardReport], staging: Path, on_bad: OnBad
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


def _publish(
    name: str,
    source: Source,
    shards: list[_Shard],
    reports: list[ShardReport],
    layout: Layout,
    staging: Path,
    writing: Writing,
) -> dict[str, Any]:
    """The manifest, after shards behind a skipped row were numbered anew."""
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


def summary(manifest: dict[str, Any]) -> str:
    """A manifest in one line."""
    rows = ", ".join(f"{s['rows']:,} {name}" for name, s in manifest["splits"].items())
    bad = manifest.get("bad", {}).get("rows", 0)
    return f"{rows} examples" + (f", {bad} bad ones skipped" if bad else "")
