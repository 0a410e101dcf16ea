"""The launcher on Ray: Ray Train's workers, Ray Data's rows and scores, one score book actor.

A run is one `TorchTrainer.fit`. Each worker fetches the rows that `order` assigns to it by selecting
them in Ray Data tasks from the materialised dataset, encoded, before anything is decoded.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.collective
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.util.metrics import Gauge
from torch import Tensor, nn

from cluster.connect import quiet_data
from pipelines.config import ClusterConfig
from pipelines.data.dataset import COLUMNS
from pipelines.errors import UserError
from pipelines.networks import architecture, in_layout, is_channels_last
from pipelines.own_code import OwnCode, activate
from pipelines.scoring import Scoring, score_dataset, select
from pipelines.training.checkpoint import latest_checkpoint
from pipelines.training.engine import Shared
from pipelines.training.loop import run_phases
from pipelines.training.rows import Rows
from pipelines.training.score_book import PolicySettings, ScoreBook, Wanted
from pipelines.training.storage import explained, mend
from pipelines.training.worker import RunSpec, start
from pruning.examples.policies import Plan
from pruning.examples.policy import Source
from snn.interchange import build_described
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork

PROGRESS_SECONDS = 0.2
CHECKPOINTS = "checkpoints"


class BookActor(ScoreBook):
    """The score book as an actor, which also keeps each epoch's latest progress event."""

    def __init__(self, present: np.ndarray, code: OwnCode | None) -> None:
        activate(code)
        super().__init__(present)
        self._events: dict[tuple[object, object], dict[str, object]] = {}
        self._mistake: tuple[str, str] | None = None

    def refuse(self, where: str, what: str) -> None:
        """Remember a user's mistake, which no restart would mend."""
        self._mistake = (where, what)

    def mistake(self) -> tuple[str, str] | None:
        """The user's mistake that a worker met, if any."""
        return self._mistake

    def note(self, event: dict[str, object]) -> None:
        """Remember where an epoch is."""
        self._events[event["phase"], event["epoch"]] = event

    def events(self) -> list[dict[str, object]]:
        """Where each epoch was last seen, in order."""
        return list(self._events.values())


