"""Engine, device and threads: decided by need, told in a line, kept with the run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cluster.errors import UserError
from pipelines.config import ClusterConfig, Config
from pipelines.config.load import load_config
from pipelines.data.inputs import choose_device
from pipelines.data.scan import read_split
from pipelines.runs.preflight import assign_gpus, default_threads, placement, resolve_engine, resolve_reading
from pipelines.runs.run import prune

QUICK = ("--train.epochs", "1", "--data-pruning.policy", "full", "--model.hidden", "16")


@pytest.mark.parametrize(
    ("cluster", "engine"),
    [
        (ClusterConfig(), "local"),
        (ClusterConfig(gpus_per_worker=1), "local"),
        (ClusterConfig(workers=2), "ray"),
        (ClusterConfig(address="auto"), "ray"),
        (ClusterConfig(gpus_per_worker=2), "ray"),
        (ClusterConfig(scorers=1), "ray"),
        (ClusterConfig(engine="ray"), "ray"),
        (ClusterConfig(engine="local", address="auto"), "local"),
    ],
)
def test_the_engine_by_need(cluster: ClusterConfig, engine: str) -> None:
    assert cluster.launcher == engine


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device(asked: str, gpus: int, device: str) -> None:
    assert choose_device(asked, gpus) == torch.device(device)


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_not_there(asked: str, gpus: int) -> None:
    with pytest.raises(UserError, match=rf"cluster\.device: {asked} is not possible: torch sees"):
        choose_device(asked, gpus)


@pytest.mark.parametrize(
    ("cluster", "gpus", "given"),
    [
        (ClusterConfig(workers=2), 0, 0),
        (ClusterConfig(workers=2), 1, 0),
        (ClusterConfig(workers=2), 2, 1),
        (ClusterConfig(workers=2, device="cpu"), 2, 0),
        (ClusterConfig(workers=2, gpus_per_worker=0.75), 2, 0.75),
        (ClusterConfig(workers=2, device="cuda"), 1, 1),  # and is refused: it does not fit
    ],
)
def test_gpus_of_rays_workers(cluster: ClusterConfig, gpus: float, given: float) -> None:
    assert assign_gpus(Config(cluster=cluster), gpus).cluster.gpus_per_worker == given


def test_threads_by_the_cpus_that_are_reserved() -> None:
    assert default_threads(ClusterConfig(workers=2)) == 1
    assert default_threads(ClusterConfig(workers=2, cpus_per_worker=6)) == 6
    assert default_threads(ClusterConfig(cpus_per_worker=3)) == 3
    assert default_threads(ClusterConfig(address="auto")) == 1
    for engine in ("local", "ray"):
        assert 1 <= default_threads(ClusterConfig(engine=engine)) <= torch.get_num_threads()


def test_the_line(tmp_path: Path) -> None:
    asked = Config(cluster=ClusterConfig(workers=2, threads=3))
    settled = resolve_engine(asked, tmp_path)
    assert placement(asked.cluster, settled) == "engine ray (2 workers), 3 threads per worker"
    alone = Config(cluster=ClusterConfig(engine="ray", threads=1))
    assert placement(alone.cluster, alone) == "engine ray (as asked for), 1 thread per worker"


def test_one_worker_starts_no_ray_and_resumes_as_it_began(digits: Path, tmp_path: Path) -> None:
    """In a process of its own: whether Ray was loaded is a matter of the whole process."""
    script = (
        "import sys; from pipelines.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'ray' not in sys.modules; raise SystemExit(code)"
    )
    args = ["train", "--data.path", str(digits), "--storage", str(tmp_path), *QUICK]
    first = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "engine local (one worker, no address), device " in first.stderr
    known = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert known["engine"] == "local"
    few = {"weight_pruning.retrain_epochs": "0", "weight_pruning.calibration_examples": "64"}
    stored = tmp_path / "run" / "config.yaml"
    stored.write_text(stored.read_text().replace("workers: 1", "workers: 2"))
    pruned = prune(tmp_path / "run", few, console=Console(quiet=True))  # no cluster for 64 examples
    assert json.loads((pruned / "provenance.json").read_text())["engine"] == "local"
    stored.write_text(stored.read_text().replace("workers: 2", "workers: 1"))
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(known | {"threads": 7, "engine": "ray"}))
    again = resolve_engine(Config(name="run", storage=str(tmp_path)), tmp_path / "run")
    assert (again.cluster.engine, again.cluster.threads) == ("ray", 7)
    assert placement(ClusterConfig(), again) == "engine ray (as the run began), 7 threads per worker"
    told = resolve_engine(replace(again, cluster=ClusterConfig(engine="local", threads=2)), tmp_path / "run")
    assert (told.cluster.engine, told.cluster.threads) == ("local", 2)


@pytest.mark.parametrize(
    ("gb", "memory_gb", "reading"), [(1.9, None, "memory"), (2.1, None, "shards"), (2.1, 3, "memory")]
)
def test_the_machine_has_no_say(
    gb: float, memory_gb: float | None, reading: str, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    train = replace(read_split(digits, "train"), num_bytes=int(gb * 1e9))
    config = load_config(None, {"data.memory_gb": memory_gb})
    for pages in (1, 10**12):
        monkeypatch.setattr(os, "sysconf", lambda name, pages=pages: pages)
        assert resolve_reading(config, train, tmp_path).data.reading == reading
