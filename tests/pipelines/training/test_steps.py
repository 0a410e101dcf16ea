"""Precision and accumulation: what they change, and what they may not."""

import shutil
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config import ModelConfig, TrainConfig
from pipelines.data.dataset import describe
from pipelines.data.scan import read_split
from pipelines.networks import is_channels_last, make_network
from pipelines.runs.run import run
from pipelines.training.steps import learning_rate, make_optimizer
from snn.interchange import load_checkpoint
from tests.pipelines.training.conftest import QUIET, metrics, small
from tests.pipelines.training.test_loop import LOCAL, trained


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, digits: Path) -> None:
    """Without batch norm, whose statistics are those of a part, four parts of 16 are a batch of 64."""
    (tmp_path / "plain.py").write_text(
        "import functools\nfrom snn.models.mlp import mlp\n\n\n"
        "def net(*, input_shape, num_classes, neuron):\n"
        "    return mlp(input_shape=input_shape, num_classes=num_classes, neuron=neuron, norm=False)\n"
    )
    settings = {"model__name": "plain:net", "code": str(tmp_path), "model__hidden": "null"}
    # One step of a whole epoch: after it rounding may move spikes, and with them everything.
    settings |= {"train__epochs": "2", "train__batch_size": "1437", "train__lr": "0.01"}
    one = trained(tmp_path / "one", digits, **settings)
    parts = trained(tmp_path / "parts", digits, **settings, train__grad_accum_steps="4")
    assert parts[0]["train_loss"] == pytest.approx(one[0]["train_loss"], rel=1e-6)
    a, b = (
        load_checkpoint(tmp_path / n / "run" / "checkpoints" / "train.safetensors")[0]
        for n in ("one", "parts")
    )
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", ["pack", "recompute"])
def test_what_is_kept_of_activations_changes_no_metric(how: str, tmp_path: Path, digits: Path) -> None:
    settings = {"model__name": "convnet", "model__channels": "[8, 8]", "model__hidden": "[16]"}
    settings |= {"train__epochs": "3", "data_pruning__rescore_every": "0"}  # in-train scores too
    plain, other = (
        trained(tmp_path / name, digits, **settings, train__activations=name) for name in ("keep", how)
    )
    for a, b in zip(plain, other, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
        assert (a["test_accuracy"], a["examples"]) == (b["test_accuracy"], b["examples"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_scores(precision: str, tmp_path: Path, digits: Path) -> None:
    settings = {
        "train__epochs": "3",
        "data_pruning__rescore_every": "0",
    }  # in-train scores from the half pass
    plain = trained(tmp_path / "plain", digits, **settings)
    half = trained(tmp_path / "half", digits, **settings, train__precision=precision)
    assert half[-1]["test_accuracy"] > plain[-1]["test_accuracy"] - 0.04
    assert half[0]["train_loss"] == pytest.approx(plain[0]["train_loss"], rel=0.05)
    assert half[0]["train_loss"] != plain[0]["train_loss"]
    assert half[1]["max_weight"] > 1.5


def test_resuming_in_mid_phase_restores_the_loss_scale(tmp_path: Path, digits: Path) -> None:
    settings = {**LOCAL, "train.grad_accum_steps": "2", "train.max_grad_norm": "2", "train.precision": "fp16"}
    config = small(tmp_path, digits, **settings, name="whole")
    whole = run(config, "train", console=QUIET)
    expected = metrics(whole)
    newest = sorted(p for p in (whole / "checkpoints").iterdir() if p.is_dir())[-1]
    assert newest.name == "00-train-0005"
    shutil.rmtree(newest)
    assert metrics(run(config, "train", resume=True, console=QUIET)) == expected


def test_channels_last_is_the_same_network_in_another_layout(digits: Path) -> None:
    info = describe(read_split(digits, "train"), read_split(digits, "test"), str(digits))
    settings: dict[str, Any] = {"name": "convnet", "channels": (8, 16), "hidden": (32,)}
    plain = make_network(ModelConfig(**settings), info, 0)
    last = make_network(ModelConfig(**settings, channels_last=True), info, 0)
    assert is_channels_last(last.state_dict())
    assert not is_channels_last(plain.state_dict())
    x_TB = torch.rand(4, 3, *info.input_shape)
    torch.testing.assert_close(plain(x_TB), last(x_TB), rtol=1e-4, atol=1e-5)


def test_channels_last_trains_and_its_checkpoint_loads_anywhere(tmp_path: Path, digits: Path) -> None:
    settings = {
        "model__name": "convnet",
        "model__channels": "[8, 16]",
        "model__hidden": "[32]",
        "train__epochs": "2",
    }
    records = trained(tmp_path, digits, **settings, model__channels_last="true")
    assert records[-1]["test_accuracy"] > 0.6
    model, _ = load_checkpoint(tmp_path / "run" / "checkpoints" / "train.safetensors")
    assert not is_channels_last(model.state_dict())


def test_cosine_with_warmup() -> None:
    train = TrainConfig(lr=0.4, warmup=0.1)
    assert learning_rate(train, 0.0) == 0
    assert learning_rate(train, 0.05) == pytest.approx(0.2)
    assert learning_rate(train, 0.1) == pytest.approx(0.4)
    assert learning_rate(train, 0.55) == pytest.approx(0.4 * (1 + cos(pi / 2)) / 2)
    assert learning_rate(train, 1.0) == pytest.approx(0, abs=1e-12)


def test_constant_without_warmup() -> None:
    train = TrainConfig(lr=0.4, warmup=0, schedule="constant")
    assert [learning_rate(train, f) for f in (0, 0.5, 1)] == [0.4] * 3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_take_their_settings(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([parameter], TrainConfig(optimizer=name, lr=0.3, weight_decay=0.1))  # type: ignore[arg-type]
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
