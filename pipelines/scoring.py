"""Scores of examples: the function that every launcher runs on a block of rows, and its Ray Data pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.config import LossName
from pipelines.training.rows import Inputs, Rows
from pruning.examples.scores import ExampleScorer
from snn.interchange import build_described
from snn.models import SpikingNetwork

CHUNK = 256  # rows per forward: tensors stay below the size at which the C library maps memory anew


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which score, of which loss, on which inputs."""

    score: str
    loss: LossName
    label_smoothing: float
    tail_depth: int
    timesteps: int | None
    inputs: Inputs

    def scorer(self, model: SpikingNetwork) -> ExampleScorer:
        """The scorer of a network."""
        return ExampleScorer(
            model,
            (self.score,),
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            tail_depth=self.tail_depth,
            timesteps=self.timesteps,
        )


def score_rows(
    rows: Rows, model: SpikingNetwork, scoring: Scoring, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Scores of all rows, float32 in ascending order of their ids."""
    scorer = scoring.scorer(model)
    scores = [
        scorer.score(scoring.inputs(x, device), torch.from_numpy(labels).to(device))[scoring.score]
        for _, x, labels in rows.batches(CHUNK)
    ]
    return torch.cat(scores).float().cpu().numpy()


def score_dataset(
    dataset: Any,
    model: SpikingNetwork,
    architecture: dict[str, Any],
    ids: np.ndarray,
    scoring: Scoring,
) -> np.ndarray:
    """Scores of the rows with these ids in a Ray Dataset, computed by its tasks.

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

    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    job = ray.put((architecture, weights, scoring, ids))
    blocks = dataset.map_batches(
        _score_block,
        fn_kwargs={"job": [job], "key": job.hex()},
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
    ).to_arrow_refs()
    table = pa.concat_tables([t for t in ray.get(blocks) if t.num_rows])
    found, scores = table.column("id").to_numpy(), table.column("score").to_numpy()
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], ids):
        raise RuntimeError(f"scored {len(found)} rows of {len(ids)}: the dataset changed under the run")
    return scores[order]


_cached: tuple[str, tuple[SpikingNetwork, Scoring, np.ndarray]] | None = None


def _score_block(block: pa.Table, job: list[Any], key: str) -> Iterator[pa.Table]:
    model, scoring, ids = _load_job(job[0], key)
    rows = select(block, ids)
    if rows.num_rows:
        fetched = Rows(rows)
        yield pa.table({"id": fetched.ids, "score": score_rows(fetched, model, scoring)})


def _load_job(ref: Any, key: str) -> tuple[SpikingNetwork, Scoring, np.ndarray]:
    global _cached
    if _cached is None or _cached[0] != key:
        import ray

        architecture, weights, scoring, ids = ray.get(ref)
        torch.set_num_threads(1)
        model = build_described(architecture)
        model.load_state_dict(weights)
        _cached = (key, (model, scoring, ids))
    return _cached[1]


def select(block: pa.Table, ids: np.ndarray) -> pa.Table:
    """The block's rows whose id is among ``ids`` (ascending)."""
    of_block = block.column("id").to_numpy()
    if len(ids) == 0:
        return block.slice(0, 0)
    at = np.minimum(np.searchsorted(ids, of_block), len(ids) - 1)
    keep = ids[at] == of_block
    return block if keep.all() else block.filter(pa.array(keep))
