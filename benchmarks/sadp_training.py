"""Training on pruned data: SADP beside its rivals at equal epochs, on clean and on wrong labels.

    python -m benchmarks.sadp_training [--output FILE.json] [--seeds 5] [--quick | --full]
    python -m benchmarks.sadp_training --summary FILE.json

Real CIFAR-10 (the JPEG re-encode below ../shared/data), its first 4,000 training and 2,000 test rows at
16x16, and a small convolutional net, trained by the product itself: every run is `pipelines.run.run` with
the local engine and its default optimiser, first and last epoch on all data. Wrong labels: 20 % of the
training labels, always the same rows; test labels stay. Methods:

- full;
- random: a uniform subset, drawn anew each epoch;
- random, equal compute: uniform on as many more examples as "sadp fresh" spends on its scoring passes, at
  --pass-cost of a trained example each (all data, hence the full run, where that exceeds 1);
- infobatch: losses from the training steps; as published, which leaves out about r / 2 of all, and
  matched: scaled down to the budget of the others (our adaptation);
- el2n and sadp: stale (scores from the training steps alone), fresh (a pass before every pruned epoch), and
  for sadp before every second one.

Runs go through a pool of single-threaded processes in an order that rotates over the methods. Finished runs
are kept in FILE.jsonl: the same command goes on where it was stopped. Wall and CPU seconds are those of
scoring, selecting, optimiser steps and batch norm re-estimation. A test of 2,000 rows has a standard
deviation of 1.1 points by itself, mostly common to the runs that are compared.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from benchmarks import cifar16
from benchmarks.about import commit
from pipelines.config import (
    ClusterConfig,
    Config,
    DataConfig,
    ExamplesConfig,
    ModelConfig,
    ModelName,
    PolicyName,
    TrainConfig,
)
from pipelines.data.files import write_beside, write_json
from pipelines.run import run
from pipelines.run_folder import read_metrics
from pruning.examples.policies import make_policy
from pruning.examples.policy import FORWARD_COST

RATIOS = (0.3, 0.5, 0.7)
WRONG = {"clean": 0.0, "wrong": 0.2}
"""Share of wrong training labels by setting."""
PARTS = ("score", "select", "train", "norm")
"""What counts as training time."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A policy with its source of scores."""

    policy: str
    rescore_every: int = 0


