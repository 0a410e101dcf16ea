"""A weight criterion of one's own: magnitude, measured against the layer's own spread."""

from collections.abc import Sequence

from torch import Tensor

from pruning.weights.calibration import Calibration
from pruning.weights.criteria import LayerRule, Objective
from snn.layers import Synapses


def spread(synapses: Sequence[Synapses], calibration: Calibration | None, _: Objective) -> list[LayerRule]:
    """The weights that are smallest beside their layer's root mean square go first."""

    def key(s: Synapses) -> Tensor:
        weight = s.layer.weight.detach().double().flatten()
        return weight.abs() / weight.square().mean().sqrt().clamp(min=1e-30)

    return [LayerRule(key=lambda s=s: key(s), score="energy") for s in synapses]
