"""Checkpoints: exact round trips, whole files, and errors that say what is wrong."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from snn.interchange import (
    build_described,
    describe,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from snn.models import build
from snn.neurons import NeuronParameters
from snn.surrogate import Surrogate

NEURON = NeuronParameters(beta=0.7, theta=0.9, learn_beta=True, surrogate=Surrogate("sigmoid", 3.0))
CASES = [
    ("mlp", {"input_shape": (2, 3), "num_classes": 3, "hidden": (5, 4)}),
    ("convnet", {"input_shape": (2, 8, 8), "num_classes": 3, "channels": (4,), "hidden": (6,)}),
]


def trained(name, arguments):
    torch.manual_seed(0)
    model = build(name, neuron=NEURON, **arguments)
    model(torch.rand(3, 4, *arguments["input_shape"]))  # moves the norm statistics
    return model


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_round_trip_gives_the_same_network(tmp_path, name, arguments):
    model = trained(name, arguments).eval()
    architecture = describe(name, neuron=NEURON, **arguments)
    save_checkpoint(tmp_path / "a.safetensors", model, architecture)
    again, found = load_checkpoint(tmp_path / "a.safetensors")
    assert found == architecture
    assert again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    x = torch.rand(3, 2, *arguments["input_shape"])
    assert torch.equal(again.eval()(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_channels_last_weights_round_trip(tmp_path):
    name, arguments = CASES[1]
    model = trained(name, arguments).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "a", model, describe(name, neuron=NEURON, **arguments))
    load_weights(tmp_path / "a", model, describe(name, neuron=NEURON, **arguments))
    again, _ = load_checkpoint(tmp_path / "a")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_another_architecture_is_refused_with_its_first_differing_key(tmp_path):
    name, arguments = CASES[0]
    save_checkpoint(tmp_path / "a", trained(name, arguments), describe(name, neuron=NEURON, **arguments))
    other = NeuronParameters(beta=0.7, theta=0.8, learn_beta=True, surrogate=NEURON.surrogate)
    with pytest.raises(ValueError, match=r"another architecture: neuron.theta is 0.9, not 0.8"):
        load_weights(tmp_path / "a", trained(name, arguments), describe(name, neuron=other, **arguments))
    wider = dict(arguments, hidden=(5, 8))
    with pytest.raises(ValueError, match=r"another architecture: options.hidden is \[5, 4\], not \[5, 8\]"):
        load_weights(tmp_path / "a", trained(name, wider), describe(name, neuron=NEURON, **wider))
    with pytest.raises(ValueError, match=r"features.2.weight_layer.weight' is \(4, 5\) there, \(8, 5\) here"):
        load_weights(tmp_path / "a", trained(name, wider))


def test_a_refused_checkpoint_leaves_the_model_as_it_was(tmp_path):
    name, arguments = CASES[0]
    save_checkpoint(tmp_path / "a", trained(name, arguments), describe(name, neuron=NEURON, **arguments))
    model = trained(name, dict(arguments, hidden=(5, 8)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="another architecture"):
        load_weights(tmp_path / "a", model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint, but long enough to hold a header")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_checkpoint(tmp_path / "text")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_checkpoint(tmp_path / "pickle.pt")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="has no 'spikeprune' header"):
        load_checkpoint(tmp_path / "plain")
    save_file(
        {"a": torch.zeros(2)}, tmp_path / "new", {"spikeprune": json.dumps({"format": 9, "architecture": {}})}
    )
    with pytest.raises(ValueError, match="format 9 is unknown"):
        load_checkpoint(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    name, arguments = CASES[0]
    save_checkpoint(tmp_path / "a", trained(name, arguments), describe(name, neuron=NEURON, **arguments))
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_checkpoint(tmp_path / "a")


def test_values_that_no_network_holds_are_refused(tmp_path):
    name, arguments = CASES[0]
    architecture = describe(name, neuron=NEURON, **arguments)
    whole = trained(name, arguments).state_dict()
    header = {"spikeprune": json.dumps({"format": 1, "architecture": architecture})}
    key = next(k for k in whole if k.endswith("weight"))
    for wrong, line in ((whole[key] * float("nan"), "holds NaN"), (whole[key].long(), "is torch.int64")):
        save_file({**whole, key: wrong}, tmp_path / "a", header)
        with pytest.raises(ValueError, match=line):
            load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("architecture", [3, ["mlp"], None])
def test_a_damaged_architecture_is_refused_with_the_file(tmp_path, architecture):
    header = {"spikeprune": json.dumps({"format": 1, "architecture": architecture})}
    name, arguments = CASES[0]
    save_file(trained(name, arguments).state_dict(), tmp_path / "a", header)
    with pytest.raises(ValueError, match=f"{tmp_path}/a: architecture: .* holds no fields"):
        load_checkpoint(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{tmp_path}/a: architecture: .* holds no fields"):
        load_weights(tmp_path / "a", trained(name, arguments), describe(name, neuron=NEURON, **arguments))


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ValueError, match="is not a file"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_shape": None}, {"neuron": 3}, {"options": {"depth": 3}}, {"num_classes": "x"},
        {"num_classes": 10**18}, {"name": ["mlp"]}, {"options": {"hidden": [10**18]}},
    ],
)  # fmt: skip
def test_a_description_with_values_of_another_kind(wrong):
    with pytest.raises(ValueError, match="architecture"):
        build_described({**describe("mlp", input_shape=(4,), num_classes=2), **wrong})
    with pytest.raises(ValueError, match="holds no fields"):
        build_described(None)


def test_saving_refuses_an_architecture_that_does_not_describe_the_model(tmp_path):
    name, arguments = CASES[0]
    model = trained(name, arguments)
    with pytest.raises(ValueError, match="another architecture"):
        save_checkpoint(
            tmp_path / "a", model, describe(name, neuron=NEURON, **dict(arguments, num_classes=4))
        )
    with pytest.raises(ValueError, match="plain values"):
        save_checkpoint(tmp_path / "a", model, {"name": object()})
    assert not list(tmp_path.iterdir())


def test_a_description_with_missing_or_unknown_fields():
    whole = describe("mlp", input_shape=(4,), num_classes=2)
    assert len(build_described(whole).synapses()) == 3
    with pytest.raises(ValueError, match="architecture: 'num_classes' is missing"):
        build_described({k: v for k, v in whole.items() if k != "num_classes"})
    with pytest.raises(ValueError, match="architecture: 'depth' is unknown"):
        build_described({**whole, "depth": 3})


def test_a_users_own_model_is_kept_without_being_built(tmp_path):
    model = torch.nn.Linear(3, 2)
    save_checkpoint(tmp_path / "a", model, {"name": "mine:net", "width": 3})
    other = torch.nn.Linear(3, 2)
    load_weights(tmp_path / "a", other, {"name": "mine:net", "width": 3})
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(ValueError, match="'input_shape' is missing"):
        load_checkpoint(tmp_path / "a")
