"""How fast a run trains, and how much of the speed-up that its policy promises arrives."""

from collections.abc import Sequence
from typing import Any

from pruning.examples.settings import FORWARD_COST

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


def told(record: dict[str, Any]) -> str:
    """A record in one line, for who watches."""
    parts = [f"accuracy {record['test_accuracy']:.2%}"]
    if "examples" in record:
        parts.append(f"{record['examples']:,} examples")
    speed = record.get("speed", {})
    if speed:
        parts.append(f"{speed['examples_per_second']:,.0f}/s")
    if "achieved_over_theoretical" in speed:
        parts.append(f"{speed['achieved_over_theoretical']:.2f} of the theoretical speed-up")
    if record.get("mean_score_age") is not None:
        parts.append(f"scores {record['mean_score_age']:.1f} epochs old")
    return ", ".join(parts)


def _seconds(record: dict[str, Any]) -> float:
    return sum(s for lap, s in record["seconds"].items() if lap not in _APART)
