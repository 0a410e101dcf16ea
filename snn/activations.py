"""What training keeps between forward and backward, and in what form.

=============  ====================================================================================
``keep``       what gradients need, as it is: the fastest (default)
``pack``       inputs of convolutions and pooling that are spikes as bits, sums of spikes as bytes
``recompute``  of a spiking layer, or a block with a membrane shortcut, its packed input alone: its weights
               run again in the backward pass
=============  ====================================================================================

Outputs and gradients are the same in all three, to the last bit where the library that convolves repeats
itself. What is not whole numbers from 0 to 255 (pixels, averages, currents) is kept as it is, so nothing is
ever rounded; to see that costs one pass over the input, and on a GPU one wait for it.
"""

from torch import nn

from snn.convolution import Conv2d
from snn.layers import Folded, Recomputable

ACTIVATIONS = ("keep", "pack", "recompute")
_POOLING = nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d


def keep_activations(network: nn.Module, how: str) -> None:
    """Set how a network trains from now on; nothing else about it changes.

    ``recompute`` is for what is `snn.layers.Recomputable`; convolutions outside of it then pack. Layers
    whose calls somebody watches (forward hooks) are not recomputed.

    Args:
        network: any module made of this package's layers.
        how: one of `ACTIVATIONS`.

    Raises:
        ValueError: an unknown way.
    """
    if how not in ACTIVATIONS:
        raise ValueError(f"activations: {how!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    inner: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.recompute = how == "recompute"
            inner.update(module.modules())
        elif isinstance(module, Folded) and isinstance(module.module, _POOLING):
            module.recompute = how != "keep"  # a pass over a packed input, and cheap
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.pack = how == "pack" or (how == "recompute" and module not in inner)
