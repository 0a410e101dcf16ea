"""SLAMP as a stage, in one process: prune a trained run at another budget, and refuse what cannot be."""

import itertools
import json
from fractions import Fraction
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cluster.errors import UserError
from pipelines.config import WeightPruningConfig
from pipelines.config.load import load_config
from pipelines.report.page import write_page
from pipelines.report.summary import summarise
from pipelines.runs.run import prune, run
from pipelines.training import prune as stage
from pipelines.training.prune import target_of
from pipelines.training.worker import Worker
from pruning.weights.allocation import allocate
from pruning.weights.calibration import Calibration
from pruning.weights.calibration_sums import Measure
from pruning.weights.masks import Masks
from snn.interchange import load_checkpoint, save_checkpoint

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
            "weight_pruning.retrain_epochs": "1",
        },
    )
    return run(config, "train", console=QUIET)


def test_prune_at_a_sparsity(trained: Path) -> None:
    folder = prune(trained, {"weight_pruning.sparsity": "0.8", "name": "a"}, console=QUIET)
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
    assert set(stored["calibration_spread"]) == {layer["name"] for layer in stored["allocation"]["layers"]}
    assert all(0 <= spread < 0.5 for spread in stored["calibration_spread"].values())


def test_what_a_criterion_needs_is_measured_and_kept(trained: Path) -> None:
    changes = {"weight_pruning.synops": "0.4", "weight_pruning.retrain_epochs": "0"}
    folders = {
        criterion: prune(
            trained, {**changes, "weight_pruning.criterion": criterion, "name": criterion}, console=QUIET
        )
        for criterion in ("slamp", "slamp_curve", "fisher", "lamp")
    }
    stored = {name: json.loads((folder / "pruning.json").read_text()) for name, folder in folders.items()}
    assert {s["allocation"]["objective"] for s in stored.values()} == {"synops"}  # a share of the SynOps
    layers = stored["slamp"]["calibration"]["layers"]
    assert sum(log(layer["sensitivity"]) for layer in layers) == pytest.approx(0, abs=1e-9)
    for layer, allocated in zip(layers, stored["slamp"]["allocation"]["layers"], strict=True):
        expected = layer["sensitivity"] ** 0.75
        assert allocated["coefficient"] == pytest.approx(expected)
    assert stored["lamp"]["calibration"]["layers"][0]["sensitivity"] is None
    # Another target from the curves that were kept.
    model, _ = load_checkpoint(trained / "checkpoints" / "train.safetensors")
    calibration = Calibration.from_dict(stored["slamp_curve"]["calibration"])
    again = allocate(model, calibration, criterion="slamp_curve", synops_fraction=0.4)
    assert again.masks == Masks.load(folders["slamp_curve"] / "masks.safetensors")
    smaller = allocate(model, calibration, criterion="slamp_curve", synops_fraction=0.2)
    assert smaller.masks & again.masks == smaller.masks
    with pytest.raises(UserError, match=r"weight_pruning\.measure_examples"):
        prune(trained, {**changes, "weight_pruning.measure_examples": "0"}, console=QUIET)


def test_figures_in_the_fields_units(trained: Path) -> None:
    changes = {"name": "figures", "weight_pruning.sparsity": "0.8", "weight_pruning.retrain_epochs": "2"}
    folder = prune(trained, changes, console=QUIET)
    records = records_of(folder)
    stored = json.loads((folder / "pruning.json").read_text())
    for kind, record in (("pruned", records[0]), ("retrained", records[-1])):
        found, activity = stored["figures"][kind], record["activity"]
        dense = stored["activity"]["dense"]
        assert found == record["figures"]
        assert found["accuracy"] == record["test_accuracy"]
        assert found["accuracy_drop"] == records_of(trained)[-1]["test_accuracy"] - found["accuracy"]
        assert found["connectivity"] == activity["density"] == pytest.approx(0.2, abs=1e-3)
        assert found["synops_of_dense"] == activity["synops"] / dense["synops"]
        assert found["energy_nj"] == pytest.approx((0.9 * activity["acs"] + 4.6 * activity["macs"]) / 1000)
        assert found["macs"] == activity["macs"] > 0
    assert "figures" not in records[1]  # the last epoch's alone
    page = write_page(summarise(folder)).read_text()
    assert f"{100 * stored['figures']['retrained']['accuracy_drop']:+.2f}" in page
    assert "pJ a multiply-accumulate" in page


