"""What a run arrived at, as files for other software: weights, masks, a smaller network, NIR, a table."""

import copy
import csv
import inspect
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pipelines.config import is_own
from pipelines.config_io import load_config
from pipelines.data.rows import Inputs, Rows
from pipelines.errors import UserError
from pipelines.own_code import keep_copy, use_own_code
from pipelines.preflight import check_data
from pipelines.run_folder import CODE, CONFIG, read_config, read_metrics
from pipelines.storage.atomic import check_new_folder, filled_folder, read_json, write_beside, write_json
from pipelines.storage.paths import below
from pruning.weights.compaction import Compaction, compact
from pruning.weights.masks import Masks
from snn.interchange import Architecture, load_checkpoint, save_checkpoint
from snn.models import SpikingNetwork, function_of

CHECKED_EXAMPLES = 256
"""Test examples on which a compacted network must give the same outputs."""
CHECKED_AT_ONCE = 32
TOLERANCE = 1e-9
"""Largest difference of logits in float64, where only the order of sums differs."""


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
    channels_compacted: int | None
    """The same in the compacted network; None without one."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """A network without its dead channels, and how it was held against the whole one."""

    model: SpikingNetwork
    architecture: Architecture
    widths: dict[str, int]
    examples: int
    """Test examples compared."""
    largest_difference: float
    """Of logits, in float64."""
    same_predictions: int
    """Examples of the same predicted class in float32."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    files: tuple[str, ...]
    """Paths or URIs."""
    phase: str
    layers: tuple[LayerRow, ...]
    compacted: Compacted | None


