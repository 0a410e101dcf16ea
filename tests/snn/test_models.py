"""Architectures: shapes, parameter counts, and which neurons each weight layer feeds."""

import copy

import pytest
import torch
from torch import nn

from snn.activity import measure
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.layers import folded, is_static
from snn.losses import rate_cross_entropy
from snn.models import MODELS, SpikingNetwork, build
from snn.neurons import LIF, NeuronParameters

SMALL = {  # options that make every architecture quick on a 16x16 input
    "mlp": {"hidden": (12, 8)},
    "convnet": {"channels": (4, 6), "hidden": (8,)},
    "vgg11": {"hidden": (16,)},
    "spikformer": {"dim": 32, "depth": 2, "heads": 4},
}
NEURON = NeuronParameters(theta=0.5)
DEEP = ("sew_resnet34", "sew_resnet50", "ms_resnet34")
each_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in MODELS]
)


def small(name, **arguments):
    torch.manual_seed(0)
    size = 32 if name in ("vgg11", "vgg16") else 16
    shape = (2, size, size)
    model = build(
        name, input_shape=shape, num_classes=5, **{"neuron": NEURON, **SMALL.get(name, {}), **arguments}
    )
    return model, shape


def parameters(name, shape, K, **options):
    with torch.device("meta"):
        model = build(name, input_shape=shape, num_classes=K, **options)
    return sum(p.numel() for p in model.parameters())


@each_model
def test_logits_for_static_images_and_for_event_frames(name):
    model, shape = small(name)
    for x_TB in (direct(torch.rand(2, *shape), 3), torch.rand(3, 2, *shape).round()):
        logits = model(x_TB)
        assert logits.shape == (3, 2, 5)
        assert logits.isfinite().all()


@each_model
def test_a_static_input_equals_its_copies(name):
    """Float64, eval: norm statistics of T equal copies would differ in the unbiased factor alone."""
    model, shape = small(name)
    model.double().eval()
    x_TB = direct(torch.rand(2, *shape, dtype=torch.float64), 3)
    copies = x_TB.contiguous()
    assert is_static(x_TB)
    assert not is_static(copies)
    assert torch.allclose(model(x_TB), model(copies), atol=1e-10)


@each_model
def test_all_parameters_are_trained(name):
    model, shape = small(name, neuron=NeuronParameters(theta=0.3, learn_beta=True))
    model(direct(torch.rand(4, *shape), 4)).square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@each_model
def test_synapses_name_every_weight_layer_once_and_the_first_neurons_it_feeds(name):
    """Independent of the models' code: which neurons' input has a gradient to the layer's weight."""
    model, shape = small(name)
    layers, currents = [], []
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda m, a, k=key: layers.append(k))
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, a, o: currents.append((m, a[0])))
    logits = model(direct(torch.rand(2, *shape), 2))
    synapses = model.synapses()
    assert sorted(s.name for s in synapses) == sorted(layers)
    assert len({s.name for s in synapses}) == len(synapses)
    assert all(model.get_submodule(s.name) is s.layer for s in synapses)
    weights = [s.layer.weight for s in synapses]
    feeds = {}
    for neuron, current in currents:
        grads = torch.autograd.grad(current.sum(), weights, retain_graph=True, allow_unused=True)
        for s, g in zip(synapses, grads, strict=True):
            if g is not None:
                feeds.setdefault(s.name, neuron)
    for s in synapses[:-1]:
        assert feeds[s.name] is s.neuron, s.name
    assert synapses[-1].neuron is None
    assert synapses[-1].layer is model.readout[-1]
    assert synapses[-1].name not in feeds
    assert logits.requires_grad


@each_model
def test_norm_of_a_layer_is_what_takes_its_output(name):
    model, shape = small(name)
    outputs, inputs = {}, {}
    for s in model.synapses():
        s.layer.register_forward_hook(lambda m, a, o, k=s.name: outputs.__setitem__(k, o))
        if s.norm is not None:
            s.norm.register_forward_pre_hook(lambda m, a, k=s.name: inputs.__setitem__(k, a[0]))
    model(direct(torch.rand(2, *shape), 2))
    for s in model.synapses():
        if s.norm is not None:
            assert inputs[s.name] is outputs[s.name]
        else:
            assert s.neuron is None or s.layer.bias is not None


@each_model
def test_readout_takes_the_features_of_one_timestep(name):
    model, shape = small(name)
    model.eval()
    x_TB = direct(torch.rand(2, *shape), 3)
    spikes = model.features(x_TB)
    assert torch.allclose(folded(model.readout, spikes), model(x_TB))
    assert isinstance(model.readout[-1], nn.Linear)
    assert isinstance(model, SpikingNetwork)


