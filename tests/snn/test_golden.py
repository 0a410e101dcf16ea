"""Twenty training steps of three models: losses as recorded in assets/losses.json.

Float64, where neither the processor's summation order nor the engine flips a spike in so few steps.
A change of these numbers is a change of what the networks compute: record anew (run this file) only
with the reason in the commit.
"""

import json
from pathlib import Path

import pytest
import torch

from snn.coding import direct
from snn.losses import LOSSES
from snn.models import build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate

ASSET = Path(__file__).parent / "assets" / "losses.json"
CASES = {
    "mlp": ({"hidden": (32, 16)}, NeuronParameters(reset="soft", detach_reset=False), "tet"),
    "convnet": ({"hidden": (16,)}, NeuronParameters(decay_input=True, learn_beta=True), "rate_ce"),
    "spikformer": (
        {"dim": 32, "depth": 1, "heads": 4},
        NeuronParameters(beta=0.75, surrogate=Surrogate("sigmoid")),
        "rate_ce",
    ),
}


def numbers(*shape, seed):
    """Reproducible inputs and weights without any library's generator: a linear congruence."""
    n = torch.Size(shape).numel()
    state, values = seed * 2 + 1, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 11) / 2**53)
    return torch.tensor(values, dtype=torch.float64).view(shape)


def losses(name):
    options, neuron, loss = CASES[name]
    model = build(name, input_shape=(2, 8, 8), num_classes=4, neuron=neuron, **options).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim > 1:
                fan_in = p[0].numel()
                p.copy_((torch.rand(p.shape, generator=generator, dtype=p.dtype) * 2 - 1) / fan_in**0.5)
            elif key.endswith("bias"):
                p.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x_B, labels = numbers(8, 2, 8, 8, seed=1), torch.arange(8) % 4
    trace = []
    for _ in range(20):
        value = LOSSES[loss](model(direct(x_B, 4)), labels).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        trace.append(value.item())
    return trace


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_recorded(name):
    recorded = json.loads(ASSET.read_text())[name]
    assert losses(name) == pytest.approx(recorded, rel=1e-9)
    assert recorded[-1] < recorded[0]


if __name__ == "__main__":
    ASSET.parent.mkdir(exist_ok=True)
    ASSET.write_text(json.dumps({name: losses(name) for name in CASES}, indent=1) + "\n")
