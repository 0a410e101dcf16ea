"""A real search on real data: its results are those of plain runs, its training is shared."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import dump_config, load_config, load_tree
from pipelines.config.plugins import use_own_code
from pipelines.config.schema import SearchTree
from pipelines.report.summary import summarise
from pipelines.runs.run import run
from pipelines.search.plan import make_plan
from pipelines.search.results import read_results, write_results
from pipelines.search.study import _this_machine, search, trials_at_once, write_settings
from pipelines.storage.sync import run_lock
from tests.pipelines.cli.test_cli import fails_with
from tests.pipelines.config.test_plugins import EXAMPLE
from tests.pipelines.runs.test_run_folder import without_some
from tests.pipelines.search.conftest import QUIET, SPACE, plan_of, tree, trials_of
from tests.pipelines.training.conftest import wait_for

pytestmark = pytest.mark.xdist_group("ray")


def test_every_combination_is_there_once(searched: SearchTree) -> None:
    trials = trials_of(searched)
    assert [t.number for t in trials] == list(range(8))
    seen = Counter(tuple(sorted(t.suggested.items())) for t in trials)
    assert set(seen.values()) == {1}
    for path, values in SPACE.items():
        assert all(t.value(path) in values for t in trials)


def test_impossible_trials_fail_with_their_reason_and_end_nothing(searched: SearchTree) -> None:
    for trial in trials_of(searched):
        if trial.value("model.name") == "mlp" and trial.value("model.channels") is not None:
            assert trial.status == "failed"
            assert trial.reason is not None
            assert trial.reason == "model.channels: (4,) does not apply: mlp has no such layers"
        else:
            assert trial.status == "finished"


def test_each_training_is_done_once(searched: SearchTree) -> None:
    finished = [t for t in trials_of(searched) if t.status == "finished"]
    trainings = Counter(t.metrics["training"] for t in finished)
    assert sorted(trainings.values()) == [2, 2, 2]  # two sparsities on each
    stages = plan_of(searched).folder / "stages"
    assert {p.parent.name for p in stages.glob("train-*/metrics.jsonl")} == set(trainings)
    for name in trainings:
        lines = (stages / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert len(list(stages.glob("prune-*/metrics.jsonl"))) == 6


def test_the_front_is_that_of_plain_runs(searched: SearchTree, tmp_path: Path) -> None:
    """Every trial evaluated again by `spikeprune run`'s own path, and the front found by comparing all."""
    table = pq.read_table(searched.storage + "/search/search.parquet").to_pylist()
    finished = [row for row in table if row["status"] == "finished"]
    assert len(finished) == 6
    assert all("val_share: 0.1\n" in row["config"] for row in finished)  # never by test accuracy
    points = {}
    for row in finished:
        path = tmp_path / "trial.yaml"
        path.write_text(row["config"])
        again = {"storage": str(tmp_path), "name": f"run-{row['trial']}", "cluster.threads": "1"}
        summary = summarise(run(load_config(path, again), "run", console=QUIET))
        last = summary.phases[-1]
        assert row["accuracy"] == last.val_accuracy
        assert row["synops"] == last.synops
        assert row["density"] == last.density
        assert row["examples"] == sum(p.examples for p in summary.phases)
        points[row["trial"]] = (last.val_accuracy, last.synops)
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
        config = load_config(found.plan.folder / "best" / f"{kind}.yaml")
        trial = found.trials[number]
        assert config.model.name == trial.value("model.name")
        assert config.weight_pruning.sparsity == trial.value("weight_pruning.sparsity")
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
    assert page.count("<svg") == 4  # the front; parallel coordinates; of each objective importance
    assert "http" not in page.split("</style>")[0]
    assert "src=" not in page
    assert "does not apply" in page
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
    with run_lock(folder, "search", searched.storage):  # as a search that is going on does
        assert cli.main(["search", str(path), "--resume"]) == 2
        assert "search 'search' in" in (line := capsys.readouterr().err)
        assert "is being run by another process" in line
    before = pq.read_table(folder / "search.parquet")
    (folder / "report.html").unlink()  # as a kill behind the last trial leaves it
    assert cli.main(["search", str(path), "--resume", "--search.minutes", "5"]) == 0
    assert pq.read_table(folder / "search.parquet") == before
    assert (folder / "report.html").exists()


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
        "data.val_share": "0.1",
        "search.question": "data",
        "search.trials": "1",
    }
    begun = load_tree(SearchTree, mine / "own.yaml", place | {"name": "begun", "baseline": "none"})
    write_settings(make_plan(begun), use_own_code(begun))
    path = tmp_path / "begun.yaml"
    path.write_text(dump_config(begun))
    (mine / "my_policy.py").write_text((mine / "my_policy.py").read_text() + "# changed\n")
    args = ["search", str(path), "--resume"]
    kept = tmp_path / "begun" / "code"
    line = f"my_policy.py is not what it was when the search started; resume with --code {kept}, or choose"
    fails_with(f"code: {line}", args, capsys)
    # The remedy leads on to what is looked at next.
    fails_with("data.path: ", [*args, "--code", str(kept), "--data.path", str(other)], capsys)


