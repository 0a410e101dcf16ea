"""The Pareto front of a joint search on the digits: how much data and how many synapses at once?

    python -m benchmarks.search_front [--trials 36] [--seeds 3] [--output FILE.json]
    python -m benchmarks.search_front --from FILE.json

`spikeprune search` on the model of examples/search-digits.yaml, over the data pruning ratio, SLAMP's budget
and the weight criterion; objectives: validation accuracy (of a fifth of the training rows), examples
processed, SynOps of an inference. Every trial on the front runs again under seeds that the search has not
seen, beside the same network on all data and with all weights; of these runs test accuracy is told.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console

from benchmarks.about import about
from pipelines.config import Config
from pipelines.config.load import load_tree, with_values
from pipelines.config.schema import SearchTree
from pipelines.data.ingest import ingest
from pipelines.report.summary import summarise
from pipelines.runs.run import run
from pipelines.search.plan import OBJECTIVES, measure
from pipelines.search.results import read_results
from pipelines.search.study import search
from pipelines.search.trial import Trial
from pipelines.storage.atomic import write_json

CONFIG = Path(__file__).resolve().parents[1] / "examples" / "search-digits.yaml"
SPACE = {
    "data_pruning.ratio": {"low": 0.1, "high": 0.9, "step": 0.1},
    "weight_pruning.budget": {"low": 0.05, "high": 3.0, "log": True},
    "weight_pruning.criterion": ["slamp", "lamp"],
}
OF_SEARCH = ("accuracy", "examples", "synops")
QUIET = Console(quiet=True)


def measure_search(trials: int, seeds: int) -> dict[str, Any]:
    """The search's trials, and the front's under other seeds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        ingest("digits", data)
        settings: dict[str, Any] = {
            "data.path": str(data),
            "storage": folder,
            "data.val_share": 0.2,
            "search.space": SPACE,
            "search.objectives": list(OF_SEARCH),
            "search.trials": trials,
        }
        tree = load_tree(SearchTree, CONFIG, settings)
        started = time.perf_counter()
        found = read_results(search(tree, console=QUIET))
        seconds = time.perf_counter() - started
        space = found.plan.space
        rows = [
            {
                "trial": t.number,
                "status": t.status,
                "values": {path: t.value(path) for path in space.distributions},
                "metrics": {name: t.metrics[name] for name in (*OBJECTIVES, "scored") if name in t.metrics},
                "on_front": t.number in found.front,
            }
            for t in found.trials
        ]
        again = [None, *(t for t in found.trials if t.number in found.front)]
        checked = [
            {"trial": t and t.number, "runs": repeat(space.config, t, range(1, seeds + 1), folder)}
            for t in again
        ]
        trainings = len({t.metrics["training"] for t in found.finished})
        return {"seconds": seconds, "trainings": trainings, "rows": rows, "again": checked}


def repeat(base: Config, trial: Trial | None, seeds: range, folder: str) -> list[dict[str, Any]]:
    """A trial's config (or all data and all weights) under other seeds."""
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        values: dict[str, Any] = {"seed": seed, "storage": folder, "cluster.engine": "local"}
        if trial is None:
            config, command = with_values(base, values | {"data_pruning.policy": "full"}), "train"
        else:
            searched = {path: trial.value(path) for path in trial.suggested}
            config, command = with_values(base, values | searched), "run"
        name = f"again-{'full' if trial is None else trial.number}-{seed}"
        config = with_values(config, {"name": name})
        done = run(config, command, console=QUIET)  # type: ignore[arg-type]
        runs.append({**measure([done]), "test_accuracy": summarise(done).phases[-1].test_accuracy})
    return runs


def tables(result: dict[str, Any]) -> str:
    """The search in a line, then the front: validation accuracy, and test accuracy under other seeds."""
    rows = {r["trial"]: r for r in result["rows"]}
    finished = sum(r["status"] == "finished" for r in result["rows"])
    lines = [
        f"{finished} of {len(rows)} trials finished in {result['seconds']:.0f} s, "
        f"{result['trainings']} trainings before pruning; {len(result['again']) - 1} on the front",
        f"{'trial':>5} {'ratio':>5} {'budget':>6} {'criterion':>9} {'val acc.':>8} "
        f"{'test, new seeds':>16} {'examples':>8} {'SynOps':>7} {'density':>7} {'again':>5}",
    ]
    still = still_on_front(result)
    order = sorted(result["again"][1:], key=lambda a: -rows[a["trial"]]["metrics"]["accuracy"])
    for a in [result["again"][0], *order]:
        accuracy = [r["test_accuracy"] for r in a["runs"]]
        sd = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        seen = f"{statistics.mean(accuracy):.2%} +- {sd:.2%}"
        if a["trial"] is None:
            own = a["runs"][0]
            head = f"{'all data, all weights':>28} {'':>8}"
        else:
            values, own = rows[a["trial"]]["values"], rows[a["trial"]]["metrics"]
            head = (
                f"{a['trial']:>5} {values['data_pruning.ratio']:>5.1f} "
                f"{values['weight_pruning.budget']:>6.2f} "
                f"{values['weight_pruning.criterion']:>9} {own['accuracy']:>8.2%}"
            )
        mark = "" if a["trial"] is None else "yes" if a["trial"] in still else "no"
        lines.append(
            f"{head} {seen:>16} {own['examples']:>8,.0f} {own['synops']:>7,.0f} {own['density']:>7.1%} "
            f"{mark:>5}".rstrip()
        )
    return "\n".join(lines)


def still_on_front(result: dict[str, Any]) -> set[int]:
    """Trials of the front that are on the front of the other seeds' means, too."""
    again = result["again"][1:]
    of = ("test_accuracy", "examples", "synops")
    means = [[float(np.mean([r[name] for r in a["runs"]])) for name in of] for a in again]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize" if OBJECTIVES[o].mode == "max" else "minimize" for o in OF_SEARCH]
    )
    study.add_trials(optuna.trial.create_trial(values=m) for m in means)
    return {again[t.number]["trial"] for t in study.best_trials}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from", dest="stored", type=Path, help="print a stored result")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the trials
    if args.stored:
        result = json.loads(args.stored.read_text())
    else:
        told = about("benchmarks.search_front", sys.argv[1:])
        result = {"about": told, **measure_search(args.trials, args.seeds)}
    print(tables(result))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
