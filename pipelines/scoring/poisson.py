"""Poisson draws from tables of any size: passes of Ray Data over a column of scores, in bounded memory.

Two passes find the water level from histograms, which add up exactly (`pruning.examples.inclusion`); a third
lets each id decide by a hash of (seed, epoch, id). Subset and weights are those of the same draw in memory,
bit for bit, however the table is parted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.connect import prepare_data
from pipelines.errors import UserError
from pruning.examples.inclusion import ScoreHistogram, WaterLevel, bin_counts, bracketing_bin, water_level
from pruning.examples.policies import class_of
from pruning.examples.policies.base import Policy
from pruning.examples.sampling import draw

BATCH_ROWS = 1 << 20
"""Rows that a task looks at together: what it holds in memory."""


@dataclass(frozen=True, kw_only=True)
class PoissonDraw:
    """What a draw is a function of, beside the scores."""

    population: int
    """``N``: ids run from 0 to N - 1."""
    size: int
    """``m``: examples drawn on average."""
    alpha: float
    """Share of the uniform mixture."""
    seed: int
    epoch: int


def draws_alone(policy: str) -> bool:
    """Whether a policy's Poisson design is that of this module: importance of a score, or uniform.

    Raises:
        ValueError: unknown policy.
    """
    of = class_of(policy)
    return all(getattr(of, name) is getattr(Policy, name) for name in ("select", "inclusion", "importance"))


def poisson_pass(table: Any, score: str | None, plan: PoissonDraw) -> Iterator[pa.Table]:
    """The drawn rows, in order: columns id, weight (float32) and probability (float64).

    Args:
        table: Ray Dataset with a column id, 0 to N - 1 in this order, and one of scores.
        score: name of that column; ``None`` for a uniform draw.
        plan: the draw.

    Raises:
        UserError: ids that are not the rows' positions.
    """
    prepare_data()
    if score is None:
        level = WaterLevel(0.0, plan.size / plan.population, np.inf, 1.0)
    else:
        level = _water_level(table, score, plan)
    waiting: dict[int, tuple[int, pa.Table]] = {}
    expected = 0
    given = {"score": score, "plan": plan, "level": level}
    drawn_by = table.map_batches(_drawn, fn_kwargs=given, batch_size=BATCH_ROWS, batch_format="pyarrow")
    for part in _rows(drawn_by):
        columns = {name: part[name].values for name in ("id", "weight", "probability")}
        waiting[part["first"].as_py()] = part["rows"].as_py(), pa.table(columns)
        while expected in waiting:  # Ray Data finishes blocks in an order of its own
            count, drawn = waiting.pop(expected)
            expected += count
            if drawn.num_rows:
                yield drawn
    _check(not waiting and expected == plan.population, plan)


def _water_level(table: Any, score: str, plan: PoissonDraw) -> WaterLevel:
    ends: dict[int, int] = {}
    histogram: ScoreHistogram | None = None
    for row in _gathered(table, _histogram, score=score):
        ends[int(row["first"])] = int(row["first"] + row["rows"])
        counts = int(row["zeros"]), int(row["replaced"])
        found = ScoreHistogram(row["counts"], row["low"], *counts, float(row["top"]))
        histogram = found if histogram is None else histogram + found
    expected = 0
    while expected in ends:
        expected = ends.pop(expected)
    _check(not ends and expected == plan.population, plan)
    assert histogram is not None
    _check(histogram.total == plan.population, plan)
    which = bracketing_bin(histogram, plan.size, plan.alpha)
    given = {"score": score, "which": which, "fill": histogram.completed().top}
    inside = reduce(add, (row["inside"] for row in _gathered(table, _inside, **given)))
    return water_level(histogram, which, inside, plan.size, plan.alpha)


def _check(whole: bool, plan: PoissonDraw) -> None:
    if not whole:
        what = f"its ids are not 0 to {plan.population - 1:,} in this order"
        raise UserError("--scores", f"{what}; `spikeprune score` writes them so")


def _gathered(table: Any, function: Any, **given: Any) -> Iterator[dict[str, Any]]:
    """What a function makes of each batch, a row each, as they are done."""
    found = table.map_batches(function, fn_kwargs=given, batch_size=BATCH_ROWS, batch_format="pyarrow")
    return found.iter_rows()


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows as Arrow's scalars: Python's own numbers would be slow, and forget that they are float32."""
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for k in range(block.num_rows):
            yield {name: block.column(name)[k] for name in block.column_names}


def _range(batch: pa.Table) -> dict[str, int]:
    """First id and number of a batch's rows; -1 where its ids do not follow each other."""
    ids = batch.column("id").to_numpy()
    follow = np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
    return {"first": int(ids[0]) if follow else -1, "rows": len(ids)}


def _histogram(batch: pa.Table, score: str) -> dict[str, Any]:
    found = _range(batch) | vars(ScoreHistogram.of(batch.column(score).to_numpy()))
    return {name: np.asarray(value)[None] for name, value in found.items()}


def _inside(batch: pa.Table, score: str, which: int, fill: float) -> dict[str, Any]:
    return {"inside": bin_counts(batch.column(score).to_numpy(), which, fill)[None]}


def _drawn(batch: pa.Table, score: str | None, plan: PoissonDraw, level: WaterLevel) -> pa.Table:
    found = _range(batch)
    n = found["rows"]
    scores = np.zeros(n, np.float32) if score is None else batch.column(score).to_numpy()
    subset = draw(
        level.probabilities(scores),
        size=plan.size,
        seed=plan.seed,
        epoch=plan.epoch,
        design="poisson",
        first_id=max(found["first"], 0),
        population=plan.population,
    )
    columns: dict[str, np.ndarray] = {
        "id": subset.ids,
        "weight": subset.weights,
        "probability": subset.probabilities,
    }
    lists = {name: pa.LargeListArray.from_arrays([0, len(v)], pa.array(v)) for name, v in columns.items()}
    return pa.table({name: [value] for name, value in found.items()} | lists)
