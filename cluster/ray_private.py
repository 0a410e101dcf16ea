"""Ray's private names, one to a function; a test holds each to what it is used for."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Without clusters of several machines (Ray's name for it), all of Ray's servers listen on loopback.
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def head_client(address: str) -> Any:
    """Ray's own client of a head: with its token, its TLS and its way past proxies."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=address)


def node_addresses(head: str, seconds: float) -> set[str]:
    """Of the nodes that are alive, as the cluster knows them."""
    nodes = head_client(head).get_all_node_info(timeout=seconds).values()
    return {node.node_manager_address for node in nodes if node.state == node.ALIVE}


def refresh() -> None:
    """Let a Ray that is already imported see the environment's authentication mode and token."""
    if "ray" in sys.modules:
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()


@contextmanager
def loopback_only() -> Iterator[None]:
    """While Ray starts here: its processes take the setting along, later connections do not."""
    from ray._private import ray_constants  # read once, when Ray is imported

    before, set_before = os.environ.get(LOOPBACK_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[LOOPBACK_ONLY], ray_constants.ENABLE_RAY_CLUSTER = before or "0", before in ("1", "true")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = set_before
        if before is None:
            del os.environ[LOOPBACK_ONLY]
