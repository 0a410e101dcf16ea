"""Class folders of images: which files, in which order and split, and that their bytes are kept."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from pipelines.data.ingest import Writing, ingest
from pipelines.data.sources import SOURCES
from pipelines.data.sources.base import Options
from tests.pipelines.data.sources.reading import ALONE, image, written
from tests.pipelines.data.writers import class_folders


def test_imagefolder_with_official_splits_and_any_format(tmp_path: Path) -> None:
    kinds = ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"]
    files = {
        f"{split}/n0{k}/{split}_{i}.{kinds[i].lower()}": image(10 * k + i, kinds[i])
        for split in ("train", "val")
        for k in range(3)
        for i in range(6)
    }
    unlabelled = {"test/unknown.png": image(1, "PNG")}
    class_folders(tmp_path / "in", {**files, **unlabelled, "train/n00/readme.txt": b"no image"})
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert manifest["split"] == "official"
    assert manifest["ignored_files"] == 1
    for split, place in (("train", "train"), ("test", "val")):
        table = pq.read_table(tmp_path / "out" / f"{split}-00000.parquet")
        rows = table.to_pylist()
        assert {r["image"]["path"] for r in rows} == {p for p in files if p.startswith(place)}
        for r in rows:  # the files' bytes as they are
            assert r["image"]["bytes"] == files[r["image"]["path"]]
            assert f"n0{r['label']}/" in r["image"]["path"]
    pixels = []
    for p in files:
        if p.startswith("train"):
            x = np.asarray(Image.open(io.BytesIO(files[p])).convert("RGB"), np.float64)
            pixels.append(x.reshape(-1, 3))
    assert manifest["statistics"]["mean"] == pytest.approx(np.concatenate(pixels).mean(0), rel=1e-9)
    assert manifest["statistics"]["std"] == pytest.approx(np.concatenate(pixels).std(0), rel=1e-9)


def test_files_are_listed_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["2.png", "10.png", "a9_b1.png", "a9_b12.png", "a10.png", "a²b.png", "b.png"]
    files = [f"{split}/{k}/{n}" for split in ("train", "test") for k in ("9", "10") for n in names]
    class_folders(tmp_path, dict.fromkeys(files, image(1, "PNG")))
    found = SOURCES["imagefolder"](Options(input=str(tmp_path), split_seed=1))
    assert found.class_names == ("9", "10")
    drawn = np.random.default_rng(1).permutation(14)  # the seeded order of the rows
    read = {int(place): row.path for place, row in zip(drawn, found.splits["train"].read(0, 14), strict=True)}
    assert [read[place] for place in range(14)] == files[:14]


def test_sizes_are_made_equal_on_demand(tmp_path: Path) -> None:
    files = {f"train/a/{i}.png": image(i + 1, "PNG", (20 + i, 30)) for i in range(4)}
    files |= {f"test/a/{i}.png": image(i + 1, "PNG", (16, 16)) for i in range(2)}
    class_folders(tmp_path / "in", files)
    with pytest.raises(UserError, match=r"is \d+x\d+, the first is \d+x30; --size brings all to one"):
        ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=Writing(workers=1, size=(16,)))
    assert written(tmp_path / "out", "train")[0].shape[2:] == (16, 16)
    unchanged = pq.read_table(tmp_path / "out" / "test-00000.parquet").to_pylist()
    assert all(r["image"]["bytes"] == files[r["image"]["path"]] for r in unchanged)


def test_a_split_is_held_out_by_class(tmp_path: Path) -> None:
    files = {f"{k}/{i}.png": image(20 * k + i, "PNG") for k in (0, 2, 10) for i in range(20)}
    class_folders(tmp_path / "in", files)
    manifest = ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert manifest["class_names"] == ["0", "2", "10"]
    assert manifest["splits"]["test"]["class_counts"] == {"0": 2, "1": 2, "2": 2}
    held = set(written(tmp_path / "out", "test")[2])
    assert len(held | set(written(tmp_path / "out", "train")[2])) == 60
    ingest("imagefolder", tmp_path / "again", tmp_path / "in", writing=ALONE)
    assert set(written(tmp_path / "again", "test")[2]) == held
    other = Options(split_seed=1, test_share=0.25)
    ingest("imagefolder", tmp_path / "other", tmp_path / "in", options=other, writing=ALONE)
    assert len(held ^ set(written(tmp_path / "other", "test")[2])) > 9


@pytest.mark.parametrize(
    ("link", "line"),
    [
        (
            "train/a/gone.png",
            r"1 of 16 examples are bad, .*\(train/a/gone\.png: is a link to nothing\)",
        ),
        ("train/a/more", r"1 of 16 examples are bad, .*\(train/a/more: is a link to nothing\)"),
        ("train/c", r"1 of 16 examples are bad, .*\(train/c: is a link to nothing\)"),
        ("test", r"/in/test: cannot be read \(No such file or directory\)"),
    ],
)
def test_a_link_to_nothing_is_named_before_anything_is_written(tmp_path: Path, link: str, line: str) -> None:
    splits = ("train", "val" if link == "test" else "test")
    files = {f"{s}/{k}/{i}.png": image(i, "PNG") for s in splits for k in "ab" for i in range(4)}
    gone = class_folders(tmp_path / "in", files) / link
    gone.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=line):
        ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
    assert not list(tmp_path.rglob("*.parquet"))
    if link != "test":
        skip = Writing(workers=1, on_bad="skip")
        manifest = ingest("imagefolder", tmp_path / "skipped", tmp_path / "in", writing=skip)
        assert manifest["bad"] == {"rows": 1, "skipped": [{"path": link, "what": "is a link to nothing"}]}
        assert manifest["splits"]["train"]["rows"] == 8
    gone.unlink()
    ingest("imagefolder", tmp_path / "out", tmp_path / "in", writing=ALONE)
