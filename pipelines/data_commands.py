"""The verbs of ``spikeprune data`` that write and look at datasets: their options, and what they print."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.data.ingest import Told

SourceName = Literal[
    "digits",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "imagefolder",
    "parquet",
    "huggingface",
    "numpy",
    "n-mnist",
    "cifar10-dvs",
    "dvs-gesture",
    "shd",
    "aedat",
    "aedat4",
    "h5",
    "npy",
]
OnBad = Literal["refuse", "skip", "sort"]


@dataclass(kw_only=True)
class IngestCommand:
    """Options of ``data ingest``."""

    source: Annotated[SourceName, tyro.conf.Positional]
    """A dataset by name, or files: imagefolder (class folders of images), parquet or huggingface (image and
    label columns, or events), numpy (arrays); aedat, aedat4, h5 and npy (class folders of recordings).
    docs/datasets.md shows the layout of each."""
    output: Path
    """Folder to write; new or empty."""
    input: str | None = None
    """Folder to read, where the source reads files; also s3://, gs:// and http:// addresses."""
    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch CIFAR or MNIST into the input folder first, from where torchvision has them."""
    size: tuple[int, ...] | None = None
    """Height and width that images are brought to (one number for both): scaled, cut at the centre."""
    on_bad: OnBad = "refuse"
    """Bad examples: refuse to publish anything, skip and list them, or sort (as skip, but recordings with
    unsorted times are sorted)."""
    test_share: float = 0.1
    """Share of every class that is held out where the source has no test split."""
    split_seed: int = 0
    """Draws that share, and the order of class folders' files."""
    sensor: tuple[int, int] | None = None
    """Width and height of the sensor, for recordings that do not tell."""
    columns: str | None = None
    """Order of the columns of event arrays without names, such as txyp."""
    time_unit: Literal["us", "ms", "s", "ns"] = "us"
    """Of times in h5, npy and npz files."""
    shard_rows: int | None = None
    """Rows of a file; 8,192 images or 512 recordings when not given."""
    group_rows: int | None = None
    """Rows of a row group; 1,024 images or 32 recordings when not given."""
    workers: int | None = None
    """Processes; 1 for small sources, else one per CPU, when not given."""
    address: str | None = None
    """Address of a running Ray cluster to write on."""


@dataclass(kw_only=True)
class VerifyCommand:
    """Options of ``data verify``."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The dataset."""


@dataclass(kw_only=True)
class FramesCommand:
    """Options of ``data frames``."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A dataset of recordings."""
    output: Path
    """Folder to write; new or empty."""
    T: int
    """Frames per recording; train with the same model.T."""
    by: Literal["time", "count"] = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    size: tuple[int, ...] | None = None
    """Height and width of the frames (one number for both); the sensor's when not given."""
    workers: int | None = None
    """Processes; 1 for small datasets, else one per CPU, when not given."""


@dataclass(kw_only=True)
class ShowCommand:
    """Options of ``data show``."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The dataset."""
    rows: int = 16
    """Examples on the contact sheet."""
    png: Path | None = None
    """Write the contact sheet to this file."""
    split: str = "train"
    """Prefix of the dataset's files."""
    seed: int = 0
    """Another one shows other examples."""


def ingest(o: IngestCommand, console: "Console") -> str:
    """Write a source; what came of it in one line."""
    from pipelines.data.ingest import Writing, ingest, summary
    from pipelines.data.sources.base import Options
    from pipelines.errors import UserError
    from pipelines.storage.sync import named

    if not 0 < o.test_share < 1:
        raise UserError("--test-share", f"{o.test_share} is not possible; it must be in (0, 1)")
    for name in ("shard_rows", "group_rows", "workers"):
        value = getattr(o, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}", f"{value} is not possible; it must be at least 1")
    if o.size is not None and not (len(o.size) in (1, 2) and min(o.size) >= 1):
        raise UserError("--size", f"{o.size} is not possible; give one or two positive numbers")
    if o.columns is not None and sorted(o.columns) != sorted("txyp"):
        raise UserError("--columns", f"{o.columns!r} is not possible; it must hold t, x, y and p once each")
    with _progress(console, "ingesting") as told:
        manifest = ingest(
            o.source,
            o.output,
            o.input,
            options=Options(
                download=o.download,
                test_share=o.test_share,
                split_seed=o.split_seed,
                sensor=o.sensor,
                columns=o.columns,
                time_unit=o.time_unit,
            ),
            writing=Writing(
                shard_rows=o.shard_rows,
                group_rows=o.group_rows,
                size=o.size,
                on_bad=o.on_bad,
                workers=o.workers,
                address=o.address,
            ),
            told=told,
        )
    return f"{named(o.output)}: {summary(manifest)}"


def verify(o: VerifyCommand, console: "Console") -> str:
    """Hold a dataset against its manifest; what was found in one line."""
    from pipelines.data.ingest import summary
    from pipelines.data.verify import verify
    from pipelines.storage.sync import named

    with _progress(console, "verifying") as told:
        manifest = verify(o.folder, told)
    return f"{named(o.folder)}: {summary(manifest)}, all as the manifest says"


def frames(o: FramesCommand, console: "Console") -> str:
    """Cache event frames; what came of it in one line."""
    from pipelines.data.cache import cache_frames
    from pipelines.data.ingest import Writing, summary
    from pipelines.storage.sync import named

    with _progress(console, "framing") as told:
        writing = Writing(workers=o.workers)
        manifest = cache_frames(o.folder, o.output, T=o.T, by=o.by, size=o.size, writing=writing, told=told)
    return f"{named(o.output)}: {summary(manifest)} of {o.T} frames"


def show(o: ShowCommand, console: "Console") -> str | None:
    """Print a dataset's statistics and write its contact sheet."""
    import json

    from pipelines.data.show import contact_sheet, show
    from pipelines.errors import UserError
    from pipelines.storage.sync import named

    if o.rows < 1:
        raise UserError("--rows", f"{o.rows} is not possible; it must be at least 1")
    table, sensor = show(o.folder, console, split=o.split, rows=o.rows, seed=o.seed)
    if o.png is None:
        return None
    names = json.loads((table.schema.metadata or {}).get(b"class_names", b"[]"))
    contact_sheet(table, sensor, o.png, tuple(str(n) for n in names))
    return f"{named(o.png)}: {table.num_rows} examples"


@contextmanager
def _progress(console: "Console", what: str) -> Iterator["Told"]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
