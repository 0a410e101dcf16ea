"""A run's state at the end of an epoch, as files that need no unpickling of objects."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.storage.atomic import read_json, write_json
from pruning.weights.masks import Masks
from snn.interchange import load_weights, save_checkpoint
from snn.models import SpikingNetwork

PROGRESS = "progress.json"
BOOK_PART = 1 << 20  # entries of a score book that pass through a worker at once


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
    book: "BookState | None",
    masks: Masks | None,
) -> None:
    """Write all of a run's state below ``folder``; the progress file last, so that it marks a whole one."""
    save_checkpoint(folder / "model.safetensors", model, architecture)
    if optimizer is not None:
        torch.save(optimizer, folder / "optimizer.pt")
    if book is not None:
        save_book(folder, book)
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


def load_progress(folder: Path) -> Progress:
    """How far the checkpoint's run was."""
    stored = read_json(folder / PROGRESS)
    return Progress(phase=stored["phase"], epoch=stored["epoch"], history=stored["history"])


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


class BookState(Protocol):
    """A score book's state, part by part (see `pipelines.training.score_book.ScoreBook`)."""

    def state_arrays(self) -> dict[str, tuple[str, int]]: ...  # noqa: D102
    def state_part(self, name: str, low: int, high: int) -> np.ndarray: ...  # noqa: D102
    def load_part(self, name: str, low: int, values: np.ndarray) -> None: ...  # noqa: D102


def save_book(folder: Path, book: BookState) -> None:
    """Write the score book's arrays, a bounded part at a time, however many actors hold them."""
    for name, (dtype, length) in book.state_arrays().items():
        with (folder / f"book-{name}.npy").open("wb") as file:
            header = {"descr": dtype, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
            for low in range(0, length, BOOK_PART):
                file.write(book.state_part(name, low, min(low + BOOK_PART, length)).tobytes())


def load_book(folder: Path, book: BookState) -> None:
    """Give a fresh score book the checkpoint's state.

    Raises:
        UserError: arrays of another policy or dataset.
    """
    arrays = book.state_arrays()
    for name, (dtype, length) in arrays.items():
        path = folder / f"book-{name}.npy"
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False) if length else np.zeros(0, dtype)
        except (OSError, ValueError) as error:
            raise UserError(str(path), f"is not a score book's state ({error})") from None
        if stored.shape != (length,) or stored.dtype.str != dtype:
            raise UserError(
                str(path), f"holds {stored.shape} {stored.dtype}, this run needs ({length},) {dtype}"
            )
        for low in range(0, length, BOOK_PART):
            book.load_part(name, low, np.array(stored[low : low + BOOK_PART]))
