"""Recordings as frames in a second dataset: what training would make of them at every read, made once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.dataset import read_split
from pipelines.data.events import Sensor, from_arrow, is_events
from pipelines.data.frames import By, Frames, smallest
from pipelines.data.ingest import IMAGE_ROWS, Told, Writing, absolute, write_dataset
from pipelines.data.request import check_request
from pipelines.data.sources.base import Bad, Example, Source
from pipelines.data.sources.originals import fingerprint_of, reading
from pipelines.data.sources.tables import class_names, source_id_kind
from pipelines.data.verify import MANIFEST, verify
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json_below
from pipelines.storage.paths import Folder, name_of, open_parquet

GROUP_BYTES = 1 << 24  # of frames in a row group


@dataclass(frozen=True)
class FramedRows:
    """A split of a dataset of recordings, as frames."""

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    frames: Frames

    @property
    def rows(self) -> int:
        """See `Split`."""
        return sum(self.sizes)

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        first = 0
        for path, size in zip(self.files, self.sizes, strict=True):
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                with reading(path):
                    yield from self._span(path, low, high)
            first += size

    def _span(self, path: str, low: int, high: int) -> Iterator[Example | Bad]:
        row = 0
        with open_parquet(path) as file:
            names = [n for n in ("image", "label", "path", "source_id") if n in file.schema_arrow.names]
            for batch in file.iter_batches(32, columns=names):
                if row < high and row + batch.num_rows > low:
                    events = from_arrow(batch.column("image"))
                    labels = batch.column("label").to_pylist()
                    paths = batch.column("path").to_pylist() if "path" in names else [path] * len(labels)
                    ids = batch.column("source_id").to_pylist() if "source_id" in names else None
                    for k in range(max(low - row, 0), min(high - row, batch.num_rows)):
                        try:
                            value = smallest(self.frames.count(events[k]))
                        except ValueError as error:
                            yield Bad(paths[k], str(error))
                        else:
                            yield Example(value, labels[k], paths[k], ids[k] if ids else None)
                row += batch.num_rows


def cache_frames(
    folder: Path | str,
    output: Path | str,
    *,
    T: int,
    by: By = "time",
    size: tuple[int, ...] | None = None,
    writing: Writing | None = None,
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Write a dataset of recordings as one of event frames ``[T, P, H, W]``, uint8 (or uint16 where needed).

    Args:
        folder: the dataset of recordings.
        output: folder to write.
        T: frames per recording.
        by: frames of equal duration (time) or of equally many events (count).
        size: height and width of the frames; the sensor's when not given.
        writing: as for `ingest`.
        told: of progress.

    Returns:
        the new dataset's manifest.

    Raises:
        UserError: a dataset of something else, a size beyond the sensor, or a folder that holds other data.
    """
    if T < 1:
        raise UserError("--T", f"{T} is not possible; it must be at least 1")
    output, writing = absolute(output), writing or Writing()
    files = {split: read_split(folder, split).files for split in ("train", "test")}
    with open_parquet(files["train"][0]) as parquet:
        schema = parquet.schema_arrow
    sensor = Sensor.of(schema)
    if not is_events(schema.field("image").type) or sensor is None:
        raise UserError(str(folder), "holds no recordings of events, or does not tell their sensor_size")
    frames = Frames.of(sensor, T=T, by=by, size=size, where="--size")
    rule = {"T": T, "by": by, "height": frames.height, "width": frames.width}
    recordings = Folder.of(folder, "data.path")
    source = Source(
        splits={split: FramedRows(paths, _sizes(paths), frames) for split, paths in files.items()},
        class_names=class_names(schema, "label"),
        source_id=source_id_kind(schema),
        fingerprint=fingerprint_of(recordings, [name_of(p) for f in files.values() for p in f], rule),
        notes={"frames": rule, "sensor_size": list(sensor), "split": "as the recordings'"},
    )
    if (manifest := read_json_below(output, MANIFEST)) is not None:
        if manifest.get("frames") != rule:
            raise UserError(str(output), f"holds {manifest.get('frames') or manifest.get('source')} already")
        check_request(output, writing.settings(), {}, lambda: source)
        return verify(output)
    if writing.group_rows is None:
        fitting = max(GROUP_BYTES // int(np.prod(frames.shape)), 1)
        group = min(IMAGE_ROWS[1], 1 << fitting.bit_length() - 1)
        writing = replace(writing, group_rows=group, shard_rows=writing.shard_rows or 8 * group)
    return write_dataset("frames", source, output, writing, told)


def _sizes(files: tuple[str, ...]) -> tuple[int, ...]:
    sizes = []
    for file in files:
        with open_parquet(file) as parquet:
            sizes.append(parquet.metadata.num_rows)
    return tuple(sizes)
