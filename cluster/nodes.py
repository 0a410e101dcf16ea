"""Look from every node of a cluster: at storage, data, clocks, versions and networks."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster import credentials, errors, network
from cluster import storage as storages
from cluster.errors import ClusterError
from cluster.storage import Remote, open_file, short, uri_of

PROBE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class View:
    """What one node says of itself and of the paths that it was asked about."""

    ip: str
    host: str
    ray: str
    python: str
    product: str | None
    """Version of spikeprune there; ``None`` where it is not installed."""
    skew: float
    """Its clock minus the driver's, seconds; as exact as a round trip is short."""
    interface: str | None
    """Name of the interface that has its address."""
    misnamed: tuple[str, ...]
    """Environment variables there that name an interface for gloo or nccl that it has not."""
    bytecode: bool
    """Whether Python caches bytecode there."""
    disk: int | None
    """Free bytes below the storage's folder."""
    store: int
    """Bytes of its object store."""
    unwritable: str | None
    """Why the storage's folder cannot be written from there."""
    sees_driver: bool
    """Whether it reads what the driver has written into the storage's folder."""
    seen: bool
    """Whether the driver reads what it has written there."""
    unreadable: tuple[str, ...]
    """Files that it cannot read."""


def look(storage: Path | str | None = None, files: Sequence[str] = ()) -> list[View]:
    """Ask every node of the connected cluster, all at once.

    Args:
        storage: an existing folder, or a URI; every node writes a probe file into it, and all are removed.
        files: paths or URIs that every node opens.

    Raises:
        ClusterError: a node that does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = f".probe-{uuid4().hex}"
    place = None if storage is None else _Place(str(storage))
    nodes = [n for n in ray.nodes() if n["Alive"]]
    try:
        if place is not None:
            place.write(mark, mark)
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        asked = time.time()
        with travelling():
            refs = [
                probe.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
                ).remote(
                    None if storage is None else str(storage),
                    mark,
                    n["NodeID"],
                    n["NodeManagerAddress"],
                    tuple(files),
                )
                for n in nodes
            ]
        answers: list[dict[str, Any]] = []
        for node, ref in zip(nodes, refs, strict=True):
            try:
                answers.append(ray.get(ref, timeout=PROBE_SECONDS))
            except ray.exceptions.RayError as error:
                first = str(error).strip().splitlines()[0]
                raise ClusterError(
                    "cluster", f"node {node['NodeManagerAddress']} does not answer ({first})"
                ) from None
        views = []
        for node, answer in zip(nodes, answers, strict=True):
            began, ended = answer.pop("began"), answer.pop("ended")
            sent = place is not None and _reads(place, f"{mark}-{node['NodeID']}", node["NodeID"])
            # The node's clock lies between asking and answering: what of the interval does not explain it.
            skew = max(0.0, began - time.time()) - max(0.0, asked - ended)
            views.append(
                View(
                    **answer,
                    skew=skew,
                    seen=sent,
                    store=int(node["Resources"].get("object_store_memory", 0)),
                )
            )
        return views
    finally:
        if place is not None:
            for name in (mark, *(f"{mark}-{n['NodeID']}" for n in nodes)):
                with suppress(Exception):
                    place.remove(name)


@contextmanager
def travelling() -> Iterator[None]:
    """Within, what is sent to a node brings along the code that it needs: a node may lack this software."""
    import ray

    modules = (sys.modules[__name__], network, storages, credentials, errors)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def check_shared(storage: Path | str | None, files: Sequence[str] = ()) -> None:
    """That all nodes write to the same storage and read the data, before anything expensive starts.

    Args:
        storage: an existing folder, or a URI; nothing is written when ``None``.
        files: paths or URIs.

    Raises:
        ClusterError: the first node that does not.
    """
    for view in look(storage, files):
        if view.unwritable is not None:
            raise ClusterError(
                "storage", f"{storage} cannot be written from node {view.ip} ({view.unwritable}); {_SHARE}"
            )
        if storage is not None and not (view.sees_driver and view.seen):
            raise ClusterError(
                "storage",
                f"{storage} is not shared: the driver and node {view.ip} see other files there; {_SHARE}",
            )
        if view.unreadable:
            raise ClusterError(
                "data.path",
                f"node {view.ip} cannot read {view.unreadable[0]}; put the data where every node reads it",
            )


_SHARE = "give a folder that all nodes share (NFS or the like), or use one node"


class _Place:
    """A folder, or what a URI names, for small files of text."""

    def __init__(self, path: str) -> None:
        self._folder = Path(path)
        self._remote = None if uri_of(path) is None else Remote.of(path)

    def write(self, name: str, text: str) -> None:
        if self._remote is not None:
            self._remote.write(name, text.encode())
        else:
            (self._folder / name).write_text(text)

    def read(self, name: str) -> str:
        if self._remote is not None:
            return self._remote.read(name).decode()
        os.listdir(self._folder)  # network file systems look again
        return (self._folder / name).read_text()

    def remove(self, name: str) -> None:
        if self._remote is not None:
            self._remote.remove(name)
        else:
            (self._folder / name).unlink(missing_ok=True)

    def free(self) -> int | None:
        import shutil

        return None if self._remote is not None else shutil.disk_usage(self._folder).free


def _reads(place: _Place, name: str, text: str) -> bool:
    for _ in range(20):  # network file systems may show a new file a little late
        with suppress(Exception):  # fsspec's filesystems raise what they like
            if place.read(name) == text:
                return True
        time.sleep(0.1)
    return False


def unopened(file: str) -> str | None:
    """Why a file, named by a path or a URI, cannot be read from here; ``None`` when it can."""
    try:
        if uri_of(file) is None:
            with open(file, "rb") as opened:
                opened.read(1)
        else:
            filesystem, path = open_file(file)
            with filesystem.open_input_file(path) as remote:
                remote.read(1)
    except Exception as error:  # fsspec's filesystems raise what they like
        return short(error)
    return None


def _probe(storage: str | None, mark: str, node: str, ip: str, files: tuple[str, ...]) -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import ray

    began = time.time()
    unwritable, sees, disk = None, False, None
    if storage is not None:
        try:
            place = _Place(storage)
            place.write(f"{mark}-{node}", node)
            disk = place.free()
            sees = _reads(place, mark, mark)
        except Exception as error:
            unwritable = short(error)
    unreadable = [file for file in files if unopened(file) is not None]
    try:
        product: str | None = version("spikeprune")
    except PackageNotFoundError:
        product = None
    return {
        "ip": ip,
        "host": platform.node(),
        "ray": ray.__version__,
        "python": platform.python_version(),
        "product": product,
        "interface": network.interface_of(ip),
        "misnamed": network.missing_interfaces(),
        "bytecode": not sys.dont_write_bytecode,
        "disk": disk,
        "unwritable": unwritable,
        "sees_driver": sees,
        "unreadable": tuple(unreadable),
        "began": began,
        "ended": time.time(),
    }
