"""What is printed of the rows of `benchmarks.slamp_quality`: Markdown, means over seeds.

Accuracies in % with their standard deviation over seeds, differences in points with the 95 % interval of the
paired difference.
"""

import statistics
from math import log
from typing import Any

import numpy as np

from benchmarks.sadp_tables import half_interval
from benchmarks.slamp_tasks import DEEP, DEEP_STEPS, STEPS

Row = dict[str, Any]


SHOWN = {"lamp": "lamp", "slamp": "slamp", "slamp_curve": "slamp_curve", "version 0.1": "root"}
"""Predictions of distortion in the table, by the name that `spread_of_logs` gives them."""
CANDIDATES = {
    "lamp": "lamp",
    "s itself": "gradient_root",
    "measured response": "response",
    "membrane": "membrane",
    "slamp_curve": "slamp_curve",
}
"""For the default coefficient: criteria of the rows, by what the table calls them."""


def tables(rows: list[Row]) -> str:
    """All tables: the deep tasks one by one, what is left of the others together, then distortion."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows if row["task"] in DEEP):
        own = [row for row in rows if row["task"] == task]
        dense = [row for row in own if row["part"] == "dense"]
        for part in ("synops", "weights"):
            for epochs in sorted({row["retrain_epochs"] for row in own if row["part"] == part}):
                found = [r for r in own if r["part"] == part and r["retrain_epochs"] == epochs]
                lines += ["", *_part(task, part, epochs, found, dense)]
        if found := [row for row in own if row["part"] == "cost"]:
            lines += ["", *_cost(task, found)]
        lines.append("")
    lines += _small([row for row in rows if row["task"] not in DEEP])
    lines += ["", *_candidates([row for row in rows if row["part"] == "synops"])]
    return "\n".join([*lines, *_distortion([row for row in rows if row["part"] == "distortion"])])


def _candidates(rows: list[Row]) -> list[str]:
    """A column per task, at a tenth of the SynOps after 2 epochs of retraining: candidates beside SLAMP."""
    rows = [r for r in rows if (r["level"], r["objective"], r["retrain_epochs"]) == (0.1, "synops", 2)]
    by: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        by.setdefault((row["task"], row["criterion"]), {})[row["seed"]] = row
    tasks = [t for t in dict.fromkeys(row["task"] for row in rows) if (t, "response") in by]
    if not tasks:
        return []
    means = (f"{100 * _mean([*by[t, 'slamp'].values()], 'accuracy'):.1f}" for t in tasks)
    energies = (f"{_mean([*by[t, 'slamp'].values()], 'energy_nj'):,.0f}" for t in tasks)
    lines = [
        f"| 10% of the SynOps | {' | '.join(tasks)} |",
        f"|---|{'---|' * len(tasks)}",
        f"| slamp: accuracy, % | {' | '.join(means)} |",
        f"| slamp: energy, nJ | {' | '.join(energies)} |",
    ]
    for shown, name in CANDIDATES.items():
        cells = []
        for task in tasks:
            slamp, own = by[task, "slamp"], by.get((task, name), {})
            points = [100 * (r["accuracy"] - slamp[s]["accuracy"]) for s, r in own.items() if s in slamp]
            more = [r["energy_nj"] / slamp[s]["energy_nj"] - 1 for s, r in own.items() if s in slamp]
            cells.append(f"{difference(points)}, {statistics.mean(more):+.0%}" if points else "")
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return [*lines, ""]


def _small(rows: list[Row]) -> list[str]:
    """A line per task, target and level: SLAMP beside LAMP, and beside the default of version 0.1."""
    if not rows:
        return []
    lines = [
        "| set | left | dense | LAMP | SLAMP | - LAMP | - version 0.1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        dense = statistics.mean(row["accuracy"] for row in own if row["part"] == "dense")
        for part, unit, earlier in (("synops", "SynOps", "root"), ("weights", "weights", "time")):
            for level in dict.fromkeys(row["level"] for row in own if row["part"] == part):
                of = [row for row in own if (row["part"], row.get("level")) == (part, level)]
                by = {
                    c: {r["seed"]: 100 * r["accuracy"] for r in of if r["criterion"] == c}
                    for c in ("lamp", "slamp", earlier)
                }
                less = [
                    difference([by["slamp"][seed] - by[c][seed] for seed in by["slamp"]])
                    for c in ("lamp", earlier)
                ]
                left = level if part == "synops" else 1 - level
                means = (f"{statistics.mean(by[c].values()):.1f}" for c in ("lamp", "slamp"))
                lines.append(
                    f"| {task} | {left:.0%} of the {unit} | {100 * dense:.1f} | {' | '.join(means)} |"
                    f" {' | '.join(less)} |"
                )
    return lines


def _part(task: str, part: str, epochs: int, rows: list[Row], dense: list[Row]) -> list[str]:
    """A line for the dense networks, and one per level and criterion; gains over LAMP seed by seed."""
    target = "SynOps aimed at" if part == "synops" else "sparsity"
    columns = (
        f"{task}: {target}", "criterion", "seeds", "before retraining", f"after {epochs} epochs", "- dense",
        "- LAMP", "- LAMP at equal energy", "weights left", "SynOps left", "SynOps", "energy, nJ",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    seeds = {row["seed"] for row in rows}
    of_seeds = [row for row in dense if row["seed"] in seeds]
    lines.append(
        f"| | dense | {len(of_seeds)} | | {_accuracy(of_seeds)} | | | | 100% | 100% |"
        f" {_mean(of_seeds, 'synops'):,.0f} | {_mean(of_seeds, 'energy_nj'):,.1f} |"
    )
    lamp = {(r["level"], r["seed"]): r for r in rows if (r["criterion"], r["objective"]) == ("lamp", part)}
    for level in sorted({row["level"] for row in rows}, reverse=part == "synops"):
        of_level = [row for row in rows if row["level"] == level]
        for key in dict.fromkeys((r["criterion"], r["objective"]) for r in of_level):
            own = [r for r in of_level if (r["criterion"], r["objective"]) == key]
            name = key[0] if key[1] == part else f"{key[0]}, not priced"
            gains = ["", ""]
            if key != ("lamp", part):
                with_lamp = [r for r in own if (level, r["seed"]) in lamp]
                over = [100 * (r["accuracy"] - lamp[level, r["seed"]]["accuracy"]) for r in with_lamp]
                equal = [_over_equal_energy(r, [*lamp.values()]) for r in own]
                gains = [difference(over), difference([e for e in equal if e is not None])]
            cells = (
                f"{level:.0%}", name, str(len(own)), f"{100 * _mean(own, 'one_shot'):.1f}", _accuracy(own),
                f"{-100 * _mean(own, 'drop'):+.1f}", *gains, f"{_mean(own, 'density'):.1%}",
                f"{_mean(own, 'synops_of_dense'):.1%}", f"{_mean(own, 'synops'):,.0f}",
                f"{_mean(own, 'energy_nj'):,.1f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _over_equal_energy(row: Row, lamp: list[Row]) -> float | None:
    """Points above LAMP at the row's energy: linear between the levels of LAMP of the same seed."""
    own = sorted((r["energy_nj"], r["accuracy"]) for r in lamp if r["seed"] == row["seed"])
    if len(own) < 2 or not own[0][0] <= row["energy_nj"] <= own[-1][0]:
        return None
    of_lamp = np.interp(row["energy_nj"], [e for e, _ in own], [a for _, a in own])
    return float(100 * (row["accuracy"] - of_lamp))


