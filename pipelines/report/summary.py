"""A run's records condensed to the rows of its tables, and these in the terminal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.config import Config
from pipelines.console import table
from pipelines.errors import UserError
from pipelines.runs.run_folder import flat_config, read_config, read_metrics, read_provenance
from pipelines.storage.atomic import write_json
from pipelines.storage.sync import named
from pipelines.training.evaluation import FIGURE_HEADINGS, figure_cells

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
    """Of a pruned network (`pipelines.training.evaluation.pruned_figures`), at the phase's end."""


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
    """Read a run's folder."""
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
    examples, weights = config.data_pruning, config.weight_pruning
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
    weights = config.weight_pruning
    if weights.budget is not None:
        return f"budget {weights.budget:g}"
    if weights.synops is not None:
        return f"{weights.synops:.0%} of the SynOps"
    return f"{weights.sparsity:.0%} sparsity"


def phase_cells(p: PhaseSummary) -> tuple[str, ...]:
    """A phase as text, under `HEADINGS`."""
    return (
        p.title,
        f"{p.test_accuracy:.2%}" if p.test_accuracy is not None else "-",
        f"{p.val_accuracy:.2%}" if p.val_accuracy is not None else "-",
        f"{p.examples:,}" if p.examples else "-",
        f"{p.seconds:.1f}" if p.examples else "-",
        f"{p.density:.1%}" if p.density is not None else "-",
        f"{p.synops:,.0f}" if p.synops is not None else "-",
    )


VALIDATION = "validation accuracy"
HEADINGS = (
    "",
    "test accuracy",
    VALIDATION,
    "examples processed",
    "training seconds",
    "density",
    "SynOps per inference",
)


def phase_rows(runs: Sequence[RunSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row per phase of each run, after its run's name where there are several.

    Without validation in any of them its column is left out.
    """
    validated = any(p.val_accuracy is not None for run in runs for p in run.phases)
    shown = [i for i, heading in enumerate(HEADINGS) if heading != VALIDATION or validated]
    rows = [(run.config.name, phase_cells(p)) for run in runs for p in run.phases]
    several = len(runs) > 1
    return (
        (*(("run", "phase") if several else ("",)), *(HEADINGS[i] for i in shown[1:])),
        [(*((name,) if several else ()), *(cells[i] for i in shown)) for name, cells in rows],
    )


def phase_table(runs: Sequence[RunSummary]) -> Table:
    """One row per run and phase."""
    title = f"run {runs[0].config.name}" if len(runs) == 1 else None
    return table(title, *phase_rows(runs), left=1 if len(runs) == 1 else 2)


def pruned_rows(phases: Sequence[PhaseSummary]) -> list[tuple[str, ...]]:
    """Pruned networks in the field's units, under ``("", *FIGURE_HEADINGS)``."""
    return [(p.title, *figure_cells(p.figures)) for p in phases if p.figures is not None]


def print_runs(runs: Sequence[RunSummary], page: Path, console: Console) -> None:
    """The tables of one run, or of several side by side, and where the page lies."""
    console.print(phase_table(runs))
    if len(runs) == 1 and (rows := pruned_rows(runs[0].phases)):
        console.print(table("pruned network, beside its dense one", ("", *FIGURE_HEADINGS), rows))
    console.print(f"report: {named(page)}", highlight=False, soft_wrap=True)
