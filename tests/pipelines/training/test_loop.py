"""The training loop in one plain process: what it scores when, and where it goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from pipelines.config.load import dump_config
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_config
from pipelines.training.checkpoint import latest_checkpoint
from tests.pipelines.training.conftest import QUIET, metrics, small

LOCAL = {
    "cluster.engine": "local",
    "cluster.workers": "1",
    "train.epochs": "6",
    "weight_pruning.retrain_epochs": "1",
}


def trained(folder: Path, digits: Path, **overrides: str) -> list[dict[str, Any]]:
    config = small(folder, digits, **{**LOCAL, **{k.replace("__", "."): v for k, v in overrides.items()}})
    return metrics(run(config, "train", console=QUIET))


def test_scores_are_fresh_where_a_pass_precedes_every_epoch(tmp_path: Path, digits: Path) -> None:
    records = trained(tmp_path, digits, data_pruning__rescore_every="1")
    assert [r["rescored"] for r in records] == [0, 1437, 1437, 1437, 1437, 0]
    assert [r["mean_score_age"] for r in records[1:5]] == [0.0] * 4


def test_scores_met_in_training_reach_the_next_draw(tmp_path: Path, digits: Path) -> None:
    records = trained(tmp_path, digits, data_pruning__rescore_every="0")
    assert sum(r["rescored"] for r in records) == 0
    assert records[1]["mean_score_age"] == 0.5  # all trained in the full epoch before
    assert records[2]["mean_score_age"] == pytest.approx(0.5 + 0.5, abs=0.01)  # half of them again since
    assert all(r["max_weight"] > 1.5 for r in records[2:5])  # the draw follows them


@pytest.mark.parametrize(
    "policy",
    [
        *("full", "random", "static", "infobatch", "infobatch_matched", "el2n", "ucb", "loss"),
        *("seta", "seta_matched", "repb", "repb_matched", "orderdp"),
    ],
)
def test_every_policy_trains(policy: str, tmp_path: Path, digits: Path) -> None:
    epochs = "1" if policy == "full" else "3"  # no room for the warm-up and anneal epochs of the others
    records = trained(tmp_path, digits, data_pruning__policy=policy, train__epochs=epochs)
    assert records[-1]["test_accuracy"] > 0.8
    if policy == "full":
        assert records[0]["examples"] == 1437
    elif policy in ("infobatch", "repb"):
        assert 718 < records[1]["examples"] < 1437
    elif policy == "seta":
        assert 0 < records[1]["examples"] < 718 == records[2]["examples"]  # partial annealing
    else:
        assert records[1]["examples"] == 718


@pytest.mark.parametrize("policy", ["sadp", "seta", "static"])
def test_one_epoch_is_long_enough(policy: str, tmp_path: Path, digits: Path) -> None:
    """Of warm-up and anneal epochs as many as fit."""
    settings = {
        "data_pruning__policy": policy,
        "data_pruning__warmup_epochs": "5",
        "data_pruning__score_from": "7",
    }
    (record,) = trained(tmp_path, digits, train__epochs="1", **settings)
    assert record["examples"] == 1437


def test_more_epochs_for_a_finished_run(tmp_path: Path, digits: Path) -> None:
    """Where the learning rate has not come down they are those of a longer run."""
    steady = {"train__schedule": "constant", "train__warmup": "0", "data_pruning__policy": "full"}
    longer = trained(tmp_path, digits, name="longer", train__epochs="4", **steady)
    trained(tmp_path, digits, name="more", train__epochs="2", **steady)
    config = small(
        tmp_path,
        digits,
        **{**LOCAL, "name": "more", "train.epochs": "4"},
        **{k.replace("__", "."): v for k, v in steady.items()},
    )
    folder = run(config, "train", resume=True, console=QUIET)
    records = metrics(folder)
    end = records[1].keys() - longer[1].keys()  # what the last epoch of a phase measures besides
    assert end == {"activity", "theoretical_speedup", "equal_compute_ratio"}
    assert [{k: v for k, v in r.items() if k not in end or i == 3} for i, r in enumerate(records)] == longer
    assert read_config(folder).train == config.train


@pytest.mark.parametrize(
    ("settings", "phase", "told"),
    [
        ({}, "train", "its cosine schedule has brought the learning rate down for 2 epochs"),
        ({"train.schedule": "constant"}, "prune", "its network has been pruned since"),
        (
            {"train.schedule": "constant", "baseline": "full"},
            "train",
            "its baseline was trained for 2 epochs",
        ),
        (
            {"train.schedule": "constant", "train.warmup": "0.5"},
            "train",
            "the learning rate would warm up again until epoch 3",
        ),
    ],
)
def test_more_epochs_are_refused_where_the_schedule_has_ended(
    settings: dict[str, str], phase: str, told: str, tmp_path: Path, digits: Path
) -> None:
    short = small(tmp_path, digits, **{**LOCAL, "train.epochs": "2", **settings})
    (folder := tmp_path / "run").mkdir()
    (folder / "config.yaml").write_text(dump_config(short))
    lines = [json.dumps({"phase": name, "epoch": i}) for i, name in enumerate(("train", phase))]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    more = small(tmp_path, digits, **{**LOCAL, "train.epochs": "6", **settings})
    with pytest.raises(UserError, match=rf"train\.epochs: .*{told}"):
        run(more, "train", resume=True, console=QUIET)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model__T": "2"},
        {"train__max_grad_norm": "0.5"},
        {"train__loss": "tet"},
        {"train__optimizer": "adamw", "train__lr": "0.005"},
        {"model__reset": "soft"},
        {"model__learn_beta": "true"},
        {"train__label_smoothing": "0.1"},
        {"data_pruning__design": "poisson"},
    ],
)
def test_settings_reach_the_training(overrides: dict[str, str], tmp_path: Path, digits: Path) -> None:
    plain = trained(tmp_path / "plain", digits, train__epochs="3")
    changed = trained(tmp_path / "changed", digits, train__epochs="3", **overrides)
    assert changed[-1]["test_accuracy"] > 0.8
    assert [r["train_loss"] for r in changed] != [r["train_loss"] for r in plain]


@pytest.mark.parametrize("options", [{}, {"data_pruning.policy": "repb"}])
def test_resuming_from_every_epoch_ends_the_same(
    options: dict[str, str], tmp_path: Path, digits: Path
) -> None:
    config = small(tmp_path, digits, **{**LOCAL, "name": "whole", **options})
    whole = run(config, console=QUIET)
    checkpoints = sorted(p.name for p in (whole / "checkpoints").iterdir() if p.is_dir())
    assert len(checkpoints) == 2
    expected = metrics(whole)
    shutil.rmtree(whole / "checkpoints" / checkpoints[-1])  # as if killed before the last one
    assert metrics(run(config, resume=True, console=QUIET)) == expected


@pytest.mark.parametrize("reading", ["memory", "shards"])
def test_an_epoch_that_the_poisson_design_leaves_empty_takes_no_step(
    reading: str, tmp_path: Path, digits: Path
) -> None:
    records = trained(
        tmp_path,
        digits,
        data__reading=reading,
        data__train_rows="8",
        data__test_rows="16",
        data_pruning__ratio="0.9",
        data_pruning__design="poisson",
        train__epochs="12",
        train__bn_examples="8",
    )
    empty = [r for r in records if r["examples"] == 0]
    assert empty
    assert all(r["train_loss"] == 0 for r in empty)
    assert records[-1]["examples"] == 8


def test_diverging_training_names_the_step_and_keeps_what_was_whole(tmp_path: Path, digits: Path) -> None:
    calm = {
        **LOCAL,
        "train.epochs": "2",
        "data_pruning.warmup_epochs": "1",
        "data_pruning.anneal_epochs": "0",
    }
    steps = {"train.schedule": "constant", "train.warmup": "0", "weight_pruning.retrain_lr": "1e30"}
    config = small(tmp_path, digits, **calm, **steps, **{"train.lr": "0.01"})
    with pytest.raises(
        UserError,
        match=r"weight_pruning\.retrain_lr: training diverged: .* in epoch \d of phase retrain; lower",
    ):
        run(config, "run", console=QUIET)
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "01-prune-0000"  # type: ignore[union-attr]


@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_too_large_a_rate_is_named(lr: str, tmp_path: Path, digits: Path) -> None:
    overrides = {**LOCAL, "train.lr": lr, "train.warmup": "0", "train.schedule": "constant"}
    with pytest.raises(
        UserError, match=r"train\.lr: training diverged: .* in epoch \d of phase train; lower"
    ):
        run(small(tmp_path, digits, **overrides), "train", console=QUIET)
