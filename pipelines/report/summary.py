"""Runs condensed to the rows of their tables, one by one and over seeds, and these in the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.load import values_of
from pipelines.console import table
from pipelines.runs.run_folder import read_config, read_metrics, read_provenance
from pipelines.storage.atomic import write_json
from pipelines.storage.paths import below
from pipelines.storage.sync import named
from pipelines.training.evaluation import FIGURE_HEADINGS, figure_cells

TITLES = {
    "baseline": "full data",
    "train": "data pruned",
    "prune": "weights pruned",
    "retrain": "retrained",
}
BRACKETS = "in brackets: 95 % t-interval of the mean difference, paired by seed"
FIGURES = ("test_accuracy", "val_accuracy", "examples", "seconds", "density", "synops")
"""Of a phase's summary, shown over the seeds."""


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

    def records_of(self, phase: str) -> list[dict[str, Any]]:
        """The records of a phase's epochs."""
        return [r for r in self.records if r["phase"] == phase]


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
    """Write ``report.json`` into the run's folder: what its table says, with command, commit and versions;
    its path."""
    path = run.folder / "report.json"
    told = read_provenance(run.folder)
    phases = [asdict(p) for p in run.phases]
    write_json(path, {"run": run.config.name, "about": told, "phases": phases})
    return path


def different_settings(configs: Sequence[Config]) -> list[tuple[str, tuple[str, ...]]]:
    """Fields in which configs differ, by dotted path, with every config's value as text."""
    flat = [values_of(config) for config in configs]
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
        scored=sum(r.get("rescored", 0) for r in records),
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


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


COLUMNS: dict[str, Callable[[PhaseSummary], str]] = {
    "test accuracy": lambda p: _shown(p.test_accuracy, ".2%"),
    "validation accuracy": lambda p: _shown(p.val_accuracy, ".2%"),
    "examples processed": lambda p: _shown(p.examples or None, ","),
    "training seconds": lambda p: _shown(p.seconds if p.examples else None, ".1f"),
    "density": lambda p: _shown(p.density, ".1%"),
    "SynOps per inference": lambda p: _shown(p.synops, ",.0f"),
}
"""What the tables of phases say of each, beside its title."""


def phase_rows(runs: Sequence[RunSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row per phase of each run, after its run's name where there are several.

    Without validation in any of them its column is left out.
    """
    shown = dict(COLUMNS)
    if all(p.val_accuracy is None for run in runs for p in run.phases):
        del shown["validation accuracy"]
    rows = [
        (run.config.name, p.title, *(cell(p) for cell in shown.values())) for run in runs for p in run.phases
    ]
    if len(runs) > 1:
        return ("run", "phase", *shown), rows
    return ("", *shown), [row[1:] for row in rows]


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


def over_seeds(folders: Sequence[Path]) -> dict[str, Any]:
    """Figures of every phase over runs that differ in their seed, for JSON.

    ``phases`` have ``values`` (in the runs' order), ``mean`` and ``sd`` (of a sample) of each figure;
    ``differences`` have those of each later phase's test accuracy less the first phase's of the same seed,
    with the 95 % t-interval of their mean (``low``, ``high``).
    """
    runs = [summarise(folder) for folder in folders]
    first = runs[0].phases[0].phase
    return {
        "runs": [run.config.name for run in runs],
        "seeds": [run.config.seed for run in runs],
        "phases": [_over_phase(runs, p.phase, p.title) for p in runs[0].phases],
        "differences": [_difference(runs, p.phase, first) for p in runs[0].phases[1:]],
    }


def t_quantile(df: int, share: float = 0.95) -> float:
    """The t below which ``share`` of Student's distribution lies in absolute value."""
    theta = np.linspace(0, np.pi / 2, 100_001)  # t = sqrt(df) tan(theta) has a density of cos^(df - 1)
    density = np.cos(theta) ** (df - 1)
    within = np.cumsum(density[1:] + density[:-1])
    return sqrt(df) * float(np.tan(np.interp(share, within / within[-1], theta[1:])))


def write_seeds(found: dict[str, Any], config: Config) -> Path:
    """Write ``NAME-seeds.json`` beside the runs; its path."""
    path = Path(below(config.storage, f"{config.name}-seeds.json"))
    write_json(path, found)
    return path


def print_seeds(found: dict[str, Any], name: str, console: Console) -> None:
    """A row per phase: mean and sd, and what differs from the first phase."""
    title = f"{name} over {len(found['seeds'])} seeds: mean ± sd"
    console.print(table(title, *_seeds_rows(found)))
    if found["differences"]:
        console.print(BRACKETS, highlight=False)


def _seeds_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts per phase."""
    phases = found["phases"]
    shown = [f for f in FIGURES if any(f in p for p in phases)]
    headings = ["", *(f.replace("_", " ").replace("val ", "validation ") for f in shown)]
    rows = [[p["title"], *(_text(f, p[f]) if f in p else "-" for f in shown)] for p in phases]
    if found["differences"]:
        points = [[f"{100 * d[x]:+.2f}" for x in ("mean", "low", "high")] for d in found["differences"]]
        column = ["-", *(f"{middle} [{low}, {high}]" for middle, low, high in points)]
        headings.append(f"points from {phases[0]['title']}")
        rows = [[*row, cell] for row, cell in zip(rows, column, strict=True)]
    return headings, rows


def _over_phase(runs: Sequence[RunSummary], phase: str, title: str) -> dict[str, Any]:
    told: dict[str, Any] = {"phase": phase, "title": title}
    for figure in FIGURES:
        values = _values(runs, phase, figure)
        if None not in values:
            told[figure] = _spread(values)
    return told


def _difference(runs: Sequence[RunSummary], phase: str, first: str) -> dict[str, Any]:
    pairs = zip(_values(runs, phase, "test_accuracy"), _values(runs, first, "test_accuracy"), strict=True)
    values = [a - b for a, b in pairs]
    half = t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    interval = {"low": mean(values) - half, "high": mean(values) + half}
    return {"phase": phase, "less": first, **_spread(values), **interval}


def _spread(values: list[float]) -> dict[str, Any]:
    return {"values": values, "mean": mean(values), "sd": stdev(values)}


def _values(runs: Sequence[RunSummary], phase: str, figure: str) -> list[Any]:
    return [getattr(run.of(phase), figure) for run in runs]


def _text(figure: str, of: dict[str, Any]) -> str:
    if figure in ("test_accuracy", "val_accuracy", "density"):
        return f"{of['mean']:.2%} ± {100 * of['sd']:.2f}"
    digits = 1 if figure == "seconds" else 0
    return f"{of['mean']:,.{digits}f} ± {of['sd']:,.{digits}f}"
