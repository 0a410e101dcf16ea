"""A run's folder: its config, where it came from, and all that reports and resumes need."""

import hashlib
import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.storage import Remote, uri_of
from pipelines.config import Config
from pipelines.config_io import dump_config, load_config
from pipelines.data.files import write_beside, write_json
from pipelines.errors import UserError
from pipelines.own_code import OwnCode, keep_copy
from pipelines.places import run_path, run_uri

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
CODE = "code"
PACKAGES = ("spikeprune", "torch", "ray", "numpy", "pyarrow")
FREE_TO_CHANGE = (
    "cluster.address",
    "storage",
    "code",
)  # on resuming: they change where a run is, not what it is


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
        _check_same(load_config(folder / CONFIG), config, folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError("name", f"{run_uri(config) or folder} exists and is not a run; choose another --name")


def create_run(config: Config, command: list[str], code: OwnCode | None = None) -> None:
    """The folder of a new run, with its config, its user's code and its provenance; an existing run is
    left as it is."""
    folder = run_path(config)
    if not (folder / CONFIG).exists():
        write_json(folder / PROVENANCE, _provenance(config, command))
        if code is not None and code.files:
            keep_copy(code, folder / CODE)
            config = replace(config, code=CODE)
        write_beside(folder / CONFIG, lambda p: p.write_text(dump_config(config)))


def read_config(folder: Path) -> Config:
    """The config of a run.

    Raises:
        UserError: the folder is not a run's.
    """
    if not (folder / CONFIG).exists():
        raise UserError(str(folder), f"is not a run: it has no {CONFIG}")
    return load_config(folder / CONFIG)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; empty before the first epoch."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(str(path), f"is not readable ({error})") from None


def _check_same(stored: Config, given: Config, folder: Path) -> None:
    a, b = flat_config(stored), flat_config(given)
    for path in {**a, **b}:
        settled = path == "data.reading" and b.get(path) == "auto"  # the run goes on as it began
        if a.get(path) != b.get(path) and path not in FREE_TO_CHANGE and not settled:
            raise UserError(
                path,
                f"is {b.get(path)!r} here and {a.get(path)!r} in the run that {folder} holds; "
                "resume with the same config or choose another --name",
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


def _provenance(config: Config, command: list[str]) -> dict[str, Any]:
    manifest = _manifest(config)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seed": config.seed,
        "versions": {"python": sys.version.split()[0], **{p: _version(p) for p in PACKAGES}},
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        "data_manifest_sha256": None if manifest is None else hashlib.sha256(manifest).hexdigest(),
        "data_source": None if manifest is None else json.loads(manifest).get("source"),
    }


def _manifest(config: Config) -> bytes | None:
    uri, name = uri_of(config.data.path), "manifest.json"
    if uri is not None:
        remote = Remote.of(uri, where="data.path")
        return remote.read(name) if remote.exists(name) else None
    path = Path(config.data.path) / name
    return path.read_bytes() if path.exists() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this code, where it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None
