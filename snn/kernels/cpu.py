"""The CPU engine: `lif.c`, compiled at first use and kept in a cache folder of the user.

The shared library is named by a digest of the source, the compiler, its flags and the processor, so
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
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from snn.kernels.eager import LIFConstants

_SOURCE = Path(__file__).with_name("lif.c")
_FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-shared")
_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_SURROGATES = {"atan": 0, "sigmoid": 1, "triangle": 2, "fast_sigmoid": 3}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_ELEMENTS_PER_THREAD = 1 << 18
"""Element-steps below which another thread costs more than it saves."""

_log = logging.getLogger(__name__)


class _Engine:
    devices = ("cpu",)
    dtypes = tuple(_NAMES)

    def unavailable(self) -> str | None:
        return _library()[1]

    def forward(
        self,
        current_TN: Tensor,
        state_N: Tensor | None,
        beta: float | Tensor,
        p: LIFConstants,
        spikes_TN: Tensor,
        end_N: Tensor | None,
    ) -> None:
        run = _function("lif_forward", current_TN)
        b = float(beta)
        T, step, spikes_step = len(current_TN), current_TN.stride(0), spikes_TN.stride(0)

        def part(start: int, n: int) -> None:
            run(
                _at(current_TN, start), step, _at(state_N, start), _at(spikes_TN, start), spikes_step,
                _at(end_N, start), T, n, b, _gain(b, p), p.theta, p.reset == "hard",
            )  # fmt: skip

        _in_parts(part, current_TN[0].numel(), T)

    def backward(
        self,
        current_TN: Tensor,
        state_N: Tensor | None,
        beta: float | Tensor,
        p: LIFConstants,
        grad_spikes_TN: Tensor,
        grad_end_N: Tensor | None,
        grad_current_TN: Tensor,
        grad_state_N: Tensor | None,
        want_grad_beta: bool,
    ) -> Tensor | None:
        run = _function("lif_backward", current_TN)
        b = float(beta)
        T = len(current_TN)
        grad_step = 0 if T == 1 else grad_current_TN.stride(0)
        scale = p.surrogate.scale
        surrogate = _SURROGATES[p.surrogate.name]

        def part(start: int, n: int) -> float:
            grad_beta = ctypes.c_double(0.0)
            failed = run(
                _at(current_TN, start), current_TN.stride(0), _at(state_N, start),
                _at(grad_spikes_TN, start), grad_spikes_TN.stride(0), _at(grad_end_N, start),
                _at(grad_current_TN, start), grad_step, _at(grad_state_N, start),
                ctypes.byref(grad_beta) if want_grad_beta else None,
                T, n, b, _gain(b, p), p.theta, scale, p.reset == "hard", p.detach_reset,
                p.decay_input, surrogate,
            )  # fmt: skip
            if failed:
                raise MemoryError(f"no memory for the potentials of {T} timesteps")
            return grad_beta.value

        total = sum(_in_parts(part, current_TN[0].numel(), T))
        return torch.tensor(total, dtype=current_TN.dtype) if want_grad_beta else None


ENGINE = _Engine()


def _gain(beta: float, p: LIFConstants) -> float:
    return 1 - beta if p.decay_input else 1.0


def _at(x: Tensor | None, start: int) -> int | None:
    return None if x is None else x.data_ptr() + start * x.element_size()


def _in_parts(part, n: int, T: int) -> list:  # type: ignore[no-untyped-def]
    """``part(start, size)`` over ``n`` neurons, on as many of torch's threads as it pays for."""
    threads = min(torch.get_num_threads(), n * T // _ELEMENTS_PER_THREAD)
    if threads <= 1:
        return [part(0, n)]
    size = -(-n // threads // 64) * 64
    starts = range(0, n, size)
    return list(_pool(os.getpid(), threads).map(part, starts, [min(size, n - s) for s in starts]))


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    del pid  # part of the key: a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="lif")


def _function(name: str, like: Tensor):  # type: ignore[no-untyped-def]
    library, why_not = _library()
    if library is None:
        raise RuntimeError(why_not)
    return getattr(library, f"{name}_{_NAMES[like.dtype]}")


@cache
def _library() -> tuple[ctypes.CDLL | None, str | None]:
    """The loaded library, or why there is none."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        return None, "no C compiler found"
    try:
        path = _cache_folder() / f"lif-{_digest(compiler)}.so"
        if not path.exists():
            _compile(compiler, path)
        return _declare(ctypes.CDLL(str(path))), None
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip()[-300:]}"
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"building its library failed: {error}"


def _compile(compiler: str, path: Path) -> None:
    """Compile beside ``path`` and rename: processes that start together each see a whole file."""
    began = perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *_FLAGS, *_EXACT, str(_SOURCE), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(built, path)
    _log.info("compiled the CPU engine in %.1f s: %s", perf_counter() - began, path)


def _digest(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60)
    parts = [_SOURCE.read_text(), compiler, version.stdout, *_FLAGS, *_EXACT, _processor()]
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
    pointer, step, real, flag = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_double, ctypes.c_int
    for name in _NAMES.values():
        forward = getattr(library, f"lif_forward_{name}")
        forward.argtypes = [
            pointer, step, pointer, pointer, step, pointer, step, step, real, real, real, flag,
        ]  # fmt: skip
        forward.restype = None
        backward = getattr(library, f"lif_backward_{name}")
        backward.argtypes = [
            pointer, step, pointer, pointer, step, pointer, pointer, step, pointer, pointer,
            step, step, real, real, real, real, flag, flag, flag, flag,
        ]  # fmt: skip
        backward.restype = flag
    return library
