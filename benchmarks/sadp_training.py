"""Training on pruned data to convergence: SADP beside its rivals, by accuracy, compute and time.

    python -m benchmarks.sadp_training [--output FILE.json] [--tasks fashion ...] [--ratios 0.9 ...]
        [--methods sadp random ...] [--seeds 8] [--processes 2] [--smoke]
    python -m benchmarks.sadp_training --summary FILE.json

Every run is `pipelines.run.run` with the local engine and one thread: SGD with a cosine schedule, T = 4, the
first epoch on all data. Tasks (real data below ../shared/data):

- fashion: Fashion-MNIST, 20,000 training and 10,000 test rows, convnet 16-32, hidden 64, 15 epochs;
- fashion-wrong: the same with 20 % of the training labels wrong, always the same rows;
- cifar: CIFAR-10 (a JPEG re-encode) at 16x16, 20,000 and 10,000 rows, the same net;
- cifar-sew: the same rows with flips and shifts, SEW-ResNet-18 of width 16;
- nmnist: N-MNIST recordings, 1,000 and 100 rows, T = 5, 30 epochs.

Besides the policies: "full, fewer epochs" trains on all data for as many examples as the pruned runs see
(rounded up to whole epochs), with its own cosine schedule; "sadp fresh" scores all examples before every
pruned epoch, and "random, compute of fresh" draws as many more examples as these passes cost; "sadp, plain
norm" is SADP with batch statistics that ignore the weights, as up to version 0.1.

Finished runs are kept in FILE.jsonl, a line each; the same command goes on where it was stopped, and from
the rows of FILE.json where there is no journal. Seconds are CPU seconds of scoring, selecting, optimiser
steps and batch norm re-estimation.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from benchmarks import cifar16, sadp_tables
from benchmarks.about import about
from benchmarks.journal import Journal
from benchmarks.real_data import folder
from pipelines import cli
from pipelines.config import (
    AugmentConfig,
    ClusterConfig,
    Config,
    DataConfig,
    DataPruningConfig,
    ModelConfig,
    TrainConfig,
)
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pruning.examples.policies.settings import FORWARD_COST

KEY = ("task", "ratio", "seed", "method")
PARTS = ("score", "select", "train", "norm")
"""What counts as training time."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset and how a network is trained on it."""

    data: str
    train_rows: int = 20_000
    test_rows: int = 10_000
    wrong: float = 0.0
    epochs: int = 15
    batch_size: int = 64
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(name="convnet", channels=(16, 32), hidden=(64,))
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ratios: tuple[float, ...] = (0.9, 0.7, 0.5)
    seeds: int = 3


SEW = ModelConfig(name="sew_resnet18", options={"width": 16})
TASKS = {
    "fashion": Task(data="fashion-mnist", seeds=8),
    "fashion-wrong": Task(data="fashion-mnist", wrong=0.2),
    "cifar": Task(data="cifar10"),
    "cifar-sew": Task(data="cifar10", model=SEW, augment=AugmentConfig(crop=2, flip=True)),
    "nmnist": Task(
        data="nmnist",
        train_rows=1000,
        test_rows=100,
        epochs=30,
        batch_size=32,
        model=ModelConfig(name="convnet", channels=(16, 32), hidden=(64,), T=5),
    ),
}


@dataclass(frozen=True)
class Method:
    """A policy with its settings."""

    policy: str
    examples: dict[str, Any] = field(default_factory=dict)
    everywhere: bool = True
    """Whether it runs with all seeds of a task; the others with three."""


