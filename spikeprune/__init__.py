"""What a training script needs, under one name: ``from spikeprune import DataPruner, prune, LIF``.

Nothing is loaded until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.examples.loader import DataPruner as DataPruner
    from pruning.examples.scores import ExampleScorer as ExampleScorer
    from pruning.examples.scores import score_dataset as score_dataset
    from pruning.weights.allocation import allocate as allocate
    from pruning.weights.calibration import calibrate as calibrate
    from pruning.weights.inference import for_inference as for_inference
    from pruning.weights.masks import Masks as Masks
    from pruning.weights.recipe import prune as prune
    from snn import adapters as adapters
    from snn.activity import measure as measure
    from snn.coding import direct as direct
    from snn.models import build as build
    from snn.neurons import LIF as LIF

_MODULES = {
    "DataPruner": "pruning.examples.loader",
    "ExampleScorer": "pruning.examples.scores",
    "LIF": "snn.neurons",
    "Masks": "pruning.weights.masks",
    "adapters": "snn",
    "allocate": "pruning.weights.allocation",
    "build": "snn.models",
    "calibrate": "pruning.weights.calibration",
    "direct": "snn.coding",
    "for_inference": "pruning.weights.inference",
    "measure": "snn.activity",
    "prune": "pruning.weights.recipe",
    "score_dataset": "pruning.examples.scores",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spikeprune' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name == "adapters":
        return import_module("snn.adapters")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
