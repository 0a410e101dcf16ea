"""Networks of other libraries, as they are, against ours with the same weights."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pruning.examples.step_scores import StepScores
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from snn.activity import measure
from snn.adapters import Adapted, wrap
from snn.batchnorm import reestimate
from snn.models import SpikingNetwork, build
from snn.parameters import NeuronParameters
from snn.weighted_norm import weighted_statistics
from spikeprune import DataPruner, ExampleScorer, prune
from tests.snn.spikingjelly_names import from_spikingjelly_sew_resnet
from tests.spikeprune.peers import CONSTANTS, PEERS, B, T, batch, ours, spikingjelly


def pair(name: str) -> tuple[SpikingNetwork, Adapted]:
    net = ours(**CONSTANTS[name])
    x, _ = data_for(name)
    example = x[0] if "one step" in name else x
    theirs = wrap(PEERS[name](net).to(x.dtype), example)
    return net.to(x.dtype), theirs


def data_for(name: str, seed: int = 1, size: int = B) -> tuple[Tensor, Tensor]:
    """Float64, except for snntorch, whose spikes are float32."""
    x, y = batch(seed, size)
    return (x.float() if name == "snntorch" else x), y


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PEERS)
def test_one_network(name: str) -> None:
    net, theirs = pair(name)
    x, _ = data_for(name)
    wanted = net.eval()(x)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(theirs.eval()(x), wanted, rtol=1e-6, atol=1e-6)
    for a, b in zip(net.synapses(), theirs.synapses(), strict=True):
        assert torch.equal(a.layer.weight, b.layer.weight)
        assert (a.norm is None) == (b.norm is None)
        if a.norm is not None and b.norm is not None:
            assert torch.equal(a.norm.weight, b.norm.weight)
        assert (a.neuron is None) == (b.neuron is None)


class OneStep(nn.Module):
    """Takes and gives back its neurons' state, as the tutorials of norse and snntorch write networks."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.neuron, self.head = nn.Linear(6, 20), neuron, nn.Linear(20, 3)

    def forward(self, x_B: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        current = self.hidden(x_B)
        if state is None and hasattr(self.neuron, "reset_mem"):
            state = self.neuron.reset_mem()
        spikes, state = self.neuron(current, state)
        return self.head(spikes), state


@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_a_network_of_ones_own_keeps_its_state_from_one_call_to_the_next(library: str) -> None:
    module = pytest.importorskip(f"{library}{'.torch' * (library == 'norse')}", reason="extra peers")
    model = OneStep(module.Leaky(beta=0.9) if library == "snntorch" else module.LIFBoxCell())
    x = 4 * torch.rand(8, 5, 6)
    wanted, state = [], None
    for x_B in x:
        y, state = model(x_B, state)
        wanted.append(y)
    adapted = wrap(model, x[0])
    assert adapted.takes == "step"
    assert torch.equal(adapted(x), torch.stack(wanted))


@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
@pytest.mark.parametrize("name", PEERS)
def test_scores_of_a_pass(name: str, loss: Any) -> None:
    net, theirs = pair(name)
    x, y = data_for(name)
    wanted = ExampleScorer(net, ("sadp", "el2n", "loss", "margin"), loss=loss).score(x, y)
    found = ExampleScorer(theirs, ("sadp", "el2n", "loss", "margin"), loss=loss).score(x, y)
    assert wanted["sadp"].std() > 0.01 * wanted["sadp"].mean()
    for key in wanted:
        close(found[key], wanted[key])


@pytest.mark.parametrize("name", PEERS)
def test_calibration_masks_and_operations(name: str) -> None:
    net, theirs = pair(name)
    x, _ = data_for(name, size=64)
    a, b = calibrate(net, [x]), calibrate(theirs, [x])
    for wanted, found in zip(a.layers, b.layers, strict=True):
        assert found.rate_t == wanted.rate_t
        assert found.price == wanted.price
        np.testing.assert_allclose(found.channels, wanted.channels, rtol=1e-9)
        assert found.sensitivity == pytest.approx(wanted.sensitivity, rel=1e-5)
    for target in ({"sparsity": 0.8}, {"synops_fraction": 0.3}):
        wanted_masks = allocate(net, a, **target).masks
        found_masks = allocate(theirs, b, **target).masks
        for (_, m), (_, n) in zip(wanted_masks.items(), found_masks.items(), strict=True):
            assert torch.equal(m, n)
    wanted_masks.apply_(net)
    found_masks.apply_(theirs)
    counted, expected = measure(theirs, [x]), measure(net, [x])
    assert (counted.synops, counted.dense_synops) == (expected.synops, expected.dense_synops)
    assert (counted.acs, counted.macs) == (expected.acs, expected.macs)
    for wanted_row, row in zip(expected.layers, counted.layers, strict=True):
        assert row.firing_rate == wanted_row.firing_rate
        assert row.input_rate == wanted_row.input_rate


@pytest.mark.parametrize("name", ["spikingjelly", "spikingjelly, sigmoid"])
def test_norm_statistics_are_estimated_alike(name: str) -> None:
    """Of networks that run on all timesteps at once; others take statistics of every timestep."""
    net, theirs = pair(name)
    batches = [batch(seed)[0] for seed in (3, 4)]
    reestimate(net, batches)
    reestimate(theirs, batches)
    for a, b in zip(net.synapses(), theirs.synapses(), strict=True):
        if a.norm is not None and b.norm is not None:
            torch.testing.assert_close(a.norm.running_mean, b.norm.running_mean)
            torch.testing.assert_close(a.norm.running_var, b.norm.running_var)


def mean_loss(output: Any, y: Tensor) -> Tensor:
    logits = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(logits.mean(0) if logits.ndim == 3 else logits, y, reduction="none")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["spikingjelly", "spikingjelly, sigmoid"])
