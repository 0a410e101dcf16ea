"""What spikingjelly calls the weights of a SEW-ResNet."""

import re
from collections.abc import Mapping

from torch import Tensor


def from_spikingjelly_sew_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of spikingjelly's SEW-ResNet-18/34/50 under the names of ours (`snn.models.resnet`).

    ==========================================  ===============================================
    spikingjelly                                here
    ==========================================  ===============================================
    conv1, bn1                                  features.stem.{weight_layer, norm}
    layerS.i.convN, layerS.i.bnN                features.stageS_i.residual.N-1.{weight_layer, norm}
    layerS.i.downsample.0, .1                   features.stageS_i.shortcut.{weight_layer, norm}
    fc                                          readout.2
    ==========================================  ===============================================

    Its ``LIFNode(tau)`` with ``decay_input`` is ``NeuronParameters(beta=1 - 1 / tau, decay_input=True)``.
    """
    return {_named_here(name): tensor for name, tensor in state_dict.items()}


def _named_here(name: str) -> str:
    parts = ("weight_layer", "norm")
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        kind, entry = found.groups()
        return f"features.stem.{parts[kind == 'bn']}.{entry}"
    if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        stage, block, kind, n, entry = found.groups()
        return f"features.stage{stage}_{block}.residual.{int(n) - 1}.{parts[kind == 'bn']}.{entry}"
    if found := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, n, entry = found.groups()
        return f"features.stage{stage}_{block}.shortcut.{parts[int(n)]}.{entry}"
    if found := re.fullmatch(r"fc\.(\w+)", name):
        return f"readout.2.{found[1]}"
    raise ValueError(f"state_dict: {name!r} is not an entry of a SEW-ResNet of spikingjelly")
