"""What is printed of the rows of `benchmarks.slamp_quality`: Markdown, means over seeds."""

import statistics
from math import log
from typing import Any

Row = dict[str, Any]


def tables(rows: list[Row]) -> str:
    """All tables, task by task."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        lines += _dense(task, own)
        for part in ("synops", "weights"):
            for epochs in sorted({row["retrain_epochs"] for row in own if row["part"] == part}):
                found = [r for r in own if r["part"] == part and r["retrain_epochs"] == epochs]
                lines += ["", *_part(task, part, epochs, found)]
        if found := [row for row in own if row["part"] == "distortion"]:
            lines += ["", *_distortion(task, found)]
        if found := [row for row in own if row["part"] == "cost"]:
            lines += ["", *_cost(task, found)]
        lines.append("")
    return "\n".join(lines)


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
    all_candidates = {"lamp": [1.0] * len(names), **row["candidates"]}
    found = {}
    for name, c in all_candidates.items():
        by_layer = dict(zip(names, c, strict=True))
        logs = [log(r["measured"] / (by_layer[r["layer"]] * -log(1 - r["removed_energy"]))) for r in usable]
        found[name] = statistics.stdev(logs)
    by_curve = [log(r["measured"] / r["curve"]) for r in usable if r["curve"]]
    if len(by_curve) > 1:
        found["slamp_curve"] = statistics.stdev(by_curve)
    return found


def _distortion(task: str, rows: list[Row]) -> list[str]:
    spreads = [spread_of_logs(row) for row in rows]
    lines = [f"| {task}: sd of log(measured / predicted) | mean over {len(rows)} seeds |", "|---|---|"]
    for name in spreads[0]:
        lines.append(f"| {name} | {statistics.mean(s[name] for s in spreads if name in s):.2f} |")
    return lines


def _cost(task: str, rows: list[Row]) -> list[str]:
    fields = ("forward_steps", "slamp_steps", "slamp_curve_steps")
    values = (f"{statistics.mean(row[f] for row in rows):.1f}" for f in fields)
    return [
        f"| {task}: calibration in training steps of 64 | forward pass alone | slamp | slamp_curve |",
        "|---|---|---|---|",
        f"| 400 examples | {' | '.join(values)} |",
    ]
