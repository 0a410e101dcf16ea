"""Networks for inference over surviving weights: equal to the dense ones, and chosen by measurement."""

import copy
import logging

import pytest
import torch

from pruning.weights import inference
from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.inference import for_inference
from pruning.weights.masks import Masks
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.kernels import sparse
from snn.models import SpikingNetwork, build
from snn.sparse import SparseConv2d, SparseLinear

needs_compiler = pytest.mark.skipif(sparse.unavailable() is not None, reason="no C compiler")
T = 3
NETWORKS = {
    "mlp": {"hidden": (40, 30)},
    "convnet": {"channels": (8, 12), "hidden": (20,)},
    "vgg6": {"channels": (8, 8, 12, 12, 16, 16)},
    "sew_resnet18": {"width": 6},
    "ms_resnet18": {"width": 6},
}


@pytest.fixture
def sparse_wins(monkeypatch):
    """All layers are measured, and in favour of the sparse form."""
    monkeypatch.setattr(inference, "_DENSEST", 1.0)
    monkeypatch.setattr(inference, "_seconds", lambda *_: (2.0, 1.0))


def pruned(name: str, x_TB: torch.Tensor, sparsity: float = 0.9) -> SpikingNetwork:
    torch.manual_seed(0)
    model = build(name, input_shape=tuple(x_TB.shape[2:]), num_classes=5, **NETWORKS[name]).double()
    reestimate(model, [x_TB])
    allocate(model, calibrate(model, [x_TB]), sparsity=sparsity).masks.apply_(model)
    reestimate(model, [x_TB])
    return model.eval()


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_with_slamp_masks_equal_the_dense_ones(name, sparse_wins):
    x_TB = direct(torch.rand(6, 2, 16, 16, generator=torch.Generator().manual_seed(1)).double(), T)
    model = pruned(name, x_TB)
    before = copy.deepcopy(model.state_dict())
    found = for_inference(model, x_TB)
    with torch.no_grad():
        wanted = model(x_TB)
        assert wanted.std(1).max() > 0.01
        torch.testing.assert_close(found.model(x_TB), wanted, rtol=0, atol=1e-10)
    weights = {s.name: s.layer for s in found.model.synapses()}
    assert weights.keys() == {s.name for s in model.synapses()}
    for choice in found.layers:
        assert choice.sparse
        assert isinstance(weights[choice.name], SparseConv2d | SparseLinear)
        assert choice.density == (model.get_submodule(choice.name).weight != 0).double().mean()
    assert len(found.layers) == len(weights)
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    # the network that was given is as it was, and takes the copy's state back
    assert not any(isinstance(s.layer, SparseConv2d | SparseLinear) for s in model.synapses())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.load_state_dict(found.model.state_dict())


@needs_compiler
def test_layers_are_replaced_where_they_are_clearly_faster(monkeypatch):
    x_TB = torch.rand(T, 4, 2, 16, 16).double()
    model = pruned("vgg6", x_TB)
    asked = []

    def seconds(forms, x, rounds):
        asked.append((tuple(x.shape), rounds))
        return [(1.0, 0.5), (1.0, 0.97), (1.0, 3.0)][len(asked) % 3]

    monkeypatch.setattr(inference, "_seconds", seconds)
    found = for_inference(model, x_TB, rounds=3)
    measured = [c for c in found.layers if c.dense_seconds is not None]
    assert measured == [c for c in found.layers if c.density <= 0.5]
    assert len(asked) == len(measured) >= 5
    assert {shape[0] for shape, _ in asked} == {4 * T}
    assert {rounds for _, rounds in asked} == {3}
    assert {(c.sparse_seconds, c.sparse) for c in measured} == {(0.5, True), (0.97, False), (3.0, False)}


@needs_compiler
def test_really_measured_layers(caplog):
    """A real choice: whatever wins here, the outputs are the dense network's."""
    x_TB = torch.rand(T, 4, 2, 16, 16).double()
    model = pruned("vgg6", x_TB, 0.98)
    found = for_inference(model, x_TB)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x_TB), model(x_TB), rtol=0, atol=1e-10)
    for c in found.layers:
        if c.dense_seconds is not None:
            assert c.sparse == (c.sparse_seconds < 0.95 * c.dense_seconds)
            assert c.dense_seconds > 0
    assert not caplog.records


@needs_compiler
def test_masks_are_applied_to_the_copy(sparse_wins):
    x_TB = torch.rand(T, 4, 2, 16, 16).double()
    model = build("convnet", input_shape=(2, 16, 16), num_classes=5, **NETWORKS["convnet"]).double().eval()
    masks = Masks({n: torch.rand(m.shape) < 0.1 for n, m in Masks.of(model).items()})
    found = for_inference(model, x_TB, masks)
    assert Masks.of(model) == Masks.nonzero(model)
    masks.apply_(model)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x_TB), model(x_TB), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="masks: the model's layer"):
        for_inference(model, x_TB, Masks({}))


@needs_compiler
def test_the_copy_refuses_to_be_trained(sparse_wins):
    x_TB = torch.rand(T, 2, 2, 16, 16).double()
    found = for_inference(pruned("convnet", x_TB), x_TB)
    with pytest.raises(RuntimeError, match="is for inference"):
        found.model.train()
    with pytest.raises(RuntimeError, match="has no gradients"):
        found.model(x_TB.requires_grad_())


def test_without_a_compiler_the_network_stays_dense_and_one_log_line_says_so(monkeypatch, caplog):
    x_TB = torch.rand(T, 2, 2, 16, 16).double()
    model = pruned("mlp", x_TB)  # its neurons have their engine by now
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    sparse._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = for_inference(model, x_TB)
    finally:
        sparse._library.cache_clear()
    (record,) = [r for r in caplog.records if r.name == inference.__name__]
    assert record.getMessage() == "no sparse inference (no C compiler found): the network stays dense"
    assert not any(c.sparse or c.dense_seconds for c in found.layers)
    with torch.no_grad():
        assert torch.equal(found.model(x_TB), model(x_TB))


def test_what_cannot_be_measured_is_refused():
    model = build("mlp", input_shape=(4,), num_classes=2, hidden=(3,))
    with pytest.raises(ValueError, match="rounds: 0"):
        for_inference(model, torch.rand(T, 1, 4), rounds=0)
    with pytest.raises(ValueError, match="runs on a CPU"):
        for_inference(model.to("meta"), torch.rand(T, 1, 4))
