"""Sources that lie elsewhere: a web server and fsspec's memory filesystem read as a local folder does."""

import http.server
import io
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

from pipelines.data.ingest import Writing, ingest
from pipelines.errors import UserError
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
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def rows(out: Path) -> list[dict[str, object]]:
    return [r for f in sorted(out.glob("*.parquet")) for r in pq.read_table(f).to_pylist()]


@pytest.mark.parametrize(("source", "place"), [("imagefolder", "images"), ("parquet", "tables")])
@pytest.mark.parametrize("scheme", ["http", "memory", "file"])
def test_remote_sources_are_read_as_local_ones(
    source: str, place: str, scheme: str, folder: Path, server: str
) -> None:
    address = {"http": f"{server}/{place}", "memory": f"memory://{place}", "file": f"file://{folder}/{place}"}
    if scheme == "memory":
        memory = fsspec.filesystem("memory")
        for path in (folder / place).rglob("*.*"):
            memory.pipe(f"/{place}/{path.relative_to(folder / place)}", path.read_bytes())
    ingest(source, folder / "local", folder / place, writing=ALONE)
    ingest(source, folder / "remote", address[scheme], writing=ALONE)
    assert rows(folder / "remote") == rows(folder / "local")
    assert len(rows(folder / "local")) in (36, 40)


def test_addresses_that_lead_nowhere_are_named(tmp_path: Path, server: str) -> None:
    for address, line in (
        ("nothing://a/b", "nothing://a/b cannot be opened"),
        (f"{server}/none", "none"),
        ("http://127.0.0.1:9/none", "127.0.0.1:9/none"),
    ):
        with pytest.raises(UserError) as caught:
            ingest("parquet", tmp_path / "out", address, writing=ALONE)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
