"""The verbs of ``data``: ingest, verify, show, select."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cluster.errors import UserError
from pipelines.config.checks import check
from pipelines.config.training import SIZE
from pipelines.console import progress, results, write
from pipelines.storage.sync import named

SourceName = Literal[
    "digits", "mnist-sample", "cifar10", "cifar100", "mnist", "fashion-mnist",
    "imagefolder", "parquet", "huggingface", "numpy",
    "n-mnist", "cifar10-dvs", "dvs-gesture", "shd", "aedat", "aedat4", "npy",
]  # fmt: skip


@dataclass(kw_only=True)
class IngestCommand:
    """Options of ``data ingest``."""

    source: Annotated[SourceName, tyro.conf.Positional]
    """A dataset by name, or files: imagefolder (class folders of images), parquet or huggingface (image and
    label columns, or events), numpy (arrays); aedat, aedat4 and npy (class folders of recordings).
    docs/datasets.md shows the layout of each."""
    output: Path
    """Folder to write; new or empty."""
    input: str | None = None
    """Folder to read, where the source reads files; also s3://, gs:// and http:// addresses."""
    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch CIFAR or MNIST into the input folder first, from where torchvision has them."""
    size: tuple[int, ...] | None = None
    """Height and width that images are brought to (one number for both): scaled, cut at the centre; with
    --T, of the frames."""
    T: int | None = None
    """Write recordings as so many event frames, so that training need not make them; train with the same
    model.T."""
    by: Literal["time", "count"] = "time"
    """Frames of equal duration (time), or of equally many events (count)."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """Bad examples: refuse to publish anything, or skip and list them."""
    test_share: float = 0.1
    """Share of every class that is held out where the source has no test split."""
    split_seed: int = 0
    """Draws that share, and the order of class folders' files."""
    sensor: tuple[int, int] | None = None
    """Width and height of the sensor, for recordings that do not tell."""
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


@dataclass(kw_only=True)
class SelectCommand:
    """Options of ``data select``."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The dataset."""
    ratio: float
    """Share of the examples to leave out, in [0, 1)."""
    output: Path
    """Parquet file to write: id, weight, inclusion probability."""
    policy: str = "sadp"
    """Data-pruning policy, as data_pruning.policy."""
    scores: Path | None = None
    """File of `spikeprune score`, for policies that draw by a score."""
    split: str = "train"
    """Prefix of the dataset's files."""
    alpha: float = 0.1
    """Weight of the uniform part; bounds the weights by 1 / alpha."""
    design: Literal["systematic", "poisson"] = "systematic"
    """systematic draws exactly the same number every time; poisson decides each example alone."""
    seed: int = 0
    """Random seed of the draw."""
    epoch: int = 0
    """Another epoch is another draw."""
    filtered: Path | None = None
    """Folder to write the chosen rows to as well, with a column weight; new or empty."""
    address: str | None = None
    """A running Ray cluster, for more than 10^8 examples."""


def ingest(o: IngestCommand) -> None:
    """Write a dataset as Parquet with dense ids and a manifest."""
    _check_ingest(o)
    from pipelines.data.ingest import Writing
    from pipelines.data.ingest import ingest as write_dataset
    from pipelines.data.manifest import summary
    from pipelines.data.sources.base import Options

    options = Options(**{f.name: getattr(o, f.name) for f in fields(Options)})
    writing = Writing(**{f.name: getattr(o, f.name) for f in fields(Writing)})
    with progress("ingesting") as told:
        manifest = write_dataset(o.source, o.output, o.input, options=options, writing=writing, told=told)
    write(f"{named(o.output)}: {summary(manifest)}")


def _check_ingest(o: IngestCommand) -> None:
    check(0 < o.test_share < 1, "--test-share", o.test_share, "in (0, 1)")
    check(o.split_seed >= 0, "--split-seed", o.split_seed, "zero or more")
    for name in ("T", "shard_rows", "group_rows", "workers"):
        value = getattr(o, name)
        check(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
    check(o.size is None or SIZE.holds(o.size), "--size", o.size, SIZE.text)
    if o.by != "time" and o.T is None:
        raise UserError("--by", "applies to event frames, of which --T says how many; give both")


def verify(o: VerifyCommand) -> None:
    """Verify a dataset's files against its manifest: hashes, rows, ids, classes."""
    from pipelines.data.manifest import summary
    from pipelines.data.manifest import verify as verify_dataset

    with progress("verifying") as told:
        manifest = verify_dataset(o.folder, told)
    write(f"{named(o.folder)}: {summary(manifest)}, all as the manifest says")


def show(o: ShowCommand) -> None:
    """Show a dataset's classes and statistics, and its examples on a contact sheet."""
    check(o.rows >= 1, "--rows", o.rows, "at least 1")
    from pipelines.data.show import contact_sheet
    from pipelines.data.show import show as show_dataset

    table, schema = show_dataset(o.folder, results(), split=o.split, rows=o.rows, seed=o.seed)
    if o.png is not None:
        contact_sheet(table, schema, o.png)
        write(f"{named(o.png)}: {table.num_rows} examples")


def select(o: SelectCommand) -> None:
    """Draw a subset of a dataset with Horvitz-Thompson weights, and write it for training elsewhere."""
    for option, value in (("--seed", o.seed), ("--epoch", o.epoch)):
        check(0 <= value < 2**31, option, value, "between 0 and 2147483647")
    from pipelines.scoring.select import select_subset

    drawn = select_subset(**vars(o))
    write(f"{named(o.output)}: {drawn.examples:,} examples, weights up to {drawn.largest_weight:.3g}")
