import copy
import io
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from pruning.examples.policies import make_policy
from pruning.examples.sampling import shuffled
from pruning.examples.scores import ExampleScorer
from snn.adapters import wrap
from snn.coding import direct
from snn.models import build
from snn.neurons import LIF
from snn.weighted_norm import weighted_statistics
from tests.pruning.examples.loops import EPOCHS, B, N, T, dataset, losses_of, network, pruner_of, same, train


def by_hand(model: nn.Module, policy_name: str) -> list[tuple[int, Tensor, Tensor]]:
    """The same training, written out."""
    x, y = dataset().tensors
    policy = make_policy(policy_name, num_examples=N, ratio=0.5, epochs=EPOCHS, seed=7)
    scorer = ExampleScorer(model, (policy.score or "loss",))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for epoch in range(EPOCHS):
        plan = policy.plan(epoch)
        order = np.searchsorted(plan.ids, shuffled(plan.ids, seed=7, epoch=epoch))
        model.train()
        for step, rows in enumerate(torch.from_numpy(order).split(B)):
            at = torch.from_numpy(plan.ids)[rows]
            w = torch.from_numpy(plan.weights)[rows]
            with weighted_statistics(w), scorer.recording():
                logits = model(direct(x[at], T))
            losses = losses_of(logits, y[at])
            scores = scorer.from_losses(losses, logits, y[at], w)
            steps = np.full(len(at), step)
            policy.observe(at.numpy(), scores[scorer.names[0]].numpy(), epoch, "train", steps)
            in_loss = torch.from_numpy(plan.loss_weights)[rows]
            value = (in_loss * losses).sum() / B
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append((epoch, at, value.detach()))
    return found


