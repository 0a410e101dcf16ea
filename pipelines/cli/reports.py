"""The verbs that show and hand on what runs have come to: report, compare, evaluate, export, bench."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.config import Config
from pipelines.console import messages, results
from pipelines.errors import UserError
from pipelines.storage.atomic import check_storage, well_formed
from pipelines.storage.paths import below, parent, uri_of
from pipelines.storage.sync import local_copy, upload_changes

if TYPE_CHECKING:
    from pipelines.report.summary import RunSummary


@dataclass(kw_only=True)
class CompareCommand:
    """Options of ``compare``."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a checkpoint file in one (checkpoints/train.safetensors)."""
    criteria: tuple[str, ...] = ("slamp", "lamp", "magnitude")
    """Pruning criteria, as weight_pruning.criterion."""
    levels: tuple[float, ...] = ()
    """Sparsities (0.8 0.9 0.95 when not given); for synops, shares to keep (0.5 0.2 0.1)."""
    objective: Literal["weights", "synops"] = "weights"
    """What to save: surviving weights, or synaptic operations."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the source run's, and what is set here; without cluster.address this process compares."""


@dataclass(kw_only=True)
class EvaluateCommand:
    """Options of ``evaluate``."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder."""
    checkpoint: Path | None = None
    """The network's file (checkpoints/train.safetensors); the run's last network when not given."""
    split: Literal["test", "val", "train"] = "test"
    """As the run's config names them; --data.test-split PREFIX takes other files of the dataset."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the run's, and what is set here."""


@dataclass(kw_only=True)
class ExportCommand:
    """Options of ``export``."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder."""
    output: Path
    """Folder to write; new or empty."""
    nir: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the network as a graph of the Neuromorphic Intermediate Representation."""


@dataclass(kw_only=True)
class ReportCommand:
    """Options of ``report``."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A run's folder; several are shown side by side."""
    output: Path | None = None
    """HTML file to write; report.html in the run's folder, comparison.html beside the first of several."""


@dataclass(kw_only=True)
class BenchCommand:
    """Options of ``bench``."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Benchmarks, by the name of their file in benchmarks/; the suite of key ratios when none is given."""


def compare(o: CompareCommand, overrides: dict[str, Any]) -> None:
    """Prune a trained network by several criteria at several levels and show them side by side."""
    from pipelines.report import compare as comparing
    from pipelines.runs.run import checkpoint_of

    source = local_copy(o.source)
    folder = checkpoint_of(source)[1]
    check_storage(folder)
    done = comparing.compare(
        source, criteria=o.criteria, levels=o.levels, objective=o.objective, overrides=overrides
    )
    values, page = comparing.write_comparison(done, folder)
    upload_changes(folder)
    comparing.print_comparison(done, values, page, results(width=112))


def evaluate(o: EvaluateCommand, overrides: dict[str, Any]) -> None:
    """Measure a run's last network: accuracy, loss, firing rates, SynOps; in this process."""
    from pipelines.report.network import evaluate_run, print_evaluated

    with messages().status("evaluating"):
        found = evaluate_run(local_copy(o.run), checkpoint=o.checkpoint, split=o.split, overrides=overrides)
    print_evaluated(found, results())


def export(o: ExportCommand) -> None:
    """Write a run's last network with its masks and a table per layer, and as a NIR graph on demand."""
    from pipelines.report.network import export as export_run
    from pipelines.report.network import print_export

    with messages().status("exporting"):
        done = export_run(local_copy(o.run), o.output, nir=o.nir)
    print_export(done, results())


def report(o: ReportCommand) -> None:
    """Tables in the terminal and one HTML file, of a run or of several side by side."""
    if not o.runs:
        raise UserError("report", "which run? Name its folder, or several")

    if len(o.runs) == 1:
        print_run(local_copy(o.runs[0]), o.output)
        return
    from pipelines.report.page import write_comparison
    from pipelines.report.summary import print_runs, summarise

    folders = [local_copy(folder) for folder in o.runs]
    beside = below(parent(uri_of(o.runs[0]) or o.runs[0].absolute()), "comparison.html")
    with well_formed(", ".join(f"{folder}/metrics.jsonl" for folder in folders)):
        summaries = [summarise(folder) for folder in folders]
        page = write_comparison(summaries, o.output or Path(beside))
        print_runs(summaries, page, results(width=140))


def bench(o: BenchCommand) -> int:
    """Measure speed on this machine: key ratios of ours over the alternative, as JSON and Markdown."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "__main__.py").exists():
        raise UserError("bench", "needs a clone of the repository: installed packages hold no benchmarks")
    return subprocess.call([sys.executable, "-m", "benchmarks", *o.names], cwd=root)


def print_run(folder: Path, output: Path | None = None) -> None:
    """A run's report: tables in the terminal and one HTML file."""
    from pipelines.report.summary import print_runs

    with well_formed(folder / "metrics.jsonl"):
        summary, page = write_report(folder, output)
        print_runs([summary], page, results())


def write_report(folder: Path, output: Path | None = None) -> "tuple[RunSummary, Path]":
    """A run's report as files; its summary, and where the page lies."""
    from pipelines.report.page import write_page
    from pipelines.report.summary import summarise, write_summary

    summary = summarise(folder)
    page = write_page(summary, output)
    write_summary(summary)
    upload_changes(folder)
    return summary, page
