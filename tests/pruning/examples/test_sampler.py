"""The order of a plan over batches and ranks, and what happens to a loop that leaves it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader

from pruning.examples.loader import DataPruner
from snn.coding import direct
from tests.pruning.examples.loops import EPOCHS, B, N, T, dataset, losses_of, network, pruner_of, same, train


def first_batch(pruner: DataPruner, model: nn.Module) -> tuple[Tensor, Tensor]:
    pruner.sampler.set_epoch(0)
    x, y, index = next(iter(DataLoader(pruner, batch_size=B, sampler=pruner.sampler)))
    return losses_of(model.train()(direct(x, T)), y), index


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            lambda v, i: (v.mean(), i),
            r'loss: shape \(\) must be one per example, \[B\]; use reduction="none"',
        ),
        (
            lambda v, i: (v, i.tolist()),
            r"index: must be the loader's last part, int64 \(16,\), not list; a coll",
        ),
        (lambda v, i: (v, i.float()), r"index: must be .*, not torch.float32 \(16,\)"),
        (lambda v, i: (v, i[:4]), r"index: must be .*, not torch.int64 \(4,\)"),
        (lambda v, i: (v, i.flip(0)), "index: .* are not the next examples of the plan"),
        (lambda v, i: (v.repeat(6), i.repeat(6)), "index: 96 examples, where 90 are left in this epoch"),
        (lambda v, i: (torch.zeros(B, requires_grad=True), i), "loss: does not come from the network's last"),
    ],
)
def test_bad_losses_and_indices(spoilt: Callable[[Tensor, Tensor], Any], message: str) -> None:
    model = network()
    pruner = pruner_of(model)
    values, index = first_batch(pruner, model)
    with pytest.raises(ValueError, match=message):
        pruner.loss(*spoilt(values, index))


def test_misuse_of_the_sampler() -> None:
    model = network()
    pruner = pruner_of(model)
    assert len(pruner.sampler) == N
    with pytest.raises(ValueError, match="index: 16 examples, where 0 are left in this epoch"):
        pruner.loss(torch.zeros(B), torch.arange(B))
    values, index = first_batch(pruner, model)
    pruner.loss(values, index)
    at = torch.from_numpy(pruner.sampler.ids[pruner.sampler.upcoming(B)].copy())
    with pytest.raises(ValueError, match="loss: the network has not run in training mode since"):
        pruner.loss(torch.zeros(B), at)
    pruner.sampler.set_epoch(3)
    with pytest.raises(
        ValueError, match=r"set_epoch: epoch 2 lies before epoch 3, which is planned; .*prepare"
    ):
        pruner.sampler.set_epoch(2)


def test_a_loader_alone_goes_on_with_the_next_epoch() -> None:
    """As in frameworks whose loop begins the loader before, or without, telling the epoch."""
    ours, theirs = network(), network()
    expected = train(theirs, pruner_of(theirs))
    pruner = pruner_of(ours)
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler)
    found = []
    for epoch in range(EPOCHS):
        for x, y, index in loader:
            value = pruner.loss(losses_of(ours(direct(x, T)), y), index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append((epoch, index, value.detach()))
    assert same(found, expected)
    with pytest.raises(ValueError, match="sampler: the run's 6 epochs are over"):
        iter(pruner.sampler)


def test_a_loader_alone_that_drops_the_last_batch_goes_on_too() -> None:
    model = network().train()
    pruner = pruner_of(model)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler, drop_last=True)
    found = []
    for _ in range(EPOCHS):
        for x, y, index in loader:
            pruner.loss(losses_of(model(direct(x, T)), y), index)
            found.append(pruner.sampler.epoch)
    assert found == [0] * (N // B) + [e for e in range(1, EPOCHS - 1) for _ in range(N // 2 // B)] + [5] * (
        N // B
    )
    assert not list(pruner.epochs())


@pytest.mark.parametrize("workers", [0, 1])
def test_drop_last_is_exact_where_the_pruner_knows_of_it(workers: int) -> None:
    def run(pruner: DataPruner, states: list[Any]) -> list[tuple[int, int]]:
        model = pruner.model.train()
        loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler, drop_last=True, num_workers=workers)
        found = []
        for epoch in pruner.epochs():
            batches = 0
            for x, y, index in loader:
                pruner.loss(losses_of(model(direct(x, T)), y), index)
                batches += 1
            found.append((epoch, batches))
            states.append(copy.deepcopy(pruner.state_dict()))
        return found

    options = {"batch_size": B, "drop_last": True}
    states: list[Any] = []
    pruner = pruner_of(network(), **options)
    whole = run(pruner, states)
    assert whole == [(e, (N if e in (0, EPOCHS - 1) else N // 2) // B) for e in range(EPOCHS)]
    for done, state in [(1, states[0])] if workers else list(enumerate(states, 1)):
        again = pruner_of(network(), **options)
        again.load_state_dict(state)
        assert run(again, []) == whole[done:]
    with pytest.raises(ValueError, match="state: of a run with drop_last True; this one has False"):
        pruner_of(network(), batch_size=B).load_state_dict(states[0])
    with pytest.raises(ValueError, match="drop_last: the 90 examples of epoch 0 fill no batch"):
        pruner_of(network(), batch_size=91, drop_last=True).sampler.set_epoch(0)


def test_a_loader_begun_again_goes_on_with_what_is_left() -> None:
    model = network().train()
    pruner = pruner_of(model, batch_size=B, drop_last=True)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler, drop_last=True, num_workers=1)
    x, y, index = next(iter(loader))
    pruner.loss(losses_of(model(direct(x, T)), y), index)
    assert len(list(loader)) == N // B - 1
    assert pruner.sampler.epoch == 0


def without_index(examples: list[Any]) -> list[Tensor]:
    """A collate function that knows inputs and labels alone."""
    return [torch.stack([x for x, *_ in examples]), torch.stack([y for _, y, *_ in examples])]


def test_an_index_that_a_collate_function_lost() -> None:
    model = network()
    pruner = pruner_of(model)
    for _ in pruner.epochs():
        for x, y in DataLoader(pruner, batch_size=B, sampler=pruner.sampler, collate_fn=without_index):
            with pytest.raises(ValueError, match=r"index: .* are not the next .* must keep the index"):
                pruner.loss(losses_of(model(direct(x, T)), y), y)
            return


def test_an_index_that_would_have_to_be_waited_for() -> None:
    """On a GPU the first batches are compared at once, and the others when the epoch is over."""
    sampler = pruner_of(network()).sampler
    sampler.set_epoch(0)
    ids = torch.from_numpy(sampler.ids.copy())
    with pytest.raises(ValueError, match=r"index: \[.* are not the next examples .* leave the loader out of"):
        sampler.take(ids[1 : B + 1], wait=False)
    for step in range(4):
        sampler.take(ids[step * B : (step + 1) * B].flip(0) if step == 2 else ids[step * B :][:B], wait=False)
    with pytest.raises(ValueError, match="index: batches of epoch 0 were not those of its plan"):
        sampler.set_epoch(1)


def test_no_batch_of_one_example() -> None:
    """Batch norm refuses it, and how many examples a pruned epoch has is the policy's choice."""
    model = network()
    pruner = pruner_of(model, ratio=1 - 33 / N, batch_size=B)
    pruner.sampler.set_epoch(1)
    assert len(pruner.sampler) == len(list(pruner.sampler)) == 34
    assert pruner.sampler.weights[-1] == pruner.sampler.loss_weights[-1] == 0
    assert sorted(pruner.sampler.ids[:-1]) == sorted(set(pruner.sampler.ids))
    found = train(model, pruner)
    assert [len(index) for epoch, index, _ in found if epoch == 2] == [16, 16, 2]
    assert np.isfinite(pruner.policy.scores).any()


