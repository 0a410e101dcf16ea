"""Batch norm and neurons in one pass, against torch's batch norm and the unfused loop.

Triton's part runs in the interpreter, in the process that `test_kernels` starts.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from snn import kernels
from snn.coding import direct
from snn.kernels import eager
from snn.layers import SpikingLayer, driven
from snn.models import build
from snn.neurons import LIF, NeuronParameters, lif
from snn.surrogate import SURROGATES, Surrogate
from tests.snn.test_kernels import DEVICE, ENGINES, INTERPRETED, needs_cpu

CASES = st.fixed_dictionaries(
    {
        "reset": st.sampled_from(["hard", "soft"]),
        "detach": st.booleans(),
        "decay": st.booleans(),
        "surrogate": st.sampled_from(SURROGATES),
        "beta": st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.01, 0.99),
        "learned": st.booleans(),
        "theta": st.floats(0.3, 2.0),
        "T": st.integers(1, 16),
        "B": st.integers(1, 4),
        "C": st.integers(1, 6),
        "space": st.sampled_from([(), (1, 1), (2, 3), (4, 4), (5, 7)]),
        "layout": st.sampled_from(["contiguous", "channels_last", "strided"]),
        "grad_layout": st.sampled_from(["same", "contiguous", "expanded"]),
        "static": st.booleans(),
        "training": st.booleans(),
        "affine": st.booleans(),
        "mean": st.sampled_from([0.0, 0.5, -30.0]),
        "seed": st.integers(0, 2**31),
    }
)


def example(case, dtype):
    """(y, its norm, the neurons' constants, gradient of the spikes) of a case."""
    g = torch.Generator().manual_seed(case["seed"])
    T, B, C = case["T"], case["B"], case["C"]
    rows = B if case["static"] else T * B
    y = torch.randn(rows, C, *case["space"], generator=g, dtype=torch.float64) * 1.5 + case["mean"]
    y = y.to(DEVICE, dtype)
    if case["layout"] == "strided":
        y = torch.stack([y, y], -1)[..., 0]
    elif case["layout"] == "channels_last" and y.ndim == 4:
        y = y.to(memory_format=torch.channels_last)
    norm = (nn.BatchNorm2d if y.ndim == 4 else nn.BatchNorm1d)(C, affine=case["affine"]).to(DEVICE)
    norm.running_mean.copy_(torch.randn(C, generator=g) + case["mean"])
    norm.running_var.copy_(torch.rand(C, generator=g) + 0.5)
    if case["affine"]:
        with torch.no_grad():
            norm.weight.copy_(torch.rand(C, generator=g) * 2 + 0.2)
            norm.bias.copy_(torch.randn(C, generator=g) * 0.5)
    p = NeuronParameters(
        beta=case["beta"],
        theta=case["theta"],
        reset=case["reset"],
        detach_reset=case["detach"],
        decay_input=case["decay"] and case["beta"] < 1,
        surrogate=Surrogate(case["surrogate"]),
    )
    grad = torch.randn(T * B, C, *case["space"], generator=g, dtype=torch.float64).to(DEVICE, dtype)
    if case["grad_layout"] == "expanded":
        grad = grad[:1].expand_as(grad)
    elif case["grad_layout"] == "same" and y.ndim == 4 and case["layout"] == "channels_last":
        grad = grad.to(memory_format=torch.channels_last)
    return y, norm.train(case["training"]), p, grad.unflatten(0, (T, B))


def gradients(spikes, y, norm, beta, grad):
    inputs = {"y": y, **dict(norm.named_parameters())}
    if beta is not None:
        inputs["beta"] = beta
    return dict(zip(inputs, torch.autograd.grad(spikes, list(inputs.values()), grad), strict=True))


@pytest.mark.parametrize(("engine", "dtype"), ENGINES)
@settings(
    deadline=None, max_examples=20 if INTERPRETED else 100, suppress_health_check=[HealthCheck.too_slow]
)
@given(case=CASES)
def test_spikes_gradients_and_statistics_are_those_of_the_two_modules_in_float64(engine, dtype, case):
    y, norm, p, grad = example(case, dtype)
    T, static = case["T"], case["static"]
    if dtype == torch.float64:
        norm = norm.double()
    assume(y.numel() > y.shape[1])
    y.requires_grad_()
    beta = torch.tensor(case["beta"], dtype=norm.running_mean.dtype, device=DEVICE, requires_grad=True)
    beta = beta if case["learned"] else None
    before = copy.deepcopy(norm)
    other, exact = copy.deepcopy(norm).double(), y.detach().double().requires_grad_()
    exact_beta = beta.detach().double().requires_grad_() if case["learned"] else None

    x = other(exact)
    x = x.expand(T, *x.shape) if static else x.unflatten(0, (T, -1))
    wanted = lif(x, p, beta=exact_beta, engine="eager")[0]
    with torch.no_grad():
        potentials = eager.potentials(x, None, p, exact_beta)
    # Rounding may move a potential across the threshold; then everything after it differs.
    assume(dtype == torch.float64 or (potentials - p.theta).abs().min() > 3e-5 * (1 + abs(case["mean"])))
    spikes = kernels.norm_lif(y, T, static, norm, p, beta=beta, engine=engine)

    assert spikes.dtype == dtype
    assert torch.equal(spikes.double(), wanted)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 2e-2)
    tolerance *= 1 + abs(case["mean"])  # the values that are centred carry this much more rounding
    for name, buffer in norm.named_buffers():
        found, right = buffer.double(), dict(other.named_buffers())[name].double()
        assert (found - right).abs().max() <= tolerance * (1 + right.abs().max()), name
    found = gradients(spikes, y, norm, beta, grad)
    incoming = grad.double().norm()
    var = exact.detach().var([0, *range(2, y.ndim)], correction=0) if case["training"] else other.running_var
    scale = (var + norm.eps).rsqrt() * (other.weight.detach() if case["affine"] else 1)
    # Where a long product of surrogates amplifies rounding, the two modules in float32 show by how much.
    plain = {}
    if dtype == torch.float32:
        twin = copy.deepcopy(before)
        x = twin(y)
        x = x.expand(T, *x.shape) if static else x.unflatten(0, (T, -1))
        plain = gradients(lif(x, p, beta=beta, engine="eager")[0], y, twin, beta, grad)
    for name, right in gradients(wanted, exact, other, exact_beta, grad.double()).items():
        allowed = tolerance if name != "beta" or dtype == torch.float64 else max(tolerance, 1e-3)
        # Terms may cancel: what is left has the rounding of the terms, here of g scale, g xhat, or g.
        terms = incoming * {"y": float(scale.abs().max()), "weight": 3.0}.get(name, 1.0)
        error = (found[name].double() - right).norm()
        limit = allowed * max(right.norm(), 0.1 * terms)
        if name in plain:
            limit = max(limit, 5 * (plain[name].double() - right).norm())
        assert error <= limit, (name, error, right.norm())


