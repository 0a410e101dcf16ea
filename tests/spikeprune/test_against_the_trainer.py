"""`DataPruner` in a plain loop against the trainer of `spikeprune train`: one draw, one set of scores."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pipelines.data.dataset import DatasetInfo
from pipelines.networks import make_network
from pipelines.runs.run import run
from pipelines.training.steps import learning_rate, make_optimizer
from pruning.examples.policies import Policy
from pruning.examples.policies.base import Plan
from snn.batchnorm import reestimate
from spikeprune import DataPruner, direct
from tests.pipelines.training.conftest import QUIET, metrics, small

BATCH = 479
"""Divides the 1,437 digits and two thirds of them: the trainer fills up its last batch, a loader does not."""
OPTIONS = {
    "cluster.engine": "local",
    "cluster.workers": "1",
    "train.epochs": "10",
    "train.batch_size": str(BATCH),
    "data_pruning.ratio": str(1 / 3),
    "data_pruning.rescore_every": "0",
}


def read(digits: Path, split: str) -> TensorDataset:
    """The images as the trainer normalises them, and their labels."""
    table = pq.read_table(next(digits.glob(f"{split}-*.parquet")))
    info = json.loads((digits / "manifest.json").read_text())["splits"]["train"]["statistics"]
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"].to_pylist()]
    x = torch.from_numpy(np.stack(images)).float().unsqueeze(1)
    mean, std = (torch.tensor(info[name]) for name in ("mean", "std"))
    return TensorDataset((x - mean) / std, torch.tensor(table["label"].to_pylist()))


@pytest.mark.parametrize("policy", ["sadp", "infobatch_matched"])
def test_the_same_subsets_weights_and_losses(
    policy: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    plan = Policy.plan

    def spied(self: Policy, epoch: int) -> Plan:
        plans.append(plan(self, epoch))
        return plans[-1]

    config = small(tmp_path, digits, **OPTIONS, **{"data_pruning.policy": policy})
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "plan", spied)
        records = metrics(run(config, "train", console=QUIET))
    theirs = {p.epoch: p for p in plans}
    assert len(theirs) >= 8  # full epochs need no plan

    data, T = read(digits, "train"), config.model.T
    names = tuple(map(str, range(10)))
    info = DatasetInfo(input_shape=(1, 8, 8), num_classes=10, class_names=names, mean=(0.0,), std=(1.0,))
    model = make_network(config.model, info, config.seed)
    optimizer = make_optimizer(model.parameters(), config.train)
    pruner = DataPruner(data, model, ratio=1 / 3, epochs=10, policy=policy, seed=config.seed)
    loader = DataLoader(pruner, batch_size=BATCH, sampler=pruner.sampler)
    losses = []
    for epoch in pruner.epochs():
        model.train()
        total = torch.zeros((), dtype=torch.float64)
        for step, (x, y, index) in enumerate(loader):
            lr = learning_rate(config.train, (epoch + step / len(loader)) / 10)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            loss = pruner.loss(F.cross_entropy(model(direct(x, T)).mean(0), y, reduction="none"), index)
            loss.backward()
            optimizer.step()
            total += loss.detach() * BATCH
        ours = pruner.sampler.plan
        assert ours is not None
        if epoch in theirs:
            assert np.array_equal(ours.ids, theirs[epoch].ids)
            assert np.array_equal(ours.weights, theirs[epoch].weights)
            assert np.array_equal(ours.loss_weights, theirs[epoch].loss_weights)
        losses.append(float(total) / len(ours.ids))
    np.testing.assert_allclose(losses, [r["train_loss"] for r in records], rtol=1e-6)
    assert max(p.weights.max() for p in plans) > 1.2  # the draws follow the scores
    reestimate(model, [direct(data.tensors[0], T)])
    x, y = read(digits, "test").tensors
    accuracy = float((model.eval()(direct(x, T)).mean(0).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(records[-1]["test_accuracy"], abs=0.015)
    assert accuracy > 0.85
