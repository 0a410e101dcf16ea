import copy
import io
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pruning.weights.masks import Masks
from snn.models import build


def net(seed: int = 0, hidden=(7, 5)):
    torch.manual_seed(seed)
    return build("mlp", input_shape=(6,), num_classes=3, hidden=hidden)


def random_masks(model, seed: int = 1, density: float = 0.4) -> Masks:
    g = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(m.shape, generator=g) < density for n, m in Masks.of(model).items()})


def pruned_values(model, masks) -> torch.Tensor:
    return torch.cat([s.layer.weight.detach()[~masks[s.name]] for s in model.synapses()])


def train(model, optimizer, steps: int = 5) -> None:
    g = torch.Generator().manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.rand(4, 8, 6, generator=g) * 3).square().sum()
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_their_momentum_stay_zero(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)  # momentum from before the pruning must not revive anything either
    masks = random_masks(model)
    weights = [s.layer.weight.detach().clone() for s in model.synapses()]
    with masks.keep(model, optimizer):
        train(model, optimizer)
    assert (pruned_values(model, masks) == 0).all()
    for s in model.synapses():
        for value in optimizer.state[s.layer.weight].values():
            if isinstance(value, torch.Tensor) and value.shape == s.layer.weight.shape:
                assert (value[~masks[s.name]] == 0).all()
    after = [s.layer.weight.detach() for s in model.synapses()]
    moved = [(w - v).abs() * m for w, v, m in zip(after, weights, masks.values(), strict=True)]
    assert min(m.max() for m in moved) > 0


def test_survivors_train_as_without_a_hold():
    """Zeroing by hand after every step is the definition."""
    a, b = net(), net()
    masks = random_masks(a)
    make = OPTIMIZERS["sgd"]
    oa, ob = make(a.parameters()), make(b.parameters())
    masks.apply_(b)
    with masks.keep(a, oa):
        train(a, oa)
    for step in range(5):
        g = torch.Generator().manual_seed(3)
        xs = [torch.rand(4, 8, 6, generator=g) * 3 for _ in range(5)]
        ob.zero_grad()
        b(xs[step]).square().sum().backward()
        ob.step()
        masks.apply_(b)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_gradients_of_pruned_weights_are_zero():
    model = net()
    masks = random_masks(model)
    with masks.keep(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        model(torch.rand(4, 8, 6) * 3).square().sum().backward()
    for s in model.synapses():
        assert (s.layer.weight.grad[~masks[s.name]] == 0).all()
    assert model.synapses()[-1].layer.weight.grad.abs().sum() > 0


def test_removed_hold_lets_weights_grow_again():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = random_masks(model)
    hold = masks.keep(model, optimizer)
    hold.remove()
    assert (pruned_values(model, masks) == 0).all()
    train(model, optimizer)
    assert (pruned_values(model, masks) != 0).any()


def test_copy_pickle_and_state_dict_are_untouched():
    model = net()
    keys = list(model.state_dict())
    masks = random_masks(model)
    masks.apply_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with masks.keep(model, optimizer):
        train(model, optimizer, 1)
        twin = copy.deepcopy(model)
        torch.save(model, io.BytesIO())
        assert list(model.state_dict()) == list(twin.state_dict()) == keys
        twin(torch.rand(4, 8, 6) * 3).square().sum().backward()
        head = twin.synapses()[-1]
        assert (head.layer.weight.grad[~masks[head.name]] != 0).any()  # the copy is free of the hold


def test_counts_density_and_apply():
    model = net()
    masks = random_masks(model)
    kept = sum(int(m.sum()) for m in masks.values())
    numel = sum(s.layer.weight.numel() for s in model.synapses())
    assert sum(k for k, _ in masks.counts().values()) == kept
    assert masks.density == kept / numel
    assert masks.sparsity == 1 - kept / numel
    assert Masks.of(model).density == 1
    masks.apply_(model)
    assert Masks.nonzero(model) == masks
    assert Masks.of(model) & masks == masks


@given(st.integers(0, 2**31), st.integers(0, 86))
def test_fingerprint_tells_any_single_bit(seed, position):
    model = net(hidden=(6, 4))
    masks = random_masks(model, seed)
    again = random_masks(model, seed)
    assert masks.fingerprint() == again.fingerprint()
    for mask in again.values():
        if position < mask.numel():
            mask.view(-1)[position] ^= True
            break
        position -= mask.numel()
    else:
        return
    assert masks.fingerprint() != again.fingerprint()
    assert masks != again


def test_fingerprint_sees_shapes():
    a = Masks({"l": torch.ones(2, 3, dtype=torch.bool)})
    assert a.fingerprint() != Masks({"l": torch.ones(3, 2, dtype=torch.bool)}).fingerprint()
    assert a.fingerprint() != Masks({"m": torch.ones(2, 3, dtype=torch.bool)}).fingerprint()


def test_saved_masks_come_back(tmp_path):
    masks = random_masks(net())
    masks.save(tmp_path / "masks.safetensors")
    assert Masks.load(tmp_path / "masks.safetensors") == masks
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]


