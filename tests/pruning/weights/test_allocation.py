"""Allocation against an independent LAMP, and its stated properties."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pruning.weights.allocation import allocate
from pruning.weights.calibration import calibrate
from pruning.weights.criteria import CRITERIA, LayerRule
from pruning.weights.masks import Masks
from snn.batchnorm import reestimate
from snn.coding import direct
from snn.models import build
from tests.pruning.weights.weight_problems import (
    Weights,
    calibration_of,
    coefficient,
    relaxed,
    rows,
)


def lamp_reference(model, pruned: int) -> list[np.ndarray]:
    """Lee et al.'s rule, written from its definition: score w^2 / sum of the not smaller ones' squares."""
    scored = []
    for i, s in enumerate(model.synapses()):
        w2 = np.abs(s.layer.weight.detach().double().numpy().ravel()).tolist()
        w2 = [w * w for w in w2]
        order = sorted(range(len(w2)), key=lambda j: (w2[j], j))
        suffix = 0.0
        for k, j in reversed(list(enumerate(order))):
            suffix += w2[j]
            scored.append((w2[j] / suffix if suffix else 0.0, i, k, j))
    scored.sort()
    masks = [np.ones(s.layer.weight.numel(), dtype=bool) for s in model.synapses()]
    for _, i, _, j in scored[:pruned]:
        masks[i][j] = False
    return masks


@relaxed
@given(rows, st.floats(0, 0.99))
def test_lamp_equals_its_rule(values, sparsity):
    model = Weights(values)
    N = sum(map(len, values))
    assume(round(sparsity * N) <= N - len(values))
    got = allocate(model, criterion="lamp", sparsity=sparsity).masks
    expected = lamp_reference(model, round(sparsity * N))
    # The score of weights that tie up to rounding may differ in the last bit between two statements.
    for s, mask in zip(model.synapses(), expected, strict=True):
        assert got[s.name].numpy().ravel().tolist() == mask.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_slamp_at_one_timestep_is_lamp(seed):
    torch.manual_seed(seed)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(6, 8), hidden=(20,))
    if seed % 2:  # heavy tails
        for s in model.synapses():
            s.layer.weight.data.pow_(3).mul_(10 ** float(torch.randn(())))
    x = torch.rand(1, 16, 2, 8, 8) * 4
    reestimate(model, [x])
    calibration = calibrate(model, [x])
    N = sum(s.layer.weight.numel() for s in model.synapses())
    for sparsity in (0.3, 0.8, 0.95, 0.99):
        lamp = lamp_reference(model, round(sparsity * N))
        for criterion in ("slamp", "slamp_curve"):
            allocation = allocate(model, calibration, criterion=criterion, sparsity=sparsity)
            assert [layer.coefficient for layer in allocation.layers] == [1.0] * 4
            for s, mask in zip(model.synapses(), lamp, strict=True):
                assert np.array_equal(allocation.masks[s.name].numpy().ravel(), mask)


def test_a_share_of_the_synops_asks_for_that_objective():
    """Unpriced, the order reaches such a target by emptying the layers that cost least."""
    model = Weights([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    calibration = calibration_of(model, price=[10.0, 1.0])
    by_default = allocate(model, calibration, synops_fraction=0.5)
    assert by_default.objective == "synops"
    assert by_default.masks == allocate(model, calibration, objective="synops", synops_fraction=0.5).masks
    assert by_default.layers[1].density > by_default.layers[0].density
    assert allocate(model, calibration, sparsity=0.5).objective == "weights"
    chosen = allocate(model, calibration, objective="weights", synops_fraction=0.5)
    assert chosen.objective == "weights"


@relaxed
@given(rows, st.sampled_from(sorted(CRITERIA)), st.sampled_from(["weights", "synops"]), st.data())
def test_larger_targets_prune_supersets(values, criterion, objective, data):
    model = Weights(values)
    c = data.draw(st.lists(coefficient, min_size=len(values), max_size=len(values)))
    price = data.draw(st.lists(coefficient, min_size=len(values), max_size=len(values)))
    calibration = calibration_of(model, c=c, price=price)
    N = sum(map(len, values))
    before = Masks.of(model)
    for pruned in range(N - len(values) + 1):
        masks = allocate(
            model, calibration, criterion=criterion, objective=objective, sparsity=pruned / N
        ).masks
        assert masks & before == masks
        assert sum(int((~m).sum()) for m in masks.values()) == pruned
        before = masks


@relaxed
@given(
    rows,
    # Curves are over the survivors of a round, which calibrates again.
    st.sampled_from(sorted(set(CRITERIA) - {"slamp_curve"})),
    st.lists(coefficient, min_size=4, max_size=4),
    st.integers(1, 3),
    st.data(),
)
def test_two_rounds_are_one(values, criterion, c, min_keep, data):
    model = Weights(values)
    c, N = c[: len(values)], sum(map(len, values))
    room = sum(max(0, len(row) - min_keep) for row in values)
    assume(room >= 2)
    calibration = calibration_of(model, c=c)
    first = data.draw(st.integers(1, room - 1))
    second = data.draw(st.integers(first + 1, room))
    arguments = {"criterion": criterion, "min_keep": min_keep}
    one = allocate(model, calibration, sparsity=first / N, **arguments)
    two = allocate(model, calibration, sparsity=second / N, previous=one.masks, **arguments)
    at_once = allocate(model, calibration, sparsity=second / N, **arguments)
    assert two.masks == at_once.masks
    assert one.budget + two.budget == pytest.approx(at_once.budget, rel=1e-9, abs=1e-12)


def test_shares_hold_in_rounds():
    model = Weights([list(np.linspace(0.1, 1, n)) for n in (200, 600)])

    def two_to_one(synapses, calibration, objective):
        return [
            LayerRule(key=lambda s=s: s.layer.weight.detach().abs().flatten(), score="share", share=share)
            for s, share in zip(synapses, (2.0, 1.0), strict=True)
        ]

    CRITERIA.register("shares:two_to_one", two_to_one)
    masks = None
    for sparsity in (0.5, 0.65, 0.8):
        allocation = allocate(model, criterion="shares:two_to_one", sparsity=sparsity, previous=masks)
        masks = allocation.masks
    assert [layer.density for layer in allocation.layers] == pytest.approx([0.32, 0.16], abs=0.005)


@relaxed
@given(rows, st.lists(st.integers(-20, 20), min_size=4, max_size=4), st.floats(0.1, 0.9))
def test_scale_of_a_layer_and_of_all_coefficients_do_not_matter(values, exponents, sparsity):
    model = Weights(values)
    scaled = Weights([[w * 2.0**e for w in row] for row, e in zip(values, exponents, strict=False)])
    N = sum(map(len, values))
    assume(round(sparsity * N) <= N - len(values))
    c = [1.0 + 0.5 * i for i in range(len(values))]
    for a, b, ca, cb in [(model, scaled, c, c), (model, model, c, [4 * x for x in c])]:
        one = allocate(a, calibration_of(a, c=ca), criterion="slamp", sparsity=sparsity)
        other = allocate(b, calibration_of(b, c=cb), criterion="slamp", sparsity=sparsity)
        assert one.masks == other.masks
        assert one.budget == pytest.approx(other.budget, rel=1e-9, abs=1e-12)


@relaxed
@given(st.integers(0, 1000), st.sampled_from(["lamp", "magnitude", "uniform", "slamp"]))
def test_permuting_neurons_permutes_the_masks(seed, criterion):
    g = np.random.default_rng(seed)
    values = [list(g.normal(size=n)) for n in (7, 4, 9)]
    orders = [g.permutation(len(row)) for row in values]
    model = Weights(values)
    permuted = Weights([[row[i] for i in order] for row, order in zip(values, orders, strict=True)])
    a, b = (
        allocate(m, calibration_of(m, c=[1, 2, 3]), criterion=criterion, sparsity=0.5).masks
        for m in (model, permuted)
    )
    for name, order in zip(a, orders, strict=True):
        assert torch.equal(a[name][0][torch.from_numpy(order)], b[name][0])


def test_criteria_order_layers_as_they_say():
    g = np.random.default_rng(0)
    model = Weights([list(g.normal(size=200)), list(0.1 * g.normal(size=600))])
    calibration = calibration_of(model)
    density = {
        name: [layer.density for layer in allocate(model, calibration, criterion=name, sparsity=0.75).layers]
        for name in CRITERIA
    }
    assert density["uniform"] == [0.25, 0.25]
    assert density["wanda"] == [0.25, 0.25]
    raw = np.array([201 / 200, 601 / 600])
    np.testing.assert_allclose(density["erk"], raw * 200 / (raw @ [200, 600]), atol=1 / 200)
    w = np.sort(np.concatenate([np.abs(s.layer.weight.detach().numpy().ravel()) for s in model.synapses()]))
    masks = allocate(model, calibration, criterion="magnitude", sparsity=0.75).masks
    kept = [s.layer.weight.detach()[masks[s.name]].abs().numpy() for s in model.synapses()]
    np.testing.assert_array_equal(np.sort(np.concatenate(kept)), w[600:])


def test_wanda_is_uniform_in_every_row_and_follows_the_input():
    torch.manual_seed(0)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(6, 8), hidden=(20,))
    calibration = calibrate(model, [(torch.rand(3, 16, 2, 8, 8) * 3).floor()])
    masks = allocate(model, calibration, criterion="wanda", sparsity=0.5).masks
    for s in model.synapses():
        kept_per_row = masks[s.name].flatten(1).sum(1)
        assert kept_per_row.max() - kept_per_row.min() <= 1
        x = torch.tensor(calibration[s.name].channels).sqrt()
        x = x.repeat_interleave(s.layer.weight[0, 0].numel())
        value = s.layer.weight.detach().flatten(1).abs() * x
        for row, mask in zip(value, masks[s.name].flatten(1), strict=True):
            assert row[mask].min() >= row[~mask].max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_precisions(dtype):
    torch.manual_seed(0)
    model = build("mlp", input_shape=(30,), num_classes=4, hidden=(20, 10)).to(dtype)
    masks = allocate(model, criterion="lamp", sparsity=0.7).masks
    for s, mask in zip(model.synapses(), lamp_reference(model, round(0.7 * 840)), strict=True):
        assert masks[s.name].float().mean() == pytest.approx(mask.mean(), abs=1e-6)


def test_masks_do_not_depend_on_the_memory_format():
    torch.manual_seed(0)
    model = build("convnet", input_shape=(2, 8, 8), num_classes=4, channels=(6, 8), hidden=(20,))
    allocate(model, criterion="lamp", sparsity=0.4).masks.apply_(model)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert not Masks.nonzero(last)[last.synapses()[1].name].is_contiguous()
    one, other = (
        allocate(m, criterion="lamp", sparsity=0.8, previous=Masks.nonzero(m)).masks for m in (model, last)
    )
    assert one == other
    assert one.sparsity == pytest.approx(0.8, abs=1e-3)


def test_allocation_survives_json_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = build("mlp", input_shape=(30,), num_classes=4, hidden=(20, 10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibration = calibrate(model, [torch.rand(3, 16, 30) * 3], measure=["curves"])
    for over in ("sum", "max_t"):
        allocation = allocate(model, calibration, criterion="slamp_curve", sparsity=0.5, budget_over=over)
        values = json.loads(json.dumps(allocation.to_dict()))
        assert values["fingerprint"] == allocation.masks.fingerprint()
        assert values["layers"][0]["name"] == model.synapses()[0].name
        assert values["sparsity"] == allocation.sparsity == pytest.approx(0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_trained_network_at_one_timestep_gives_lamp():
    """Trained on four timesteps of real digits, then run on one."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    torch.manual_seed(0)
    model = build("convnet", input_shape=(1, 8, 8), num_classes=10, channels=(8, 16), hidden=(32,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        ids = torch.randint(0, 1500, (64,))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(direct(x[ids], 4)).mean(0), torch.tensor(found.target)[ids]
        )
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7
    at_four, at_one = (calibrate(model, [direct(x[:200], T)]) for T in (4, 1))
    N = sum(s.layer.weight.numel() for s in model.synapses())
    for sparsity in (0.5, 0.9, 0.98):
        reference = lamp_reference(model, round(sparsity * N))
        masks = allocate(model, at_one, sparsity=sparsity).masks
        assert all(
            np.array_equal(masks[s.name].numpy().ravel(), mask)
            for s, mask in zip(model.synapses(), reference, strict=True)
        )
        assert allocate(model, at_four, sparsity=sparsity).masks != masks