class RemoteBook:
    """The score book of another process, asked synchronously."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, settings: PolicySettings, state: dict[str, np.ndarray] | None = None) -> Wanted | None:
        """See `ScoreBook`, as all that follow."""
        return ray.get(self.actor.begin.remote(settings, state))

    def rescore(self, epoch: int) -> np.ndarray | None:
        """Ids to score."""
        return ray.get(self.actor.rescore.remote(epoch))

    def observe(self, ids: np.ndarray, scores: np.ndarray, epoch: int, source: Source) -> None:
        """Deliver scores."""
        ray.get(self.actor.observe.remote(ids, scores, epoch, source))

    def draw(self, epoch: int) -> Plan:
        """The epoch's plan."""
        return ray.get(self.actor.draw.remote(epoch))

    def state(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return ray.get(self.actor.state.remote())

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """What is known of these examples."""
        return ray.get(self.actor.scores.remote(ids))

    def costs(self) -> dict[str, float]:
        """Of the phase."""
        return ray.get(self.actor.costs.remote())

    def table(self, epoch: int) -> dict[str, np.ndarray]:
        """For scores.parquet."""
        return ray.get(self.actor.table.remote(epoch))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every Ray Train worker is started with."""

    spec: RunSpec
    train: Any
    """Materialised Ray Dataset of the training rows, encoded."""
    test: Any
    """As ``train``, for the test rows."""
    book: Any
    """Handle of the score book."""


class RayEngine:
    """One Ray Train worker's surroundings (see `pipelines.training.engine.Engine`)."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = get_device()
        self.book = RemoteBook(job.book)
        self._job = job
        self._test: Rows | None = None
        self._noted = 0.0
        self._gauges: dict[str, Gauge] = {}

    def warm_up(self) -> None:
        """Ray Data's executor and task processes."""
        self.fetch(self._job.spec.ids[:1])
        self.barrier()

    def fetch(self, ids: np.ndarray) -> Rows:
        """Select by Ray Data tasks that read the object store and nothing else."""
        return Rows(_select_rows(self._job.train, ids))

    def test_rows(self) -> Rows:
        """Every ``world_size``-th test row, fetched once."""
        if self._test is None:
            rows = Rows(pa.concat_tables(ray.get(self._job.test.to_arrow_refs())))
            self._test = rows.share(self.rank, self.world_size)
        return self._test

    def score(self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring) -> np.ndarray:
        """By Ray Data tasks, while the workers wait."""
        spec = self._job.spec
        return score_dataset(self._job.train, model, architecture(spec.config.model, spec.info), ids, scoring)

    def start_scoring(
        self, model: SpikingNetwork, ids: np.ndarray, scoring: Scoring
    ) -> Callable[[], np.ndarray]:
        """In a task that needs no CPU of its own; its Ray Data tasks take the spare ones."""
        spec = self._job.spec
        weights = ray.put(
            {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        )
        ref = (
            ray.remote(_score_beside)
            .options(num_cpus=0)
            .remote(
                self._job.train,
                weights,
                architecture(spec.config.model, spec.info),
                ids,
                scoring,
                spec.code,
            )
        )
        return lambda: ray.get(ref)

    def distribute(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel; batch norm statistics are re-estimated, so buffers stay put."""
        return prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})

    def progress(self, event: dict[str, object]) -> None:
        """A few times a second, from rank 0, without waiting."""
        now = time.monotonic()
        if self.rank == 0 and (now - self._noted > PROGRESS_SECONDS or "step" not in event):
            self._noted = now
            self._job.book.note.remote(event)

    def publish(self, phase: str, values: dict[str, float]) -> None:
        """As Ray metrics ``spikeprune_*``, with tags run and phase, from rank 0."""
        if self.rank != 0:
            return
        tags = {"run": self._job.spec.config.name, "phase": phase}
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"spikeprune_{name}", name.replace("_", " "), tuple(tags))
            self._gauges[name].set(value, tags)

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce."""
        if self.world_size > 1:
            total = tensor.to(self.device, copy=True)
            torch.distributed.all_reduce(total)
            return total.to(tensor.device)
        return tensor

    def share(self, value: Shared) -> Shared:
        """Through Ray Train's controller, which also waits for all workers."""
        return ray.train.collective.broadcast_from_rank_zero(value)

    def barrier(self) -> None:
        """Through Ray Train's controller: a long scoring pass cannot time it out."""
        ray.train.collective.barrier()

    def report(self, metrics: dict[str, object], name: str, write: Callable[[Path], None]) -> None:
        """A Ray Train checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                write(Path(folder))
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(folder) if self.rank == 0 else None,
                checkpoint_dir_name=name,
            )


def train_on_ray(
    spec: RunSpec,
    *,
    train_files: tuple[str, ...],
    test_files: tuple[str, ...],
    present: np.ndarray,
    watch: Callable[[dict[str, object]], None],
) -> None:
    """Run a spec's phases on the connected Ray cluster, from its newest checkpoint if there is one.

    Raises:
        UserError: a mistake that only the workers could see.
    """
    quiet_data()
    train_on_datasets(
        spec, train=load_rows(train_files), test=load_rows(test_files), present=present, watch=watch
    )


def train_on_datasets(
    spec: RunSpec,
    *,
    train: Any,
    test: Any,
    present: np.ndarray,
    watch: Callable[[dict[str, object]], None],
    callbacks: Sequence[Any] = (),
) -> None:
    """As `train_on_ray`, on what `load_rows` made of the files.

    Args:
        spec: of the run.
        train: materialised dataset of the training rows.
        test: and of the test rows.
        present: which training ids exist, bool by id from the first.
        watch: is shown progress events.
        callbacks: for Ray Train's `RunConfig`.

    Raises:
        UserError: a mistake that only the workers could see.
    """
    quiet_data()
    cluster = spec.config.cluster
    book: Any = (
        ray.remote(BookActor)
        .options(num_cpus=0, max_restarts=-1, name=f"score-book-{Path(spec.folder).name}-{uuid4().hex}")
        .remote(present, spec.code)
    )
    job = Job(spec=spec, train=train, test=test, book=book)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_worker_counts(cluster),  # type: ignore[arg-type]  # stubs from before V2
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's stubs describe the class before V2
            name=CHECKPOINTS,
            storage_path=spec.folder,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_follow, args=(book, watch, stop), daemon=True)
    watcher.start()
    mistake = None
    try:
        mend(Path(spec.folder) / CHECKPOINTS)
        trainer.fit()
        mistake = ray.get(book.mistake.remote())
    except ray.train.TrainingFailedError:
        mistake = ray.get(book.mistake.remote())
        if mistake is None:
            with explained(Path(spec.folder)):
                raise
    except SystemExit:  # how Ray Train's own handler ends on Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        stop.set()
        watcher.join()
        ray.kill(book)
    if mistake is not None:
        raise UserError(*mistake)


def _worker_counts(cluster: ClusterConfig) -> int | tuple[int, int]:
    if cluster.min_workers is None or cluster.min_workers == cluster.workers:
        return cluster.workers
    return cluster.min_workers, cluster.workers


def _score_beside(
    dataset: Any,
    weights: dict[str, Tensor],
    architecture: dict[str, Any],
    ids: np.ndarray,
    scoring: Scoring,
    code: OwnCode | None,
) -> np.ndarray:
    quiet_data()
    activate(code)
    model = in_layout(build_described(architecture), channels_last=is_channels_last(weights))
    model.load_state_dict(weights)
    return score_dataset(dataset, model, architecture, ids, scoring)


def _train_worker(config: dict[str, Any]) -> None:
    quiet_data()
    tune_allocator()
    torch.set_num_threads(1)
    job: Job = config["job"]
    activate(job.spec.code)
    if ray.get(job.book.mistake.remote()) is not None:
        return  # the group was restarted after a mistake that the driver will report
    try:
        resume = ray.train.get_checkpoint()
        run = Path(job.spec.folder)
        unlisted = nullcontext(latest_checkpoint(run / CHECKPOINTS))
        with explained(run), resume.as_directory() if resume is not None else unlisted as folder:
            path = Path(folder) if folder is not None else None
            run_phases(start(job.spec, RayEngine(job), path), path)
    except UserError as error:
        ray.get(job.book.refuse.remote(error.where, error.what))
        raise


def load_rows(files: tuple[str, ...]) -> Any:
    """Encoded rows in the object store, in about one block per CPU and in the files' order."""
    context = ray.data.DataContext.get_current()
    # Blocks must hold the same rows in every run: scores depend on them in their last bits.
    context.execution_options.preserve_order = True
    blocks = max(2, int(ray.cluster_resources().get("CPU", 2)))
    return ray.data.read_parquet(list(files)).select_columns(list(COLUMNS)).repartition(blocks).materialize()


def _select_rows(dataset: Any, ids: np.ndarray) -> pa.Table:
    wanted = ray.put(ids)
    refs = dataset.map_batches(
        _select_block,
        fn_kwargs={"wanted": [wanted]},
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
    ).to_arrow_refs()
    return pa.concat_tables([t for t in ray.get(refs) if t.num_rows])


def _select_block(block: pa.Table, wanted: list[Any]) -> pa.Table:
    return select(block, ray.get(wanted[0]))


def _follow(book: Any, watch: Callable[[dict[str, object]], None], stop: threading.Event) -> None:
    """Show progress until told to stop, the end included; what cannot be seen is not shown."""
    stopping = False
    while not stopping:
        stopping = stop.wait(PROGRESS_SECONDS)
        try:
            events = ray.get(book.events.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue
        for event in events:
            watch(event)
