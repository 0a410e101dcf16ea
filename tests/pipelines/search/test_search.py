"""A real search on real data: its results are those of plain runs, its dense stages are shared."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import cli
from pipelines.config.load import dump_config, load_config, load_tree
from pipelines.config.plugins import use_own_code
from pipelines.lock import hold
from pipelines.report.summary import summarise
from pipelines.run import run
from pipelines.search.config import SearchTree
from pipelines.search.results import read_results, write_results
from pipelines.search.search import _begin
from tests.pipelines.search.conftest import QUIET, SPACE, journal_of, records_of, tree
from tests.pipelines.test_cli import fails_with
from tests.pipelines.test_own_code import EXAMPLE
from tests.pipelines.test_provenance import without_some
from tests.pipelines.training.conftest import wait_for


def test_every_combination_is_there_once(searched: SearchTree) -> None:
    records = records_of(searched)
    assert [r.number for r in records] == list(range(8))
    seen = Counter(tuple(sorted(r.values.items())) for r in records)
    assert set(seen.values()) == {1}
    for path, values in SPACE.items():
        assert {r.values[path] for r in records} == set(values)


def test_impossible_trials_fail_with_their_reason_and_end_nothing(searched: SearchTree) -> None:
    for record in records_of(searched):
        if record.values["examples.warmup_epochs"] + record.values["examples.anneal_epochs"] > 3:
            assert record.status == "failed"
            assert record.reason is not None
            assert record.reason.startswith("examples.warmup_epochs: 2 is not possible; it must be so that")
        else:
            assert record.status == "finished"


def test_each_training_is_done_once(searched: SearchTree) -> None:
    journal = journal_of(searched)
    finished = [r for r in journal.records() if r.status == "finished"]
    trainings = Counter(name for r in finished for name in r.trained if name.startswith("train-"))
    assert sorted(trainings.values()) == [1, 1, 1]  # with two sparsities on each
    for name in trainings:
        lines = (journal.folder / "stages" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert len({r.stages[1] for r in finished}) == 6


def test_the_front_is_that_of_plain_runs(searched: SearchTree, tmp_path: Path) -> None:
    """Every trial evaluated again by `spikeprune run`'s own path, and the front found by comparing all."""
    table = pq.read_table(searched.storage + "/search/search.parquet").to_pylist()
    finished = [row for row in table if row["status"] == "finished"]
    assert len(finished) == 6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    points = {}
    try:
        for row in finished:
            path = tmp_path / "trial.yaml"
            path.write_text(row["config"])
            again = {"cluster.engine": "local", "storage": str(tmp_path), "name": f"run-{row['trial']}"}
            summary = summarise(run(load_config(path, again), "run", console=QUIET))
            last = summary.phases[-1]
            assert row["accuracy"] == last.accuracy
            assert row["synops"] == last.synops
            assert row["density"] == last.density
            assert row["examples"] == sum(p.examples for p in summary.phases)
            points[row["trial"]] = (last.accuracy, last.synops)
    finally:
        torch.set_num_threads(threads)
    front = {
        a
        for a, (accuracy, synops) in points.items()
        if not any(q >= accuracy and s <= synops and (q > accuracy or s < synops) for q, s in points.values())
    }
    assert {row["trial"] for row in table if row["on_front"]} == front


def test_the_best_configs_run_as_they_are(searched: SearchTree) -> None:
    found = read_results(Path(searched.storage) / "search")
    write_results(found)
    assert set(found.best) == {"accuracy", "synops", "balanced"}
    assert set(found.best.values()) <= found.front
    for kind, number in found.best.items():
        config = load_config(found.journal.folder / "best" / f"{kind}.yaml")
        record = found.records[number]
        assert config.examples.warmup_epochs == record.values["examples.warmup_epochs"]
        assert config.weights.sparsity == record.values["weights.sparsity"]
        assert (config.name, config.storage) == (f"search-{kind}", searched.storage)
        assert Path(config.data.path).is_absolute()


