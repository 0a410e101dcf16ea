"""A subset with its weights, written for people who train elsewhere.

Up to 10^8 examples are drawn from in this process. Beyond, passes of Ray Data over a column of scores draw in
bounded memory (Poisson design): two find the water level from histograms, which add up exactly
(`pruning.examples.inclusion`), and a third lets each id decide by a hash of (seed, epoch, id). Subset and
weights are those of the same draw in memory, bit for bit, however the table is parted.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.connect import connect, prepare_data
from cluster.errors import UserError
from pipelines.data.layout import MOST_IDS, with_source_ids
from pipelines.data.scan import read_split, split_files
from pipelines.storage.atomic import check_beside, check_new_folder, write_beside, write_parquet
from pipelines.storage.paths import Folder, below, name_of, open_parquet, real_path, short, uri_of
from pruning.examples.inclusion import (
    ScoreHistogram,
    WaterLevel,
    bin_counts,
    bracketing_bin,
    subset_size,
    water_level,
)
from pruning.examples.policies import POLICIES, Policy, make_policy
from pruning.examples.sampling import draw

BATCH_ROWS = 1 << 20
"""Rows that a task looks at together: what it holds in memory."""
MOST_READS = 256
"""Tasks that share a file's row groups."""
ROW_GROUP_ROWS = 1024
READ_ROWS = 65_536
IN_MEMORY = MOST_IDS
"""Examples that are drawn from in this process; beyond, passes of Ray Data draw by the Poisson design."""


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


@dataclass(frozen=True)
class Selected:
    """What was drawn, in short."""

    examples: int
    largest_weight: float


def select_subset(
    folder: Path,
    *,
    policy: str,
    ratio: float,
    output: Path,
    scores: Path | None = None,
    split: str = "train",
    alpha: float = 0.1,
    design: str = "systematic",
    seed: int = 0,
    epoch: int = 0,
    filtered: Path | None = None,
    address: str | None = None,
) -> Selected:
    """Draw one epoch's subset of a dataset and write id, weight and inclusion probability as Parquet.

    Args:
        folder: the dataset.
        policy: of `pruning.examples.policies.POLICIES`.
        ratio: share of the examples left out, in [0, 1).
        output: Parquet file to write.
        scores: Parquet with columns id and the policy's score (`spikeprune score` writes it).
        split: prefix of the dataset's files.
        alpha: share of the uniform mixture.
        design: ``systematic`` or ``poisson``; more than 10^8 examples are drawn from by ``poisson`` alone.
        seed: of the draw.
        epoch: another epoch is another draw with the same seed.
        filtered: new or empty folder for a dataset of the chosen rows, with a column ``weight``, numbered
            from 0 (``source_id`` keeps what they were); none when not given.
        address: of a running Ray cluster, for more than 10^8 examples.

    Raises:
        UserError: bad data, missing or foreign scores, a setting out of range, or a place to write that
            holds other data. Nothing is written then.
    """
    check_beside("--output", output, folder)
    if filtered is not None:
        check_new_folder("--filtered", filtered)
        if (uri_of(filtered) or real_path(filtered)) == (uri_of(output) or real_path(output)):
            raise UserError("--filtered", f"{filtered} is --output too; name another folder")
    data = read_split(folder, split)
    large = data.num_examples > IN_MEMORY
    try:
        drawn = make_policy(
            policy,
            num_examples=1 if large else data.num_examples,
            ratio=ratio,
            seed=seed,
            epochs=epoch + 1,
            warmup_epochs=0,
            anneal_epochs=0,
            score_from=epoch,  # the scores are those that the first scored epoch is drawn by
            alpha=alpha,
            stale_alpha=alpha,
            design=design,
        )
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        raise UserError(f"--{where}", what) from None
    if drawn.score is not None and scores is None:
        raise UserError("--scores", f"policy {policy} needs them; `spikeprune score` writes such a file")
    if large:
        plan, score = _plan(drawn, data.num_examples, epoch)
        if scores is not None and score is not None:
            _opened(scores, score).close()
    with connect(address) if large else nullcontext():
        parts = _passes(plan, scores, score) if large else _in_memory(drawn, scores, epoch)
        told = _write(output, with_source_ids(data.layout, data.schema, parts), ratio)
    if filtered is not None:
        _write_filtered(folder, split, output, filtered)
    return told


def _in_memory(policy: Policy, scores: Path | None, epoch: int) -> Iterator[pa.Table]:
    if scores is not None and policy.score is not None:
        _read_scores(scores, policy, epoch)
    plan = policy.plan(epoch)
    probabilities = np.ones(len(plan.ids)) if plan.probabilities is None else plan.probabilities
    yield pa.table({"id": plan.ids, "weight": plan.weights, "probability": probabilities})


