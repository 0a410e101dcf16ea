"""Check what usually goes wrong, here and on a cluster: one line each, ok or the remedy.

Knows nothing of networks or configs: what a run needs comes as plain numbers and paths.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.connect import connect, local_cpus
from cluster.errors import ClusterError
from cluster.nodes import View, look, unopened
from cluster.storage import Remote
from cluster.submit import megabytes, shadows
from cluster.tokens import MODE, find_token

PACKAGES = {"torch": "2.11", "ray": "2.60", "pyarrow": "21", "numpy": "2.0"}
MAX_SKEW = 5.0  # seconds: what leases and file times bear
STORE_SHARE = 0.3  # of the memory, which Ray gives its object store


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run asks of the machine or cluster."""

    cpus: float = 0.0
    """Logical CPUs of all workers and one scoring task."""
    gpus: float = 0.0
    workers: int = 1
    data: tuple[str, ...] = ()
    """The dataset's files."""
    data_bytes: int = 0
    storage: Path | str | None = None
    """Folder of runs, or its URI."""
    remedy: str = "lower cluster.workers or cluster.cpus_per_worker"


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    name: str
    ok: bool
    what: str
    """What was found; if not ok, with the remedy."""
    only_slow: bool = False
    """What is not ok costs time alone: a run works."""


def examine(
    needs: Needs,
    *,
    address: str | None = None,
    dashboard: str | None = None,
    token_file: Path | None = None,
    folder: Path | None = None,
) -> Iterator[Line]:
    """All checks, in the order in which they would bite.

    Args:
        needs: of the run.
        address: ``auto`` or ``host:port`` of a cluster; without one, what a local start would meet.
        dashboard: URL of a job server to check as well.
        token_file: the cluster's token.
        folder: where the user works.
    """
    yield from _local(folder or Path())
    yield _token(token_file)
    if dashboard is not None:
        yield _dashboard(dashboard, token_file)
    if address is not None:
        yield from _cluster(needs, address, token_file)
    elif dashboard is None:
        yield from _here(needs)


def _local(folder: Path) -> Iterator[Line]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Line("python", sys.version_info >= (3, 11), f"{found}; 3.11 or newer is needed")
    for package, least in PACKAGES.items():
        try:
            has = version(package)
        except PackageNotFoundError:
            yield Line(package, False, f"is not installed; pip install '{package}>={least}'")
            continue
        new_enough = _numbers(has) >= _numbers(least)
        yield Line(
            package, new_enough, has if new_enough else f"{has} is too old; pip install '{package}>={least}'"
        )
    off = "PYTHONDONTWRITEBYTECODE" in os.environ
    yield Line(
        "bytecode",
        not off,
        "PYTHONDONTWRITEBYTECODE is set: every start, and those of a cluster that `ray start` makes from "
        "here, take twice as long; unset it"
        if off
        else "is cached",
        only_slow=True,
    )
    hiding = shadows(folder)
    hides = bool(hiding) and not (folder / "pyproject.toml").exists()
    yield Line(
        "own modules",
        not hides,
        f"{(folder / hiding[0]).absolute()} hides spikeprune's; rename it" if hides else "nothing hides ours",
    )


def _token(token_file: Path | None) -> Line:
    try:
        token = find_token(token_file)
    except ClusterError as error:
        return Line("token", False, str(error))
    mode = os.environ.get(MODE)
    if token is None:
        if mode == "token":
            return Line("token", False, f"{MODE} is token, but there is none; unset it, or give --token-file")
        return Line("token", True, "none; only clusters without authentication can be used")
    if (exposed := token.exposed()) is not None:
        return Line("token", False, exposed)
    return Line("token", True, f"from {token.source}")


def _dashboard(url: str, token_file: Path | None) -> Line:
    from cluster.jobs import Jobs

    try:
        jobs = Jobs(url, token_file=token_file)
        jobs.list()
    except ClusterError as error:
        return Line("dashboard", False, str(error))
    scheme, _, host = jobs.url.partition("://")
    here = host.split(":")[0] in ("127.0.0.1", "localhost", "[::1]")
    if jobs.token is not None and scheme == "http" and not here:
        return Line(
            "dashboard",
            False,
            f"{jobs.url} takes the token unencrypted; use https, or ssh -L 8265:127.0.0.1:8265 HEAD and "
            "http://127.0.0.1:8265",
        )
    return Line("dashboard", True, f"{jobs.url} takes jobs, Ray {jobs.version}")


def _here(needs: Needs) -> Iterator[Line]:
    yield _fits("CPUs", needs.cpus, local_cpus(), needs.remedy)
    if needs.gpus:
        yield _fits("GPUs", needs.gpus, _gpus(), "lower cluster.gpus_per_worker")
    yield Line("data", *_readable(needs.data))
    if needs.storage is not None:
        yield _writable(needs.storage)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") * STORE_SHARE
    shared = Path("/dev/shm")
    room = min(memory, shutil.disk_usage(shared).free) if shared.is_dir() else memory
    yield _store(needs, room)
    place = needs.storage if isinstance(needs.storage, Path) else Path()
    yield _disk(needs, shutil.disk_usage(_existing(place)).free, "here")


