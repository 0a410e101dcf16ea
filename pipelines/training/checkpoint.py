"""A run's state at the end of an epoch, as files that need no unpickling of objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.storage.atomic import read_json, write_json
from pipelines.training.phases import Phase
from pipelines.training.score_table import ScoreTable
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork

PROGRESS = "progress.json"
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
    return next((f for f in found if _is_whole(f)), None)


def _is_whole(folder: Path) -> bool:
    """Whether all files have the sizes that were written: uploads may end in any order."""
    try:
        sizes = read_json(folder / PROGRESS)["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, UserError, KeyError):
        return False


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
    write_json(
        folder / PROGRESS,
        {
            "phase": progress.phase,
            "epoch": progress.epoch,
            "history": progress.history,
            "files": {p.name: p.stat().st_size for p in sorted(folder.iterdir())},
        },
    )


def load_progress(folder: Path, phases: Sequence[Phase]) -> Progress:
    """How far the checkpoint's run was in its phases; the last of them may have been given more epochs."""
    stored = read_json(folder / PROGRESS)
    progress = Progress(phase=stored["phase"], epoch=stored["epoch"], history=stored["history"])
    if progress.phase and not progress.epoch:
        done = progress.history[-1]["epoch"] + 1
        if done < phases[progress.phase - 1].epochs:
            return replace(progress, phase=progress.phase - 1, epoch=done)
    return progress


def load_model(folder: Path, model: SpikingNetwork) -> Masks | None:
    """Fill ``model`` with the checkpoint's weights; its masks, if it has any."""
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
    """Give a fresh score table the checkpoint's state.

    Raises:
        UserError: arrays that cannot be read, or of another policy or dataset.
    """
    state = {}
    for path in sorted(folder.glob(f"{TABLE}-*.npy")):
        try:
            state[path.stem.removeprefix(f"{TABLE}-")] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(str(path), f"is not a score table's state ({error})") from None
    try:
        table.load(state)
    except ValueError as error:
        raise UserError(str(folder), f"does not fit this run ({error})") from None
