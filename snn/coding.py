"""Images and event frames to what a spiking network takes: ``[T, B, ...]``."""

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def direct(x_B: Tensor, T: int) -> Tensor:
    """Direct (current) coding: the same analog input at every timestep, as a view without copies.

    Args:
        x_B: ``[B, ...]``.
        T: timesteps, at least 1.

    Returns:
        ``[T, B, ...]``, stride 0 over time.

    Raises:
        ValueError: ``T`` below 1.
    """
    _check_steps(T)
    return x_B.expand(T, *x_B.shape)


def rate(x_B: Tensor, T: int, ids_B: Tensor, *, seed: int = 0, epoch: int = 0) -> Tensor:
    """Poisson rate coding: at every timestep a spike with probability ``x``, independently.

    Spikes depend on (seed, epoch, id, timestep, position) alone, by a counter-based hash: the batch an
    example comes in, its device and the order of calls change nothing.

    Args:
        x_B: probabilities ``[B, ...]``; below 0 never, above 1 always.
        T: timesteps, at least 1.
        ids_B: the examples' ids, int64 ``[B]``.
        seed: of the run.
        epoch: other spikes for the same examples.

    Returns:
        ``[T, B, ...]`` in {0, 1}, dtype of ``x_B``.

    Raises:
        ValueError: ``T`` below 1, or ids that are not int64 ``[B]``.
    """
    _check_steps(T)
    if ids_B.dtype != torch.int64 or ids_B.shape != x_B.shape[:1]:
        raise ValueError(f"ids: {ids_B.dtype} {tuple(ids_B.shape)} must be int64 ({x_B.shape[0]},)")
    key_B = _mix(_mix(_mix(torch.full_like(ids_B, seed)) + epoch) + ids_B)
    time_T = torch.arange(T, device=x_B.device)
    key_TB = _mix(key_B.to(x_B.device) + time_T[:, None] * _GOLDEN)
    position = torch.arange(x_B[0].numel() if len(x_B) else 0, device=x_B.device)
    bits_TBN = _mix(key_TB[:, :, None] + position * _GOLDEN)
    uniform_TBN = ((bits_TBN >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24
    return (uniform_TBN.view(T, *x_B.shape) < x_B).to(x_B.dtype)


def event_frames(
    time: Tensor, x: Tensor, y: Tensor, polarity: Tensor, *, T: int, height: int, width: int
) -> Tensor:
    """Events of one recording, counted in ``T`` spans of equal duration.

    Args:
        time: of each event ``[E]``, in any unit, in any order.
        x: column of each event ``[E]``, integer.
        y: row of each event ``[E]``, integer.
        polarity: of each event ``[E]``, 0 or 1.
        T: frames, at least 1.
        height: rows of the sensor.
        width: columns of the sensor.

    Returns:
        event counts, float32 ``[T, 2, H, W]``; all zero without events.

    Raises:
        ValueError: ``T`` below 1, lists of different lengths, or an event off the sensor.
    """
    _check_steps(T)
    if not (time.shape == x.shape == y.shape == polarity.shape and time.ndim == 1):
        shapes = [tuple(v.shape) for v in (time, x, y, polarity)]
        raise ValueError(f"time, x, y, polarity: shapes {shapes} must be one and the same [E]")
    counts = torch.zeros(T * 2 * height * width, dtype=torch.float32, device=time.device)
    if time.numel():
        for name, values, size in (("x", x, width), ("y", y, height), ("polarity", polarity, 2)):
            if int(values.min()) < 0 or int(values.max()) >= size:
                raise ValueError(f"{name}: {int(values.min())}..{int(values.max())} must be in 0..{size - 1}")
        since = (time - time.min()).double()
        frame = (since * (T / since.max().clamp(min=1e-300))).long().clamp(max=T - 1)
        cell = ((frame * 2 + polarity.long()) * height + y.long()) * width + x.long()
        counts += torch.bincount(cell, minlength=len(counts))
    return counts.view(T, 2, height, width)


def _check_steps(T: int) -> None:
    if T < 1:
        raise ValueError(f"T: {T!r} must be at least 1")


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser (Steele et al. 2014) on int64, which wraps."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
