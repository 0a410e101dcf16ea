"""The ``spikeprune`` command. Imports neither torch nor Ray before a verb needs them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from pipelines import cluster_verbs, data_commands
from pipelines.config import Config
from pipelines.config_io import load_config, split_overrides
from pipelines.data_commands import FramesCommand, IngestCommand, ShowCommand, VerifyCommand
from pipelines.errors import UserError
from pipelines.interrupts import TERMINATED, end_on_sigterm, was_terminated

if TYPE_CHECKING:
    from rich.console import Console

C = TypeVar("C")

USAGE = """usage: spikeprune VERB [options]

Train spiking neural networks on less data, and keep fewer synapses.

verbs:
  data ingest    write a dataset as Parquet
  data verify    hold a dataset against its manifest
  data frames    write recordings of events as frames
  data show      statistics and a contact sheet of a dataset
  data select    draw a subset of a dataset with its weights, to train elsewhere
  score          score every example of a dataset by a trained network
  train          train with data pruning
  prune          prune a trained network's weights and retrain it
  compare        prune a trained network by several criteria, side by side
  run            train, prune, retrain, report: the whole story of one config
  search         search the config's fields for the best trade-offs
  export         write a run's network for other software
  report         tables and one HTML file of a run, or of several side by side
  bench          measure speed on this machine, ours beside the alternative
  submit         run a command on a cluster as a job
  doctor         check this machine or a cluster for what usually goes wrong
  cluster manifest  a cluster's description for KubeRay, ray-up, SLURM or Docker
  jobs list      the jobs of a cluster
  jobs status    how a job is doing
  jobs logs      what a job has printed; with --follow until it ends
  jobs stop      end a job

spikeprune VERB --help explains a verb and every field of its config.
"""


@dataclass(kw_only=True)
class RunCommand:
    """Options of the verbs that take a config; every config field can be set here by its path."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with any part of the config; the defaults fill the rest."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run of that name where it stopped."""
    address: str | None = None
    """A running Ray cluster (short for --cluster.address)."""
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write a chrome trace of some steps and a table of where the time went (profile/ in the run)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


@dataclass(kw_only=True)
class PruneCommand:
    """Options of ``prune``."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a checkpoint file in one (checkpoints/train.safetensors)."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the pruning run where it stopped."""
    address: str | None = None
    """A running Ray cluster (short for --cluster.address)."""
    sparsity: float | None = None
    """Share of weights to remove (short for --weights.sparsity)."""
    budget: float | None = None
    """Distortion budget (short for --weights.budget)."""
    synops: float | None = None
    """Share of synaptic operations to keep (short for --weights.synops)."""
    criterion: str | None = None
    """Pruning criterion (short for --weights.criterion)."""
    no_retrain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Stop after pruning."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the source run's, and what is set here; the new run is named SOURCE-pruned."""


@dataclass(kw_only=True)
class CompareCommand:
    """Options of ``compare``."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a checkpoint file in one (checkpoints/train.safetensors)."""
    criteria: tuple[str, ...] = ("slamp", "lamp", "magnitude")
    """Pruning criteria, as weights.criterion."""
    levels: tuple[float, ...] = ()
    """Sparsities (0.8 0.9 0.95 when not given); for synops, shares to keep (0.5 0.2 0.1)."""
    objective: Literal["weights", "synops"] = "weights"
    """What to save: surviving weights, or synaptic operations."""
    address: str | None = None
    """A running Ray cluster (short for --cluster.address); without one, this process compares."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the source run's, and what is set here."""