def _mean(rows: list[Row], field: str) -> float:
    return statistics.mean(row[field] for row in rows)


def _accuracy(rows: list[Row]) -> str:
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def difference(points: list[float]) -> str:
    if not points:
        return ""
    spread = f" ± {half_interval(points):.1f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.1f}{spread}"


def spread_of_logs(row: Row) -> dict[str, float]:
    """Standard deviation of log(measured / predicted) by criterion, over layers and densities."""
    usable = [r for r in row["measured"] if r["measured"] > 0 and 0 < r["removed_energy"] < 1]
    names = list(dict.fromkeys(r["layer"] for r in row["measured"]))
    even = 1 - 1 / STEPS.get(row["task"], DEEP_STEPS)
    slamp = [c**even for c in row["candidates"]["gradient_root"]]
    all_candidates = {"lamp": [1.0] * len(names), "slamp": slamp, **row["candidates"]}
    found = {}
    for name, c in all_candidates.items():
        by_layer = dict(zip(names, c, strict=True))
        logs = [log(r["measured"] / (by_layer[r["layer"]] * -log(1 - r["removed_energy"]))) for r in usable]
        found[name] = statistics.stdev(logs)
    by_curve = [log(r["measured"] / r["curve"]) for r in usable if r["curve"]]
    if len(by_curve) > 1:
        found["slamp_curve"] = statistics.stdev(by_curve)
    return found


def _distortion(rows: list[Row]) -> list[str]:
    """A column per task; the mean over its seeds."""
    if not rows:
        return []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [f"\n| sd of log(measured / predicted) | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    spreads = {task: [spread_of_logs(row) for row in rows if row["task"] == task] for task in tasks}
    for shown, name in SHOWN.items():
        cells = [f"{statistics.mean(found[name] for found in spreads[task]):.2f}" for task in tasks]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return lines


def _cost(task: str, rows: list[Row]) -> list[str]:
    fields = ("forward_steps", "slamp_steps", "slamp_curve_steps")
    values = (f"{statistics.mean(row[f] for row in rows):.1f}" for f in fields)
    return [
        f"| {task}: calibration in training steps of 64 | forward pass alone | slamp | slamp_curve |",
        "|---|---|---|---|",
        f"| 400 examples | {' | '.join(values)} |",
    ]
