"""Sources that lie elsewhere: web server, object stores and fsspec's memory read as a local folder does."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.data.ingest import Writing, ingest
from pipelines.data.sources.base import Options
from tests.pipelines.data import writers
from tests.pipelines.data.object_stores import BUCKET, object_store
from tests.pipelines.data.writers import class_folders

ALONE = Writing(workers=1, shard_rows=8)


def photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in class folders, and the same as Parquet."""
    files = {
        f"{s}/{k}/{i}.png": photo(9 * k + i) for s in ("train", "test") for k in (0, 1) for i in range(9)
    }
    class_folders(tmp_path / "images", files)
    (tmp_path / "tables").mkdir()
    for split in ("train", "test"):
        table = pa.table(
            {"image": [{"bytes": photo(i), "path": ""} for i in range(20)], "label": [0, 1] * 10}
        )
        pq.write_table(table, tmp_path / "tables" / f"{split}.parquet", row_group_size=6)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The folder on the web."""
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder in a bucket."""
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with object_store(folder) as address:
        yield address


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def rows(out: Path) -> list[dict[str, object]]:
    return [r for f in sorted(out.glob("*.parquet")) for r in pq.read_table(f).to_pylist()]


@pytest.mark.parametrize(("source", "place"), [("imagefolder", "images"), ("parquet", "tables")])
@pytest.mark.parametrize("scheme", ["http", "memory", "file", "s3", "gs"])
def test_remote_sources_are_read_as_local_ones(
    source: str, place: str, scheme: str, folder: Path, server: str, store: str
) -> None:
    address = {
        "http": f"{server}/{place}",
        "memory": f"memory://{place}",
        "file": f"file://{folder}/{place}",
        "s3": f"s3://{BUCKET}/{place}?scheme=http&endpoint_override={store}",
        "gs": f"gs://anonymous@{BUCKET}/{place}?scheme=http&endpoint_override={store}",
    }
    if scheme == "memory":
        memory = fsspec.filesystem("memory")
        for path in (folder / place).rglob("*.*"):
            memory.pipe(f"/{place}/{path.relative_to(folder / place)}", path.read_bytes())
    ingest(source, folder / "local", folder / place, writing=ALONE)
    ingest(source, folder / "remote", address[scheme], writing=ALONE)
    assert rows(folder / "remote") == rows(folder / "local")
    assert len(rows(folder / "local")) in (36, 40)


def test_addresses_that_lead_nowhere_are_named(tmp_path: Path, server: str, store: str) -> None:
    for address, line in (
        ("nothing://a/b", "nothing://a/b cannot be opened"),
        (f"s3://{BUCKET}/none?scheme=http&endpoint_override={store}", "does not exist"),
        (f"{server}/none", "none"),
        ("http://127.0.0.1:9/none", "127.0.0.1:9/none"),
    ):
        with pytest.raises(UserError) as caught:
            ingest("parquet", tmp_path / "out", address, writing=ALONE)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_download_fetches_as_torchvision_does(
    folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From our own server instead of the originals', under torchvision's names and checksums."""
    from torchvision.datasets import CIFAR10, MNIST

    rng = np.random.default_rng(0)
    resources = []
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", rng.integers(0, 9, (6, 28, 28))), ("labels-idx1", np.arange(6))):
            data, name = gzip.compress(writers.idx(array)), f"{part}-{kind}-ubyte.gz"
            class_folders(folder / "mnist", {name: data})
            resources.append((name, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [f"{server}/mnist/"])
    monkeypatch.setattr(MNIST, "resources", resources)
    options = Options(download=True)
    manifest = ingest("mnist", folder / "out1", folder / "got", options=options, writing=ALONE)
    assert manifest["splits"]["train"]["rows"] == 6

    batches = {n: (np.zeros((4, 3072), np.uint8), np.zeros(4, int)) for n in [
        *(f"data_batch_{k}" for k in range(1, 6)), "test_batch",
    ]}  # fmt: skip
    writers.cifar(folder / "packed", monkeypatch, "CIFAR10", batches, ["a"])
    with tarfile.open(folder / "cifar.tar.gz", mode="w:gz") as tar:
        tar.add(folder / "packed" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", f"{server}/cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((folder / "cifar.tar.gz").read_bytes()).hexdigest())
    manifest = ingest("cifar10", folder / "out2", folder / "got", options=options, writing=ALONE)
    assert manifest["splits"]["train"]["rows"] == 20
    monkeypatch.setattr(CIFAR10, "url", f"{server}/none.tar.gz")
    monkeypatch.setattr(CIFAR10, "filename", "none.tar.gz")
    with pytest.raises(UserError, match="holds no whole CIFAR10"):
        ingest("cifar10", folder / "out3", folder / "nothing", options=options, writing=ALONE)
