"""A run's folder: its config, where it came from, and all that reports and resumes need."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.config.load import dump_config, load_config
from pipelines.config.plugins import OwnCode, keep_copy
from pipelines.errors import UserError
from pipelines.runs.provenance import knows_data, write_provenance
from pipelines.storage.atomic import well_formed, write_beside
from pipelines.storage.paths import below, uri_of
from pipelines.storage.sync import working_copy

CODE, CONFIG = "code", "config.yaml"
FREE_TO_CHANGE = ("cluster.address", "cluster.device", "storage", "code")
"""On resuming: they change where a run is, not what it is."""
SETTLED = {"data.reading": "auto", "cluster.engine": "auto", "cluster.threads": None}
"""Fields that a run decides where they have these values; resumed with them, it goes on as it began."""


def run_path(config: Config) -> Path:
    """Where a config's run lies, absolute; the working copy where storage is a URI."""
    uri = run_uri(config)
    if uri is not None:
        return working_copy(uri)
    try:
        return (Path(config.storage).expanduser() / config.name).absolute()
    except RuntimeError:
        raise UserError("storage", f"{config.storage} names an unknown user; name a folder") from None


def run_uri(config: Config) -> str | None:
    """The URI of a config's run; ``None`` where storage is a folder."""
    return None if uri_of(config.storage) is None else below(config.storage, config.name)


def check_run(config: Config, *, resume: bool) -> None:
    """That a run of this name may start, or go on; writes nothing.

    Raises:
        UserError: it exists and ``resume`` is not set, or its config differs from this one.
    """
    folder = run_path(config)
    if (folder / CONFIG).exists():
        if not resume:
            raise UserError(
                "name",
                f"run {config.name!r} exists in {config.storage}; --resume continues it, "
                "--name starts another",
            )
        _check_same(read_config(folder), config, folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError("name", f"{run_uri(config) or folder} exists and is not a run; choose another --name")


def create_run(
    config: Config,
    command: list[str],
    code: OwnCode | None = None,
    *,
    new: bool = False,
    start: Mapping[str, str | int | None] | None = None,
) -> None:
    """The folder of a new run, with its config, its user's code and its provenance; an existing run is
    left as it is, except that it may have more epochs to go.

    Args:
        config: of the run.
        command: that makes it.
        code: its user's.
        new: whether there was no such run when it was checked.
        start: what it does, on which network (by `start_of`), and how it computes.

    Raises:
        UserError: there is one after all.
    """
    folder = run_path(config)
    if new:
        check_run(config, resume=False)
    if not (folder / CONFIG).exists():
        write_provenance(folder, config, command, start)
        if code is not None and code.files:
            keep_copy(code, folder / CODE)
            config = replace(config, code=CODE)
        write_beside(folder / CONFIG, lambda p: p.write_text(dump_config(config)))
    elif (stored := read_config(folder)).train.epochs != config.train.epochs:  # by `check_run`, more of them
        longer = replace(stored, train=replace(stored.train, epochs=config.train.epochs))
        write_beside(folder / CONFIG, lambda p: p.write_text(dump_config(longer)))


def read_config(folder: Path) -> Config:
    """The config of a run.

    Raises:
        UserError: the folder is not a run's.
    """
    if not (folder / CONFIG).exists():
        raise UserError(str(folder), f"is not a run: it has no {CONFIG}")
    check_plain(folder)
    return load_config(folder / CONFIG)


def check_plain(folder: Path) -> None:
    """That a run's folder holds files and folders alone; reading a pipe would never end.

    Raises:
        UserError: a pipe, a device, or a link to nothing.
    """
    for above, _, names in os.walk(folder):
        for path in (Path(above, name) for name in names):
            there = path.is_symlink() or path.exists()  # a run that goes on removes old checkpoints
            if there and not path.is_file():
                raise UserError(str(path), "is no file or folder (a pipe, or a link to nothing); remove it")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; empty before the first epoch."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with well_formed(path):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        if not all(isinstance(r["phase"], str) for r in records):
            raise ValueError("a record's phase is no text")
    return records


def _check_same(stored: Config, given: Config, folder: Path) -> None:
    a, b = flat_config(stored), flat_config(given)
    free = {*FREE_TO_CHANGE, *(["data.path"] if knows_data(folder) else [])}  # `check_same_data` compares
    if b["train.epochs"] > a["train.epochs"]:
        _check_more_epochs(stored, given, folder)
        free.add("train.epochs")
    for path in {**a, **b}:
        settled = path in SETTLED and b.get(path) == SETTLED[path]
        if a.get(path) != b.get(path) and path not in free and not settled:
            raise UserError(
                path,
                f"is {b.get(path)!r} here and {a.get(path)!r} in the run that {folder} holds; "
                "resume with the same config or choose another --name",
            )


def _check_more_epochs(stored: Config, given: Config, folder: Path) -> None:
    """That a run may train for longer than it was begun for: the learning rate goes on where it is."""
    train, epochs = stored.train, given.train.epochs
    phases = [r["phase"] for r in read_metrics(folder)]
    warm = ceil(train.warmup * epochs)
    if train.schedule != "constant":
        reason = f"its {train.schedule} schedule has brought the learning rate down for {train.epochs} epochs"
    elif stored.baseline != "none":
        reason = f"its baseline was trained for {train.epochs} epochs"
    elif set(phases) - {"train"}:
        reason = "its network has been pruned since"
    elif train.ema is not None and len(phases) == train.epochs:
        reason = "it has kept the averaged weights alone (train.ema)"
    elif 0 < len(phases) < warm:
        reason = f"the learning rate would warm up again until epoch {warm} (train.warmup)"
    else:
        return
    raise UserError(
        "train.epochs",
        f"run {folder.name!r} cannot go on to {epochs}: {reason}; start a new run under another --name",
    )


def flat_config(config: Config) -> dict[str, Any]:
    """Every field of a config by its dotted path."""
    return _flat(asdict(config))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
