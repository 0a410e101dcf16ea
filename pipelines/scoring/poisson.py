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
from pipelines.storage.paths import open_parquet
from pruning.examples.inclusion import ScoreHistogram, WaterLevel, bin_counts, bracketing_bin, water_level
from pruning.examples.policies import POLICIES
from pruning.examples.policies.base import Policy
from pruning.examples.sampling import draw

BATCH_ROWS = 1 << 20
"""Rows that a task looks at together: what it holds in memory."""
MOST_READS = 256
"""Tasks that share a file's row groups."""


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
    of = POLICIES[policy]
    return all(getattr(of, name) is getattr(Policy, name) for name in ("select", "inclusion", "importance"))


def rows_in_order(path: str, score: str) -> Any:
    """A Ray Dataset of a Parquet file's columns id and ``score``, in the file's order.

    ``ray.data.read_parquet`` keeps the order of files, but not of the rows of one large file (Ray 2.60).
    """
    import ray.data

    with open_parquet(path) as parquet:
        groups = parquet.num_row_groups
    numbers: Any = ray.data.range(groups, override_num_blocks=max(1, min(groups, MOST_READS)))
    given = {"path": path, "columns": ["id", score]}
    return numbers.map_batches(_row_groups, fn_kwargs=given, batch_size=None, batch_format="pyarrow")


def _row_groups(numbers: pa.Table, path: str, columns: list[str]) -> Iterator[pa.Table]:
    with open_parquet(path) as parquet:
        groups = numbers.column("id").to_pylist()
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
            yield pa.Table.from_batches([batch])


def poisson_pass(table: Any, score: str | None, plan: PoissonDraw) -> Iterator[pa.Table]:
    """The drawn rows, in order: columns id, weight (float32) and probability (float64).

    ``table`` is a Ray Dataset with a column id, 0 to N - 1 in this order, and one of scores, which ``score``
    names (``None`` for a uniform draw).

    Raises:
        UserError: ids that are not the rows' positions.
    """
    prepare_data()
    table.context.execution_options.preserve_order = True  # a dataset has its own since it was made
    if score is None:
        level = WaterLevel(0.0, plan.size / plan.population, np.inf, 1.0)
    else:
        level = _water_level(table, score, plan)
    drawn = _mapped(table, _drawn, score=score, plan=plan, level=level)
    for part in drawn.iter_batches(batch_size=None, batch_format="pyarrow"):
        if part.num_rows:
            yield part


def _water_level(table: Any, score: str, plan: PoissonDraw) -> WaterLevel:
    histogram: ScoreHistogram | None = None
    expected = 0
    for row in _mapped(table, _histogram, score=score).iter_rows():
        expected = expected + int(row["rows"]) if row["first"] == expected else -1
        if expected < 0:
            break
        counts = int(row["zeros"]), int(row["replaced"])
        found = ScoreHistogram(row["counts"], row["low"], *counts, float(row["top"]))
        histogram = found if histogram is None else histogram + found
    if expected != plan.population or histogram is None:
        what = f"its ids are not 0 to {plan.population - 1:,} in this order"
        raise UserError("--scores", f"{what}; `spikeprune score` writes them so")
    which = bracketing_bin(histogram, plan.size, plan.alpha)
    given = {"score": score, "which": which, "fill": histogram.completed().top}
    inside = reduce(add, (row["inside"] for row in _mapped(table, _inside, **given).iter_rows()))
    return water_level(histogram, which, inside, plan.size, plan.alpha)


def _mapped(table: Any, function: Any, **given: Any) -> Any:
    return table.map_batches(function, fn_kwargs=given, batch_size=BATCH_ROWS, batch_format="pyarrow")


def _histogram(batch: pa.Table, score: str) -> dict[str, Any]:
    """One row: the histogram, the first id (-1 where the ids do not follow each other) and the rows."""
    ids = batch.column("id").to_numpy()
    follow = np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
    found = vars(ScoreHistogram.of(batch.column(score).to_numpy()))
    found = {"first": int(ids[0]) if follow else -1, "rows": len(ids), **found}
    return {name: np.asarray(value)[None] for name, value in found.items()}


def _inside(batch: pa.Table, score: str, which: int, fill: float) -> dict[str, Any]:
    return {"inside": bin_counts(batch.column(score).to_numpy(), which, fill)[None]}


def _drawn(batch: pa.Table, score: str | None, plan: PoissonDraw, level: WaterLevel) -> pa.Table:
    n = batch.num_rows
    scores = np.zeros(n, np.float32) if score is None else batch.column(score).to_numpy()
    subset = draw(
        level.probabilities(scores),
        size=plan.size,
        seed=plan.seed,
        epoch=plan.epoch,
        design="poisson",
        first_id=batch.column("id")[0].as_py(),
        population=plan.population,
    )
    return pa.table({"id": subset.ids, "weight": subset.weights, "probability": subset.probabilities})
