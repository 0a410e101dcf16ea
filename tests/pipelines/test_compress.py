"""SLAMP as a stage, in one process: prune a trained run at another budget, and refuse what cannot be."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config_io import load_config
from pipelines.errors import UserError
from pipelines.run import prune, run
from pruning.weights.masks import Masks
from snn.interchange import load_checkpoint

QUIET = Console(quiet=True)


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
            "weights.retrain_epochs": "1",
        },
    )
    return run(config, "train", console=QUIET)


def test_prune_at_a_sparsity(trained: Path) -> None:
    folder = prune(trained, {"weights.sparsity": "0.8", "name": "a"}, console=QUIET)
    masks = Masks.load(folder / "masks.safetensors")
    assert masks.sparsity == pytest.approx(0.8, abs=1e-3)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in records] == ["prune", "retrain"]
    model, _ = load_checkpoint(folder / "checkpoints" / "retrain.safetensors")
    assert Masks.nonzero(model) & masks == Masks.nonzero(model)
    stored = json.loads((folder / "pruning.json").read_text())
    assert {"allocation", "calibration", "activity"} <= set(stored)
    assert stored["activity"]["pruned"]["density"] == pytest.approx(0.2, abs=1e-3)
    assert records[0]["activity"]["synops"] < stored["activity"]["dense"]["synops"]


def test_the_dense_network_is_the_same_in_both_runs(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    folder = prune(
        trained / "checkpoints" / "train.safetensors",
        {"name": "b", "weights.retrain_epochs": "0"},
        console=QUIET,
    )
    (record,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert record["dense_accuracy"] == records[-1]["test_accuracy"]


def test_a_larger_budget_keeps_fewer_weights(trained: Path) -> None:
    kept = []
    for i, budget in enumerate(("0.05", "0.3")):
        folder = prune(
            trained,
            {"weights.budget": budget, "weights.retrain_epochs": "0", "name": f"budget{i}"},
            console=QUIET,
        )
        kept.append(Masks.load(folder / "masks.safetensors"))
        record = json.loads((folder / "metrics.jsonl").read_text())
        assert 0 < record["budget"] <= float(budget)
    assert kept[1].density < kept[0].density
    assert kept[1] & kept[0] == kept[1]


def test_unknown_layers_and_unfinished_runs_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.exclude: 'head' is not a layer; choose from features"):
        prune(trained, {"weights.exclude": "[head]", "name": "c"}, console=QUIET)
    with pytest.raises(UserError, match="is not a run"):
        prune(tmp_path, {}, console=QUIET)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is in no run's folder"):
        prune(tmp_path / "x.safetensors", {}, console=QUIET)