@needs_cpu
@pytest.mark.skipif(INTERPRETED, reason="the CPU engine's")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=60)
@given(case=CASES)
def test_spikes_are_bit_equal_to_an_unfused_loop_on_the_same_normalised_values(dtype, case):
    y, norm, p, _ = example(case, dtype)
    T, static = case["T"], case["static"]
    assume(y.numel() > y.shape[1])
    norm = norm.to(dtype)
    with torch.no_grad():
        norm.momentum = 1.0  # leaves this batch's statistics behind
        spikes = kernels.norm_lif(y, T, static, norm, p, engine="cpu")
        if case["training"]:
            dims = [0, *range(2, y.ndim)]
            y64 = y.double()
            var, mean = torch.var_mean(y64, dims, correction=0)
        else:
            var, mean = norm.running_var.double(), norm.running_mean.double()
        a = (var + norm.eps).rsqrt() * (norm.weight.double() if case["affine"] else 1)
        shift = (norm.bias.double() if case["affine"] else 0) - mean * a
        across = [-1, *[1] * (y.ndim - 2)]
        x = y * a.to(dtype).view(across) + shift.to(dtype).view(across)
        x = x.expand(T, *x.shape) if static else x.unflatten(0, (T, -1))
        potentials = eager.potentials(x, None, p)
        wanted = lif(x, p, engine="eager")[0]
    if dtype == torch.float32 and case["training"]:
        # the batch's statistics are summed in another order than var_mean's: the last bit of scale may differ
        assume((potentials - p.theta).abs().min() > 3e-6 * (1 + abs(case["mean"])))
    assert torch.equal(spikes, wanted)


