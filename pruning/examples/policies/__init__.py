"""All data-pruning policies behind one registry: ``make_policy("sadp", num_examples=..., ...)``."""

import inspect
from typing import Any

import numpy as np

from pruning.examples.inclusion import Bools
from pruning.examples.policies.base import Cost, Plan, Policy
from pruning.examples.policies.chosen import Orderdp, Static, Ucb
from pruning.examples.policies.drawn import El2n, Full, Infobatch, InfobatchMatched, Loss, Random, Sadp
from pruning.examples.policies.repb import Repb, RepbMatched
from pruning.examples.policies.seta import Seta, SetaMatched
from pruning.examples.policies.settings import Settings
from snn.registry import Registry

__all__ = ["POLICIES", "Cost", "Plan", "Policy", "Settings", "make_policy"]

_OURS: tuple[type[Policy], ...] = (
    *(Full, Random, Static, Infobatch, InfobatchMatched, El2n, Ucb, Loss, Sadp),
    *(Seta, SetaMatched, Repb, RepbMatched, Orderdp),
)
POLICIES = Registry("policy", {policy.name: policy for policy in _OURS})
"""Every policy by its name."""


def make_policy(
    name: str,
    *,
    num_examples: int,
    present: Bools | None = None,
    ratio: float,
    seed: int,
    epochs: int,
    **options: Any,
) -> Policy:
    """A registered policy.

    Args:
        name: a key of ``POLICIES``, or one of your own that is registered.
        num_examples: ``N``; ids run from 0 to ``N - 1``.
        present: mask ``[N]`` of ids that exist; all of them when not given.
        ratio: pruning ratio ``r``, the share left out, in [0, 1).
        seed: of the draws.
        epochs: length of the run.
        options: further fields of `Settings`, and what the policy's class takes beyond these; where
            ``rescore_every`` or ``weight_power`` is not given, or None, it is the policy's own.

    Raises:
        ValueError: an unknown policy or option, or a value outside its range.
    """
    cls = POLICIES[name]
    if not (isinstance(cls, type) and issubclass(cls, Policy)):
        raise ValueError(f"policy: {name} must be a subclass of pruning.examples.policies.base.Policy")
    shared = {f: options.pop(f) for f in Settings.__dataclass_fields__ if f in options}
    own = set(inspect.signature(cls.__init__).parameters) - {"self", "settings"}
    unknown = sorted(set(options) - own)
    if unknown:
        raise ValueError(f"policy {name}: unknown option {unknown[0]!r}; it takes {sorted(own) or 'none'}")
    for field in ("rescore_every", "weight_power"):
        if shared.get(field) is None:
            shared[field] = getattr(cls, field)
    if present is not None:
        present = np.array(present, dtype=bool)
    settings = Settings(
        num_examples=num_examples, present=present, ratio=ratio, seed=seed, epochs=epochs, **shared
    )
    return cls(settings, **options)
