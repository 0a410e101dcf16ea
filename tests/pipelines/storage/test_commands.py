"""Every command that reads or writes data, on a real S3 server, and what it leaves on this machine."""

import io
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines import cli
from pipelines.config.load import load_config
from pipelines.runs.run import run
from pipelines.storage.paths import Folder
from pipelines.storage.sync import STATE, local_copy
from tests.object_store import s3_server, uri
from tests.pipelines.data.writers import class_folders, random_recording

pytestmark = pytest.mark.xdist_group("ray")

LOCAL = {"cluster.engine": "local", "cluster.workers": "1", "model.hidden": "[16]", "train.epochs": "2"}


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(scope="module")
def trained(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    fields = {**LOCAL, "storage": str(tmp_path_factory.mktemp("runs")), "data.path": str(digits)}
    return run(load_config(None, fields), "train", console=Console(quiet=True))


def names(place: str) -> set[str]:
    return {entry.path for entry in Folder.of(f"s3://bucket/{place}").files()}


def test_a_dataset_is_ingested_verified_and_shown(
    server: dict[str, str], digits: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = uri("made/digits", server)  # with options behind the path
    assert cli.main(["data", "ingest", "digits", "--output", place]) == 0
    assert capsys.readouterr().out.startswith(f"{place}: 1,437 train")
    assert names("made/digits") == {p.name for p in digits.iterdir()}
    for name in ("manifest.json", "train-00000.parquet"):
        assert Folder.of("s3://bucket/made/digits").read(name) == (digits / name).read_bytes()
    assert cli.main(["data", "ingest", "digits", "--output", place]) == 0, "it is there already"
    assert cli.main(["data", "verify", "s3://bucket/made/digits"]) == 0
    assert cli.main(["data", "show", "s3://bucket/made/digits", "--png", "s3://bucket/made/sheet.png"]) == 0
    assert Folder.of("s3://bucket/made").read("sheet.png").startswith(b"\x89PNG")
    Folder.of("s3://bucket/made/digits").write("train-00000.parquet", b"damaged")
    assert cli.main(["data", "verify", "s3://bucket/made/digits"]) == 2
    assert "s3://bucket/made/digits/train-00000.parquet: differs" in capsys.readouterr().err
    assert cli.main(["data", "ingest", "digits", "--output", "s3://bucket/made"]) == 2
    assert cli.main(["data", "ingest", "digits", "--output", "s3://bucket/x", "--address", "auto"]) == 2
    assert cli.main(["data", "ingest", "digits", "--output", "s3://no-such-bucket/x"]) == 2
    holds, address, bucket = capsys.readouterr().err.splitlines()
    assert holds == (
        "spikeprune: --output: s3://bucket/made holds other files, or is no folder; name a new or empty one"
    )
    assert address.startswith("spikeprune: --address: ")
    assert bucket.startswith("spikeprune: --output: s3://no-such-bucket/x cannot be written (no such bucket")


def test_frames_go_from_bucket_to_bucket(server: dict[str, str], tmp_path: Path) -> None:
    files = {}
    for k in range(8):
        r = random_recording(k, width=8, height=8)
        buffer = io.BytesIO()
        np.savez(buffer, **r._asdict())
        files[f"train/{k % 2}/{k}.npz"] = files[f"test/{k % 2}/{k}.npz"] = buffer.getvalue()
    class_folders(tmp_path / "originals", files)
    words = ["data", "ingest", "npy", "--input", str(tmp_path / "originals"), "--sensor", "8", "8"]
    for place in (str(tmp_path / "events"), "s3://bucket/events"):
        assert cli.main([*words, "--output", place]) == 0
    frames = ["data", "ingest", "parquet", "--T", "3", "--input"]
    assert cli.main([*frames, str(tmp_path / "events"), "--output", str(tmp_path / "frames")]) == 0
    assert cli.main([*frames, "s3://bucket/events", "--output", "s3://bucket/frames"]) == 0
    for path in (tmp_path / "frames").glob("*.parquet"):
        assert Folder.of("s3://bucket/frames").read(path.name) == path.read_bytes()


def test_scores_subsets_and_exports_go_there(
    server: dict[str, str], trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in digits.iterdir():
        Folder.of("s3://bucket/data").upload(path.name, path)
    scored, drawn = "s3://bucket/out/scores.parquet", "s3://bucket/out/subset.parquet"
    assert cli.main(["score", str(trained), "--output", scored]) == 0
    assert f"{scored}: 1,437 examples" in capsys.readouterr().out
    select = ["data", "select", "s3://bucket/data", "--ratio", "0.5", "--scores", scored]
    assert cli.main([*select, "--output", drawn, "--filtered", "s3://bucket/out/rows"]) == 0
    there = Folder.of("s3://bucket/out")
    subset = pq.read_table(io.BytesIO(there.read("subset.parquet")))
    rows = pq.read_table(io.BytesIO(there.read("rows/train-00000.parquet")))
    assert np.array_equal(subset.column("id").to_numpy(), rows.column("source_id").to_numpy())
    assert there.read("rows/test-00000.parquet") == (digits / "test-00000.parquet").read_bytes()
    assert cli.main(["export", str(trained), "--output", "s3://bucket/out/net"]) == 0
    assert cli.main(["export", str(trained), "--output", str(tmp_path / "net")]) == 0
    assert names("out/net") == {p.name for p in (tmp_path / "net").iterdir()}
    model = (tmp_path / "net" / "model.safetensors").read_bytes()
    assert there.read("net/model.safetensors") == model
    assert cli.main(["data", "select", "s3://bucket/data", "--ratio", "0.5", "--policy", "random", "--output",
                     "s3://bucket/data/x.parquet"]) == 2  # fmt: skip
    assert "lies among the dataset's own files" in capsys.readouterr().err
    assert not list(Path.cwd().glob("s3:*"))


@pytest.mark.slow
def test_a_report_fetches_no_checkpoints_and_leaves_nothing_here(
    server: dict[str, str], digits: Path, tmp_path: Path
) -> None:
    """A run and reports of it as processes with a temporary folder of their own."""

    def spikeprune(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "spikeprune", *words],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not [p for p in (tmp_path / "tmp").rglob("*") if p.is_file()], done
        return done.stdout

    (tmp_path / "tmp").mkdir()
    fields = {**LOCAL, "storage": "s3://bucket/runs", "data.path": str(digits)}
    words = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", value)]
    for name in ("one", "two"):
        out = spikeprune("train", "--name", name, *words)
        assert f"report: s3://bucket/runs/{name}/report.html" in out
        there = names(f"runs/{name}")
        copy = local_copy(Path(f"s3://bucket/runs/{name}"))
        here = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} - {STATE}
        assert here == {n for n in there if not re.match("checkpoints/.*/", n)} < there
    assert "report: s3://bucket/runs/one/report.html" in spikeprune("report", "s3://bucket/runs/one")
    both = spikeprune("report", "s3://bucket/runs/one", "s3://bucket/runs/two")
    assert "report: s3://bucket/runs/comparison.html" in both
    assert "comparison.html" in names("runs")


def test_all_files_of_a_run_may_be_read_by_whom_the_umask_lets(tmp_path: Path, digits: Path) -> None:
    before = os.umask(0o027)
    try:
        fields = {**LOCAL, "storage": str(tmp_path / "runs"), "data.path": str(digits)}
        folder = run(
            load_config(None, {**fields, "weight_pruning.sparsity": "0.5"}),
            "run",
            console=Console(quiet=True),
        )
    finally:
        os.umask(before)
    modes = {p.relative_to(folder): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")}
    assert any(p.suffix == ".safetensors" for p in modes)
    assert {p: oct(m) for p, m in modes.items() if m != (0o750 if (folder / p).is_dir() else 0o640)} == {}
