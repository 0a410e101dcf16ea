"""Arrays on their way to the device that computes."""

from functools import cache

import numpy as np
import torch
from torch import Tensor


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
