"""`DataPruner` and `prune` under Lightning and Accelerate, against a plain loop."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from pruning.weights.recipe import Pruned
from snn.models import build
from spikeprune import DataPruner, direct, prune

N, B, T, EPOCHS = 96, 8, 3, 4
Steps = list[tuple[int, Tensor, Tensor]]
"""Epoch, index and weighted loss."""
FRAMEWORKS = ("lightning", "accelerate")

pytestmark = pytest.mark.slow


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 9, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("mlp", input_shape=(9,), num_classes=4, hidden=(16, 12))


def pruner_of(net: nn.Module) -> DataPruner:
    return DataPruner(data(), net, ratio=0.5, epochs=EPOCHS, seed=7)


def losses_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(direct(x, T)).mean(0), y, reduction="none")


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)


def plain() -> tuple[Steps, dict[str, Tensor]]:
    net, found = network(), []
    pruner, optimizer = pruner_of(net), sgd(net)
    loader = DataLoader(pruner, B, sampler=pruner.sampler)
    for epoch in pruner.epochs():
        net.train()
        for x, y, index in loader:
            loss = pruner.loss(losses_of(net, x, y), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append((epoch, index, loss.detach()))
    return found, net.state_dict()


def with_lightning(
    processes: int = 1,
    *,
    workers: int = 0,
    distributed_sampler: bool = False,
    steps: int = -1,
    checkpoint: Path | None = None,
) -> tuple[Steps, dict[str, Tensor]]:
    """Stops after so many steps with a checkpoint; without ``steps`` goes on from ``checkpoint``."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.found = network(), []
            self.pruner = pruner_of(self.net)
            self.loader = DataLoader(
                self.pruner,
                B,
                sampler=self.pruner.sampler,
                num_workers=workers,
                persistent_workers=workers > 0,
            )

        def train_dataloader(self) -> DataLoader[Any]:
            self.pruner.sampler.plan_next()
            return self.loader

        def training_step(self, batch: list[Tensor], step: int) -> Tensor:
            x, y, index = batch
            loss = self.pruner.loss(losses_of(self.net, x, y), index)
            self.found.append((self.current_epoch, index, loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.net)

        def on_save_checkpoint(self, state: dict[str, Any]) -> None:
            state["pruner"] = self.pruner.state_dict()

        def on_load_checkpoint(self, state: dict[str, Any]) -> None:
            self.pruner.load_state_dict(state["pruner"])

    module = Module()
    saves = steps > 0 and checkpoint is not None
    keeper = ModelCheckpoint(checkpoint and checkpoint.parent, "state", every_n_train_steps=max(steps, 0))
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        max_steps=steps,
        accelerator="cpu",
        devices=processes,
        use_distributed_sampler=distributed_sampler,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=saves,
        callbacks=[keeper] if saves else [],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    trainer.fit(module, ckpt_path=None if saves else checkpoint)
    return module.found, module.net.state_dict()


def with_accelerate(
    processes: int = 1, *, prepared: bool = False, start: dict[str, Any] | None = None
) -> tuple[Steps, dict[str, Tensor]]:
    from accelerate import Accelerator

    accelerator, found = Accelerator(cpu=True), []
    assert accelerator.num_processes == processes
    plain_net = network()
    net, optimizer = accelerator.prepare(plain_net, sgd(plain_net))
    assert isinstance(net, nn.parallel.DistributedDataParallel) == (processes > 1)
    pruner = pruner_of(net)
    if start is not None:
        pruner.load_state_dict(start)
    loader = DataLoader(pruner, B, sampler=pruner.sampler)
    loader = accelerator.prepare(loader) if prepared else loader
    for epoch in pruner.epochs():
        net.train()
        for x, y, index in loader:
            loss = pruner.loss(losses_of(net, x, y), index)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            found.append((epoch, index, loss.detach()))
    return found, plain_net.state_dict()


WITH = {"lightning": with_lightning, "accelerate": with_accelerate}


def need(framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed (extra peers)")


def same(a: tuple[Steps, dict[str, Tensor]], b: tuple[Steps, dict[str, Tensor]]) -> None:
    for (e, i, v), (f, j, w) in zip(a[0], b[0], strict=True):
        assert e == f
        assert torch.equal(i, j)
        assert torch.equal(v, w)
    for p, q in zip(a[1].values(), b[1].values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("framework", "options"),
    [
        ("lightning", {}),
        ("lightning", {"workers": 1}),
        ("accelerate", {}),
        ("accelerate", {"prepared": True}),
    ],
)
def test_one_process_trains_as_the_plain_loop(framework: str, options: dict[str, Any]) -> None:
    """The same subsets, weights and parameters, to the last bit."""
    need(framework)
    expected = plain()
    assert len(expected[0]) == 2 * N // B + 2 * (N // 2) // B
    same(WITH[framework](**options), expected)


@pytest.mark.parametrize("steps", [5, 12, 15])
def test_lightning_goes_on_from_its_checkpoint(steps: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and between two."""
    need("lightning")
    expected, weights = plain()
    found, _ = with_lightning(steps=steps, checkpoint=tmp_path / "state.ckpt")
    assert len(found) == steps
    rest, after = with_lightning(checkpoint=tmp_path / "state.ckpt")
    same((found + rest, after), (expected, weights))


def retrained(framework: str) -> tuple[nn.Module, Pruned, list[Tensor]]:
    """A pruned network after steps of the optimiser as a framework gives it, and its moments."""
    net, x = network(), data().tensors[0]
    plain_optimizer = torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.1)
    optimizer: Any = plain_optimizer
    if framework == "accelerate":
        from accelerate import Accelerator

        optimizer = Accelerator(cpu=True).prepare(plain_optimizer)
    elif framework == "lightning":
        from lightning.fabric import Fabric

        optimizer = Fabric(accelerator="cpu", devices=1).setup_optimizers(plain_optimizer)
    assert (optimizer is plain_optimizer) == (framework == "plain")
    pruned = prune(net, [direct(x, T)], sparsity=0.8)
    pruned.keep(optimizer)
    for _ in range(3):
        losses_of(net, x, data().tensors[1]).mean().backward()
        optimizer.step()
    moments = [plain_optimizer.state[s.layer.weight]["exp_avg"] for s in pruned.model.synapses()]
    return net, pruned, moments


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pruned_weights_stay_zero_under_a_wrapped_optimizer(framework: str) -> None:
    need(framework)
    expected = retrained("plain")[0]
    net, pruned, moments = retrained(framework)
    for s, moment in zip(pruned.model.synapses(), moments, strict=True):
        gone = ~pruned.masks[s.name]
        assert gone.any()
        assert not s.layer.weight[gone].any()
        assert not moment[gone].any()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_prepared_loader_counts_its_epochs_from_the_start() -> None:
    need("accelerate")
    pruner = pruner_of(network())
    pruner.sampler.set_epoch(2)
    with pytest.raises(ValueError, match=r"set_epoch: epoch 0 lies before epoch 2, .*Accelerate's prepare"):
        with_accelerate(prepared=True, start=pruner.state_dict())


def on_rank(rank: int, port: int, folder: str, framework: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    if framework == "accelerate":
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    try:
        steps, parameters = WITH[framework](2, **options)
        result: dict[str, Any] = {"steps": steps, "weights": [p for p in parameters.values() if p.ndim > 1]}
    except (ValueError, RuntimeError) as error:  # the other rank's connection is closed
        result = {"error": str(error)}
    torch.save(result, f"{folder}/{rank}.pt")
    if "error" not in result and distributed.is_initialized():
        distributed.destroy_process_group()


def two_processes(folder: Path, framework: str, **options: Any) -> list[dict[str, Any]]:
    """What either rank found."""
    need(framework)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, str(folder), framework, options)
    multiprocessing.start_processes(on_rank, arguments, nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_see_each_planned_example_once(framework: str, tmp_path: Path) -> None:
    ranks = two_processes(tmp_path, framework)
    for a, b in zip(*(rank["weights"] for rank in ranks), strict=True):
        assert torch.equal(a, b)
    found = [rank["steps"] for rank in ranks]
    assert len(found[0]) == len(found[1])
    for epoch, size in enumerate([N, N // 2, N // 2, N]):
        seen = [i for steps in found for e, index, _ in steps if e == epoch for i in index.tolist()]
        assert len(seen) == len(set(seen)) == size


@pytest.mark.parametrize(
    ("framework", "option"), [("lightning", "distributed_sampler"), ("accelerate", "prepared")]
)
def test_a_plan_that_is_divided_twice_is_told(framework: str, option: str, tmp_path: Path) -> None:
    found = two_processes(tmp_path, framework, **{option: True})
    remedy = "use_distributed_sampler=False; Accelerate: leave the loader out of prepare"
    assert any(remedy in rank["error"] for rank in found)
