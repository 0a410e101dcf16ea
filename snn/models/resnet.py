"""Spiking residual networks: SEW-ResNet and MS-ResNet.

Both take ``(C, H, W)``. Up to 64x64 the stem is a 3x3 convolution of stride 1 (``stem="small"``), above
it is ImageNet's 7x7 of stride 2 (``stem="large"``), with max pooling in SEW-ResNet and a stride of 2
in the first stage in MS-ResNet. With the large stem and K=1000 the parameters are those published:
SEW-ResNet-18 11.69 M, -34 21.80 M, -50 25.56 M; MS-ResNet-18 11.69 M, -34 21.80 M.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from snn.activations import Recomputable
from snn.layers import Folded, Norm, Synapses, WeightLayer, folded
from snn.models.base import SpikingNetwork, conv, conv_layer, image_shape, pooled_head
from snn.neurons import LIF, NeuronParameters

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class SEWBlock(nn.Module):
    """Spiking layers one after the other, their spikes added to those of the shortcut (ADD).

    The sum is a count of spikes: 0, 1, 2, ..., growing with depth.
    """

    def __init__(self, c_in: int, c: int, stride: int, neuron: NeuronParameters, bottleneck: bool) -> None:
        super().__init__()
        c_out = 4 * c if bottleneck else c
        if bottleneck:
            self.residual = nn.Sequential(
                conv_layer(c_in, c, 1, neuron),
                conv_layer(c, c, 3, neuron, stride),
                conv_layer(c, c_out, 1, neuron),
            )
        else:
            self.residual = nn.Sequential(conv_layer(c_in, c, 3, neuron, stride), conv_layer(c, c, 3, neuron))
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else conv_layer(c_in, c_out, 1, neuron, stride)

    def forward(self, x_TB: Tensor) -> Tensor:
        """Spike counts ``[T, B, C, H, W]`` to spike counts."""
        return self.residual(x_TB) + self.shortcut(x_TB)


def sew_resnet(
    depth: int,
    /,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    stem: str = "auto",
    width: int = 64,
) -> SpikingNetwork:
    """SEW-ResNet with ADD (Fang et al. 2021, arXiv 2102.04159): residual sums of spikes.

    Args:
        depth: 18, 34 or 50 (bottleneck blocks).
        input_shape: ``(C, H, W)`` of one example.
        num_classes: ``K``.
        neuron: constants of all neurons.
        stem: ``small``, ``large``, or ``auto`` by the input's size.
        width: channels of the first stage; every later one has twice as many as the one before.

    Raises:
        ValueError: an input that is not ``(C, H, W)`` or below 8x8, an unknown stem, or a width below 1.
    """
    c, large = _stem(input_shape, stem, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = conv_layer(c, width, 7, neuron, 2) if large else conv_layer(c, width, 3, neuron)
    if large:
        layers["pool"] = Folded(nn.MaxPool2d(3, stride=2, padding=1))
    bottleneck = depth == 50
    c = width
    for stage, blocks in enumerate(_STAGES[depth]):
        channels = width << stage
        for i in range(blocks):
            stride = 2 if stage > 0 and i == 0 else 1
            layers[f"stage{stage + 1}_{i}"] = SEWBlock(c, channels, stride, neuron, bottleneck)
            c = 4 * channels if bottleneck else channels
    net = SpikingNetwork(nn.Sequential(layers), pooled_head(c, num_classes))
    net.channels_last = True  # docs/methods-snn.md, section 2
    return net


sew_resnet18, sew_resnet34, sew_resnet50 = (partial(sew_resnet, depth) for depth in (18, 34, 50))


class MSBlock(Recomputable):
    """Neurons, then weights and norm, twice; the currents are added to those of the shortcut."""

    def __init__(self, c_in: int, c: int, stride: int, neuron: NeuronParameters) -> None:
        super().__init__()
        self.neuron1 = LIF(neuron)
        self.conv1 = conv(c_in, c, 3, stride)
        self.norm1 = nn.BatchNorm2d(c)
        self.neuron2 = LIF(neuron)
        self.conv2 = conv(c, c, 3)
        self.norm2 = nn.BatchNorm2d(c)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or c_in != c:
            self.shortcut = nn.Sequential(conv(c_in, c, 1, stride), nn.BatchNorm2d(c))

    def run(self, current_TB: Tensor) -> Tensor:
        """Currents ``[T, B, C, H, W]`` to currents."""
        spikes = self.neuron2(folded(lambda s: self.norm1(self.conv1(s)), self.neuron1(current_TB)))
        y = folded(lambda s: self.norm2(self.conv2(s)), spikes)
        return y + (current_TB if self.shortcut is None else folded(self.shortcut, current_TB))


class MSResNet(SpikingNetwork):
    """Residual sums of currents, so that several weight layers feed one layer of neurons."""

    def synapses(self) -> list[Synapses]:
        """Weight layers in forward order.

        A layer whose current enters a residual sum is given the first neurons that integrate the sum.
        """
        found: list[Synapses] = []
        waiting: list[tuple[str, WeightLayer, Norm]] = []  # layers whose current is in the running sum

        def integrate(neuron: LIF) -> None:
            found.extend(Synapses(name, layer, norm, neuron) for name, layer, norm in waiting)
            waiting.clear()

        for name, module in self.features.named_children():
            path = f"features.{name}"
            if isinstance(module, MSBlock):
                integrate(module.neuron1)
                found.append(Synapses(f"{path}.conv1", module.conv1, module.norm1, module.neuron2))
                waiting.append((f"{path}.conv2", module.conv2, module.norm2))
                if module.shortcut is not None:
                    waiting.append((f"{path}.shortcut.0", *_weights_and_norm(module.shortcut)))
            elif isinstance(module, LIF):
                integrate(module)
            elif isinstance(module, Folded):
                waiting.append((f"{path}.module.0", *_weights_and_norm(module.module)))
        head = self.readout[-1]
        if not isinstance(head, nn.Linear):
            raise ValueError(f"readout: must end in nn.Linear, not {type(head).__name__}")
        return [*found, Synapses(f"readout.{len(self.readout) - 1}", head, None, None)]


def _weights_and_norm(pair: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    assert isinstance(pair, nn.Sequential)
    weights, norm = pair
    assert isinstance(weights, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return weights, norm


def ms_resnet(
    depth: int,
    /,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    stem: str = "auto",
    width: int = 64,
) -> MSResNet:
    """MS-ResNet (Hu et al. 2021, arXiv 2112.08954): residual sums of currents ("membrane shortcut").

    Arguments and errors as for `sew_resnet`; ``depth`` is 18 or 34.
    """
    c, large = _stem(input_shape, stem, width)
    first = conv(c, width, 7, 2) if large else conv(c, width, 3)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = Folded(nn.Sequential(first, nn.BatchNorm2d(width)))
    c = width
    for stage, blocks in enumerate(_STAGES[depth]):
        channels = width << stage
        for i in range(blocks):
            stride = 2 if i == 0 and (stage > 0 or large) else 1
            layers[f"stage{stage + 1}_{i}"] = MSBlock(c, channels, stride, neuron)
            c = channels
    layers["neuron"] = LIF(neuron)
    return MSResNet(nn.Sequential(layers), pooled_head(c, num_classes))


ms_resnet18, ms_resnet34 = (partial(ms_resnet, depth) for depth in (18, 34))


def _stem(input_shape: Sequence[int], stem: str, width: int) -> tuple[int, bool]:
    c, *sides = image_shape(input_shape, least=8)
    if stem not in ("auto", "small", "large"):
        raise ValueError(f"stem: {stem!r} is unknown; choose auto, small or large")
    if width < 1:
        raise ValueError(f"width: {width} is not possible; it must be at least 1")
    return c, stem == "large" or (stem == "auto" and max(sides) > 64)
