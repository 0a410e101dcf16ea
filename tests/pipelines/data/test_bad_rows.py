"""Bad data: refused before training with file and row."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines import cli
from pipelines.data.dataset import check_examples
from pipelines.data.scan import read_split
from pipelines.runs.run import run
from tests.pipelines.training.conftest import QUIET, small


@pytest.fixture
def data(tmp_path: Path, digits: Path) -> Path:
    """The digits' training rows in three files of row groups of 100 rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(digits / "test-00000.parquet", folder)
    table = pq.read_table(digits / "train-00000.parquet")
    for part in range(3):
        write(folder, part, table.slice(part * 500, 500))
    return folder


def write(folder: Path, part: int, table: pa.Table) -> None:
    pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=100)


def changed(folder: Path, part: int, change: Callable[[pa.Table], pa.Table]) -> None:
    write(folder, part, change(pq.read_table(folder / f"train-{part}.parquet")))


def with_value(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, table.schema.field(name).type))

    return change


def damaged(folder: Path, part: int, group: int, column: int) -> None:
    """Overwrite a column chunk's pages of one row group."""
    path = folder / f"train-{part}.parquet"
    chunk = pq.read_metadata(path).row_group(group).column(column)
    at = min(x for x in (chunk.dictionary_page_offset, chunk.data_page_offset) if x)
    raw = bytearray(path.read_bytes())
    raw[at : at + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(raw)


def undecodable(folder: Path) -> None:
    changed(folder, 1, with_value("image", 120, {"bytes": b"\x89PNG", "path": "x"}))


def other_size(folder: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(buffer, format="PNG")
    changed(folder, 2, with_value("image", 7, {"bytes": buffer.getvalue(), "path": "x"}))


def missing(folder: Path) -> None:
    files = [{"path": f"train-{k}.parquet", "first_id": 500 * k, "rows": 500} for k in range(4)]
    (folder / "manifest.json").write_text(json.dumps({"splits": {"train": {"files": files}}}))


def schema(folder: Path) -> None:
    table = pq.read_table(folder / "train-1.parquet")
    bare = table.column("image").combine_chunks().field("bytes")
    write(folder, 1, table.set_column(1, "image", bare))


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "undecodable image": (undecodable, "train-1.parquet", "row 120: id 620 cannot be decoded"),
    "image of another size": (other_size, "train-2.parquet", "row 7: id 1007 is 9x8 pixels, others 8x8"),
    "damaged ids": (
        lambda f: damaged(f, 1, 2, 0),
        "train-1.parquet",
        "row group 2 (rows 200 to 299) cannot be read",
    ),
    "damaged images": (
        lambda f: damaged(f, 2, 1, 1),
        "train-2.parquet",
        "row group 1 (rows 100 to 199) cannot be read",
    ),
    "duplicate id": (
        lambda f: changed(f, 2, with_value("id", 3, 4)),
        "train-2.parquet",
        "row 3: id 4 is not its position, 1003",
    ),
    "negative id": (
        lambda f: changed(f, 0, with_value("id", 3, -4)),
        "train-0.parquet",
        "row 3: id -4 is not its position, 3",
    ),
    "id out of range": (
        lambda f: changed(f, 0, with_value("id", 3, 10**9)),
        "train-0.parquet",
        "row 3: id 1000000000 is not its position, 3",
    ),
    "label out of range": (
        lambda f: changed(f, 1, with_value("label", 450, 10)),
        "train-1.parquet",
        "row 450: label 10 is out of range; the schema names 10 classes",
    ),
    "no label": (
        lambda f: changed(f, 1, with_value("label", 9, None)),
        "train-1.parquet",
        "row 9: column 'label' has 1 empty values",
    ),
    "missing file": (
        missing,
        "train-3.parquet",
        "is missing, manifest.json lists it",
    ),
    "another schema": (schema, "train-1.parquet", "column 'image' is binary here"),
    "not Parquet": (
        lambda f: (f / "train-1.parquet").write_bytes(b"PAR1") and None,
        "train-1.parquet",
        "is not a readable Parquet file",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_it_stops_before_training_with_file_and_row(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, file, line = DAMAGE[name]
    damage(data)
    local = ["--cluster.engine", "local", "--cluster.workers", "1"]
    assert cli.main(["train", "--data.path", str(data), "--storage", str(tmp_path / "runs"), *local]) == 2
    error = capsys.readouterr().err
    assert file in error
    assert line in error
    assert not list((tmp_path / "runs").glob("*"))


def test_rows_that_are_lost_between_others_are_named(data: Path) -> None:
    (data / "train-1.parquet").unlink()
    with pytest.raises(UserError, match=r"train-2.parquet: row 0: id 1000 is not its position, 500"):
        read_split(data, "train")


def test_an_example_that_breaks_while_training_is_named(data: Path, tmp_path: Path) -> None:
    """Data too large to look through: the run stops where it meets the row."""
    from pipelines.runs import preflight

    undecodable(data)
    settings = {"cluster.engine": "local", "cluster.workers": "1", "data.reading": "shards"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "CHEAP_BYTES", 0)
        with pytest.raises(UserError, match=r"train-1.parquet: row 120: id 620 cannot be decoded"):
            run(small(tmp_path, data, **settings), "train", console=QUIET)


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ({"t": [0, 5], "x": [0, 2], "y": [0, 0], "p": [1, 1]}, "row 3: .*1 of 2 events off the 2x2 sensor"),
        ({"t": [5, 0], "x": [0, 1], "y": [0, 0], "p": [1, 1]}, "row 3: .*unsorted times"),
        ({"t": [0, 5], "x": [0, 1], "y": [0, 0], "p": [1, 2]}, "row 3: .*polarities other than 0 and 1"),
    ],
)
def test_recordings_of_ones_own_that_make_wrong_frames(
    events: dict[str, list[int]], what: str, tmp_path: Path
) -> None:
    """Numbers off the sensor would count in cells of other rows."""
    well = {c: [0, 1] for c in "txyp"}
    kind = pa.struct([(c, pa.list_(pa.int32())) for c in "txyp"])
    rows = pa.array([well, {c: [] for c in "txyp"}, well, events, well], kind)
    table = pa.table({"id": np.arange(5), "image": rows, "label": np.arange(5) % 2})
    pq.write_table(table.replace_schema_metadata({"sensor_size": "[2, 2, 2]"}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=what):
        check_examples(read_split(tmp_path, "train"))
