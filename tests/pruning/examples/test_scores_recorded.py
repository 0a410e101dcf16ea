"""Scores beside a forward pass that somebody else runs, in any mode and precision."""

import copy

import pytest
import torch
from torch import nn

from pruning.examples import bound
from pruning.examples.scores import SCORES, ExampleScorer
from snn.losses import LOSSES
from snn.models import build
from snn.weighted_norm import weighted_statistics
from tests.pruning.examples.nets import NETS, sadp
from tests.pruning.examples.oracles import (
    batch,
    conv_tail,
    losses,
    mlp,
)


@pytest.mark.parametrize("name", NETS)
def test_recording_a_forward_pass_gives_the_same(name):
    net = NETS[name]().eval()
    x, y = batch(net)
    scorer = ExampleScorer(net, list(SCORES))
    with scorer.recording():
        logits = net(x)
    recorded = scorer.from_losses(LOSSES["rate_ce"](logits, y), logits, y)
    for key, value in scorer.score(x, y).items():
        torch.testing.assert_close(recorded[key], value, rtol=1e-6, atol=1e-7)


def test_recording_leaves_training_alone():
    plain, recorded = mlp().train(), mlp().train()
    x, y = batch(plain)
    losses(plain, x, y).sum().backward()
    scorer = ExampleScorer(recorded)
    with scorer.recording():
        logits = recorded(x)
    values = torch.nn.functional.cross_entropy(logits.mean(0), y, reduction="none")
    scores = scorer.from_losses(values, logits, y)["sadp"]
    assert (scores > 0).all()
    assert not scores.requires_grad
    values.sum().backward()
    for a, b in zip(plain.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recorded.modules())


def norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["mlp", "convnet", "conv tail, average pool"])
def test_scores_of_a_training_step_are_those_of_a_network_frozen_at_its_batch_statistics(name, weighted):
    """Slope and currents come from one set of statistics: the batch's, with the weights of the examples."""
    net = NETS[name]().train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = batch(net)
    weights = torch.linspace(0.3, 2.0, x.shape[1], dtype=torch.float64) if weighted else None
    frozen, seen = copy.deepcopy(net), []
    hooks = [m.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0])) for m in norms(net)]
    scorer = ExampleScorer(net)
    with weighted_statistics(weights), scorer.recording():
        logits = net(x)
    found = scorer.from_losses(LOSSES["rate_ce"](logits, y), logits, y, weights)["sadp"]
    for hook in hooks:
        hook.remove()
    for m, inputs in zip(norms(frozen), seen, strict=True):
        rows = inputs.detach().flatten(2) if inputs.ndim > 2 else inputs.detach()[..., None]  # [T*B, C, P]
        w = (torch.ones(len(y)) if weights is None else weights).repeat(len(rows) // len(y))[:, None, None]
        m.running_mean.copy_((w * rows).sum((0, 2)) / (w.sum() * rows.shape[2]))
        centred = rows - m.running_mean[:, None]
        m.running_var.copy_((w * centred**2).sum((0, 2)) / (w.sum() * rows.shape[2]))
    torch.testing.assert_close(found, ExampleScorer(frozen.eval()).score(x, y)["sadp"], rtol=1e-6, atol=1e-9)


def test_scores_beside_a_step_in_half_precision_are_taken_in_float32():
    net = build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(4,), hidden=(9,)).train()
    x, y = torch.rand(4, 16, 2, 8, 8), torch.randint(0, 4, (16,))
    found = []
    for inside in (True, False):
        scorer = ExampleScorer(copy.deepcopy(net))
        with torch.autocast("cpu", torch.bfloat16), scorer.recording():
            logits = scorer.model(x)
        values = LOSSES["rate_ce"](logits.float(), y)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(scorer.from_losses(values, logits, y)["sadp"])
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


def test_recording_through_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = mlp()
        wrapped = nn.parallel.DistributedDataParallel(net)
        x, y = batch(net)
        scorer = ExampleScorer(net)
        net.eval()
        with scorer.recording():
            logits = wrapped(x)
        got = scorer.from_losses(LOSSES["rate_ce"](logits, y), logits, y)["sadp"]
        torch.testing.assert_close(got, scorer.score(x, y)["sadp"])
    finally:
        torch.distributed.destroy_process_group()


def test_scoring_restores_the_mode_of_every_module_and_leaves_gradients_alone():
    net = conv_tail().train()
    net.features[0].eval()
    x, y = batch(net)
    before = [m.training for m in net.modules()]
    mean = net.features[2].norm.running_mean.clone()
    ExampleScorer(net).score(x, y)
    assert [m.training for m in net.modules()] == before
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    torch.testing.assert_close(net.features[2].norm.running_mean, mean, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mlp", "conv tail, average pool", "conv tail, max pool"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_score_in_float32(name, dtype):
    net = NETS[name]()
    x, y = batch(net)
    exact = sadp(net, x, y)
    half = sadp(net.to(dtype), x.to(dtype), y)
    assert torch.isfinite(half).all()
    assert torch.corrcoef(torch.stack([exact, half]))[0, 1] > 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_confident_examples_of_half_precision_networks_keep_their_scores(dtype):
    net = mlp()
    x, y = batch(net)
    head = net.synapses()[-1].layer
    with torch.no_grad():
        y = net.eval()(x).mean(0).argmax(1)
        head.weight.mul_(30)
    exact = ExampleScorer(net, ("sadp", "loss")).score(x, y)
    half = ExampleScorer(net.to(dtype), ("sadp", "loss")).score(x.to(dtype), y)
    for name in exact:
        assert (half[name] >= 0).all()
        assert torch.corrcoef(torch.stack([exact[name], half[name]]))[0, 1] > 0.9


def test_a_frozen_backbone_is_scored_all_the_same():
    net = mlp().eval()
    x, y = batch(net)
    expected = sadp(net, x, y)
    for parameter in net.features.parameters():
        parameter.requires_grad_(False)
    scorer = ExampleScorer(net)
    with scorer.recording():
        logits = net(x)
    losses = LOSSES["rate_ce"](logits, y)
    found = scorer.from_losses(losses, logits, y)["sadp"]
    torch.testing.assert_close(found, expected, check_dtype=False)
    losses.sum().backward()
    assert net.synapses()[-1].layer.weight.grad is not None


def test_refuses_what_was_not_recorded():
    net = mlp()
    x, y = batch(net)
    scorer = ExampleScorer(net)
    logits = net(x)
    with pytest.raises(ValueError, match="the network has not run"):
        scorer.from_losses(LOSSES["rate_ce"](logits, y), logits, y)
    with scorer.recording():
        net(x)
        logits = net(x)
    with pytest.raises(ValueError, match="loss: does not come from"):
        scorer.from_losses(LOSSES["rate_ce"](logits, y), logits, y)
    net.synapses()[1].norm.running_var = None
    with pytest.raises(ValueError, match="running statistics"):
        bound.norm_slope(net.synapses()[1].norm)