def _cluster(needs: Needs, address: str, token_file: Path | None) -> Iterator[Line]:
    try:
        with connect(address, token_file=token_file) as cluster:
            yield Line(
                "cluster", True, f"{address}: {cluster.nodes} nodes, the same versions of Ray and Python"
            )
            yield _fits("CPUs", needs.cpus, cluster.cpus, needs.remedy)
            yield _fits("GPUs", needs.gpus, cluster.gpus, "lower cluster.gpus_per_worker")
            storage = needs.storage
            if storage is not None:
                written = _writable(storage)
                yield written
                storage = storage if written.ok else None
            views = look(storage, needs.data)
            yield from _views(needs, views, storage)
    except ClusterError as error:
        yield Line("cluster", False, str(error))


def _views(needs: Needs, views: Sequence[View], storage: Path | str | None) -> Iterator[Line]:
    ours = version("spikeprune")
    yield _each("spikeprune", views, lambda v: _other_product(v, ours), f"{ours} on every node")
    if storage is not None:
        shared = f"{storage} is shared and writable from every node"
        yield _each("storage", views, lambda v: _not_shared(v, storage), shared)
        if isinstance(storage, Path):
            room = "room enough below the storage"
            yield _each("disk", views, lambda v: _full(v, _disk_need(needs)), room)
    yield _each("data", views, _unreadable, f"{len(needs.data)} files readable from every node")
    yield _store(needs, sum(v.store for v in views))
    yield _each("clocks", views, _skewed, f"agree within {MAX_SKEW:g} s")
    names = ", ".join(sorted({v.interface or "unknown" for v in views}))
    yield _each("network", views, lambda v: _unreachable(v, alone=len(views) == 1), f"interface {names}")
    yield replace(_each("bytecode", views, _uncached, "cached on every node"), only_slow=True)


def _other_product(v: View, ours: str) -> str | None:
    remedy = f"here is {ours}; install the same there, or submit from a checkout"
    return None if v.product == ours else f"has spikeprune {v.product or 'not'} installed, {remedy}"


def _not_shared(v: View, storage: Path | str) -> str | None:
    if v.unwritable is not None:
        return f"cannot write {storage} ({v.unwritable}); use a folder that all nodes share"
    if v.sees_driver and v.seen:
        return None
    return f"and the driver do not see each other's files in {storage}; use a folder that all nodes share"


def _full(v: View, needed: int) -> str | None:
    if v.disk is None or v.disk > needed:
        return None
    return f"has {megabytes(v.disk)} free, {megabytes(needed)} are needed"


def _unreadable(v: View) -> str | None:
    return f"cannot read {v.unreadable[0]}; put it where every node reads it" if v.unreadable else None


def _skewed(v: View) -> str | None:
    return None if abs(v.skew) < MAX_SKEW else f"is {v.skew:+.0f} s off; set its clock (chrony, ntp)"


def _unreachable(v: View, *, alone: bool) -> str | None:
    if v.misnamed:
        return f"has {v.misnamed[0]}, an interface that it has not; correct or unset it before ray start"
    if alone or v.interface not in (None, "lo"):
        return None
    where = v.interface or "no interface of its own"
    return f"is on {where}, which others cannot reach; give ray start --node-ip-address there"


def _uncached(v: View) -> str | None:
    return None if v.bytecode else "has PYTHONDONTWRITEBYTECODE set; unset it before ray start"


def _each(name: str, views: Sequence[View], ill: Callable[[View], str | None], well: str) -> Line:
    bad = [(v.ip, what) for v in views if (what := ill(v)) is not None]
    more = f" (and {len(bad) - 1} nodes more)" if len(bad) > 1 else ""
    return Line(name, not bad, f"node {bad[0][0]} {bad[0][1]}{more}" if bad else well)


def _fits(name: str, needed: float, has: float, remedy: str) -> Line:
    ok = needed <= has
    return Line(name, ok, f"{needed:g} needed, {has:g} there" + ("" if ok else f"; {remedy}"))


def _gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def _readable(files: Sequence[str]) -> tuple[bool, str]:
    for file in files:
        reason = unopened(file)
        if reason is not None:
            return False, f"{file} cannot be read ({reason})"
    return True, f"{len(files)} files readable"


def _writable(storage: Path | str) -> Line:
    if isinstance(storage, str):
        reason = Remote.of(storage).why_not()
        what = "can be written" if reason is None else f"cannot be used ({reason}); give another --storage"
        return Line("storage", reason is None, f"{storage} {what}")
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe = storage / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Line(
            "storage", False, f"{storage} cannot be written ({error.strerror}); give another --storage"
        )
    return Line("storage", True, f"{storage} can be written")


def _store(needs: Needs, room: float) -> Line:
    ok = needs.data_bytes < room
    what = f"{megabytes(needs.data_bytes)} of data, {megabytes(room)} of object store"
    remedy = "; the rest would spill to disk: use more nodes or memory, or ray start --object-store-memory"
    return Line("object store", ok, what if ok else what + remedy)


def _disk_need(needs: Needs) -> int:
    return needs.data_bytes + 2**30  # spilled data, checkpoints, logs


def _disk(needs: Needs, free: int, where: str) -> Line:
    ok = free > _disk_need(needs)
    return Line(
        "disk",
        ok,
        f"{megabytes(free)} free {where}" + ("" if ok else f"; {megabytes(_disk_need(needs))} are needed"),
    )


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())
