"""What is printed of the rows of `benchmarks.slamp_quality`: Markdown, means over seeds."""

import statistics
from math import log
from typing import Any

from benchmarks.slamp_tasks import DEEP, DEEP_STEPS, STEPS

Row = dict[str, Any]


SHOWN = {"lamp": "lamp", "slamp": "slamp", "slamp_curve": "slamp_curve", "version 0.1": "root"}
"""Predictions of distortion in the table, by the name that `spread_of_logs` gives them."""


def tables(rows: list[Row]) -> str:
    """All tables: the deep tasks one by one, what is left of the others together, then distortion."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows if row["task"] in DEEP):
        own = [row for row in rows if row["task"] == task]
        lines += _dense(task, own)
        for part in ("synops", "weights"):
            for epochs in sorted({row["retrain_epochs"] for row in own if row["part"] == part}):
                found = [r for r in own if r["part"] == part and r["retrain_epochs"] == epochs]
                lines += ["", *_part(task, part, epochs, found)]
        if found := [row for row in own if row["part"] == "cost"]:
            lines += ["", *_cost(task, found)]
        lines.append("")
    lines += _small([row for row in rows if row["task"] not in DEEP])
    return "\n".join([*lines, *_distortion([row for row in rows if row["part"] == "distortion"])])


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
                    _mean_sd([by["slamp"][seed] - by[c][seed] for seed in by["slamp"]], "+.1f")
                    for c in ("lamp", earlier)
                ]
                left = level if part == "synops" else 1 - level
                means = (f"{statistics.mean(by[c].values()):.1f}" for c in ("lamp", "slamp"))
                lines.append(
                    f"| {task} | {left:.0%} of the {unit} | {100 * dense:.1f} | {' | '.join(means)} |"
                    f" {' | '.join(less)} |"
                )
    return lines


def _dense(task: str, rows: list[Row]) -> list[str]:
    lines = [
        f"| {task}: dense, seed | accuracy | SynOps per inference | of these MACs | energy, nJ |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["part"] == "dense":
            lines.append(
                f"| {row['seed']} | {row['accuracy']:.3f} | {row['synops']:,.0f} | {row['macs']:,.0f} |"
                f" {row['energy_nj']:,.0f} |"
            )
    return lines


def _part(task: str, part: str, epochs: int, rows: list[Row]) -> list[str]:
    """A line per level and criterion; gains over LAMP seed by seed."""
    target = "share of the SynOps" if part == "synops" else "sparsity"
    lines = [
        f"| {task}: {target} | criterion | seeds | one-shot | retrained {epochs} epochs | drop from dense |"
        " over LAMP | connectivity | SynOps of dense | SynOps | energy, nJ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for level in dict.fromkeys(row["level"] for row in rows):
        of_level = [row for row in rows if row["level"] == level]
        lamp = {
            r["seed"]: r["accuracy"] for r in of_level if (r["criterion"], r["objective"]) == ("lamp", part)
        }
        for key in dict.fromkeys((r["criterion"], r["objective"]) for r in of_level):
            own = [r for r in of_level if (r["criterion"], r["objective"]) == key]
            name = key[0] if key[1] == part else f"{key[0]}, not priced"
            gains = [100 * (r["accuracy"] - lamp[r["seed"]]) for r in own if r["seed"] in lamp]

            def mean(field: str, own: list[Row] = own) -> float:
                return statistics.mean(r[field] for r in own)

            lines.append(
                f"| {level:.0%} | {name} | {len(own)} | {mean('one_shot'):.3f} |"
                f" {_mean_sd([r['accuracy'] for r in own], '.3f')} | {100 * mean('drop'):.1f} |"
                f" {_mean_sd(gains, '+.1f') if gains else '-'} | {mean('density'):.1%} |"
                f" {mean('synops_of_dense'):.1%} | {mean('synops'):,.0f} | {mean('energy_nj'):,.1f} |"
            )
    return lines


def _mean_sd(values: list[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


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
