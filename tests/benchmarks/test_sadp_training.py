"""The benchmark of training on pruned data: what it keeps after a kill, and its paired intervals."""

from pathlib import Path

import pytest

from benchmarks import sadp_tables
from benchmarks.sadp_training import METHODS, TASKS, Run, config_of, plan


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
        e, epochs = config.data_pruning, config.train.epochs
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
