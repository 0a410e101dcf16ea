"""Plain modules whose neurons are named, and what cannot be understood."""

import pytest
import torch
from torch import Tensor, nn

from snn.adapters import library_of, wrap
from snn.neurons import LIF, NeuronParameters, lif

T, B = 3, 5


class Neurons(nn.Module):
    """A user's neuron, over whole sequences."""

    def forward(self, current_TB: Tensor) -> Tensor:
        return lif(current_TB, NeuronParameters(beta=0.7))[0]


class Counting(nn.Module):
    """A user's neuron, one timestep a call, with its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, current: Tensor) -> Tensor:
        v = current if self.v is None else self.v + current
        self.v = v.detach()
        return (v > 1).float() + (v - v.detach())


class Residual(nn.Module):
    """Two branches into one layer of neurons, functional pooling, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm, self.first = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), Neurons()
        self.left, self.left_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.right = nn.Conv2d(4, 4, 1)
        self.second, self.unused, self.head = Neurons(), nn.Linear(7, 7), nn.Linear(4, 3)

    def forward(self, x_TB: Tensor) -> Tensor:
        folded = x_TB.flatten(0, 1)
        s = self.first(self.stem_norm(self.stem(folded)).unflatten(0, (len(x_TB), -1))).flatten(0, 1)
        current = nn.functional.avg_pool2d(self.left_norm(self.left(s)) + self.right(s), 2)
        spikes = self.second(current.unflatten(0, (len(x_TB), -1)))
        return self.head(spikes.mean((3, 4)))


def frames() -> Tensor:
    return torch.rand(T, B, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("named", [[Neurons], ["first", "second"]])
def test_what_drives_what_is_read_off_the_graph(named: list[str | type]) -> None:
    torch.manual_seed(0)
    model = Residual()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network = wrap(model, frames(), neurons=named)
    found = {s.name: (s.norm, getattr(s.neuron, "path", None)) for s in network.synapses()}
    assert found == {
        "stem": (model.stem_norm, "first"),
        "left": (model.left_norm, "second"),
        "right": (None, "second"),
        "head": (None, None),
    }
    assert network.takes == "sequence"
    assert torch.equal(network.train()(frames()), model.train()(frames()))
    assert not any(m._forward_hooks for m in model.modules())
    model.load_state_dict(before)
    wrap(model, frames(), neurons=named)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training  # modes are restored


def test_neurons_of_ones_own_step_by_step() -> None:
    torch.manual_seed(0)
    neuron = Counting()
    model = nn.Sequential(nn.Linear(6, 8), neuron, nn.Linear(8, 3))

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x_TB: Tensor) -> Tensor:
            return torch.stack([self.net(x) for x in x_TB])

    x_TB = torch.rand(T, B, 6)
    network = wrap(Loop(), x_TB, neurons=["net.1"])
    assert network.takes == "sequence"
    seen = []
    handle = network.synapses()[0].neuron
    assert handle is not None
    hook = handle.register_forward_hook(lambda m, inputs, spikes: seen.append(spikes))
    first, second = network(x_TB), network(x_TB)
    hook.remove()
    assert torch.equal(first, second)  # every call starts from rest
    assert seen[0].shape == (T, B, 8)
    assert torch.equal(seen[0], seen[1])
    assert neuron.v is None


def test_neurons_of_ours_among_modules_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(6, 8), LIF(beta=0.5), nn.Linear(8, 3))
    network = wrap(model, torch.rand(T, B, 6))
    assert [s.name for s in network.synapses()] == ["0", "2"]


def test_neurons_of_ours_in_a_network_of_snntorch() -> None:
    snntorch = pytest.importorskip("snntorch")

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.ours, self.second = nn.Linear(6, 8), LIF(beta=0.5), nn.Linear(8, 8)
            self.theirs, self.head = snntorch.Leaky(beta=0.5, init_hidden=True), nn.Linear(8, 3)

        def forward(self, x_TB: Tensor) -> Tensor:
            currents = self.second(self.ours(2 * self.first(x_TB)))
            return torch.stack([self.head(self.theirs(current)) for current in currents])

    x = torch.rand(T, B, 6)
    network = wrap(Mixed(), x)
    seen: list[Tensor] = []
    for s in network.synapses()[:2]:
        assert s.neuron is not None
        s.neuron.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(x)
    assert [tuple(spikes.shape) for spikes in seen] == [(T, B, 8)] * 2


def test_what_is_left_out() -> None:
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.Flatten(), nn.Linear(6, 8), Counting(), nn.Linear(8, 3))
    with pytest.raises(
        ValueError, match=r"0 \(Conv1d\): has weights that cannot be pruned; .*exclude=\['0'\]"
    ):
        wrap(model, torch.rand(B, 6, 1), neurons=["3"])
    network = wrap(model, torch.rand(B, 6, 1), neurons=["3"], exclude=["0"])
    assert [s.name for s in network.synapses()] == ["2", "4"]
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="exclude: the model has no module 'nowhere'"):
        wrap(model, torch.rand(B, 6, 1), neurons=["3"], exclude=["0", "nowhere"])


def test_networks_that_cannot_be_understood() -> None:
    linear = nn.Sequential(nn.Linear(6, 8), Neurons(), nn.Linear(8, 3))
    x_TB = torch.rand(T, B, 6)
    with pytest.raises(ValueError, match=r"model: no spiking neurons found in Sequential; name them"):
        wrap(linear, x_TB)
    with pytest.raises(ValueError, match="neurons: the model has no module 'lif'"):
        library_of(linear, ["lif"])
    conv = nn.Sequential(
        nn.Linear(6, 6), Neurons(), nn.Unflatten(2, (6, 1, 1)), nn.Flatten(0, 1), nn.Conv2d(6, 3, 1)
    )
    with pytest.raises(ValueError, match=r"4: the last weight layer is Conv2d; .*policies loss, el2n"):
        wrap(conv, x_TB, neurons=[Neurons])
    silent = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), Neurons())
    with pytest.raises(ValueError, match="model: its layers drive no neurons"):
        wrap(silent, x_TB, neurons=[Neurons])
    with pytest.raises(ValueError, match="output: the model returns dict; pick the logits"):
        wrap(_Named(linear), x_TB, neurons=[Neurons])
    picked = wrap(_Named(linear), x_TB, neurons=[Neurons], output=lambda found: found["logits"])
    assert torch.equal(picked(x_TB), linear(x_TB))
    turned = nn.Sequential(nn.Linear(6, 8), _Turned(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"example: \(3, 5, 6\) and 1.neuron, .* have no batch in common"):
        wrap(turned, x_TB, neurons=[Neurons])


class _Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_TB: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x_TB)}


class _Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = Neurons()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x.flatten(1)).unflatten(1, x.shape[1:])
