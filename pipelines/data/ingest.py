"""Write a dataset as Parquet: dense ids, class names in the schema, and a manifest beside it.

Shards are written into a hidden folder beside the output, each by a task of its own, and the folder is
renamed once all of them are good: a dataset is there as a whole or not at all. A second start goes on with
the shards that are there.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import UserError, mistake
from pipelines.console import Told
from pipelines.data.events import By
from pipelines.data.manifest import REQUEST, check_request, publish, refuse_bad, verify
from pipelines.data.scan import MANIFEST, read_manifest
from pipelines.data.shards import Format, OnBad, Shard, ShardReport, first_shape, write_shard
from pipelines.data.sources import SOURCES
from pipelines.data.sources.base import Options, Source, framed
from pipelines.storage.atomic import (
    check_new_folder,
    check_outside,
    check_storage,
    read_json,
    upload_folder,
    write_json,
)
from pipelines.storage.paths import Folder, name_of, uri_of
from pipelines.storage.sync import working_copy

IMAGE_ROWS = (8192, 1024)  # of a shard and of a row group; 65,536 (a block of the draw) is a multiple
EVENT_ROWS = (512, 32)  # recordings are up to megabytes
FRAME_BYTES = 16 << 20  # of a row group of event frames
SMALL = 20_000  # rows below which starting Ray takes longer than the work


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a dataset is written."""

    shard_rows: int | None = None
    """Rows of a file; 8,192 images or 512 recordings when not given."""
    group_rows: int | None = None
    """Rows of a row group; 1,024 images or 32 recordings when not given."""
    size: tuple[int, ...] | None = None
    """Height and width that images, or the frames of recordings, are brought to."""
    T: int | None = None
    """Recordings are written as so many event frames; as recordings when not given."""
    by: By = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    on_bad: OnBad = "refuse"
    workers: int | None = None
    """Processes; one for small sources, else one per CPU of the cluster, when not given."""
    address: str | None = None
    """Of a running Ray cluster."""


