"""Spiking Heidelberg Digits: spike trains of 700 channels in HDF5."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.data.events import Recording, Sensor, sort
from pipelines.data.sources.base import Bad, Example, Options, Source
from pipelines.data.sources.originals import fingerprint_of, first_existing, open_originals, reading
from pipelines.errors import UserError
from pipelines.storage.paths import Folder

CHANNELS = 700


@dataclass(frozen=True)
class SpikeTrains:
    """A split of one file's rows."""

    folder: Folder
    file: str
    rows: int

    def read(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """See `Split`."""
        with reading(self.folder.at(self.file)):
            yield from self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> Iterator[Example | Bad]:
        """A row's spikes are a set: they are put in order of time."""
        import h5py

        with self.folder.open(self.file) as stream, h5py.File(stream, "r") as file:
            times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"]
            for row in range(start, stop):
                t, x = np.asarray(times[row], np.float64), np.asarray(units[row]).astype(np.int64)
                name = f"{self.file}#{row}"
                if len(t) != len(x) or not np.isfinite(t).all():
                    yield Bad(name, f"has {len(t)} times for {len(x)} units, or times that are not numbers")
                    continue
                recording = Recording(np.rint(t * 1e6).astype(np.int64), x, np.zeros_like(x), np.ones_like(x))
                yield Example(sort(recording), int(labels[row]), name)


def shd(options: Options) -> Source:
    """Official split, in the files' order; times in microseconds from the stimulus' start."""
    folder = open_originals(options.input)
    files = {
        split: first_existing(
            folder,
            [f"{place}shd_{split}.h5" for place in ("", "SHD/", "hsd/", "extract/")],
            f"shd_{split}.h5 (unpacked)",
        )
        for split in ("train", "test")
    }
    counts: dict[str, int] = {}
    names: tuple[str, ...] = ()
    for split, path in files.items():
        counts[split], names = _header(folder, path)
    return Source(
        splits={split: SpikeTrains(folder, path, counts[split]) for split, path in files.items()},
        class_names=names,
        sensor=Sensor(CHANNELS, 1, 1),
        fingerprint=fingerprint_of(folder, list(files.values()), "shd"),
        notes={"split": "official", "order": "as in the files"},
    )


def _header(folder: Folder, path: str) -> tuple[int, tuple[str, ...]]:
    import h5py

    try:
        with folder.open(path) as stream, h5py.File(stream, "r") as file:
            count = len(file["labels"])
            keys = tuple(k.decode() if isinstance(k, bytes) else str(k) for k in file["extra/keys"][()])
            if not len(file["spikes/times"]) == len(file["spikes/units"]) == count:
                raise UserError(folder.at(path), "has unequally many times, units and labels")
    except (OSError, KeyError) as error:
        raise UserError(folder.at(path), f"is not a Heidelberg HDF5 file ({error})") from None
    return count, keys
