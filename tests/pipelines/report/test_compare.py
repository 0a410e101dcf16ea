"""Criteria side by side: each row is what pruning by that criterion alone gives."""

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import dump_config, load_config
from pipelines.data.scan import Split
from pipelines.report.compare import Comparison, compare, write_comparison
from pipelines.runs.run import prune, run

QUIET = Console(quiet=True)
CRITERIA = ("magnitude", "slamp", "uniform")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    config = load_config(
        None,
        {
            "name": "dense",
            "storage": str(tmp_path_factory.mktemp("runs")),
            "data.path": str(digits),
            "cluster.engine": "local",
            "cluster.workers": "1",
            "model.hidden": "[48, 32]",
            "train.epochs": "3",
        },
    )
    return run(config, "train", console=QUIET)


@pytest.fixture(scope="module")
def compared(trained: Path) -> Comparison:
    return compare(trained, criteria=CRITERIA, levels=(0.9, 0.7), console=QUIET)


def test_rows_are_ordered_and_complete(compared: Comparison) -> None:
    pairs = [(o.level, o.criterion) for o in compared.outcomes]
    assert pairs == [(level, criterion) for level in (0.7, 0.9) for criterion in CRITERIA]
    for o in compared.outcomes:
        assert o.figures["connectivity"] == pytest.approx(1 - o.level, abs=1e-3)
        assert o.figures["synops_of_dense"] == o.figures["synops"] / compared.dense["synops"]
        assert o.figures["accuracy_drop"] == compared.dense["accuracy"] - o.figures["accuracy"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_row_is_what_prune_without_retraining_gives(
    criterion: str, compared: Comparison, trained: Path
) -> None:
    """No row depends on those before it: weights and batch norm start from the dense network's."""
    overrides = {
        "weight_pruning.criterion": criterion,
        "weight_pruning.sparsity": "0.9",
        "weight_pruning.retrain_epochs": "0",
    }
    folder = prune(trained, {"name": f"alone-{criterion}", **overrides}, console=QUIET)
    record = json.loads((folder / "metrics.jsonl").read_text())
    (row,) = [o for o in compared.outcomes if (o.criterion, o.level) == (criterion, 0.9)]
    assert compared.dense["accuracy"] == record["dense_accuracy"]
    assert row.figures == record["figures"]
    assert row.loss == record["test_loss"]
    assert row.budget == record["budget"]


def test_synops_levels_are_shares_of_the_calibrated_synops(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compare", str(trained), "--criteria", "lamp", "slamp", "--objective", "synops"]
    assert cli.main([*args, "--levels", "0.5", "0.2"]) == 0
    stored = json.loads((trained / "compare-synops.json").read_text())
    assert stored["objective"] == "synops"
    shares = {(o["criterion"], o["level"]): o["figures"]["synops_of_dense"] for o in stored["outcomes"]}
    assert len(shares) == 4
    for criterion in ("lamp", "slamp"):
        assert shares[criterion, 0.2] < shares[criterion, 0.5] < 0.75
    printed = capsys.readouterr().out
    assert "MACs" in printed
    assert str(trained / "compare-synops.html") in printed


def test_the_files_hold_the_rows(compared: Comparison, tmp_path: Path) -> None:
    values, page = write_comparison(compared, tmp_path)
    stored = json.loads(values.read_text())
    assert stored["dense"]["accuracy"] == compared.dense["accuracy"]
    assert stored["dense"]["synops"] == compared.dense["synops"]
    assert [o["figures"] for o in stored["outcomes"]] == [o.figures for o in compared.outcomes]
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "http" not in text.split("</style>")[0]
    for o in compared.outcomes:
        assert f">{o.figures['accuracy']:.2%}</td>" in text


def test_a_run_of_many_workers_is_compared_by_one_without_loading_its_data(
    compared: Comparison, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(split: Split) -> NoReturn:
        raise AssertionError("all rows are read into memory")

    elastic = {"cluster.engine": "ray", "cluster.workers": "4", "cluster.min_workers": "2"}
    config = load_config(trained / "config.yaml", {**elastic, "data.reading": "shards"})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.setattr("pipelines.training.engine.load_rows", refuse)
    done = compare(tmp_path, criteria=["slamp"], levels=[0.9], console=QUIET)
    assert done.outcomes == tuple(o for o in compared.outcomes if (o.criterion, o.level) == ("slamp", 0.9))


def test_mistakes(trained: Path) -> None:
    with pytest.raises(UserError, match=r"--criteria: 'lmap' is unknown; choose from slamp, slamp_curve"):
        compare(trained, criteria=["lmap"], console=QUIET)
    with pytest.raises(UserError, match=r"--levels: 1\.5 is not possible"):
        compare(trained, criteria=["lamp"], levels=[1.5], console=QUIET)
    with pytest.raises(
        UserError, match=r"lamp at 0\.99: sparsity: 0\.99 cannot be reached.*largest possible"
    ):
        compare(
            trained,
            criteria=["lamp"],
            levels=[0.99],
            overrides={"weight_pruning.min_keep": "100"},
            console=QUIET,
        )
    with pytest.raises(UserError, match="does not exist"):
        compare(trained / "none", criteria=["lamp"], console=QUIET)