def test_weights_in_the_first_epoch_need_the_batch_size() -> None:
    model = network()
    options = {"policy": "infobatch", "warmup_epochs": 0, "ratio": 0.6}
    pruner = pruner_of(model, **options)
    pruner.policy.observe(np.arange(N), np.arange(N, dtype=np.float32), 0, "pass")
    with pytest.raises(ValueError, match="batch_size: needed"):
        first_batch(pruner, model)


ODD = N + 1  # examples, so that two ranks need padding


def on_rank(rank: int, folder: str, policy: str, seeds: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    model = network()
    # Before the group, as under Lightning.
    pruner = pruner_of(model, dataset(ODD), policy=policy, seed=seeds[rank])
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert (pruner.sampler.rank, pruner.sampler.world_size) == (rank, 2)
    loader = DataLoader(pruner, batch_size=B // 2, sampler=pruner.sampler)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = []
    try:
        for epoch in pruner.epochs():
            for x, y, index in loader:
                value = pruner.loss(losses_of(wrapped(direct(x, T)), y), index)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                steps.append((epoch, index))
        state = pruner.state_dict()
        result: dict[str, Any] = {"steps": steps, "model": model.state_dict(), "state": state}
    except ValueError as error:
        result = {"error": str(error)}
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def two_processes(folder: Path, policy: str, seeds: tuple[int, int] = (7, 7)) -> list[dict[str, Any]]:
    multiprocessing.start_processes(on_rank, (str(folder), policy, seeds), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("policy", ["sadp", pytest.param("infobatch", marks=pytest.mark.slow)])
def test_two_processes_train_on_one_plan(policy: str, tmp_path: Path) -> None:
    found = two_processes(tmp_path, policy)
    for a, b in zip(found[0]["model"].values(), found[1]["model"].values(), strict=True):
        if a.dtype == torch.float32 and a.ndim != 1:  # running statistics are each rank's own
            assert torch.equal(a, b)
    for name, scores in found[0]["state"]["policy"].items():
        assert torch.equal(scores, found[1]["state"]["policy"][name])
        assert torch.isfinite(scores.float()).all()
    assert len(found[0]["steps"]) == len(found[1]["steps"])
    for epoch in range(EPOCHS):
        parts = [[i for e, at in rank["steps"] if e == epoch for i in at.tolist()] for rank in found]
        assert len(parts[0]) == len(parts[1])
        together = [i for pair in zip(*parts, strict=True) for i in pair]
        twice = len(together) - len(set(together))
        assert twice <= 3  # the padding
        assert len(set(together)) in ((ODD, round(ODD / 2)) if policy == "sadp" else range(N // 3, ODD + 1))


@pytest.mark.slow
def test_ranks_that_disagree_are_told(tmp_path: Path) -> None:
    found = two_processes(tmp_path, "sadp", (7, 8))
    assert all("ranks disagree: rank" in rank["error"] for rank in found)
    assert "'seed': 8" in found[0]["error"]
