"""What pruning each layer alone does to the scores, beside what was predicted: a diagnostic."""

from math import log
from statistics import stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.training.evaluation import BATCH
from pruning.weights.allocation import Allocation

if TYPE_CHECKING:
    from pipelines.training.worker import Worker


@torch.no_grad()
def measure_distortion(worker: "Worker", allocation: Allocation, examples: int) -> dict[str, Any]:
    """Distortion of every layer that is masked alone, on held-out examples, for JSON.

    Args:
        worker: its network is not masked yet; it is left as it was.
        allocation: masks and predictions.
        examples: held-out examples over all workers, at most.

    Returns:
        ``examples``; by layer ``predicted`` (the criterion's estimate, in its own units) and ``measured``
        (squared change of the time-mean logits, summed over classes, mean over examples); ``log_spread``,
        the standard deviation of log(measured / predicted) over layers, None below two such layers.
    """
    model, engine = worker.model, worker.engine
    share = -(-examples // engine.world_size)
    rows = engine.held_out(worker.spec.watched).head(share)
    batches = [rows.ids[:share][i : i + BATCH] for i in range(0, min(share, len(rows.ids)), BATCH)]

    def scores() -> Tensor:
        parts = [model(worker.inputs(rows.get(ids)[0], engine.device)).mean(0) for ids in batches]
        return torch.cat(parts).double()

    model.eval()
    reference = scores()
    sums = []
    for s in model.synapses():
        weight = s.layer.weight
        whole = weight.clone()
        weight.masked_fill_(~allocation.masks[s.name].to(weight.device), 0)
        sums.append((scores() - reference).square().sum())
        weight.copy_(whole)
    model.train()
    count = torch.tensor([len(reference)], dtype=torch.float64)
    *totals, n = engine.sum(torch.cat([torch.stack(sums).cpu(), count])).tolist()
    layers = [
        {"name": layer.name, "predicted": layer.distortion, "measured": total / n}
        for layer, total in zip(allocation.layers, totals, strict=True)
    ]
    ratios = [log(r["measured"] / r["predicted"]) for r in layers if r["measured"] > 0 and r["predicted"] > 0]
    return {
        "examples": round(n),
        "layers": layers,
        "log_spread": stdev(ratios) if len(ratios) > 1 else None,
    }