@dataclass(kw_only=True)
class ExportCommand:
    """Options of ``export``."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder."""
    output: Path
    """Folder to write; new or empty."""
    compact: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the network without its dead channels, checked for the same outputs on test examples."""
    nir: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the network as a graph of the Neuromorphic Intermediate Representation."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config: the run's, and what is set here (data.path where the data has moved)."""


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
    address: str | None = None
    """A running Ray cluster (short for --cluster.address)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


@dataclass(kw_only=True)
class SelectCommand:
    """Options of ``data select``."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The dataset."""
    ratio: float
    """Share of the examples to leave out, in [0, 1)."""
    output: Path
    """Parquet file to write: id, weight, inclusion probability."""
    policy: str = "sadp"
    """Data-pruning policy, as examples.policy."""
    scores: Path | None = None
    """File of `spikeprune score`, for policies that draw by a score."""
    split: str = "train"
    """Prefix of the dataset's files."""
    alpha: float = 0.1
    """Weight of the uniform part; bounds the weights by 1 / alpha."""
    design: Literal["systematic", "poisson"] = "systematic"
    """systematic draws exactly the same number every time; poisson decides each example alone."""
    seed: int = 0
    """Keys the draw."""
    epoch: int = 0
    """Another epoch is another draw."""
    filtered: Path | None = None
    """Folder to write the chosen rows to as well, with a column weight; new or empty."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        end_on_sigterm()
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        word, code = ("terminated", TERMINATED) if was_terminated() else ("interrupted", 130)
        print(f"{word}; --resume continues a run from its last epoch", file=sys.stderr)  # noqa: T201
        return code
    except UserError as error:
        print(f"spikeprune: {error}", file=sys.stderr)  # noqa: T201
        return getattr(error, "code", 2)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("spikeprune"))  # noqa: T201
        return 0
    verb, rest = args[0], args[1:]
    if seconds := [v.split()[1] for v in _VERBS if v.startswith(f"{verb} ")]:
        if rest[:1] in (["-h"], ["--help"]):
            rest = [seconds[0], *rest]
        if not rest or rest[0] not in seconds:
            raise UserError(
                verb,
                f"{' '.join(rest[:1]) or 'nothing'!r} is not one of its verbs; use {', '.join(seconds)}",
            )
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in _VERBS:
        import difflib

        close = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; verbs are {', '.join(_VERBS)}"
        raise UserError(verb, f"is not a verb{hint}")
    return _VERBS[verb](rest)


def _train(args: list[str]) -> int:
    """Train with data pruning; the run's folder holds checkpoints, metrics and a report."""
    return _run_phases("train", args)


def _run(args: list[str]) -> int:
    """Train with data pruning, prune weights, retrain, and report."""
    return _run_phases("run", args)


def _run_phases(verb: Literal["run", "train"], args: list[str]) -> int:
    overrides, rest = split_overrides(args)
    options = _parse(RunCommand, rest, verb)
    _set_address(options.address, overrides)
    config = load_config(options.config, overrides)
    from pipelines.run import run

    return _finish(run(config, verb, resume=options.resume, profile=options.profile))


def _set_address(address: str | None, overrides: dict[str, str]) -> None:
    if address is not None:
        overrides["cluster.address"] = address


def _prune(args: list[str]) -> int:
    """Prune the weights of a trained network under a budget and retrain what is left."""
    overrides, rest = split_overrides(args)
    options = _parse(PruneCommand, rest, "prune")
    _set_address(options.address, overrides)
    from pipelines.run import prune

    for name in ("sparsity", "budget", "synops", "criterion"):
        if getattr(options, name) is not None:
            overrides[f"weights.{name}"] = str(getattr(options, name))
    if options.no_retrain:
        overrides["weights.retrain_epochs"] = "0"
    return _finish(prune(options.source, overrides, resume=options.resume))


def _compare(args: list[str]) -> int:
    """Prune a trained network by several criteria at several levels and show them side by side."""
    overrides, rest = split_overrides(args)
    o = _parse(CompareCommand, rest, "compare")
    _set_address(o.address, overrides)
    from pipelines import compare

    compare.main(o.source, o.criteria, o.levels, o.objective, overrides)
    return 0


def _search(args: list[str]) -> int:
    """Search a config's fields for the best trade-offs between accuracy, cost, density and SynOps."""
    from pipelines.search.command import main

    return main(args)


def _export(args: list[str]) -> int:
    """Write a run's last network with its masks and a table per layer; on demand compacted and as NIR."""
    overrides, rest = split_overrides(args)
    o = _parse(ExportCommand, rest, "export")
    from rich.console import Console

    from pipelines.export import export, print_export
    from pipelines.storage.sync import local_copy

    with Console(stderr=True).status("exporting"):
        done = export(local_copy(o.run), o.output, compacted=o.compact, nir=o.nir, overrides=overrides)
    print_export(done, Console() if sys.stdout.isatty() else Console(width=120))
    return 0


