"""Trials under trouble: stopped early, killed, out of time; every one ends as plain runs do."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.config.load import dump_config, load_config
from pipelines.report.summary import summarise
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.search.study import search
from pipelines.search.trial import stages_of
from tests.pipelines.search.conftest import QUIET, plan_of, tree, trials_of
from tests.pipelines.training.conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ROOT = Path(__file__).resolve().parents[3]
BUDGETS = {"weight_pruning.sparsity": [0.5, 0.7, 0.8, 0.9]}


def test_the_example_ends_in_time_with_the_front_of_plain_runs(tmp_path: Path, digits: Path) -> None:
    """12 trials, two objectives; then every one of them again by `spikeprune run`'s own path."""
    config = yaml.safe_load((ROOT / "examples" / "search-digits.yaml").read_text())
    assert config["search"]["trials"] == 12
    assert len(config["search"]["objectives"]) == 2
    args = ["--data.path", str(digits), "--storage", str(tmp_path)]
    example = str(ROOT / "examples" / "search-digits.yaml")
    subprocess.run(
        [sys.executable, "-m", "spikeprune", "search", example, *args],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    rows = pq.read_table(tmp_path / "search-digits" / "search.parquet").to_pylist()
    assert [r["status"] for r in rows] == ["finished"] * 12
    points = {}
    alone = {"storage": str(tmp_path), "cluster.threads": "1"}  # as the trials
    for row in rows:
        path = tmp_path / "trial.yaml"
        path.write_text(row["config"])
        config = load_config(path, {**alone, "name": f"again-{row['trial']}"})
        last = summarise(run(config, "run", console=QUIET)).phases[-1]
        assert (row["accuracy"], row["synops"]) == (last.val_accuracy, last.synops)
        points[row["trial"]] = (last.val_accuracy, last.synops)
    front = {
        t
        for t, (a, s) in points.items()
        if not any(q >= a and o <= s and (q, o) != (a, s) for q, o in points.values())
    }
    assert {r["trial"] for r in rows if r["on_front"]} == front
    for kind in ("accuracy", "synops", "balanced"):
        text = (tmp_path / "search-digits" / "best" / f"{kind}.yaml").read_text()
        assert int(text.split()[2]) in front


def test_asha_stops_laggards_and_goes_on(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """One trial at a time: a stopped one that held its place would end the search."""
    settings = {
        "space": {"train.lr": [0.2, 0.1, 0.05, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]},
        "objectives": ["accuracy"],
        "sampler": "grid",
        "scheduler": "asha",
        "grace_epochs": 1,
        "reduction": 2,
        "concurrent": 1,
    }
    found = tree(tmp_path, digits, settings, **{"train.epochs": 6})
    search(found, console=QUIET)
    trials, plan = trials_of(found), plan_of(found)
    statuses = Counter(t.status for t in trials)
    assert statuses["finished"] >= 1
    assert statuses["stopped"] >= 4
    assert sum(statuses.values()) == 8
    for t in trials:
        (stage,) = stages_of(plan, t.suggested)
        done = len(read_metrics(stage.folder))
        if t.status == "stopped":
            assert t.metrics["training_iteration"] <= done <= t.metrics["training_iteration"] + 1
            assert done < 6
            assert t.value("train.lr") < 0.2
        else:
            assert done == 6


def test_a_killed_trial_hands_its_training_on(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """Two trials want the same training; both their processes are killed."""
    settings = {"space": BUDGETS, "sampler": "grid", "concurrent": 2, "objectives": ["accuracy", "density"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 40})
    stages = plan_of(found).folder / "stages"
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: any(len(read_metrics(p)) >= 3 for p in stages.glob("train-*")), "three epochs")
        killed.extend(trial_processes())
        for process in killed:
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    search(found, console=QUIET)
    thread.join()
    assert killed
    trials = trials_of(found)
    assert [t.status for t in trials] == ["finished"] * 4
    (training,) = {t.metrics["training"] for t in trials}
    assert [line["epoch"] for line in read_metrics(stages / training)] == list(range(40))


def trial_processes() -> list[int]:
    """Tune's trials of this process's cluster."""
    import ray
    from ray.util.state import list_actors

    alive = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")])
    return [actor.pid for actor in alive if "ImplicitFunc" in actor.class_name]


def test_sigterm_ends_a_search_which_goes_on_later(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """Started as scripts start commands in the background."""
    settings = {"space": BUDGETS, "sampler": "grid", "concurrent": 1, "objectives": ["accuracy", "density"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 10, "weight_pruning.retrain_epochs": 15})
    path = tmp_path / "settings.yaml"
    path.write_text(dump_config(found))
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "search", str(path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )

    def finished() -> list[int]:
        return [t.number for t in trials_of(found) if t.status == "finished"]

    wait_for(lambda: len(finished()) >= 1 or driver.poll() is not None, "a trial")
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 143
    assert errors.splitlines()[-1] == f"terminated; go on with: spikeprune search {path} --resume"
    assert "Traceback" not in errors
    done = trials_of(found)[: len(finished())]
    assert 1 <= len(done) < 4
    search(found, resume=True, console=QUIET)
    assert finished() == [0, 1, 2, 3]
    assert trials_of(found)[: len(done)] == done


def test_a_trial_that_always_dies_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, digits: Path, ray_session: None
) -> None:
    settings = {"space": {"seed": [0, 1, 2]}, "sampler": "grid", "concurrent": 1, "objectives": ["accuracy"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 60, "cluster.max_failures": 1})
    stages = plan_of(found).folder / "stages"
    killed: set[int] = set()

    def kill() -> None:
        wait_for(lambda: len(list(stages.glob("train-*/metrics.jsonl"))) == 2, "trial 1")
        while len(killed) < 2:  # the first start and the one after it
            for process in trial_processes():
                if process not in killed:
                    os.kill(process, signal.SIGKILL)
                    killed.add(process)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    search(found, console=QUIET)
    thread.join()
    trials = trials_of(found)
    assert [t.status for t in trials] == ["finished", "failed", "finished"]
    assert "died" in (trials[1].reason or "")


def test_time_runs_out_and_more_time_ends_it(tmp_path: Path, digits: Path, ray_session: None) -> None:
    settings: dict[str, Any] = {
        "space": BUDGETS,
        "sampler": "grid",
        "concurrent": 1,
        "objectives": ["accuracy", "density"],
        "minutes": 0.4,
    }
    found = tree(tmp_path, digits, settings, **{"train.epochs": 300})
    search(found, console=QUIET)
    trials = trials_of(found)
    assert [t.status for t in trials] == ["open"]
    (stage, _) = stages_of(plan_of(found), trials[0].suggested)
    before = len(read_metrics(stage.folder))
    assert 0 < before < 300
    more = tree(tmp_path, digits, {**settings, "minutes": 60}, **{"train.epochs": 300})
    search(more, resume=True, console=QUIET)
    trials = trials_of(more)
    assert [t.status for t in trials] == ["finished"] * 4
    assert [h["epoch"] for h in read_metrics(stage.folder)] == list(range(300))


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_read_by_row_groups_where_asked(
    workers: int, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    """Nothing is held; each trial's result is that of a plain run that reads the same way."""
    found = tree(
        tmp_path,
        digits,
        {
            "space": {"weight_pruning.sparsity": [0.5, 0.9]},
            "sampler": "grid",
            "objectives": ["accuracy", "synops"],
        },
        **{"data.memory_gb": 0.0, "data.shuffle_rows": 300, "cluster.workers": workers},
    )
    search(found, console=QUIET)
    rows = pq.read_table(tmp_path / "search" / "search.parquet").to_pylist()
    assert [r["status"] for r in rows] == ["finished"] * 2
    assert all("reading: shards" in r["config"] for r in rows)
    path = tmp_path / "trial.yaml"
    path.write_text(rows[1]["config"])
    last = summarise(
        run(load_config(path, {"storage": str(tmp_path), "name": "again"}), "run", console=QUIET)
    )
    assert (rows[1]["accuracy"], rows[1]["synops"]) == (last.phases[-1].val_accuracy, last.phases[-1].synops)
    before = (tmp_path / "search" / "search.yaml").read_text()
    assert "reading: shards" in before
    search(found, resume=True, console=QUIET)  # what was decided holds
    assert (tmp_path / "search" / "search.yaml").read_text() == before


LOST_NODE = """
import sys, tempfile, threading, time
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from rich.console import Console
from pipelines.config.load import load_tree
from pipelines.config.schema import SearchTree
from pipelines.search.plan import make_plan
from pipelines.search.trial import read_trials
from pipelines.search.study import search

tree = load_tree(SearchTree, Path(sys.argv[1]))
place = tempfile.mkdtemp(prefix="sp-")  # others on this machine would take it for their cluster
head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": place}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=1)
tree.cluster.address = cluster.address

def lose():
    plan = make_plan(tree)
    while sum(t.status == "finished" for t in read_trials(plan)) < 1:
        time.sleep(0.2)
    cluster.remove_node(second, allow_graceful=False)
    print("lost", file=sys.__stdout__, flush=True)  # search keeps Tune's banner from stdout

threading.Thread(target=lose, daemon=True).start()
search(tree, console=Console(quiet=True))
"""


def test_two_nodes_of_which_one_is_lost(tmp_path: Path, digits: Path) -> None:
    """On a cluster whose address is given."""
    space = {"seed": [0, 1, 2, 3, 4, 5], "weight_pruning.sparsity": [0.8]}
    settings = {"space": space, "sampler": "grid", "objectives": ["accuracy", "density"]}
    found = tree(tmp_path, digits, settings, **{"cluster.address": "auto", "train.epochs": 24})
    (script := tmp_path / "script.py").write_text(LOST_NODE)
    (path := tmp_path / "settings.yaml").write_text(dump_config(found))
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env=env | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "TUNE_GLOBAL_CHECKPOINT_S": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lost" in done.stdout
    trials = trials_of(found)
    assert [t.status for t in trials] == ["finished"] * 6
    assert len({t.metrics["training"] for t in trials}) == 6
