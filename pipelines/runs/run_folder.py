"""A run's folder: its config, where it came from, and all that reports and resumes need."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, Literal

from cluster.checks import packages
from cluster.errors import UserError
from pipelines.config import Config
from pipelines.config.checks import shown_word
from pipelines.config.load import dump_config, load_config, values_of
from pipelines.config.plugins import OwnCode, keep_copy
from pipelines.storage.atomic import read_json, sha256_of, well_formed, write_beside, write_json
from pipelines.storage.paths import Folder, below, uri_of
from pipelines.storage.sync import local_file, working_copy

CODE, CONFIG = "code", "config.yaml"
FREE_TO_CHANGE = ("cluster.address", "cluster.device", "storage", "code")
"""On resuming: they change where a run is, not what it is."""
SETTLED = {"data.reading": "auto", "cluster.engine": "auto", "cluster.threads": None}
"""Fields that a run decides where they have these values; resumed with them, it goes on as it began."""
PROVENANCE = "provenance.json"
GIT_SECONDS = 5.0


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
    """That a run of this name may start, or go on; writes nothing."""
    if exists(config, CONFIG, "run", resume=resume):
        folder = run_path(config)
        _check_same_run(read_config(folder), config, folder)


def exists(config: Config, settings: str, kind: Literal["run", "search"], *, resume: bool) -> bool:
    """Whether there is a run or search of this name, by its file of settings; without ``resume`` there may
    be none, and never a folder of anything else."""
    folder = run_path(config)
    if (folder / settings).exists():
        if resume:
            return True
        there = f"{kind} {config.name!r} exists in {config.storage}"
        raise UserError("name", f"{there}; --resume continues it, --name starts another")
    if folder.exists() and any(folder.iterdir()):
        place = run_uri(config) or folder
        raise UserError("name", f"{place} exists and is not a {kind}; choose another --name")
    return False


def create_run(
    config: Config,
    command: list[str],
    code: OwnCode | None = None,
    *,
    new: bool = False,
    start: Mapping[str, str | int | None] | None = None,
) -> None:
    """The folder of a new run, with its config, its user's code and its provenance (``command``, ``start``);
    an existing run is left as it is, except that it may have more epochs to go.

    A ``new`` run was not there when it was checked, and still may not be.
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
    """The config of a run."""
    if not (folder / CONFIG).exists():
        raise UserError(shown_word(str(folder)), f"is not a run: it has no {CONFIG}")
    return load_config(folder / CONFIG)


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


def _check_same_run(stored: Config, given: Config, folder: Path) -> None:
    free = {*FREE_TO_CHANGE, *(["data.path"] if records_data(folder) else [])}  # `check_same_data` compares
    if given.train.epochs > stored.train.epochs:
        _check_more_epochs(stored, given, folder)
        free.add("train.epochs")
    flat = values_of(given)
    free |= {path for path, undecided in SETTLED.items() if flat[path] == undecided}
    check_same_config(stored, given, free, "run", folder)


def check_same_config(
    stored: Config, given: Config, free: Collection[str], kind: Literal["run", "search"], folder: Path
) -> None:
    """That a run or search goes on with the config in its folder, except for the fields that are ``free``."""
    a, b = values_of(stored), values_of(given)
    for path in a:
        if a[path] != b[path] and path not in free:
            raise UserError(
                path,
                f"is {b[path]!r} here and {a[path]!r} in the {kind} that {folder} holds; "
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
    elif 0 < len(phases) < warm:
        reason = f"the learning rate would warm up again until epoch {warm} (train.warmup)"
    else:
        return
    raise UserError(
        "train.epochs",
        f"run {folder.name!r} cannot go on to {epochs}: {reason}; start a new run under another --name",
    )


def start_of(verb: str, network: str | None) -> dict[str, str | None]:
    """What a run does and the network (a path or a URI) that it starts from, by which it is known again."""
    if network is None:
        return {"verb": verb, "network_sha256": None}
    with local_file(network) as path:
        return {"verb": verb, "network_sha256": sha256_of(path)}


def check_same_start(folder: Path, start: Mapping[str, str | None]) -> None:
    """That a run goes on with what it began to do, on the network that it began with, if it knows them."""
    known = read_provenance(folder)
    if known.get("verb", start["verb"]) != start["verb"]:
        what = f"was started by `spikeprune {known['verb']}`, not {start['verb']}; resume it by that"
    elif known.get("network_sha256", start["network_sha256"]) != start["network_sha256"]:
        what = "began with another network than the one that is given (their files differ); give that one"
    else:
        return
    raise UserError("--resume", f"run {folder.name!r} {what}, or choose another --name")


def write_provenance(
    folder: Path, config: Config, command: list[str], start: Mapping[str, str | int | None] | None = None
) -> None:
    """Command, versions, commit and data of a run or search that begins, into its folder."""
    manifest = _manifest(config)
    told = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **(start or {}),
        "seed": config.seed,
        "versions": {"python": sys.version.split()[0], **packages()},
        "platform": platform.platform(),
        "hardware": _hardware(),
        "git_commit": _git_commit(),
        "data_manifest_sha256": None if manifest is None else hashlib.sha256(manifest).hexdigest(),
        "data_source": None if manifest is None else json.loads(manifest).get("source"),
    }
    write_json(folder / PROVENANCE, told)


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `write_provenance` wrote; empty where nothing did."""
    path = folder / PROVENANCE
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(str(path), "is damaged: it holds no fields; bring it back from a copy")
    return found


def records_data(folder: Path) -> bool:
    """Whether the data that a run or search began with can be distinguished from other data."""
    return read_provenance(folder).get("data_manifest_sha256") is not None


def check_same_data(folder: Path, config: Config, kind: Literal["run", "search"] = "run") -> None:
    """That a run or search goes on with the data that it began with, if it knows them."""
    if not records_data(folder):
        return
    manifest = _manifest(config)
    if manifest is None:
        what = f"has no manifest.json, by which the {kind} knows its data; copy it there as well"
    elif hashlib.sha256(manifest).hexdigest() != read_provenance(folder)["data_manifest_sha256"]:
        what = f"holds other data than the {kind} began with (by its manifest.json); bring those back"
    else:
        return
    raise UserError("data.path", f"{config.data.path} {what}, or choose another --name")


def _manifest(config: Config) -> bytes | None:
    folder, name = Folder.holding(below(config.data.path, "manifest.json"))
    return folder.read(name) if folder.exists(name) else None


def _hardware() -> str:
    """Processor, CPUs and GPUs of this machine."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    gpus = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    parts = [f"{os.cpu_count()} CPUs ({(names or [platform.machine()])[0]})"]
    return ", ".join(parts + [f"{n} GPU{'s' * (n > 1)} ({name})" for name, n in gpus.items()])


def _git_commit() -> str | None:
    """The commit of this code where it runs from its own checkout, not of whatever it is installed in."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