@pytest.mark.parametrize(
    ("settings", "nodes", "fit"),
    [
        ({"cluster.workers": 1}, [(2, 0)], 2),
        ({"cluster.workers": 1, "cluster.cpus_per_worker": 2}, [(5, 0), (3, 0)], 3),
        ({"cluster.workers": 1, "cluster.gpus_per_worker": 0.25}, [(16, 1), (16, 2)], 12),
        ({"cluster.workers": 1, "cluster.gpus_per_worker": 0.2}, [(16, 1), (16, 1)], 10),
        ({"cluster.workers": 1, "cluster.gpus_per_worker": 0.1}, [(16, 1)], 10),
        ({"cluster.workers": 2}, [(4, 0)], 2),
        ({"cluster.workers": 2}, [(64, 0)], 32),
        ({"cluster.workers": 2, "cluster.gpus_per_worker": 0.5}, [(16, 1), (16, 2)], 3),
    ],
)
def test_as_many_trials_at_once_as_fit(
    settings: dict[str, Any], nodes: list[tuple[float, float]], fit: int, tmp_path: Path, digits: Path
) -> None:
    """Those of several workers with a CPU for scoring each."""
    assert trials_at_once(plan_of(tree(tmp_path, digits, {}, **settings)), nodes) == fit
    asked = tree(tmp_path, digits, {"concurrent": fit + 1}, **settings)
    line = f"search.concurrent: {fit + 1} trials at once do not fit; set it to {fit} or less"
    with pytest.raises(UserError, match=line):
        trials_at_once(plan_of(asked), nodes)


def test_as_many_trials_at_once_as_cores_that_may_be_used(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, or under taskset, not as many as the machine has."""
    monkeypatch.setattr("cluster.connect.CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    plan = plan_of(tree(tmp_path, digits, {}, **{"cluster.workers": 1}))
    assert trials_at_once(plan, _this_machine(plan, gpus=0)) == 3
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert trials_at_once(plan, _this_machine(plan, gpus=0)) == 2


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"cluster.workers": 1, "cluster.cpus_per_worker": 3},
            "cluster.cpus_per_worker: 3 CPUs for a trial do not fit any node of the cluster",
        ),
        (
            {"cluster.workers": 1, "cluster.gpus_per_worker": 2},
            "cluster.gpus_per_worker: 2 GPUs for a trial do not fit any node of the cluster",
        ),
        ({"cluster.workers": 8, "cluster.cpus_per_worker": 1}, "cluster.workers: 8 workers of 1 CPUs"),
    ],
)
def test_a_trial_that_never_fits_is_refused(
    settings: dict[str, Any], line: str, tmp_path: Path, digits: Path
) -> None:
    with pytest.raises(UserError) as refused:
        trials_at_once(plan_of(tree(tmp_path, digits, {}, **settings)), [(2, 1), (2, 1)])
    assert str(refused.value).startswith(line)


def test_without_the_extra_the_command_to_install_it_is_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.search.plan.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"search: needs the extra search: pip install"):
        search(tree(tmp_path, digits, {}))


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_trials_of_an_undisturbed_one(
    tmp_path: Path, digits: Path, ray_session: None
) -> None:
    """SIGKILL of the driver in the middle; a sampler that learns, one trial at a time."""
    settings = {
        "space": {"weight_pruning.sparsity": {"low": 0.5, "high": 0.95}},
        "objectives": ["accuracy", "density"],
        "trials": 4,
        "concurrent": 1,
    }
    undisturbed = tree(tmp_path, digits, settings, name="undisturbed")
    search(undisturbed, console=QUIET)
    killed = tree(tmp_path, digits, settings, name="killed")
    path = tmp_path / "search.yaml"
    path.write_text(dump_config(killed))
    driver = subprocess.Popen(
        [sys.executable, "-m", "spikeprune", "search", str(path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stages = plan_of(killed).folder / "stages"

    def pruned() -> dict[Path, int]:
        """Runs that have ended, and when."""
        found = [p for p in stages.glob("prune-*/metrics.jsonl") if len(p.read_text().splitlines()) == 2]
        return {p: p.stat().st_mtime_ns for p in found}

    wait_for(lambda: len(pruned()) >= 1 or driver.poll() is not None, "a trial")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = pruned()
    assert 1 <= len(before) < 4
    assert cli.main(["search", str(path), "--resume"]) == 0
    names = ("accuracy", "density", "examples", "synops")
    mine, theirs = (
        [(t.suggested, *(t.metrics[n] for n in names)) for t in trials_of(f)] for f in (killed, undisturbed)
    )
    assert mine == theirs
    assert {p: t for p, t in pruned().items() if p in before} == before  # nothing was done twice
    assert len(list(stages.glob("train-*/metrics.jsonl"))) == 1
    table = pq.read_table(plan_of(killed).folder / "search.parquet")
    assert table.column("trial").to_pylist() == list(range(4))


@pytest.mark.slow
def test_own_code_reaches_the_trials(tmp_path: Path, digits: Path, ray_session: None) -> None:
    """A model, a policy and a criterion of the user's, from the search's copy."""
    mine = shutil.copytree(EXAMPLE, tmp_path / "mine")
    place = {"storage": str(tmp_path), "data.path": str(digits), "cluster.workers": 1, "baseline": "none"}
    space = {"search.space": {"weight_pruning.sparsity": [0.5]}, "search.sampler": "grid"}
    found = load_tree(SearchTree, mine / "own.yaml", {**place, **space, "train.epochs": 3})
    search(found, console=QUIET)
    assert [t.status for t in trials_of(found)] == ["finished"]


@pytest.mark.slow
def test_a_finished_search_takes_more_trials(tmp_path: Path, digits: Path, ray_session: None) -> None:
    settings: dict[str, Any] = {
        "space": {"weight_pruning.sparsity": {"low": 0.5, "high": 0.95}},
        "objectives": ["accuracy", "density"],
        "concurrent": 1,
    }
    search(tree(tmp_path, digits, {**settings, "trials": 2}), console=QUIET)
    more = tree(tmp_path, digits, {**settings, "trials": 3})
    before = trials_of(more)
    search(more, resume=True, console=QUIET)
    after = trials_of(more)
    assert [t.number for t in after] == [0, 1, 2]
    assert after[:2] == before
    assert after[2].status == "finished"
    assert len({t.suggested["weight_pruning.sparsity"] for t in after}) == 3
