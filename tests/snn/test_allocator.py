"""The allocator's thresholds, seen in the page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from snn.kernels.allocator import tune_allocator
print(tune_allocator() if sys.argv[1] == "tuned" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 << 20
def use():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env={**kept, **environment}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return out.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_large_blocks_are_faulted_in_once_only():
    said, faults = run("tuned")
    assert said == "True"
    _, untuned = run("plain")
    assert int(faults) < 10 < int(untuned)


def test_the_users_own_thresholds_stay():
    assert run("tuned", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
