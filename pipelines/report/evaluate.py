"""A run's network on a split, as it is, in this process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.console import table
from pipelines.data.dataset import Split, check_examples, describe, read_split
from pipelines.errors import UserError
from pipelines.report.export import last_network
from pipelines.runs.placement import window_rows
from pipelines.runs.preflight import CheckedData, check_data, check_same_validation
from pipelines.runs.run_folder import CONFIG, read_config
from pipelines.training.engine import LocalEngine
from pipelines.training.evaluation import evaluate, measure_activity
from pipelines.training.phases import RunSpec
from pipelines.training.worker import Worker, start

LOCAL = {"cluster.engine": "local", "cluster.workers": "1", "cluster.min_workers": "null"}


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a network does on a split."""

    checkpoint: Path
    split: str
    examples: int
    accuracy: float
    """In [0, 1]."""
    loss: float
    """Per example."""
    activity: dict[str, Any]
    """Of up to 1,024 examples (`pipelines.training.evaluation.measure_activity`)."""


def evaluate_run(
    run: Path,
    *,
    checkpoint: Path | None = None,
    split: str = "test",
    overrides: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Measure a run's last network, or the one in another checkpoint of it.

    ``split`` is test, val or train as the run's config names them, or the prefix of other files of the
    dataset; ``overrides`` are config fields that differ from the run's.

    Raises:
        UserError: not a run, unfinished, no such split, or bad data.
    """
    stored = read_config(run)
    checkpoint = checkpoint or last_network(run)[1]
    if not checkpoint.is_file():
        raise UserError("--checkpoint", f"{checkpoint} does not exist")
    config = load_config(run / CONFIG, {**LOCAL, **(overrides or {})})
    check_same_validation(stored, config)
    checked = check_data(config)
    found = {"train": checked.train, "val": checked.val, "test": checked.test}.get(split)
    if found is None and split == "val":
        raise UserError("--split", "the run has no validation; choose test, train or the prefix of files")
    found = found or _other_files(config, split, checked)
    # Read by row groups: training rows are not needed, and any split fits the memory.
    config = replace(config, data=replace(config.data, reading="shards"))
    worker = local_worker(config, checkpoint, replace(checked, test=found, val=None))
    tested = evaluate(worker, "test")
    return Evaluated(
        checkpoint=checkpoint,
        split=split,
        examples=found.num_examples,
        accuracy=tested["test_accuracy"],
        loss=tested["test_loss"],
        activity=measure_activity(worker, "test"),
    )


def _other_files(config: Config, split: str, checked: CheckedData) -> Split:
    """Files that the run's config does not name, held against its training rows as its test split is."""
    found = read_split(config.data.path, split, config.data.on_bad_row)
    if config.data.on_bad_row == "skip":
        found = check_examples(found)
    describe(checked.train, found, config.data.path, config.data, config.model.T)
    return found


def local_worker(config: Config, checkpoint: Path, checked: CheckedData) -> Worker:
    """A worker in this process with the network of a checkpoint file, for whatever measures it."""
    spec = RunSpec(
        config=config,
        info=checked.info,
        phases=(),
        folder=str(checkpoint.parent),
        train=checked.train,
        test=checked.test,
        val=checked.val,
        window_rows=window_rows(config, checked.train),
        initial=str(checkpoint),
    )
    engine = LocalEngine(spec, checkpoints=checkpoint.parent, watch=lambda event: None)
    return start(spec, engine, None)


def print_evaluated(found: Evaluated, console: Console) -> None:
    """The network as a whole, and a row per layer."""
    activity = found.activity
    rows = [
        (
            layer["name"],
            "-" if layer["firing_rate"] is None else f"{layer['firing_rate']:.3f}",
            f"{layer['synops']:,.0f}",
            f"{layer['density']:.1%}",
        )
        for layer in activity["layers"]
    ]
    title = f"{found.checkpoint.stem} on {found.split}"
    console.print(table(title, ("layer", "firing rate", "SynOps", "density"), rows))
    console.print(
        f"{found.split} accuracy {found.accuracy:.2%}, loss {found.loss:.4f} ({found.examples:,} examples)\n"
        f"{activity['synops']:,.0f} SynOps per inference ({activity['dense_synops']:,.0f} with all weights),"
        f" {activity['energy_pj'] / 1000:,.1f} nJ, density {activity['density']:.1%}"
        f" ({activity['examples']:,.0f} examples)",
        highlight=False,
        soft_wrap=True,
    )
