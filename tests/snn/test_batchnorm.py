import copy

import pytest
import torch
from torch import nn

from snn.batchnorm import reestimate
from snn.coding import direct
from snn.layers import is_static
from snn.models import build


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=3, channels=(4, 6), hidden=(8,)).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2.0)
            nn.init.uniform_(m.bias, -0.5, 0.5)
            nn.init.uniform_(m.running_mean, -1, 1)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return model


def batches(n: int, size: int, T: int = 3, seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(T, size, 2, 8, 8, generator=g, dtype=torch.float64) * 2 for _ in range(n)]


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_first_norm_has_the_pooled_statistics_of_all_values():
    model, data = net(), batches(3, 5)
    reestimate(model, data)
    conv, bn = model.features[0].weight_layer, norms(model)[0]
    y = torch.cat([conv(x.flatten(0, 1)) for x in data]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(bn.running_mean, y.mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(bn.running_var, y.var(1, unbiased=True), rtol=1e-10, atol=1e-12)


def test_one_batch_makes_evaluation_equal_to_the_training_pass():
    model, (x,) = net(), batches(1, 16)
    reestimate(model, [x])
    for m in norms(model):
        n = (
            x.shape[0]
            * x.shape[1]
            * (1 if isinstance(m, nn.BatchNorm1d) else 16 if m is norms(model)[0] else 4)
        )
        m.running_var.mul_((n - 1) / n)  # training normalises by the biased variance
    with torch.no_grad():
        evaluated = model.eval()(x)
        trained = model.train()(x)
    torch.testing.assert_close(evaluated, trained, rtol=1e-8, atol=1e-10)


def test_everything_else_is_left_alone():
    model = net()
    model.features.append(nn.Dropout(0.9))
    model.train()
    model.features[1].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reestimate(model, batches(2, 4))
    assert [m.training for m in model.modules()] == modes
    assert all(m.momentum == 0.1 for m in norms(model))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if "running" in k}
    assert all(p.grad is None for p in model.parameters())


def test_static_input_gives_what_its_copies_give():
    x = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    a, b = net(), net()
    reestimate(a, [direct(x, 4)])
    reestimate(b, [x.expand(4, *x.shape).contiguous()])
    torch.testing.assert_close(norms(a)[0].running_mean, norms(b)[0].running_mean)
    torch.testing.assert_close(norms(a)[1].running_var, norms(b)[1].running_var)


def test_workers_of_unequal_shares_agree_with_one():
    data = batches(5, 4)
    shares = [data[:1], data[1:], []]
    vectors = []

    def record(v: torch.Tensor) -> torch.Tensor:
        vectors.append(v)
        return v + 1

    for share in shares:
        reestimate(net(), share, average=record)
    mean = torch.stack(vectors).mean(0)
    alone = net()
    reestimate(alone, data)
    for share in shares:
        model = net()
        reestimate(model, share, average=lambda _: mean)
        for m, reference in zip(norms(model), norms(alone), strict=True):
            torch.testing.assert_close(m.running_mean, reference.running_mean, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(m.running_var, reference.running_var, rtol=0.1, atol=0)


@pytest.mark.parametrize("static", [True, False])
def test_a_remainder_of_one_example_joins_its_neighbour(static):
    """Under direct coding a linear layer gives one value per channel there, which has no variance."""
    torch.manual_seed(0)
    a = build("mlp", input_shape=(9,), num_classes=4, hidden=(6,)).double()
    b = copy.deepcopy(a)
    x = torch.rand(11, 9, dtype=torch.float64)
    coded = [direct(part, 3) if static else direct(part, 3).contiguous() for part in x.split(5)]
    joined = direct(x[5:], 3) if static else direct(x[5:], 3).contiguous()
    reestimate(a, iter(coded))
    reestimate(b, [coded[0], joined])
    for p, q in zip(a.buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    inputs = []
    a.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    reestimate(a, coded[::-1])  # the single one first
    assert [(len(x), x.shape[1], is_static(x)) for x in inputs] == [(3, 6, static), (3, 5, static)]


def test_examples_that_all_come_alone_stay_alone():
    data, sizes, model = batches(3, 1), [], net()
    model.register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape[1]))
    reestimate(model, data)
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("data", [[], [torch.full((2, 3, 2, 8, 8), float("nan"), dtype=torch.float64)]])
def test_refusals_leave_the_model_unchanged(data):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"at least one batch|not finite"):
        reestimate(model, data)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_failing_batch_leaves_the_model_unchanged():
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="input: shape"):
        reestimate(model, [*batches(1, 4), torch.zeros(2, 3, 7, dtype=torch.float64)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_statistics_that_were_not_finite_are_replaced_too():
    model, healthy, data = net(), net(), batches(2, 4)
    norms(model)[1].running_mean.fill_(float("nan"))
    norms(model)[2].running_var.fill_(float("inf"))
    reestimate(model, data)
    reestimate(healthy, data)
    for key, value in model.state_dict().items():
        assert torch.equal(value, healthy.state_dict()[key])


def test_norms_that_are_not_reached_and_empty_batches_are_left_out():
    model, plain, data = net(), net(), batches(2, 4)
    model.auxiliary = nn.BatchNorm1d(3).double()
    model.auxiliary.running_mean.fill_(7)
    reestimate(model, [data[0], data[0][:, :0], data[1]])
    reestimate(plain, data)
    assert (model.auxiliary.running_mean == 7).all()
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_without_norm_nothing_is_read():
    model = build("mlp", input_shape=(4,), num_classes=2, hidden=(3,), norm=False)

    def untouchable():
        raise AssertionError
        yield

    reestimate(model, untouchable())
