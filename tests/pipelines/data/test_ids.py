"""Ids as positions, against sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.layout import Ids


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(-5, 70), st.integers(-5, 70), st.data())
def test_ids_are_those_of_a_set(end: int, gone: set[int], low: int, high: int, data: st.DataObject) -> None:
    ids = Ids(end).without(np.array(sorted(gone), np.int64))
    known = sorted(set(range(end)) - gone)
    assert len(ids) == len(known)
    assert ids.array().tolist() == known
    within = [i for i in known if low <= i < high]
    if low <= high:
        assert ids.array(low, high).tolist() == within
        assert ids.counts(np.array([[low, high], [0, end]])).tolist() == [len(within), len(known)]
    assert [i for block in ids.blocks() for i in block.tolist()] == known
    present = ids.present()
    assert (np.arange(end) if present is None else np.flatnonzero(present)).tolist() == known
    if known:
        count = data.draw(st.integers(1, len(known)))
        first = ids.first(count)
        assert first.array().tolist() == known[:count]
        assert first.end == known[count - 1] + 1
