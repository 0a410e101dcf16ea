import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning.weights import recipe
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.masks import Masks
from pruning.weights.recipe import prune
from snn.activity import measure
from snn.adapters import wrap
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.models import SpikingNetwork, build
from snn.neurons import LIF


def network() -> SpikingNetwork:
    torch.manual_seed(0)
    return build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(6,), hidden=(24,))


def data(n: int = 300) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.rand(n, 2, 8, 8, generator=generator), torch.randint(0, 4, (n,), generator=generator)
    )


def encode(x: torch.Tensor) -> torch.Tensor:
    return direct(x, 4)


def test_one_call_is_the_four_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "CALIBRATION_EXAMPLES", 100)
    monkeypatch.setattr(recipe, "NORM_EXAMPLES", 200)
    model, examples = network(), data()
    by_hand = copy.deepcopy(model)
    found = prune(model, DataLoader(examples, batch_size=64), sparsity=0.8, encode=encode)
    x = examples.tensors[0]
    batches = [encode(x[:64]), encode(x[64:128])]
    calibration = calibrate(by_hand, [batches[0], batches[1][:, :36]])
    masks = allocate(by_hand, calibration, sparsity=0.8).masks
    masks.apply_(by_hand)
    reestimate(by_hand, [encode(part) for part in x[:256].split(64)])
    assert found.masks == masks
    assert found.calibration == calibration
    for a, b in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Encoding(nn.Module):
    """A network of ours in a module of the user's, which makes its timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(encode(x))


def test_a_network_of_ours_in_a_module_of_ones_own_is_pruned_alike() -> None:
    loader = DataLoader(data(), batch_size=64)
    plain = prune(network(), loader, sparsity=0.8, encode=encode).masks
    inside = prune(Encoding(), loader, sparsity=0.8).masks
    assert inside.keys() == {f"net.{name}" for name in plain}
    assert all(torch.equal(mask, inside[f"net.{name}"]) for name, mask in plain.items())


class Repeating(nn.Module):
    """Makes its own timesteps of flat images, as networks of other libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.neuron, self.head = nn.Linear(128, 6), LIF(), nn.Linear(6, 4)

    def forward(self, x_BN: torch.Tensor) -> torch.Tensor:
        return self.head(self.neuron(self.hidden(2 * x_BN.expand(3, *x_BN.shape)))).mean(0)


def test_examples_are_counted_not_features_or_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "NORM_EXAMPLES", 60)
    x = data().tensors[0]
    long = prune(network(), x.split(16), sparsity=0.5, encode=lambda x_B: direct(x_B, 20))
    assert long.calibration.examples == 64
    torch.manual_seed(0)
    flat = wrap(Repeating(), x[:16].flatten(1), neurons=[LIF])
    assert prune(flat, x.flatten(1).split(16), sparsity=0.5).calibration.examples == 64


@pytest.mark.parametrize("criterion", ["slamp", "slamp_curve", "fisher", "wanda"])
def test_criteria_take_a_network_that_makes_its_own_timesteps(criterion: str) -> None:
    torch.manual_seed(0)
    x = data(64).tensors[0].flatten(1)
    found = prune(wrap(Repeating(), x, neurons=[LIF]), x.split(16), sparsity=0.5, criterion=criterion)
    assert found.masks.sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_failure_after_pruning_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "CALIBRATION_EXAMPLES", 100)
    model, x = network(), encode(data(300).tensors[0])
    before = copy.deepcopy(model.state_dict())
    bad = x[:, 200:].clone()
    bad[:, -1] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        prune(model, [x[:, :200], bad], sparsity=0.5, criterion="magnitude")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("target", [{"sparsity": 0.7}, {"synops": 0.3}, {"budget": 0.2}])
@pytest.mark.parametrize("criterion", ["slamp", "lamp", "slamp_curve"])
def test_every_target_is_met(target: dict[str, float], criterion: str) -> None:
    model, batches = network(), [encode(data(64).tensors[0])]
    before = measure(model, batches)
    found = prune(model, batches, criterion=criterion, **target)
    assert found.allocation.criterion == criterion
    if "sparsity" in target:
        assert found.masks.sparsity == pytest.approx(0.7, abs=1e-3)
    elif "synops" in target:
        prices = {layer.name: layer.dense_synops / layer.weights for layer in before.layers}
        left = sum(layer.kept * prices[layer.name] for layer in found.layers)
        assert left <= 0.3 * before.dense_synops * (1 + 1e-9)
        assert left > 0.29 * before.dense_synops
    else:
        assert found.allocation.budget == pytest.approx(0.2, rel=0.05)
    assert all((s.layer.weight[~found.masks[s.name]] == 0).all() for s in model.synapses())


def test_masks_hold_while_retraining_and_the_next_round_prunes_more() -> None:
    model, examples = network(), data(64)
    x, y = encode(examples.tensors[0]), examples.tensors[1]
    first = prune(model, [x], sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=1e-2)
    with first.keep(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).mean(0), y).backward()
            optimizer.step()
    assert all((s.layer.weight[~first.masks[s.name]] == 0).all() for s in model.synapses())
    second = prune(model, [x], sparsity=0.8, previous=first.masks)
    assert not any((second.masks[name] & ~first.masks[name]).any() for name in first.masks)


def test_the_table_names_every_layer() -> None:
    found = prune(network(), [encode(data(64).tensors[0])], sparsity=0.9)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *found.masks, "all", "SynOps"]
    assert lines[-2].split()[1:] == ["2,508", "251", "0.100"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "prune: give exactly one of sparsity, synops, budget, not none"),
        ({"sparsity": 0.5, "synops": 0.5}, "exactly one of .*, not sparsity, synops"),
        ({"sparsity": 1.5}, r"sparsity: 1.5 must be in \[0, 1\)"),
        ({"sparsity": 0.5, "criterion": "magic"}, "criterion: 'magic' is unknown"),
        ({"sparsity": 0.5, "exclude": ["nowhere"]}, "exclude: layer 'nowhere' is unknown"),
        ({"sparsity": 0.5, "min_keep": 0}, "min_keep: 0 must be a whole number of at least 1"),
        ({"sparsity": 0.5, "previous": Masks({})}, "masks: the model's layer .* has no mask"),
        ({"sparsity": 0.5, "batches": []}, "batches: there is no example"),
        ({"sparsity": 0.5, "batches": [{"x": 1}]}, "batches: must hold tensors"),
        ({"sparsity": 0.5, "model": nn.Linear(3, 4)}, "model: no spiking neurons found in Linear; name them"),
    ],
)
def test_bad_input_is_refused_before_calibration_and_leaves_the_network_alone(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = options.pop("model", None) or network()
    assert isinstance(model, nn.Module)
    monkeypatch.setattr(recipe, "calibrate", lambda *args, **kwargs: pytest.fail("calibrated first"))
    before = copy.deepcopy(model.state_dict())
    batches = options.pop("batches", [encode(data(64).tensors[0])])
    with pytest.raises(ValueError, match=message):
        prune(model, batches, **options)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
