"""A subset with its weights, written for people who train elsewhere."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.connect import connect
from pipelines.data.dataset import read_split
from pipelines.data.layout import MOST_IDS, with_source_ids
from pipelines.data.scan import split_files
from pipelines.errors import UserError
from pipelines.scoring.poisson import PoissonDraw, draws_alone, poisson_pass, rows_in_order
from pipelines.storage.atomic import check_beside, check_new_folder, write_beside, write_parquet
from pipelines.storage.paths import Folder, below, name_of, open_parquet, real_path, short, uri_of
from pruning.examples.inclusion import subset_size
from pruning.examples.policies import Policy, make_policy

ROW_GROUP_ROWS = 1024
READ_ROWS = 65_536
IN_MEMORY = MOST_IDS
"""Examples that are drawn from in this process; beyond, passes of Ray Data draw by the Poisson design."""


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
