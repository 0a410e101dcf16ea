"""Datasets in Parquet: what is read, and what is refused with its file and column."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.data import dataset
from pipelines.data.dataset import describe
from pipelines.data.decode import decode
from pipelines.data.ingest import ingest
from pipelines.data.inputs import Inputs
from pipelines.data.scan import read_split


def write(folder: Path, split: str, n: int = 6, **columns: Any) -> Path:
    rng = np.random.default_rng(0)
    table = {
        "id": np.arange(n),
        "image": pa.array(rng.random((n, 4)).tolist(), pa.list_(pa.float32())),
        "label": np.arange(n) % 2,
        **columns,
    }
    path = folder / f"{split}-00000.parquet"
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


def test_features_and_their_statistics(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "test")
    train, test = read_split(tmp_path, "train"), read_split(tmp_path, "test")
    info = describe(train, test, tmp_path)
    rows = pq.read_table(train.files[0]).column("image").to_pylist()
    assert info.input_shape == (4,)
    assert info.num_classes == 2
    assert info.mean == pytest.approx((np.mean(rows),))
    assert info.std == pytest.approx((np.std(rows),))


def test_other_ids_are_refused_with_the_remedy_and_kept_when_ingested(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "cifar10" / "small"
    with pytest.raises(UserError, match=r"row 0: id \d+ is not its position, 0; .*`spikeprune data ingest"):
        read_split(folder, "train")
    ingest("parquet", tmp_path / "data", folder)
    train, test = read_split(tmp_path / "data", "train"), read_split(tmp_path / "data", "test")
    info = describe(train, test, tmp_path / "data")
    assert (len(train.ids), train.ids.end, len(test.ids)) == (2000, 2000, 1000)
    assert info.input_shape == (3, 32, 32)
    assert info.class_names[0] == "airplane"
    given = [pq.read_table(f, columns=["id"])["id"] for f in sorted(folder.glob("train*.parquet"))]
    kept = [pq.read_table(f, columns=["source_id"])["source_id"] for f in train.files]
    assert pa.concat_arrays([c.combine_chunks() for c in kept]).equals(
        pa.concat_arrays([c.combine_chunks() for c in given])
    )


def test_decoding_equals_pillow(shared_data: Path) -> None:
    import io

    from PIL import Image

    table = pq.read_table(next((shared_data / "cifar10" / "small").glob("train*.parquet"))).slice(0, 5)
    x = decode(table.column("image"), table.column("id").to_numpy())
    for row, image in zip(x, table.column("image").to_pylist(), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
        assert np.array_equal(row, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"label": None}, "column 'label' is missing"),
        ({"id": None}, "column 'id' is missing"),
        ({"image": None}, "column 'image' is missing"),
        ({"label": np.array([0.0] * 6)}, "column 'label' is double; it must be an integer"),
        ({"label": np.array([0, 1, 0, 1, 0, -1])}, "label -1 is out of range"),
        ({"id": np.array([0, 1, 2, 3, 4, 4])}, "row 5: id 4 is not its position, 5"),
        ({"id": np.array([-1, 1, 2, 3, 4, 5])}, "row 0: id -1 is not its position, 0"),
        ({"id": np.array([0, 7, 8, 9, 4, 5])}, "row 1: id 7 is not its position, 1"),
        ({"id": np.array([0, 7, 8, 9, 10, 5])}, "`spikeprune data ingest parquet` numbers them"),
        ({"id": np.arange(6).astype(np.int32)}, "column 'id' is int32; it must be int64"),
        ({"label": pa.array([0, 1, None, 1, 0, 1])}, "column 'label' has 1 empty values"),
        ({"image": pa.array(["x"] * 6)}, "column 'image' is string"),
    ],
)
def test_bad_columns_are_refused(tmp_path: Path, columns: dict[str, Any], line: str) -> None:
    path = write(tmp_path, "train", **columns)
    with pytest.raises(UserError) as caught:
        read_split(tmp_path, "train")
    assert line in str(caught.value)
    assert str(path) in str(caught.value)


def test_nan_is_found_with_its_id(tmp_path: Path) -> None:
    x = np.ones((6, 4), np.float32)
    x[3, 2] = np.nan
    write(tmp_path, "train", image=pa.array(x.tolist(), pa.list_(pa.float32())))
    write(tmp_path, "test")
    with pytest.raises(UserError, match="id 3 is NaN or infinite"):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def test_a_test_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "test", label=np.array([0, 1, 0, 1, 0, 7]))
    with pytest.raises(UserError, match="label 7 is out of range"):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def _wide(kind: str, values: np.ndarray) -> bytes:
    import io

    from PIL import Image

    height, width = values.shape
    if kind == "PGM":
        return b"P5 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "PGM", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    (x,) = decode(pa.array([_wide(kind, values)]), np.array([0]))
    assert x.shape == (1, 256, 256)
    assert np.array_equal(x[0], np.rint(values * (255 / 65535)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_an_unknown_range_are_refused(dtype: type) -> None:
    data = _wide("TIFF", np.linspace(0, 4000, 12).astype(dtype).reshape(3, 4))
    with pytest.raises(
        UserError, match=r"id 7 cannot be decoded \(TIFF of mode [FI] does not tell the range"
    ):
        decode(pa.array([data]), np.array([7]))


def test_an_undecodable_image_is_named(tmp_path: Path) -> None:
    broken = pa.array([{"bytes": b"GIF8", "path": ""}] * 6)
    write(tmp_path, "train", image=broken)
    write(tmp_path, "test", image=broken)
    with pytest.raises(UserError, match="id 0 cannot be decoded"):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_split(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"no file train\*\.parquet"):
        read_split(tmp_path, "train")
    (tmp_path / "train.parquet").write_text("id,label\n0,1\n")
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        read_split(tmp_path, "train")
    (tmp_path / "train.parquet").unlink()
    for nothing in ("train.parquet", "nowhere"):
        (tmp_path / "train.parquet").symlink_to(nothing)
        with pytest.raises(UserError, match=rf"^{tmp_path}/train\.parquet: is not a readable Parquet file"):
            read_split(tmp_path, "train")
        (tmp_path / "train.parquet").unlink()
    write(tmp_path, "train", n=0, image=pa.array([], pa.list_(pa.float32())))
    with pytest.raises(UserError, match="has no rows"):
        read_split(tmp_path, "train")


def test_class_names_bound_the_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "train")
    table = pq.read_table(path).replace_schema_metadata({b"class_names": json.dumps(["only"]).encode()})
    pq.write_table(table, path)
    write(tmp_path, "test")
    with pytest.raises(UserError, match="the schema names 1 classes"):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def test_class_names_that_are_no_list_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "train")
    for names in (b"no json", b"42"):
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"class_names": names}), path)
        with pytest.raises(UserError, match=r"class_names: .* no list of names"):
            read_split(tmp_path, "train")


@pytest.mark.parametrize(
    "manifest", [[], {"format": 99}, {"splits": {"train": {"files": [{}]}}}, {"splits": {"train": 3}}]
)
def test_a_manifest_of_another_kind_is_refused(manifest: Any, tmp_path: Path) -> None:
    write(tmp_path, "train")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: is damaged, or not what belongs there"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 11, 12])
def test_the_first_rows_in_order_of_files(tmp_path: Path, rows: int) -> None:
    for file in (0, 1):  # two files of two row groups each
        some = range(6 * file, 6 * file + 6)
        table = pa.table({"id": list(some), "image": [[float(i), 0.0] for i in some], "label": [0] * 6})
        pq.write_table(table, tmp_path / f"train-{file}.parquet", row_group_size=3)
    split = read_split(tmp_path, "train").first(rows)
    assert split.num_examples == rows
    assert split.ids.array().tolist() == list(range(rows))
    assert split.layout.rows.sum() == -(-rows // 3) * 3  # what lies beyond is not read
    assert split.head(100)["id"].to_pylist() == list(range(rows))
    assert split.head(100)["image"].to_pylist() == [[float(i), 0.0] for i in range(rows)]


@pytest.mark.parametrize("label", [500, 10_000_000])
def test_a_label_far_beyond_those_that_occur_makes_no_network(label: int, tmp_path: Path) -> None:
    write(tmp_path, "train", label=np.array([0, 1, 0, 1, 0, label]))
    write(tmp_path, "test")
    train, test = read_split(tmp_path, "train"), read_split(tmp_path, "test")
    with pytest.raises(UserError, match=f"label {label:,} would make .* classes, but only 3 labels occur"):
        describe(train, test, tmp_path)


@pytest.mark.parametrize(
    "statistics",
    [
        {"mean": [float("nan")], "std": [1.0]},
        {"mean": [0.0], "std": [-1.0]},
        {"mean": [0.0, 0.0], "std": [1.0]},
        {"mean": "abc", "std": [1.0]},
        {"mean": [0.0], "std": [None]},
    ],
)
def test_statistics_that_cannot_be_are_refused(statistics: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "test")
    (tmp_path / "manifest.json").write_text(json.dumps({"statistics": statistics}))
    with pytest.raises(
        UserError, match=r"manifest.json: is damaged, .*(statistics must hold 1 finite|could not convert)"
    ):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def encoded(*modes: str) -> pa.Array:
    """Images of 4x4, one of each mode."""
    rows = []
    for mode in modes:
        buffer = io.BytesIO()
        Image.new(mode, (4, 4), 7 if mode == "L" else (7, 8, 9)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": "x.png"})
    return pa.array(rows)


def test_coloured_test_images_beside_greyscale_training_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", image=encoded(*["L"] * 6))
    write(tmp_path, "test", image=encoded(*["RGB"] * 6))
    with pytest.raises(UserError, match="examples have 3 channels, those of training 1; make them equal"):
        describe(read_split(tmp_path, "train"), read_split(tmp_path, "test"), tmp_path)


def test_greyscale_test_images_beside_coloured_training_fill_all_channels(tmp_path: Path) -> None:
    write(tmp_path, "train", image=encoded("L", *["RGB"] * 5))
    write(tmp_path, "test", image=encoded(*["L"] * 6))
    train, test = read_split(tmp_path, "train"), read_split(tmp_path, "test")
    info = describe(train, test, tmp_path)
    x = decode(test.head(2).column("image"), np.arange(2))
    assert Inputs.of(info, T=2)(x).shape == (2, 2, *info.input_shape) == (2, 2, 3, 4, 4)


def test_colour_behind_the_first_examples_is_known_from_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "STATISTICS_ROWS", 4)
    (tmp_path / "in").mkdir()
    table = pa.table({"image": encoded("L", "L", "L", "L", "RGB", "RGB"), "label": np.arange(6) % 2})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / "in" / f"{split}.parquet")
    out = tmp_path / "out"
    ingest("parquet", out, tmp_path / "in")
    info = describe(read_split(out, "train"), read_split(out, "test"), out)
    assert info.input_shape == (3, 4, 4)
    assert info.mean == pytest.approx((7, (4 * 7 + 2 * 8) / 6, (4 * 7 + 2 * 9) / 6))
