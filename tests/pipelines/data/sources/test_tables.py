"""Parquet files of Hugging Face and of our own, and which split a file belongs to."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines.data.decode import decode
from pipelines.data.ingest import Writing, ingest
from pipelines.data.sources.base import Options
from pipelines.data.sources.tables import split_of
from tests.pipelines.data.sources.reading import ALONE, image, written
from tests.pipelines.data.writers import same


def test_huggingface_layout(tmp_path: Path) -> None:
    told = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for split, n in (("train", 7), ("validation", 3)):
        (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
        images = [{"bytes": image(i, "PNG"), "path": None} for i in range(n)]
        table = pa.table({"img": images, "label": [i % 2 for i in range(n)]})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(told).encode()})
        pq.write_table(table, tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=3)
    manifest = ingest(
        "huggingface", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, shard_rows=4)
    )
    assert manifest["class_names"] == ["cat", "dog"]
    found, labels, _ = written(tmp_path / "out", "train")
    assert labels == [0, 1, 0, 1, 0, 1, 0]
    for k, x in enumerate(found):
        alone = decode(pa.array([image(k, "PNG")]), np.array([k]))
        assert np.array_equal(x, np.broadcast_to(alone[0], x.shape))  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("training-data/train-0.parquet", "train"),
        ("training-data/test-0.parquet", "test"),
        ("testing/deep/training/0.parquet", "train"),
        ("train/0000.parquet", "train"),
        ("train/values.parquet", "train"),
        ("data/val_1.parquet", "validation"),
        ("valid/0.parquet", "validation"),
        ("test/testset.parquet", "test"),
        ("data/0000.parquet", None),
    ],
)
def test_the_name_tells_the_split_then_the_nearest_folder(path: str, split: str | None) -> None:
    assert split_of(path) == split


@pytest.mark.parametrize("path", ["train/test-0.parquet", "test/train/0.parquet", "train/a/val/b.parquet"])
def test_a_file_of_two_splits_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=f"--input: {path} is named as both .* and "):
        split_of(path)


def test_no_test_row_is_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "training-data"
    folder.mkdir(parents=True)
    for k, name in enumerate(("train", "test")):
        table = pa.table({"image": [[float(k), i] for i in range(6)], "label": [i % 2 for i in range(6)]})
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "train-1.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"/training-data/train-1.parquet: is not a readable Parquet file"):
        ingest("parquet", tmp_path / "out", tmp_path / "in", writing=ALONE)
    (folder / "train-1.parquet").unlink()
    ingest("parquet", tmp_path / "out", tmp_path / "in", writing=ALONE)
    for k, name in enumerate(("train", "test")):
        assert written(tmp_path / "out", name)[0].tolist() == [[k, i] for i in range(6)]


def test_events_in_parquet_columns(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "nmnist-small"
    ingest("parquet", tmp_path / "out", source, writing=ALONE)
    original = pq.read_table(next(source.glob("train*.parquet")))
    batch, labels, _ = written(tmp_path / "out", "train")
    assert labels == original.column("label").to_pylist()
    for c, found in zip("txyp", batch.events, strict=True):
        assert np.array_equal(found, original.column(c).combine_chunks().flatten().to_numpy())
    ingest("parquet", tmp_path / "again", tmp_path / "out", writing=ALONE)  # our own layout is one, too
    assert same(written(tmp_path / "again", "train")[0].events, batch.events)


def event_columns(folder: Path, metadata: dict[str, str] | None = None, **columns: list[float]) -> Path:
    """Recordings of three events; the third of four has other values in some of its columns."""
    folder.mkdir()
    well = {"t": [0, 10, 20], "x": [0, 1, 2], "y": [0, 1, 2], "p": [0, 1, 1]}
    rows = {c: pa.array([v, v, columns.get(c, v), v]) for c, v in well.items()}
    table = pa.table({**rows, "label": [0, 1, 0, 1]}).replace_schema_metadata(metadata)
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"p": [0.0, 1.0]}, "has 3, 3, 3, 2 values of t, x, y, p"),
        ({"x": [1.0]}, "has 3, 1, 3, 3 values of t, x, y, p"),
        ({"t": [0.1, 0.2, 0.3]}, "has events that are not whole numbers"),
        ({"t": [0.0, float("nan"), 1.0]}, "has events that are not whole numbers"),
    ],
)
def test_events_that_are_none_are_bad_examples(
    columns: dict[str, list[float]], what: str, tmp_path: Path
) -> None:
    source, sensor = event_columns(tmp_path / "in", **columns), Options(sensor=(3, 3))
    with pytest.raises(UserError, match=f"2 of 8 examples are bad, .*train.parquet#2: {what}"):
        ingest("parquet", tmp_path / "out", source, options=sensor, writing=ALONE)
    ingest("parquet", tmp_path / "out", source, options=sensor, writing=Writing(workers=1, on_bad="skip"))
    assert written(tmp_path / "out", "train")[1] == [0, 1, 1]


@pytest.mark.parametrize("size", ["3x3", "[0, 3, 2]", "[3]", '{"a": 1}', "7"])
def test_a_sensor_that_is_none_is_refused(size: str, tmp_path: Path) -> None:
    source = event_columns(tmp_path / "in", {"sensor_size": size})
    with pytest.raises(
        UserError, match=r"^sensor_size: in the metadata of the Parquet files is .*, not \[width"
    ):
        ingest("parquet", tmp_path / "out", source, writing=ALONE)


@pytest.mark.parametrize(
    "told", ["{", "[]", '{"info": {"features": []}}', '{"info": {"features": {"label": {}}}}']
)
def test_metadata_of_others_without_class_names(told: str, tmp_path: Path) -> None:
    source = event_columns(tmp_path / "in", {"huggingface": told, "sensor_size": "[3, 3, 2]"})
    assert ingest("huggingface", tmp_path / "out", source, writing=ALONE)["class_names"] == []
