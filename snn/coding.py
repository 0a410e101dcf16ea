"""Images to what a spiking network takes: ``[T, B, ...]``."""

from torch import Tensor


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
    if T < 1:
        raise ValueError(f"T: {T!r} must be at least 1")
    return x_B.expand(T, *x_B.shape)
