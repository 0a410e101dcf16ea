"""The verbs that train, prune, score and search: train, run, prune, score, search."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.cli.reports import print_run, write_report
from pipelines.config import Config
from pipelines.config.load import dump_config, load_config, load_tree
from pipelines.config.schema import SearchTree
from pipelines.console import results, write
from pipelines.errors import UserError
from pipelines.storage.sync import named


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
