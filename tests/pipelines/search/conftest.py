"""A small search on the digits that several tests look at."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.config.load import load_tree
from pipelines.search.config import SearchTree
from pipelines.search.journal import Journal, Record
from pipelines.search.search import open_search, search

QUIET = Console(quiet=True)
BASE: dict[str, Any] = {
    "model.hidden": [32],
    "train.epochs": 3,
    "train.norm_examples": 256,
    "examples.rescore_every": 2,
    "weights.retrain_epochs": 1,
    "weights.calibration_examples": 100,
    "cluster.workers": 1,
}
SPACE = {
    "examples.warmup_epochs": [0, 2],
    "examples.anneal_epochs": [1, 2],  # two of each are more than the epochs: trials that fail
    "weights.sparsity": [0.5, 0.95],
}


def tree(folder: Path, digits: Path, search: dict[str, Any], **rest: Any) -> SearchTree:
    """The settings of a search below ``folder``."""
    settings = {f"search.{k}": v for k, v in search.items()}
    place = {"storage": str(folder), "data.path": str(digits)}
    return load_tree(SearchTree, None, {**BASE, **place, **settings, **rest})


def journal_of(found: SearchTree) -> Journal:
    """The journal of a search."""
    return open_search(found)[0]


def records_of(found: SearchTree) -> list[Record]:
    """The records of a search."""
    return journal_of(found).records()


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
