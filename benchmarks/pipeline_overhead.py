"""What the pipeline costs: Ray against one plain process, and achieved against theoretical speed-up.

    python -m benchmarks.pipeline_overhead [--cases engines ratios steps] [--rows 4000]
        [--output FILE.json]
    python -m benchmarks.pipeline_overhead --summary FILE.json

A slice of real CIFAR-10 at 32x32 and VGG-6 at T = 4, trained by the product itself. Cases:

- engines: the same full epochs in one plain process of one thread, and under Ray with one worker and with
  --workers, one after the other;
- ratios: with --workers workers under Ray, SADP epochs at r = 0.3, 0.5 and 0.7 beside a full epoch of the
  same run, with in-train scores; at r = 0.5 also with a half-timestep pass every fourth epoch;
- steps: CPU time of an image in the worker's steps (decoded rows to optimiser, with in-train scores and one
  worker) over forward and backward of the same network without neurons, measured before and after.

The first epoch of every run loads and compiles, and is left out. Training time is an epoch without
validation. Batch norm is re-estimated on four times the share of the slice that the default
is of 50,000 examples: it does not shrink with the pruning ratio. Finished runs are kept in FILE.jsonl: the
same command goes on where it was stopped.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import cifar16, snn_speed
from benchmarks.about import about
from benchmarks.snn_peers import network_variants
from pipelines.config import ClusterConfig, Config, DataConfig, DataPruningConfig, ModelConfig, TrainConfig
from pipelines.runs.run import run
from pipelines.runs.run_folder import read_metrics
from pipelines.storage.atomic import write_json
from snn.kernels.allocator import tune_allocator

BATCH = 32
RATIOS = (0.3, 0.5, 0.7)
APART = ("evaluate",)  # validation is not training
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run; ``warmup`` and ``anneal`` full epochs surround ``pruned`` ones."""

    case: str
    mode: str
    repeat: int = 0
    ratio: float = 0.0
    workers: int = 1
    warmup: int = 1
    pruned: int = 2
    anneal: int = 1
    network: str = "vgg6"


def cases(names: list[str], repeats: int, workers: int) -> list[Case]:
    """The runs of the named cases, alternatives side by side."""
    found = []
    if "engines" in names:
        for repeat in range(repeats):
            found += [
                Case("engines", mode, repeat, ratio=0.9, workers=count, warmup=0, pruned=1, anneal=1)
                for mode, count in (("local", 1), ("ray", 1), ("ray, data-parallel", workers))
            ]
    if "ratios" in names:
        for ratio in RATIOS:
            found.append(Case("ratios", "in-train scores", ratio=ratio, workers=workers))
        found.append(Case("ratios", "half-T pass every 4", ratio=0.5, workers=workers, pruned=4))
    if "steps" in names:
        for network in ("vgg6", "sew_resnet18"):
            found.append(Case("steps", "ray", ratio=0.5, warmup=2, pruned=1, anneal=0, network=network))
    return found


