"""What every spiking network offers: logits per timestep, synapses, readout; and what image models share."""

from collections.abc import Sequence

from torch import Tensor, nn

from snn.layers import Conv2d, Pointwise, SpikingLayer, Synapses, folded
from snn.neurons import LIF, NeuronParameters


class SpikingNetwork(nn.Module):
    """A stack of spiking layers and a non-spiking readout.

    ``forward`` takes currents or event frames ``[T, B, ...]`` and gives ``logits_TBK``; the class
    scores are their mean over time. ``T`` is the input's: the same network runs at any number of
    timesteps.

    Pruning methods see a network through two things, which your own model must provide as well:

    - ``readout``: module from the last spiking layer's output ``[B, ...]`` to logits ``[B, K]``,
      ending in the linear head, applied at every timestep;
    - ``synapses()``: all weight layers in the order of the forward pass, the head last.
    """

    input_shape: tuple[int, ...] | None = None
    """Of one example, without time and batch; where known (`snn.models.build`), the input is checked."""
    channels_last = False
    """Run images in channels_last memory format, whatever the weights have; set where that is faster."""
    features: nn.Sequential
    readout: nn.Sequential

    def __init__(self, features: nn.Sequential, readout: nn.Sequential) -> None:
        super().__init__()
        if not isinstance(readout[-1], nn.Linear):
            raise ValueError("readout: must end in nn.Linear")
        self.features = features
        self.readout = readout

    def forward(self, x_TB: Tensor) -> Tensor:
        """``[T, B, ...]`` to ``logits_TBK``.

        Raises:
            ValueError: no timestep, or examples of another shape than ``input_shape``.
        """
        if self.input_shape is not None and tuple(x_TB.shape[2:]) != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise ValueError(f"input: shape {tuple(x_TB.shape)} must be (T, B, {wanted})")
        if x_TB.shape[0] < 1:
            raise ValueError(f"input: shape {tuple(x_TB.shape)} must have at least one timestep")
        if self.channels_last and x_TB.ndim == 5:  # by moves, as torch.func knows no memory formats
            x_TB = folded(lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1), x_TB)
        return folded(self.readout, self.features(x_TB))

    def synapses(self) -> list[Synapses]:
        """Weight layers in forward order, the readout's head last."""
        found = [
            Synapses(f"features.{name}.weight_layer", m.weight_layer, m.norm, m.neuron)
            for name, m in self.features.named_modules()
            if isinstance(m, SpikingLayer)
        ]
        head = self.readout[-1]
        if not isinstance(head, nn.Linear):
            raise ValueError(f"readout: must end in nn.Linear, not {type(head).__name__}")
        return [*found, Synapses(f"readout.{len(self.readout) - 1}", head, None, None)]


def image_shape(input_shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """``(C, H, W)``, checked.

    Raises:
        ValueError: another number of axes, a size below 1, or height or width below ``least``.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape: {tuple(input_shape)} must be (C, H, W), all at least 1")
    C, H, W = input_shape
    if min(H, W) < least:
        raise ValueError(f"input_shape: {tuple(input_shape)} must be at least {least} x {least} here")
    return C, H, W


def conv_layer(c_in: int, c_out: int, kernel: int, neuron: NeuronParameters, stride: int = 1) -> SpikingLayer:
    """Convolution without bias (padded to keep the size at stride 1), batch norm, LIF."""
    return SpikingLayer(conv(c_in, c_out, kernel, stride), nn.BatchNorm2d(c_out), LIF(neuron))


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded to keep the size at stride 1."""
    kind = Pointwise if kernel == 1 else Conv2d
    return kind(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def pooled_head(features: int, num_classes: int) -> nn.Sequential:
    """A linear head on the mean over positions."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes))
