"""The whole job on real Ray with real data: repeatable, resumable after a kill, the same as without Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines.config import Config
from pipelines.config_io import dump_config, load_config
from pipelines.run import run
from pruning.weights.masks import Masks

QUIET = Console(quiet=True)
SMALL = {
    "model.hidden": "[48]",
    "train.epochs": "4",
    "train.norm_examples": "256",
    "weights.retrain_epochs": "2",
    "weights.calibration_examples": "100",
    "examples.rescore_every": "2",
}


def small(folder: Path, digits: Path, **overrides: str) -> Config:
    settings = {**SMALL, "data.path": str(digits), "storage": str(folder), **overrides}
    return load_config(None, settings)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records without what differs from run to run: times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path, ray_session: None) -> Path:
    return run(small(tmp_path_factory.mktemp("runs"), digits, name="undisturbed"), console=QUIET)


def test_the_run_folder_holds_everything(undisturbed: Path) -> None:
    assert {p.name for p in undisturbed.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "checkpoints",
        "scores.parquet",
        "masks.safetensors",
        "pruning.json",
    }
    phases = [(r["phase"], r["epoch"]) for r in metrics(undisturbed)]
    assert phases == [("train", e) for e in range(4)] + [("prune", 0)] + [("retrain", e) for e in range(2)]
    assert load_config(undisturbed / "config.yaml").name == "undisturbed"
    masks = Masks.load(undisturbed / "masks.safetensors")
    assert masks.sparsity == pytest.approx(0.9, abs=1e-3)
    assert not list(undisturbed.rglob(".*partial*"))


def test_pruned_epochs_train_on_the_stated_share(undisturbed: Path) -> None:
    records = metrics(undisturbed)
    assert [r["examples"] for r in records if r["phase"] == "train"] == [1437, 718, 718, 1437]
    assert [r["examples"] for r in records if r["phase"] == "retrain"] == [718, 1437]
    assert [r["rescored"] > 0 for r in records if r["phase"] == "train"] == [False, True, False, False]
    scores = pq.read_table(undisturbed / "scores.parquet")
    assert scores.num_rows == 1437
    assert sum(scores.column("probability").to_pylist()) == pytest.approx(718, abs=1e-3)
    assert min(scores.column("score").to_pylist()) >= 0


def test_it_learns_and_pruned_weights_stay_pruned(undisturbed: Path) -> None:
    records = metrics(undisturbed)
    assert [r for r in records if r["phase"] == "train"][-1]["test_accuracy"] > 0.9
    assert records[-1]["test_accuracy"] > 0.85
    layers = records[-1]["activity"]["layers"]
    masks = Masks.load(undisturbed / "masks.safetensors")
    assert {layer["name"]: layer["surviving"] for layer in layers} == {
        name: kept for name, (kept, _) in masks.counts().items()
    }


def test_the_same_seed_gives_the_same_metrics(
    undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    again = run(small(tmp_path, digits, name="again"), console=QUIET)
    assert metrics(again) == metrics(undisturbed)


@pytest.mark.parametrize(
    "records_before_kill", [2, pytest.param(4, id="between stages"), pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_and_ends_where_it_would_have(
    records_before_kill: int, undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    config = small(tmp_path, digits, name="killed")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    folder = tmp_path / "killed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )
    try:
        wait_for_records(folder, records_before_kill, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until_still(folder)
    assert len(metrics(folder)) < len(metrics(undisturbed))
    resumed = run(config, resume=True, console=QUIET)
    assert metrics(resumed) == metrics(undisturbed)


def wait_for_records(folder: Path, n: int, driver: "subprocess.Popen[bytes]") -> None:
    """Until metrics.jsonl has ``n`` lines."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= n:
            return
        assert driver.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    raise AssertionError(f"no {n} records within three minutes")


def wait_until_still(folder: Path) -> None:
    """Until the dead driver's workers have stopped writing."""
    last, still = -1.0, 0
    while still < 6:
        newest = max(p.stat().st_mtime for p in folder.rglob("*"))
        still = still + 1 if newest == last else 0
        last = newest
        time.sleep(0.5)