def test_scores_of_a_training_step(name: str, weighted: bool) -> None:
    """The first step traces the network, the second knows it."""
    net, theirs = pair(name)
    x, y = data_for(name)
    weights = torch.linspace(0.3, 2, B, dtype=torch.float64) if weighted else None
    model = copy.deepcopy(theirs.model).train()
    step = StepScores(model, "sadp", lambda: weights)
    scorer = ExampleScorer(net.train())
    for _ in range(2):
        with weighted_statistics(weights), scorer.recording():
            logits = net(x)
        wanted = scorer.from_losses(mean_loss(logits, y), logits, y, weights)["sadp"]
        from spikingjelly.activation_based import functional

        functional.reset_net(model)
        losses = mean_loss(model(x), y)
        found = step(losses)
        assert found is not None
        close(found.float(), wanted)
        losses.mean().backward()  # the graph is still there
    step.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_network_that_is_called_once_a_timestep() -> None:
    """Batch norm then has statistics of every timestep; without it the scores are ours."""
    net = ours(**CONSTANTS["spikingjelly"]).eval()
    model = spikingjelly(net, "s").train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.eval()
    x, y = batch()
    step = StepScores(model, "sadp", lambda: None)
    from spikingjelly.activation_based import functional

    for _ in range(2):
        functional.reset_net(model)
        losses = F.cross_entropy(sum(model(x_B) for x_B in x) / T, y, reduction="none")
        found = step(losses)
        assert found is not None
        close(found.float(), ExampleScorer(net).score(x, y)["sadp"])


