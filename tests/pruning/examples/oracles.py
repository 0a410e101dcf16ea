"""Small float64 networks and slow, independent oracles for the tests of this folder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn.layers import Folded, SpikingLayer
from snn.losses import LOSSES
from snn.models import SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters
from snn.surrogate import Surrogate

WIDE = Surrogate("atan", 1.0)


def mlp(seed=0, *, norm=True, hidden=(14, 11), **neuron) -> SpikingNetwork:
    torch.manual_seed(seed)
    constants = NeuronParameters(surrogate=WIDE, **neuron)
    net = build("mlp", input_shape=(9,), num_classes=4, neuron=constants, hidden=hidden, norm=norm)
    return disturbed(net)


def convnet(seed=0, **neuron) -> SpikingNetwork:
    torch.manual_seed(seed)
    constants = NeuronParameters(surrogate=WIDE, **neuron)
    net = build("convnet", input_shape=(2, 8, 8), num_classes=4, neuron=constants, channels=(4,), hidden=(9,))
    return disturbed(net)


def conv_tail(seed=0, *, pool: nn.Module | None = None, groups=1, **neuron) -> SpikingNetwork:
    """Convolution as the last hidden layer, behind average pooling (inputs not binary), pooled head."""
    torch.manual_seed(seed)
    constants = NeuronParameters(surrogate=WIDE, **neuron)
    features = nn.Sequential(
        SpikingLayer(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), LIF(constants)),
        Folded(nn.AvgPool2d(2)),
        SpikingLayer(
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=True),
            nn.BatchNorm2d(6),
            LIF(constants),
        ),
    )
    width = 6 if pool is None else 6 * 4
    pools = [nn.AdaptiveAvgPool2d(1)] if pool is None else [pool]
    return disturbed(
        SpikingNetwork(features, nn.Sequential(*pools, nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, 4)))
    )


def disturbed(net: SpikingNetwork) -> SpikingNetwork:
    """Norms as after some training, in float64, so that signs of slopes and active neurons vary."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.normal_(0.6, 0.5)
            module.bias.data.normal_(0.5, 0.4)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 2)
    return net.double()


def batch(net: SpikingNetwork, T=4, B=8, seed=1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = net.synapses()[0].layer
    shape = (first.in_features,) if isinstance(first, nn.Linear) else (first.in_channels, 8, 8)
    x = torch.randn(T, B, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (B,), generator=generator)


def losses(net, x, y, loss="rate_ce", smoothing=0.0) -> Tensor:
    return LOSSES[loss](net(x), y, smoothing)


def squares_by_loop(net, x, y, parameters, loss="rate_ce", smoothing=0.0) -> Tensor:
    """Squared norm of the gradient of each parameter, example by example with autograd, ``[B, P]``."""
    net.eval()
    out = []
    for i in range(x.shape[1]):
        value = losses(net, x[:, i : i + 1], y[i : i + 1], loss, smoothing)
        grads = torch.autograd.grad(value.sum(), parameters)
        out.append(torch.stack([g.square().sum() for g in grads]))
    return torch.stack(out)


def norms_by_loop(net, x, y, parameters, loss="rate_ce", smoothing=0.0) -> Tensor:
    """Norm of the gradient of all these parameters together, ``[B]``."""
    return squares_by_loop(net, x, y, parameters, loss, smoothing).sum(1).sqrt()


def last_layer_bound(net, x, y, loss="rate_ce", smoothing=0.0) -> Tensor:
    """``v`` with deltas by autograd and receptive fields cut out by unfold."""
    net.eval()
    seen = {}
    layer = net.synapses()[-2].layer

    def hook(module, args, output):
        seen["x"], seen["a"] = args[0], output
        output.retain_grad()

    handle = layer.register_forward_hook(hook)
    losses(net, x, y, loss, smoothing).sum().backward()
    handle.remove()
    delta, inputs, B = seen["a"].grad, seen["x"], x.shape[1]
    net.zero_grad()
    if isinstance(layer, nn.Linear):
        rows = delta.norm(dim=-1) * (inputs.square().sum(-1) + 1).sqrt()
    else:
        rows = 0
        for d, i in zip(delta.chunk(layer.groups, 1), inputs.chunk(layer.groups, 1), strict=True):
            fields = F.unfold(i, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            rows = rows + (d.flatten(2).norm(dim=1) * (fields.square().sum(1) + 1).sqrt()).sum(1)
    return rows.view(-1, B).sum(0)
