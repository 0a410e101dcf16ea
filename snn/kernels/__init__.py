"""Engines that run the multi-step LIF behind one function.

========  =========================================  ================================================
engine    runs on                                    how
========  =========================================  ================================================
eager     any device and floating dtype              torch operations; the reference
cpu       CPU, float32 and float64                   C, built at first use with the system's compiler
triton    CUDA, float32, bfloat16 and float16        Triton
========  =========================================  ================================================

The fused engines (cpu, triton) keep the current alone for the backward pass and recompute the
potentials from it. ``auto`` takes the fused engine of the tensor's device where it can run, else eager, and
says so once in the log.
"""

import logging
import os
from functools import cache

import torch
from torch import Tensor

from snn.kernels import cpu, eager, fused, triton
from snn.parameters import NeuronParameters

__all__ = ["ENGINES", "choose", "eager", "lif", "prepare"]

ENGINES = ("auto", "eager", "cpu", "triton")
"""Names for ``engine=`` and the environment variable ``SPIKEPRUNE_ENGINE``."""

_log = logging.getLogger(__name__)
_FUSED: dict[str, fused.Engine] = {"cpu": cpu.ENGINE, "triton": triton.ENGINE}
_OF_DEVICE = {"cpu": "cpu", "cuda": "triton"}


def lif(
    current_TB: Tensor,
    parameters: NeuronParameters,
    *,
    beta: Tensor | None = None,
    engine: str | None = None,
) -> Tensor:
    """Spikes ``[T, B, ...]`` from zero potential on, as `snn.neurons.lif` defines them.

    ``engine`` is one of `ENGINES`; when not given, the environment variable ``SPIKEPRUNE_ENGINE``, else the
    fastest that runs here. All give the same spikes.
    """
    chosen = choose(current_TB, engine)
    if chosen == "eager":
        return eager.lif(current_TB, None, parameters, beta)[0]
    try:
        return fused.lif(_FUSED[chosen], current_TB, parameters, beta)
    except RuntimeError as error:
        if "setup_context" not in str(error):  # how torch refuses it where something else is transformed
            raise
        return eager.lif(current_TB, None, parameters, beta)[0]


def choose(current_TB: Tensor, engine: str | None = None) -> str:
    """Name of the engine that runs currents like these: ``eager``, ``cpu`` or ``triton``.

    Raises:
        ValueError: an unknown engine, or one asked for by name that cannot run here.
    """
    source = "engine" if engine is not None else "SPIKEPRUNE_ENGINE"
    wanted = engine if engine is not None else os.environ.get("SPIKEPRUNE_ENGINE") or "auto"
    if wanted not in ENGINES:
        raise ValueError(f"{source}: {wanted!r} is unknown; choose one of {', '.join(ENGINES)}")
    if wanted == "eager":
        return wanted
    if wanted != "auto":
        why_not = _unsupported(_FUSED[wanted], current_TB) or _FUSED[wanted].unavailable()
        if why_not:
            raise ValueError(f"{source}: {wanted!r} cannot run here: {why_not}")
        return wanted
    name = _OF_DEVICE.get(current_TB.device.type)
    if name is None or _unsupported(_FUSED[name], current_TB):
        return "eager"
    return name if _available(name) else "eager"


def prepare() -> str:
    """Build what the engine of CPU tensors builds at first use (seconds of compilation), if it is not yet.

    Returns:
        the engine's name.

    Raises:
        ValueError: the environment asks for an engine that does not exist or cannot run here.
    """
    return choose(torch.zeros(1, 1))


def _unsupported(engine: fused.Engine, current_TB: Tensor) -> str | None:
    """Why an engine cannot run this tensor, or ``None``."""
    if current_TB.device.type not in engine.devices:
        return f"a tensor on {current_TB.device.type}"
    if current_TB.dtype not in engine.dtypes:
        return f"dtype {current_TB.dtype}"
    if len(current_TB) > engine.most_timesteps:
        return f"more than {engine.most_timesteps} timesteps"
    if torch.compiler.is_compiling():
        return "inside torch.compile"
    if type(current_TB) not in (Tensor, torch.nn.Parameter):
        return f"a tensor of type {type(current_TB).__name__}"
    try:
        current_TB.data_ptr()
    except RuntimeError:  # inside the transforms of torch.func
        return "a tensor without memory of its own"
    return None


@cache
def _available(name: str) -> bool:
    why_not = _FUSED[name].unavailable()
    if why_not:
        _log.warning(
            "LIF engine %s cannot run (%s); using eager, which is several times slower", name, why_not
        )
    return not why_not
