"""The verbs of runs: train, run, prune, score and search, and what is made of them."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.load import dump_config, load_config, load_tree
from pipelines.config.parser import is_null
from pipelines.config.schema import SearchTree
from pipelines.console import messages, results, write
from pipelines.storage.atomic import check_storage, well_formed
from pipelines.storage.paths import below, parent, uri_of
from pipelines.storage.sync import local_copy, named, upload_changes

if TYPE_CHECKING:
    from pipelines.report.summary import RunSummary


@dataclass(kw_only=True)
class RunCommand:
    """Options of ``train`` and ``run``; every config field can be set here by its path."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with any part of the config; the defaults fill the rest."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run of that name where it stopped."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the whole config as YAML, as file and options give it, and do nothing else."""
    seeds: int | None = None
    """Run the config over so many seeds, its own and those after it, as runs NAME-seed-0, ...; what is
    there already goes on where it stopped."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


@dataclass(kw_only=True)
class PruneCommand:
    """Options of ``prune``."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a checkpoint file in one (checkpoints/train.safetensors)."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the pruning run where it stopped."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the new run's whole config as YAML and do nothing else."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the source run's, and what is set here; the new run is named SOURCE-pruned."""


@dataclass(kw_only=True)
class ScoreCommand:
    """Options of ``score``."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder (its config and trained network are used), a checkpoint in one, or a YAML config."""
    output: Path
    """Parquet file to write: id and one column per score."""
    checkpoint: Path | None = None
    """The network's file; a run's trained network when not given."""
    scores: tuple[str, ...] = ("sadp",)
    """Scores: sadp, el2n, loss, margin, entropy."""
    split: str | None = None
    """Prefix of the files to score; the training split when not given."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


@dataclass(kw_only=True)
class SearchCommand:
    """Options of ``search``; every config field can be set here by its path."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with any part of the config, and the search below `search:`."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the search of that name where it stopped."""
    plot: Path | None = None
    """Folder of a search whose table, configs and report are made again; nothing runs."""
    settings: Annotated[SearchTree, tyro.conf.arg(name="")] = field(default_factory=SearchTree)
    """Config."""


NOT_COMPARED = (
    "cluster.address",
    *(f"weight_pruning.{name}" for name in ("sparsity", "budget", "synops", "criterion", "retrain_epochs")),
)
"""Fields, with short options, that another verb would take."""


def train(o: RunCommand, overrides: dict[str, Any]) -> None:
    """Train with data pruning; the run's folder holds checkpoints, metrics and a report."""
    _run_phases("train", o, overrides)


def run(o: RunCommand, overrides: dict[str, Any]) -> None:
    """Train with data pruning, prune weights, retrain, and report."""
    _run_phases("run", o, overrides)


def _run_phases(verb: Literal["run", "train"], o: RunCommand, overrides: dict[str, Any]) -> None:
    config = load_config(o.config, overrides)
    if o.print_config:
        write(dump_config(config), end="")
    elif o.seeds is not None:
        _run_seeds(verb, config, o.seeds)
    else:
        from pipelines.runs.run import run

        print_run(run(config, verb, resume=o.resume))


def _run_seeds(verb: Literal["run", "train"], config: Config, seeds: int) -> None:
    """Run a config with the seeds from its own on, one after the other, or what is left of them."""
    from pipelines.report.summary import over_seeds, print_seeds, write_seeds
    from pipelines.runs.run import run

    if seeds < 2:
        raise UserError("--seeds", f"{seeds} is not possible; it must be at least 2, to tell a spread")
    folders = []
    for seed in range(config.seed, config.seed + seeds):
        one = replace(config, seed=seed, name=f"{config.name}-seed-{seed}")
        folders.append(run(one, verb, resume=True))
    for folder in folders:
        write_report(folder)
    found = over_seeds(folders)
    print_seeds(found, config.name, results(width=140))
    write(f"values: {named(write_seeds(found, config))}")


def prune(o: PruneCommand, overrides: dict[str, Any]) -> None:
    """Prune the weights of a trained network under a budget and retrain what is left."""
    from pipelines.runs.run import prune as prune_run
    from pipelines.runs.run import prune_config

    if o.print_config:
        write(dump_config(prune_config(o.source, overrides)), end="")
    else:
        print_run(prune_run(o.source, overrides, resume=o.resume))


def score(o: ScoreCommand, overrides: dict[str, Any]) -> None:
    """Score every example of a dataset by a trained network: a ranking of the data, as Parquet."""
    from pipelines.runs.run import network_of
    from pipelines.scoring.rank import rank

    path, checkpoint = network_of(o.source, o.checkpoint)
    config = load_config(path, overrides)
    done = rank(config, checkpoint, o.output, names=o.scores, split=o.split)
    write(f"{named(o.output)}: {done:,} examples")


def search(o: SearchCommand, overrides: dict[str, Any]) -> int:
    """Search a config's fields for the best trade-offs between accuracy, cost, density and SynOps."""
    from pipelines.search.results import print_results, read_results, write_results

    if o.plot is not None and (o.config is not None or overrides or o.resume):
        raise UserError("--plot", "redraws a search as it is; leave out the config, --resume and settings")
    if o.plot is not None:
        found = read_results(o.plot)
        write_results(found)
    else:
        from pipelines.search.study import search

        tree = load_tree(SearchTree, o.config, overrides)
        found = read_results(search(tree, resume=o.resume))
    print_results(found, results())
    return 0 if found.finished else 1


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
    """Config: the source run's, and what is set here; this process compares."""


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

    for name in NOT_COMPARED:
        if not is_null(overrides.get(name)):
            raise UserError(
                name, "is not used by compare, which has --criteria and --levels and this process"
            )
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
