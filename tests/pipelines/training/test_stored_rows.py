"""Encoded rows in the object store: the same ones, whoever looks through the blocks."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.data.dataset import read_split
from pipelines.training import stored_rows
from pipelines.training.stored_rows import load_rows, select_rows

pytestmark = pytest.mark.xdist_group("ray")


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


def test_a_row_group_is_read_once_and_given_away_in_parts(
    ray_session: None, digits: Path, tmp_path: Path
) -> None:
    table = pq.read_table(digits / "train-00000.parquet")
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=table.num_rows)
    dataset = load_rows(read_split(tmp_path, "train"))
    assert " 1 tasks executed" in dataset.stats()
    blocks = ray.get(dataset.to_arrow_refs())
    assert len(blocks) >= 2
    assert max(b.num_rows for b in blocks) < 1.5 * table.num_rows / 2
    assert np.concatenate([b.column("id") for b in blocks]).tolist() == list(range(table.num_rows))