@needs_cpu
@pytest.mark.parametrize("shape", [(3, 2, 3, 40, 41), (4, 6, 1500), (2, 3, 70, 4, 4), (2, 2, 1300, 2, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_planes_and_channels_larger_than_a_block(shape, channels_last, static):
    torch.manual_seed(0)
    T, B, C = shape[:3]
    y = torch.randn(B if static else T * B, *shape[2:], dtype=torch.float64)
    if channels_last and y.ndim == 4:
        y = y.to(memory_format=torch.channels_last)
    norm = (nn.BatchNorm2d if y.ndim == 4 else nn.BatchNorm1d)(C).double()
    nn.init.uniform_(norm.weight, 0.5, 2)
    neuron, other, grad = LIF(), copy.deepcopy(norm), torch.randn(shape, dtype=torch.float64)
    y.requires_grad_()
    spikes = neuron.behind_norm(norm, y, T, static)
    x = other(y)
    wanted = neuron(x.expand(T, *x.shape) if static else x.unflatten(0, (T, B)))
    assert torch.equal(spikes, wanted)
    found = gradients(spikes, y, norm, None, grad)
    for name, right in gradients(wanted, y, other, None, grad).items():
        torch.testing.assert_close(found[name], right, rtol=1e-9, atol=1e-10)


@needs_cpu
def test_variance_survives_a_mean_that_dwarfs_it():
    torch.manual_seed(0)
    for y in (torch.randn(64, 3, 8, 8) + 5000, torch.randn(4096, 3) + 5000):
        norm = (nn.BatchNorm2d if y.ndim == 4 else nn.BatchNorm1d)(3, momentum=1.0)
        LIF().behind_norm(norm, y, 2, False)
        var, mean = torch.var_mean(y.double().transpose(0, 1).flatten(1), 1)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-6, atol=0)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-7, atol=0)


@needs_cpu
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}, {"affine": False}]
)
def test_state_moves_as_in_torch_over_training_and_evaluation(options):
    torch.manual_seed(0)
    norm, neuron = nn.BatchNorm2d(3, **options).double(), LIF()
    other = copy.deepcopy(norm)
    for training in (True, True, False, True):
        norm.train(training), other.train(training)
        y = torch.randn(6, 3, 4, 4, dtype=torch.float64)
        spikes = neuron.behind_norm(norm, y, 2, False)
        assert torch.equal(spikes, neuron(other(y).unflatten(0, (2, 3))))
        assert list(norm.state_dict()) == list(other.state_dict())
        for found, wanted in zip(norm.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@needs_cpu
def test_the_weight_layers_output_alone_is_kept_for_backward_and_nothing_without_gradients():
    layer, kept = SpikingLayer(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), LIF()), []
    x = torch.rand(4, 5, 2, 9, 9)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
        large = [t.numel() for t in kept if t.numel() >= x.numel()]
        assert sorted(large) == sorted([x.numel(), 4 * 5 * 8 * 7 * 7])  # the convolution's input and output
        kept.clear()
        with torch.no_grad():
            layer(x)
    assert kept == []


