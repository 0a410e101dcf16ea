"""Where a run or a search came from: written down when it begins, held against what it goes on with."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pipelines.config import Config
from pipelines.errors import UserError
from pipelines.storage.atomic import read_json, write_json
from pipelines.storage.paths import Folder, below
from pipelines.storage.sync import local_file

PROVENANCE = "provenance.json"
GIT_SECONDS = 5.0
PACKAGES = ("spikeprune", "torch", "ray", "numpy", "pyarrow")


def start_of(verb: str, network: str | None) -> dict[str, str | None]:
    """What a run does and the network that it starts from, by which a resumed run is known.

    Args:
        verb: run, train or prune.
        network: checkpoint file (a path or a URI) of the network that is pruned.
    """
    if network is None:
        return {"verb": verb, "network_sha256": None}
    with local_file(network) as path, path.open("rb") as file:
        return {"verb": verb, "network_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def check_same_start(folder: Path, start: Mapping[str, str | None]) -> None:
    """That a run goes on with what it began to do, on the network that it began with, if it knows them.

    Args:
        folder: of the run.
        start: of the command that resumes it, by `start_of`.

    Raises:
        UserError: it is another verb, or another network.
    """
    known = read_provenance(folder)
    if known.get("verb", start["verb"]) != start["verb"]:
        raise UserError(
            "--resume",
            f"run {folder.name!r} was started by `spikeprune {known['verb']}`, not {start['verb']}; "
            "resume it by that, or choose another --name",
        )
    if known.get("network_sha256", start["network_sha256"]) != start["network_sha256"]:
        raise UserError(
            "--resume",
            f"run {folder.name!r} began with another network than the one that is given (their files "
            "differ); give that one, or choose another --name",
        )


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
        "versions": {"python": sys.version.split()[0], **{p: _version(p) for p in PACKAGES}},
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


def knows_data(folder: Path) -> bool:
    """Whether the data that a run or search began with can be distinguished from other data."""
    return read_provenance(folder).get("data_manifest_sha256") is not None


def check_same_data(folder: Path, config: Config, kind: Literal["run", "search"] = "run") -> None:
    """That a run or search goes on with the data that it began with, if it knows them.

    Args:
        folder: of the run or search.
        config: with which it goes on.
        kind: which of the two it is.

    Raises:
        UserError: the manifest of the data is another one, or gone.
    """
    if not knows_data(folder):
        return
    manifest = _manifest(config)
    if manifest is None:
        raise UserError(
            "data.path",
            f"{config.data.path} has no manifest.json, by which the {kind} knows its data; "
            "copy it there as well, or choose another --name",
        )
    if hashlib.sha256(manifest).hexdigest() != read_provenance(folder)["data_manifest_sha256"]:
        raise UserError(
            "data.path",
            f"{config.data.path} holds other data than the {kind} began with (by its manifest.json); "
            "bring those back, or choose another --name",
        )


def _manifest(config: Config) -> bytes | None:
    folder, name = Folder.holding(below(config.data.path, "manifest.json"))
    return folder.read(name) if folder.exists(name) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    top, commit = done.stdout.split("\n")[:2]
    return commit if Path(top).resolve() == root else None
