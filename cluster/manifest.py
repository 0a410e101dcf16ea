"""Descriptions of clusters for the tools that start them: files of `cluster/templates` with a few values."""

import platform
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from cluster.errors import UserError

TEMPLATES = {
    "kuberay": "kuberay.yaml",
    "kuberay-cluster": "kuberay-cluster.yaml",
    "ray-up": "ray-up.yaml",
    "slurm": "slurm.sh",
    "docker": "Dockerfile",
}
RESUMABLE = ("run", "train", "prune", "search")
"""Commands that take ``--resume``, and are told which cluster and storage to use."""

_LABEL = (r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?", "lower-case letters, digits and dashes, at most 47")
_WORD = (r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", "letters, digits, underscores, dots and dashes")
_ADDRESS = (r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", "a host's name or address")
_VERSION = (r"\d+\.\d+\.\d+", "a version such as 2.60.0")
_PATH = (r"/.*|", "an absolute path")
_IMAGE = (r"(?!.*//|.*[/:@]$)[a-z0-9][A-Za-z0-9._/:@-]{0,254}", "an image's reference")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=,-]+", re.ASCII)


@dataclass(frozen=True)
class Field:
    """A value of the templates."""

    default: Any
    """Its type is the value's."""
    allowed: tuple[str, str] | tuple[int, int]
    """A pattern with its words, or the least and the most."""


FIELDS = {
    "name": Field("spikeprune", _LABEL),  # of the cluster or job
    "image": Field("spikeprune:latest", _IMAGE),
    "workers": Field(2, (1, 10**4)),  # nodes (SLURM), or worker pods beside the head (Kubernetes)
    "cpus": Field(4, (1, 4096)),  # per node
    "memory": Field(16, (1, 10**5)),  # GiB per node
    "gpus": Field(0, (0, 64)),  # per node
    "command": Field(("run", "my.yaml"), (r"(?s).*", "words")),  # of spikeprune, word by word
    "storage": Field("/shared/runs", (r"/.*|[a-z][a-z0-9+.-]+://.+", "an absolute path or a URI")),
    "namespace": Field("default", _LABEL),  # Kubernetes
    "claim": Field("shared", _LABEL),  # Kubernetes: volume claim (ReadWriteMany) mounted at /shared
    "ssh_user": Field("ubuntu", (r"[a-z_][a-z0-9_-]{0,31}", "a user's name")),  # ray up
    "head_ip": Field("192.0.2.1", _ADDRESS),  # ray up
    "worker_ips": Field(("192.0.2.2", "192.0.2.3"), _ADDRESS),  # ray up
    "venv": Field("", _PATH),  # SLURM, ray up: virtual environment with this software, on every node
    "partition": Field("", (f"({_WORD[0]})?", _WORD[1])),  # SLURM
    "account": Field("", (f"({_WORD[0]})?", _WORD[1])),  # SLURM
    "hours": Field(12, (1, 8760)),  # SLURM: time limit
    "ray_version": Field("", (f"({_VERSION[0]})?", _VERSION[1])),  # this environment's when not given
    "python_version": Field("", (f"({_VERSION[0]})?", _VERSION[1])),  # this environment's when not given
}


class _Template(string.Template):
    """Placeholders are ``@{name}`` alone: dollars belong to shells, and ``B:USR1@120`` to SLURM."""

    pattern = r"@\{(?:(?P<braced>[a-z_]+)\}|(?P<invalid>))(?P<named>(?!))?(?P<escaped>(?!))?"  # type: ignore[assignment]


def manifest(kind: str, given: Mapping[str, Any]) -> str:
    """The template of a kind, filled; lines whose value is empty are left out."""
    values = _texts(read_values(given), kind)
    text = (files("cluster") / "templates" / TEMPLATES[kind]).read_text()
    empty = [f"@{{{name}}}" for name, value in values.items() if not value]
    lines = [line for line in text.splitlines(keepends=True) if not any(e in line for e in empty)]
    return _Template("".join(lines)).substitute(values)


def read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checked values of all `FIELDS`."""
    values = {name: field.default for name, field in FIELDS.items()}
    for name, value in given.items():
        if name not in FIELDS:
            known = ", ".join(FIELDS)
            raise UserError(str(name)[:80] or "''", f"is not a field of a manifest's config; it has {known}")
        values[name] = _checked(name, value, FIELDS[name])
    if not values["command"]:
        raise UserError("command", "is not possible; give a command of spikeprune and its options")
    return values


def _checked(name: str, value: Any, field: Field) -> Any:
    if isinstance(field.default, tuple):
        items = value if isinstance(value, list | tuple) else str(value).split()
        numbers = (int, float)
        return tuple(_matching(name, str(i) if type(i) in numbers else i, field) for i in items)
    if isinstance(field.default, str):
        return _matching(name, value, field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(name, f"{value!r:.80} is not possible; it must be a whole number")
    least, most = field.allowed
    if not int(least) <= value <= int(most):
        raise UserError(name, f"{value!s:.80} is not possible; {least} to {most}")
    return value


def _matching(name: str, value: Any, field: Field) -> str:
    pattern, allowed = (str(part) for part in field.allowed)
    if not isinstance(value, str):
        raise UserError(name, f"{value!r:.80} is not possible; it must be text")
    fits = re.fullmatch(pattern, value, re.ASCII) is not None and "\0" not in value
    if name in ("storage", "venv"):
        fits = fits and value.isprintable()
    if not fits:
        raise UserError(name, f"{value!r:.80} is not possible; it must be {allowed}")
    return value


def _texts(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    """What the placeholders stand for, quoted for the file that they are in."""
    words, resumable = _words(values), values["command"][0] in RESUMABLE
    texts = {name: str(value) for name, value in values.items()}
    return {
        **texts,
        "ray_version": values["ray_version"] or version("ray"),
        "python_version": values["python_version"] or platform.python_version(),
        "gpus": str(values["gpus"] or ""),
        "num_gpus": str(values["gpus"]),
        "shm": str(-(-values["memory"] * 3 // 10)),  # Ray's share; where it does not fit, Ray stores in /tmp
        "venv": shlex.quote(values["venv"]) if values["venv"] else "",
        "container": "" if values["venv"] else values["image"],
        "worker_ips": ", ".join(f'"{ip}"' for ip in values["worker_ips"])
        or " ",  # no value at all drops a line
        "worker_count": str(len(values["worker_ips"])),
        "command": shlex.join(words),
        "entrypoint": _entrypoint(words, values["storage"]) if kind == "kuberay" else "",
        "resume": "--resume" if resumable else "",
        "signal": "B:USR1@120" if resumable else "",
    }


def _words(values: Mapping[str, Any]) -> Sequence[str]:
    """The command, told to use the cluster that it is on and the shared storage."""
    command: tuple[str, ...] = values["command"]
    if command[0] not in RESUMABLE:
        return command
    added: tuple[str, ...] = ("--cluster.address", "auto")
    if not any(w == "--storage" or w.startswith("--storage=") for w in command):
        added += ("--storage", values["storage"])
    return (*command, *added)


def _entrypoint(words: Sequence[str], storage: str) -> str:
    """One line for KubeRay, which hands it through two shells and a joining of words on its way."""
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise UserError(
                "storage" if word == storage else "command",
                f"{word!r} would not reach the job as it is; use letters, digits and _./:@%+=,- with KubeRay",
            )
    return " ".join(["python", "-m", "pipelines.cli", *words])
