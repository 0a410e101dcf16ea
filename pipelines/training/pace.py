"""How fast a run trains, and how much of the speed-up that its policy promises arrives."""

from collections.abc import Mapping, Sequence
from typing import Any

from pruning.examples.policies.settings import FORWARD_COST

_APART = ("evaluate", "norm", "diagnose", "table", "report", "total")
"""Laps that full and pruned epochs have alike, whatever is trained."""


def pace(
    earlier: Sequence[dict[str, Any]],
    record: dict[str, Any],
    *,
    num_examples: int,
    scoring_share: float = 1.0,
) -> dict[str, float]:
    """An epoch's speed, for its record.

    The unit is what the phase's full epochs took so far (validation apart). In theory a pruned epoch takes
    its share of the examples of that, and a scoring pass `FORWARD_COST` of it.

    Args:
        earlier: the phase's records so far.
        record: the epoch's, with ``examples``, ``rescored`` and ``seconds``.
        num_examples: of a full epoch.
        scoring_share: of the timesteps that a scoring pass runs.

    Returns:
        ``examples_per_second`` (trained, of this epoch) and, once there have been a full and a pruned epoch,
        ``achieved_over_theoretical`` speed-up over the pruned epochs so far.
    """
    found = {"examples_per_second": round(record["examples"] / max(record["seconds"]["train"], 1e-9), 1)}
    epochs = [*earlier, record]
    full = [_seconds(r) for r in epochs if r["examples"] >= num_examples]
    pruned = [r for r in epochs if r["examples"] < num_examples]
    if full and pruned:
        shares = (
            r["examples"] / num_examples + FORWARD_COST * scoring_share * r["rescored"] / num_examples
            for r in pruned
        )
        theory = sum(full) / len(full) * sum(shares)
        found["achieved_over_theoretical"] = round(theory / max(sum(map(_seconds, pruned)), 1e-9), 3)
    return found


def accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's accuracies by split (``val``, ``test``): first that which every epoch has."""
    names = {split: f"{split}_accuracy" for split in ("val", "test")}
    return {split: record[name] for split, name in names.items() if name in record}


def told(record: dict[str, Any]) -> str:
    """A record's accuracy and speed, for the terminal; metrics.jsonl has the rest."""
    found = accuracies(record)
    line = f"{'/'.join(found)} accuracy {' / '.join(f'{value:.2%}' for value in found.values())}"
    speed = record.get("speed")
    return f"{line}, {speed['examples_per_second']:,.0f} examples/s" if speed else line


def _seconds(record: dict[str, Any]) -> float:
    return sum(s for lap, s in record["seconds"].items() if lap not in _APART)