def _report(args: list[str]) -> int:
    """Tables in the terminal and one HTML file, of a run or of several side by side."""
    o = _parse(ReportCommand, args, "report")
    if not o.runs:
        raise UserError("report", "which run? Name its folder, or several")
    from pipelines.storage.sync import local_copy

    if len(o.runs) == 1:
        return _finish(local_copy(o.runs[0]), o.output)
    from rich.console import Console

    from pipelines.report.page import write_comparison
    from pipelines.report.summary import summarise
    from pipelines.report.tables import print_comparison
    from pipelines.storage.paths import below, parent, uri_of

    folders = [local_copy(folder) for folder in o.runs]
    beside = below(parent(uri_of(o.runs[0]) or o.runs[0].absolute()), "comparison.html")
    runs = [summarise(folder) for folder in folders]
    page = write_comparison(runs, o.output or Path(beside))
    print_comparison(runs, page, Console() if sys.stdout.isatty() else Console(width=140))
    return 0


def _bench(args: list[str]) -> int:
    """Measure speed on this machine: key ratios of ours over the alternative, as JSON and Markdown."""
    import subprocess

    names = _parse(BenchCommand, args, "bench").names
    root = Path(__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").exists():
        raise UserError("bench", "needs a clone of the repository: installed packages hold no benchmarks")
    return subprocess.call([sys.executable, "-m", "benchmarks", *names], cwd=root)


def _ingest(args: list[str]) -> int:
    """Write a dataset as Parquet with dense ids and a manifest."""
    return _tell(data_commands.ingest, _parse(IngestCommand, args, "data ingest"))


def _verify(args: list[str]) -> int:
    """Hold a dataset's files against its manifest: hashes, rows, ids, classes."""
    return _tell(data_commands.verify, _parse(VerifyCommand, args, "data verify"))


def _frames(args: list[str]) -> int:
    """Write a dataset of event recordings as one of event frames, so that training need not make them."""
    return _tell(data_commands.frames, _parse(FramesCommand, args, "data frames"))


def _show(args: list[str]) -> int:
    """Show a dataset's classes and statistics, and its examples on a contact sheet."""
    return _tell(data_commands.show, _parse(ShowCommand, args, "data show"))


def _tell(command: Callable[[C, "Console"], str | None], options: C) -> int:
    from rich.console import Console

    shown = Console(stderr=command is not data_commands.show)
    if (line := command(options, shown)) is not None:
        print(line)  # noqa: T201
    return 0


def _select(args: list[str]) -> int:
    """Draw a subset of a dataset with Horvitz-Thompson weights, and write it for training elsewhere."""
    o = _parse(SelectCommand, args, "data select")
    from pipelines.selection import select_subset
    from pipelines.storage.sync import named

    plan = select_subset(
        o.folder,
        policy=o.policy,
        ratio=o.ratio,
        output=o.output,
        scores=o.scores,
        split=o.split,
        alpha=o.alpha,
        design=o.design,
        seed=o.seed,
        epoch=o.epoch,
        filtered=o.filtered,
    )
    print(f"{named(o.output)}: {len(plan.ids):,} examples, weights up to {plan.weights.max():.3g}")  # noqa: T201
    return 0


def _score(args: list[str]) -> int:
    """Score every example of a dataset by a trained network: a ranking of the data, as Parquet."""
    overrides, rest = split_overrides(args)
    options = _parse(ScoreCommand, rest, "score")
    _set_address(options.address, overrides)
    from pipelines.ranking import rank
    from pipelines.run import network_of
    from pipelines.storage.sync import named

    path, checkpoint = network_of(options.source, options.checkpoint)
    config = load_config(path, overrides)
    done = rank(config, checkpoint, options.output, names=options.scores, split=options.split)
    print(f"{named(options.output)}: {done:,} examples")  # noqa: T201
    return 0


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "data ingest": _ingest,
    "data verify": _verify,
    "data frames": _frames,
    "data show": _show,
    "data select": _select,
    "score": _score,
    "train": _train,
    "prune": _prune,
    "compare": _compare,
    "run": _run,
    "search": _search,
    "export": _export,
    "report": _report,
    "bench": _bench,
    **cluster_verbs.VERBS,
}


def _finish(folder: Path, output: Path | None = None) -> int:
    from rich.console import Console

    from pipelines.report.page import write_page
    from pipelines.report.summary import summarise, write_summary
    from pipelines.report.tables import print_report
    from pipelines.storage.sync import upload_changes

    summary = summarise(folder)
    page = write_page(summary, output)
    write_summary(summary)
    upload_changes(folder)
    print_report(summary, page, Console() if sys.stdout.isatty() else Console(width=120))
    return 0


def _parse(command: type[C], args: list[str], verb: str) -> C:
    return tyro.cli(command, args=args, prog=f"spikeprune {verb}", description=_VERBS[verb].__doc__)


if __name__ == "__main__":
    sys.exit(main())
