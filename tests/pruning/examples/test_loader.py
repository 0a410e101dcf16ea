import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from pruning.examples.loader import DataPruner
from pruning.examples.policies import make_policy
from pruning.examples.sampling import shuffled
from pruning.examples.scores import ExampleScorer
from pruning.examples.step_scores import StepScores
from snn.adapters import wrap
from snn.coding import direct
from snn.models import SpikingNetwork, build
from snn.neurons import LIF
from snn.weighted_norm import weighted_statistics

N, B, T, EPOCHS = 90, 16, 4, 6


def network() -> SpikingNetwork:
    torch.manual_seed(0)
    return build("mlp", input_shape=(9,), num_classes=4, hidden=(16, 12))


def dataset(n: int = N) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 9, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


def losses_of(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits_TBK.mean(0), y, reduction="none")


def pruner_of(model: nn.Module, data: Dataset[Any] | None = None, **options: Any) -> DataPruner:
    return DataPruner(
        dataset() if data is None else data, model, **{"ratio": 0.5, "epochs": EPOCHS, "seed": 7, **options}
    )


def train(
    model: nn.Module,
    pruner: DataPruner,
    *,
    stop: tuple[int, int] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = losses_of,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> list[tuple[int, Tensor, Tensor]]:
    """(epoch, index, weighted loss) of every step; in the middle of epoch and step ``stop`` it breaks off."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(pruner, batch_size=B, sampler=pruner.sampler, **options)
    found = []
    for epoch in pruner.epochs():
        model.train()
        for step, (x, y, index) in enumerate(loader):
            if (epoch, step) == stop:
                return found
            value = pruner.loss(loss(model(direct(x, T)), y), index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append((epoch, index, value.detach()))
    return found


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


def same(a: list[tuple[int, Tensor, Tensor]], b: list[tuple[int, Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        e == f and torch.equal(i, j) and torch.equal(v, w) for (e, i, v), (f, j, w) in zip(a, b, strict=True)
    )


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


@pytest.mark.parametrize("adapted", [False, True])
def test_mixed_precision(adapted: bool) -> None:
    """Scores are float32; half of a bfloat16's precision is left in what they are made of."""
    found = []
    for enabled in (False, True):
        model = network()
        pruner = pruner_of(wrap(model, direct(torch.rand(3, 9), T), neurons=[LIF]) if adapted else model)
        pruner.sampler.set_epoch(0)
        for x, y, index in DataLoader(pruner, batch_size=N, sampler=pruner.sampler):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses = losses_of(model.train()(direct(x, T)), y)
            pruner.loss(losses, index).backward()
        pruner.sampler.share_scores()
        found.append(pruner.policy.scores)
    assert np.corrcoef(found[0], found[1])[0, 1] > 0.8
    assert not np.array_equal(found[0], found[1])


class Asked(TorchDispatchMode):
    """Counts the values that are asked of tensors, for which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("score", ["sadp", "el2n", "loss"])
def test_scores_of_a_step_ask_nothing_of_the_device(score: str, adapted: bool) -> None:
    model = network().train()
    x, y = dataset().tensors
    x = direct(x[:B], T)
    hooked = StepScores(wrap(model, x, neurons=[LIF]) if adapted else model, score, lambda: None)
    hooked(losses_of(model(x), y[:B]))  # the first step looks at the network
    with Asked() as asked:
        assert hooked(losses_of(model(x), y[:B])) is not None
        assert asked.count == 0
        assert float(x.sum()) != 0
        assert asked.count == 1


def mean_squared(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return (logits_TBK.mean(0) - F.one_hot(y, 4)).square().mean(1)


def every_step(logits_TBK: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits_TBK.flatten(0, 1), y.repeat(T), reduction="none").view(T, -1).mean(0)


@pytest.mark.parametrize("loss", [losses_of, every_step, mean_squared])
def test_scores_are_of_the_loss_that_is_trained(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The readout's part of the bound is exact for any loss: by autograd, example by example."""
    model = network().double()
    x, y = dataset().tensors
    data = TensorDataset(x.double(), y)
    pruner = pruner_of(model, data)
    found: dict[int, Tensor] = {}

    head = model.readout[-1]
    for _ in pruner.epochs():
        for part, labels, index in DataLoader(pruner, batch_size=N, sampler=pruner.sampler):
            losses = loss(model.train()(direct(part, T)), labels)
            parts = [torch.autograd.grad(v, list(head.parameters()), retain_graph=True) for v in losses]
            squares = torch.stack([torch.stack([g.square().sum() for g in p]).sum() for p in parts])
            pruner._scores._record._scorer._hidden = []  # the readout alone
            pruner.loss(losses, index)
            found = dict(zip(index.tolist(), squares.sqrt(), strict=True))
        pruner.sampler.share_scores()
        break
    expected = torch.stack([found[i] for i in range(N)]).float()
    torch.testing.assert_close(torch.from_numpy(pruner.policy.scores), expected, rtol=1e-4, atol=1e-6)


def test_evaluation_and_passes_without_gradients_are_left_alone() -> None:
    model = network()
    plain = copy.deepcopy(model)
    pruner = pruner_of(model)
    pruner.sampler.set_epoch(0)
    x = direct(dataset().tensors[0][:8], T)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    with torch.no_grad():
        assert torch.equal(model.train()(x), plain.train()(x))
    assert pruner._scores._record._logits is None
    pruner.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_network_has_the_hooks_of_one_pruner() -> None:
    model = network()
    first = pruner_of(model)
    second = pruner_of(model)
    assert len(model._forward_pre_hooks) == len(model._forward_hooks) == 1
    train(model, second)
    assert not model._forward_pre_hooks  # the run is over
    first.sampler.set_epoch(0)
    x, y = dataset().tensors
    at = torch.from_numpy(first.sampler.ids[:B].copy())
    with pytest.raises(ValueError, match="loss: the network has not run in training mode"):
        first.loss(losses_of(model(direct(x[at], T)), y[at]), at)


def test_a_forward_pass_that_fails_leaves_no_weights_behind() -> None:
    model = network()
    pruner = pruner_of(model, batch_size=B, warmup_epochs=0)
    pruner.sampler.set_epoch(1)
    with pytest.raises(RuntimeError):
        model(torch.zeros(T, B, 9, dtype=torch.float64))
    assert pruner._scores._open is None
    model(torch.zeros(T, B, 9))  # and the next one is recorded again


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
    with pytest.raises(ValueError, match="rank: 2 must be from 0 to world_size - 1, 1"):
        pruner_of(network(), rank=2, world_size=2)


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


# Several processes.


def on_rank(rank: int, folder: str, policy: str, seeds: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    model = network()
    pruner = pruner_of(model, policy=policy, seed=seeds[rank])  # before the group, as under Lightning
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
        assert len(set(together)) in ((N, N // 2) if policy == "sadp" else range(N // 3, N + 1))


@pytest.mark.slow
def test_ranks_that_disagree_are_told(tmp_path: Path) -> None:
    found = two_processes(tmp_path, "sadp", (7, 8))
    assert all("ranks disagree: rank" in rank["error"] for rank in found)
    assert "'seed': 8" in found[0]["error"]
