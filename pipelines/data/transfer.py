"""Arrays on their way to the device that computes."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import UserError


def choose_device(asked: str, gpus: int) -> torch.device:
    """What one process computes on.

    Args:
        asked: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        gpus: GPUs that the process sees.

    Raises:
        UserError: that GPU is not there.
    """
    if asked == "cpu" or (asked == "auto" and not gpus):
        return torch.device("cpu")
    index = int(asked.partition(":")[2] or 0)
    if index >= gpus:
        there = f"{gpus or 'no'} GPU{'s' if gpus != 1 else ''} here"
        raise UserError("cluster.device", f"{asked} is not possible: torch sees {there}; auto takes what is")
    return torch.device("cuda", index)


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on a device; on a CPU the array's own memory.

    To a GPU it goes through pinned memory, so that the host does not wait for the kernels before it.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@cache
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that stay on a device, float32."""
    return torch.tensor(values, device=device)
