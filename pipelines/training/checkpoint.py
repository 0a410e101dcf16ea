"""A run's state at the end of an epoch, as files that need no unpickling of objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.errors import UserError
from pipelines.storage.atomic import read_json, sha256_of, well_formed, write_json
from pipelines.training.phases import Phase
from pipelines.training.score_table import ScoreTable
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork

PROGRESS = "progress.json"
DAMAGED = "is damaged"
TABLE = "book"  # what the score table's files are called, in older checkpoints too


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    phase: int = 0
    """Index of the phase that comes next or goes on."""
    epoch: int = 0
    """Epoch of that phase that comes next."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per finished epoch or pruning phase: what metrics.jsonl holds."""


def checkpoint_name(phase: int, phase_name: str, epoch: int) -> str:
    """Folder name of a checkpoint; names sort in the order of a run."""
    return f"{phase:02d}-{phase_name}-{epoch:04d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below ``folder``, if any."""
    found = sorted((p.parent for p in folder.glob(f"*/{PROGRESS}")), reverse=True)
    return next((f for f in found if _fault(f) is None), None)


def check_resumable(folder: Path, records: int) -> None:
    """That a run goes on from a checkpoint, where it has got as far as one.

    Args:
        folder: holds the run's checkpoints.
        records: of the run's metrics; beyond the first, a checkpoint was there.
    """
    if latest_checkpoint(folder) is not None:
        return
    faults = {p.parent.name: _fault(p.parent) for p in sorted(folder.glob(f"*/{PROGRESS}"))}
    if records > 1 or any(fault == DAMAGED for fault in faults.values()):
        told = ", ".join(f"{name} {fault}" for name, fault in faults.items()) or "there is none"
        raise UserError(
            "--resume",
            f"no checkpoint in {folder} is whole ({told}); bring one back from a copy, or start again under "
            "another --name",
        )


def check_whole(folder: Path) -> None:
    """That a checkpoint's files are those that were written."""
    if (fault := _fault(folder)) is not None:
        raise UserError("--resume", f"checkpoint {folder.name} {fault}; bring it back from a copy")


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; uploads of its files may end in any order."""
    try:
        written = read_json(folder / PROGRESS)
        if any((folder / name).stat().st_size != size for name, size in written["files"].items()):
            return "is incomplete"
        hashes = written.get("sha256", {})  # earlier versions wrote none
        return DAMAGED if any(sha256_of(folder / n) != known for n, known in hashes.items()) else None
    except (OSError, UserError, KeyError):
        return "is incomplete"
    except (AttributeError, TypeError, ValueError):
        return DAMAGED


def save(
    folder: Path,
    *,
    progress: Progress,
    model: SpikingNetwork,
    architecture: dict[str, Any],
    optimizer: dict[str, Any] | None,
    table: ScoreTable | None,
    masks: Masks | None,
) -> None:
    """Write all of a run's state below ``folder``; the progress file last, so that it marks a whole one."""
    save_checkpoint(folder / "model.safetensors", model, architecture)
    if optimizer is not None:
        torch.save(optimizer, folder / "optimizer.pt")
    if table is not None:
        for name, array in table.state().items():
            np.save(folder / f"{TABLE}-{name}.npy", array)
    if masks is not None:
        masks.save(folder / "masks.safetensors")
    files = sorted(folder.iterdir())
    write_json(
        folder / PROGRESS,
        {
            "phase": progress.phase,
            "epoch": progress.epoch,
            "history": progress.history,
            "files": {p.name: p.stat().st_size for p in files},
            "sha256": {p.name: sha256_of(p) for p in files},
        },
    )


def load_progress(folder: Path, phases: Sequence[Phase]) -> Progress:
    """How far the checkpoint's run was in its phases; the last of them may have been given more epochs."""
    stored = read_json(folder / PROGRESS)
    with well_formed(folder / PROGRESS):
        progress = Progress(phase=stored["phase"], epoch=stored["epoch"], history=stored["history"])
        if not (0 <= progress.phase <= len(phases) and progress.epoch >= 0 and progress.history):
            raise ValueError("no such place in the run")
        if progress.phase and not progress.epoch:
            done = progress.history[-1]["epoch"] + 1
            if done < phases[progress.phase - 1].epochs:
                return replace(progress, phase=progress.phase - 1, epoch=done)
    return progress


def load_model(folder: Path, model: SpikingNetwork) -> Masks | None:
    """Fill ``model`` with the checkpoint's weights; its masks, if it has any."""
    with well_formed(folder):
        load_weights(folder / "model.safetensors", model)
        masks = folder / "masks.safetensors"
        return Masks.load(masks) if masks.exists() else None


def load_optimizer(folder: Path) -> dict[str, Any]:
    """What moves the weights: `pipelines.training.steps.Stepper.state`.

    Raises:
        UserError: the file holds more than tensors and numbers.
    """
    path = folder / "optimizer.pt"
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UserError(str(path), f"is not an optimiser state ({str(error).splitlines()[0]})") from error


def load_table(folder: Path, table: ScoreTable) -> None:
    """Give a fresh score table the checkpoint's state."""
    state = {}
    for path in sorted(folder.glob(f"{TABLE}-*.npy")):
        try:
            state[path.stem.removeprefix(f"{TABLE}-")] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(str(path), f"is not a score table's state ({error})") from None
    try:
        table.load(state)
    except ValueError as error:
        raise UserError(str(folder), f"does not fit this run ({error})") from None
