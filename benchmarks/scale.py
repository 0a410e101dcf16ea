"""Memory and speed as a generated dataset grows: reading by row groups under Ray, scoring, the draw.

    python -m benchmarks.scale [--rows 100000 1000000 10000000] [--draw 100000000] [--out FILE.json]
    python -m benchmarks.scale --rows --select 1000000 10000000 100000000 --out FILE.json

For each size a Parquet dataset of 64 bytes of features per row is written (deleted afterwards), then:
the driver and two Ray Train workers train one epoch on a random tenth of it by row groups, their resident
memory sampled every 0.1 s (peaks; memory shared with Ray's object store apart); and the first rows are
scored by Ray Data tasks as `spikeprune score` runs them and by two plain loops over the same row groups,
interleaved, with two networks: the smallest there is, and one of two layers of 512. The draw is that of
`benchmarks.sadp_cost`. ``--select`` draws a tenth of a table of ids and scores by passes of Ray Data, as
`spikeprune data select --design poisson` does at any size, and compares the subset with the one that is
drawn in memory. About 12 minutes with the defaults.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.about import about
from pipelines.storage.atomic import write_json

SPAWN = get_context("spawn")

FEATURES, SHARD, GROUP = 64, 1 << 20, 1 << 13
MODEL = {"name": "mlp", "hidden": [64], "T": 2}
SCORERS = (((64,), 2, 1), ((512, 512), 4, 6))
"""Hidden layers and timesteps of the networks that score, and the share of the rows they get (one in ...)."""


def write(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    for split, n in (("train", rows), ("test", 4096)):
        for start in range(0, n, SHARD):
            ids = np.arange(start, min(start + SHARD, n))
            x = rng.integers(0, 256, (len(ids), FEATURES), dtype=np.uint8)
            image = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), FEATURES)
            table = pa.table({"id": ids, "image": image, "label": (x[:, 0] // 26).astype(np.int64)})
            path = folder / f"{split}-{start // SHARD:05d}.parquet"
            pq.write_table(table, path, row_group_size=GROUP, compression="none", use_dictionary=False)


WORKERS = {"worker": "RayTrainWorker", "table": "TableActor"}
"""What a process below a run is, by a part of its name."""


class Watch:
    """Peaks of the private resident memory of a process and of some below it, in MB."""

    def __init__(self, pid: int, named: dict[str, str]) -> None:
        self.peak = dict.fromkeys(["driver", *named], 0.0)
        self._root, self._named, self._stop = pid, named, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                with suppress(OSError, KeyError, ValueError):
                    name = (entry / "cmdline").read_bytes().decode(errors="replace")
                    for what, sign in self._named.items():
                        if sign in name.split("\0")[0] and self._below(entry):
                            self._note(what, entry)
                    if int(entry.name) == self._root:
                        self._note("driver", entry)

    def _below(self, entry: Path) -> bool:
        pid = int(entry.name)
        while pid > 1:
            if pid == self._root:
                return True
            pid = int(_status(Path(f"/proc/{pid}"))["PPid"])
        return False

    def _note(self, which: str, entry: Path) -> None:
        self.peak[which] = max(self.peak[which], int(_status(entry)["RssAnon"].split()[0]) / 1e3)

    def stop(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        return {name: round(mb, 1) for name, mb in self.peak.items()}


def _status(entry: Path) -> dict[str, str]:
    lines = (entry / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def train(folder: Path, rows: int) -> dict[str, Any]:
    settings = {
        "name": "run",
        "storage": str(folder.parent / "runs"),
        "data.path": str(folder),
        "data.reading": "shards",
        "data.shuffle_rows": 16384,
        "model.name": MODEL["name"],
        "model.hidden": "[64]",
        "model.T": 2,
        "train.epochs": 1,
        "train.batch_size": 256,
        "data_pruning.policy": "random",
        "data_pruning.ratio": 0.9,
        "data_pruning.warmup_epochs": 0,
        "data_pruning.anneal_epochs": 0,
        "cluster.workers": 2,
    }
    words = [w for k, v in settings.items() for w in (f"--{k}", str(v))]
    started = time.perf_counter()
    with (folder.parent / "log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-m", "spikeprune", "train", *words], stderr=log, stdout=log)
        watch = Watch(run.pid, WORKERS)
        code = run.wait()
    peaks = watch.stop()
    if code:
        raise SystemExit((folder.parent / "log").read_text())
    record = json.loads((folder.parent / "runs/run/metrics.jsonl").read_text().splitlines()[0])
    return {
        "rows": rows,
        "driver_mb": peaks["driver"],
        "worker_mb": peaks["worker"],
        "table_mb": peaks["table"],
        "run_s": round(time.perf_counter() - started, 1),
        "epoch_s": record["seconds"]["total"],
        "trained": record["examples"],
    }


def scoring(folder: Path, rows: int, repeats: int, hidden: tuple[int, ...], T: int) -> dict[str, Any]:
    """Rows per second of Ray Data tasks (warm) over those of two plain loops, on two cores each."""
    import torch

    from cluster.connect import connect

    with connect():
        import ray

        from pipelines.config import ClusterConfig, DataPruningConfig, ModelConfig, TrainConfig
        from pipelines.data.dataset import describe
        from pipelines.data.inputs import Inputs
        from pipelines.data.scan import read_split
        from pipelines.networks import architecture, make_network
        from pipelines.scoring.scorer import (
            Scoring,
            ScoringPass,
            parts_of,
            score_layout,
            scorers_without_training,
            stream_scores,
        )

        torch.set_num_threads(1)
        split, test = read_split(folder, "train"), read_split(folder, "test")
        config = ModelConfig(name="mlp", hidden=hidden, T=T)
        info = describe(split, test, folder)
        model = make_network(config, info, 0)
        weights = {k: v.detach() for k, v in model.state_dict().items()}
        inputs = Inputs.of(info, config.T)
        settings = Scoring(scores=("sadp",), train=TrainConfig(), examples=DataPruningConfig(), inputs=inputs)
        layout = split.layout.take(np.arange(min(len(split.layout), rows // GROUP)))
        n = int(layout.rows.sum())

        pass_ = ScoringPass(
            weights=weights,
            architecture=architecture(config, info),
            scoring=settings,
            scorers=scorers_without_training(ClusterConfig()),
        )

        def on_ray() -> None:
            scored = stream_scores(layout, split.ids, pass_)
            assert sum(table.num_rows for table in scored) == n

        @ray.remote
        def plain(parts: list[Any]) -> None:
            torch.set_num_threads(1)
            for part in parts:
                score_layout(part, split.ids, model, settings)

        def loops() -> None:
            parts = list(parts_of(layout))
            ray.get([plain.remote(parts[k::2]) for k in range(2)])

        times: dict[str, list[float]] = {"ray": [], "plain": []}
        for warm in range(repeats + 1):
            for name, run in (("ray", on_ray), ("plain", loops)):
                started = time.perf_counter()
                run()
                if warm:
                    times[name].append(time.perf_counter() - started)
        ray_s, plain_s = (statistics.median(times[k]) for k in ("ray", "plain"))
        ratios = [plain / on for plain, on in zip(times["plain"], times["ray"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return {
            "network": f"MLP of {', '.join(map(str, hidden))}, T = {T}",
            "rows": n,
            "rounds": repeats,
            "ray_rows_per_s": round(n / ray_s),
            "plain_rows_per_s": round(n / plain_s),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }


def select(folder: Path, rows: int) -> dict[str, Any]:
    """A tenth of a table of ids and scores by passes, and the same draw in memory."""
    from cluster.connect import connect
    from pipelines.scoring.select import PoissonDraw, poisson_pass, rows_in_order
    from pruning.examples.inclusion import inclusion_probabilities
    from pruning.examples.sampling import draw

    path, out = folder / "scores.parquet", folder / "subset.parquet"
    schema = pa.schema({"id": pa.int64(), "sadp": pa.float32()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, SHARD):
            ids = np.arange(start, min(start + SHARD, rows))
            scores = np.random.default_rng(start).lognormal(size=len(ids)).astype(np.float32)
            writer.write_table(pa.table({"id": ids, "sadp": scores}))
    key = {"seed": 0, "epoch": 1}
    plan = PoissonDraw(population=rows, size=rows // 10, alpha=0.1, **key)
    watch = Watch(os.getpid(), {"task": "ray::"})
    with connect():
        started = time.perf_counter()
        parts = poisson_pass(rows_in_order(str(path), "sadp"), "sadp", plan)
        first = next(parts)
        with pq.ParquetWriter(out, first.schema, compression="zstd") as writer:
            for part in chain([first], parts):
                writer.write_table(part)
        seconds = time.perf_counter() - started
    peaks, size_gb = watch.stop(), path.stat().st_size / 1e9
    scores = pq.read_table(path, columns=["sadp"]).column("sadp").to_numpy()
    pi = inclusion_probabilities(scores, plan.size, alpha=plan.alpha)
    subset, drawn = draw(pi, size=plan.size, design="poisson", **key), pq.read_table(out)
    return {
        "rows": rows,
        "table_gb": round(size_gb, 2),
        "select_s": round(seconds, 1),
        "driver_mb": peaks["driver"],
        "task_mb": peaks["task"],
        "drawn": drawn.num_rows,
        "equal": np.array_equal(drawn.column("id").to_numpy(), subset.ids)
        and np.array_equal(drawn.column("weight").to_numpy(), subset.weights),
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown: memory and seconds by size, what their slopes predict, scoring, and the draw."""
    runs, drawn, selected = result["runs"], result["draw"], result.get("select", [])
    lines = (
        []
        if not runs
        else [
            "| rows | driver, MB | largest worker, MB | score table, MB | epoch, s | command, s |",
            "|---|---|---|---|---|---|",
        ]
    )
    for r in runs:
        lines.append(
            f"| {r['rows']:,} | {r['driver_mb']} | {r['worker_mb']} | {r['table_mb']} | {r['epoch_s']:.1f} "
            f"| {r['run_s']} |"
        )
    lines.append("")
    for which, name in (("driver_mb", "driver"), ("worker_mb", "worker")) if runs else ():
        values = [r[which] for r in runs]
        lines.append(f"- {name}'s memory, largest over smallest: {max(values) / min(values):.3f}")
    if len(runs) > 1:
        first, last = runs[0], runs[-1]
        more = last["rows"] - first["rows"]
        seconds = (last["epoch_s"] - first["epoch_s"]) / more * 1e6
        table = (last["table_mb"] - first["table_mb"]) / more * 1e6
        lines.append(
            f"- per million rows more: {seconds:.1f} s of an epoch, {table:.1f} MB of the score table"
        )
    for score in result["scoring"]:
        low, high = score["quartiles"]
        lines.append(
            f"- scoring {score['rows']:,} rows by an {score['network']}, warm: {score['ray_rows_per_s']:,} "
            f"rows/s by Ray Data tasks, {score['plain_rows_per_s']:,} by plain loops on the same cores: "
            f"ratio {score['ratio']} (median of {score['rounds']} rounds, quartiles {low} to {high})"
        )
    if selected:
        lines += [
            "",
            "| ids | table, GB | passes, s | driver, MB | largest task, MB | drawn | as in memory |",
            "|---|---|---|---|---|---|---|",
        ]
    for r in selected:
        lines.append(
            f"| {r['rows']:,} | {r['table_gb']} | {r['select_s']} | {r['driver_mb']} | {r['task_mb']} "
            f"| {r['drawn']:,} | {'yes' if r['equal'] else 'NO'} |"
        )
    if drawn:
        lines.append(f"- draw of {drawn['n']:,} ids: {drawn['draw_s']:.1f} CPU s, {drawn['peak_gb']:.2f} GB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--score-rows", type=int, default=6_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the two ways of scoring")
    parser.add_argument("--draw", type=int, default=0, help="ids to draw from; 0 for none")
    parser.add_argument("--select", type=int, nargs="*", default=[], help="ids to draw from by passes")
    parser.add_argument("--work", type=Path, help="folder for the data (10^7 rows: 0.9 GB)")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    drawn = None
    if args.draw:
        from benchmarks.sadp_cost import draws

        drawn = draws(args.draw)
    runs: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.work) as name:
            data = Path(name) / "data"
            data.mkdir()
            write(data, rows)
            runs.append(train(data, rows))
            print(runs[-1], flush=True)
            if rows == args.rows[-1] and args.score_rows:
                for hidden, T, share in SCORERS:
                    scores.append(scoring(data, args.score_rows // share, args.repeats, hidden, T))
                    print(scores[-1], flush=True)
    selected: list[dict[str, Any]] = []
    for rows in args.select:
        # A process of its own each: what one holds in the end is no peak of the next.
        with tempfile.TemporaryDirectory(dir=args.work) as name, ProcessPoolExecutor(1, SPAWN) as pool:
            selected.append(pool.submit(select, Path(name), rows).result())
            print(selected[-1], flush=True)
    result = {
        "about": about("benchmarks.scale", sys.argv[1:]),
        "runs": runs,
        "scoring": scores,
        "draw": drawn,
        "select": selected,
    }
    if args.out:
        write_json(args.out, result)
    print(tables(result))


if __name__ == "__main__":
    main()
