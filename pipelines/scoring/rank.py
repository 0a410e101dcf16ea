"""Rank a dataset: scores of every example by one network, as Parquet, for whoever trains elsewhere too."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import torch
from rich.console import Console

from cluster.connect import connect
from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.plugins import own_failures_named, use_own_code
from pipelines.console import Told, progress
from pipelines.data.dataset import describe
from pipelines.data.inputs import Inputs, choose_device
from pipelines.data.layout import with_source_ids
from pipelines.data.scan import Split, read_split
from pipelines.networks import architecture, make_network
from pipelines.scoring.scorer import (
    Scoring,
    ScoringPass,
    parts_of,
    score_layout,
    scorers_without_training,
    stream_scores,
)
from pipelines.storage.atomic import check_beside, write_parquet
from pipelines.storage.sync import check_shared
from pruning.examples.scores import SCORES
from snn.interchange import load_weights
from snn.models import SpikingNetwork


@own_failures_named()
def rank(
    config: Config,
    checkpoint: Path,
    output: Path,
    *,
    names: Sequence[str] = ("sadp",),
    split: str | None = None,
    console: Console | None = None,
) -> int:
    """Score every example of a split and write columns id (source_id) and one per score, ordered by id.

    Args:
        config: says where the data is, how it is presented, and where to run.
        checkpoint: the network's file.
        output: Parquet file to write; whole or not at all.
        names: scores, of `pruning.examples.scores.SCORES`.
        split: prefix of the files; the config's training split when not given.
        console: where remarks are shown.

    Returns:
        the number of examples.

    Raises:
        UserError: bad data, a checkpoint of another architecture, an unknown score, unwritable output.
    """
    console = console or Console(stderr=True)
    for name in names:
        if name not in SCORES:
            raise UserError("--scores", f"{name!r} is unknown; choose from {', '.join(SCORES)}")
    if not names or len(set(names)) < len(names):
        raise UserError("--scores", f"{' '.join(names)!r} is not possible; name one or more, each once")
    check_beside("--output", output, config.data.path)
    use_own_code(config)
    whole = read_split(config.data.path, config.data.train_split)
    train = whole.first(config.data.train_rows)  # the rows whose statistics the network was trained with
    scored = whole if split is None else read_split(config.data.path, split)
    info = describe(train, scored, config.data.path, config.data, config.model.T)
    model, described = make_network(config.model, info, config.seed), architecture(config.model, info)
    try:
        load_weights(checkpoint, model, described)
    except FileNotFoundError:
        raise UserError(str(checkpoint), "does not exist") from None
    except ValueError as error:
        raise UserError("--checkpoint", str(error)) from None
    scoring = Scoring(
        scores=tuple(names),
        train=config.train,
        examples=config.data_pruning,
        inputs=Inputs.of(info, config.model.T),
    )
    with ExitStack() as stack:
        if config.cluster.launcher == "ray":
            parts = _on_ray(config, model, described, scoring, scored, stack, console)
        else:
            device = choose_device(config.cluster.device, torch.cuda.device_count())
            model.to(device)
            parts = (score_layout(p, scored.ids, model, scoring, device) for p in parts_of(scored.layout))
        parts = with_source_ids(scored.layout, scored.schema, (part for part in parts if part.num_rows))
        told = stack.enter_context(progress("scoring"))
        write_parquet(output, _counted(parts, told, scored.num_examples, checkpoint))
    return scored.num_examples


def _on_ray(
    config: Config,
    model: SpikingNetwork,
    described: dict[str, object],
    scoring: Scoring,
    scored: Split,
    stack: ExitStack,
    console: Console,
) -> Iterator[pa.Table]:
    with console.status("starting Ray" if config.cluster.address is None else "connecting"):
        cluster = stack.enter_context(connect(config.cluster.address))
        if cluster.nodes > 1:
            check_shared(None, scored.files)
    pass_ = ScoringPass(
        weights={name: tensor.detach() for name, tensor in model.state_dict().items()},
        architecture=described,
        scoring=scoring,
        scorers=scorers_without_training(config.cluster),
    )
    return stream_scores(scored.layout, scored.ids, pass_)


def _counted(parts: Iterator[pa.Table], told: Told, total: int, checkpoint: Path) -> Iterator[pa.Table]:
    scored = 0
    for part in parts:
        scored += part.num_rows
        told(scored, total)
        yield part.replace_schema_metadata({b"checkpoint": str(checkpoint).encode()})
    if scored != total:
        raise RuntimeError(f"scored {scored} of {total} rows: the data changed meanwhile")