METHODS = {
    "full": Method("full"),
    "random": Method("random"),
    "random, equal compute": Method("random"),
    "infobatch": Method("infobatch"),
    "infobatch matched": Method("infobatch_matched"),
    "el2n stale": Method("el2n"),
    "el2n fresh": Method("el2n", 1),
    "sadp stale": Method("sadp"),
    "sadp every 2nd": Method("sadp", 2),
    "sadp fresh": Method("sadp", 1),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs share."""

    train_rows: int = 4000
    test_rows: int = 2000
    epochs: int = 10
    batch_size: int = 64
    side: int = 16
    model: ModelName = "convnet"
    channels: tuple[int, ...] | None = (24, 48)
    hidden: tuple[int, ...] | None = (128,)
    pass_cost: float = FORWARD_COST
    """What scoring an example costs, in units of training on it."""


QUICK = Setup(train_rows=1000, test_rows=500, epochs=4)
FULL = Setup(
    train_rows=50_000,
    test_rows=10_000,
    epochs=30,
    batch_size=128,
    side=32,
    model="vgg6",
    channels=None,
    hidden=None,
)


@dataclass(frozen=True)
class Run:
    """One training, told from all others."""

    labels: str
    seed: int
    method: str
    ratio: float


def plan(setup: Setup, ratios: Sequence[float], seeds: int) -> list[Run]:
    """All runs: a block per seed and label setting, each starting with another method."""
    blocks = [(labels, seed) for seed in range(seeds) for labels in WRONG]
    runs = []
    for index, (labels, seed) in enumerate(blocks):
        block = [Run(labels, seed, "full", 0.0)]
        block += [
            Run(labels, seed, method, r)
            for method in list(METHODS)[1:]
            for r in ratios
            if method != "random, equal compute" or equal_compute_ratio(setup, r) > 0
        ]
        start = index * len(block) // len(blocks)
        runs += block[start:] + block[:start]
    return runs


def equal_compute_ratio(setup: Setup, ratio: float) -> float:
    """Pruning ratio of uniform sampling that costs what SADP with fresh scores costs, 0 at least."""
    return make_policy(
        "sadp",
        num_examples=setup.train_rows,
        ratio=ratio,
        seed=0,
        epochs=setup.epochs,
        rescore_every=1,
        scoring_cost=setup.pass_cost,
    ).equal_compute_ratio()


# Runs, in worker processes.


def start_process(setup: Setup, folder: Path) -> None:
    """One thread, and a short run for everything that is loaded or compiled on first use."""
    from snn.kernels.allocator import tune_allocator

    threading.Thread(target=_end_with_parent, daemon=True).start()
    tune_allocator()
    torch.set_num_threads(1)
    execute(Run("clean", 0, "sadp fresh", 0.9), replace(setup, epochs=1), folder, full_epochs=0)


def _end_with_parent() -> None:
    """A pool's processes would outlive a parent that is killed."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def execute(one: Run, setup: Setup, folder: Path, *, full_epochs: int = 1) -> Row:
    """Train once and say how it went; the run's own folder is removed."""
    method = METHODS[one.method]
    equal = one.method == "random, equal compute"
    config = Config(
        name=f"{os.getpid()}",
        storage=str(folder / "runs"),
        seed=one.seed,
        data=DataConfig(path=str(folder / one.labels)),
        model=ModelConfig(name=setup.model, channels=setup.channels, hidden=setup.hidden),
        train=TrainConfig(epochs=setup.epochs, batch_size=setup.batch_size),
        examples=ExamplesConfig(
            policy=cast(PolicyName, method.policy),
            ratio=equal_compute_ratio(setup, one.ratio) if equal else one.ratio,
            rescore_every=method.rescore_every,
            warmup_epochs=full_epochs,
            anneal_epochs=full_epochs,
        ),
        cluster=ClusterConfig(engine="local", workers=1),
    )
    done = run(config, "train", console=Console(quiet=True))
    records = read_metrics(done)
    shutil.rmtree(done)
    return {**asdict(one), **condensed(records, setup)}


def condensed(records: list[Row], setup: Setup) -> Row:
    """A run's epochs in one row."""
    examples = sum(r["examples"] for r in records)
    rescored = sum(r["rescored"] for r in records)
    of_all = setup.train_rows * setup.epochs
    ages = [
        r["mean_score_age"]
        for r in records
        if r["mean_score_age"] is not None and r["examples"] < setup.train_rows
    ]
    wall = {part: sum(r["seconds"][part] for r in records) for part in PARTS}
    cpu = {part: sum(r["cpu_seconds"][part] for r in records) for part in PARTS}
    return {
        "accuracy": records[-1]["test_accuracy"],
        "nll": records[-1]["test_loss"],
        "examples": examples,
        "rescored": rescored,
        "share": examples / of_all,
        "share_scored": (examples + setup.pass_cost * rescored) / of_all,
        "wall_s": sum(wall.values()),
        "cpu_s": sum(cpu.values()),
        "wall_parts_s": wall,
        "cpu_parts_s": cpu,
        "max_weight": max(r["max_weight"] for r in records),
        "mean_score_age": statistics.mean(ages) if ages else None,
        "accuracy_by_epoch": [r["test_accuracy"] for r in records],
    }


def measure(runs: list[Run], setup: Setup, processes: int, keep: Callable[[Row], None]) -> None:
    """Execute the runs, handing each row to ``keep`` as soon as it is there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes as they start
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for labels, wrong in WRONG.items():
            sizes = {"train_rows": setup.train_rows, "test_rows": setup.test_rows, "side": setup.side}
            cifar16.write(folder / labels, wrong=wrong, **sizes)
        pool = ProcessPoolExecutor(processes, get_context("spawn"), start_process, (setup, folder))
        try:
            for future in as_completed([pool.submit(execute, one, setup, folder) for one in runs]):
                keep(future.result())
        finally:
            pool.shutdown(cancel_futures=True)


# What is kept.


class Journal:
    """Finished runs, a line each, under a first line with the setup that they share."""

    def __init__(self, path: Path, setup: Setup) -> None:
        self.path = path
        self.rows: list[Row] = []
        head = json.loads(json.dumps(asdict(setup)))
        if path.exists():
            stored, self.rows = read_journal(path)
            if stored not in (head, {}):
                sys.exit(f"{path} holds runs of another setup ({stored}); choose another --output")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in ({"setup": head}, *self.rows))
        write_beside(path, lambda p: p.write_text(lines))  # anew: a line cut off by a kill is gone

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        done = {Run(r["labels"], r["seed"], r["method"], r["ratio"]) for r in self.rows}
        return [one for one in runs if one not in done]


def read_journal(path: Path) -> tuple[Row, list[Row]]:
    """Setup and rows of a journal, without a last line that is not whole."""
    text = path.read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return (lines[0]["setup"], lines[1:]) if lines else ({}, [])


def about(arguments: Sequence[str], processes: int) -> Row:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "command": shlex.join(["python", "-m", "benchmarks.sadp_training", *arguments]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{name}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "processes": processes,
        "load_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "pyarrow")},
    }


# Tables.

HEAD = (
    "method", "r", "n", "accuracy % (sd)", "- full (sd)", "NLL", "max weight", "score age",
    "examples", "1 / examples", "with scoring", "1 / with scoring", "wall speed-up", "CPU speed-up",
)  # fmt: skip


def tables(rows: list[Row], setup: Row) -> str:
    """One Markdown table per label setting."""
    text = []
    for labels in dict.fromkeys(r["labels"] for r in rows):
        of = [r for r in rows if r["labels"] == labels]
        text += [f"\n### {WRONG[labels]:.0%} wrong labels\n", _line(HEAD), _line(["---"] * len(HEAD))]
        full = {r["seed"]: r for r in of if r["method"] == "full"}
        for ratio in sorted({r["ratio"] for r in of}):
            for method in METHODS:
                found = {r["seed"]: r for r in of if (r["method"], r["ratio"]) == (method, ratio)}
                if method == "random, equal compute" and ratio and not found:
                    text.append(_line([method, f"{ratio:g}", *["= full"] + [""] * (len(HEAD) - 3)]))
                elif found:
                    text.append(_line(_cells(method, ratio, found, full)))
    return "\n".join([*text, "", _costs(rows, setup["pass_cost"])])


def _cells(method: str, ratio: float, found: dict[int, Row], full: dict[int, Row]) -> list[str]:
    rows = list(found.values())
    paired = sorted(found.keys() & full.keys())
    accuracy = [100 * r["accuracy"] for r in rows]
    share, scored = (statistics.mean(r[key] for r in rows) for key in ("share", "share_scored"))
    ages = [r["mean_score_age"] for r in rows if r["mean_score_age"] is not None]
    return [
        method,
        f"{ratio:g}",
        str(len(rows)),
        f"{statistics.mean(accuracy):.2f} ({_sd(accuracy)})",
        _mean_sd([100 * (found[s]["accuracy"] - full[s]["accuracy"]) for s in paired]),
        f"{statistics.mean(r['nll'] for r in rows):.3f}",
        f"{max(r['max_weight'] for r in rows):.1f}",
        f"{statistics.mean(ages):.2f}" if ages else "",
        f"{share:.3f}",
        f"{1 / share:.2f}",
        f"{scored:.3f}",
        f"{1 / scored:.2f}",
        *(_speedup(found, full, paired, key) for key in ("wall_s", "cpu_s")),
    ]


def _speedup(found: dict[int, Row], full: dict[int, Row], paired: list[int], key: str) -> str:
    """Median over seeds, so that one disturbed run does not decide."""
    if not paired:
        return ""
    before, after = (statistics.median(of[s][key] for s in paired) for of in (full, found))
    return f"{before / after:.2f}"


def _costs(rows: list[Row], pass_cost: float) -> str:
    """What a scored example took in units of a trained one, beside the constant in the tables."""
    passes = [r for r in rows if r["rescored"]]
    if not passes or all(r["method"] != "full" for r in rows):
        return ""
    cost = statistics.median(
        (r["cpu_parts_s"]["score"] / r["rescored"]) / (r["cpu_parts_s"]["train"] / r["examples"])
        for r in passes
    )
    norm = statistics.median(r["cpu_parts_s"]["norm"] / r["cpu_s"] for r in rows if r["method"] == "full")
    return (
        f"Scoring an example took {cost:.2f} of training on one (CPU, median of {len(passes)} runs); "
        f'"with scoring" counts {pass_cost:g}. Batch norm re-estimation, which no data pruning shortens, '
        f"is {norm:.0%} of the full run's time."
    )


def _mean_sd(values: list[float]) -> str:
    return f"{statistics.mean(values):+.2f} ({_sd(values)})" if values else ""


def _sd(values: list[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summarise(path: Path) -> None:
    if path.suffix == ".jsonl":
        setup, rows = read_journal(path)
    else:
        stored = json.loads(path.read_text())
        setup, rows = stored["setup"], stored["rows"]
        print("\n".join(f"{key}: {value}" for key, value in stored["about"].items()))
    print(f"setup: {setup}")
    print(tables(rows, setup))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smoke test: 1 seed, r = 0.5, little data")
    size.add_argument("--full", action="store_true", help="all of CIFAR-10 at 32x32 on VGG-6, for a GPU")
    parser.add_argument("--seeds", type=int, help="3 when not given")
    parser.add_argument("--ratios", type=float, nargs="+", help="0.3 0.5 0.7 when not given")
    parser.add_argument("--train-rows", type=int)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pass-cost", type=float, help=f"{FORWARD_COST} when not given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/sadp_training.json"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print a result's tables and stop")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.summary:
        summarise(options.summary)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on from here"))
    setup = QUICK if options.quick else FULL if options.full else Setup()
    given = {k: getattr(options, k) for k in ("train_rows", "test_rows", "epochs", "pass_cost")}
    setup = replace(setup, **{k: v for k, v in given.items() if v is not None})
    ratios = options.ratios or ([0.5] if options.quick else RATIOS)
    journal = Journal(options.output.with_suffix(".jsonl"), setup)
    runs = plan(setup, ratios, options.seeds or (1 if options.quick else 3))
    todo = journal.missing(runs)
    started = time.monotonic()
    first = len(journal.rows)

    def keep(row: Row) -> None:
        journal.add(row)
        done, minutes = len(journal.rows) - first, (time.monotonic() - started) / 60
        print(
            f"{done}/{len(todo)} {row['labels']} seed {row['seed']} {row['method']} r={row['ratio']:g}: "
            f"{row['accuracy']:.2%}, {row['wall_s']:.1f} s; {minutes:.1f} of about "
            f"{minutes / done * len(todo):.0f} minutes",
            flush=True,
        )

    if todo:
        measure(todo, setup, options.processes, keep)
    told = {"about": about(sys.argv[1:], options.processes), "setup": asdict(setup), "rows": journal.rows}
    write_json(options.output, told)
    summarise(options.output)


if __name__ == "__main__":
    main()
