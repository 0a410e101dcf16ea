"""A dataset at a glance: statistics in the terminal, and a contact sheet of examples."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import UserError
from pipelines.data.decode import decode
from pipelines.data.events import EventBatch, Frames, Sensor
from pipelines.data.layout import read_rows, uniform_sample
from pipelines.data.scan import MANIFEST, class_names, read_manifest, read_split
from pipelines.storage.atomic import well_formed, write_beside
from pipelines.storage.paths import below

SHOW_STREAM = 301
FRAMES = 5  # of a recording on the sheet
BAR = 24


def show(
    folder: Path | str, console: Console, *, split: str = "train", rows: int = 16, seed: int = 0
) -> tuple[pa.Table, pa.Schema]:
    """Print a split's size, classes and statistics, and draw rows for the sheet, without replacement.

    The result is these rows, in order of their ids, and the schema of the files.
    """
    checked = read_split(folder, split)
    chosen = uniform_sample(checked.ids, rows, seed=seed, epoch=0, stream=SHOW_STREAM)
    table = read_rows(checked.layout.holding(chosen), chosen)
    console.print(Text.assemble((str(folder), "bold"), f" {split}: {checked.num_examples:,} examples"))
    console.print(_classes(checked.class_counts, class_names(checked.schema)))
    with well_formed(below(folder, MANIFEST)):
        for line in _statistics(folder, split):
            console.print(line, highlight=False)
    return table, checked.schema


def contact_sheet(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write the rows as a PNG: one cell an image, one line an event recording or its frames.

    Events show ON in red and OFF in blue, brighter where there are more.
    """
    from matplotlib.figure import Figure

    pictures = [_pictures(x) for x in _examples(table, Sensor.of(schema))]
    names, labels = class_names(schema), table.column("label").to_pylist()
    of_one = len(pictures[0])
    columns = of_one if of_one > 1 else int(np.ceil(np.sqrt(len(pictures))))
    flat = [p for row in pictures for p in row]
    lines = -(-len(flat) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.5 * lines), dpi=120)
    for k, picture in enumerate(flat):
        axes = figure.add_subplot(lines, columns, k + 1)
        axes.imshow(picture, interpolation="nearest", vmin=0, vmax=255, cmap="gray", aspect="auto")
        axes.set_axis_off()
        row, frame = divmod(k, of_one)
        if frame == 0:
            axes.set_title(_name(labels[row], names), fontsize=7, loc="left", pad=2)
    figure.tight_layout(pad=0.3)
    write_beside(path, lambda p: figure.savefig(p, format="png"))


def _examples(table: pa.Table, sensor: Sensor | None) -> list[np.ndarray]:
    """Images ``[1, C, H, W]`` or frames ``[T, P, H, W]``, in order of the rows."""
    ids = table.column("id").to_numpy()
    out = []
    for k in range(table.num_rows):
        x = decode(table.column("image").slice(k, 1), ids[k : k + 1])
        if isinstance(x, EventBatch):
            if sensor is None:
                raise UserError("--png", "the schema does not tell the sensor_size; ingest the recordings")
            x = Frames.of(sensor, T=FRAMES, by="time", size=None, where="").batch(x)
        if x.ndim not in (4, 5):
            raise UserError("--png", "shows images and events; these examples are rows of numbers")
        out.append(x[0] if x.ndim == 5 else x)
    return out


def _pictures(x: np.ndarray) -> list[np.ndarray]:
    if x.dtype == np.uint8 and len(x) == 1 and x.shape[1] in (1, 3, 4):  # else one frame of events
        return [x[0, 0] if x.shape[1] == 1 else x[0].transpose(1, 2, 0)]
    counts = x.astype(np.float64)
    picked = np.linspace(0, len(counts) - 1, min(FRAMES, len(counts))).round().astype(int)
    bright = np.clip(counts / max(np.quantile(counts[counts > 0], 0.95) if counts.any() else 1, 1), 0, 1)
    out = []
    for frame in bright[picked]:
        off, on = (frame[0], frame[1]) if len(frame) == 2 else (frame[0] * 0, frame[0])
        out.append((np.stack([on, np.minimum(on, off), off], -1) * 255).astype(np.uint8))
    return out


def _name(label: int, names: tuple[str, ...]) -> str:
    return names[label] if label < len(names) else str(label)


def _classes(found: dict[int, int], names: tuple[str, ...]) -> Table:
    labels, most = range(max(len(names), max(found) + 1)), max(found.values())
    table = Table(box=None, header_style="bold")
    for title in ("class", "examples", ""):
        table.add_column(title, justify="right" if title == "examples" else "left")
    shown = labels if len(labels) <= 30 else sorted(found, key=lambda k: (-found[k], k))[:30]
    for k in shown:
        count = found.get(k, 0)
        table.add_row(_name(k, names), f"{count:,}", "█" * round(BAR * count / most))
    if len(shown) < len(labels):
        table.add_row(f"and {len(labels) - len(shown)} more", "", "")
    return table


def _statistics(folder: Path | str, split: str) -> list[str]:
    """What the manifest tells, if there is one."""
    manifest = read_manifest(folder) or {"splits": {}}
    told = manifest["splits"].get(split, {}).get("statistics") or manifest.get("statistics", {})
    lines = []
    if "mean" in told:
        numbers = (f"{m:.4g} ± {s:.4g}" for m, s in zip(told["mean"], told["std"], strict=True))
        lines.append(f"values per channel: {', '.join(numbers)}")
    for name in ("sensor_size", "frames", "source"):
        if name in manifest:
            lines.append(f"{name}: {manifest[name]}")
    return lines
