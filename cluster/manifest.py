"""Descriptions of clusters for the tools that start them: files of `cluster/templates` with a few values."""

import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from textwrap import indent
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

_PLACEHOLDER = re.compile(r"@\{([a-z_]+)\}")
"""Of the templates: dollars belong to shells, and ``B:USR1@120`` to SLURM."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=,-]+", re.ASCII)
"""What is itself to every shell, YAML parser and joining of words on a value's way."""
_FORMS = {
    "storage": (r"/.*|[a-z][a-z0-9+.-]+://.+", "an absolute path or a URI"),
    "venv": (r"/.*|", "an absolute path"),
    "ssh_user": (r"[^-].*", "a user's name"),
}

FIELDS: dict[str, Any] = {
    "name": "spikeprune",  # of the cluster or job
    "image": "spikeprune:latest",
    "workers": 2,  # nodes (SLURM), or worker pods beside the head (Kubernetes)
    "cpus": 4,  # per node
    "memory": 16,  # GiB per node
    "gpus": 0,  # per node
    "command": ("run", "my.yaml"),  # of spikeprune, word by word
    "storage": "/shared/runs",  # a path that all nodes share, or a URI
    "namespace": "default",  # Kubernetes
    "claim": "shared",  # Kubernetes: volume claim (ReadWriteMany) mounted at /shared
    "ssh_user": "ubuntu",  # ray up
    "head_ip": "192.0.2.1",  # ray up
    "worker_ips": ("192.0.2.2", "192.0.2.3"),  # ray up
    "venv": "",  # SLURM, ray up: virtual environment with this software, on every node
    "partition": "",  # SLURM
    "account": "",  # SLURM
    "hours": 12,  # SLURM: time limit
    "ray_version": "",  # this environment's when not given
    "python_version": "",  # this environment's when not given
}
"""Values of the templates, by default; their types are those of the values."""


def manifest(kind: str, given: Mapping[str, Any]) -> str:
    """The template of a kind, filled; lines whose value is empty are left out."""
    values = _texts(read_values(given))
    text = _template(kind)
    if kind == "kuberay":  # a job, and the cluster that it is to have
        text += indent(_template("kuberay-cluster").partition("\nspec:\n")[2], "  ")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if all(values[name] for name in _PLACEHOLDER.findall(line))]
    return _PLACEHOLDER.sub(lambda found: values[found[1]], "".join(kept))


def _template(kind: str) -> str:
    return (files("cluster") / "templates" / TEMPLATES[kind]).read_text()


def read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checked values of all `FIELDS`."""
    values = dict(FIELDS)
    for name, value in given.items():
        if name not in FIELDS:
            known = ", ".join(FIELDS)
            raise UserError(str(name)[:80] or "''", f"is not a field of a manifest's config; it has {known}")
        values[name] = _checked(name, value, FIELDS[name])
    if not values["command"]:
        raise UserError("command", "is not possible; give a command of spikeprune and its options")
    return values


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        items = value if isinstance(value, list | tuple) else str(value).split()
        return tuple(_checked(name, str(i) if type(i) in (int, float) else i, "word") for i in items)
    if type(value) is not type(default):
        kind = "text" if isinstance(default, str) else "a whole number"
        raise UserError(name, f"{value!r:.80} is not possible; it must be {kind}")
    if isinstance(value, int) and value < (least := 0 if name == "gpus" else 1):
        raise UserError(name, f"{value!s:.80} is not possible; it must be at least {least}")
    what = "it must be of letters, digits and _./:@%+=,-"
    fits = value == default or _PLAIN.fullmatch(str(value)) is not None
    if name in _FORMS:
        form, said = _FORMS[name]
        fits, what = fits and re.fullmatch(form, value) is not None, f"{what}: {said}"
    if not fits:
        raise UserError(name, f"{value!r:.80} is not possible; {what}")
    return value


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What the placeholders stand for."""
    words, resumable = list(values["command"]), values["command"][0] in RESUMABLE
    if resumable:  # told to use the cluster that it is on, and the shared storage
        given = any(word == "--storage" or word.startswith("--storage=") for word in words)
        words += ["--cluster.address", "auto", *([] if given else ["--storage", values["storage"]])]
    return {
        **{name: str(value) for name, value in values.items()},
        "ray_version": values["ray_version"] or version("ray"),
        "python_version": values["python_version"] or platform.python_version(),
        "gpus": str(values["gpus"] or ""),
        "num_gpus": str(values["gpus"]),
        "shm": str(-(-values["memory"] * 3 // 10)),  # Ray's share; where it does not fit, Ray stores in /tmp
        "container": "" if values["venv"] else values["image"],
        "worker_ips": ", ".join(f'"{ip}"' for ip in values["worker_ips"]) or " ",  # no value drops a line
        "worker_count": str(len(values["worker_ips"])),
        "command": " ".join(words),
        "entrypoint": " ".join(["python", "-m", "spikeprune", *words]),
        "resume": "--resume" if resumable else "",
        "signal": "B:USR1@120" if resumable else "",
    }
