"""The network that a run ends with: measured on a split, and as files for other software."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.config.plugins import keep_copy, use_own_code
from pipelines.console import table
from pipelines.runs.preflight import CheckedData, check_data, check_same_validation
from pipelines.runs.run_folder import CODE, CONFIG, read_config, read_metrics
from pipelines.storage.atomic import (
    check_new_folder,
    filled_folder,
    read_json,
    well_formed,
    write_beside,
    write_json,
)
from pipelines.storage.paths import below
from pipelines.training.engine import LocalEngine
from pipelines.training.evaluation import evaluate, measure_activity
from pipelines.training.worker import Worker, start
from pruning.weights.masks import Masks
from snn.interchange import Architecture, load_checkpoint, save_checkpoint
from snn.models import SpikingNetwork

LOCAL = {"cluster.engine": "local", "cluster.workers": "1", "cluster.min_workers": "null"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    files: tuple[str, ...]
    """Paths or URIs."""
    phase: str
    layers: list[dict[str, Any]]
    """A row per weight layer: ``name``, ``weights``, ``surviving`` of them and their share, ``density``;
    ``firing_rate`` (spikes per neuron and timestep; None of the head) and ``synops`` (per inference), with
    those of the dense network as ``..._before``; ``channels`` (outputs)."""


def export(run: Path, output: Path, *, nir: bool = False) -> Exported:
    """Write a run's last network below ``output``.

    ``model.safetensors`` (pruned weights are zero), ``masks.safetensors`` where weights were pruned, and
    ``layers.json``; ``model.nir`` on demand.

    Args:
        run: a run's folder.
        output: folder to write; new or empty.
        nir: write the network as a NIR graph as well.

    Raises:
        UserError: an unfinished run, a network that NIR cannot express, or a folder that cannot be written.
            Nothing is written then.
    """
    phase, checkpoint = last_network(run)
    check_new_folder("--output", output)
    code = use_own_code(read_config(run))
    with well_formed(checkpoint):
        model, architecture = load_checkpoint(checkpoint)
    model.eval()
    masks = _masks(run, model) if phase != "train" else None
    graph = _graph(model, architecture) if nir else None
    with well_formed(run / ("metrics.jsonl" if phase == "train" else "pruning.json")):
        pruning = None if masks is None else read_json(run / "pruning.json")
        rows = _rows(run, phase, model, pruning)
        if pruning and masks and pruning["allocation"]["fingerprint"] != masks.fingerprint():
            raise UserError(str(run / "pruning.json"), "is of other masks than those beside it")
    with filled_folder(output, "--output") as folder:
        save_checkpoint(folder / "model.safetensors", model, architecture)
        if masks is not None:
            masks.save(folder / "masks.safetensors")
        if graph is not None:
            import nir as package

            write_beside(folder / "model.nir", lambda p: package.write(p, graph))
        keep_copy(code, folder / CODE)
        write_json(folder / "layers.json", _json(run, phase, rows))
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    # The network first, own code and the table last.
    names.sort(key=lambda name: (name == "layers.json", "/" in name, name != "model.safetensors", name))
    return Exported(files=tuple(below(output, n) for n in names), phase=phase, layers=rows)


def print_export(exported: Exported, console: Console) -> None:
    """The table per layer and the files."""
    rows = []
    for row in exported.layers:
        rates = [r for r in (row["firing_rate_before"], row["firing_rate"]) if r is not None]
        rows.append(
            (
                row["name"],
                f"{row['surviving']:,}",
                f"{row['density']:.1%}",
                " -> ".join(f"{r:.3f}" for r in rates) or "-",
                f"{row['synops_before']:,.0f} -> {row['synops']:,.0f}",
                str(row["channels"]),
            )
        )
    headings = ("layer", "weights kept", "density", "firing rate", "SynOps", "channels")
    console.print(table(f"network of phase {exported.phase}", headings, rows))
    for path in exported.files:
        console.print(path, highlight=False, soft_wrap=True)


def last_network(run: Path) -> tuple[str, Path]:
    """The phase that a run ends with, and the checkpoint file of its network."""
    config = read_config(run)
    phase = "train"
    if (run / "masks.safetensors").exists():
        phase = "retrain" if config.weight_pruning.retrain_epochs else "prune"
    path = run / "checkpoints" / f"{phase}.safetensors"
    if not path.exists() or not any(r["phase"] == phase and "activity" in r for r in read_metrics(run)):
        raise UserError(str(run), f"has not finished its phase {phase} yet; --resume continues a run")
    return phase, path


def _masks(run: Path, model: SpikingNetwork) -> Masks:
    with well_formed(run / "masks.safetensors"):
        masks = Masks.load(run / "masks.safetensors")
    try:
        masks.check(model)
        foreign = Masks.nonzero(model) & masks != Masks.nonzero(model)
    except ValueError as error:
        raise UserError(str(run), str(error)) from None
    if foreign:
        raise UserError(str(run), "its masks are of another network: weights that they prune are not zero")
    return masks


def _graph(model: SpikingNetwork, architecture: Architecture) -> Any:
    from snn.nir_graph import to_nir

    try:
        return to_nir(model)
    except ImportError:
        raise UserError("--nir", "needs the package nir; install spikeprune[nir]") from None
    except ValueError as error:
        raise UserError("--nir", f"{architecture['name']} cannot be expressed in NIR: {error}") from None


def _rows(
    run: Path, phase: str, model: SpikingNetwork, pruning: dict[str, Any] | None
) -> list[dict[str, Any]]:
    after = [r["activity"] for r in read_metrics(run) if r["phase"] == phase and "activity" in r][-1]
    before = after if pruning is None else pruning["activity"]["dense"]
    rows = []
    for s, a, b in zip(model.synapses(), after["layers"], before["layers"], strict=True):
        surviving, weights = int(s.layer.weight.count_nonzero()), s.layer.weight.numel()
        row: dict[str, Any] = {
            "name": s.name,
            "weights": weights,
            "surviving": surviving,
            "density": surviving / weights,
        }
        for name in ("firing_rate", "synops"):
            row |= {f"{name}_before": b[name], name: a[name]}
        rows.append(row | {"channels": s.layer.weight.shape[0]})
    return rows


def _json(run: Path, phase: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    total = {
        name: sum(row[name] for row in rows) for name in ("weights", "surviving", "synops_before", "synops")
    }
    return {
        "run": run.name,
        "phase": phase,
        "density": total["surviving"] / total["weights"],
        "synops_before": total["synops_before"],
        "synops": total["synops"],
        "layers": rows,
    }


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
    split: Literal["test", "val", "train"] = "test",
    overrides: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Measure a run's last network, or the one in another checkpoint of it.

    ``split`` is as the run's config names it; ``overrides`` are config fields that differ from the run's, as
    ``data.test_split``, the prefix of other files of the dataset.

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
    found = {"train": checked.train, "val": checked.val, "test": checked.test}[split]
    if found is None:
        raise UserError("--split", "the run has no validation; choose test or train")
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


def local_worker(config: Config, checkpoint: Path, checked: CheckedData) -> Worker:
    """A worker in this process with the network of a checkpoint file, for whatever measures it."""
    spec = checked.spec(config, phases=(), folder=str(checkpoint.parent), initial=str(checkpoint))
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
