"""Whole runs that read their rows by row groups: as from memory, resumable, the same on Ray and without."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.runs.run import run
from tests.pipelines.training.conftest import QUIET, metrics, small

pytestmark = pytest.mark.xdist_group("ray")

LOCAL = {"cluster.engine": "local", "cluster.workers": "1", "weight_pruning.retrain_epochs": "1"}
SHARDS = {"data.reading": "shards", "data.shuffle_rows": "300"}


@pytest.fixture(scope="module")
def row_groups(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The digits in row groups of 100 rows."""
    folder = tmp_path_factory.mktemp("groups")
    for file in digits.glob("*.parquet"):
        pq.write_table(pq.read_table(file), folder / file.name, row_group_size=100)
    return folder


def test_a_run_reads_by_row_groups_and_resumes(tmp_path: Path, row_groups: Path) -> None:
    config = small(tmp_path, row_groups, name="shards", **LOCAL, **SHARDS)
    whole = run(config, "train", console=QUIET)
    records = train = metrics(whole)
    assert [r["examples"] for r in train] == [1437, 718, 718, 1437]
    assert [r["rescored"] for r in train] == [0, 1437, 0, 0]
    assert train[-1]["test_accuracy"] > 0.9
    newest = sorted(p for p in (whole / "checkpoints").iterdir() if p.is_dir())[-1]
    shutil.rmtree(newest)  # as if killed before the last checkpoint
    assert metrics(run(config, "train", resume=True, console=QUIET)) == records


def test_with_one_window_an_epoch_is_the_one_from_memory(tmp_path: Path, row_groups: Path) -> None:
    settings = {
        **LOCAL,
        "data_pruning.policy": "random",
        "train.epochs": "2",
        "data_pruning.warmup_epochs": "0",
    }
    settings |= {
        "data_pruning.anneal_epochs": "0",
        "train.batch_size": "359",
    }  # no padding, which batch norm sees
    held = run(small(tmp_path, row_groups, name="held", **settings), "train", console=QUIET)
    one = {**SHARDS, "data.shuffle_rows": "2000"}
    read = run(small(tmp_path, row_groups, name="read", **settings, **one), "train", console=QUIET)
    losses = [[r["train_loss"] for r in metrics(folder)] for folder in (held, read)]
    assert losses[0] == losses[1]


def test_large_data_are_read_by_row_groups_without_being_asked(tmp_path: Path, row_groups: Path) -> None:
    config = small(tmp_path, row_groups, name="auto", **{**LOCAL, "data.memory_gb": "0", "train.epochs": "2"})
    folder = run(config, "train", console=QUIET)
    assert "reading: shards" in (folder / "config.yaml").read_text()
    assert run(config, "train", resume=True, console=QUIET) == folder


@pytest.mark.slow
def test_ray_reads_what_the_plain_process_reads(tmp_path: Path, row_groups: Path, ray_session: None) -> None:
    settings = {**SHARDS, "data_pruning.rescore_every": "1", "cluster.workers": "1"}
    here, there = (
        run(small(tmp_path, row_groups, name=e, **{**settings, "cluster.engine": e}), console=QUIET)
        for e in ("local", "ray")
    )
    assert metrics(here) == metrics(there)
