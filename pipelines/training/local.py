"""The launcher without Ray: one plain process. The baseline that Ray's cost is held against."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipelines.data.dataset import iter_rows
from pipelines.scoring import Scoring, score_table, select
from pipelines.training import checkpoint
from pipelines.training.engine import Shared
from pipelines.training.loop import run_phases
from pipelines.training.rows import Rows
from pipelines.training.score_book import ScoreBook
from pipelines.training.storage import explained
from pipelines.training.worker import RunSpec, start
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork

READ_ROWS = 8192


class LocalEngine:
    """The only worker there is, with all rows in memory."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        *,
        train: pa.Table,
        test: pa.Table,
        present: np.ndarray,
        checkpoints: Path,
        watch: Callable[[dict[str, object]], None],
        told: Callable[[dict[str, object]], None] = lambda record: None,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.book = ScoreBook(present)
        self._train = train
        self._test = Rows(test)
        self._checkpoints = checkpoints
        self._watch = watch
        self._told = told

    def warm_up(self) -> None:
        """See `pipelines.training.engine.Engine`, as all that follow: nothing to start."""

    def fetch(self, ids: np.ndarray) -> Rows:
        """By mask, from memory."""
        return Rows(select(self._train, ids))

    def test_rows(self) -> Rows:
        """All test rows."""
        return self._test

    def score(self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring) -> np.ndarray:
        """In this process."""
        table = score_table(select(self._train, ids), model, scoring, self.device)
        return table.column(scoring.scores[0]).to_numpy()

    def start_scoring(
        self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring
    ) -> Callable[[], np.ndarray]:
        """At once: there is nobody else to do it."""
        scores = self.score(model, ids, scoring)
        return lambda: scores

    def distribute(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def progress(self, event: dict[str, object]) -> None:
        """Straight to the watcher."""
        self._watch(event)

    def publish(self, phase: str, values: dict[str, float]) -> None:
        """There is no dashboard."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def share(self, value: Shared) -> Shared:
        """The value itself."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""

    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """A folder of that name; the one before is removed once it is whole."""
        folder = self._checkpoints / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        for old in sorted(self._checkpoints.glob(f"*/{checkpoint.PROGRESS}"))[:-2]:
            shutil.rmtree(old.parent)
        self._told(metrics)


def train_locally(
    spec: RunSpec,
    *,
    train_files: tuple[str, ...],
    test_files: tuple[str, ...],
    present: np.ndarray,
    watch: Callable[[dict[str, object]], None],
) -> None:
    """Run a spec's phases in this process, from its newest checkpoint if there is one."""
    train_on_tables(
        spec,
        train=read_rows(train_files),
        test=read_rows(test_files),
        present=present,
        watch=watch,
    )


def read_rows(files: tuple[str, ...]) -> pa.Table:
    """All rows of a split, encoded, in one piece."""
    return pa.concat_tables(iter_rows(files, READ_ROWS)).combine_chunks()


def train_on_tables(
    spec: RunSpec,
    *,
    train: pa.Table,
    test: pa.Table,
    present: np.ndarray,
    watch: Callable[[dict[str, object]], None],
    told: Callable[[dict[str, object]], None] = lambda record: None,
    device: torch.device | None = None,
) -> None:
    """As `train_locally`, on rows in memory.

    Args:
        spec: of the run.
        train: encoded training rows.
        test: and test rows.
        present: which training ids exist, bool by id from the first.
        watch: is shown progress events.
        told: gets each record once its checkpoint is whole.
        device: to train on; a GPU where there is one when not given.
    """
    tune_allocator()
    checkpoints = Path(spec.folder) / "checkpoints"
    engine = LocalEngine(
        train=train,
        test=test,
        present=present,
        checkpoints=checkpoints,
        watch=watch,
        told=told,
        device=device,
    )
    resume = checkpoint.latest_checkpoint(checkpoints)
    with explained(Path(spec.folder)):
        run_phases(start(spec, engine, resume), resume)
