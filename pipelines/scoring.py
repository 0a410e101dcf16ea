"""Scores of examples: the function that every launcher runs on a block of rows, and its Ray Data pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.connect import quiet_data
from pipelines import own_code
from pipelines.config import LossName
from pipelines.data.dataset import COLUMNS
from pipelines.errors import UserError
from pipelines.networks import in_layout, is_channels_last
from pipelines.training.rows import Inputs, Rows
from pruning.examples.scores import ExampleScorer
from snn.interchange import build_described
from snn.kernels.allocator import tune_allocator
from snn.models import SpikingNetwork

CHUNK = 256  # rows per forward: tensors stay below the size at which the C library maps memory anew


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which scores, of which loss, on which inputs."""

    scores: tuple[str, ...]
    """Names of `pruning.examples.scores.SCORES`."""
    loss: LossName
    label_smoothing: float
    tail_depth: int
    timesteps: int | None
    inputs: Inputs

    def scorer(self, model: SpikingNetwork) -> ExampleScorer:
        """The scorer of a network."""
        return ExampleScorer(
            model,
            self.scores,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            tail_depth=self.tail_depth,
            timesteps=self.timesteps,
        )


def score_table(
    table: pa.Table, model: SpikingNetwork, scoring: Scoring, device: torch.device | str = "cpu"
) -> pa.Table:
    """Columns id (ascending) and one float32 per score, for rows with columns id, image and label.

    Raises:
        UserError: an image that cannot be decoded.
    """
    rows = Rows(table)
    scorer = scoring.scorer(model)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in scoring.scores}
    for _, x, labels in rows.batches(CHUNK):
        found = scorer.score(scoring.inputs(x, device), torch.from_numpy(labels).to(device))
        for name in scoring.scores:
            parts[name].append(found[name].float().cpu())
    return pa.table({"id": rows.ids, **{name: torch.cat(part).numpy() for name, part in parts.items()}})


def score_dataset(
    dataset: Any, model: SpikingNetwork, architecture: dict[str, Any], ids: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """The first score of the rows with these ids in a Ray Dataset, computed by its tasks.

    The weights travel once, through the object store; tasks keep the network between blocks.

    Args:
        dataset: materialised rows with columns id, image and label.
        model: whose weights score.
        architecture: of ``model``.
        ids: ascending.
        scoring: what to compute.

    Returns:
        float32, in the order of ``ids``.
    """
    import ray

    blocks = _scored(dataset, model, architecture, scoring, ids).to_arrow_refs()
    table = pa.concat_tables([t for t in ray.get(blocks) if t.num_rows])
    found, scores = table.column("id").to_numpy(), table.column(scoring.scores[0]).to_numpy()
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], ids):
        raise RuntimeError(f"scored {len(found)} rows of {len(ids)}: the dataset changed under the run")
    return scores[order]


def stream_scores(
    files: tuple[str, ...], model: SpikingNetwork, architecture: dict[str, Any], scoring: Scoring
) -> Iterator[pa.Table]:
    """Tables of scores of all rows of Parquet files, as Ray Data finishes them; nothing is kept.

    Raises:
        UserError: an image that cannot be decoded.
    """
    import ray.data

    quiet_data()
    rows = ray.data.read_parquet(list(files)).select_columns(list(COLUMNS))
    scored = _scored(rows, model, architecture, scoring, None)
    try:
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            if table.num_rows:
                yield table
    except ray.exceptions.RayError as error:
        raise _mistake(error) or error from None


def _scored(
    dataset: Any,
    model: SpikingNetwork,
    architecture: dict[str, Any],
    scoring: Scoring,
    ids: np.ndarray | None,
) -> Any:
    import ray

    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    job = ray.put((architecture, weights, scoring, ids, own_code.active()))
    return dataset.map_batches(
        _score_block,
        fn_kwargs={"job": [job], "key": job.hex()},
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
    )


_cached: tuple[str, tuple[SpikingNetwork, Scoring, np.ndarray | None]] | None = None


def _score_block(block: pa.Table, job: list[Any], key: str) -> Iterator[pa.Table]:
    model, scoring, ids = _load_job(job[0], key)
    rows = block if ids is None else select(block, ids)
    if rows.num_rows:
        yield score_table(rows, model, scoring)


def _load_job(ref: Any, key: str) -> tuple[SpikingNetwork, Scoring, np.ndarray | None]:
    global _cached
    if _cached is None or _cached[0] != key:
        import ray

        architecture, weights, scoring, ids, code = ray.get(ref)
        own_code.activate(code)
        tune_allocator()
        torch.set_num_threads(1)
        model = in_layout(build_described(architecture), channels_last=is_channels_last(weights))
        model.load_state_dict(weights)
        _cached = (key, (model, scoring, ids))
    return _cached[1]


def _mistake(error: BaseException) -> UserError | None:
    """The user's mistake that a task's failure stems from, if one does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(seen.where, seen.what)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def select(block: pa.Table, ids: np.ndarray) -> pa.Table:
    """The block's rows whose id is among ``ids`` (ascending)."""
    of_block = block.column("id").to_numpy()
    if len(ids) == 0:
        return block.slice(0, 0)
    at = np.minimum(np.searchsorted(ids, of_block), len(ids) - 1)
    keep = ids[at] == of_block
    return block if keep.all() else block.filter(pa.array(keep))
