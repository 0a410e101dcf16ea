"""Scores and weighted statistics by hooks on a network that somebody else's loop trains."""

import copy
import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from pruning.examples.step_scores import StepScores
from snn.adapters import wrap
from snn.coding import direct
from snn.neurons import LIF
from tests.pruning.examples.loops import B, N, T, dataset, losses_of, network, pruner_of, same, train


@pytest.mark.parametrize("adapted", [False, True])
def test_mixed_precision(adapted: bool) -> None:
    """Scores are float32; half of a bfloat16's precision is left in what they are made of."""
    found = []
    for enabled in (False, True):
        model = network()
        pruner = pruner_of(wrap(model, direct(torch.rand(3, 9), T), neurons=[LIF]) if adapted else model)
        pruner.sampler.set_epoch(0)
        for x, y, index in DataLoader(pruner, batch_size=N, sampler=pruner.sampler):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses = losses_of(model.train()(direct(x, T)), y)
            pruner.loss(losses, index).backward()
        pruner.sampler.share_scores()
        found.append(pruner.policy.scores)
    assert np.corrcoef(found[0], found[1])[0, 1] > 0.8
    assert not np.array_equal(found[0], found[1])


class Around(nn.Module):
    """A network of ours in a module of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x_TB: Tensor) -> Tensor:
        logits: Tensor = self.net(x_TB)
        return logits


def test_a_network_of_ours_in_a_module_of_ones_own_is_trained_alike() -> None:
    plain, inside = network(), Around()
    assert same(train(plain, pruner_of(plain)), train(inside, pruner_of(inside)))


class Asked(TorchDispatchMode):
    """Counts the values that are asked of tensors, for which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("score", ["sadp", "el2n", "loss"])
def test_scores_of_a_step_ask_nothing_of_the_device(score: str, adapted: bool) -> None:
    model = network().train()
    x, y = dataset().tensors
    x = direct(x[:B], T)
    hooked = StepScores(wrap(model, x, neurons=[LIF]) if adapted else model, score, lambda: None)
    hooked(losses_of(model(x), y[:B]))  # the first step looks at the network
    with Asked() as asked:
        assert hooked(losses_of(model(x), y[:B])) is not None
        assert asked.count == 0
        assert float(x.sum()) != 0
        assert asked.count == 1


class Readout(nn.Module):
    """Returns its input, as an output of any shape."""

    def forward(self, y: Tensor) -> Tensor:
        return y


@pytest.mark.parametrize("shape", [(T, B, 4), (B, 4)])
def test_el2n_takes_outputs_of_these_shapes_alone(shape: tuple[int, ...]) -> None:
    model = Readout().train()
    hooked = StepScores(model, "el2n", lambda: None)
    y = torch.randn(shape, requires_grad=True)
    losses = model(y).square().sum(-1) if y.ndim == 2 else model(y).mean(0).square().sum(-1)
    expected = 2 * (y if y.ndim == 2 else y.mean(0)).norm(dim=-1)
    torch.testing.assert_close(hooked(losses), expected)
    for wrong in ((B, T, 4), (B, 4, 3, 3), (B,)):
        y = torch.randn(wrong, requires_grad=True)
        with pytest.raises(ValueError, match=r"output: .* must be \[T, B, K\] or \[B, K\], where B = 16"):
            hooked(model(y).square().reshape(B, -1).sum(1))


def mean_squared(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return (logits_TBK.mean(0) - F.one_hot(y, 4)).square().mean(1)


def every_step(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits_TBK.flatten(0, 1), y.repeat(T), reduction="none").view(T, -1).mean(0)


@pytest.mark.parametrize("loss", [losses_of, every_step, mean_squared])
def test_scores_are_of_the_loss_that_is_trained(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The readout's part of the bound is exact for any loss: by autograd, example by example."""
    model = network().double()
    x, y = dataset().tensors
    data = TensorDataset(x.double(), y)
    pruner = pruner_of(model, data)
    found: dict[int, Tensor] = {}

    head = model.readout[-1]
    for _ in pruner.epochs():
        for part, labels, index in DataLoader(pruner, batch_size=N, sampler=pruner.sampler):
            losses = loss(model.train()(direct(part, T)), labels)
            parts = [torch.autograd.grad(v, list(head.parameters()), retain_graph=True) for v in losses]
            squares = torch.stack([torch.stack([g.square().sum() for g in p]).sum() for p in parts])
            pruner._scores._record._bound._hidden = None  # the readout alone
            pruner.loss(losses, index)
            found = dict(zip(index.tolist(), squares.sqrt(), strict=True))
        pruner.sampler.share_scores()
        break
    expected = torch.stack([found[i] for i in range(N)]).float()
    torch.testing.assert_close(torch.from_numpy(pruner.policy.scores), expected, rtol=1e-4, atol=1e-6)


def test_a_silent_first_batch_tells_nothing_of_the_loss() -> None:
    model = network().train()
    x, y = dataset().tensors
    silent, spiking = torch.zeros(T, B, 9), direct(x[:B], T)
    found = []
    for begun_by in (silent, spiking):
        hooked = StepScores(model, "sadp", lambda: None)
        for x_TB in (begun_by, spiking):
            scores = hooked(every_step(model(x_TB), y[:B]))
        found.append(scores)
    assert torch.equal(*found)


def test_evaluation_and_passes_without_gradients_are_left_alone() -> None:
    model = network()
    plain = copy.deepcopy(model)
    pruner = pruner_of(model)
    pruner.sampler.set_epoch(0)
    x = direct(dataset().tensors[0][:8], T)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    with torch.no_grad():
        assert torch.equal(model.train()(x), plain.train()(x))
    assert not pruner._scores._record._bound.calls
    pruner.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_network_has_the_hooks_of_one_pruner() -> None:
    model = network()
    first = pruner_of(model)
    second = pruner_of(model)
    assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1
    train(model, second)
    assert not model._forward_pre_hooks  # the run is over
    first.sampler.set_epoch(0)
    x, y = dataset().tensors
    at = torch.from_numpy(first.sampler.ids[:B].copy())
    with pytest.raises(ValueError, match="loss: the network has not run in training mode"):
        first.loss(losses_of(model(direct(x[at], T)), y[at]), at)


@pytest.mark.parametrize("policy", ["sadp", "random"])
def test_a_network_whose_run_is_over_is_let_go(policy: str) -> None:
    model = network()
    pruner = pruner_of(model, policy=policy)
    alive = ref(model), ref(pruner)
    del model, pruner
    gc.collect()
    assert [a() for a in alive] == [None, None]


def test_a_forward_pass_that_fails_leaves_no_weights_behind() -> None:
    model = network()
    pruner = pruner_of(model, batch_size=B, warmup_epochs=0)
    pruner.sampler.set_epoch(1)
    with pytest.raises(RuntimeError):
        model(torch.zeros(T, B, 9, dtype=torch.float64))
    assert pruner._scores._open is None
    model(torch.zeros(T, B, 9))  # and the next one is recorded again
