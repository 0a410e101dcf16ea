"""Encoded rows in the object store: the same ones, whoever looks through the blocks."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.dataset import read_split
from pipelines.training import stored_rows
from pipelines.training.stored_rows import load_rows, select_rows


def test_small_and_large_datasets_give_the_same_rows(
    ray_session: None, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = read_split(digits, "train")
    dataset = load_rows(split)
    ids = np.sort(np.random.default_rng(0).choice(len(split.ids), 500, replace=False))
    assert dataset.size_bytes() <= stored_rows.SMALL_BYTES
    here = select_rows(dataset, ids)
    monkeypatch.setattr(stored_rows, "SMALL_BYTES", 0)
    by_tasks = select_rows(dataset, ids)
    assert np.array_equal(np.sort(here.column("id").to_numpy()), ids)
    assert here.equals(by_tasks)