@given(st.data())
def test_sums_over_workers_do_not_depend_on_the_order_of_adding(data: st.DataObject) -> None:
    wide = st.floats(-1e12, 1e12, allow_subnormal=False)
    vectors = data.draw(st.lists(st.lists(wide, min_size=3, max_size=3), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(vectors))))
    sums = [
        merged_by(each, data.draw(st.permutations(order))) for each in (vectors, [vectors[i] for i in order])
    ]
    assert torch.equal(*sums)
    exact = [float(sum(Fraction(v[i]) for v in vectors)) for i in range(3)]
    assert sums[0].tolist() == exact


def merged_by(vectors: list[list[float]], order: list[int]) -> torch.Tensor:
    """What every worker gets when the reduction adds the workers' tensors in ``order``."""

    class Reduction:
        world_size = len(vectors)

        def __init__(self, rank: int, others: list[torch.Tensor] | None) -> None:
            self.rank, self.others = rank, others

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            if self.others is None:
                raise RecordedError(tensor)
            total = torch.zeros_like(tensor)
            for i in order:
                total = total + self.others[i]
            return total

    class RecordedError(Exception):
        pass

    sent = []
    for rank, vector in enumerate(vectors):
        with pytest.raises(RecordedError) as caught:
            stage.exact_sum(Reduction(rank, None), torch.tensor(vector, dtype=torch.float64))  # type: ignore[arg-type]
        sent.append(caught.value.args[0])
    results = [
        stage.exact_sum(Reduction(rank, sent), torch.tensor(vector, dtype=torch.float64))  # type: ignore[arg-type]
        for rank, vector in enumerate(vectors)
    ]
    assert all(torch.equal(results[0], other) for other in results)
    return results[0]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cubic(trained: Path) -> Path:
    """Three rounds, and the masks that each of them left."""
    return prune(
        trained,
        {
            "weight_pruning.sparsity": "0.9",
            "weight_pruning.rounds": "3",
            "name": "cubic",
        },
        console=QUIET,
    )


def test_rounds_follow_the_schedule_and_end_with_the_plain_names(trained: Path, cubic: Path) -> None:
    records = records_of(cubic)
    names = ["prune-1", "retrain-1", "prune-2", "retrain-2", "prune", "retrain"]
    assert [r["phase"] for r in records] == names
    pruned = records[::2]
    assert [1 - r["density"] for r in pruned] == pytest.approx([0.9 * 19 / 27, 0.9 * 26 / 27, 0.9], abs=1e-3)
    assert {r["dense_accuracy"] for r in pruned} == {records_of(trained)[-1]["test_accuracy"]}
    assert [r["before_accuracy"] for r in pruned[1:]] == [r["test_accuracy"] for r in records[1:-1:2]]
    stored = json.loads((cubic / "pruning.json").read_text())
    assert stored["activity"]["dense"]["density"] == 1
    assert (stored["round"], stored["rounds"]) == (3, 3)
    titles = [p.title for p in summarise(cubic).phases]
    assert titles[:2] == ["weights pruned, round 1 of 3", "retrained, round 1 of 3"]
    assert titles[4:] == ["SLAMP at 90% sparsity", "retrained"]
    assert "retrained, round 2 of 3" in write_page(summarise(cubic)).read_text()


def test_a_pruned_weight_stays_pruned_in_later_rounds(cubic: Path) -> None:
    kept = [
        Masks.nonzero(load_checkpoint(cubic / "checkpoints" / f"{name}.safetensors")[0])
        for name in ("retrain-1", "prune-2", "retrain-2", "prune", "retrain")
    ]
    for before, after in itertools.pairwise(kept):
        assert before & after == after
    assert kept[-1] & Masks.load(cubic / "masks.safetensors") == kept[-1]


