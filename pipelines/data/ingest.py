"""Write a dataset as Parquet: dense ids, class names in the schema, and a manifest beside it.

Shards are written into a hidden folder beside the output, each by a task of its own, and the folder is
renamed once all of them are good: a dataset is there as a whole or not at all. A second start goes on with
the shards that are there.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.data.publish import publish, refuse_bad
from pipelines.data.request import check_request, request_of, write_request
from pipelines.data.shards import (
    Layout,
    OnBad,
    Shard,
    ShardReport,
    example_shape,
    write_shard,
)
from pipelines.data.sources import SOURCES
from pipelines.data.sources.base import Example, Options, Source, Split
from pipelines.data.verify import verify
from pipelines.errors import UserError
from pipelines.storage.atomic import (
    check_new_folder,
    check_storage,
    read_json,
    read_json_below,
    upload_folder,
    write_json,
)
from pipelines.storage.paths import Folder, uri_of
from pipelines.storage.sync import working_copy

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

    def settings(self) -> dict[str, Any]:
        """What of it decides on the files that are written."""
        size = None if self.size is None else (self.size[0], self.size[-1])
        return {
            "shard_rows": self.shard_rows,
            "group_rows": self.group_rows,
            "size": size,
            "on_bad": self.on_bad,
        }


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
        UserError: unknown source, a folder that holds something else (or a dataset of other originals or
            settings), what the source refuses, or bad rows.
    """
    if source not in SOURCES:
        raise UserError("source", f"{source!r} is unknown; choose one of {', '.join(SOURCES)}")
    output, writing = absolute(output), writing or Writing()
    chosen = replace(options or Options(), input=None if input is None else str(input))
    request = request_of(chosen)
    if (manifest := read_json_below(output, MANIFEST)) is not None:
        if manifest.get("source") != source:
            raise UserError(output, f"holds {manifest.get('source')!r} already; choose another --output")
        unfetched = replace(chosen, download=False)
        check_request(output, writing.settings(), request, lambda: SOURCES[source](unfetched))
        verify(output)
        return manifest
    return write_dataset(source, SOURCES[source](chosen), output, writing, told, request)


def absolute(output: Path | str) -> str:
    """A folder to write as an absolute path, or as its URI."""
    return uri_of(output) or str(Path(output).absolute())


def write_dataset(
    name: str,
    source: Source,
    output: str,
    writing: Writing,
    told: Told,
    request: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an opened source; see `ingest`. ``request`` is kept beside it, for `check_request`.

    For a URI all is written here first, in the temporary folder, and uploaded at the end.
    """
    check_new_folder("--output", output)
    if uri_of(output) is None:
        return _write_here(name, source, Path(output), writing, told, request or {})
    if writing.address is not None:
        raise UserError(
            "--address", f"cannot be used for {output}, which is written here first; leave it out"
        )
    there = Folder.of(output, "--output")
    check_storage(output, "--output")
    here = working_copy(output)
    try:
        if (here / MANIFEST).exists():  # an upload that was cut off
            shutil.rmtree(here)
        manifest = _write_here(name, source, here, writing, told, request or {})
        upload_folder(here, there, last=MANIFEST)
    finally:
        shutil.rmtree(here, ignore_errors=True)
        with suppress(OSError):  # what was bad stays beside it
            here.parent.rmdir()
    return manifest


def _write_here(
    name: str, source: Source, output: Path, writing: Writing, told: Told, request: dict[str, Any]
) -> dict[str, Any]:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(str(output), f"cannot be written ({error.strerror})") from None
    shard_rows, group_rows = EVENT_ROWS if source.sensor else IMAGE_ROWS
    writing = replace(
        writing, shard_rows=writing.shard_rows or shard_rows, group_rows=writing.group_rows or group_rows
    )
    with _staging(output) as staging:
        shards, layout = _plan(source, writing, staging)
        reports = _write_all(source, shards, layout, staging, writing, told)
        bad = refuse_bad(source, shards, reports, staging, writing.on_bad)
        manifest = publish(name, source, shards, reports, layout, staging)
        if bad:
            manifest["bad"] = bad
        write_request(staging, source.fingerprint, writing.settings(), request, complete=not bad)
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


def _plan(source: Source, writing: Writing, staging: Path) -> tuple[list[Shard], Layout]:
    """The shards; what an ingestion of something else left in the folder is removed."""
    shard_rows, group_rows, size = (writing.settings()[k] for k in ("shard_rows", "group_rows", "size"))
    layout = Layout(
        class_names=source.class_names,
        sensor=source.sensor,
        group_rows=group_rows,
        size=size,
        shape=None if source.sensor else _first_shape(source.splits["train"], size),
        on_bad=writing.on_bad,
        source_id=source.source_id,
    )
    shards = []
    for split, rows in source.splits.items():
        if rows.rows == 0:
            raise UserError(split, "the source has no rows")
        for number, start in enumerate(range(0, rows.rows, shard_rows)):
            shards.append(Shard(split, number, start, min(start + shard_rows, rows.rows)))
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
    source: Source, shards: list[Shard], layout: Layout, staging: Path, writing: Writing, told: Told
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


def _finished(staging: Path, shard: Shard) -> ShardReport | None:
    path = staging / shard.file
    report = path.with_suffix(".json")
    return ShardReport.from_dict(read_json(report)) if report.exists() and path.exists() else None


def _one_by_one(
    source: Source, shards: list[Shard], layout: Layout, staging: Path, writing: Writing
) -> Iterator[tuple[Shard, ShardReport]]:
    for s in shards:
        yield s, write_shard(source.splits[s.split], s.start, s.stop, str(staging), s.file, layout)


def _on_ray(
    source: Source, shards: list[Shard], layout: Layout, staging: Path, writing: Writing
) -> Iterator[tuple[Shard, ShardReport]]:
    """One task a shard, never more of them at once than processes."""
    from cluster.connect import connect, usable_cpus

    with connect(writing.address) as cluster:
        import ray

        splits = {name: ray.put(split) for name, split in source.splits.items()}
        task = ray.remote(write_shard).options(num_cpus=1, max_retries=3)
        limit = writing.workers or (usable_cpus() if writing.address is None else int(cluster.cpus))
        waiting = list(reversed(shards))
        running: dict[Any, Shard] = {}
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


def summary(manifest: dict[str, Any]) -> str:
    """A manifest in one line."""
    rows = ", ".join(f"{s['rows']:,} {name}" for name, s in manifest["splits"].items())
    bad = manifest.get("bad", {}).get("rows", 0)
    return f"{rows} examples" + (f", {bad} bad ones skipped" if bad else "")
