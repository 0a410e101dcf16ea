"""The launcher on Ray: Ray Train's workers, Ray Data's rows and scores, one score book actor.

A run is one `TorchTrainer.fit`. Each worker fetches the rows that `order` assigns to it by selecting
them in Ray Data tasks from the materialised dataset, encoded, before anything is decoded.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.metrics import Gauge
from torch import Tensor, nn

from cluster.connect import quiet_data
from cluster.storage import Remote
from pipelines.config import ClusterConfig
from pipelines.data.dataset import Split
from pipelines.data.ids import IdSet
from pipelines.data.layout import Layout, read_rows, read_stretch, select
from pipelines.errors import UserError
from pipelines.networks import architecture
from pipelines.own_code import OwnCode, activate
from pipelines.scoring import Scorers, Scoring, mistake, score_dataset, scorers_of, stream_scores
from pipelines.training.book_shards import BookShard, shardable, split_ids
from pipelines.training.checkpoint import latest_checkpoint
from pipelines.training.engine import Shared, TestRows
from pipelines.training.feed import Feed
from pipelines.training.loop import run_phases
from pipelines.training.process_group import NodeTorchConfig
from pipelines.training.remote_book import book_of
from pipelines.training.rows import Rows
from pipelines.training.score_book import Drawn
from pipelines.training.shards import ShardSource, StreamedRows, ordered_layout
from pipelines.training.storage import explained, mend
from pipelines.training.worker import RunSpec, memory_feed, start
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork

PROGRESS_SECONDS = 0.2
CHECKPOINTS = "checkpoints"
READ_ROWS = 4096  # of row groups that one task reads at least
MAX_READS = 8  # tasks that read for a worker at once


class BookActor(BookShard):
    """The score book, or a range of it, as an actor; the first also keeps each epoch's latest event."""

    def __init__(self, ids: IdSet, code: OwnCode | None) -> None:
        activate(code)
        super().__init__(ids)
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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every Ray Train worker is started with."""

    spec: RunSpec
    train: Any
    """Materialised Ray Dataset of the training rows, encoded; ``None`` where they are read by row groups."""
    test: Any
    """As ``train``, for the test rows."""
    books: list[Any]
    """Handles of the score book's actors, by id range."""
    bounds: list[int]
    """First ids of their ranges, and the end of the last."""
    started: Callable[[], None] | None = None
    """Called by the first worker when a group of workers starts."""

    @property
    def book(self) -> Any:
        """The actor that also keeps progress."""
        return self.books[0]


class RayEngine:
    """One Ray Train worker's surroundings (see `pipelines.training.engine.Engine`)."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = get_device()
        self.book = book_of(job.books, job.bounds, len(job.spec.ids))
        self._job = job
        self._test: TestRows | None = None
        self._noted = 0.0
        self._gauges: dict[str, Gauge] = {}
        spec = job.spec
        self._source = (
            ShardSource(spec.train, spec.window_rows, self.rank, self.world_size, _read_by_tasks)
            if spec.shards
            else None
        )

    def warm_up(self) -> None:
        """Ray Data's executor and task processes."""
        first = self._job.spec.ids.first
        self.fetch(self._job.spec.ids.array(first, first + 1))
        self.barrier()

    def fetch(self, ids: np.ndarray) -> Rows:
        """Select by tasks that read the object store, or the row groups, and nothing else."""
        return self._source.fetch(ids) if self._source else Rows(_select_rows(self._job.train, ids))

    def feed(self, drawn: Drawn, *, seed: int, global_batch: int, also: np.ndarray) -> tuple[Feed, Rows]:
        """From the object store, or from row groups."""
        if self._source:
            return self._source.feed(self.book, drawn, seed=seed, global_batch=global_batch, also=also)
        return memory_feed(self, self._job.spec, drawn, seed=seed, global_batch=global_batch, also=also)

    def test_rows(self) -> TestRows:
        """Every ``world_size``-th test row, fetched once; an equal stretch, where they are read."""
        if self._test is None and self._source:
            self._test = StreamedRows(self._job.spec.test, self.rank, self.world_size, _read_by_tasks)
        elif self._test is None:
            rows = Rows(pa.concat_tables(ray.get(self._job.test.to_arrow_refs())))
            self._test = rows.share(self.rank, self.world_size)
        return self._test

    def start_scoring(
        self, model: SpikingNetwork, scoring: Scoring, *, epoch: int, stamp: int
    ) -> Callable[[], int]:
        """In a task that needs no CPU of its own; its Ray Data tasks take the spare ones."""
        spec = self._job.spec
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        # A pass for a later epoch runs beside training; for this one, training waits for it.
        scorers = replace(scorers_of(spec.config.cluster), spare=epoch > stamp)
        pass_ = ScoringPass(weights, architecture(spec.config.model, spec.info), scoring, scorers)
        beside = ray.remote(_score_beside).options(num_cpus=0)
        if spec.shards:
            count = self.book.open_pass(epoch)
            if not count:
                return lambda: 0
            ref = beside.remote(ray.put(pass_), spec.code, ordered_layout(spec.train), self.book, stamp)
            return lambda: count if _result(ref) is None else 0
        ids = self.book.rescore(epoch)
        if ids is None or not len(ids):
            return lambda: 0
        ref = beside.remote(ray.put(pass_), spec.code, self._job.train, ids)

        def deliver() -> int:
            self.book.observe(ids, _result(ref), stamp, "pass")
            return len(ids)

        return deliver

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


