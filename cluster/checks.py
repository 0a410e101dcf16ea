"""What can be checked of this machine and of a cluster's nodes: one line each, ok or the remedy."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cluster.errors import UserError
from cluster.tokens import MODE, find_token

PACKAGES = ("spikeprune", "torch", "ray", "numpy", "pyarrow")
"""Packages whose versions must agree on all nodes."""
PROBE_SECONDS = 120.0
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    name: str
    ok: bool
    what: str
    """What was found; if not ok, with the remedy."""
    only_slow: bool = False
    """What is not ok costs time alone: a run works."""


def on_every_node(task: Callable[..., T], *args: object) -> dict[str, T]:
    """What a function answers on every node of the connected cluster, all asked at once, by address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(task)
    asked = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*args)
        for node in ray.nodes()
        if node["Alive"]
    }
    answers = {}
    for ip, answer in asked.items():
        try:
            answers[ip] = ray.get(answer, timeout=PROBE_SECONDS)
        except (ray.exceptions.RayError, ModuleNotFoundError) as error:
            if "ModuleNotFoundError" in str(error):
                what = "lacks spikeprune; install the same version there, or submit from a checkout"
            else:
                what = f"does not answer ({str(error).strip().splitlines()[0]})"
            raise UserError("cluster", f"node {ip} {what}") from None
    return answers


def packages() -> dict[str, str | None]:
    """Installed versions in this process; ``None`` where a package is missing."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_nodes() -> Line:
    """Whether all nodes of the connected cluster have the versions of this process."""
    here = packages()
    bad = {ip: there for ip, there in on_every_node(packages).items() if there != here}
    if not bad:
        return Line("versions", True, f"{', '.join(f'{n} {v}' for n, v in here.items())} on every node")
    ip, there = next(iter(bad.items()))
    different = [f"{n} {there[n] or 'missing'} (here {here[n]})" for n in here if there[n] != here[n]]
    more = f" (and {len(bad) - 1} nodes more)" if len(bad) > 1 else ""
    return Line("versions", False, f"node {ip} has {', '.join(different)}{more}; install the same there")


def check_bytecode() -> Line:
    """Whether Ray's processes start as fast as they can."""
    if "PYTHONDONTWRITEBYTECODE" not in os.environ:
        return Line("bytecode", True, "is cached")
    what = "PYTHONDONTWRITEBYTECODE is set: every start of Ray's processes takes twice as long; unset it"
    return Line("bytecode", False, what, only_slow=True)


def check_token(token_file: Path | None) -> Line:
    """Whether the token that would be used can be read, by its owner alone."""
    try:
        token = find_token(token_file)
    except UserError as error:
        return Line("token", False, str(error))
    if token is None:
        if os.environ.get(MODE) == "token":
            return Line("token", False, f"{MODE} is token, but there is none; unset it, or give --token-file")
        return Line("token", True, "none; only clusters without authentication can be used")
    if (exposed := token.exposed()) is not None:
        return Line("token", False, exposed)
    return Line("token", True, f"from {token.source}")


def check_dashboard(url: str, token_file: Path | None) -> Line:
    """Whether a dashboard takes our jobs, without giving the token away."""
    from cluster.jobs import Jobs

    try:
        jobs = Jobs(url, token_file=token_file)
        jobs.list()
    except UserError as error:
        return Line("dashboard", False, str(error))
    if jobs.token is not None and readable_on_its_way(jobs.url):
        remedy = "use https, or ssh -L 8265:127.0.0.1:8265 HEAD and http://127.0.0.1:8265"
        return Line("dashboard", False, f"{jobs.url} takes the token unencrypted; {remedy}")
    return Line("dashboard", True, f"{jobs.url} takes jobs, Ray {jobs.version}")


def readable_on_its_way(url: str) -> bool:
    """Whether others on the network can read what goes to a URL: over http to another machine."""
    to = urlsplit(url)
    return to.scheme == "http" and to.hostname not in ("127.0.0.1", "localhost", "::1")
