"""Look from every node of a cluster: at storage, data, clocks, versions and networks."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster import network
from cluster.errors import ClusterError

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


def look(storage: Path | None = None, files: Sequence[str] = ()) -> list[View]:
    """Ask every node of the connected cluster, all at once.

    Args:
        storage: an existing folder; every node writes a probe file into it, and all are removed.
        files: paths that every node opens.

    Raises:
        ClusterError: a node that does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (sys.modules[__name__], network):  # a node may lack this software
        ray.cloudpickle.register_pickle_by_value(module)
    mark = f".probe-{uuid4().hex}"
    nodes = [n for n in ray.nodes() if n["Alive"]]
    try:
        if storage is not None:
            (storage / mark).write_text(mark)
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        asked = time.time()
        refs = [
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote(
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
            sent = storage is not None and _reads(storage / f"{mark}-{node['NodeID']}", node["NodeID"])
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
        if storage is not None:
            for left in storage.glob(f"{mark}*"):
                left.unlink(missing_ok=True)


def check_shared(storage: Path, files: Sequence[str] = ()) -> None:
    """That all nodes write to the same storage and read the data, before anything expensive starts.

    Raises:
        ClusterError: the first node that does not.
    """
    for view in look(storage, files):
        if view.unwritable is not None:
            raise ClusterError(
                "storage", f"{storage} cannot be written from node {view.ip} ({view.unwritable}); {_SHARE}"
            )
        if not (view.sees_driver and view.seen):
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


def _reads(path: Path, text: str) -> bool:
    for _ in range(20):  # network file systems may show a new file a little late
        try:
            os.listdir(path.parent)
            if path.read_text() == text:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def _probe(storage: str | None, mark: str, node: str, ip: str, files: tuple[str, ...]) -> dict[str, Any]:
    import platform
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    import ray

    began = time.time()
    unwritable, sees, disk = None, False, None
    if storage is not None:
        folder = Path(storage)
        try:
            (folder / f"{mark}-{node}").write_text(node)
            disk = shutil.disk_usage(folder).free
        except OSError as error:
            unwritable = error.strerror or str(error)
        sees = unwritable is None and _reads(folder / mark, mark)
    unreadable = []
    for file in files:
        try:
            with open(file, "rb") as opened:
                opened.read(1)
        except OSError:
            unreadable.append(file)
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
        "bytecode": not sys.dont_write_bytecode,
        "disk": disk,
        "unwritable": unwritable,
        "sees_driver": sees,
        "unreadable": tuple(unreadable),
        "began": began,
        "ended": time.time(),
    }
