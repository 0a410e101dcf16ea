"""Two machines in one: network namespaces joined by a cable, each with its own processes. Needs root.

A node that is started by `Namespace.start` is lost, at once and as a whole, by `Node.lose`.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "eth0"


def why_not() -> str | None:
    """Why namespaces cannot be made here; ``None`` when they can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"needs {tool} (iproute2, util-linux)"
    probe = f"probe-{uuid.uuid4().hex[:6]}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"cannot make network namespaces here ({done.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


@dataclass(frozen=True)
class Node:
    """Processes of one namespace that live and die together."""

    process: subprocess.Popen[bytes]

    def lose(self) -> None:
        """SIGKILL to all of them."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Namespace:
    """One machine's network."""

    name: str
    ip: str

    def command(self, words: Sequence[str]) -> list[str]:
        """These words in its network, among all processes: a driver finds its node by looking at them."""
        return ["ip", "netns", "exec", self.name, *words]

    def alone(self, words: Sequence[str], *, hide: Path | None = None) -> list[str]:
        """These words with processes of their own; ``hide`` is then an empty folder of their own."""
        alone = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        if hide is not None:
            script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
            words = ["sh", "-c", script, "sh", str(hide), *words]
        return self.command([*alone, *words])

    def start(
        self, words: Sequence[str], env: Mapping[str, str], log: Path, hide: Path | None = None
    ) -> Node:
        """Start a process and its family."""
        with log.open("ab") as out:
            return Node(
                subprocess.Popen(
                    self.alone(words, hide=hide),
                    env=dict(env),
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def holds(self, pid: int) -> bool:
        """Whether a process is in it."""
        with suppress(OSError):
            return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{self.name}").st_ino
        return False


@contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces that reach one another and nothing else."""
    mark = uuid.uuid4().hex[:6]
    subnet = f"10.{64 + int(mark[:2], 16) % 64}.{int(mark[2:4], 16)}"
    pair = [Namespace(f"sp-{mark}-{i}", f"{subnet}.{i + 1}") for i in range(2)]
    ends = [f"v{mark}{i}" for i in range(2)]
    try:
        for namespace in pair:
            _ip("netns", "add", namespace.name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for namespace, end in zip(pair, ends, strict=True):
            _ip("link", "set", end, "netns", namespace.name)
            inside = ("-n", namespace.name)
            _ip(*inside, "link", "set", end, "name", INTERFACE)
            _ip(*inside, "addr", "add", f"{namespace.ip}/24", "dev", INTERFACE)
            for name in ("lo", INTERFACE):
                _ip(*inside, "link", "set", name, "up")
            _ip(*inside, "route", "add", "default", "dev", INTERFACE)
        yield pair[0], pair[1]
    finally:
        for namespace in pair:
            subprocess.run(["ip", "netns", "delete", namespace.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