def train(model: nn.Module, pruner: DataPruner, loader: Any, reset: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in pruner.epochs():
        model.train()
        for x, y, index in loader:
            reset()
            loss = pruner.loss(mean_loss(model(x.transpose(0, 1)), y), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("policy", ["sadp", "el2n", "infobatch"])
@pytest.mark.parametrize("name", ["spikingjelly", "snntorch", "norse"])
def test_training_on_a_part_of_the_data(name: str, policy: str) -> None:
    model = PEERS[name](ours(**CONSTANTS[name])).float()
    x, y = batch(size=96)
    data = TensorDataset(x.float().transpose(0, 1), y)
    pruner = DataPruner(data, model, ratio=0.5, epochs=5, policy=policy)
    loader = DataLoader(pruner, batch_size=16, sampler=pruner.sampler)
    adapted = wrap(model, x[:, :3].float())
    train(model, pruner, loader, lambda: adapted._library.reset(model))
    assert np.isfinite(pruner.policy.scores).all()
    assert len(pruner.sampler) == 96
    plan = pruner.policy.plan(3)
    assert len(plan.ids) == 48 or policy == "infobatch"
    if policy == "sadp":
        assert plan.weights.std() > 0.01


@pytest.mark.parametrize("name", PEERS)
def test_pruning_in_one_call_and_retraining_under_the_masks(name: str) -> None:
    net, theirs = pair(name)
    x, _ = data_for(name, size=64)
    given = theirs if "one step" in name else theirs.model
    found = prune(given, [(x, "label")], sparsity=0.7)
    wanted = prune(net, [x], sparsity=0.7)
    for (_, m), (_, n) in zip(wanted.masks.items(), found.masks.items(), strict=True):
        assert torch.equal(m, n)
    paths = dict(theirs.model.named_modules())
    assert all((paths[path].weight[~mask] == 0).all() for path, mask in found.masks.items())
    optimizer = torch.optim.SGD(theirs.model.parameters(), 0.5, momentum=0.9)
    with found.keep(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            theirs(x).sum().backward()
            optimizer.step()
    assert all((paths[path].weight[~mask] == 0).all() for path, mask in found.masks.items())


def test_a_residual_network() -> None:
    """spikingjelly's own SEW-ResNet-18: shortcuts, downsampling, pooling by functions."""
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (extra peers)")
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet

    torch.manual_seed(0)
    options = {"tau": 2.0, "detach_reset": True, "surrogate_function": surrogate.ATan()}
    theirs = sew_resnet.sew_resnet18(num_classes=5, cnf="ADD", spiking_neuron=neuron.LIFNode, **options)
    functional.set_step_mode(theirs.double(), "m")
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.fill_(1.5)
            m.bias.data.fill_(0.4)
    constants = NeuronParameters(beta=0.5, decay_input=True)
    net = build("sew_resnet18", input_shape=(3, 32, 32), num_classes=5, neuron=constants, stem="large")
    net.double().load_state_dict(from_spikingjelly_sew_resnet(theirs.state_dict()))
    x, y = torch.rand(3, 4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    adapted = wrap(theirs, x)
    assert len(adapted.synapses()) == len(net.synapses()) == 21
    driven = {s.name: getattr(s.neuron, "path", None) for s in adapted.synapses()}
    assert driven["layer2.0.conv2"] == "layer2.0.sn2"
    assert driven["layer2.0.downsample.0"] == "layer2.0.downsample_sn"
    assert driven["fc"] is None
    torch.testing.assert_close(adapted.eval()(x), net.eval()(x))
    close(ExampleScorer(adapted).score(x, y)["sadp"], ExampleScorer(net).score(x, y)["sadp"])
    assert measure(adapted, [x]).synops == measure(net, [x]).synops


@pytest.mark.parametrize("read", ["spikes", "potentials"])
def test_a_network_that_ends_in_neurons(read: str) -> None:
    """As in snntorch's tutorials: the bound holds through the last neurons, and `prune` sees the spikes."""
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed (extra peers)")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(16, 24), snntorch.Leaky(beta=0.9)
            self.fc2, self.lif2 = nn.Linear(24, 5), snntorch.Leaky(beta=0.9)

        def forward(self, x_B: Tensor) -> tuple[Tensor, Tensor]:
            first, last = self.lif1.reset_mem(), self.lif2.reset_mem()
            out = []
            for _ in range(T):
                spikes, first = self.lif1(self.fc1(x_B), first)
                spikes, last = self.lif2(self.fc2(spikes), last)
                out.append((spikes, last))
            return torch.stack([s for s, _ in out]), torch.stack([u for _, u in out])

    torch.manual_seed(0)
    net, x, y = Net(), 4 * torch.rand(B, 16), torch.arange(B) % 5
    step = StepScores(net, "sadp", lambda: None)
    for _ in range(2):
        spikes, potentials = net(x)
        assert spikes.mean() > 0.01
        out = spikes.sum(0) if read == "spikes" else potentials.mean(0)
        losses = F.cross_entropy(out, y, reduction="none")
        score = step(losses)
    assert score is not None
    by_example = [torch.autograd.grad(one, list(net.parameters()), retain_graph=True) for one in losses]
    exact = torch.tensor([torch.cat([g.flatten() for g in each]).norm() for each in by_example])
    assert (score >= exact * (1 - 1e-5)).all()
    assert np.corrcoef(score.numpy(), exact.numpy())[0, 1] > 0.7
    step.remove()
    table = prune(net, [x], synops=0.5)
    assert [path for path, _ in table.masks.items()] == ["fc1", "fc2"]
    assert measure(wrap(net, x), [x.expand(T, *x.shape)]).synops > 0


def test_a_network_that_makes_its_own_timesteps() -> None:
    net = ours(**CONSTANTS["spikingjelly"])

    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = spikingjelly(net)

        def forward(self, x_B: Tensor) -> Tensor:
            return self.net(x_B.unsqueeze(0).repeat(T, 1, 1, 1, 1)).mean(0)

    x = batch(size=40)[0][0]
    model = wrap(Repeating(), x)
    assert (model.takes, model.T) == ("images", T)
    x_TB = model.over_time(x)
    close(model.eval()(x_TB).mean(0), net.eval()(x_TB).mean(0))
    assert measure(model, [x_TB]).synops == measure(net, [x_TB]).synops
    masks = prune(Repeating(), [x], sparsity=0.5).masks
    expected = prune(net, [x_TB], sparsity=0.5).masks
    for (_, m), (_, n) in zip(expected.items(), masks.items(), strict=True):
        assert torch.equal(m, n)
    with pytest.raises(ValueError, match=r"input: \(4, 12, 2, 8, 8\); the model makes its T=4 timesteps"):
        model(batch()[0])
