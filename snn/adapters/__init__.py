"""Networks of other libraries as they are: spikingjelly, snntorch, norse, and plain modules.

::

    network = wrap(model, example)          # one forward pass tells what drives what
    pruned = prune(network, loader, sparsity=0.9)

No library is imported unless the model is its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from snn.adapters.library import Library, library_of
from snn.adapters.network import Adapted, first_tensor
from snn.adapters.trace import Trace

__all__ = ["Adapted", "Library", "Trace", "library_of", "wrap"]


def wrap(
    model: nn.Module,
    example: Tensor,
    *,
    neurons: Sequence[str | type] = (),
    exclude: Sequence[str] = (),
    output: Callable[[Any], Tensor] = first_tensor,
) -> Adapted:
    """See a network of another library as pruning and scoring see our own; it stays as it is.

    One forward pass in eval mode is traced: weight layers (``nn.Linear``, ``nn.Conv2d``) in their order, the
    batch norm behind each, and the neurons that it drives.

    Args:
        model: of spikingjelly (neurons in multi-step or single-step mode), snntorch or norse, or any module
            whose ``neurons`` are named. Its last weight layer must be linear.
        example: what one call of the model takes, with at least two examples: ``[T, B, ...]``; ``[B, ...]``
            where the model makes the timesteps itself; one timestep ``[B, ...]`` where your loop calls it
            for each. Best with B other than T.
        neurons: paths or classes of spiking neurons that no library knows.
        exclude: paths of weight layers to leave out, those of other kinds included.
        output: picks the logits, ``[T, B, K]``, ``[B, K]`` of a timestep or the mean over time, from what a
            call of the model returns; its first tensor when not given.

    Raises:
        ValueError: what cannot be understood, with the path of the module and what to pass.
    """
    library = library_of(model, neurons)
    return Adapted.traced(model, example, library, exclude, output)