def test_plot_redraws_without_running(searched: SearchTree, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(searched.storage) / "search"
    before = {p: p.stat().st_mtime_ns for p in (folder / "stages").rglob("*")}
    (folder / "report.html").unlink(missing_ok=True)
    assert cli.main(["search", "--plot", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "Pareto front" in printed
    assert "8 trials: 6 finished, 2 failed; 3 different trainings before pruning" in printed
    assert str(folder / "best" / "balanced.yaml") in printed
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3  # front, parallel coordinates, importance
    assert "http" not in page.split("</style>")[0]
    assert "src=" not in page
    assert "2 is not possible" in page
    assert {p: p.stat().st_mtime_ns for p in (folder / "stages").rglob("*")} == before


def test_a_search_of_that_name_needs_resume_and_the_same_settings(
    searched: SearchTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(searched))
    assert cli.main(["search", str(path)]) == 2
    assert "search 'search' exists" in capsys.readouterr().err
    assert cli.main(["search", str(path), "--resume", "--train.lr", "0.7"]) == 2
    assert "train.lr: is 0.7 here and 0.1 in the search" in capsys.readouterr().err
    folder = Path(searched.storage) / "search"
    with hold(folder, "search", searched.storage):  # as a search that is going on does
        assert cli.main(["search", str(path), "--resume"]) == 2
        assert "search 'search' in" in (line := capsys.readouterr().err)
        assert "is being run by another process" in line
    before = pq.read_table(folder / "search.parquet")
    assert cli.main(["search", str(path), "--resume", "--search.minutes", "5"]) == 0
    assert pq.read_table(folder / "search.parquet") == before


def test_a_search_goes_on_with_the_data_it_began_with(
    searched: SearchTree, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(searched))
    shutil.copytree(Path(searched.storage) / "search", tmp_path / "search")
    args = ["search", str(path), "--storage", str(tmp_path), "--resume", "--data.path"]
    moved, other = shutil.copytree(digits, tmp_path / "moved"), without_some(digits, tmp_path)
    assert cli.main([*args, str(moved)]) == 0
    capsys.readouterr()
    fails_with(f"data.path: {other} holds other data than the search began with", [*args, str(other)], capsys)
    (tmp_path / "search" / "provenance.json").unlink()  # as in searches of earlier versions
    assert cli.main([*args, str(other)]) == 0


def test_a_search_goes_on_with_the_code_it_began_with(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = shutil.copytree(EXAMPLE, tmp_path / "mine"), without_some(digits, tmp_path)
    place = {
        "storage": str(tmp_path),
        "data.path": str(digits),
        "search.question": "data",
        "search.trials": "1",
    }
    begun = load_tree(SearchTree, mine / "own.yaml", place | {"name": "begun", "baseline": "none"})
    _begin(begun, tmp_path / "begun", use_own_code(begun))
    path = tmp_path / "begun.yaml"
    path.write_text(dump_config(begun))
    (mine / "my_policy.py").write_text((mine / "my_policy.py").read_text() + "# changed\n")
    args = ["search", str(path), "--resume"]
    kept = tmp_path / "begun" / "code"
    line = f"my_policy.py has changed since the search started; resume with --code {kept}, or choose another"
    fails_with(f"code: {line}", args, capsys)
    # The remedy leads on to what is looked at next.
    fails_with("data.path: ", [*args, "--code", str(kept), "--data.path", str(other)], capsys)


def test_trials_share_one_copy_of_the_rows(digits: Path, ray_session: None) -> None:
    """What a trial gets of the rows lies in the object store: its process allocates next to nothing."""
    import ray  # not before Ray is started: it reads its settings when it is imported

    from pipelines.data.dataset import read_split
    from pipelines.training.local import load_rows

    rows = load_rows(read_split(digits, "train"))
    copies = pa.concat_tables([rows] * 20).combine_chunks()

    @ray.remote
    def allocated(shared: tuple[pa.Table]) -> int:
        return shared[0].num_rows and pa.total_allocated_bytes()

    assert ray.get(allocated.remote(ray.put((copies,)))) < copies.nbytes / 10


def test_the_reason_of_workers_is_the_end_of_their_trace(ray_session: None) -> None:
    from ray.train import WorkerGroupError

    from pipelines.search.trials import _reason

    trace = "Training failed:\n[Rank 0 Error Snippet]:\n  File x.py, line 3\nValueError: no room\n\n"
    assert _reason(WorkerGroupError(trace, {})) == "ValueError: no room"
    assert _reason(WorkerGroupError("lost", {})) == "lost"
    assert _reason(RuntimeError("first\nsecond")) == "RuntimeError: first"


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """SIGKILL of the driver in the middle; learned sampler, so that what was learned must come back too."""
    settings = {
        "space": {"weights.sparsity": {"low": 0.5, "high": 0.95}},
        "objectives": ["accuracy", "density"],
        "trials": 4,
        "concurrent": 1,
    }
    wanted = tree(tmp_path, digits, settings)
    path = tmp_path / "search.yaml"
    path.write_text(dump_config(wanted))
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "search", str(path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal = journal_of(wanted)

    def ended() -> dict[int, int]:
        done = [r.number for r in journal.records() if r.status == "finished"]
        return {n: journal.path(n).stat().st_mtime_ns for n in done}

    wait_for(lambda: len(ended()) >= 1 or driver.poll() is not None, "a trial")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = ended()
    assert 1 <= len(before) < 4
    assert cli.main(["search", str(path), "--resume"]) == 0
    records = journal.records()
    assert [(r.number, r.status) for r in records] == [(n, "finished") for n in range(4)]
    assert {n: t for n, t in ended().items() if n in before} == before
    trainings = Counter(name for r in records for name in r.trained if name.startswith("train-"))
    assert len(trainings) == 1  # the dense network was trained before the kill, and not again
    sparsities = [r.values["weights.sparsity"] for r in records]
    assert len(set(sparsities)) == 4  # the sampler did not draw its first values again
    table = pq.read_table(journal.folder / "search.parquet")
    assert table.column("trial").to_pylist() == list(range(4))
