"""Libraries in C, compiled at first use and kept in a cache folder of the user: the CPU engine (`engine.c`).

A shared library is named by a digest of the sources, the compiler, its flags and the processor, so
a new version, or another machine on the same home, builds its own. ``SPIKEPRUNE_CACHE`` moves the
folder; ``CC`` names the compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import perf_counter

_SOURCES = ("engine.c", "lif.h")
_FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-shared")
_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
REALS = ("float", "double")
"""Types that every function of the library exists for: ``<function>_<type>``."""

_log = logging.getLogger(__name__)


class Neuron(ctypes.Structure):
    """As in `engine.c`."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("beta", "gain", "theta", "scale")),
        *((name, ctypes.c_int) for name in ("hard", "detach", "decay_input", "surrogate")),
    ]


@cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The loaded library of the CPU engine, or why there is none."""
    library, why_not = built("lif", _SOURCES, _EXACT)
    return (None if library is None else _declare(library)), why_not


def built(name: str, sources: Sequence[str], flags: Sequence[str]) -> tuple[ctypes.CDLL | None, str | None]:
    """A library of this folder's ``sources`` (the first includes the others), or why there is none."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        return None, "no C compiler found"
    paths, flags = [Path(__file__).with_name(source) for source in sources], [*_FLAGS, *flags]
    try:
        path = _cache_folder() / f"{name}-{_digest(compiler, paths, flags)}.so"
        if not path.exists():
            _compile(compiler, flags, paths[0], path)
        return ctypes.CDLL(str(path)), None
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip()[-300:]}"
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"building its library failed: {error}"


def _compile(compiler: str, flags: Sequence[str], source: Path, path: Path) -> None:
    """Compile beside ``path`` and rename: processes that start together each see a whole file."""
    began = perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *flags, str(source), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(built, path)
    _log.info("compiled %s in %.1f s: %s", source.name, perf_counter() - began, path)


def _digest(compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60)
    parts = [*(path.read_text() for path in sources), compiler, version.stdout, *flags, _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    told = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def _cache_folder() -> Path:
    """A folder that only this user can write to: what lies in it gets loaded and run."""
    chosen = os.environ.get("SPIKEPRUNE_CACHE")
    if chosen:
        candidates = [Path(chosen)]
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        candidates = [
            Path(home) / "spikeprune",
            Path(tempfile.gettempdir()) / f"spikeprune-{os.getuid()}",
        ]
    for folder in candidates:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        about = folder.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    tried = ", ".join(map(str, candidates))
    raise OSError(f"no cache folder that only this user can write to (tried {tried})")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count, neuron = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.POINTER(Neuron)
    rows = [pointer, count]  # memory and its step over time
    signatures = {
        "lif_forward": [*rows, *rows, count, count, neuron],
        "lif_backward": [*rows, *rows, *rows, pointer, count, count, neuron],
    }
    for name, arguments in signatures.items():
        for real in REALS:
            function = getattr(library, f"{name}_{real}")
            function.argtypes = arguments
            function.restype = ctypes.c_int if name == "lif_backward" else None
    return library