def export(
    run: Path,
    output: Path,
    *,
    compacted: bool = False,
    nir: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> Exported:
    """Write a run's last network below ``output``.

    ``model.safetensors`` (pruned weights are zero), ``masks.safetensors`` where weights were pruned,
    ``layers.csv`` and ``layers.json``; ``compact.safetensors`` on demand, checked against the whole network
    on test examples; ``model.nir`` on demand, of the compacted network where there is one.

    Args:
        run: a run's folder.
        output: folder to write; new or empty.
        compacted: cut out dead channels as well.
        nir: write the network as a NIR graph as well.
        overrides: config fields that differ from the run's (where the data is now).

    Raises:
        UserError: an unfinished run, a network that cannot be compacted or told in NIR, or a folder that
            cannot be written. Nothing is written then.
        RuntimeError: the compacted network's outputs are not the whole one's.
    """
    phase, checkpoint = _last(run)
    check_new_folder("--output", output)
    code = use_own_code(read_config(run))
    model, architecture = load_checkpoint(checkpoint)
    model.eval()
    masks = _masks(run, model) if phase != "train" else None
    small = _compacted(run, model, architecture, overrides or {}) if compacted else None
    graph = _graph(small.model if small else model, architecture) if nir else None
    rows = _rows(run, phase, model, small)
    with filled_folder(output, "--output") as folder:
        names = ["model.safetensors"]
        save_checkpoint(folder / names[0], model, architecture)
        if masks is not None:
            names.append("masks.safetensors")
            masks.save(folder / names[-1])
        if small is not None:
            names.append("compact.safetensors")
            save_checkpoint(folder / names[-1], small.model, small.architecture)
        if graph is not None:
            import nir as package

            names.append("model.nir")
            write_beside(folder / names[-1], lambda p: package.write(p, graph))
        if code is not None and code.files:
            keep_copy(code, folder / CODE)
            names += [f"{CODE}/{name}" for name in code.files]
        names += ["layers.csv", "layers.json"]
        write_beside(folder / "layers.csv", lambda p: p.write_text(_csv(rows)))
        write_json(folder / "layers.json", _json(run, phase, rows, small))
    files = tuple(below(output, n) for n in names)
    return Exported(files=files, phase=phase, layers=rows, compacted=small)


def print_export(exported: Exported, console: Console) -> None:
    """The table per layer and the files."""
    table = Table(title=f"network of phase {exported.phase}", title_justify="left")
    for i, name in enumerate(("layer", "weights kept", "density", "firing rate", "SynOps", "channels")):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in exported.layers:
        rates = [r for r in (row.firing_rate_before, row.firing_rate) if r is not None]
        widths = [n for n in (row.channels, row.channels_compacted) if n is not None]
        table.add_row(
            row.name,
            f"{row.surviving:,}",
            f"{row.density:.1%}",
            " -> ".join(f"{r:.3f}" for r in rates) or "-",
            f"{row.synops_before:,.0f} -> {row.synops:,.0f}",
            " -> ".join(map(str, widths)),
        )
    console.print(table)
    if (small := exported.compacted) is not None:
        console.print(
            f"compacted: {small.same_predictions} of {small.examples} test examples are classified alike, "
            f"logits differ by {small.largest_difference:.1e} at most in float64",
            highlight=False,
        )
    for path in exported.files:
        console.print(path, highlight=False, soft_wrap=True)


def _last(run: Path) -> tuple[str, Path]:
    """The phase that a run ends with, and the checkpoint file of its network."""
    config = read_config(run)
    phase = "train"
    if (run / "masks.safetensors").exists():
        phase = "retrain" if config.weights.retrain_epochs else "prune"
    path = run / "checkpoints" / f"{phase}.safetensors"
    if not path.exists() or not any(r["phase"] == phase and "activity" in r for r in read_metrics(run)):
        raise UserError(str(run), f"has not finished its phase {phase} yet; --resume continues a run")
    return phase, path


def _masks(run: Path, model: SpikingNetwork) -> Masks:
    masks = Masks.load(run / "masks.safetensors")
    try:
        masks.check(model)
        foreign = Masks.nonzero(model) & masks != Masks.nonzero(model)
    except ValueError as error:
        raise UserError(str(run), str(error)) from None
    if foreign:
        raise UserError(str(run), "its masks are of another network: weights that they prune are not zero")
    return masks


def _compacted(
    run: Path, model: SpikingNetwork, architecture: Architecture, overrides: Mapping[str, str]
) -> Compacted:
    name = architecture["name"]
    if is_own(name) and "hidden" not in inspect.signature(function_of(name)).parameters:
        raise UserError("--compact", f"{name} takes no widths (hidden, channels) to rebuild a smaller one by")
    try:
        small = compact(model)
    except ValueError as error:
        raise UserError("--compact", f"{architecture['name']} cannot be compacted: {error}") from None
    config = load_config(run / CONFIG, overrides)
    checked = check_data(config)
    rows = Rows(checked.test.head(CHECKED_EXAMPLES))
    ids = rows.ids[:CHECKED_EXAMPLES]
    x_TB = Inputs.of(checked.info, config.model.T)(rows.get(ids)[0])
    difference = float((_logits(model, x_TB.double()) - _logits(small.model, x_TB.double())).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the compacted network's outputs differ by {difference:g}; nothing was written")
    predicted = [_logits(m, x_TB).mean(0).argmax(1) for m in (model, small.model)]
    return Compacted(
        model=small.model,
        architecture=described(small, model, architecture),
        widths=small.widths,
        examples=len(ids),
        largest_difference=difference,
        same_predictions=int((predicted[0] == predicted[1]).sum()),
    )


@torch.no_grad()
def _logits(model: SpikingNetwork, x_TB: torch.Tensor) -> torch.Tensor:
    """In eval mode and the input's dtype, a few examples at a time."""
    model = copy.deepcopy(model).to(x_TB.dtype).eval()
    return torch.cat([model(part) for part in x_TB.split(CHECKED_AT_ONCE, dim=1)], dim=1)


def described(small: Compaction, model: SpikingNetwork, architecture: Architecture) -> Architecture:
    """The architecture of ``model`` with the widths that are left of it (mlp, convnet, VGG)."""
    spiking = model.synapses()[:-1]
    channels = [small.widths[s.name] for s in spiking if isinstance(s.layer, nn.Conv2d)]
    hidden = [small.widths[s.name] for s in spiking if isinstance(s.layer, nn.Linear)]
    options = {**architecture["options"], "hidden": hidden, **({"channels": channels} if channels else {})}
    return {**architecture, "options": options}


def _graph(model: SpikingNetwork, architecture: Architecture) -> Any:
    from snn.nir_graph import to_nir

    try:
        return to_nir(model)
    except ImportError:
        raise UserError("--nir", "needs the package nir; install spikeprune[nir]") from None
    except ValueError as error:
        raise UserError("--nir", f"{architecture['name']} cannot be told in NIR: {error}") from None


def _rows(run: Path, phase: str, model: SpikingNetwork, small: Compacted | None) -> tuple[LayerRow, ...]:
    after = next(
        r["activity"] for r in reversed(read_metrics(run)) if r["phase"] == phase and "activity" in r
    )
    before = read_json(run / "pruning.json")["activity"]["dense"] if phase != "train" else after
    rows = []
    for s, a, b in zip(model.synapses(), after["layers"], before["layers"], strict=True):
        surviving, weights = int(s.layer.weight.count_nonzero()), s.layer.weight.numel()
        # The head's outputs are the classes; they always stay.
        left = None if small is None else small.widths.get(s.name, s.layer.weight.shape[0])
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
                channels_compacted=left,
            )
        )
    return tuple(rows)


def _csv(rows: tuple[LayerRow, ...]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _json(run: Path, phase: str, rows: tuple[LayerRow, ...], small: Compacted | None) -> dict[str, Any]:
    checks = ("examples", "largest_difference", "same_predictions")
    return {
        "run": run.name,
        "phase": phase,
        "density": sum(r.surviving for r in rows) / sum(r.weights for r in rows),
        "synops_before": sum(r.synops_before for r in rows),
        "synops": sum(r.synops for r in rows),
        "layers": [asdict(row) for row in rows],
        "compaction": None
        if small is None
        else {
            "weights": sum(s.layer.weight.numel() for s in small.model.synapses()),
            **{name: getattr(small, name) for name in checks},
        },
    }
