"""The one small config of all manifests, checked value by value before anything is written."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any, get_args, get_origin, get_type_hints

from cluster.credentials import secret_in
from cluster.errors import ClusterError
from cluster.storage import uri_of

_LABEL = r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?"  # Kubernetes, which appends to it
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
_PATTERNS = {
    "name": (_LABEL, "lower-case letters, digits and dashes, at most 47"),
    "namespace": (_LABEL, "lower-case letters, digits and dashes"),
    "image": (r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}", "an image's reference"),
    "claim": (_LABEL, "the name of a persistent volume claim"),
    "ray_version": (r"\d+\.\d+\.\d+", "a version"),
    "python_version": (r"\d+\.\d+\.\d+", "a version"),
    "ssh_user": (r"[a-z_][a-z0-9_-]{0,31}", "a user's name"),
    "head_ip": (r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", "an address"),
    "worker_ips": (r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", "addresses"),
    "region": (_WORD, "a region's name"),
    "zone": (_WORD, "a zone's name"),
    "project": (_WORD, "a project's id"),
    "machine": (_WORD, "an instance type"),
    "partition": (_WORD, "a partition's name"),
    "account": (_WORD, "an account's name"),
}


@dataclass(frozen=True, kw_only=True)
class ManifestSpec:
    """What a manifest needs to know; every kind takes what it uses."""

    name: str = "spikeprune"
    """Of the cluster or job."""
    image: str = "spikeprune:latest"
    """Container image with this software (see kind docker)."""
    workers: int = 2
    """Nodes (SLURM), worker pods (Kubernetes) or workers beside the head (ray up)."""
    cpus: int = 4
    """Per node."""
    memory: int = 16
    """GiB per node."""
    gpus: int = 0
    """Per node."""
    command: tuple[str, ...] = ("run", "my.yaml")
    """Verb of spikeprune and its options, word by word."""
    storage: str = "/shared/runs"
    """Folder of runs that all nodes share, or its URI."""
    ray_version: str = ""
    """This environment's when not given."""
    python_version: str = ""
    """This environment's when not given."""
    namespace: str = "default"
    """Kubernetes: where it goes."""
    claim: str = "shared"
    """Kubernetes: persistent volume claim (ReadWriteMany) that is mounted at /shared."""
    ssh_user: str = "ubuntu"
    """ray up: who logs in."""
    head_ip: str = "192.0.2.1"
    """ray up, on-prem: the head."""
    worker_ips: tuple[str, ...] = ("192.0.2.2", "192.0.2.3")
    """ray up, on-prem: the others."""
    venv: str = ""
    """SLURM and on-prem: virtual environment with this software, on every node."""
    region: str = "us-west-2"
    """ray up: AWS or GCP region."""
    zone: str = "us-west1-a"
    """ray up: GCP zone."""
    project: str = "my-project"
    """ray up: GCP project."""
    machine: str = ""
    """ray up: instance type; a usual one when not given."""
    partition: str = ""
    """SLURM: the site's default when not given."""
    account: str = ""
    """SLURM: the site's default when not given."""
    hours: int = 12
    """SLURM: time limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ray_version", self.ray_version or version("ray"))
        object.__setattr__(self, "python_version", self.python_version or platform.python_version())
        for key, (pattern, allowed) in _PATTERNS.items():
            value = getattr(self, key)
            for item in value if isinstance(value, tuple) else [value]:
                if (item or key not in ("machine", "partition", "account")) and not re.fullmatch(
                    pattern, item, re.ASCII
                ):
                    raise ClusterError(key, f"{item!r} is not possible; it must be {allowed}")
        for key, least, most in (("workers", 1, 10**4), ("cpus", 1, 4096), ("memory", 1, 10**5),
                                 ("gpus", 0, 64), ("hours", 1, 8760)):  # fmt: skip
            if not least <= getattr(self, key) <= most:
                raise ClusterError(key, f"{getattr(self, key)} is not possible; {least} to {most}")
        for key, also in (("storage", " or a URI such as s3://bucket/runs"), ("venv", "")):
            path = getattr(self, key)
            placed = PurePosixPath(path).is_absolute() or (bool(also) and uri_of(path) is not None)
            if path and (not placed or not path.isprintable()):
                raise ClusterError(key, f"{path!r} is not possible; it must be an absolute path{also}")
        for key, uri in (("storage", self.storage), *(("command", w) for w in self.command)):
            if (what := secret_in(uri.partition("=")[2] if uri.startswith("--") else uri)) is not None:
                raise ClusterError(key, what)
        if not self.command or any("\0" in word for word in self.command):
            raise ClusterError("command", "is not possible; give a verb of spikeprune and its options")

    @property
    def words(self) -> tuple[str, ...]:
        """The command, told to use the cluster that it is on and the shared storage."""
        if self.command[0] not in ("run", "train", "prune", "search"):
            return self.command
        added: tuple[str, ...] = ("--cluster.address", "auto")
        if not any(w == "--storage" or w.startswith("--storage=") for w in self.command):
            added += ("--storage", self.storage)
        return (*self.command, *added)


def read_spec(values: Mapping[str, Any]) -> ManifestSpec:
    """A checked spec from plain values, as YAML gives them.

    Raises:
        ClusterError: an unknown key, a wrong type or an impossible value.
    """
    hints = get_type_hints(ManifestSpec)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            known = ", ".join(f.name for f in fields(ManifestSpec))
            raise ClusterError(str(key), f"is not a field of a manifest's config; it has {known}")
        if get_origin(hints[key]) is tuple:
            items = value if isinstance(value, list | tuple) else str(value).split()
            given[key] = tuple(
                _typed(key, str(i) if isinstance(i, int | float) else i, get_args(hints[key])[0])
                for i in items
            )
        else:
            given[key] = _typed(key, value, hints[key])
    return ManifestSpec(**given)


def _typed(key: str, value: Any, hint: type) -> Any:
    if not isinstance(value, hint) or isinstance(value, bool):
        raise ClusterError(
            key, f"{value!r} is not possible; it must be {'a whole number' if hint is int else 'text'}"
        )
    return value
