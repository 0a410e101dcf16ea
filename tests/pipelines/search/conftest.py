"""A small search on the digits that several tests look at."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.config.load import load_tree
from pipelines.config.schema import SearchTree
from pipelines.search.plan import SETTINGS, Plan, make_plan, read_plan
from pipelines.search.study import search
from pipelines.search.trial import Trial, read_trials

QUIET = Console(quiet=True)
BASE: dict[str, Any] = {
    "model.hidden": [32],
    "train.epochs": 3,
    "train.bn_examples": 256,
    "data_pruning.rescore_every": 2,
    "weight_pruning.retrain_epochs": 1,
    "weight_pruning.calibration_examples": 100,
    "cluster.workers": 1,
}
SPACE = {
    "model.name": ["mlp", "convnet"],
    "model.channels": [None, [4]],  # an mlp has none: trials that fail
    "weight_pruning.sparsity": [0.5, 0.95],
}


def tree(folder: Path, digits: Path, search: dict[str, Any], **rest: Any) -> SearchTree:
    """The settings of a search below ``folder``."""
    settings = {f"search.{k}": v for k, v in search.items()}
    place = {"storage": str(folder), "data.path": str(digits)}
    return load_tree(SearchTree, None, {**BASE, **place, **settings, **rest})


def plan_of(found: SearchTree) -> Plan:
    """The plan of a search, as it has begun if it has."""
    plan = make_plan(found)
    return read_plan(plan.folder) if (plan.folder / SETTINGS).exists() else plan


def trials_of(found: SearchTree) -> list[Trial]:
    """The trials of a search."""
    return read_trials(make_plan(found))


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, digits: Path, ray_session: None) -> SearchTree:
    """A grid of eight trials with two objectives, two of which fail, searched."""
    found = tree(
        tmp_path_factory.mktemp("searches"),
        digits,
        {"space": SPACE, "objectives": ["accuracy", "synops"], "sampler": "grid"},
    )
    search(found, console=QUIET)
    return found
