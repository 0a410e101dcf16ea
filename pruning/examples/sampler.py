"""An epoch's plan as a sampler for any ``DataLoader``: which example stands where, on which rank."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import Sampler

from pruning.examples.policies.base import Plan, Policy
from pruning.examples.sampling import Ints, shuffled

Scored = tuple[Ints, NDArray[np.float32], Ints]
"""Ids, scores, and the steps in which they were met."""

CHECKED_AT_ONCE = 2
"""Steps of an epoch whose index is compared with the plan at once, even where a GPU must be waited for."""
REMEDY = (
    "the loader must take sampler=pruner.sampler, which knows the ranks (Lightning:"
    " use_distributed_sampler=False; Accelerate: leave the loader out of prepare), its collate function must"
    " keep the index, and every batch's loss goes through the pruner, in order"
)


class PlanSampler(Sampler[int]):
    """The indices of an epoch's examples, in the order of a hash of (seed, epoch, index).

    Every rank gets equally many, and where the batch size is known, none a last batch of one example, which
    batch norm refuses: the first ones fill up, with weight 0. Rank ``k`` takes every ``world_size``-th index
    from the ``k``-th on, so that the ranks' batches together are the batches of one process. Scores that
    ranks met are shared when the next epoch is planned. A loader that begins without an epoch to go on with
    plans the next one. Without ``drop_last``, an epoch also counts as over where a loader was given all of it
    and all but a short last batch was trained on; a state that is saved there goes on with that batch.

    Args:
        policy: plans, from the scores that it is given.
        batch_size: of one rank's loader; 0 for the largest batch met so far.
        drop_last: leave out what does not fill a batch.
        before: called with the epoch before it is planned; returns scores of a pass, if there was one.
        begins: called when a loader begins.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        batch_size: int = 0,
        drop_last: bool = False,
        before: Callable[[int], Scored | None] = lambda epoch: None,
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy = policy
        self.batch_size = self._wanted_size = batch_size
        """The nominal one."""
        self._drop_last = drop_last
        self.plan: Plan | None = None
        self.ids: Ints = np.empty(0, np.int64)
        """Of this rank, in training order."""
        self.done = 0
        """Examples of the epoch that this rank has trained on."""
        self.step = 0
        """Steps of the epoch so far."""
        self._before, self._begins = before, begins
        self._met: list[tuple[Ints, torch.Tensor, NDArray[np.bool_], int]] = []
        self._differ: list[torch.Tensor] = []
        self._given: int | None = None  # the epoch of which a loader was given all that was left

    @property
    def rank(self) -> int:
        """Of this process, as ``torch.distributed`` says at the time."""
        return distributed.get_rank() if _running() else 0

    @property
    def world_size(self) -> int:
        """Number of processes, which all plan alike."""
        return distributed.get_world_size() if _running() else 1

    @property
    def epoch(self) -> int | None:
        """The epoch that is planned."""
        return None if self.plan is None else self.plan.epoch

    @property
    def left(self) -> int:
        """Examples of the planned epoch that this rank has still to train on."""
        return len(self.ids) - self.done

    @property
    def next_epoch(self) -> int:
        """The epoch to go on with: the planned one until it is over."""
        if self.plan is None:
            return 0
        given = self._given == self.plan.epoch and self.done > 0 and not self._drop_last
        return self.plan.epoch + (self.left <= 0 or (given and self.left < self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Plan an epoch; asked for the planned one again, nothing changes. All ranks call it together.

        Raises:
            ValueError: an epoch that the run does not have or that lies before the planned one, or ranks
                whose plans differ.
        """
        if epoch == self.epoch:
            return
        if self.epoch is not None and epoch < self.epoch:
            raise ValueError(
                f"set_epoch: epoch {epoch} lies before epoch {self.epoch}, which is planned; a new run takes"
                " a new DataPruner, and a loader that counts epochs itself (Accelerate's prepare) starts at 0"
            )
        self.share_scores()
        for ids, scores, _ in filter(None, self._gather(self._before(epoch))):
            self.policy.observe(ids, scores, epoch, "pass")
        plan = self.policy.plan(epoch)
        self._lay_out(plan)
        self.done = self.step = 0
        if self.world_size > 1:
            self._check_agreement(plan)

    def plan_next(self) -> None:
        """Plan the epoch to go on with; in the middle of one, nothing changes. All ranks call it together.

        Raises:
            ValueError: the run is over.
        """
        epoch, epochs = self.next_epoch, self.policy.settings.epochs
        if epoch == epochs:
            raise ValueError(f"sampler: the run's {epochs} epochs are over; a new run takes a new DataPruner")
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Indices of this rank in the planned epoch (in the first, before any is planned)."""
        return self._share(len(self.policy.plan(0).ids)) if self.plan is None else len(self.ids)

    def __iter__(self) -> Iterator[int]:
        """The indices of the epoch that are left, or of the next one.

        Raises:
            ValueError: the run is over.
        """
        self.plan_next()
        self._begins()
        return self._left()

    def _left(self) -> Iterator[int]:
        epoch = self.epoch
        yield from self.ids[self.done :].tolist()
        self._given = epoch

    # Training.

    def upcoming(self, count: int) -> slice:
        """The places of the next so many examples."""
        return slice(self.done, min(self.done + count, len(self.ids)))

    def take(self, index: torch.Tensor, *, wait: bool) -> slice:
        """Note that the plan's next examples were trained on; their places.

        Args:
            index: of these examples, ``[B]``, on any device.
            wait: compare it with the plan now, not when the epoch is over.

        Raises:
            ValueError: other examples than the plan's next.
        """
        count = len(index)
        at = self.upcoming(count)
        if self.plan is None or at.stop - at.start < count:
            raise ValueError(
                f"index: {count} examples, where {at.stop - at.start} are left in this epoch; a loss of the"
                f" validation does not go through the pruner, and {REMEDY}"
            )
        differs = (torch.from_numpy(self.ids[at]).to(index.device, non_blocking=True) != index).any()
        if not (wait or self.step < CHECKED_AT_ONCE):
            self._differ.append(differs)
        elif differs:
            raise ValueError(
                f"index: {index[:4].tolist()}... are not the next examples of the plan, "
                f"{self.ids[at][:4].tolist()}...; {REMEDY}"
            )
        self.done, self.step = at.stop, self.step + 1
        self.batch_size = max(self.batch_size, count)
        return at

    def met(self, at: slice, scores_B: torch.Tensor) -> None:
        """Keep the scores of the examples at these places, on their device, until `share_scores`."""
        self._met.append((self.ids[at], scores_B, self.weights[at] > 0, self.step - 1))

    def share_scores(self) -> None:
        """Hand the scores met so far to the policy, those of all ranks together.

        Raises:
            ValueError: batches that were not those of the plan.
        """
        differ, self._differ = self._differ, []
        if differ and torch.stack(differ).any():
            raise ValueError(f"index: batches of epoch {self.epoch} were not those of its plan; {REMEDY}")
        mine: Scored | None = None
        if self._met:
            ids, scores, real, steps = zip(*self._met, strict=True)
            wanted = np.concatenate(real)
            mine = (
                np.concatenate(ids)[wanted],
                torch.cat(scores).float().cpu().numpy()[wanted],
                np.repeat(steps, list(map(len, ids)))[wanted],
            )
            self._met = []
        for ids, scores, steps in filter(None, self._gather(mine)):
            assert self.plan is not None
            self.policy.observe(ids, scores, self.plan.epoch, "train", steps)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers from which `load_state_dict` goes on, in the middle of an epoch too.

        All ranks call it together; what they get is the same.
        """
        self.share_scores()
        state: dict[str, Any] = {name: getattr(self, name) for name in ("done", "step", "batch_size")}
        state["run"] = self._run()
        state["policy"] = {k: torch.from_numpy(v) for k, v in self.policy.state().items()}
        if self.plan is not None:
            state["epoch"], state["full"] = self.plan.epoch, self.plan.full
            state["ids"] = torch.from_numpy(self.plan.ids.copy())
            state["weights"] = torch.from_numpy(self.plan.weights.copy())
            state["weight_power"] = self.plan.weight_power
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: the state of a run with other settings, or of something else.
        """
        if not isinstance(state, dict) or "run" not in state:
            raise ValueError("state: is not what state_dict() of a DataPruner returned")
        if self._wanted_size and state["batch_size"] not in (0, self._wanted_size):
            raise ValueError(
                f"state: of a run with batch_size {state['batch_size']}; this one has {self._wanted_size}"
            )
        for name, value in self._run().items():
            found = state["run"].get(name)
            if found != value:
                raise ValueError(f"state: of a run with {name} {found!r}; this one has {value!r}")
        self.policy.load({k: v.cpu().numpy() for k, v in state["policy"].items()})
        self.plan, self._met, self._differ, self._given = None, [], [], None
        self.batch_size = state["batch_size"] or self._wanted_size
        if "epoch" in state:
            ids, weights = state["ids"].cpu().numpy(), state["weights"].cpu().numpy()
            power = state["weight_power"]
            self._lay_out(Plan(state["epoch"], ids, weights, full=state["full"], weight_power=power))
        self.done, self.step = state["done"], state["step"]

    def _run(self) -> dict[str, Any]:
        s = self.policy.settings
        own = {f.name: getattr(s, f.name) for f in fields(s) if f.name not in ("present", "num_examples")}
        run = {"policy": self.policy.name, "examples": s.num_examples, **own, "world_size": self.world_size}
        run["drop_last"] = self._drop_last
        return {name: v.item() if isinstance(v, np.generic) else v for name, v in run.items()}

    def _lay_out(self, plan: Plan) -> None:
        """This rank's ids and weights, in training order."""
        self.plan = plan
        m, seed = len(plan.ids), self.policy.settings.seed
        order = np.searchsorted(plan.ids, shuffled(plan.ids, seed=seed, epoch=plan.epoch))
        share = self._share(m)
        if self._drop_last and not share:
            raise ValueError(f"drop_last: the {m} examples of epoch {plan.epoch} fill no batch")
        places = self.rank + np.arange(share) * self.world_size
        rows, real = order[places % max(m, 1)], places < m
        self.ids = plan.ids[rows]
        self.weights = np.where(real, plan.weights[rows], np.float32(0))
        """In batch statistics."""
        self.loss_weights = np.where(real, plan.loss_weights[rows], np.float32(0))

    def _share(self, size: int) -> int:
        """Examples of one rank, of so many in all."""
        share = -(-size // self.world_size)
        if self._drop_last:
            return share - share % self.batch_size
        return share + (self.batch_size > 1 and share % self.batch_size == 1)

    def _gather(self, mine: Any) -> list[Any]:
        """What every rank has, in the order of ranks."""
        found = [mine] * self.world_size
        if self.world_size > 1:
            distributed.all_gather_object(found, mine)
        return found

    def _check_agreement(self, plan: Plan) -> None:
        drawn = hashlib.sha256(plan.ids.tobytes() + plan.weights.tobytes()).hexdigest()
        mine = (self._run(), plan.epoch, drawn)
        for rank, other in enumerate(self._gather(mine)):
            if other != mine:
                raise ValueError(
                    f"ranks disagree: rank {rank} plans epoch {other[1]} of {other[0]}, rank {self.rank}"
                    f" epoch {mine[1]} of {mine[0]}; give all the same dataset, settings and state"
                )


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
