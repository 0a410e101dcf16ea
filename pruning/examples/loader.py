"""`DataPruner`: data pruning in any PyTorch training loop, with any ``DataLoader``.

::

    pruner = DataPruner(dataset, model, ratio=0.5, epochs=30)
    loader = DataLoader(pruner, batch_size=64, sampler=pruner.sampler)
    for epoch in pruner.epochs():
        for x, y, index in loader:
            loss = pruner.loss(F.cross_entropy(model(x).mean(0), y, reduction="none"), index)
            ...
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from pruning.examples.policies import make_policy
from pruning.examples.sampler import PlanSampler, Scored
from pruning.examples.scores import ExampleScorer, score_dataset
from pruning.examples.step_scores import StepScores

SCORING_BATCH = 256


class Indexed(Dataset[Any]):
    """A dataset whose examples tell their index: behind a tuple's parts, or as ``index`` of a dictionary."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        example = self.dataset[index]
        if isinstance(example, dict):
            if "index" in example:
                raise ValueError("dataset: its examples have an index of their own; give it another name")
            return {**example, "index": index}
        return (*example, index) if isinstance(example, tuple | list) else (example, index)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class DataPruner(Indexed):
    """A dataset, its sampler and its loss, for training on a part of the examples per epoch.

    The network trains on subsets that a policy draws; hooks on it take the scores from the training steps and
    weight the batch norms' statistics. A forward pass in training mode belongs to the plan's next batch, and
    its losses go through `loss`. The loader's workers, persistent ones too, hold the dataset alone.

    Under ``torch.distributed`` every rank makes the same pruner and a loader of its own, with the pruner's
    sampler.

    Args:
        dataset: of known length; example ``i`` is ``dataset[i]``.
        model: the network, or what wraps it for ``torch.distributed``; on its device.
        ratio: pruning ratio ``r``, the share left out of a pruned epoch, in [0, 1).
        epochs: length of the run.
        policy: a key of `pruning.examples.policies.POLICIES`, or a registered one of your own.
        seed: of draws and order.
        batch_size: of one rank's loader, over which losses are averaged; the largest batch met so far when
            not given. Needed where the very first epoch has weights other than 1.
        drop_last: the loader leaves out a last, short batch: the plan then ends with whole batches. Needs
            ``batch_size``.
        encode: inputs of a batch to the network's ``x_TB``; for scoring passes (``rescore_every``) only.
        options: further fields of `pruning.examples.policies.settings.Settings` and options of the policy.

    Raises:
        ValueError: a dataset without length or a stream, what `make_policy` refuses, or for a policy that
            wants ``sadp`` scores a network whose last layer is not linear.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        model: nn.Module,
        *,
        ratio: float,
        epochs: int,
        policy: str = "sadp",
        seed: int = 0,
        batch_size: int | None = None,
        drop_last: bool = False,
        encode: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset)
        if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            raise ValueError(
                f"dataset: {type(dataset).__name__} has no length, or gives a stream; examples are drawn by"
                " their index, so a stream cannot be pruned"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: {batch_size!r} must be at least 1")
        if drop_last and batch_size is None:
            raise ValueError("drop_last: needs batch_size, the loader's")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        made = make_policy(
            policy, num_examples=len(dataset), ratio=ratio, epochs=epochs, seed=seed, **options
        )
        self.model, self.policy, self.encode = model, made, encode
        self._scorer: ExampleScorer | None = None
        if made.settings.rescore_every and made.score:
            if encode is None:
                raise ValueError(
                    "encode: needed for scoring passes (rescore_every); inputs of a batch to x_TB"
                )
            if not isinstance(dataset[0], tuple | list):
                raise ValueError(
                    f"dataset: scoring passes (rescore_every) take (input, label), not {type(dataset[0])}"
                )
            self._scorer = ExampleScorer(model, (made.score,))
        self.sampler = PlanSampler(
            made,
            batch_size=batch_size or 0,
            drop_last=drop_last,
            before=self._rescored,
            begins=lambda: self._scores.put_on(),
        )
        self._scores = StepScores(model, made.score, self._upcoming_weights, lambda: self.sampler.left > 0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers of a loader get the dataset alone."""
        return Indexed, (self.dataset,)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left; each is scored, if asked for, and planned before it is given.

        When the loop is left, at its end or before, the network is let go until a loader begins again.
        """
        try:
            for epoch in range(self.sampler.next_epoch, self.policy.settings.epochs):
                self.sampler.set_epoch(epoch)
                yield epoch
        finally:
            self.close()

    def loss(self, per_example_loss: Tensor, index: Tensor) -> Tensor:
        """The batch's loss, to go backward from: weighted, over the nominal batch size.

        A smaller batch at the end of an epoch so has a smaller loss. The scores are taken in passing.

        Args:
            per_example_loss: ``[B]``, of the network's last forward pass (``reduction="none"``).
            index: int64 ``[B]``, as the loader gave it.

        Raises:
            ValueError: a loss that is reduced already, or an index that is not that of the plan's next batch.
        """
        losses, shape = per_example_loss, tuple(per_example_loss.shape)
        if losses.ndim != 1:
            raise ValueError(f'loss: shape {shape} must be one per example, [B]; use reduction="none"')
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or tuple(index.shape) != shape:
            found = (
                f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            )
            raise ValueError(
                f"index: must be the loader's last part, int64 {shape}, not {found}; a collate function of"
                " your own must keep it"
            )
        at = self.sampler.take(index, wait=index.device.type == "cpu")
        scores = self._scores(losses)
        if scores is not None:
            self.sampler.met(at, scores.detach())
        weights = torch.from_numpy(self.sampler.loss_weights[at]).to(losses.device, non_blocking=True)
        return (weights * losses).sum() / self.sampler.batch_size

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, at any step: tensors and numbers. All ranks call it together."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called: the same subsets, weights and order as without a break.

        Raises:
            ValueError: the state of a run with other settings, or of something else.
        """
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Take the hooks off the network."""
        self._scores.remove()

    def _upcoming_weights(self) -> Tensor | None:
        """Of the plan's next batch, on the network's device; ``None`` where they are all 1."""
        sampler = self.sampler
        if sampler.plan is None:
            return None
        if not sampler.batch_size:
            if (sampler.weights[sampler.weights > 0] == 1).all():  # padding is behind the first batch
                return None
            raise ValueError("batch_size: needed, since the first epoch of the run has weights other than 1")
        weights = sampler.weights[sampler.upcoming(sampler.batch_size)]
        if not len(weights) or (weights == 1).all():
            return None
        return torch.from_numpy(weights).to(next(self.model.parameters()).device, non_blocking=True)

    def _rescored(self, epoch: int) -> Scored | None:
        """This rank's share of the scores that the policy wants fresh before an epoch."""
        ids = self.policy.rescore(epoch)
        if ids is None or self._scorer is None or self.encode is None:
            return None
        ids = ids[self.sampler.rank :: self.sampler.world_size]
        if not len(ids):
            return None
        loader = DataLoader(Subset(self.dataset, ids.tolist()), self.sampler.batch_size or SCORING_BATCH)
        found = score_dataset(self._scorer, loader, encode=self.encode)[self._scorer.names[0]]
        return ids, found.numpy(), np.zeros(len(ids), np.int64)