@pytest.mark.parametrize("name", ["vgg6", "sew_resnet18", "ms_resnet18", "spikformer"])
def test_channels_last_is_a_switch_that_changes_no_value(name):
    model, shape = small(name)
    model.double().eval()
    model.channels_last = False
    x_B = torch.rand(2, *shape, dtype=torch.float64)
    wanted = model(direct(x_B, 2))
    model.to(memory_format=torch.channels_last)
    layouts = []
    for m in model.modules():
        if isinstance(m, LIF):
            m.register_forward_hook(lambda m, a, o: layouts.append(o.flatten(0, 1)))
    found = model(direct(x_B.to(memory_format=torch.channels_last), 2))
    assert torch.allclose(found, wanted, atol=1e-10)
    assert layouts[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("static", [True, False])
def test_a_model_can_run_images_in_channels_last_by_itself(static):
    model, shape = small("vgg6")
    assert model.channels_last
    x_TB = direct(torch.rand(2, *shape), 3) if static else torch.rand(3, 2, *shape)
    layouts = []
    for m in model.modules():
        if isinstance(m, LIF):
            m.register_forward_hook(lambda m, a, o: layouts.append(o.flatten(0, 1)))
    model(x_TB).sum().backward()
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in layouts)
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "vgg6",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("sew_resnet18", "ms_resnet18", "spikformer")),
    ],
)
def test_torch_compiles_a_network_whole(name):
    """No graph breaks; the same logits, gradients and running statistics."""
    net, shape = small(name)
    net, found = net.double(), []
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for run in (lambda n: n, lambda n: torch.compile(n, backend="aot_eager", fullgraph=True)):
        mine = copy.deepcopy(net)
        logits = run(mine)(direct(x, 3))
        rate_cross_entropy(logits, torch.arange(3)).mean().backward()
        found.append([logits.detach(), *(p.grad for p in mine.parameters()), *mine.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()


@each_model
def test_neurons_fire(name):
    model, shape = small(name)
    x_TB = direct(torch.rand(8, *shape), 4)
    reestimate(model, [x_TB])
    activity = measure(model, [x_TB])
    assert activity.layers[0].firing_rate > 0
    assert activity.layers[-1].input_rate > 0


class TestParameterCounts:
    @pytest.mark.parametrize(
        ("name", "published"),
        [("sew_resnet18", 11_689_512), ("sew_resnet34", 21_797_672), ("sew_resnet50", 25_557_032)],
    )
    def test_sew_resnet_has_those_of_resnet(self, name, published):
        assert parameters(name, (3, 224, 224), 1000) == published

    @pytest.mark.parametrize(("name", "millions"), [("ms_resnet18", 11.69), ("ms_resnet34", 21.80)])
    def test_ms_resnet_as_published(self, name, millions):
        assert round(parameters(name, (3, 224, 224), 1000) / 1e6, 2) == millions

    @pytest.mark.parametrize(
        ("name", "with_conv_biases", "biases"),
        [("vgg11", 9_231_114, 64 + 128 + 2 * 256 + 4 * 512), ("vgg16", 14_728_266, 4224)],
    )
    def test_vgg_on_cifar_less_the_biases_that_batch_norm_makes_redundant(
        self, name, with_conv_biases, biases
    ):
        assert parameters(name, (3, 32, 32), 10) == with_conv_biases - biases

    def test_vgg16_in_the_imagenet_form(self):
        ours = parameters("vgg16", (3, 224, 224), 1000, hidden=(4096, 4096), grid=7)
        # vgg16_bn has 138,365,992; ours trades biases (4224 + 8192) for two norms of 4096 (scale, shift)
        assert ours == 138_365_992 - 4224 - 8192 + 4 * 4096

    def test_vgg6_of_the_speed_benchmark(self):
        assert parameters("vgg6", (3, 32, 32), 10) == 1_310_154

    @pytest.mark.parametrize(("dim", "depth", "published"), [(256, 4, 4.15), (384, 2, 5.76), (384, 4, 9.32)])
    def test_spikformer_on_cifar_with_the_biases_it_leaves_out(self, dim, depth, published):
        ours = parameters("spikformer", (3, 32, 32), 10, dim=dim, depth=depth)
        biases = depth * (4 + 4 + 1) * dim
        assert int((ours + biases) / 1e4) / 100 == published


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("mlp", "convnet")])
def test_image_models_build_for_every_input(name, size):
    with torch.device("meta"):
        for channels in (2, 3):
            model = build(name, input_shape=(channels, size, size), num_classes=10)
            assert model(torch.zeros(2, 2, channels, size, size)).shape == (2, 2, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg7", {}, "model: 'vgg7' is unknown; choose one of mlp, convnet, vgg6"),
        ("vgg6", {"input_shape": (3, 32)}, r"input_shape: \(3, 32\) must be \(C, H, W\)"),
        ("vgg16", {"input_shape": (3, 16, 16)}, "must be at least 32 x 32"),
        ("vgg6", {"pooling": "median"}, "pooling: 'median' is unknown; choose avg or max"),
        ("vgg6", {"grid": 0}, "grid: 0 must be at least 1"),
        ("sew_resnet18", {"stem": "huge"}, "stem: 'huge' is unknown; choose auto, small or large"),
        ("ms_resnet18", {"input_shape": (3, 4, 4)}, "must be at least 8 x 8"),
        ("sew_resnet18", {"width": 0}, "width: 0 is not possible"),
        ("spikformer", {"dim": 20}, "dim: 20 must be a positive multiple of 8 and of heads"),
        ("spikformer", {"patch": 8}, "patch: 8 is unknown; choose 4 or 16"),
        ("spikformer", {"depth": 0}, "depth, mlp_ratio: 0, 4 must be at least 1"),
        ("mlp", {"hidden": ()}, "hidden: needs at least one width"),
    ],
)
def test_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{"input_shape": (3, 32, 32), "num_classes": 10, **arguments})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2, 3, 16, 16), r"input: shape \(4, 2, 3, 16, 16\)"),
        ((2, 16, 16), r"input: shape \(2, 16, 16\)"),
        ((0, 2, 2, 16, 16), "at least one timestep"),
    ],
)
@each_model
def test_an_input_of_another_shape_is_refused(name, shape, message):
    model, (_, H, _) = small(name)
    shape = tuple(H if n == 16 else n for n in shape)
    message = message.replace("16, 16", f"{H}, {H}")
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))
