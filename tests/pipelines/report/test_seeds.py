"""A config over seeds: its runs are plain runs, and what is told of them is arithmetic."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from pipelines import cli
from pipelines.report.summary import summarise, t_quantile
from pipelines.runs.run_folder import read_config

SMALL = {
    "cluster.engine": "local",
    "cluster.workers": "1",
    "model.hidden": "16",
    "train.epochs": "1",
    "train.bn_examples": "64",
    "weight_pruning.retrain_epochs": "0",
    "weight_pruning.calibration_examples": "50",
    "data.train_rows": "200",
    "baseline": "full",
    "name": "mine",
    "seed": "4",
}


def test_the_quantile_is_students() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for df in (1, 2, 4, 9, 99):
        assert t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-4)


def test_a_config_over_seeds(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SMALL, "storage": str(tmp_path), "data.path": str(digits)}
    words = [word for path, value in settings.items() for word in (f"--{path}", value)]
    assert cli.main(["run", *words, "--seeds", "2"]) == 0
    kept = (tmp_path / "mine-seed-4" / "metrics.jsonl").stat().st_mtime_ns
    assert cli.main(["run", *words, "--seeds", "3"]) == 0  # two are there
    assert (tmp_path / "mine-seed-4" / "metrics.jsonl").stat().st_mtime_ns == kept
    folders = [tmp_path / f"mine-seed-{seed}" for seed in (4, 5, 6)]
    assert all((folder / "report.html").exists() for folder in folders)
    configs = [read_config(folder) for folder in folders]
    assert configs == [replace(configs[0], name=f"mine-seed-{s}", seed=s) for s in (4, 5, 6)]

    stored = json.loads((tmp_path / "mine-seeds.json").read_text())
    assert stored["seeds"] == [4, 5, 6]
    runs = [summarise(folder) for folder in folders]
    phases = {p["phase"]: p for p in stored["phases"]}
    assert list(phases) == ["baseline", "train", "prune"]
    values = {p: [run.of(p).test_accuracy for run in runs] for p in phases}  # type: ignore[union-attr]
    for phase, told in phases.items():
        assert told["test_accuracy"]["values"] == values[phase]
        assert told["test_accuracy"]["mean"] == mean(values[phase])
        assert told["test_accuracy"]["sd"] == stdev(values[phase])
    assert [(d["phase"], d["less"]) for d in stored["differences"]] == [
        ("train", "baseline"),
        ("prune", "baseline"),
    ]
    for d in stored["differences"]:
        apart = [a - b for a, b in zip(values[d["phase"]], values["baseline"], strict=True)]
        assert d["mean"] == mean(apart)
        assert d["high"] - d["mean"] == pytest.approx(4.302653 * stdev(apart) / 3**0.5, rel=1e-4)
        assert d["mean"] - d["low"] == pytest.approx(d["high"] - d["mean"])
    printed = capsys.readouterr().out
    assert "mine over 3 seeds: mean ± sd" in printed
    assert f"{100 * stored['differences'][1]['mean']:+.2f} [" in printed
    assert str(tmp_path / "mine-seeds.json") in printed


def test_one_seed_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--storage", str(tmp_path), "--seeds", "1"]) == 2
    assert "--seeds: 1 is not possible; it must be at least 2" in capsys.readouterr().err