def test_rounds_resume_where_they_stopped(
    trained: Path, cubic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second round's calibration, a resumed run ends as the undisturbed one."""
    overrides = {
        "weight_pruning.sparsity": "0.9",
        "weight_pruning.rounds": "3",
        "name": "again",
    }
    calibrate = stage.calibrate

    def stop(worker: Worker, sample: stage.Sample, measure: list[Measure]) -> stage.Calibrated:
        if worker.progress.phase == 2:
            raise KeyboardInterrupt
        return calibrate(worker, sample, measure)

    monkeypatch.setattr(stage, "calibrate", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(trained, overrides, console=QUIET)
    monkeypatch.undo()
    folder = prune(trained, overrides, resume=True, console=QUIET)

    def without_times(folder: Path) -> list[dict[str, Any]]:
        apart = ("seconds", "cpu_seconds", "speed")
        return [{k: v for k, v in r.items() if k not in apart} for r in records_of(folder)]

    assert without_times(folder) == without_times(cubic)
    assert Masks.load(folder / "masks.safetensors") == Masks.load(cubic / "masks.safetensors")


def test_equal_parts_of_a_budget(trained: Path) -> None:
    """Without retraining batch norm alone moves, so the rounds' budgets add up to the whole."""
    folder = prune(
        trained,
        {
            "weight_pruning.budget": "0.2",
            "weight_pruning.rounds": "2",
            "weight_pruning.retrain_epochs": "0",
            "name": "equal",
        },
        console=QUIET,
    )
    records = records_of(folder)
    assert [r["phase"] for r in records] == ["prune-1", "prune"]
    for r in records:
        assert 0.09 < r["budget"] <= 0.1
    assert records[1]["density"] < records[0]["density"]


def test_synops_shares_per_round() -> None:
    weights = WeightPruningConfig(synops=0.2, rounds=2)
    assert [target_of(weights, i)["synops_fraction"] for i in range(2)] == pytest.approx([0.3, 0.2])


def test_no_round_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight_pruning\.rounds: 0 is not possible"):
        WeightPruningConfig(rounds=0)


def test_a_silent_network_and_another_architecture_are_refused(trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "silent.safetensors"
    model, architecture = load_checkpoint(trained / "checkpoints" / "train.safetensors")
    for p in model.features.parameters():
        p.detach().zero_()
    save_checkpoint(checkpoint, model, architecture)
    with pytest.raises(UserError, match="no neuron spiked on the calibration examples"):
        prune(checkpoint, {"name": "silent"}, console=QUIET)
    with pytest.raises(UserError, match=r"neuron\.theta is 1\.0, not 2\.0"):
        prune(trained, {"model.theta": "2", "name": "other"}, console=QUIET)


def test_the_dense_network_is_the_same_in_both_runs(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    folder = prune(
        trained / "checkpoints" / "train.safetensors",
        {"name": "b", "weight_pruning.retrain_epochs": "0"},
        console=QUIET,
    )
    (record,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert record["dense_accuracy"] == records[-1]["test_accuracy"]


def test_a_larger_budget_keeps_fewer_weights(trained: Path) -> None:
    kept = []
    for i, budget in enumerate(("0.05", "0.3")):
        folder = prune(
            trained,
            {"weight_pruning.budget": budget, "weight_pruning.retrain_epochs": "0", "name": f"budget{i}"},
            console=QUIET,
        )
        kept.append(Masks.load(folder / "masks.safetensors"))
        record = json.loads((folder / "metrics.jsonl").read_text())
        assert 0 < record["budget"] <= float(budget)
    assert kept[1].density < kept[0].density
    assert kept[1] & kept[0] == kept[1]


def test_unknown_layers_and_unfinished_runs_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"weight_pruning\.exclude: 'head' is not a layer; choose from features"
    ):
        prune(trained, {"weight_pruning.exclude": "[head]", "name": "c"}, console=QUIET)
    with pytest.raises(UserError, match="is not a run"):
        prune(tmp_path, {}, console=QUIET)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is in no run's folder"):
        prune(tmp_path / "x.safetensors", {}, console=QUIET)
