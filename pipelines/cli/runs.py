"""The verbs that train, prune and score: train, run, prune, score."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.cli.reports import print_run, write_report
from pipelines.config import Config
from pipelines.config.load import dump_config, load_config, read_command
from pipelines.console import results, write


@dataclass(kw_only=True)
class RunCommand:
    """Options of ``train`` and ``run``; every config field can be set here by its path."""

    config: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file with any part of the config; the defaults fill the rest."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run of that name where it stopped."""
    address: str | None = None
    """A running Ray cluster (short for --cluster.address)."""
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write a chrome trace of some steps and a table of where the time went (profile/ in the run)."""
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
    address: str | None = None
    """A running Ray cluster (short for --cluster.address)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Config."""


def train(args: list[str]) -> int:
    """Train with data pruning; the run's folder holds checkpoints, metrics and a report."""
    return _run_phases("train", args, train.__doc__)


def run(args: list[str]) -> int:
    """Train with data pruning, prune weights, retrain, and report."""
    return _run_phases("run", args, run.__doc__)


def _run_phases(verb: Literal["run", "train"], args: list[str], description: str | None) -> int:
    o, overrides = read_command(RunCommand, args, prog=f"spikeprune {verb}", description=description)
    config = load_config(o.config, overrides | _given(o, "address"))
    if o.print_config:
        write(dump_config(config), end="")
        return 0
    if o.seeds is not None:
        return _run_seeds(verb, config, o)
    from pipelines.runs.run import run

    return print_run(run(config, verb, resume=o.resume, profile=o.profile))


def _run_seeds(verb: Literal["run", "train"], config: Config, o: RunCommand) -> int:
    from pipelines.report.seeds import over_seeds, print_seeds, run_seeds, write_seeds
    from pipelines.storage.sync import named

    assert o.seeds is not None
    folders = run_seeds(config, verb, o.seeds, profile=o.profile)
    for folder in folders:
        write_report(folder)
    found = over_seeds(folders)
    path = write_seeds(found, config)
    print_seeds(found, config.name, results(width=140))
    write(f"values: {named(path)}")
    return 0


def prune(args: list[str]) -> int:
    """Prune the weights of a trained network under a budget and retrain what is left."""
    o, overrides = read_command(PruneCommand, args, prog="spikeprune prune", description=prune.__doc__)
    overrides |= _given(o, "address", "sparsity", "budget", "synops", "criterion")
    if o.no_retrain:
        overrides["weights.retrain_epochs"] = "0"
    from pipelines.runs.run import prune as prune_run
    from pipelines.runs.run import prune_config

    if o.print_config:
        write(dump_config(prune_config(o.source, overrides)), end="")
        return 0
    return print_run(prune_run(o.source, overrides, resume=o.resume))


def score(args: list[str]) -> int:
    """Score every example of a dataset by a trained network: a ranking of the data, as Parquet."""
    o, overrides = read_command(ScoreCommand, args, prog="spikeprune score", description=score.__doc__)
    from pipelines.runs.run import network_of
    from pipelines.scoring.rank import rank
    from pipelines.storage.sync import named

    path, checkpoint = network_of(o.source, o.checkpoint)
    config = load_config(path, overrides | _given(o, "address"))
    done = rank(config, checkpoint, o.output, names=o.scores, split=o.split)
    write(f"{named(o.output)}: {done:,} examples")
    return 0


def _given(options: Any, *names: str) -> dict[str, Any]:
    """The fields that short options set."""
    group = {"address": "cluster"}
    values = {f"{group.get(name, 'weights')}.{name}": getattr(options, name) for name in names}
    return {path: value for path, value in values.items() if value is not None}
