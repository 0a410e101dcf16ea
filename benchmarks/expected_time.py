"""How long the experiments in examples/ take, by estimate from measured training steps.

    python -m benchmarks.expected_time

An estimate, not a measurement: the measured seconds of a training step per example on one core (of the
small convolutional net, VGG-6 or SEW-ResNet-18, T = 4, in docs/results/sadp_cost.json; the nearest of kin),
times the network's multiply-adds over that one's, times T over 4; a forward pass (scores, batch norm,
evaluation) costs the share of a step that it cost there. Reading, decoding, Ray and what does not scale are
left out. No GPU was measured.
"""

import json
from dataclasses import dataclass
from functools import cache
from math import floor, log10, prod
from pathlib import Path

import torch
from torch import nn

from benchmarks.sadp_cost import MODELS
from pipelines.config import Config
from pipelines.config.load import load_config
from pipelines.data.dataset import DatasetInfo
from pipelines.networks import make_network
from pipelines.training.phases import phases_of
from pruning.examples.policies import POLICIES

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "results" / "sadp_cost.json"
MEASURED_T = 4
KIN = {"convnet": "c16", "vgg": "vgg6", "sew_resnet": "sew18"}
DATA = {  # shape of one example at one timestep, classes, training and test examples
    "cifar10-vgg6": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar10-vgg11": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar10-sew18": ((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": ((3, 32, 32), 100, 50_000, 10_000),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000, 10_000),
    "imagenet": ((3, 224, 224), 1000, 1_281_167, 50_000),
    "nmnist": ((2, 34, 34), 10, 60_000, 10_000),
    "cifar10-dvs": ((2, 48, 48), 10, 9_000, 1_000),
    "dvs-objects": ((2, 64, 64), 5, 1_631, 409),
}


@dataclass(frozen=True)
class Estimate:
    """Work of a whole `spikeprune run`."""

    steps: float
    """Examples trained on, over all epochs."""
    passes: float
    """Examples in forward passes alone."""
    core_hours: float

    @property
    def text(self) -> str:
        """As the examples' head comments say it."""
        hours = rounded(self.core_hours)
        return (
            f"about {hours:,g} core-hours"
            if hours >= 1
            else f"about {rounded(60 * self.core_hours):g} core-minutes"
        )


def rounded(value: float) -> float:
    """To two digits."""
    return round(value, 1 - floor(log10(value)))


def network(config: Config, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The config's network for such data."""
    mean = (0.0,) * shape[0]
    names = tuple(map(str, range(classes)))
    info = DatasetInfo(input_shape=shape, num_classes=classes, class_names=names, mean=mean, std=mean)
    return make_network(config.model, info, 0)


def multiply_adds(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one example and timestep, in convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        taps = prod(layer.weight.shape[1:])
        total += output.numel() * taps

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, *shape))
    for hook in hooks:
        hook.remove()
    return total


@cache
def measured(case: str) -> tuple[float, float]:
    """Core-seconds per multiply-add of a training step, and a pass's share of a step."""
    name, side, batch, _ = MODELS[case]
    found = json.loads(MEASURED.read_text())["steps"][case]
    shape = (3, side, side)
    work = multiply_adds(network(load_config(None, {"model.name": name}), shape, 10), shape)
    return found["step"] / (batch * MEASURED_T * work), found["pass"] / found["step"]


def estimate(config: Config, shape: tuple[int, ...], classes: int, train: int, test: int) -> Estimate:
    """Of a config's whole run on so many examples."""
    steps = passes = 0.0
    for phase in phases_of(config, "run"):
        examples = phase.data_pruning
        if phase.prunes:
            passes += config.weight_pruning.calibration_examples + config.train.bn_examples + test
            continue
        full = examples.warmup_epochs + examples.anneal_epochs
        pruned = phase.epochs - full
        every = examples.rescore_every
        every = POLICIES[examples.policy].rescore_every if every is None else every
        steps += train * (full + pruned * (1 - examples.ratio))
        scored = -(-pruned // every) if every else 0
        passes += scored * (train + config.train.bn_examples)
        passes += phase.epochs * (test + config.train.bn_examples)
    second, share = measured(KIN[config.model.name.rstrip("0123456789")])
    work = multiply_adds(network(config, shape, classes), shape) * config.model.T
    return Estimate(steps, passes, second * work * (steps + share * passes) / 3600)


def of_example(name: str) -> Estimate:
    """Of ``examples/<name>.yaml``."""
    return estimate(load_config(ROOT / "examples" / f"{name}.yaml"), *DATA[name])


def main() -> None:
    print("| example | examples trained on | in forward passes | one core of an AMD EPYC |")
    print("|---|---|---|---|")
    for name in DATA:
        found = of_example(name)
        print(f"| {name} | {found.steps:,.0f} | {found.passes:,.0f} | {found.text} |")


if __name__ == "__main__":
    main()
