import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pruning.examples.diagnostics import (
    diagnose,
    example_gradients,
    rank_correlation,
    single_draw_variance,
    variance,
)
from pruning.examples.inclusion import inclusion_probabilities
from pruning.examples.policies import make_policy
from pruning.examples.sampling import draw
from pruning.examples.scores import SCORES, ExampleScorer
from pruning.examples.summary import effective_sample_size, summarise
from snn.coding import direct
from snn.models import build
from tests.pruning.examples.oracles import batch, conv_tail, convnet, losses, mlp, norms_by_loop


@pytest.mark.parametrize("make", [mlp, convnet, conv_tail, lambda: mlp(learn_beta=True)])
@pytest.mark.parametrize("loss", ["rate_ce", "tet"])
def test_exact_norms(make, loss):
    net = make().train()
    x, y = batch(net)
    norms, norm_of_mean = example_gradients(net, x, y, loss=loss, label_smoothing=0.1)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    parameters = list(net.parameters())
    np.testing.assert_allclose(norms, norms_by_loop(net, x, y, parameters, loss, 0.1), rtol=1e-7)
    grads = torch.autograd.grad(losses(net, x, y, loss, 0.1).mean(), parameters)
    np.testing.assert_allclose(norm_of_mean, sum(float(g.square().sum()) for g in grads) ** 0.5, rtol=1e-7)


