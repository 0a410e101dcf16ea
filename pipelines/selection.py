"""A subset with its weights, written for people who train elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.dataset import read_split
from pipelines.data.ids import IdCollector, IdSet
from pipelines.data.scan import split_files
from pipelines.errors import UserError
from pipelines.storage.atomic import check_beside, check_new_folder, write_beside
from pipelines.storage.paths import below, name_of, open_parquet
from pruning.examples.policies import Plan, Policy, make_policy

ROW_GROUP_ROWS = 1024
READ_ROWS = 65_536


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
) -> Plan:
    """Draw one epoch's subset of a dataset and write id, weight and inclusion probability as Parquet.

    Args:
        folder: the dataset.
        policy: of `pruning.examples.policies.POLICIES`.
        ratio: share of the examples left out, in [0, 1).
        output: Parquet file to write.
        scores: Parquet with columns id and the policy's score (`spikeprune score` writes it).
        split: prefix of the dataset's files.
        alpha: share of the uniform mixture.
        design: ``systematic`` or ``poisson``.
        seed: of the draw.
        epoch: another epoch is another draw with the same seed.
        filtered: new or empty folder to write the chosen rows to, with a column ``weight``; none when not
            given.

    Returns:
        the plan.

    Raises:
        UserError: bad data, missing or foreign scores, a setting out of range, or a place to write that
            holds other data. Nothing is written then.
    """
    check_beside("--output", output, folder)
    if filtered is not None:
        check_new_folder("--filtered", filtered)
    data = read_split(folder, split)
    try:
        drawn = make_policy(
            policy,
            num_examples=data.id_span,
            first_id=data.first_id,
            present=None if data.ids.dense else data.ids.mask(),
            ratio=ratio,
            seed=seed,
            epochs=epoch + 1,
            warmup_epochs=0,
            anneal_epochs=0,
            alpha=alpha,
            stale_alpha=alpha,
            design=design,  # type: ignore[arg-type]
        )
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        raise UserError(f"--{where}", what) from None
    if drawn.score is not None:
        if scores is None:
            raise UserError("--scores", f"policy {policy} needs them; `spikeprune score` writes such a file")
        _read_scores(scores, drawn, data.ids, epoch)
    plan = drawn.plan(epoch)
    if not len(plan.ids):
        raise UserError(
            "--ratio",
            f"at {ratio:g} the poisson design drew none of {data.num_examples:,} examples; lower it, or take"
            " --design systematic",
        )
    probabilities = np.ones(len(plan.ids)) if plan.probabilities is None else plan.probabilities
    table = pa.table({"id": plan.ids, "weight": plan.weights, "probability": probabilities})
    write_beside(output, lambda p: pq.write_table(table, p, compression="zstd"))
    if filtered is not None:
        _write_filtered(folder, split, plan, filtered)
    return plan


def _read_scores(path: Path, policy: Policy, ids: IdSet, epoch: int) -> None:
    """Let the policy see a file of scores, a bounded number of rows at a time."""
    assert policy.score is not None
    try:
        parquet = open_parquet(path)
    except FileNotFoundError:
        raise UserError("--scores", f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            "--scores", f"{path} is not readable Parquet ({str(error).splitlines()[0]})"
        ) from None
    with parquet:
        for column in ("id", policy.score):
            if column not in parquet.schema_arrow.names:
                names = ", ".join(parquet.schema_arrow.names)
                raise UserError("--scores", f"{path} has no column {column!r}; it has {names}")
        seen, known = IdCollector(), True
        for batch in parquet.iter_batches(READ_ROWS, columns=["id", policy.score]):
            found = batch.column("id").to_numpy()
            known = bool(known and ids.contains(found).all() and not len(seen.add(found)))
            if known:
                policy.observe(found, batch.column(policy.score).to_numpy(), epoch, "pass")
        if not known or parquet.metadata.num_rows != len(ids):
            rows = parquet.metadata.num_rows
            raise UserError(
                "--scores", f"{path} scores {rows} examples with other ids than the dataset's {len(ids)}"
            )


def _write_filtered(folder: Path, split: str, plan: Plan, output: Path) -> None:
    """The chosen rows of every file under its own name, with their weights."""
    for file in split_files(folder, split):
        write_beside(below(output, name_of(file)), lambda path, file=file: _filter(file, plan, path))  # type: ignore[misc]


def _filter(file: str, plan: Plan, path: Path) -> None:
    with open_parquet(file) as parquet:
        metadata = parquet.schema_arrow.metadata
        writer: pq.ParquetWriter | None = None
        for batch in parquet.iter_batches(READ_ROWS):
            chosen = _chosen(pa.Table.from_batches([batch]), plan).replace_schema_metadata(metadata)
            if writer is None:
                writer = pq.ParquetWriter(path, chosen.schema, compression="zstd")
            writer.write_table(chosen, row_group_size=ROW_GROUP_ROWS)
        if writer is not None:
            writer.close()


def _chosen(rows: pa.Table, plan: Plan) -> pa.Table:
    ids = rows.column("id").to_numpy()
    at = np.minimum(np.searchsorted(plan.ids, ids), len(plan.ids) - 1)
    keep = plan.ids[at] == ids
    return rows.filter(pa.array(keep)).append_column("weight", pa.array(plan.weights[at[keep]]))
