"""The benchmark of training on pruned data: what it keeps after a kill, and its paired intervals."""

import json
from pathlib import Path

import pytest

from benchmarks import sadp_tables
from benchmarks.sadp_training import METHODS, TASKS, Journal, Run, config_of, plan


def test_a_killed_benchmark_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = plan(["fashion"], [0.9], ["full", "random", "sadp"], seeds=2)
    assert runs[0] == Run("fashion", 0.0, 0, "full")
    assert len(runs) == len(set(runs)) == 6
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    for one in runs[:3]:
        journal.add({"task": one.task, "ratio": one.ratio, "seed": one.seed, "method": one.method})
    path.write_text(path.read_text()[:-20])  # the kill came while a row was written
    again = Journal(path)
    assert [r["method"] for r in again.rows] == ["full", "random"]
    assert again.missing(runs) == runs[2:]
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"rows": again.rows}))
    assert Journal(tmp_path / "new.jsonl", result).rows == again.rows
    again.add({"task": "fashion", "ratio": 0.9, "seed": 0, "method": "sadp"})
    assert [json.loads(line)["method"] for line in path.read_text().splitlines()] == [
        "full",
        "random",
        "sadp",
    ]


def test_all_ratios_share_the_full_runs() -> None:
    runs = plan(["fashion"], None, list(METHODS), seeds=8)
    assert sum(r.method == "full" for r in runs) == 8
    assert sum(r.method == "sadp" for r in runs) == 8 * len(TASKS["fashion"].ratios)
    assert sum(r.method == "sadp fresh" for r in runs) == 3 * len(TASKS["fashion"].ratios)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.9])
def test_rivals_see_at_least_as_many_examples_as_the_pruned_runs(ratio: float, tmp_path: Path) -> None:
    task = TASKS["fashion"]

    def share(method: str) -> float:
        config = config_of(Run("fashion", ratio, 0, method), task, tmp_path, tmp_path)
        e, epochs = config.examples, config.train.epochs
        if e.policy == "full":
            return epochs / task.epochs
        rate = 1 - (e.ratio if e.ratio_from is None else (e.ratio + e.ratio_from) / 2)
        return (e.warmup_epochs + (epochs - e.warmup_epochs) * rate) / task.epochs

    assert share("sadp") - 1e-9 <= share("full, fewer epochs") < share("sadp") + 1 / task.epochs
    assert share("sadp, growing ratio") == pytest.approx(share("sadp"))
    assert share("random, compute of fresh") == pytest.approx(share("sadp fresh") + 14 / 15 * 0.31)


def test_differences_are_paired_by_seed() -> None:
    found = {s: {"accuracy": 0.80 + 0.01 * s + d} for s, d in ((0, 0.004), (1, 0.006), (2, 0.005), (9, 0.5))}
    rival = {s: {"accuracy": 0.80 + 0.01 * s} for s in (0, 1, 2, 5)}
    mean, half, n = sadp_tables.paired(found, rival)
    assert (round(mean, 6), n) == (0.5, 3)
    assert half == pytest.approx(4.30 * 0.1 / 3**0.5)