def train_on_ray(spec: RunSpec, *, watch: Callable[[dict[str, object]], None]) -> None:
    """Run a spec's phases on the connected Ray cluster, from its newest checkpoint if there is one.

    Raises:
        UserError: a mistake that only the workers could see.
    """
    train_on_datasets(spec, watch=watch)


def train_on_datasets(
    spec: RunSpec,
    *,
    train: Any = None,
    test: Any = None,
    watch: Callable[[dict[str, object]], None],
    callbacks: Sequence[Any] = (),
    started: Callable[[], None] | None = None,
) -> None:
    """As `train_on_ray`, on rows that are in the object store already.

    Args:
        spec: of the run.
        train: materialised dataset of the training rows, from `load_rows`; loaded, or read by row groups,
            as the spec says when not given.
        test: and of the test rows.
        watch: is shown progress events.
        callbacks: for Ray Train's `RunConfig`.
        started: called by the first worker when a group of workers starts.

    Raises:
        UserError: a mistake that only the workers could see.
    """
    quiet_data()
    if train is None and not spec.shards:
        train, test = load_rows(spec.train), load_rows(spec.test)
    cluster = spec.config.cluster
    books, bounds = _start_books(spec)
    book = books[0]
    job = Job(spec=spec, train=train, test=test, books=books, bounds=bounds, started=started)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        torch_config=NodeTorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
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
            **_checkpoint_storage(spec),
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
            with explained(Path(spec.folder), spec.remote):
                raise
    except SystemExit:  # how Ray Train's own handler ends on Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        stop.set()
        watcher.join()
        for actor in books:
            ray.kill(actor)
    if mistake is not None:
        raise UserError(*mistake)


def _checkpoint_storage(spec: RunSpec) -> dict[str, Any]:
    """Where Ray Train puts checkpoints, from whichever node: the run's folder, wherever that is."""
    if spec.remote is None:
        return {"storage_path": spec.folder}
    remote = Remote.of(spec.remote)
    return {"storage_path": remote.root, "storage_filesystem": remote.filesystem}


def _start_books(spec: RunSpec) -> tuple[list[Any], list[int]]:
    """The score book's actors, and the bounds of their id ranges; one actor for policies that rank all."""
    policies = {phase.examples.policy for phase in spec.phases if phase.examples is not None}
    parts = [spec.ids]
    if len(spec.ids) > spec.config.cluster.ids_per_book and all(map(shardable, policies)):
        parts = split_ids(spec.ids, spec.config.cluster.ids_per_book)
    name = f"score-book-{Path(spec.folder).name}-{uuid4().hex}"
    actor, options = ray.remote(BookActor), {"num_cpus": 0, "max_restarts": -1}
    books = [
        actor.options(name=f"{name}-{k}", **options).remote(part, spec.code) for k, part in enumerate(parts)
    ]
    return books, [*(part.first for part in parts), spec.ids.end]


