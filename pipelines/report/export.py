"""What a run arrived at, as files for other software: weights, masks, NIR, a table."""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.config.plugins import keep_copy, use_own_code
from pipelines.console import table
from pipelines.errors import UserError
from pipelines.runs.run_folder import CODE, read_config, read_metrics
from pipelines.storage.atomic import (
    check_new_folder,
    filled_folder,
    read_json,
    well_formed,
    write_beside,
    write_json,
)
from pipelines.storage.paths import below
from pruning.weights.masks import Masks
from snn.interchange import Architecture, load_checkpoint, save_checkpoint
from snn.models import SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One weight layer in the table; "before" is the dense network."""

    name: str
    weights: int
    surviving: int
    density: float
    """Surviving weights / weights."""
    firing_rate_before: float | None
    """Spikes per neuron and timestep; None for the head."""
    firing_rate: float | None
    synops_before: float
    """Synaptic operations per inference."""
    synops: float
    channels: int
    """Outputs of the layer."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    files: tuple[str, ...]
    """Paths or URIs."""
    phase: str
    layers: tuple[LayerRow, ...]


def export(run: Path, output: Path, *, nir: bool = False) -> Exported:
    """Write a run's last network below ``output``.

    ``model.safetensors`` (pruned weights are zero), ``masks.safetensors`` where weights were pruned,
    ``layers.csv`` and ``layers.json``; ``model.nir`` on demand.

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
        names = ["model.safetensors"]
        save_checkpoint(folder / names[0], model, architecture)
        if masks is not None:
            names.append("masks.safetensors")
            masks.save(folder / names[-1])
        if graph is not None:
            import nir as package

            names.append("model.nir")
            write_beside(folder / names[-1], lambda p: package.write(p, graph))
        if code is not None and code.files:
            keep_copy(code, folder / CODE)
            names += [f"{CODE}/{name}" for name in code.files]
        names += ["layers.csv", "layers.json"]
        write_beside(folder / "layers.csv", lambda p: p.write_text(_csv(rows)))
        write_json(folder / "layers.json", _json(run, phase, rows))
    return Exported(files=tuple(below(output, n) for n in names), phase=phase, layers=rows)


def print_export(exported: Exported, console: Console) -> None:
    """The table per layer and the files."""
    rows = []
    for row in exported.layers:
        rates = [r for r in (row.firing_rate_before, row.firing_rate) if r is not None]
        rows.append(
            (
                row.name,
                f"{row.surviving:,}",
                f"{row.density:.1%}",
                " -> ".join(f"{r:.3f}" for r in rates) or "-",
                f"{row.synops_before:,.0f} -> {row.synops:,.0f}",
                str(row.channels),
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
) -> tuple[LayerRow, ...]:
    after = next(
        r["activity"] for r in reversed(read_metrics(run)) if r["phase"] == phase and "activity" in r
    )
    before = after if pruning is None else pruning["activity"]["dense"]
    rows = []
    for s, a, b in zip(model.synapses(), after["layers"], before["layers"], strict=True):
        surviving, weights = int(s.layer.weight.count_nonzero()), s.layer.weight.numel()
        rows.append(
            LayerRow(
                name=s.name,
                weights=weights,
                surviving=surviving,
                density=surviving / weights,
                firing_rate_before=b["firing_rate"],
                firing_rate=a["firing_rate"],
                synops_before=b["synops"],
                synops=a["synops"],
                channels=s.layer.weight.shape[0],
            )
        )
    return tuple(rows)


def _csv(rows: tuple[LayerRow, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _json(run: Path, phase: str, rows: tuple[LayerRow, ...]) -> dict[str, Any]:
    return {
        "run": run.name,
        "phase": phase,
        "density": sum(r.surviving for r in rows) / sum(r.weights for r in rows),
        "synops_before": sum(r.synops_before for r in rows),
        "synops": sum(r.synops for r in rows),
        "layers": [asdict(row) for row in rows],
    }
