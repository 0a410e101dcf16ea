"""Hold a dataset's files against its manifest."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files import read_json
from pipelines.data.shards import sha256_of
from pipelines.errors import UserError

MANIFEST = "manifest.json"


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
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        raise UserError(str(folder), f"has no {MANIFEST}; `spikeprune data ingest` writes one")
    manifest = read_json(folder / MANIFEST)
    try:
        files = [(name, file) for name, s in manifest["splits"].items() for file in s["files"]]
        counts = {name: s["class_counts"] for name, s in manifest["splits"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(str(folder / MANIFEST), "is not a dataset's manifest") from None
    classes: dict[str, Counter[int]] = {name: Counter() for name in counts}
    expected: Counter[str] = Counter()
    for done, (split, file) in enumerate(files):
        told(done, len(files))
        if file["first_id"] != expected[split]:
            raise UserError(
                str(folder / file["path"]), f"begins at id {file['first_id']}, not {expected[split]}"
            )
        expected[split] += file["rows"]
        classes[split].update(_check_file(folder / file["path"], file))
    told(len(files), len(files))
    for split, found in classes.items():
        if {str(k): n for k, n in found.items()} != counts[split]:
            raise UserError(str(folder / MANIFEST), f"counts other classes in {split} than its files hold")
    left_over = {p.name for p in folder.glob("*.parquet")} - {file["path"] for _, file in files}
    if left_over:
        raise UserError(str(folder / min(left_over)), "is not in the manifest; remove it")
    return manifest


def _check_file(path: Path, file: dict[str, Any]) -> dict[int, int]:
    """How often each label occurs."""
    remedy = "delete the folder and ingest again"
    if not path.exists():
        raise UserError(str(path), f"is missing; {remedy}")
    if sha256_of(path) != file["sha256"]:
        raise UserError(str(path), f"differs from its manifest; {remedy}")
    try:
        table = pq.read_table(path, columns=["id", "label"], partitioning=None)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(str(path), f"is not readable ({str(error).splitlines()[0]}); {remedy}") from None
    ids = np.arange(file["first_id"], file["first_id"] + file["rows"])
    if not np.array_equal(table.column("id").to_numpy(), ids):
        raise UserError(str(path), f"has other ids than its manifest says; {remedy}")
    labels, counts = np.unique(table.column("label").to_numpy(), return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))