def _worker_counts(cluster: ClusterConfig) -> int | tuple[int, int]:
    if cluster.min_workers is None or cluster.min_workers == cluster.workers:
        return cluster.workers
    return cluster.min_workers, cluster.workers


@dataclass(frozen=True)
class ScoringPass:
    """One pass's network and settings, on their way to a task."""

    weights: dict[str, Tensor]
    architecture: dict[str, Any]
    scoring: Scoring
    scorers: Scorers


def _score_beside(
    pass_: ScoringPass, code: OwnCode | None, source: Any, whom: Any, stamp: int | None = None
) -> np.ndarray | None:
    """Scores of the rows ``whom`` of a dataset; or, from row groups, straight into the book ``whom``."""
    quiet_data()
    activate(code)
    p = pass_
    if stamp is None:
        return score_dataset(source, p.weights, p.architecture, whom, p.scoring, p.scorers)
    for table in stream_scores(source, whom, p.weights, p.architecture, p.scoring, p.scorers):
        scores = table.column(p.scoring.scores[0]).to_numpy()
        whom.observe(table.column("id").to_numpy(), scores, stamp, "pass")
    return None


def _result(ref: Any) -> Any:
    """A task's result; a user's mistake that it met is raised as such."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None


def _read_by_tasks(layout: Layout, ids: np.ndarray) -> Callable[[], pa.Table]:
    """Read row groups in a few tasks, each of which owns a stretch of them."""
    # Not within the workers' placement group, which they would pass on below a search.
    read = ray.remote(read_rows).options(scheduling_strategy="DEFAULT")
    rows = max(READ_ROWS, -(-int(layout.rows.sum()) // MAX_READS))
    refs = [read.remote(part, ids) for part in layout.parts(rows)]
    return lambda: pa.concat_tables([table for table in _result(refs) if table.num_rows])


def _train_worker(config: dict[str, Any]) -> None:
    quiet_data()
    tune_allocator()
    torch.set_num_threads(1)
    job: Job = config["job"]
    activate(job.spec.code)
    if job.started is not None and ray.train.get_context().get_world_rank() == 0:
        job.started()
    if ray.get(job.book.mistake.remote()) is not None:
        return  # the group was restarted after a mistake that the driver will report
    try:
        resume = ray.train.get_checkpoint()
        run = Path(job.spec.folder)
        unlisted = nullcontext(latest_checkpoint(run / CHECKPOINTS) if job.spec.remote is None else None)
        with (
            explained(run, job.spec.remote),
            resume.as_directory() if resume is not None else unlisted as folder,
        ):
            path = Path(folder) if folder is not None else None
            run_phases(start(job.spec, RayEngine(job), path), path)
    except UserError as error:
        ray.get(job.book.refuse.remote(error.where, error.what))
        raise


def load_rows(split: Split) -> Any:
    """Encoded rows in the object store, in about one block per CPU and in the files' order.

    Raises:
        UserError: a row group that cannot be read.
    """
    context = ray.data.DataContext.get_current()
    # Blocks must hold the same rows in every run: scores depend on them in their last bits.
    context.execution_options.preserve_order = True
    blocks = max(2, int(ray.cluster_resources().get("CPU", 2)))
    source = ray.put((split.layout, split.ids, blocks))
    try:
        return (
            ray.data.range(blocks, override_num_blocks=blocks)
            .map_batches(
                _load_block,  # type: ignore[arg-type]  # Ray's stubs know no functions with more arguments
                fn_kwargs={"source": [source]},
                batch_format="pyarrow",
                batch_size=None,
            )
            .materialize()
        )
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None


def _load_block(block: Any, source: list[Any]) -> Iterator[Any]:
    layout, ids, blocks = ray.get(source[0])
    for number in block.column("id").to_pylist():
        yield read_stretch(layout, number, blocks, ids)


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
