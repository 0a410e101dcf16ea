"""Prints the tables of the first round's stored results: criteria of then, networks of four to six layers.

    python -m benchmarks.slamp_first quality|distortion FILE.json

The figures stand in docs/results (slamp-quality, slamp-distortion); `benchmarks.slamp_quality` measures
what the product has now.
"""

import json
import statistics
import sys
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STEPS = {"digits": 4, "nmnist": 6, "cifar10": 4, "dvs128": 6, "cifar-dvs": 6}


def coefficients_of(row: Row, T: int) -> dict[str, float]:
    """``c`` of every criterion that predicts distortion."""
    tau, rho = row["tau"], row.get("rho")
    membrane = tau * row["sigma"] ** (1 - 1 / T)
    found = {
        "lamp": 1.0,
        "slamp_time": tau,
        "slamp_membrane": membrane,
        "slamp_local": tau * row["sigma"],
        "slamp_root": membrane**0.5,
    }
    if rho is not None:  # results before this criterion have none
        found["slamp_response"] = tau * (rho / tau) ** (1 - 1 / T)
    return found


def spread_of_logs(rows: list[Row], T: int) -> dict[str, dict[str, float]]:
    """Standard deviation of log(measured / predicted) by criterion.

    ``c z``: the prediction is c times the removed share of the energy; ``c phi``: c times -log of the kept
    share, which is what allocation adds up.
    """
    usable = [r for r in rows if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
    return {
        name: {
            form: statistics.stdev(
                log(r["measured"] / (coefficients_of(r, T)[name] * loss(r["removed_energy"]))) for r in usable
            )
            for form, loss in _LOSSES.items()
        }
        for name in coefficients_of(usable[0], T)
    }


_LOSSES: dict[str, Callable[[float], float]] = {"c z": lambda z: z, "c phi": lambda z: -log(1 - z)}


SHOWN = ("lamp", "slamp_root", "slamp_response")


def distortion_tables(result: dict[str, Any]) -> str:
    """Markdown of a stored result: spreads, then every layer and level.

    Geometric means over the seeds. A coefficient predicts up to a constant factor: each prediction is
    scaled so that the mean of log(measured / predicted) over its network is 0.
    """
    runs = result["runs"]
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    of = {task: [run for run in runs if run["task"] == task] for task in tasks}
    spreads = {task: [spread_of_logs(run["distortion"], STEPS[task]) for run in of[task]] for task in tasks}
    names = list(spreads[tasks[0]][0])
    lines = [f"| sd of log(measured / (c z)) | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name in names:
        cells = (f"{statistics.mean(s[name]['c z'] for s in spreads[task]):.2f}" for task in tasks)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    violations = (str(sum(run["certificate_violations"] for run in of[task])) for task in tasks)
    lines.append(f"| violations of the certificate | {' | '.join(violations)} |")
    for task in tasks:
        lines += ["", *_layers(task, of[task])]
    return "\n".join(lines)


def _layers(task: str, runs: list[dict[str, Any]]) -> list[str]:
    head = " | ".join(f"predicted, {name}" for name in SHOWN)
    lines = [
        f"| {task}: layer | density | removed energy z | measured | {head} | certificate / change |",
        "|---|---|---|---|" + "---|" * len(SHOWN) + "---|",
    ]
    logs: dict[tuple[str, float], list[dict[str, float]]] = {}
    for run in runs:
        usable = [r for r in run["distortion"] if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
        predicted = {
            name: [log(coefficients_of(r, STEPS[task])[name] * r["removed_energy"]) for r in usable]
            for name in SHOWN
        }
        mean = statistics.mean(log(r["measured"]) for r in usable)
        for i, r in enumerate(usable):
            values = {"measured": log(r["measured"]), "z": log(r["removed_energy"])}
            values |= {name: p[i] - statistics.mean(p) + mean for name, p in predicted.items()}
            values["bound"] = log(r["bound_over_change"])
            logs.setdefault((r["layer"], round(r["density"], 2)), []).append(values)
    for (layer, density), seeds in logs.items():
        shown = (
            f"{exp(statistics.mean(v[key] for v in seeds)):.3g}" for key in ("z", "measured", *SHOWN, "bound")
        )
        lines.append(f"| {layer} | {density} | {' | '.join(shown)} |")
    return lines


def quality_tables(result: dict[str, Any]) -> str:
    """What is printed of a stored result: means and standard deviations over its seeds."""
    lines = []
    for task in dict.fromkeys(run["task"] for run in result["runs"]):
        of = [run for run in result["runs"] if run["task"] == task]
        mean = statistics.mean(run["dense_accuracy"] for run in of)
        lines.append(f"{task}: {len(of)} seeds, dense accuracy {mean:.3f}")
        lines.append(f"  certificate violations {sum(run['certificate_violations'] for run in of)}")
        spreads = [spread_of_logs(run["distortion"], STEPS[task]) for run in of]
        for name, forms in spreads[0].items():
            values = (f"{form} {statistics.mean(s[name][form] for s in spreads):.2f}" for form in forms)
            lines.append(f"  sd log(measured / predicted) {name:<15} {', '.join(values)}")
        kinds = dict.fromkeys((r["part"], r["level"], r["criterion"], r["objective"]) for r in of[0]["rows"])
        lines += [table_line(kind, of) for kind in kinds]
    return "\n".join(lines)


def rows_of(kind: tuple[Any, ...], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per seed."""
    return [
        r
        for run in runs
        for r in run["rows"]
        if (r["part"], r["level"], r["criterion"], r["objective"]) == kind
    ]


def table_line(kind: tuple[Any, ...], runs: list[dict[str, Any]]) -> str:
    """One criterion at one level."""
    rows = rows_of(kind, runs)
    accuracies = [r["accuracy"] for r in rows]
    line = (
        f"  {kind[0]:<9}{kind[1]:<5} {kind[2]:<15}{kind[3]:<8} accuracy {_mean_sd(accuracies)}"
        f" density {statistics.mean(r['density'] for r in rows):.3f}"
        f" SynOps {statistics.mean(r['synops'] for r in rows):.3f}"
    )
    if kind[0] == "synops":
        rival = rows_of((*kind[:2], "lamp", "synops"), runs)
        gains = [r["accuracy"] - other["accuracy"] for r, other in zip(rows, rival, strict=True)]
        line += (
            f" before retraining {statistics.mean(r['accuracy_before'] for r in rows):.3f}"
            f" channels left {statistics.mean(r['channels_left'] for r in rows):.2f}"
            f" time {statistics.mean(r['time_after_compaction'] for r in rows):.2f}"
            f" over priced lamp {_mean_sd(gains, '+.3f')}"
        )
    return line


def _mean_sd(values: list[float], form: str = ".3f") -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} +- {sd:.3f}"


def main() -> None:
    """Print the tables of a stored result."""
    print_of = {"quality": quality_tables, "distortion": distortion_tables}[sys.argv[1]]
    print(print_of(json.loads(Path(sys.argv[2]).read_text())))


if __name__ == "__main__":
    main()