METHODS = {
    "full": Method("full"),
    "full, fewer epochs": Method("full"),
    "random": Method("random"),
    "sadp": Method("sadp"),
    "el2n": Method("el2n"),
    "infobatch matched": Method("infobatch_matched"),
    "repb matched": Method("repb_matched"),
    "orderdp": Method("orderdp"),
    "seta matched": Method("seta_matched"),
    "sadp, unbiased weights": Method("sadp", {"weight_power": 1.0}),
    "sadp, equal weights": Method("sadp", {"weight_power": 0.0}),
    "infobatch matched, unbiased weights": Method("infobatch_matched", {"weight_power": 1.0}),
    "el2n, unbiased weights": Method("el2n", {"weight_power": 1.0}, everywhere=False),
    "infobatch": Method("infobatch", everywhere=False),
    "sadp, first epoch pruned": Method("sadp", {"warmup_epochs": 0, "score_from": 1}, everywhere=False),
    "sadp, growing ratio": Method("sadp", {"growing": True}, everywhere=False),
    "sadp, plain norm": Method("sadp", {"weight_power": 1.0}),
    "sadp fresh": Method("sadp", {"rescore_every": 1}, everywhere=False),
    "random, compute of fresh": Method("random", everywhere=False),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    ratio: float
    seed: int
    method: str


def plan(
    tasks: Sequence[str], ratios: Sequence[float] | None, methods: Sequence[str], seeds: int
) -> list[Run]:
    """All runs: task by task and ratio by ratio, the methods of a seed together."""
    runs = []
    for task in tasks:
        for ratio in ratios or TASKS[task].ratios:
            for seed in range(min(seeds, TASKS[task].seeds)):
                for name in methods:
                    if seed < 3 or METHODS[name].everywhere:
                        runs.append(Run(task, 0.0 if name == "full" else ratio, seed, name))
    return list(dict.fromkeys(runs))


# Runs, in worker processes.


def start_process() -> None:
    """One thread, and an end with the parent: a pool's processes would outlive one that is killed."""
    from snn.kernels.allocator import tune_allocator

    def end_with_parent() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    tune_allocator()
    torch.set_num_threads(1)


def execute(one: Run, task: Task, data: Path, storage: Path) -> Row:
    """Train once and say how it went; the run's own folder is removed."""
    config = config_of(one, task, data, storage)
    patched: AbstractContextManager[object] = nullcontext()
    if one.method == "sadp, plain norm":
        patched = mock.patch("pipelines.training.steps.weighted_statistics", return_value=nullcontext())
    with patched:
        done = run(config, "train", console=Console(quiet=True))
    records = read_metrics(done)
    shutil.rmtree(done)
    return {**asdict(one), **condensed(records, task)}


def config_of(one: Run, task: Task, data: Path, storage: Path) -> Config:
    """The product's config of a run."""
    settings = {"warmup_epochs": 1, "anneal_epochs": 0, **METHODS[one.method].examples}
    ratio, epochs = one.ratio, task.epochs
    if settings.pop("growing", False):  # the same examples in all
        settings["ratio_from"], ratio = 2 * ratio - 0.95, 0.95
    if one.method == "full, fewer epochs":
        epochs = ceil(round(1 + (epochs - 1) * (1 - ratio), 6))
    if one.method == "random, compute of fresh":
        ratio = max(0.0, ratio - FORWARD_COST)
    return Config(
        name=f"{os.getpid()}",
        storage=str(storage),
        seed=one.seed,
        data=DataConfig(
            path=str(data), train_rows=task.train_rows, test_rows=task.test_rows, augment=task.augment
        ),
        model=task.model,
        train=TrainConfig(epochs=epochs, batch_size=task.batch_size),
        data_pruning=DataPruningConfig(policy=METHODS[one.method].policy, ratio=ratio, **settings),
        cluster=ClusterConfig(engine="local", workers=1),
    )


def condensed(records: list[Row], task: Task) -> Row:
    """A run's epochs in one row."""
    examples, rescored = (sum(r[key] for r in records) for key in ("examples", "rescored"))
    of_all = task.train_rows * task.epochs
    pruned = [r for r in records if r["examples"] < task.train_rows]
    cpu = {part: round(sum(r["cpu_seconds"][part] for r in records), 3) for part in PARTS}
    last = records[-1]
    return {
        "accuracy": last["test_accuracy"],
        "nll": round(last["test_loss"], 5),
        "train_loss": round(last["train_loss"], 5),
        "examples": examples,
        "rescored": rescored,
        "share": examples / of_all,
        "share_scored": (examples + FORWARD_COST * rescored) / of_all,
        "cpu_s": round(sum(cpu.values()), 3),
        "cpu_parts_s": cpu,
        "max_weight": round(max(r["max_weight"] for r in records), 3),
        "effective_share": round(sum(r["effective_share"] for r in pruned) / len(pruned), 4)
        if pruned
        else 1.0,
        "accuracy_by_epoch": [r["test_accuracy"] for r in records],
    }


def prepared(name: str, task: Task, scratch: Path) -> Path:
    """The task's dataset folder: the shared one where it serves as it is."""
    if task.data == "cifar10":
        sizes = {"train_rows": task.train_rows, "test_rows": task.test_rows, "side": 16}
        if not (scratch / name).exists():
            cifar16.write(scratch / name, wrong=task.wrong, **sizes)
        return scratch / name
    if task.data == "nmnist":
        cli.main(
            ["data", "ingest", "parquet", "--input", str(folder("nmnist")), "--output", str(scratch / name)]
        )
        return scratch / name
    if not task.wrong:
        return folder(task.data)
    source, output = folder(task.data), scratch / name
    output.mkdir(exist_ok=True)
    for file in sorted(source.glob("test-*.parquet")):
        (output / file.name).symlink_to(file)
    files = sorted(source.glob("train-*.parquet"))
    rows = pa.concat_tables([pq.read_table(f) for f in files]).slice(0, task.train_rows)
    labels = cifar16.make_wrong(rows.column("label").to_numpy(), task.wrong, classes=10)
    at = rows.column_names.index("label")
    pq.write_table(rows.set_column(at, rows.schema.field(at), pa.array(labels)), output / "train.parquet")
    return output


def measure(runs: list[Run], tasks: dict[str, Task], processes: int, keep: Callable[[Row], None]) -> None:
    """Execute the runs, handing each row to ``keep`` as soon as it is there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes as they start
    with tempfile.TemporaryDirectory() as scratch:
        data = {
            name: prepared(name, tasks[name], Path(scratch)) for name in dict.fromkeys(r.task for r in runs)
        }
        storage = Path(scratch) / "runs"
        pool = ProcessPoolExecutor(processes, get_context("spawn"), start_process)
        try:
            jobs = [pool.submit(execute, r, tasks[r.task], data[r.task], storage) for r in runs]
            for future in as_completed(jobs):
                keep(future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--ratios", type=float, nargs="+", help="the task's own when not given")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=8, help="at most; most methods and tasks have three")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="500 rows and two epochs, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("runs/sadp_training.json"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print a result's tables and stop")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.summary:
        print(sadp_tables.tables(json.loads(options.summary.read_text())))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on from here"))
    tasks = TASKS
    if options.smoke:
        tasks = {
            name: replace(t, train_rows=500, test_rows=100, epochs=2, augment=AugmentConfig())
            for name, t in TASKS.items()
        }
    journal = Journal(options.output.with_suffix(".jsonl"), KEY, options.output)
    runs = plan(options.tasks, options.ratios, options.methods, options.seeds)
    todo, started = [one for one in runs if asdict(one) not in journal], time.monotonic()
    first = len(journal.rows)

    def keep(row: Row) -> None:
        journal.add(row)
        done, minutes = len(journal.rows) - first, (time.monotonic() - started) / 60
        print(
            f"{done}/{len(todo)} {row['task']} r={row['ratio']:g} seed {row['seed']} {row['method']}: "
            f"{row['accuracy']:.2%}, {row['cpu_s']:.1f} s; {minutes:.1f} minutes",
            flush=True,
        )

    if todo:
        measure(todo, tasks, options.processes, keep)
    order = [list(TASKS), list(METHODS)]
    journal.rows.sort(
        key=lambda r: (order[0].index(r["task"]), r["ratio"], order[1].index(r["method"]), r["seed"])
    )
    journal.store(options.output, about("benchmarks.sadp_training", sys.argv[1:]))
    print(sadp_tables.tables({"rows": journal.rows}))


if __name__ == "__main__":
    main()
