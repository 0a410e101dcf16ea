"""Real Ray heads of the tests' own: on free ports, on loopback, with a token, in a folder of their own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Head:
    """A running head."""

    address: str
    url: str
    token: Path
    temp: Path
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """This one's, without anything of Ray's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    clean.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**clean, "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1", **changes}


def spikeprune(*args: str, cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 300) -> Said:
    """The command, as a user starts it."""
    done = subprocess.run(
        [str(BIN / "spikeprune"), *args],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def free_ports(count: int) -> list[int]:
    """Ports below those that Ray gives to workers."""
    found: list[int] = []
    while len(found) < count:
        port = 2100 + secrets.randbelow(7000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


@contextmanager
def running_head(cpus: int = 4, **variables: str) -> Iterator[Head]:
    """A head with its dashboard and job server; stopped, with all it started, at the end."""
    temp = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))  # sockets' paths must be short
    token = temp / "token"
    token.write_text(secrets.token_hex(32) + "\n")
    token.chmod(0o600)
    port, dashboard, client, agent = free_ports(4)
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={temp}/ray"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--include-dashboard=true", "--object-store-memory=200000000"]
    env = environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        PATH=f"{BIN}:/usr/local/bin:/usr/bin:/bin",  # as in an activated environment
        **variables,
    )
    with (temp / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        url = f"http://127.0.0.1:{dashboard}"
        while not _answers(url, token):
            assert process.poll() is None, (temp / "log").read_text()
            assert time.monotonic() < deadline, "the head starts within 120 s"
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{port}", url, token, temp, process)
    finally:
        kill_tree(process.pid)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def kill_tree(pid: int) -> None:
    """SIGKILL a process of ours and all that it started."""
    parents = dict(_parents())
    family = {pid}
    while more := {p for p, parent in parents.items() if parent in family} - family:
        family |= more
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def command_lines() -> dict[int, list[str]]:
    """The words of every process's command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def _answers(url: str, token: Path) -> bool:
    import requests

    headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
    try:
        ready = requests.get(f"{url}/api/version", headers=headers, timeout=2).ok
        return ready and requests.get(f"{url}/api/jobs/", headers=headers, timeout=5).ok
    except requests.RequestException:
        return False
