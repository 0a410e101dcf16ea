"""Batch statistics of weighted examples, against batches that repeat every example as often as it weighs."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn.activations import keep_activations
from snn.coding import direct
from snn.losses import rate_cross_entropy
from snn.models import build
from snn.weighted_norm import batch_statistics, weighted_statistics

SMALL = {
    "mlp": {"input_shape": (12,), "hidden": (9, 7)},
    "convnet": {"input_shape": (2, 8, 8), "channels": (4, 6), "hidden": (8,)},
    "vgg6": {"input_shape": (2, 8, 8), "channels": (4, 4, 6, 6, 8, 8)},
    "sew_resnet18": {"input_shape": (2, 8, 8), "width": 4},
    "ms_resnet18": {"input_shape": (2, 8, 8), "width": 4},
    "spikformer": {"input_shape": (2, 16, 16), "dim": 16, "heads": 2, "depth": 1},
}


def network(name, seed=0):
    torch.manual_seed(seed)
    return build(name, num_classes=3, **SMALL[name]).double()


def batch(name, B=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, *SMALL[name]["input_shape"], generator=g, dtype=torch.float64) * 2
    return x, torch.randint(0, 3, (B,), generator=g)


def gradients(model, x_TB, labels, weights=None, repeats=None):
    """Weighted loss over the batch, and the gradients of all parameters, in training mode."""
    model = copy.deepcopy(model).train()
    if repeats is not None:
        x_TB, labels = x_TB.repeat_interleave(repeats, 1), labels.repeat_interleave(repeats)
    with weighted_statistics(weights):
        losses = rate_cross_entropy(model(x_TB), labels, 0.0)
        total = losses.sum() if weights is None else (weights * losses).sum()
        total.backward()
    return total.detach(), [p.grad for p in model.parameters()], model


@settings(max_examples=60)
@given(
    repeats=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    T=st.integers(1, 3),
    C=st.integers(1, 4),
    space=st.sampled_from([(), (1, 1), (3,), (2, 5)]),
    channels_last=st.booleans(),
    affine=st.booleans(),
    mean=st.sampled_from([0.0, 3.0, -200.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_an_example_of_weight_n_counts_as_n_examples(
    repeats, T, C, space, channels_last, affine, mean, dtype, seed
):
    g = torch.Generator().manual_seed(seed)
    n, B = torch.tensor(repeats), len(repeats)
    exact = torch.randn(T, B, C, *space, generator=g, dtype=torch.float64) * 2 + mean
    up = torch.randn(T, B, C, *space, generator=g, dtype=torch.float64)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[2 + len(space)](C, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    oracle = copy.deepcopy(norm).double()
    each = exact.repeat_interleave(n, 1).flatten(0, 1)
    # Values closer than that around -200 have lost their digits in float32, whatever the norm.
    assume(dtype == torch.float64 or each.transpose(0, 1).flatten(1).std(1).min() > 0.5)
    y_each = oracle(each.requires_grad_())
    y_each.backward(up.repeat_interleave(n, 1).flatten(0, 1))
    first = torch.cumsum(n, 0) - n  # of the copies of each example
    x = exact.to(dtype).flatten(0, 1)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    norm = norm.to(dtype)
    # The gradient that reaches an example's output holds its weight already, as the weighted loss gives it.
    with weighted_statistics(n.to(dtype)):
        y = norm(x)
    y.backward((up * n.view(1, -1, 1, *[1] * len(space))).to(dtype).flatten(0, 1))
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    per_example = lambda t: t.unflatten(0, (T, -1))[:, first].flatten(0, 1)  # noqa: E731
    torch.testing.assert_close(y.double(), per_example(y_each), **close)
    of_all = each.grad.unflatten(0, (T, -1)).flatten(2)
    summed = torch.stack([part.sum(1) for part in of_all.split(repeats, 1)], 1)
    torch.testing.assert_close(x.grad.double().unflatten(0, (T, B)).flatten(2), summed, **close)
    torch.testing.assert_close(norm.running_mean.double(), oracle.running_mean, **close)
    if affine:
        torch.testing.assert_close(norm.weight.grad.double(), oracle.weight.grad, **close)
        torch.testing.assert_close(norm.bias.grad.double(), oracle.bias.grad, **close)
    found = batch_statistics(x.detach(), n.to(dtype))
    flat = each.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[0].double(), flat.mean(1), **close)
    torch.testing.assert_close(found[1].double(), flat.var(1, unbiased=False), **close)


def test_equal_weights_of_float32_leave_no_rounding_in_a_norm_of_float64():
    x = torch.randn(1000, 3, 4, dtype=torch.float64) + 1e4
    plain, weighted = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    with weighted_statistics(torch.full((1000,), 2.0)):
        y = weighted(x)
    torch.testing.assert_close(y, plain(x), rtol=0, atol=1e-9)


def test_statistics_alone_have_gradients_too():
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda x: batch_statistics(x, weights), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_norm_in_another_precision_than_its_input_is_no_other_norm(dtype):
    x, weights = torch.randn(6, 5, 4, 4), torch.rand(3) + 0.1
    norm = nn.BatchNorm2d(5)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    other = copy.deepcopy(norm).to(dtype)
    found = []
    for module in (norm, other):
        at = x.clone().requires_grad_()
        with weighted_statistics(weights):
            y = module(at)
        y.float().square().sum().backward()
        found.append((y.float(), at.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("shape", [(4, 3), (6, 2, 3), (6, 2, 2, 3)])
def test_gradcheck(shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True)
    weight, bias = (
        torch.rand(shape[1], generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    weights = torch.rand(2, generator=g, dtype=torch.float64) + 0.1

    def norm(x, weight, bias):
        with weighted_statistics(weights):
            return F.batch_norm(x, None, None, weight, bias, True)

    assert torch.autograd.gradcheck(norm, (x, weight, bias))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("static", [True, False])
def test_whole_networks_are_those_of_repeated_examples(name, static):
    model, (x, labels) = network(name), batch(name)
    x_TB = direct(x, 3) if static else direct(x, 3) * torch.rand(3, *x.shape, dtype=x.dtype)
    n = torch.tensor([1, 3, 2, 1, 2])
    loss, grads, weighted = gradients(model, x_TB, labels, weights=n.double())
    wanted_loss, wanted, repeated = gradients(model, x_TB, labels, repeats=n)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-9, atol=1e-9)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    for a, b in zip(weighted.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.2, atol=1e-9)  # the unbiased variance counts otherwise


@pytest.mark.parametrize("weights", [None, torch.ones(5), torch.ones(5, dtype=torch.float64)])
@pytest.mark.parametrize("name", ["convnet", "sew_resnet18"])
def test_equal_weights_are_plain_batch_norm_bit_for_bit(name, weights):
    model, (x, _) = network(name), batch(name)
    a, b = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    with weighted_statistics(weights):
        logits = a(direct(x, 3))
    assert torch.equal(logits, b(direct(x, 3)))
    assert all(torch.equal(p, q) for p, q in zip(a.buffers(), b.buffers(), strict=True))


def test_norms_in_eval_mode_keep_their_running_statistics():
    model, (x, _) = network("convnet").eval(), batch("convnet")
    with weighted_statistics(torch.rand(5)):
        inside = model(direct(x, 3))
    assert torch.equal(inside, model(direct(x, 3)))


def test_examples_of_weight_0_have_no_influence():
    model, (x, labels) = network("convnet"), batch("convnet", B=6)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 0.0]).double()
    loss, grads, _ = gradients(model, direct(x, 3), labels, weights=weights)
    real = weights > 0
    wanted_loss, wanted, _ = gradients(model, direct(x[real], 3), labels[real], weights=weights[real])
    torch.testing.assert_close(loss, wanted_loss)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    loss, grads, padded = gradients(model, direct(x, 3), labels, weights=torch.zeros(6).double())
    assert loss == 0
    assert all((g == 0).all() for g in grads)
    assert all(b.isfinite().all() for b in padded.buffers())


@pytest.mark.parametrize("name", ["vgg6", "sew_resnet18"])
def test_the_memory_format_changes_nothing_but_rounding(name):
    model, (x, labels) = network(name), batch(name)
    weights, x = torch.rand(5).double() + 0.1, direct(x, 3).contiguous()
    other = copy.deepcopy(model)
    other.channels_last = not model.channels_last
    a, b = gradients(model, x, labels, weights), gradients(other, x, labels, weights)
    for p, q in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", ["pack", "recompute", "checkpoint"])
@pytest.mark.parametrize("name", ["convnet", "ms_resnet18"])
def test_activations_that_are_computed_again_have_the_same_statistics(name, how):
    model, (x, labels) = network(name), batch(name)
    weights = torch.rand(5).double() + 0.1
    kept = copy.deepcopy(model)
    if how == "checkpoint":
        layer = kept.features[1]
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), weighted_statistics(weights)),
        )
    else:
        keep_activations(kept, how)
    a, b = (gradients(m, direct(x, 3), labels, weights) for m in (model, kept))
    for p, q in zip(a[1], b[1], strict=True):
        assert torch.equal(p, q)
    if how != "checkpoint":  # torch's own counts a batch twice in running statistics
        assert all(torch.equal(p, q) for p, q in zip(a[2].buffers(), b[2].buffers(), strict=True))


@pytest.mark.parametrize("name", ["convnet", pytest.param("sew_resnet18", marks=pytest.mark.slow)])
def test_a_compiled_network_takes_weights_whole_and_is_compiled_once_for_all_of_them(name):
    torch._dynamo.reset()
    model, (x, _) = network(name).train(), batch(name)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    graphs = []
    for seed in range(3):
        weights = torch.rand(5, generator=torch.Generator().manual_seed(seed)).double()
        with weighted_statistics(weights):
            expected = model(direct(x, 3))
        with weighted_statistics(weights):
            found = compiled(direct(x, 3))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_its_statistics_in_float32(dtype, autocast):
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(8, 3, 16, 16, generator=g) * 0.5 + 20
    x = exact.to(dtype).requires_grad_()
    weights = torch.rand(8, generator=g) + 0.1
    norm, reference = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    wide = x.detach().float().requires_grad_()
    with weighted_statistics(weights):
        with torch.autocast("cpu", dtype, enabled=autocast):
            y = norm(x)
        y_wide = reference(wide)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), y_wide, rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-5, atol=1e-6)
    up = torch.randn(y.shape, generator=g)
    y.backward(up.to(dtype))
    y_wide.backward(up)
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=0.05, atol=0.05)


def test_refusals():
    with pytest.raises(ValueError, match=r"weights: shape \(2, 2\) must be \[B\]"):
        weighted_statistics(torch.ones(2, 2))
    norm = nn.BatchNorm1d(2)
    with (
        weighted_statistics(torch.rand(3)),
        pytest.raises(ValueError, match="7 rows are no multiple"),
    ):
        norm(torch.rand(7, 2))
    with weighted_statistics(torch.rand(1)), pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.rand(1, 2))


def step_of_a_worker(rank, store, folder):
    """One weighted training step under DistributedDataParallel; the gradients go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, (x, labels) = network("convnet"), batch("convnet", B=8)
    weights, mine = torch.linspace(0.2, 2, 8).double(), slice(4 * rank, 4 * rank + 4)
    distributed = nn.parallel.DistributedDataParallel(model.train())
    with weighted_statistics(weights[mine]):
        logits = distributed(direct(x[mine], 3))
    (weights[mine] * rate_cross_entropy(logits, labels[mine], 0.0)).sum().backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_every_worker_of_a_distributed_step_takes_the_statistics_of_its_own_batch(tmp_path):
    torch.multiprocessing.spawn(step_of_a_worker, (tmp_path / "store", tmp_path), nprocs=2)
    model, (x, labels) = network("convnet"), batch("convnet", B=8)
    weights = torch.linspace(0.2, 2, 8).double()
    parts = [
        gradients(model, direct(x[part], 3), labels[part], weights[part])[1]
        for part in (slice(0, 4), slice(4, 8))
    ]
    for rank in range(2):
        for found, a, b in zip(torch.load(tmp_path / f"{rank}.pt"), *parts, strict=True):
            torch.testing.assert_close(found, (a + b) / 2, rtol=1e-9, atol=1e-12)