def without_neurons(network: str) -> float:
    """CPU seconds per image of forward and backward without neurons, on one thread; median of five."""
    machine = snn_speed.Machine(torch.device("cpu"), torch.float32, 5)
    model, x_B, labels = snn_speed.prepared(network, BATCH, machine)
    net, static = network_variants(model)["limit"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {"limit": snn_speed.network_steps(net.train(), x_B, labels, static, machine)}
        return float(machine.time(steps)["limit"]["forward+backward"]["median"]) / BATCH
    finally:
        torch.set_num_threads(threads)


def execute(one: Case, options: argparse.Namespace, folder: Path) -> Row:
    """Train once; the epochs' records, condensed."""
    engines = one.case == "engines"
    half = one.mode.startswith("half-T")
    limits = [without_neurons(one.network)] if one.case == "steps" else []
    config = Config(
        name=f"{one.case}-{os.getpid()}",
        storage=str(folder / "runs"),
        seed=one.repeat,
        data=DataConfig(path=str(folder / "data")),
        model=ModelConfig(name=one.network, T=4),
        train=TrainConfig(
            epochs=one.warmup + one.pruned + one.anneal,
            batch_size=BATCH,
            bn_examples=max(options.rows * 4 * 1024 // 50_000, 64),
        ),
        data_pruning=DataPruningConfig(
            policy="random" if engines else "sadp",
            ratio=one.ratio,
            warmup_epochs=one.warmup,
            anneal_epochs=one.anneal,
            rescore_every=4 if half else 0,
            score_timesteps=2 if half else None,
        ),
        cluster=ClusterConfig(engine="local" if one.mode == "local" else "ray", workers=one.workers),
    )
    torch.set_num_threads(1)  # as Ray's workers of one CPU have it
    done = run(config, "train", console=Console(quiet=True))
    records = read_metrics(done)
    shutil.rmtree(done)
    if limits:
        limits.append(without_neurons(one.network))
    keep = ("epoch", "examples", "rescored", "seconds", "cpu_seconds")
    epochs = [{k: r[k] for k in keep if k in r} for r in records]
    told = {"rows": options.rows, "load_after": os.getloadavg()[0], "without_neurons": limits}
    return {**asdict(one), **told, "epochs": epochs}


# What the records say.


def training(record: Row, clock: str = "seconds") -> float:
    """An epoch's time without validation and measurements."""
    times = record[clock]
    return times["total"] - sum(times.get(part, 0.0) for part in APART)


@dataclass(frozen=True)
class Achieved:
    """What pruning won in a run: seconds of a full, of a pruned epoch and of a pass, and speed-ups."""

    full: float
    pruned: float
    scoring: float | None
    speedup: float
    theoretical: float


def achieved(run: Row) -> Achieved:
    """Of a run with full and pruned epochs; its first epoch is left out."""
    n = run["rows"]
    full = statistics.median(training(e) for e in run["epochs"][1:] if e["examples"] == n)
    epochs = [e for e in run["epochs"][1:] if e["examples"] < n]
    pruned = statistics.mean(training(e) for e in epochs)
    kept = statistics.mean(e["examples"] for e in epochs) / n
    passes = [e["seconds"]["score"] for e in epochs if e["rescored"]]
    return Achieved(full, pruned, statistics.mean(passes) if passes else None, full / pruned, 1 / kept)


def tables(rows: list[Row]) -> str:
    """Markdown for whatever was measured."""
    parts = [_engines(rows), _ratios(rows), _steps(rows)]
    return "\n\n".join(p for p in parts if p)


def _of(rows: list[Row], case: str) -> list[Row]:
    return [r for r in rows if r["case"] == case]


def _engines(rows: list[Row]) -> str:
    found = _of(rows, "engines")
    if not found:
        return ""
    lines = [
        "### Ray against one plain process, full epochs",
        "| engine | wall s an epoch | CPU s of the worker | outside steps and norm, wall s | images per s |",
        "|---|---|---|---|---|",
    ]
    wall, cpu, apart = {}, {}, {}
    for mode in dict.fromkeys(r["mode"] for r in found):
        epochs = [e for r in found if r["mode"] == mode for e in r["epochs"][1:]]
        wall[mode] = statistics.median(training(e) for e in epochs)
        cpu[mode] = statistics.median(training(e, "cpu_seconds") for e in epochs)
        apart[mode] = statistics.median(
            training(e) - e["seconds"]["train"] - e["seconds"]["norm"] for e in epochs
        )
        rate = epochs[0]["examples"] / wall[mode]
        lines.append(f"| {mode} | {wall[mode]:.1f} | {cpu[mode]:.1f} | {apart[mode]:.2f} | {rate:.1f} |")
    n, workers = found[0]["rows"], max(r["workers"] for r in found)
    extra = apart["ray"] - apart["local"]
    most, least = extra / wall["local"], extra / wall["local"] * n / 50_000
    lines.append(
        f"\nRay over local: wall {wall['ray'] / wall['local']:.3f}, "
        f"worker's CPU {cpu['ray'] / cpu['local']:.3f}. "
        f"Outside the steps Ray adds {extra:.2f} s an epoch of {n:,} rows. For 50,000 rows this predicts "
        f"{least:.2%} (were it all per epoch) to {most:.2%} (were it all per row)."
    )
    if "ray, data-parallel" in wall:
        gain = wall["ray"] / wall["ray, data-parallel"]
        lines.append(
            f"\n{workers} workers over one: {gain:.2f} times as fast, efficiency {gain / workers:.2f}."
        )
    return "\n".join(lines)


def _ratios(rows: list[Row]) -> str:
    found = _of(rows, "ratios")
    if not found:
        return ""
    lines = [
        "### Achieved over theoretical speed-up",
        "| scores | r | full epoch s | pruned epoch s | achieved | theoretical 1 / (1 - r) "
        "| achieved / theoretical | pass, share of a full epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        a = achieved(r)
        cost = "" if a.scoring is None else f"{a.scoring / a.full:.3f}"
        lines.append(
            f"| {r['mode']} | {r['ratio']} | {a.full:.1f} | {a.pruned:.1f} | {a.speedup:.2f} "
            f"| {a.theoretical:.2f} | **{a.speedup / a.theoretical:.3f}** | {cost} |"
        )
    return "\n".join(lines)


def _steps(rows: list[Row]) -> str:
    found = _of(rows, "steps")
    if not found:
        return ""
    lines = [
        "### Steps of a worker against the network without neurons",
        "| network | CPU ms an image in the pipeline | without neurons, before and after | ratio |",
        "|---|---|---|---|",
    ]
    for r in found:
        epoch = next(e for e in r["epochs"][1:] if e["examples"] == r["rows"])
        mine = epoch["cpu_seconds"]["train"] / epoch["examples"]
        limits = ", ".join(f"{s * 1e3:.1f}" for s in r["without_neurons"])
        ratio = mine / statistics.mean(r["without_neurons"])
        lines.append(f"| {r['network']} | {mine * 1e3:.1f} | {limits} | **{ratio:.3f}** |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["engines", "ratios", "steps"])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=1, help="of the engines, alternating")
    parser.add_argument("--workers", type=int, default=2, help="of the ratios and of data-parallel")
    parser.add_argument("--output", type=Path, default=Path("runs/pipeline_overhead.json"))
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print a result's tables and stop")
    options = parser.parse_args()
    tune_allocator()  # as Ray's workers have it
    if options.summary:
        print(tables(json.loads(options.summary.read_text())["rows"]))
        return
    journal = options.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(r["case"], r["mode"], r["ratio"], r["repeat"], r.get("network", "vgg6")) for r in rows}
    with tempfile.TemporaryDirectory() as work:
        cifar16.write(Path(work) / "data", train_rows=options.rows, test_rows=64, side=32)
        for one in cases(options.cases, options.repeats, options.workers):
            if (one.case, one.mode, one.ratio, one.repeat, one.network) in done:
                continue
            started = time.monotonic()
            rows.append(execute(one, options, Path(work)))
            journal.parent.mkdir(parents=True, exist_ok=True)
            with journal.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            took = time.monotonic() - started
            print(f"{one.case}, {one.mode}, r = {one.ratio}: {took:.0f} s", flush=True)
    write_json(options.output, {"about": about("benchmarks.pipeline_overhead", sys.argv[1:]), "rows": rows})
    print(tables(rows))


if __name__ == "__main__":
    main()