def ingest(
    source: str,
    output: Path | str,
    input: Path | str | None = None,
    *,
    options: Options | None = None,
    writing: Writing | None = None,
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Write a source as a dataset folder, unless it is there already; its manifest.

    Args:
        source: a key of ``SOURCES``.
        output: folder or URI to write.
        input: where the source lies, for those that read files; it replaces the one in ``options``.
        told: is called with the rows that are done and all rows.
    """
    if source not in SOURCES:
        raise UserError("source", f"{source!r} is unknown; choose one of {', '.join(SOURCES)}")
    writing = writing or Writing()
    chosen = replace(options or Options(), input=None if input is None else str(input))
    if input is not None:
        check_outside("--output", output, input)

    def opened(download: bool) -> Source:
        found = SOURCES[source](replace(chosen, download=download and chosen.download))
        if writing.T is None:
            return found
        return framed(found, T=writing.T, by=writing.by, size=writing.size)

    output = uri_of(output) or str(Path(output).absolute())
    request = {"asked": _asked(chosen, writing), "input": None if input is None else name_of(input)}
    if (manifest := read_manifest(output)) is not None:
        if manifest.get("source") != source:
            raise UserError(output, f"holds {manifest.get('source')!r} already; choose another --output")
        check_request(output, request, lambda: opened(False))
        return verify(output)
    write = partial(_write, source, opened(True), writing, told, request)
    check_new_folder("--output", output)
    if uri_of(output) is None:
        return write(Path(output))
    if writing.address is not None:
        what = f"cannot be used for {output}, which is written here first; leave it out"
        raise UserError("--address", what)
    return _write_there(output, write)


def _asked(*said: Options | Writing) -> dict[str, Any]:
    """What a user said that decides on the dataset, as JSON has it; of places the originals tell."""
    told = {name: value for part in said for name, value in vars(part).items()}
    other = ("input", "download", "workers", "address")
    if told["size"] is not None:
        told["size"] = (told["size"][0], told["size"][-1])
    return json.loads(json.dumps({name: value for name, value in told.items() if name not in other}))


def _write_there(output: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Write all here first, and upload it at the end; the manifest."""
    there = Folder.of(output, "--output")
    check_storage(output, "--output")
    here = working_copy(output)
    try:
        if (here / MANIFEST).exists():  # an upload that was cut off
            shutil.rmtree(here)
        manifest = write(here)
        upload_folder(here, there, last=MANIFEST)
    finally:
        shutil.rmtree(here, ignore_errors=True)
        with suppress(OSError):  # what was bad stays beside it
            here.parent.rmdir()
    return manifest


def _write(
    name: str, source: Source, writing: Writing, told: Told, request: dict[str, Any], output: Path
) -> dict[str, Any]:
    if source.sensor is not None and writing.size is not None:
        what = "applies to images and, with --T, to event frames; recordings get theirs by data.frames.size"
        raise UserError("--size", what)
    shard_rows, group_rows = EVENT_ROWS if source.sensor else IMAGE_ROWS
    if writing.T is not None:
        frames: Any = source.notes["frames"]
        fitting = max(FRAME_BYTES // (2 * frames["T"] * frames["height"] * frames["width"]), 1)
        group_rows = min(group_rows, 1 << (fitting.bit_length() - 1))
        shard_rows = 8 * group_rows
    with _staging(output) as staging:
        _keep_finished(staging, {"fingerprint": source.fingerprint, **request})
        format = _format(source, writing, writing.group_rows or group_rows)
        shards = list(_shards(source, writing.shard_rows or shard_rows))
        refuse_bad(source, [], staging, writing.on_bad)  # before work that would be in vain
        written = _write_all(source, shards, format, staging, writing, told)
        bad = refuse_bad(source, written.values(), staging, writing.on_bad)
        manifest = publish(name, source, written, format.group_rows, staging)
        if bad:
            manifest["bad"] = bad
        write_json(staging / MANIFEST, manifest)
        for file in staging.iterdir():
            if file.name not in (REQUEST, MANIFEST) and (file.suffix != ".parquet" or file.name[0] == "."):
                file.unlink()
        with _writable(output):
            os.rename(staging, output)
    return manifest


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """The hidden folder, locked against a second ingestion."""
    folder = output.with_name(f".{output.name}.ingest")
    with _writable(output):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(str(output), "is being written by another process") from None
        yield folder


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(str(output), f"cannot be written ({error.strerror})") from None


def _keep_finished(staging: Path, record: dict[str, Any]) -> None:
    """Remove what an ingestion of something else left in the folder, and what processes that died wrote."""
    known = staging / REQUEST
    same = known.exists() and _decisive(read_json(known)) == _decisive(record)
    for file in staging.iterdir():
        if file.name != "lock" and (not same or ".partial-" in file.name):
            file.unlink()
    write_json(known, record)


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """What shards depend on: what is bad is left out of them in any case."""
    return {**record, "asked": {**record["asked"], "on_bad": None}}


def _format(source: Source, writing: Writing, group_rows: int) -> Format:
    size = None if writing.size is None or writing.T else (writing.size[0], writing.size[-1])
    return Format(
        class_names=source.class_names,
        sensor=source.sensor,
        group_rows=group_rows,
        size=size,
        shape=None if source.sensor else first_shape(source.splits["train"], size),
        source_id=source.source_id,
    )


def _shards(source: Source, shard_rows: int) -> Iterator[Shard]:
    for split, rows in source.splits.items():
        if rows.rows == 0:
            raise UserError(split, "the source has no rows")
        for number, start in enumerate(range(0, rows.rows, shard_rows)):
            yield Shard(split, number, start, min(start + shard_rows, rows.rows))


def _write_all(
    source: Source, shards: list[Shard], format: Format, staging: Path, writing: Writing, told: Told
) -> dict[Shard, ShardReport]:
    """A report of each shard, in order; those of an earlier start are kept."""
    reports: dict[Shard, ShardReport] = {}
    for shard in shards:
        path = staging / shard.file
        if path.exists() and path.with_suffix(".json").exists():
            reports[shard] = ShardReport.from_dict(read_json(path.with_suffix(".json")))
    left = [s for s in shards if s not in reports]
    total, rows_left = sum(s.rows for s in shards), sum(s.rows for s in left)
    done = total - rows_left
    told(done, total)
    alone = writing.workers == 1 or len(left) < 2
    if writing.workers is None and writing.address is None:
        alone = alone or rows_left * (50 if source.sensor or writing.T else 1) < SMALL
    here = ((s, write_shard(source.splits[s.split], s, staging, format)) for s in left)
    for shard, report in here if alone else _on_ray(source, left, format, staging, writing):
        reports[shard] = report
        done += shard.rows
        told(done, total)
    return {shard: reports[shard] for shard in shards}


def _on_ray(
    source: Source, shards: list[Shard], format: Format, staging: Path, writing: Writing
) -> Iterator[tuple[Shard, ShardReport]]:
    """One task a shard, never more of them at once than processes."""
    from cluster.connect import connect, usable_cpus

    with connect(writing.address) as cluster:
        import ray

        splits = {name: ray.put(split) for name, split in source.splits.items()}
        task = ray.remote(write_shard).options(num_cpus=1, max_retries=3)
        limit = writing.workers or (usable_cpus() if writing.address is None else int(cluster.cpus))
        waiting, running = shards[::-1], dict[Any, Shard]()
        try:
            while waiting or running:
                while waiting and len(running) < max(limit, 1):
                    shard = waiting.pop()
                    running[task.remote(splits[shard.split], shard, staging, format)] = shard
                (ready,), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ready), ray.get(ready)
        except ray.exceptions.RayError as error:
            raise mistake(error) or error from None
        finally:
            for ref in running:
                ray.cancel(ref)
