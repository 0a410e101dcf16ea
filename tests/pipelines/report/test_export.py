"""Exported files are the run's network: the same weights, the same outputs, the same counts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cluster.errors import UserError
from pipelines import cli
from pipelines.config.load import load_config
from pipelines.report import network as export
from pipelines.runs.run import prune, run
from pruning.weights.masks import Masks
from snn.interchange import load_checkpoint
from snn.models import SpikingNetwork

QUIET = Console(quiet=True)
FAST = {
    "cluster.engine": "local",
    "cluster.workers": "1",
    "train.epochs": "2",
    "weight_pruning.retrain_epochs": "1",
}


def trained(folder: Path, digits: Path, **fields: str) -> Path:
    overrides = {"storage": str(folder), "data.path": str(digits), **FAST, **fields}
    return run(load_config(None, overrides), "train", console=QUIET)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    fields = {"model.name": "convnet", "model.channels": "[6, 8]", "model.hidden": "[48]"}
    return trained(tmp_path_factory.mktemp("runs"), digits, **fields)


@pytest.fixture(scope="module")
def pruned(dense: Path) -> Path:
    return prune(dense, {"weight_pruning.sparsity": "0.97"}, console=QUIET)


def logits(model: SpikingNetwork, x_TB: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(x_TB.double())


def test_weights_masks_and_the_table(pruned: Path, tmp_path: Path) -> None:
    done = export.export(pruned, tmp_path / "out")
    assert Path(done.files[0]).name == "model.safetensors"
    assert sorted(Path(p).name for p in done.files) == sorted(p.name for p in (tmp_path / "out").iterdir())
    model, _ = load_checkpoint(tmp_path / "out" / "model.safetensors")
    source, _ = load_checkpoint(pruned / "checkpoints" / "retrain.safetensors")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    masks = Masks.load(tmp_path / "out" / "masks.safetensors")
    assert masks == Masks.load(pruned / "masks.safetensors")
    stored = json.loads((tmp_path / "out" / "layers.json").read_text())
    rows = stored["layers"]
    records = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text().splitlines()]
    assert [r["name"] for r in rows] == list(masks)
    assert stored["synops"] == pytest.approx(records[-1]["activity"]["synops"])
    assert stored["synops_before"] == pytest.approx(records[0]["dense_activity"]["synops"])
    assert stored["density"] == pytest.approx(0.03, abs=2e-3)
    for row, s in zip(rows, model.synapses(), strict=True):
        assert row["surviving"] == int((s.layer.weight != 0).sum())
    assert rows[-1]["firing_rate"] is None


def test_nir_is_the_network(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir = pytest.importorskip("nir")
    from tests.snn.test_nir_graph import interpret

    assert cli.main(["export", str(pruned), "--output", str(tmp_path / "out"), "--nir"]) == 0
    assert "network of phase retrain" in capsys.readouterr().out
    graph = nir.read(tmp_path / "out" / "model.nir")
    model, _ = load_checkpoint(tmp_path / "out" / "model.safetensors")
    x_TB = torch.from_numpy(np.random.default_rng(0).uniform(-1, 3, (4, 8, 1, 8, 8)))
    found = interpret(graph, x_TB, dt=1e-4)
    torch.testing.assert_close(found, logits(model, x_TB), rtol=1e-4, atol=1e-4)


def test_a_trained_network_without_masks(dense: Path, tmp_path: Path) -> None:
    done = export.export(dense, tmp_path / "out")
    assert done.phase == "train"
    assert {Path(p).name for p in done.files} == {"model.safetensors", "layers.json"}
    assert all(row["density"] > 0.99 and row["synops"] == row["synops_before"] for row in done.layers)


def test_what_cannot_be_exported(
    dense: Path, pruned: Path, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match=r"--output: .* holds other files"):
        export.export(pruned, tmp_path / "full")
    with pytest.raises(UserError, match="is not a run"):
        export.export(tmp_path, tmp_path / "out")

    soft = trained(tmp_path / "runs", digits, **{"model.hidden": "[8]", "model.reset": "soft"})
    with pytest.raises(UserError, match="--nir: mlp cannot be expressed in NIR: reset: 'soft'"):
        export.export(soft, tmp_path / "out", nir=True)
    Masks.nonzero(load_checkpoint(soft / "checkpoints" / "train.safetensors")[0]).save(
        soft / "masks.safetensors"
    )
    with pytest.raises(UserError, match="has not finished its phase retrain yet; --resume"):
        export.export(soft, tmp_path / "out")

    mixed = tmp_path / "mixed"
    shutil.copytree(pruned, mixed)
    record = json.loads((mixed / "pruning.json").read_text())
    record["allocation"]["fingerprint"] = "0" * len(record["allocation"]["fingerprint"])
    (mixed / "pruning.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"pruning\.json: is of other masks than those beside it"):
        export.export(mixed, tmp_path / "out")

    assert not (tmp_path / "out").exists()
