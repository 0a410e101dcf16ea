"""SLAMP in one call: calibrate, allocate, mask, estimate the batch norm statistics again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.weights.allocation import Allocation, LayerAllocation, allocate, check_request
from pruning.weights.calibration import Calibration, calibrate
from pruning.weights.criteria import CRITERIA, needs
from pruning.weights.masks import Hold, Masks
from snn.adapters import Adapted, wrap
from snn.batchnorm import reestimate

CALIBRATION_EXAMPLES = 400
NORM_EXAMPLES = 1024
"""Examples that are used of those given."""


@dataclass(frozen=True)
class Pruned:
    """A network's masks, and how they came about; printed, it is a table of the layers."""

    model: Any
    """The network as pruning sees it."""
    allocation: Allocation
    calibration: Calibration

    @property
    def masks(self) -> Masks:
        """Which weights are kept."""
        return self.allocation.masks

    @property
    def layers(self) -> tuple[LayerAllocation, ...]:
        """The table by layer."""
        return self.allocation.layers

    def keep(self, optimizer: Optimizer) -> Hold:
        """Hold the pruned weights at zero while ``optimizer`` retrains (`Masks.keep`)."""
        return self.masks.keep(self.model, optimizer)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        rows = [f"{'layer':{width}}  {'weights':>10}  {'kept':>10}  {'density':>7}  {'SynOps/weight':>13}"]
        rows += [
            f"{x.name:{width}}  {x.numel:>10,}  {x.kept:>10,}  {x.density:>7.3f}  {x.price or 0:>13.1f}"
            for x in self.layers
        ]
        numel, kept = (sum(getattr(x, name) for x in self.layers) for name in ("numel", "kept"))
        rows.append(f"{'all':{width}}  {numel:>10,}  {kept:>10,}  {kept / numel:>7.3f}")
        if self.allocation.synops_fraction is not None:
            rows.append(f"SynOps left: {self.allocation.synops_fraction:.1%}")
        return "\n".join(rows)


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    synops: float | None = None,
    budget: float | None = None,
    criterion: str = "slamp",
    encode: Callable[[Tensor], Tensor] = lambda x: x,
    min_keep: int = 1,
    exclude: Sequence[str] = (),
    previous: Masks | None = None,
) -> Pruned:
    """Prune a trained network in place to one target; to be retrained under the masks.

    The first `CALIBRATION_EXAMPLES` calibrate; the first batches, until they hold `NORM_EXAMPLES`, estimate
    the running statistics of batch norms again; more are not looked at. Take training examples in random
    order.

    Args:
        model: a network with ``synapses()`` (`snn.models.SpikingNetwork`), or one of another library, as it
            is or as `snn.adapters.wrap` sees it.
        batches: inputs, or tuples that begin with them (a ``DataLoader`` of inputs and labels); they are
            moved to the network's device.
        sparsity: share of all weights to prune, in [0, 1).
        synops: share of the dense network's synaptic operations to keep at most, in (0, 1].
        budget: distortion to spend, see `pruning.weights.allocation.allocate`.
        criterion: a key of `pruning.weights.criteria.CRITERIA`, or registered there.
        encode: a batch's inputs to the network's ``x_TB``, ``[T, B, ...]``; as they are when not given.
        min_keep: surviving weights that every layer keeps at least.
        exclude: names of layers to leave alone.
        previous: masks of an earlier round; pruned weights stay pruned.

    Returns:
        the masks and the table by layer.

    Raises:
        ValueError: not exactly one target, one that cannot be reached, no batch, a network without
            spiking neurons, or what `calibrate`, `allocate`, `Masks.apply_` and `snn.batchnorm.reestimate`
            refuse; the network is then unchanged.
    """
    target = {"sparsity": sparsity, "synops": synops, "budget": budget}
    given = [name for name, value in target.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"prune: give exactly one of {', '.join(target)}, not {', '.join(given) or 'none'}")
    CRITERIA[criterion]  # or its error
    network, inputs = _seen(model, batches, encode)
    request: dict[str, Any] = {
        "criterion": criterion,
        "sparsity": sparsity,
        "synops_fraction": synops,
        "budget": budget,
        "min_keep": min_keep,
        "exclude": exclude,
        "previous": previous,
    }
    check_request(network, **request)
    calibration = calibrate(network, _first(inputs, CALIBRATION_EXAMPLES), measure=needs(criterion))
    allocation = allocate(network, calibration, **request)
    weights = [s.layer.weight for s in network.synapses()]
    before = [weight.detach().clone() for weight in weights]
    allocation.masks.apply_(network)
    try:
        reestimate(network, inputs)
    except BaseException:  # nobody would have the masks
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)
        raise
    return Pruned(network, allocation, calibration)


def _seen(
    model: nn.Module, batches: Iterable[Any], encode: Callable[[Tensor], Tensor]
) -> tuple[Any, list[Tensor]]:
    """The network as pruning sees it, and the ``x_TB`` of whole batches, until they hold `NORM_EXAMPLES`."""
    device = next(model.parameters()).device
    network: Any = model if hasattr(model, "synapses") else None
    found: list[Tensor] = []
    count = 0
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"batches: must hold tensors, or tuples that begin with one, not {type(x)}")
        with torch.no_grad():
            x = encode(x.to(device))
        if network is None:
            network = wrap(model, x)
        found.append(network.over_time(x) if isinstance(network, Adapted) else x)
        count += found[-1].shape[1]
        if count >= NORM_EXAMPLES:
            break
    if not count:
        raise ValueError("batches: there is no example to calibrate with")
    return network, found


def _first(inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """The first so many examples."""
    found = []
    for x_TB in inputs:
        if count > 0:
            found.append(x_TB[:, :count])
            count -= x_TB.shape[1]
    return found
