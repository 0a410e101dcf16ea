"""The workers' process group, whose store listens on the address of its Ray node alone.

Torch binds the port of a group's store on every interface, where it asks nobody who they are; a run on
one machine would be open to its whole network. Here the first worker opens the port.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
CONNECT_SECONDS = 300.0  # for the slowest worker to find the store
_stores: list[dist.TCPStore] = []  # of this process, until it joins


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray's, with a store that listens where the node does."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return _NodeBackend


class _NodeBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        host, port = worker_group.execute_single(0, _serve)
        joining = [
            worker_group.execute_single_async(
                rank,
                _join,
                host=host,
                port=port,
                world_rank=rank,
                world_size=len(worker_group),
                backend=backend_config.backend,
                seconds=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)


def _serve() -> tuple[str, int]:
    """Open the store in this process; where it listens."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
        opened.bind((host, 0))
        port: int = opened.getsockname()[1]
        store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=opened.detach()
        )
    _stores[:] = [store]
    return host, port


def _join(*, host: str, port: int, world_rank: int, world_size: int, backend: str, seconds: int) -> None:
    choose_interface()
    if world_rank == 0:
        store = _stores.pop()
    else:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
    timeout = timedelta(seconds=seconds)
    store.set_timeout(timeout)
    dist.init_process_group(
        backend=backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout
    )


def choose_interface() -> None:
    """Let gloo use the interface that Ray uses, and nccl too where that is loopback; in a worker's process.

    Gloo takes the one that the host's name resolves to, which is loopback on many systems: workers on
    different nodes would then wait for one another in vain. On others it is the network's, where workers
    of one machine have nothing to say. Nccl takes any but loopback.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)
    if name == "lo":
        os.environ.setdefault(NCCL, name)


def interface_of(ip: str) -> str | None:
    """Name of this machine's interface with that address, if it has one."""
    import psutil  # Ray brings it

    known = psutil.net_if_addrs().items()
    return next((name for name, addresses in known if ip in {a.address for a in addresses}), None)
