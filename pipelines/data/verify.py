"""Hold a dataset's files against its manifest."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.scan import MANIFEST as MANIFEST
from pipelines.data.scan import read_manifest
from pipelines.errors import UserError
from pipelines.storage.atomic import well_formed
from pipelines.storage.paths import Folder, below, open_parquet


def verify(folder: Path | str, told: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Check hashes, row counts, dense ids, labels and that no file is missing or left over.

    Args:
        folder: of the dataset.
        told: called with the files that are done and all files.

    Returns:
        the manifest.

    Raises:
        UserError: no manifest, or the first file that is not as it says.
    """
    manifest = read_manifest(folder)
    opened = Folder.of(folder, "data.path")
    if manifest is None:
        raise UserError(opened.uri, f"has no {MANIFEST}; `spikeprune data ingest` writes one")
    with well_formed(below(folder, MANIFEST)):
        files = [(name, file) for name, s in manifest["splits"].items() for file in s["files"]]
        counts = {name: s["class_counts"] for name, s in manifest["splits"].items()}
        _check_statistics(manifest.get("statistics") or {})
    classes: dict[str, Counter[int]] = {name: Counter() for name in counts}
    expected: Counter[str] = Counter()
    for done, (split, file) in enumerate(files):
        told(done, len(files))
        if file.get("first_id") != expected[split]:
            raise UserError(
                below(folder, file["path"]), f"begins at id {file.get('first_id')}, not {expected[split]}"
            )
        expected[split] += file.get("rows", 0)
        classes[split].update(_check_file(opened, file))
    told(len(files), len(files))
    for split, found in classes.items():
        if {str(k): n for k, n in found.items()} != counts[split]:
            raise UserError(below(folder, MANIFEST), f"counts other classes in {split} than its files hold")
    there = {e.path for e in opened.files() if e.path.endswith(".parquet") and "/" not in e.path}
    if left_over := there - {file["path"] for _, file in files}:
        raise UserError(below(folder, min(left_over)), "is not in the manifest; remove it")
    return manifest


def _check_statistics(statistics: dict[str, Any]) -> None:
    if "mean" in statistics:
        mean, std = (np.asarray(statistics[name], np.float64) for name in ("mean", "std"))
        if not mean.size or mean.shape != std.shape or not np.isfinite([mean, std]).all() or std.min() < 0:
            raise ValueError("statistics must hold finite means and as many deviations, none negative")


def _check_file(folder: Folder, file: dict[str, Any]) -> dict[int, int]:
    """How often each label occurs."""
    remedy = "delete the folder and ingest again"
    path = below(folder.uri, file["path"])
    if not folder.exists(file["path"]):
        raise UserError(path, f"is missing; {remedy}")
    try:
        with folder.open(file["path"]) as stream:
            sha256 = hashlib.file_digest(io.BufferedReader(stream), "sha256").hexdigest()
        if sha256 != file.get("sha256"):
            raise UserError(path, f"differs from its manifest; {remedy}")
        with open_parquet(path) as parquet:
            table = parquet.read(columns=["id", "label"])
        ids, labels = table.column("id").to_numpy(), table.column("label").to_numpy()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(path, f"is not readable ({str(error).splitlines()[0]}); {remedy}") from None
    if not np.array_equal(ids, np.arange(file["first_id"], file["first_id"] + file.get("rows", 0))):
        raise UserError(path, f"has other ids than its manifest says; {remedy}")
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