def _plan(policy: Policy, population: int, epoch: int) -> tuple[PoissonDraw, str | None]:
    """What passes of Ray Data draw by the settings of a policy, and by which score."""
    s = policy.settings
    if s.design != "poisson":
        raise UserError("--design", f"{s.design} draws from {IN_MEMORY:,} examples at most; take poisson")
    if not draws_alone(policy.name):
        raise UserError("--policy", f"{policy.name} ranks all examples, {IN_MEMORY:,} at most; take sadp")
    full = policy.is_full(epoch)
    plan = PoissonDraw(
        population=population,
        size=population if full else subset_size(population, s.ratio),
        alpha=s.alpha,
        seed=s.seed,
        epoch=epoch,
    )
    return plan, None if full or policy.is_uniform(epoch) else policy.score


def _passes(plan: PoissonDraw, scores: Path | None, score: str | None) -> Iterator[pa.Table]:
    """As `_in_memory`, by Ray Data."""
    import ray

    if score is None:
        return poisson_pass(ray.data.range(plan.population), None, plan)
    assert scores is not None
    table = rows_in_order(uri_of(scores) or str(scores.absolute()), score)
    return poisson_pass(table, score, plan)


def _write(output: Path, parts: Iterator[pa.Table], ratio: float) -> Selected:
    examples, largest = 0, 0.0

    def counted() -> Iterator[pa.Table]:
        nonlocal examples, largest
        for part in parts:
            examples += part.num_rows
            largest = max(largest, part.column("weight").to_numpy().max(initial=0))
            yield part
        if not examples:
            what = f"at {ratio:g} the poisson design drew none; lower it, or take --design systematic"
            raise UserError("--ratio", what)

    write_parquet(output, counted())
    return Selected(examples, float(largest))


def _read_scores(path: Path, policy: Policy, epoch: int) -> None:
    """Let the policy see a file of scores, a bounded number of rows at a time."""
    assert policy.score is not None
    with _opened(path, policy.score) as parquet:
        seen = np.zeros(policy.settings.num_examples, bool)
        for batch in parquet.iter_batches(READ_ROWS, columns=["id", policy.score]):
            found = batch.column("id").cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
            known = found[(found >= 0) & (found < len(seen))]
            if len(known) == len(found):
                scores = batch.column(policy.score).to_numpy(zero_copy_only=False)  # NaN where there is none
                policy.observe(found, scores, epoch, "pass")
            seen[known] = True
        rows = parquet.metadata.num_rows
        if not seen.all() or rows != len(seen):
            raise UserError(
                "--scores", f"{path} scores {rows} examples with other ids than the dataset's {len(seen)}"
            )


def _opened(path: Path, score: str) -> pq.ParquetFile:
    try:
        parquet = open_parquet(path)
    except FileNotFoundError:
        raise UserError("--scores", f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError("--scores", f"{path} is not readable Parquet ({short(error)})") from None
    schema, whole, real = parquet.schema_arrow, pa.types.is_integer, pa.types.is_floating
    for column in ("id", score):
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise UserError("--scores", f"{path} has no column {column!r}; it has {names}")
        held, wanted = schema.field(column).type, "whole numbers" if column == "id" else "numbers"
        if not (whole(held) or (column == score and real(held))):
            raise UserError("--scores", f"{path}: column {column!r} holds {held}; it must hold {wanted}")
    return parquet


def _write_filtered(folder: Path, split: str, subset: Path, output: Path) -> None:
    """A dataset of the chosen rows, renumbered, with their weights; other splits are copied."""
    next_id, files = 0, split_files(folder, split)

    def chosen(file: str) -> Iterator[pa.Table]:
        nonlocal next_id
        with open_parquet(file) as parquet:
            if not parquet.metadata.num_rows:
                yield parquet.schema_arrow.empty_table()
            for batch in parquet.iter_batches(READ_ROWS):
                rows = _chosen(pa.Table.from_batches([batch]), subset, next_id)
                next_id += rows.num_rows
                yield rows.replace_schema_metadata(parquet.schema_arrow.metadata)

    for file in files:
        write_parquet(below(output, name_of(file)), chosen(file), ROW_GROUP_ROWS)
    names, dataset = {name_of(file) for file in files}, Folder.of(folder, "data")
    for entry in dataset.files(originals=True):
        if entry.path.endswith(".parquet") and "/" not in entry.path and entry.path not in names:
            write_beside(below(output, entry.path), partial(dataset.download, entry.path))


def _chosen(rows: pa.Table, subset: Path, next_id: int) -> pa.Table:
    ids = rows.column("id").to_numpy()
    within = [("id", ">=", int(ids[0])), ("id", "<=", int(ids[-1]))]
    place, name = Folder.holding(subset)
    drawn = pq.read_table(
        place.at(name), columns=["id", "weight"], filters=within, filesystem=place.filesystem
    )
    rows = rows.take(pa.array(drawn.column("id").to_numpy() - ids[0]))
    if "source_id" not in rows.column_names:
        rows = rows.append_column("source_id", rows.column("id"))
    number = rows.column_names.index("id")
    rows = rows.set_column(number, "id", pa.array(np.arange(next_id, next_id + rows.num_rows)))
    if "weight" in rows.column_names:  # of the draw that made this dataset
        rows = rows.drop_columns(["weight"])
    return rows.append_column("weight", drawn.column("weight"))
