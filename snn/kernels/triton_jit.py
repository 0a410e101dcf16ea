# ruff: noqa: RUF005, RET505
# mypy: ignore-errors
# (Triton compiles a subset of Python, which neither tool knows.)
"""Triton programs of the multi-step LIF; imported by the engine alone, since triton is slow to import.

One program runs a block of neurons through all timesteps. All arithmetic is float32, whatever the
tensors hold; potentials live in registers (beyond 16 timesteps the compiler spills some) and are never
written. Row pointers advance by the step (in elements), so a step of 0 repeats one row.
"""

import triton
import triton.language as tl


@triton.jit
def reset(u, s, theta, HARD: tl.constexpr):
    """The potential after a step with spikes ``s``."""
    if HARD:
        return u * (1 - s)
    else:
        return u - theta * s


@triton.jit
def slope(u, p, theta, HARD: tl.constexpr, DETACH: tl.constexpr):
    """Derivative of `reset` by the potential before it; ``p`` is the surrogate's."""
    if HARD:
        kept = tl.where(u - theta >= 0, 0.0, 1.0)
        if not DETACH:
            kept -= u * p
    else:
        kept = tl.full(u.shape, 1.0, tl.float32)
        if not DETACH:
            kept -= theta * p
    return kept


@triton.jit
def forward(
    current, current_step, spikes, spikes_step, beta_pointer, N, beta, gain, theta,
    T: tl.constexpr, LEARNED: tl.constexpr, DECAY: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spikes from zero potential on."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    if LEARNED:
        beta = tl.load(beta_pointer)
        gain = 1 - beta if DECAY else 1.0
    v = tl.zeros([BLOCK], tl.float32)
    for _ in tl.static_range(T):
        x = tl.load(current + i, mask=inside, other=0.0).to(tl.float32)
        u = beta * v + gain * x
        s = tl.where(u - theta >= 0, 1.0, 0.0)
        v = reset(u, s, theta, HARD)
        tl.store(spikes + i, s.to(spikes.dtype.element_ty), mask=inside)
        spikes += spikes_step
        current += current_step


@triton.jit
def phi(x, scale, SURROGATE: tl.constexpr):
    """The surrogate's derivative, as `snn.surrogate` defines it."""
    if SURROGATE == "atan":
        y = 1.5707963267948966 * scale * x
        return scale / 2 / (1 + y * y)
    elif SURROGATE == "sigmoid":
        e = tl.exp(-tl.abs(scale * x))
        return scale * e / ((1 + e) * (1 + e))
    elif SURROGATE == "triangle":
        return scale * tl.maximum(1 - scale * tl.abs(x), 0.0)
    else:
        y = 1 + scale * tl.abs(x)
        return 1 / (y * y)


@triton.jit
def backward(
    current, current_step, grad_spikes, grad_spikes_step, grad_current, grad_current_step, grad_beta,
    beta_pointer, N, beta, gain, theta, scale,
    T: tl.constexpr, HAS_GRAD_BETA: tl.constexpr, LEARNED: tl.constexpr, DECAY: tl.constexpr,
    HARD: tl.constexpr, DETACH: tl.constexpr, SURROGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of all timesteps.

    ``grad_spikes`` and ``grad_current`` point to the last step and go back. ``grad_beta`` takes one
    partial sum per program.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    if LEARNED:
        beta = tl.load(beta_pointer)
        gain = 1 - beta if DECAY else 1.0
    v = tl.zeros([BLOCK], tl.float32)
    potentials = ()
    dudbeta = ()
    for _ in tl.static_range(T):
        x = tl.load(current + i, mask=inside, other=0.0).to(tl.float32)
        u = beta * v + gain * x
        potentials = potentials + (u,)
        if HAS_GRAD_BETA:
            dudbeta = dudbeta + (v - x if DECAY else v,)
        s = tl.where(u - theta >= 0, 1.0, 0.0)
        v = reset(u, s, theta, HARD)
        current += current_step
    grad_v = tl.zeros([BLOCK], tl.float32)
    for_beta = tl.zeros([BLOCK], tl.float32)
    for step in tl.static_range(T):
        u = potentials[T - 1 - step]
        p = phi(u - theta, scale, SURROGATE)
        grad_s = tl.load(grad_spikes + i, mask=inside, other=0.0).to(tl.float32)
        grad_u = grad_s * p + grad_v * slope(u, p, theta, HARD, DETACH)
        grad_v = beta * grad_u
        if HAS_GRAD_BETA:
            for_beta += tl.where(inside, grad_u * dudbeta[T - 1 - step], 0.0)
        tl.store(grad_current + i, (gain * grad_u).to(grad_current.dtype.element_ty), mask=inside)
        grad_current -= grad_current_step
        grad_spikes -= grad_spikes_step
    if HAS_GRAD_BETA:
        tl.store(grad_beta + tl.program_id(0), tl.sum(for_beta, 0))
