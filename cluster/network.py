"""Which network interface a node talks to the others by."""

import os
import socket
import struct
from contextlib import suppress

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_of(ip: str) -> str | None:
    """Name of this machine's interface with that IPv4 address, if it has one (Linux)."""
    import fcntl

    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            request = struct.pack("256s", name.encode()[:15])
            reply = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
            if socket.inet_ntoa(reply[20:24]) == ip:
                return name
    return None


def choose_interface() -> None:
    """Let gloo use the interface that Ray uses, and nccl too where that is loopback; in a worker's process.

    Gloo takes the one that the host's name resolves to, which is loopback on many systems: workers on
    different nodes would then wait for one another in vain. On others it is the network's, where workers
    of one machine have nothing to say. Nccl takes any but loopback.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO, name)
    if name == "lo":
        os.environ.setdefault(NCCL, name)


def missing_interfaces() -> tuple[str, ...]:
    """Settings of gloo's and nccl's interface, as NAME=VALUE, that name none of this machine's."""
    names = [name for _, name in socket.if_nameindex()]
    gloo = os.environ.get(GLOO, "").split(",")
    nccl = os.environ.get(NCCL, "")
    wrong = [GLOO] if any(n and n not in names for n in gloo) else []
    if nccl and nccl[0] != "^":  # ^ leaves out, = is a whole name, others are beginnings
        wanted = [n for n in nccl.lstrip("=").split(",") if n]
        if not any(n == w or (nccl[0] != "=" and n.startswith(w)) for n in names for w in wanted):
            wrong.append(NCCL)
    return tuple(f"{w}={os.environ[w]}" for w in wrong)
