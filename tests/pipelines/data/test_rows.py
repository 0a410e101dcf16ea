"""Encoded rows found by id, and their way into the network."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.data.decode import decode
from pipelines.data.inputs import Inputs
from pipelines.data.layout import Rows


def test_rows_come_in_the_order_asked_for(digits: Path) -> None:
    table = pq.read_table(digits / "train-00000.parquet")
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    rows = Rows(shuffled)
    ids = np.array([7, 3, 3, 1000])
    x, labels = rows.get(ids)
    expected = table.take(pa.array(ids))
    assert np.array_equal(x, decode(expected.column("image"), ids))
    assert np.array_equal(labels, expected.column("label").to_numpy())


def test_a_row_that_was_not_fetched_is_an_error(digits: Path) -> None:
    rows = Rows(pq.read_table(digits / "train-00000.parquet").slice(0, 10))
    with pytest.raises(KeyError, match="id 10 was not fetched"):
        rows.get(np.array([2, 10]))


def test_shares_cover_all_rows_once(digits: Path) -> None:
    rows = Rows(pq.read_table(digits / "test-00000.parquet"))
    shares = [rows.share(rank, 3) for rank in range(3)]
    assert sorted(np.concatenate([s.ids for s in shares])) == list(range(360))
    assert np.array_equal(shares[1].get(shares[1].ids)[0], rows.get(shares[1].ids)[0])


def test_inputs_are_normalised_per_channel_and_static() -> None:
    x = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 4)).astype(np.uint8)
    currents = Inputs(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), T=5)(x)
    assert currents.shape == (5, 2, 3, 4, 4)
    assert currents.stride(0) == 0
    for c in range(3):
        expected = (torch.from_numpy(x[:, c]).float() - (c + 1)) / (c + 4)
        assert torch.equal(currents[3, :, c], expected)


def test_features_are_normalised_together() -> None:
    currents = Inputs(mean=(2.0,), std=(4.0,), T=2)(np.array([[2.0, 6.0]], np.float32))
    assert torch.equal(currents, torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
