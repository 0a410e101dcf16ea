"""Keep large tensors' memory in the process: glibc hands every block above 32 MiB back to the system.

Each training step then maps and faults in its large activations again. Raising two thresholds of
malloc keeps them; the price is memory that stays with the process until it ends.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_THRESHOLD = 1 << 30
_TRIM = (1 << 31) - 1
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")


def tune_allocator() -> bool:
    """Set glibc's thresholds for the rest of this process; call it once, before the first large tensor.

    Returns:
        Whether they were set: not without glibc, nor where the environment (``MALLOC_...``,
        ``GLIBC_TUNABLES``) holds thresholds of the user's own.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in tunables or any(name in os.environ for name in _USERS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM))
