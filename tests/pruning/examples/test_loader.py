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
            scores = scorer.from_recording(logits, y[at], w)
            steps = np.full(len(at), step)
            policy.observe(at.numpy(), scores[scorer.names[0]].numpy(), epoch, "train", steps)
            in_loss = torch.from_numpy(plan.loss_weights)[rows]
            value = (in_loss * losses_of(logits, y[at])).sum() / B
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


def test_bad_datasets_and_networks() -> None:
    with pytest.raises(ValueError, match=r"dataset: Stream has no length; .* a stream cannot be pruned"):
        pruner_of(network(), Stream())
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
    with pytest.raises(ValueError, match=r"readout: .*for sadp; .* loss, el2n, infobatch and repb"):
        pruner_of(conv)