@pytest.mark.parametrize("policy", ["sadp", "el2n", "infobatch", "repb", "random", "full"])
def test_it_is_the_loop_written_out_to_the_last_bit(policy: str) -> None:
    ours, theirs = network(), network()
    options = {"warmup_epochs": 1, "anneal_epochs": 1}
    found = train(ours, pruner_of(ours, policy=policy, **options))
    assert same(found, by_hand(theirs, policy))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    sizes = [sum(len(index) for epoch, index, _ in found if epoch == e) for e in range(EPOCHS)]
    if policy in ("sadp", "el2n", "random"):
        assert sizes == [N, *[N // 2] * (EPOCHS - 2), N]


def test_the_draw_follows_the_scores() -> None:
    model = network()
    pruner = pruner_of(model)
    train(model, pruner)
    scores = pruner.policy.scores
    assert np.isfinite(scores).all()
    assert scores.std() > 0.1 * scores.mean()
    assert (pruner.policy.stamps >= 1).all()


class CountingWorkers(TensorDataset):
    def __getitem__(self, i: Any) -> Any:
        info = get_worker_info()
        return (*super().__getitem__(i), torch.tensor(-1 if info is None else info.seed))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_stay_alive_between_epochs(context: str) -> None:
    model = network()
    data = CountingWorkers(*dataset().tensors)
    pruner = pruner_of(model, data)
    loader = DataLoader(
        pruner,
        batch_size=B,
        sampler=pruner.sampler,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    seeds, found = set(), []
    for epoch in pruner.epochs():
        model.train()
        for x, y, seed, index in loader:
            assert torch.equal(x, data.tensors[0][index])
            pruner.loss(losses_of(model(direct(x, T)), y), index).backward()
            seeds |= set(seed.tolist())
            found.append((epoch, index))
    assert len(seeds) == 1  # one worker, of one process, for all epochs
    assert -1 not in seeds
    assert {epoch for epoch, _ in found} == set(range(EPOCHS))


def test_a_worker_gets_the_dataset_alone() -> None:
    pruner = pruner_of(network())
    copied = pickle.loads(pickle.dumps(pruner))
    assert vars(copied).keys() == {"dataset"}
    assert len(copied) == N
    assert copied[3][2] == 3


def test_dictionaries_and_lone_tensors_tell_their_index() -> None:
    class Named(Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, i: int) -> Any:
            return {"x": i + 10}

    assert pruner_of(network(), Named(), ratio=0.0, policy="full")[2] == {"x": 12, "index": 2}
    assert pruner_of(network(), torch.arange(5), policy="random")[3] == (torch.tensor(3), 3)  # type: ignore[arg-type]

    class Indexed(Named):
        def __getitem__(self, i: int) -> Any:
            return {"x": i + 10, "index": 105}

    with pytest.raises(ValueError, match="dataset: its examples have an index of their own"):
        pruner_of(network(), Indexed(), ratio=0.0, policy="full")[2]
    with pytest.raises(ValueError, match=r"dataset: scoring passes .* take \(input, label\)"):
        pruner_of(network(), Named(), rescore_every=1, encode=lambda x: x)


@pytest.mark.parametrize("stop", [(0, 0), (0, 3), (1, 2), (2, 1), (4, 0)])
@pytest.mark.parametrize("policy", ["sadp", "ucb"])
def test_a_run_that_was_broken_off_goes_on_as_if_nothing_had_happened(
    policy: str, stop: tuple[int, int], tmp_path: Path
) -> None:
    whole = network()
    expected = train(whole, pruner_of(whole, policy=policy))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = pruner_of(model, policy=policy)
    found = train(model, pruner, stop=stop, optimizer=optimizer)
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, tmp_path / "state.pt")

    again = network()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    other = pruner_of(again, policy=policy)
    other.load_state_dict(state["pruner"])
    found += train(again, other)
    assert same(found, expected)
    for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_run_is_refused() -> None:
    state = pruner_of(network()).state_dict()
    with pytest.raises(ValueError, match="state: of a run with seed 7; this one has 8"):
        pruner_of(network(), seed=8).load_state_dict(state)
    with pytest.raises(ValueError, match="state: of a run with examples 90; this one has 89"):
        pruner_of(network(), dataset(89)).load_state_dict(state)
    for name, value in {"alpha": 0.9, "design": "poisson", "weight_power": 0.0, "warmup_epochs": 0}.items():
        with pytest.raises(ValueError, match=f"state: of a run with {name}"):
            pruner_of(network(), **{name: value}).load_state_dict(state)
    with pytest.raises(ValueError, match="state: is not what state_dict"):
        pruner_of(network()).load_state_dict({})
    trained = pruner_of(network(), batch_size=16).state_dict()
    with pytest.raises(ValueError, match="state: of a run with batch_size 16; this one has 8"):
        pruner_of(network(), batch_size=8).load_state_dict(trained)


def test_a_seed_of_numpy_is_the_same_seed(tmp_path: Path) -> None:
    ours, theirs = network(), network()
    pruner = pruner_of(ours, seed=np.int64(7))
    assert same(train(ours, pruner), train(theirs, pruner_of(theirs)))
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    pruner_of(ours).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


class Named(nn.Module):
    """A network without ``synapses()``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.neuron, self.head = nn.Linear(9, 12), LIF(), nn.Linear(12, 4)

    def forward(self, x_TB: Tensor) -> Tensor:
        return self.head(self.neuron(self.hidden(x_TB)))


@pytest.mark.parametrize("policy", ["sadp", "el2n"])
@pytest.mark.parametrize("make", [network, lambda: wrap(Named(), torch.zeros(T, 2, 9), neurons=[LIF])])
def test_a_copy_of_the_network_in_the_loop_is_a_network_alone(make: Any, policy: str) -> None:
    class NotCopied(TensorDataset):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError

        __reduce__ = __deepcopy__  # type: ignore[assignment]

    torch.manual_seed(0)
    model, copies = make(), []
    pruner = pruner_of(model, NotCopied(*dataset().tensors), policy=policy)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler)
    x = direct(dataset().tensors[0], T)
    for _ in pruner.epochs():
        for images, y, index in loader:
            pruner.loss(losses_of(model.train()(direct(images, T)), y), index)
        model.zero_grad()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies += [copy.deepcopy(model), torch.load(file, weights_only=False)]
    for copied in copies[::3]:
        copied.train()(x).sum().backward()
        assert torch.equal(copied.eval()(x), copied(x))


def test_what_is_not_of_the_plan_is_not_recorded() -> None:
    """Retraining after an early stop, or after the last epoch of a loop that never calls ``epochs()``."""
    model = network()
    pruner = pruner_of(model, policy="el2n")
    train(model, pruner, stop=(2, 1))
    held = pruner._scores._record
    x = direct(dataset().tensors[0], T)
    for _ in range(3):
        model.train()(x)
    assert not held._found
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler)
    for epoch in range(2, EPOCHS):
        for images, y, index in loader:
            assert pruner.sampler.epoch == epoch
            pruner.loss(losses_of(model(direct(images, T)), y), index)
    model(x)
    assert not pruner._scores._record._found


def test_a_pruner_that_went_back_trains_with_its_hooks_again() -> None:
    model = network()
    pruner = pruner_of(model, batch_size=B)
    start, weights = pruner.state_dict(), copy.deepcopy(model.state_dict())
    first = train(model, pruner)
    pruner.load_state_dict(start)
    model.load_state_dict(weights)
    assert same(train(model, pruner), first)


def test_scoring_passes_are_those_of_the_scorer() -> None:
    model = network()
    options = {"rescore_every": 1, "warmup_epochs": 1}
    pruner = pruner_of(model, encode=lambda x: direct(x, T), **options)
    x, y = dataset().tensors
    for epoch in pruner.epochs():
        if epoch == 1:
            expected = ExampleScorer(model).score(direct(x, T), y)["sadp"]
            np.testing.assert_allclose(pruner.policy.scores, expected, rtol=1e-5)
            assert (pruner.policy.stamps == 2).all()
    with pytest.raises(ValueError, match="encode: needed for scoring passes"):
        pruner_of(model, **options)
    plain = nn.Sequential(nn.Linear(9, 4), LIF(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"model: Sequential must have .* snn.adapters.wrap"):
        pruner_of(plain, encode=lambda x: direct(x, T), **options)
    adapted = wrap(plain, direct(x[:3], T), neurons=[LIF])
    other = pruner_of(adapted, encode=lambda x: direct(x, T), **options)
    other.sampler.set_epoch(1)
    expected = ExampleScorer(adapted).score(direct(x, T), y)["sadp"]
    np.testing.assert_allclose(other.policy.scores, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_another_batch_size_than_the_loaders(norm: bool) -> None:
    """T B rows are a multiple of the wrong size too; without batch norm a batch may go in parts."""
    model = build("mlp", input_shape=(9,), num_classes=4, hidden=(12,), norm=norm).train()
    pruner = pruner_of(model, batch_size=2 * B, warmup_epochs=0)
    pruner.policy.observe(np.arange(N), np.arange(N, dtype=np.float32), 0, "pass")
    pruner.sampler.set_epoch(0)
    x, y, index = next(iter(DataLoader(pruner, batch_size=B, sampler=pruner.sampler)))
    losses = losses_of(model(direct(x, T).clone()), y)
    refused = pytest.raises(ValueError, match=r"batch_size: .* 16 examples for one of 32")
    with refused if norm else nullcontext():
        pruner.loss(losses, index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(3))


class SizedStream(Stream):
    def __len__(self) -> int:
        return 3


def test_bad_datasets_and_networks() -> None:
    with pytest.raises(ValueError, match=r"dataset: Stream has no length, or .* a stream cannot be pruned"):
        pruner_of(network(), Stream())
    with pytest.raises(ValueError, match=r"dataset: SizedStream .* a stream cannot be pruned"):
        pruner_of(network(), SizedStream())
    with pytest.raises(ValueError, match="drop_last: needs batch_size"):
        pruner_of(network(), drop_last=True)
    with pytest.raises(ValueError, match="seed: None must be a whole number"):
        pruner_of(network(), seed=None)
    with pytest.raises(ValueError, match="batch_size: 0 must be at least 1"):
        pruner_of(network(), batch_size=0)
    with pytest.raises(ValueError, match="policy: 'magic' is unknown"):
        pruner_of(network(), policy="magic")
    with pytest.raises(ValueError, match=r"ratio: 1.0 must be in \[0, 1\)"):
        pruner_of(network(), ratio=1.0)
    with pytest.raises(ValueError, match="epochs: 1 must be at least warmup_epochs"):
        pruner_of(network(), epochs=1)
    conv = network()
    conv.readout = nn.Sequential(nn.Conv1d(12, 4, 1))
    with pytest.raises(ValueError, match=r"readout: must end in nn.Linear.*; .* loss, el2n, infobatch"):
        pruner_of(conv)
