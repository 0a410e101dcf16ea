"""A run's records condensed to the rows of its table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.runs.provenance import read_provenance
from pipelines.runs.run_folder import flat_config, read_config, read_metrics
from pipelines.storage.atomic import write_json

TITLES = {
    "baseline": "full data",
    "train": "data pruned",
    "prune": "weights pruned",
    "retrain": "retrained",
}


@dataclass(frozen=True, kw_only=True)
class PhaseSummary:
    """One phase of a run at its end."""

    phase: str
    title: str
    test_accuracy: float | None
    """In [0, 1]; ``None`` where validation is evaluated instead and the phase has not ended."""
    val_accuracy: float | None
    """In [0, 1]; ``None`` without validation."""
    examples: int
    """Examples processed in training, summed over epochs."""
    scored: int
    """Examples scored in passes of their own, summed over epochs."""
    seconds: float
    """Training seconds: scoring, selecting and optimiser steps, without evaluation."""
    density: float | None
    """Surviving weights / all weights."""
    synops: float | None
    """Synaptic operations per inference."""
    figures: dict[str, float] | None = None
    """Of a pruned network (`pipelines.training.pruned_figures`), at the phase's end."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run for tables and plots."""

    folder: Path
    config: Config
    records: list[dict[str, Any]]
    phases: list[PhaseSummary]

    def of(self, phase: str) -> PhaseSummary | None:
        """The summary of a phase, if the run has finished any of it."""
        return next((p for p in self.phases if p.phase == phase), None)


def summarise(folder: Path) -> RunSummary:
    """Read a run's folder.

    Raises:
        UserError: not a run, or one that has not finished an epoch yet.
    """
    config = read_config(folder)
    records = read_metrics(folder)
    if not records:
        raise UserError(str(folder), "has no finished epoch yet; nothing to report")
    names = list(dict.fromkeys(r["phase"] for r in records))
    return RunSummary(
        folder=folder,
        config=config,
        records=records,
        phases=[_phase(name, [r for r in records if r["phase"] == name], config) for name in names],
    )


def write_summary(run: RunSummary) -> Path:
    """Write ``report.json`` into the run's folder: what its table says, with command, commit and versions.

    Returns:
        its path.
    """
    path = run.folder / "report.json"
    told = read_provenance(run.folder)
    phases = [asdict(p) for p in run.phases]
    write_json(path, {"run": run.config.name, "about": told, "phases": phases})
    return path


def different_settings(configs: Sequence[Config]) -> list[tuple[str, tuple[str, ...]]]:
    """Fields in which configs differ, by dotted path, with every config's value as text."""
    flat = [flat_config(config) for config in configs]
    return [
        (path, tuple(str(f.get(path, "")) for f in flat))
        for path in dict.fromkeys(path for f in flat for path in f)
        if path not in ("name", "storage") and len({str(f.get(path)) for f in flat}) > 1
    ]


def _phase(name: str, records: list[dict[str, Any]], config: Config) -> PhaseSummary:
    last = records[-1]
    activity = last.get("activity") or {}
    return PhaseSummary(
        phase=name,
        title=_title(name, config),
        test_accuracy=last.get("test_accuracy"),
        val_accuracy=last.get("val_accuracy"),
        examples=sum(r.get("examples", 0) for r in records),
        scored=sum(r.get("rescored", 0) + r.get("rescored_ahead", 0) for r in records),
        seconds=sum(_training_seconds(r.get("seconds", {})) for r in records),
        density=activity.get("density"),
        synops=activity.get("synops"),
        figures=last.get("figures"),
    )


def _training_seconds(seconds: dict[str, float]) -> float:
    return sum(seconds.get(part, 0.0) for part in ("score", "select", "train", "norm", "wait"))


def kind_of(phase: str) -> str:
    """baseline, train, prune or retrain, whatever the round."""
    return phase.partition("-")[0]


def _title(name: str, config: Config) -> str:
    examples, weights = config.examples, config.weights
    if name == "train" and examples.policy == "full":
        return TITLES["baseline"]
    if name == "train":
        return f"{_method(examples.policy)} at ratio {examples.ratio:g}"
    if name == "prune":
        return f"{_method(weights.criterion)} at {_target(config)}"
    if name in TITLES:
        return TITLES[name]
    return f"{TITLES[kind_of(name)]}, round {name.rpartition('-')[2]} of {weights.rounds}"


def _method(name: str) -> str:
    return {"sadp": "SADP", "slamp": "SLAMP", "lamp": "LAMP"}.get(name, name)


def _target(config: Config) -> str:
    weights = config.weights
    if weights.budget is not None:
        return f"budget {weights.budget:g}"
    if weights.synops is not None:
        return f"{weights.synops:.0%} of the SynOps"
    return f"{weights.sparsity:.0%} sparsity"