@needs_cpu
def test_any_number_of_threads_gives_the_same_bits():
    torch.manual_seed(0)
    y = torch.randn(8, 40, 90, 90)
    before, results = torch.get_num_threads(), []
    try:
        for form in (torch.contiguous_format, torch.channels_last):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                norm, leaf = nn.BatchNorm2d(40), y.to(memory_format=form).requires_grad_()
                spikes = LIF(NeuronParameters(reset="soft")).behind_norm(norm, leaf, 4, False)
                found = gradients(spikes, leaf, norm, None, torch.ones_like(spikes).cumsum(-1))
                results.append([spikes, norm.running_mean, norm.running_var, *found.values()])
    finally:
        torch.set_num_threads(before)
    for one, three in (results[:2], results[2:]):
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@needs_cpu
@pytest.mark.parametrize("shape", [(16, 160, 32, 4, 4), (4, 170, 100, 4, 4), (16, 1100, 70)])
@pytest.mark.parametrize("fused", [True, False])
def test_rows_that_share_a_tile_and_learned_leaks_add_up_the_same_with_any_number_of_threads(shape, fused):
    torch.manual_seed(0)
    T, B = shape[:2]
    y, before, results = torch.randn(T * B, *shape[2:]), torch.get_num_threads(), []
    grad = torch.randn(shape)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            norm, leaf = (nn.BatchNorm2d if y.ndim == 4 else nn.BatchNorm1d)(shape[2]), y.clone()
            beta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
            leaf.requires_grad_()
            p, engine = NeuronParameters(), "cpu"
            if fused:
                spikes = kernels.norm_lif(leaf, T, False, norm, p, beta=beta, engine=engine)
                found = gradients(spikes, leaf, norm, beta, grad)
                results.append([spikes, norm.running_mean, norm.running_var, *found.values()])
            else:
                wide = leaf.double().unflatten(0, (T, B))
                spikes = lif(wide, p, beta=beta, engine=engine)[0]
                results.append([spikes, *torch.autograd.grad(spikes, [beta], grad.double())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_cpu
@pytest.mark.parametrize("space", [(), (2, 2)])
def test_sums_over_many_timesteps_are_as_exact_as_over_few(space):
    """Gradients of 0.1 added up in float32 alone would drift: at most 256 values are."""
    T, C = 1024, 8
    y = torch.full((T, C, *space), 5.0)
    y[::2] = -5.0
    norm = (nn.BatchNorm2d if space else nn.BatchNorm1d)(C)
    p = NeuronParameters(beta=0.0, surrogate=Surrogate("triangle", 0.1))
    leaf = y.requires_grad_()
    spikes = kernels.norm_lif(leaf, T, False, norm, p, engine="cpu")
    found = gradients(spikes, leaf, norm, None, torch.full_like(spikes, 0.1))
    exact, twin = y.detach().double().requires_grad_(), nn.BatchNorm2d(C) if space else nn.BatchNorm1d(C)
    x = twin.double()(exact)
    wanted = gradients(
        lif(x.unflatten(0, (T, 1)), p, engine="eager")[0],
        exact,
        twin,
        None,
        torch.full_like(spikes, 0.1).double(),
    )
    torch.testing.assert_close(found["bias"].double(), wanted["bias"], rtol=1e-6, atol=0)


@needs_cpu
def test_the_scale_of_running_statistics_is_rounded_once():
    """Potentials are exactly at the threshold; a scale that rounding twice lowers would keep them below."""
    C = 4096
    g = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm1d(C).eval()
    with torch.no_grad():
        norm.running_var.copy_(torch.rand(C, generator=g) * 0.5 + 0.75)
        norm.weight.copy_(torch.rand(C, generator=g) * 0.4 + 0.8)
        a = (norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()).float()
        norm.bias.copy_(1 - a)  # exact, as `a` is within a factor of 2 of 1
        spikes = kernels.norm_lif(torch.ones(2, C), 1, False, norm, NeuronParameters(theta=1.0), engine="cpu")
    assert spikes.all()


class TestWhoIsCalled:
    """Modules that somebody watches or replaces run by themselves."""

    @pytest.fixture
    def layer(self):
        torch.manual_seed(0)
        return SpikingLayer(nn.Linear(3, 4), nn.BatchNorm1d(4), LIF())

    @pytest.fixture
    def count(self, monkeypatch):
        calls = []
        real = kernels.norm_lif
        monkeypatch.setattr(kernels, "norm_lif", lambda *a, **k: calls.append(1) or real(*a, **k))
        return calls

    @needs_cpu
    def test_one_pass_unless_watched(self, layer, count):
        x, seen = torch.rand(2, 5, 3), []
        wanted = layer(x)
        assert count == [1]
        for module in (layer.norm, layer.neuron):
            for register, hook in (
                (module.register_forward_hook, lambda m, a, o: seen.append(a[0])),
                (module.register_forward_pre_hook, lambda m, a: seen.append(a[0])),
                (module.register_full_backward_hook, lambda m, i, o: None),
            ):
                handle = register(hook)
                torch.testing.assert_close(layer(x), wanted)
                handle.remove()
        assert len(seen) == 4
        assert count == [1]
        layer(x)
        assert count == [1, 1]

    @needs_cpu
    def test_a_forward_of_the_instance_and_global_hooks_are_called(self, layer, count):
        x, seen = torch.rand(2, 5, 3), []
        layer.norm.forward = lambda y: seen.append(1) or y
        layer(x)
        assert seen == [1]
        del layer.norm.forward
        handle = nn.modules.module.register_module_forward_hook(lambda m, a, o: seen.append(m))
        try:
            layer(x)
        finally:
            handle.remove()
        assert {layer.norm, layer.neuron} <= set(seen[1:])
        assert count == []

    @pytest.mark.parametrize(
        "norm", [nn.SyncBatchNorm(4), nn.LayerNorm(4), type("Own", (nn.BatchNorm1d,), {})(4)]
    )
    def test_other_norms_run_by_themselves(self, norm):
        x = torch.rand(2, 5, 4)
        if isinstance(norm, nn.SyncBatchNorm):
            norm.eval()
        neuron = LIF()
        assert torch.equal(
            driven(nn.Identity(), norm, neuron, x), neuron(norm(x.flatten(0, 1)).view(2, 5, 4))
        )

    def test_eager_is_the_two_modules(self, layer, monkeypatch):
        monkeypatch.setenv("SPIKEPRUNE_ENGINE", "eager")
        assert layer.neuron.behind_norm(layer.norm, torch.rand(4, 4), 2, False) is None
        assert layer(torch.rand(2, 5, 3)).shape == (2, 5, 4)

    def test_one_value_per_channel_is_torchs_error(self, layer):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            layer(torch.rand(1, 1, 3))

    def test_half_precision_on_a_cpu_runs_unfused(self, layer):
        assert layer.bfloat16()(torch.rand(2, 5, 3).bfloat16()).dtype == torch.bfloat16


@needs_cpu
@pytest.mark.parametrize("name", ["mlp", "vgg6", "sew_resnet18", "ms_resnet18", "spikformer"])
@pytest.mark.parametrize("static", [True, False])
def test_whole_networks_in_float64_are_the_same_with_either_engine(name, static, monkeypatch):
    torch.manual_seed(0)
    model = build(name, input_shape=(2, 8, 8), num_classes=3, neuron=NeuronParameters(beta=0.75)).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.uniform_(m.bias, 0, 0.5)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    x_TB = direct(x, 3) if static else direct(x, 3) * torch.arange(1, 4).view(3, 1, 1, 1, 1)
    results = []
    for engine in ("eager", "cpu"):
        monkeypatch.setenv("SPIKEPRUNE_ENGINE", engine)
        net = copy.deepcopy(model)
        logits = net(x_TB)
        grads = torch.autograd.grad(logits.square().mean(), list(net.parameters()))
        results.append([logits, *grads, *net.buffers(), net.eval()(x_TB)])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert results[0][0].abs().sum() > 0
