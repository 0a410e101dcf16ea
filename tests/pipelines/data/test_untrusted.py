"""Originals that somebody else has made: nothing of theirs runs, and none of them fills the memory."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import UserError
from pipelines.data.decode import decode_image
from pipelines.data.ingest import Writing, ingest
from pipelines.data.sources import base
from pipelines.data.sources.base import load_numpy
from pipelines.data.sources.recordings import read_recording
from tests.pipelines.data.test_bad_input import good_images
from tests.pipelines.data.writers import class_folders

ALONE = Writing(workers=1)
ASSETS = Path(__file__).parent / "assets"


class Evil:
    """Leaves a marker where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def small_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "FLOOR_BYTES", 1 << 16)


def saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_pickles_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"data": Evil(marker), "labels": [0]})
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    class_folders(tmp_path / "cifar" / "cifar-10-batches-py", dict.fromkeys(names, pickled))
    with pytest.raises(UserError, match="holds no whole CIFAR10"):
        ingest("cifar10", tmp_path / "out", tmp_path / "cifar", writing=ALONE)
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(marker)], object), allow_pickle=True)
    for suffix, data in (("npy", objects.getvalue()), ("npz", saved(x=np.array([Evil(marker)], object)))):
        with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
            read_recording(f"a.{suffix}", data)
        (tmp_path / f"images.{suffix}").write_bytes(data)
    assert not marker.exists()


def test_files_that_grow_without_end_are_refused(small_floor: None) -> None:
    zeros = np.zeros(1 << 24, np.uint8)
    with pytest.raises(ValueError, match=r"16,777,\d+; that is no data"):
        load_numpy(saved(x=zeros))
    rows = np.arange(40000).reshape(-1, 4)
    assert np.array_equal(load_numpy(saved(a=rows), "a"), rows)


def test_aedat_packets_that_grow_without_end_are_refused(small_floor: None) -> None:
    data = (ASSETS / "dv_zstd.aedat4").read_bytes()
    start = data.index(b"\n") + 1
    packets = start + 4 + struct.unpack_from("<I", data, start)[0]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(bytes(1 << 20))
    zeros = sink.getvalue().to_pybytes()
    with pytest.raises(ValueError, match="that is no data"):
        read_recording("a.aedat4", data[:packets] + struct.pack("<ii", 0, len(zeros)) + zeros)


def test_no_program_is_run_for_an_image() -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\n%%EOF\n"
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode_image(eps)


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", good_images(tmp_path, 4))
    (tmp_path / "in" / "train" / "a" / "again").symlink_to(tmp_path / "in")
    for here, there in ("ab", "ba"):  # each shows the other's images, once
        (tmp_path / "in" / "train" / here / there).symlink_to(tmp_path / "in" / "train" / there)
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert manifest["splits"]["train"]["rows"] == 16
