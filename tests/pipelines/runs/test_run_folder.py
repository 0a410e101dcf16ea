"""Runs go on with the data that they began with, wherever these lie by then."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines import cli
from pipelines.config import Config
from pipelines.config.load import dump_config
from pipelines.data.ingest import ingest
from pipelines.runs import run_folder
from pipelines.runs.run_folder import create_run, read_metrics, run_path
from tests.pipelines.cli.test_cli import fails_with
from tests.pipelines.training.conftest import small


def without_some(digits: Path, folder: Path) -> Path:
    """The digits with fewer rows to train on, ingested below ``folder``."""
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copy(digits / "test-00000.parquet", source / "test.parquet")
    pq.write_table(pq.read_table(digits / "train-00000.parquet").slice(100), source / "train.parquet")
    ingest("parquet", folder / "other", source)
    return folder / "other"


@pytest.fixture
def resumed(digits: Path, tmp_path: Path) -> list[str]:
    """The command that goes on with a run on a copy of the digits."""
    shutil.copytree(digits, tmp_path / "data")
    settings = {"cluster.engine": "local", "cluster.workers": "1", "train.epochs": "1", "name": "begun"}
    settings |= {"data_pruning.policy": "full"}
    config = small(tmp_path / "runs", tmp_path / "data", **settings)
    path = tmp_path / "begun.yaml"
    path.write_text(dump_config(config))
    create_run(config, ["spikeprune", "train"])
    return ["train", str(path), "--resume"]


def test_a_run_goes_on_where_its_data_have_moved_or_nothing_is_known_of_them(
    resumed: list[str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "runs" / "begun", tmp_path / "data"
    data.rename(tmp_path / "moved")
    assert cli.main([*resumed, "--data.path", str(tmp_path / "moved")]) == 0
    assert (run / "checkpoints" / "train.safetensors").exists()
    (tmp_path / "moved").rename(data)
    (data / "manifest.json").unlink()
    told = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**told, "data_manifest_sha256": None}))
    assert cli.main(resumed) == 0
    capsys.readouterr()
    fails_with("data.path: is ", [*resumed, "--data.path", str(digits)], capsys)


def test_a_run_refuses_other_data(
    resumed: list[str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = without_some(digits, tmp_path)
    line = "holds other data than the run began with (by its manifest.json); bring those back, or choose"
    fails_with(f"data.path: {other} {line}", [*resumed, "--data.path", str(other)], capsys)
    shutil.rmtree(tmp_path / "data")
    other.rename(tmp_path / "data")  # as if ingested anew
    fails_with(f"data.path: {tmp_path / 'data'} {line}", resumed, capsys)
    (tmp_path / "data" / "manifest.json").unlink()
    fails_with("has no manifest.json, by which the run knows its data", resumed, capsys)


def test_a_run_goes_on_with_the_command_and_the_network_it_began_with(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["--data.path", str(digits), "--storage", str(tmp_path), "--cluster.engine", "local"]
    local += ["--cluster.workers", "1", "--train.epochs", "1", "--data-pruning.policy", "full"]
    local += [
        "--model.hidden",
        "16",
        "--weight-pruning.retrain-epochs",
        "1",
        "--weight-pruning.calibration-examples",
        "32",
    ]
    for name, seed in (("one", "0"), ("two", "1")):
        assert cli.main(["train", *local, "--name", name, "--seed", seed]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    capsys.readouterr()
    fails_with(
        "run 'one' was started by `spikeprune train`, not run",
        ["run", *local, "--name", "one", "--resume"],
        capsys,
    )
    prune = ["prune", str(one), "--name", "one", "--resume"]
    fails_with("run 'one' was started by `spikeprune train`, not prune", prune, capsys)
    assert cli.main(["prune", str(one), "--name", "pruned"]) == 0
    assert cli.main(["prune", str(one), "--name", "pruned", "--resume"]) == 0
    capsys.readouterr()
    again = ["prune", str(two), "--name", "pruned", "--resume", "--seed", "0"]
    fails_with("run 'pruned' began with another network than the one that is given", again, capsys)


def test_the_commit_is_that_of_this_code_s_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a repository that holds the environment in which it is installed."""
    words = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*words, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*words, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    installed = tmp_path / "venv" / "site-packages"
    for root, expected in ((tmp_path, head.strip()), (installed, None)):
        (root / "pipelines" / "runs").mkdir(parents=True)
        monkeypatch.setattr(run_folder, "__file__", str(root / "pipelines" / "runs" / "run_folder.py"))
        assert run_folder._git_commit() == expected
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(run_folder, "GIT_SECONDS", 0.2)
    assert run_folder._git_commit() is None


def test_an_unknown_users_folder_is_no_storage() -> None:
    with pytest.raises(UserError, match="storage: ~nobody-here/runs names an unknown user"):
        run_path(Config(storage="~nobody-here/runs"))


@pytest.mark.parametrize("line", ["", "{", "3", "{}", '{"phase": 1}', "\udcff"])
def test_records_of_another_kind_name_their_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n", errors="surrogateescape")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged"):
        read_metrics(tmp_path)
