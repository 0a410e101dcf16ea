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
import torch
import yaml

from pipelines.config.load import dump_config, load_config
from pipelines.report.summary import summarise
from pipelines.run import run
from pipelines.search.search import search
from pipelines.search.stages import history_of
from tests.pipelines.search.conftest import QUIET, journal_of, records_of, tree
from tests.pipelines.training.conftest import wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
BUDGETS = {"weights.sparsity": [0.5, 0.7, 0.8, 0.9]}


def test_the_example_ends_in_time_with_the_front_of_plain_runs(tmp_path: Path, digits: Path) -> None:
    """12 trials, two objectives; then every one of them again by `spikeprune run`'s own path."""
    config = yaml.safe_load((ROOT / "examples" / "search-digits.yaml").read_text())
    assert config["search"]["trials"] == 12
    assert len(config["search"]["objectives"]) == 2
    args = ["--data.path", str(digits), "--storage", str(tmp_path)]
    example = str(ROOT / "examples" / "search-digits.yaml")
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "search", example, *args],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    rows = pq.read_table(tmp_path / "search-digits" / "search.parquet").to_pylist()
    assert [r["status"] for r in rows] == ["finished"] * 12
    points = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the trials
    try:
        for row in rows:
            path = tmp_path / "trial.yaml"
            path.write_text(row["config"])
            alone = {"cluster.engine": "local", "storage": str(tmp_path), "name": f"again-{row['trial']}"}
            last = summarise(run(load_config(path, alone), "run", console=QUIET)).phases[-1]
            assert (row["accuracy"], row["synops"]) == (last.accuracy, last.synops)
            points[row["trial"]] = (last.accuracy, last.synops)
    finally:
        torch.set_num_threads(threads)
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
    records = records_of(found)
    statuses = Counter(r.status for r in records)
    assert statuses["finished"] >= 1
    assert statuses["stopped"] >= 4
    assert sum(statuses.values()) == 8
    journal = journal_of(found)
    for r in records:
        done = len(history_of(journal.stage_folders(r)))
        if r.status == "stopped":
            assert r.records < 6
            assert r.records <= done <= r.records + 1
            assert r.values["train.lr"] < 0.2
            assert r.reason is not None
            assert "asha" in r.reason
        else:
            assert done == 6


def test_a_killed_trial_hands_its_training_on(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """Two trials want the same training; the process of the one that trains is killed."""
    settings = {"space": BUDGETS, "sampler": "grid", "concurrent": 2, "objectives": ["accuracy", "density"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 40})
    journal = journal_of(found)
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(list(journal.folder.glob("stages/train-*/metrics.jsonl"))) > 0, "an epoch")
        owners = [r for r in journal.records() if r.process is not None]
        (folder,) = journal.folder.glob("stages/train-*")
        wait_for(lambda: len((folder / "metrics.jsonl").read_text().splitlines()) >= 3, "three epochs")
        assert len({r.process for r in owners}) == len(owners)
        for r in owners:  # whichever of them trains, and whoever waits
            os.kill(r.process or 0, signal.SIGKILL)
            killed.append(r.number)

    thread = threading.Thread(target=kill)
    thread.start()
    search(found, console=QUIET)
    thread.join()
    assert killed
    records = journal.records()
    assert [r.status for r in records] == ["finished"] * 4
    assert len({r.stages[0] for r in records}) == 1
    lines = history_of([journal.stage_folders(records[0])[0]])
    assert [line["epoch"] for line in lines] == list(range(40))


def test_sigterm_ends_a_search_which_goes_on_later(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """Started as scripts start commands in the background."""
    settings = {"space": BUDGETS, "sampler": "grid", "concurrent": 1, "objectives": ["accuracy", "density"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 10, "weights.retrain_epochs": 15})
    path = tmp_path / "settings.yaml"
    path.write_text(dump_config(found))
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "search", str(path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    journal = journal_of(found)

    def finished() -> list[int]:
        return [r.number for r in journal.records() if r.status == "finished"]

    wait_for(lambda: len(finished()) >= 1 or driver.poll() is not None, "a trial")
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 143
    assert errors.splitlines()[-1].startswith("terminated; --resume continues")
    assert "Traceback" not in errors
    done = finished()
    assert 1 <= len(done) < 4
    before = [journal.path(n).stat().st_mtime_ns for n in done]
    search(found, resume=True, console=QUIET)
    assert finished() == [0, 1, 2, 3]
    assert [journal.path(n).stat().st_mtime_ns for n in done] == before


def test_a_trial_that_always_dies_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, digits: Path, ray_session: None
) -> None:
    settings = {"space": {"seed": [0, 1, 2]}, "sampler": "grid", "concurrent": 1, "objectives": ["accuracy"]}
    found = tree(tmp_path, digits, settings, **{"train.epochs": 60, "cluster.max_failures": 1})
    journal = journal_of(found)
    killed: set[int] = set()

    def kill() -> None:
        while len(killed) < 2:  # the first start and the one after it
            wait_for(lambda: journal.path(1).exists(), "trial 1")
            process = journal.read(1).process
            if process is not None and process not in killed:
                os.kill(process, signal.SIGKILL)
                killed.add(process)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    search(found, console=QUIET)
    thread.join()
    records = journal.records()
    assert [r.status for r in records] == ["finished", "failed", "finished"]
    assert records[1].reason == "lost its process or node 2 times (cluster.max_failures)"


def test_time_runs_out_and_more_time_ends_it(tmp_path: Path, digits: Path, ray_session: None) -> None:
    settings: dict[str, Any] = {
        "space": BUDGETS,
        "sampler": "grid",
        "concurrent": 1,
        "objectives": ["accuracy", "density"],
        "minutes": 0.2,
    }
    found = tree(tmp_path, digits, settings, **{"train.epochs": 150})
    search(found, console=QUIET)
    records = records_of(found)
    assert [r.status for r in records] == ["open"]
    before = len(history_of(journal_of(found).stage_folders(records[0])))
    search(found, resume=True, console=QUIET)  # the minutes are spent
    assert len(records_of(found)) == 1
    more = tree(tmp_path, digits, {**settings, "minutes": 60}, **{"train.epochs": 150})
    search(more, resume=True, console=QUIET)
    records = records_of(more)
    assert [r.status for r in records] == ["finished"] * 4
    history = history_of([journal_of(more).stage_folders(records[0])[0]])
    assert [h["epoch"] for h in history] == list(range(150))
    assert before > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_read_by_row_groups_where_asked(
    workers: int, tmp_path: Path, digits: Path, ray_session: None
) -> None:
    """Nothing is held; each trial's result is that of a plain run that reads the same way."""
    found = tree(
        tmp_path,
        digits,
        {"space": {"weights.sparsity": [0.5, 0.9]}, "sampler": "grid", "objectives": ["accuracy", "synops"]},
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
    assert (rows[1]["accuracy"], rows[1]["synops"]) == (last.phases[-1].accuracy, last.phases[-1].synops)
    before = (tmp_path / "search" / "search.yaml").read_text()
    assert "reading: shards" in before
    search(found, resume=True, console=QUIET)  # what was decided holds
    assert (tmp_path / "search" / "search.yaml").read_text() == before
