"""What stands beside a dataset's files: the manifest, and the request that the dataset was made by.

The request is not in the manifest: the same data written from other places have the same manifest.
"""

import hashlib
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.errors import UserError
from pipelines.data.scan import MANIFEST, read_manifest, read_split
from pipelines.data.shards import OnBad, Shard, ShardReport, Statistics, write_rows
from pipelines.data.sources.base import Source
from pipelines.storage.atomic import read_json_below, sha256_of, well_formed, write_json
from pipelines.storage.paths import Folder, below, short

REQUEST = "ingested.json"


def refuse_bad(
    source: Source, reports: Collection[ShardReport], staging: Path, on_bad: OnBad
) -> dict[str, Any]:
    """What was bad, for the manifest; refused unless it is to be skipped."""
    rows = sum(r.bad_rows for r in reports) + len(source.bad)
    if not rows:
        return {}
    named = [*source.bad, *(b for r in reports for b in r.bad)]
    listed = [b._asdict() for b in named]
    if on_bad != "refuse":
        return {"rows": rows, "skipped": listed}
    for report in reports:  # written again once the source is mended
        if report.bad_rows:
            (staging / report.file).with_suffix(".json").unlink()
    first = "; ".join(f"{b.path}: {b.what}" for b in named[:5])
    write_json(staging / "bad.json", listed)
    total = sum(split.rows for split in source.splits.values())
    raise UserError(
        "--input",
        f"{rows} of {total} examples are bad, nothing is published ({first}"
        f"{'; ...' if rows > 5 else ''}); {staging / 'bad.json'} names them; mend them, or --on-bad skip",
    )


def publish(
    name: str, source: Source, written: Mapping[Shard, ShardReport], group_rows: int, staging: Path
) -> dict[str, Any]:
    """The manifest, after shards behind a skipped row were renumbered."""
    splits: dict[str, Any] = {}
    for split in source.splits:
        total, next_id = Statistics(), 0
        files: list[dict[str, Any]] = []
        for shard, report in written.items():
            if shard.split != split:
                continue
            if report.statistics.rows == 0:
                (staging / shard.file).unlink()
                continue
            file = f"{split}-{len(files):05d}.parquet"
            if next_id != shard.start:
                _renumber(staging / shard.file, next_id, group_rows)
                report.sha256 = sha256_of(staging / shard.file)
            if file != shard.file:  # after a kill here the shard is written again
                (staging / shard.file).with_suffix(".json").unlink(missing_ok=True)
                os.replace(staging / shard.file, staging / file)
            rows = report.statistics.rows
            files.append({"path": file, "rows": rows, "sha256": report.sha256})
            next_id += rows
            total.merge(report.statistics)
        if not files:
            raise UserError(split, "has no good rows")
        counts = {k: total.classes[k] for k in sorted(total.classes, key=int)}
        told = {"files": files, "class_counts": counts, "statistics": total.result()}
        splits[split] = {"rows": next_id, **told}
    kind = pq.read_schema(staging / splits["train"]["files"][0]["path"])
    return {
        "format": 1,
        "source": name,
        "splits": splits,
        "statistics": splits["train"]["statistics"],
        "class_names": list(source.class_names),
        **({"sensor_size": list(source.sensor)} if source.sensor else {}),
        "columns": {field.name: str(field.type) for field in kind},
        "row_group_rows": group_rows,
        **source.notes,
    }


def _renumber(path: Path, first_id: int, group_rows: int) -> None:
    """Give a shard's rows the ids from ``first_id`` on; nothing is decoded.

    Written twice it stays the same, so that a kill in between does no harm.
    """
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(g).drop_columns(["id"]) for g in range(file.num_row_groups))
        write_rows(path, groups, first_id, group_rows)


def verify(folder: Path | str, told: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """The manifest, after hashes, row counts, dense ids and labels, and that no file is missing or left over.

    ``told`` is called with the files that are done and all files.
    """
    manifest = read_manifest(folder)
    opened = Folder.of(folder, "data.path")
    if manifest is None:
        raise UserError(opened.uri, f"has no {MANIFEST}; `spikeprune data ingest` writes one")
    with well_formed(below(folder, MANIFEST)):
        splits: dict[str, Any] = {
            name: (s["files"], s["class_counts"]) for name, s in manifest["splits"].items()
        }
    files = [file for listed, _ in splits.values() for file in listed]
    there = {e.path for e in opened.files() if e.path.endswith(".parquet") and "/" not in e.path}
    if left_over := there - {file["path"] for file in files}:
        raise UserError(below(folder, min(left_over)), "is not in the manifest; remove it")
    for done, file in enumerate(files):
        told(done, len(files))
        _check_hash(opened, file)
    told(len(files), len(files))
    for name, (listed, counts) in splits.items():
        expected = sum(file.get("rows", 0) for file in listed)
        found = read_split(folder, name)
        if found.num_examples != expected:
            what = f"has {expected} rows in {name}, its files {found.ids.end}"
            raise UserError(below(folder, MANIFEST), what)
        if {str(k): n for k, n in found.class_counts.items()} != counts:
            raise UserError(below(folder, MANIFEST), f"counts other classes in {name} than its files hold")
    return manifest


def _check_hash(folder: Folder, file: Mapping[str, Any]) -> None:
    path, remedy = below(folder.uri, file["path"]), "delete the folder and ingest again"
    if not folder.exists(file["path"]):
        raise UserError(path, f"is missing; {remedy}")
    try:
        with folder.open(file["path"]) as stream:
            sha256 = hashlib.file_digest(io.BufferedReader(stream), "sha256").hexdigest()
    except OSError as error:
        raise UserError(path, f"is not readable ({short(error)}); {remedy}") from None
    if sha256 != file.get("sha256"):
        raise UserError(path, f"differs from its manifest; {remedy}")


def summary(manifest: Mapping[str, Any]) -> str:
    """A manifest in one line."""
    rows = ", ".join(f"{s['rows']:,} {name}" for name, s in manifest["splits"].items())
    bad = manifest.get("bad", {}).get("rows", 0)
    return f"{rows} examples" + (f", {bad} bad ones skipped" if bad else "")


def check_request(folder: str, request: Mapping[str, Any], opened: Callable[[], Source]) -> None:
    """Refuse a request that would have made another dataset than the one that is there.

    Datasets that are older than such records pass. Where the originals are gone, the same words as before,
    with an input of the same name, are taken for the same request.
    """
    found = read_json_below(folder, REQUEST) or {}
    if (before := found.get("asked")) is None:
        return
    differ = [
        f"--{name.replace('_', '-')} was {_said(before.get(name))}, is {_said(value)}"
        for name, value in request["asked"].items()
        if before.get(name) != value
    ]
    try:
        if not differ and opened().fingerprint != found["fingerprint"]:
            differ.append("its originals are other files now, or newer ones")
    except UserError:
        if found.get("input") != request["input"]:
            raise
    if differ:
        raise UserError(
            folder,
            f"holds a dataset that was made otherwise ({'; '.join(differ)}); choose another --output, "
            "or remove the folder",
        )


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
