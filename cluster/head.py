"""Ask a cluster's head what it is, in milliseconds, before Ray would try for a minute."""

import json
import os
import platform
import time
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError
from cluster.tokens import PLACES, Token

SECONDS = 10.0  # of waiting for an answer


@dataclass(frozen=True)
class Versions:
    """What must agree between a cluster and those who use it."""

    ray: str
    python: str | None = None
    """``None`` where it was not told."""

    @staticmethod
    def here() -> "Versions":
        """Of this process."""
        import ray

        return Versions(ray.__version__, platform.python_version())


def ask_head(address: str, token: Token | None, *, where: str = "cluster.address") -> Versions:
    """The versions of the cluster whose head listens at ``host:port``.

    Raises:
        ClusterError: nobody answers there, or it asks for another token.
    """
    import grpc
    from ray.core.generated import gcs_service_pb2  # its messages are made at import
    from ray.core.generated import gcs_service_pb2_grpc as services

    messages: Any = gcs_service_pb2
    metadata = [("authorization", f"Bearer {token.value}")] if token is not None else []
    with grpc.insecure_channel(address) as channel:
        try:
            alive = services.NodeInfoGcsServiceStub(channel).CheckAlive(
                messages.CheckAliveRequest(), timeout=SECONDS, metadata=metadata
            )
            about = services.InternalKVGcsServiceStub(channel).InternalKVGet(
                messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster"),
                timeout=SECONDS,
                metadata=metadata,
            )
        except grpc.RpcError as error:
            raise _refused(address, token, error, where) from None
    return Versions(alive.ray_version, json.loads(about.value or b"{}").get("python_version"))


def check_is_node(address: str, token: Token | None, *, where: str = "cluster.address") -> bool:
    """That this machine is one of the cluster's nodes, as Ray's drivers must be.

    Returns:
        whether the cluster is on loopback alone: one node that knows itself as 127.0.0.1. Ray would
        look for its head at this machine's outer address, where nobody listens.

    Raises:
        ClusterError: it is none of them; Ray would search for a minute.
    """
    import grpc
    from ray._private import services as local
    from ray.core.generated import gcs_service_pb2
    from ray.core.generated import gcs_service_pb2_grpc as services

    messages: Any = gcs_service_pb2
    metadata = [("authorization", f"Bearer {token.value}")] if token is not None else []
    deadline = time.monotonic() + SECONDS
    with grpc.insecure_channel(address) as channel:
        while True:
            reply = services.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(
                messages.GetAllNodeInfoRequest(), timeout=SECONDS, metadata=metadata
            )
            nodes, here = {n.node_id.hex() for n in reply.node_info_list}, set(local.find_node_ids())
            # A head answers before its own node is known, a node runs before it has joined.
            if nodes & here or (nodes and not here) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    if not nodes & here:
        raise ClusterError(
            where,
            f"{address} answers, but this machine is none of its nodes; submit the run as a job instead "
            "(spikeprune submit --address http://HEAD:8265 -- run ...)",
        )
    return all(n.node_manager_address == "127.0.0.1" for n in reply.node_info_list)


def check_versions(found: Versions, address: str, *, where: str = "cluster.address") -> None:
    """That this process and a cluster can work together.

    Raises:
        ClusterError: Ray, or Python where it is known, differs.
    """
    here = Versions.here()
    if found.ray != here.ray or found.python not in (None, here.python):
        python = f" and Python {found.python}, here Ray {here.ray} and Python {here.python}"
        raise ClusterError(
            where,
            f"{address} runs Ray {found.ray}{python if found.python else f', here is Ray {here.ray}'}; "
            "they must agree: install the cluster's versions here, or use an image with these there",
        )


def find_head(where: str = "cluster.address") -> str:
    """``host:port`` of the head that this machine is a node of.

    Raises:
        ClusterError: there is none, or more than one.
    """
    from ray._private import ray_constants, services, utils

    current = os.environ.get("RAY_ADDRESS") or utils.read_ray_address(None)
    found = {current} if current else set(services.find_gcs_addresses())  # Ray's own is frozen
    if len(found) > 1:
        raise ClusterError(
            where, f"auto finds several Ray instances here ({', '.join(sorted(found))}); name one"
        )
    if not found:
        raise ClusterError(
            where,
            f"auto finds no Ray on this machine; start it (ray start --head --port="
            f"{ray_constants.DEFAULT_PORT}), or leave the address out to have it started for the run",
        )
    return found.pop()


def _refused(address: str, token: Token | None, error: object, where: str) -> ClusterError:
    import grpc

    code, details = error.code(), " ".join(str(error.details()).split())  # type: ignore[attr-defined]
    if code == grpc.StatusCode.UNAUTHENTICATED:
        if token is None:
            return ClusterError(where, f"{address} asks for a token; {PLACES}")
        return ClusterError(where, f"{address} refuses the token of {token.source}; {PLACES}")
    if "http1" in details:
        return ClusterError(
            where,
            f"{address} is a dashboard, which takes jobs: spikeprune submit --address http://{address} -- "
            "run ...; or give the head's host:port (often port 6379) from one of the cluster's nodes",
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ClusterError(
            where, f"no Ray cluster answers at {address} within {SECONDS:g} s; is it the head's port?"
        )
    return ClusterError(
        where, f"no Ray cluster answers at {address} ({_short(details)}); is it running there?"
    )


def _short(details: str) -> str:
    for known in ("Connection refused", "lookup failed", "No route to host", "Network is unreachable"):
        if known in details:
            return known.lower()
    return details[:120]
