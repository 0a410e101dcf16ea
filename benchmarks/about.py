"""Where and with what a benchmark ran, for the JSON beside its figures."""

import os
import platform
import shlex
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "numpy", "pyarrow", "spikingjelly", "snntorch", "norse")


def about(module: str, arguments: list[str]) -> dict[str, Any]:
    """Command, date, commit, machine, versions and load; for a benchmark's result."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "command": shlex.join(["python", "-m", module, *(_short(a) for a in arguments)]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{name}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _short(argument: str) -> str:
    """A file outside the current folder by its name alone: where it lay tells nothing."""
    return Path(argument).name if argument.startswith("/") else argument


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of the checkout that this runs from; ``None`` outside of one."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
