"""Encoded rows in Ray's object store: put there once, selected from before anything is decoded.

Tasks import this file, which is why it is one of its own: it loads no Ray Train.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.data.dataset import Split
from pipelines.data.layout import read_pieces, select
from pipelines.errors import mistake

SMALL_BYTES = 256 << 20


def load_rows(split: Split) -> Any:
    """Encoded rows in the object store, in about one block per CPU and in the files' order.

    Every row group is read once, by one task, which gives it away in parts.
    """
    # Blocks must hold the same rows in every run: scores depend on them in their last bits.
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    blocks = max(2, int(ray.cluster_resources().get("CPU", 2)))
    parts = list(split.layout.parts(-(-int(split.layout.rows.sum()) // blocks)))
    source = ray.put((parts, split.ids))
    numbers = ray.data.range(len(parts), override_num_blocks=len(parts))
    numbers.context.target_max_block_size = min(
        max(split.num_bytes // blocks, 1), numbers.context.target_max_block_size or split.num_bytes
    )
    try:
        return numbers.map_batches(
            _load_part,  # type: ignore[arg-type]  # Ray's stubs know no functions with more arguments
            fn_kwargs={"source": [source]},
            batch_format="pyarrow",
            batch_size=None,
        ).materialize()
    except ray.exceptions.RayError as error:
        raise mistake(error) or error from None


def _load_part(block: Any, source: list[Any]) -> Iterator[Any]:
    parts, ids = ray.get(source[0])
    for number in block.column("id").to_pylist():
        yield from read_pieces(parts[number], ids)


def select_rows(dataset: Any, ids: np.ndarray) -> pa.Table:
    """The rows with these ids, by tasks that read the object store and nothing else.

    Of a dataset that any node can hold whole, the caller looks through the blocks itself: it maps them where
    they are, and waits for no task.
    """
    if dataset.size_bytes() <= SMALL_BYTES:
        blocks = (select(block, ids) for block in ray.get(dataset.to_arrow_refs()))
        return pa.concat_tables([t for t in blocks if t.num_rows])
    wanted = ray.put(ids)
    refs = dataset.map_batches(
        _select_block,
        fn_kwargs={"wanted": [wanted]},
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
    ).to_arrow_refs()
    return pa.concat_tables([t for t in ray.get(refs) if t.num_rows])


def _select_block(block: pa.Table, wanted: list[Any]) -> pa.Table:
    return select(block, ray.get(wanted[0]))