def test_variance_by_enumeration_of_all_subsets():
    """Independent draws of 6 examples: all 64 subsets with their probabilities."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(6, 3))
    pi = rng.uniform(0.2, 1, 6)
    mean, second = np.zeros(3), 0.0
    for subset in range(64):
        inside = np.array([(subset >> i) & 1 for i in range(6)], bool)
        p = np.prod(np.where(inside, pi, 1 - pi))
        estimate = (inside / pi / 6) @ g
        mean += p * estimate
        second += p * (estimate @ estimate)
    np.testing.assert_allclose(mean, g.mean(0), rtol=1e-12)
    expected = second - mean @ mean
    assert variance(np.linalg.norm(g, axis=1), pi) == pytest.approx(expected, rel=1e-12)
    p = pi / pi.sum()
    draws = sum(p[i] * ((g[i] / p[i] / 6 - g.mean(0)) ** 2).sum() for i in range(6))
    norms = np.linalg.norm(g, axis=1)
    assert single_draw_variance(norms, float(np.linalg.norm(g.mean(0))), pi) == pytest.approx(
        draws, rel=1e-12
    )


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.floats(0.1, 0.9), st.integers(0, 99))
def test_no_scores_beat_the_oracle(norms, ratio, seed):
    norms = np.array(norms)
    scores = np.random.default_rng(seed).lognormal(size=len(norms))
    for alpha in (0.0, 0.1):
        d = diagnose(scores, norms, 0.0, ratio=ratio, alpha=alpha)
        if d.variance_to_oracle == d.variance_to_oracle:
            assert d.variance_to_oracle >= 1 - 1e-9
        assert d.single_draw_to_oracle >= 1 - 1e-9


def test_oracle_scores_are_optimal_and_scale_free():
    norms = np.random.default_rng(0).lognormal(size=200)
    d = diagnose(norms * 1024, norms, 0.3, ratio=0.5, alpha=0.0)
    assert d.variance_to_oracle == 1
    assert d.single_draw_to_oracle == pytest.approx(1)
    assert d.rank_correlation == pytest.approx(1)
    assert d.variance_to_uniform < 1
    flat = diagnose(np.ones(200), norms, 0.3, ratio=0.5, alpha=0.1)
    assert flat.variance_to_uniform == pytest.approx(1)
    assert np.isnan(flat.rank_correlation)


def test_rank_correlation():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 8, 27, 64])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # By hand, with a tie: ranks (1, 2.5, 2.5, 4) and (2, 1, 3, 4).
    got = rank_correlation(np.array([1.0, 5, 5, 9]), np.array([2.0, 1, 3, 4]))
    assert got == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [2, 1, 3, 4])[0, 1])


def test_effective_sample_size_and_plan_summary():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0, 0])) == pytest.approx(1)
    policy = make_policy("sadp", num_examples=100, ratio=0.5, seed=0, epochs=4)
    policy.observe(np.arange(100), np.r_[np.full(10, 1000.0), np.ones(90)], 1, "pass")
    plan = policy.plan(1)
    s = summarise(plan)
    assert s.examples == 50
    assert s.capped_share == pytest.approx(0.2)
    assert s.max_weight == pytest.approx(plan.weights.max())
    assert s.effective_share == pytest.approx(effective_sample_size(plan.weights) / 50)
    assert s.mean_weight == pytest.approx(1, abs=1e-3)
    assert (s.mean_score_age, s.replaced_scores) == (0, 0)
    full = summarise(policy.plan(0))
    assert (full.examples, full.effective_share, full.capped_share) == (100, pytest.approx(1), 1)


def test_refuses():
    with pytest.raises(ValueError, match="scores"):
        diagnose(np.ones(3), np.ones(4), 0.0, ratio=0.5, alpha=0.1)
    with pytest.raises(ValueError, match="scores"):
        diagnose(np.ones(0), np.ones(0), 0.0, ratio=0.5, alpha=0.1)


@pytest.fixture(scope="module")
def digits():
    sklearn = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn (extra demo)")
    data = sklearn.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32) / 8
    return direct(x, 4), torch.tensor(data.target)


@pytest.fixture(scope="module", params=["rate_ce", "tet"])
def trained(request, digits):
    torch.manual_seed(0)
    x, y = digits
    net = build("mlp", input_shape=(8, 8), num_classes=10, hidden=(128, 128))
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(4):
        for rows in torch.randperm(1200).split(50):
            optimiser.zero_grad()
            losses(net, x[:, rows], y[rows], request.param).mean().backward()
            optimiser.step()
    return net, request.param, x[:, 1200:1500], y[1200:1500]


def test_the_default_score_is_near_the_oracle_and_beats_its_rivals_on_digits(trained):
    net, loss, x, y = trained
    norms, norm_of_mean = example_gradients(net, x, y, loss=loss)
    scores = ExampleScorer(net, list(SCORES), loss=loss).score(x, y)
    found = {k: diagnose(v.numpy(), norms, norm_of_mean, ratio=0.5, alpha=0.1) for k, v in scores.items()}
    assert found["sadp"].single_draw_to_oracle < 1.06
    assert found["sadp"].rank_correlation > 0.98
    for rival in ("el2n", "loss", "margin", "entropy"):
        assert found["sadp"].single_draw_to_oracle < found[rival].single_draw_to_oracle
    assert found["sadp"].variance_to_uniform < 0.1


def test_bounds_hold_for_every_example_of_a_trained_network(trained):
    net, loss, x, y = trained
    x, y = x[:, :100], y[:100]
    norms = norms_by_loop(net, x, y, [s.layer.weight for s in net.synapses()[-2:]], loss)
    assert (ExampleScorer(net, loss=loss).score(x, y)["sadp"] >= norms * (1 - 1e-5)).all()


def test_weighted_subsets_have_the_full_gradient_on_average(trained):
    """Real gradients, the real draw, the loss as it is trained: mean over draws within its standard error."""
    net, loss, x, y = trained
    net.eval()
    x, y = x[:, :200], y[:200]
    score = ExampleScorer(net, loss=loss).score(x, y)["sadp"].numpy()
    pi = inclusion_probabilities(score, 80, alpha=0.1)
    parameters = [net.synapses()[-1].layer.weight, net.synapses()[-2].layer.weight]
    value = losses(net, x, y, loss)

    def gradient(weighted):
        grads = torch.autograd.grad(weighted, parameters, retain_graph=True)
        flat = torch.cat([F.adaptive_avg_pool1d(g.reshape(1, 1, -1), 20).flatten() for g in grads])
        return flat.double().numpy()

    full = gradient(value.mean())
    estimates = []
    for epoch in range(150):
        subset = draw(pi, size=80, seed=0, epoch=epoch)
        estimates.append(gradient((value[subset.ids] * torch.tensor(subset.weights)).sum() / 80))
    error = (np.mean(estimates, 0) - full) / (np.std(estimates, 0) / np.sqrt(150))
    assert np.abs(error).max() < 4.5
    assert np.abs(full).max() > 0


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "vgg6", "sew_resnet18", "spikformer"])
def test_gradient_norms_are_those_of_torch_func(architecture):
    from torch.func import functional_call, grad, vmap

    from snn.models import build

    torch.manual_seed(0)
    net = build(architecture, input_shape=(3, 32, 32), num_classes=5).double()
    x_TB = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    y = torch.arange(4)
    net(x_TB)  # batch norm statistics that let spikes through
    net.eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, x_T, label):
        logits_TBK = functional_call(net, parameters, (x_T.unsqueeze(1),))
        return torch.nn.functional.cross_entropy(logits_TBK.mean(0), label.unsqueeze(0))

    grads = vmap(grad(loss), in_dims=(None, 1, 0))(parameters, x_TB, y)
    norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt().numpy()
    mean = sum(g.mean(0).square().sum() for g in grads.values()).sqrt()
    found, norm_of_mean = example_gradients(net, x_TB, y)
    assert found == pytest.approx(norms, rel=1e-10)
    assert norm_of_mean == pytest.approx(float(mean), rel=1e-10)