def test_a_damaged_file_is_no_masks(tmp_path):
    (path := tmp_path / "masks.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"masks\.safetensors: is not a safetensors file"):
        Masks.load(path)
    save_file({"head": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"masks\.safetensors: masks: 'head' has dtype torch.float32"):
        Masks.load(path)
    with pytest.raises(ValueError, match=f"{tmp_path}: is not a file"):
        Masks.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    masks = random_masks(net())
    path = tmp_path / "masks.safetensors"
    masks.save(path)

    def fail(number):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Masks.of(net()).save(path)
    assert Masks.load(path) == masks
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]


@pytest.mark.parametrize("use", ["apply_", "keep", "check"])
def test_masks_of_another_model_are_refused_by_layer(use):
    model = net()
    arguments = [torch.optim.SGD(model.parameters(), lr=0.1)] if use == "keep" else []
    for masks, layer in [
        (Masks.of(net(hidden=(7, 4))), "features.2.weight_layer"),
        (Masks.of(net(hidden=(7,))), "features.2.weight_layer"),
        (Masks.of(net(hidden=(7, 5, 5))), "features.3.weight_layer"),
    ]:
        with pytest.raises(ValueError, match=layer):
            getattr(masks, use)(model, *arguments)


def test_weights_that_no_mask_can_hold_are_refused():
    model = net()
    masks = random_masks(model)
    second = model.synapses()[1].layer
    nn.utils.parametrizations.weight_norm(second)
    with pytest.raises(ValueError, match=r"features.2.weight_layer.* computes its weight"):
        masks.apply_(model)
    model = net(hidden=(6, 6))
    first, second = (s.layer for s in model.synapses()[:2])
    second.weight = first.weight
    before, masks = first.weight.detach().clone(), random_masks(model)
    with pytest.raises(ValueError, match=r"features.1.weight_layer' and 'features.2.weight_layer' share"):
        masks.apply_(model)
    assert torch.equal(first.weight, before)
    whole = {"features.2.weight_layer": torch.ones_like(second.weight, dtype=torch.bool)}
    Masks(dict(masks) | whole).apply_(model)
    assert torch.equal(first.weight != 0, masks["features.1.weight_layer"])


def test_only_booleans_are_masks():
    with pytest.raises(ValueError, match="dtype"):
        Masks({"l": torch.ones(2)})


def test_half_precision_and_frozen_weights_are_masked_too():
    model = net().bfloat16()
    frozen = model.synapses()[0].layer.weight
    assert isinstance(frozen, nn.Parameter)
    frozen.requires_grad_(False)
    masks = random_masks(model)
    with masks.keep(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)):
        assert (pruned_values(model, masks) == 0).all()
