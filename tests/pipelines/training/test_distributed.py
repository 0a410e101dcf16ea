"""The whole job on real Ray with real data: repeatable, resumable after a kill, the same as without Ray."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cross_entropy

from cluster.errors import UserError
from pipelines.config.load import dump_config, load_config
from pipelines.data.dataset import describe
from pipelines.data.inputs import Inputs
from pipelines.data.layout import Rows, uniform_sample
from pipelines.data.scan import read_split
from pipelines.runs.run import run
from pipelines.storage.sync import run_lock
from pipelines.training.engine import load_rows
from pipelines.training.loop import NORM_STREAM
from pipelines.training.score_table import fingerprint
from pruning.examples.sampling import draw
from pruning.weights.masks import Masks
from snn.batchnorm import reestimate
from snn.interchange import load_checkpoint
from tests.pipelines.training.conftest import QUIET, kill_after, metrics, small, wait_for

pytestmark = pytest.mark.xdist_group("ray")


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


def test_nothing_listens_beyond_loopback_while_workers_train(
    undisturbed: Path, listeners: set[tuple[str, str]]
) -> None:
    assert {ip for ip, _ in listeners} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listeners
    assert any("TrainWorker" in name for _, name in listeners), "their group's store and pairs"


def test_pruned_epochs_train_on_the_stated_share(undisturbed: Path) -> None:
    records = metrics(undisturbed)
    assert [r["examples"] for r in records if r["phase"] == "train"] == [1437, 718, 718, 1437]
    assert [r["examples"] for r in records if r["phase"] == "retrain"] == [718, 1437]
    assert [r["rescored"] > 0 for r in records if r["phase"] == "train"] == [False, True, False, False]
    scores = pq.read_table(undisturbed / "scores.parquet")
    assert scores.num_rows == 1437
    assert sum(scores.column("probability").to_pylist()) == pytest.approx(718, abs=1e-3)
    assert min(scores.column("score").to_pylist()) >= 0


def test_the_table_of_scores_is_what_was_drawn_by(undisturbed: Path) -> None:
    """Its probabilities draw the very examples and weights of the last pruned epoch."""
    table = pq.read_table(undisturbed / "scores.parquet")
    pi = table.column("probability").to_numpy()
    drawn = draw(pi, size=718, seed=0, epoch=2, design="systematic", population=1437)
    assert fingerprint(drawn.ids, drawn.weights) == metrics(undisturbed)[2]["subset"]
    assert max(table.column("scored_at").to_pylist()) == 1


def test_it_learns_and_pruned_weights_stay_pruned(undisturbed: Path) -> None:
    records = metrics(undisturbed)
    assert [r for r in records if r["phase"] == "train"][-1]["test_accuracy"] > 0.9
    assert records[-1]["test_accuracy"] > 0.85
    layers = records[-1]["activity"]["layers"]
    masks = Masks.load(undisturbed / "masks.safetensors")
    assert {layer["name"]: layer["surviving"] for layer in layers} == {
        name: kept for name, (kept, _) in masks.counts().items()
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics(
    undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    again = run(small(tmp_path, digits, name="again"), console=QUIET)
    assert metrics(again) == metrics(undisturbed)


def test_validation_and_batch_norm_are_those_of_all_workers_together(undisturbed: Path, digits: Path) -> None:
    """Two workers' shares against one process that has everything."""
    train, test = read_split(digits, "train"), read_split(digits, "test")
    inputs = Inputs.of(describe(train, test, str(digits)), 4)
    model, _ = load_checkpoint(undisturbed / "checkpoints" / "retrain.safetensors")
    last = metrics(undisturbed)[-1]
    rows = Rows(load_rows(test))
    x, labels = rows.get(rows.ids)
    with torch.no_grad():
        logits_TBK = model.eval()(inputs(x))
    y = torch.from_numpy(labels)
    assert last["test_accuracy"] == float((logits_TBK.mean(0).argmax(1) == y).double().mean())
    assert last["test_loss"] == pytest.approx(float(cross_entropy(logits_TBK.mean(0), y)), rel=1e-5)

    trained, expected = Rows(load_rows(train)), copy.deepcopy(model)
    shares = [
        uniform_sample(train.ids, 256, seed=0, epoch=1, stream=NORM_STREAM, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    reestimate(expected, [inputs(trained.get(ids)[0]) for ids in shares])
    for (name, a), b in zip(model.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("records_before_kill", [2, pytest.param(4, id="between stages"), 5])
def test_a_killed_run_resumes_and_ends_where_it_would_have(
    records_before_kill: int, undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    config = small(tmp_path, digits, name="killed")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    folder = tmp_path / "killed"
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )
    try:
        wait_for(
            lambda: len(metrics(folder)) >= records_before_kill or driver.poll() is not None,
            f"{records_before_kill} records",
        )
        with pytest.raises(
            UserError, match=rf"^name: run 'killed' .* another process \(process {driver.pid} "
        ):
            run(config, resume=True, console=QUIET)
        assert driver.poll() is None, "the run ended before it was killed"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    with run_lock(folder, "run", str(tmp_path)):
        """The workers that it has left behind hold nothing."""
    wait_until_still(folder)
    assert len(metrics(folder)) < len(metrics(undisturbed))
    resumed = run(config, resume=True, console=QUIET)
    assert metrics(resumed) == metrics(undisturbed)
    tables = (pq.read_table(run_ / "scores.parquet") for run_ in (resumed, undisturbed))
    assert next(tables).equals(next(tables))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::RayTrainWorker", "ray::TableActor"])
def test_a_killed_process_is_replaced_and_changes_nothing(
    victim: str, undisturbed: Path, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    config = small(tmp_path, digits, name="hurt")
    killer = kill_after(tmp_path / "hurt", 2, victim)
    folder = run(config, console=QUIET)
    killer.join()
    assert metrics(folder) == metrics(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_one_worker_on_ray_equals_the_plain_process(
    threads: str, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    settings = {"data_pruning.rescore_every": "1", "cluster.threads": threads}
    here, there = (
        run(
            small(
                tmp_path,
                digits,
                name=engine,
                **settings,
                **{"cluster.workers": "1", "cluster.engine": engine},
            ),
            console=QUIET,
        )
        for engine in ("local", "ray")
    )
    assert metrics(here) == metrics(there)


@pytest.mark.slow
def test_ctrl_c_ends_quietly_and_says_how_to_go_on(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(small(tmp_path, digits, name="stopped", **{"train.epochs": "40"})))
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        start_new_session=True,
    )
    wait_for(lambda: len(metrics(tmp_path / "stopped")) >= 1 or driver.poll() is not None, "an epoch")
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert errors.splitlines()[-1] == f"interrupted; go on with: spikeprune train {path} --resume"
    assert "Traceback" not in errors


def wait_until_still(folder: Path) -> None:
    """Until the dead driver's workers have stopped writing."""
    last, still = -1.0, 0
    while still < 6:
        newest = max(p.stat().st_mtime for p in folder.rglob("*"))
        still = still + 1 if newest == last else 0
        last = newest
        time.sleep(0.5)
