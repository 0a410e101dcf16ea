"""Which network interface a node talks to the others by."""

import os
import socket
import struct
from contextlib import suppress

GLOO = "GLOO_SOCKET_IFNAME"


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
    """Let gloo use the interface that Ray uses; runs as each worker process starts.

    Gloo takes the one that the host's name resolves to, which is loopback on many systems: workers on
    different nodes would then wait for one another in vain.
    """
    import ray

    ip = ray.util.get_node_ip_address()
    name = interface_of(ip)
    if name is not None:
        os.environ.setdefault(GLOO, name)
