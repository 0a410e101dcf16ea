# ruff: noqa: SIM108, RUF005
# mypy: ignore-errors
# (Triton compiles a subset of Python, which neither tool knows.)
"""Triton programs of batch norm with the LIF behind it; imported by the engine alone.

A program has a block of positions (over outer and inner, ``P`` in all) and of channels of a tensor whose
steps are ``[outer][C][I]`` in memory, at all timesteps. Arithmetic is float32; normalised currents and
potentials live in registers.
"""

import triton
import triton.language as tl

from snn.kernels.triton_jit import phi


@triton.jit
def places(P, C, I, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: E741
    """Offsets ``[ROWS, COLUMNS]`` in a step, which of them exist, and the channels ``[1, COLUMNS]``."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return (at // I) * C * I + c * I + at % I, (at < P) & (c < C), c


@triton.jit
def affine(mean, rstd, weight, bias, c, C, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The channels' scale, shift and mean."""
    middle = tl.load(mean + c, mask=c < C, other=0.0)
    scale = tl.load(rstd + c, mask=c < C, other=0.0)
    if HAS_WEIGHT:
        scale = scale * tl.load(weight + c, mask=c < C, other=0.0)
    shift = -middle * scale
    if HAS_BIAS:
        shift = tl.load(bias + c, mask=c < C, other=0.0) - middle * scale
    return scale, shift, middle


@triton.jit
def sums(
    y, y_step, pivots, partial, P, C, I,  # noqa: E741
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``partial[program, 0 or 1, channel]``: sums of ``y - pivot`` and of its square."""
    offset, inside, c = places(P, C, I, ROWS, COLUMNS)
    pivot = tl.load(pivots + c, mask=c < C, other=0.0)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in tl.static_range(T):
        d = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32) - pivot
        d = tl.where(inside, d, 0.0)
        first += d
        second += d * d
        y += y_step
    row = partial + tl.program_id(0) * 2 * C + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS) < C
    tl.store(row, tl.sum(first, 0), mask=exists)
    tl.store(row + C, tl.sum(second, 0), mask=exists)


@triton.jit
def forward(
    y, y_step, spikes, spikes_step, mean, rstd, weight, bias, beta_pointer, P, C, I,  # noqa: E741
    beta, gain, theta,
    T: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, LEARNED: tl.constexpr,
    DECAY: tl.constexpr, HARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Spikes."""
    offset, inside, c = places(P, C, I, ROWS, COLUMNS)
    scale, shift, _ = affine(mean, rstd, weight, bias, c, C, HAS_WEIGHT, HAS_BIAS)
    if LEARNED:
        beta = tl.load(beta_pointer)
        gain = 1 - beta if DECAY else 1.0
    v = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in tl.static_range(T):
        x = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32) * scale + shift
        u = beta * v + gain * x
        s = tl.where(u - theta >= 0, 1.0, 0.0)
        if HARD:
            v = u * (1 - s)
        else:
            v = u - theta * s
        tl.store(spikes + offset, s.to(spikes.dtype.element_ty), mask=inside)
        y += y_step
        spikes += spikes_step


@triton.jit
def backward(
    y, y_step, grad_spikes, grad_spikes_step, grad_y, grad_y_step, mean, rstd, weight, bias, down, along,
    partial, grad_beta, beta_pointer, P, C, I,  # noqa: E741
    beta, gain, theta, surrogate_scale,
    T: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, APPLY: tl.constexpr,
    SUM_OVER_T: tl.constexpr, HAS_GRAD_BETA: tl.constexpr, LEARNED: tl.constexpr, DECAY: tl.constexpr,
    HARD: tl.constexpr, DETACH: tl.constexpr, SURROGATE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Without ``APPLY``, sums of the currents' gradients: alone and times ``y - mean``. With it, the
    gradient of ``y``: ``scale g - down - (y - mean) along``.

    ``grad_spikes`` and ``grad_y`` point to the last step and go back.
    """
    offset, inside, c = places(P, C, I, ROWS, COLUMNS)
    scale, shift, middle = affine(mean, rstd, weight, bias, c, C, HAS_WEIGHT, HAS_BIAS)
    if LEARNED:
        beta = tl.load(beta_pointer)
        gain = 1 - beta if DECAY else 1.0
    v = tl.zeros([ROWS, COLUMNS], tl.float32)
    potentials = ()
    centred = ()
    dudbeta = ()
    for _ in tl.static_range(T):
        value = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32)
        x = value * scale + shift
        u = beta * v + gain * x
        potentials = potentials + (u,)
        centred = centred + (value - middle,)
        if HAS_GRAD_BETA:
            dudbeta = dudbeta + (v - x if DECAY else v,)
        s = tl.where(u - theta >= 0, 1.0, 0.0)
        if HARD:
            v = u * (1 - s)
        else:
            v = u - theta * s
        y += y_step
    if APPLY:
        less = tl.load(down + c, mask=c < C, other=0.0)
        slope = tl.load(along + c, mask=c < C, other=0.0)
    grad_v = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total_y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for_beta = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in tl.static_range(T):
        u = potentials[T - 1 - step]
        p = phi(u - theta, surrogate_scale, SURROGATE)
        if HARD:
            dv_du = tl.where(u - theta >= 0, 0.0, 1.0)
            if not DETACH:
                dv_du -= u * p
        else:
            dv_du = tl.full([ROWS, COLUMNS], 1.0, tl.float32)
            if not DETACH:
                dv_du -= theta * p
        grad_s = tl.load(grad_spikes + offset, mask=inside, other=0.0).to(tl.float32)
        grad_u = grad_s * p + grad_v * dv_du
        grad_v = beta * grad_u
        if HAS_GRAD_BETA:
            for_beta += grad_u * dudbeta[T - 1 - step]
        g = gain * grad_u
        if APPLY and not SUM_OVER_T:
            out = scale * g - less - centred[T - 1 - step] * slope
            tl.store(grad_y + offset, out.to(grad_y.dtype.element_ty), mask=inside)
            grad_y -= grad_y_step
        else:
            total += g
            total_y += g * centred[T - 1 - step]
        grad_spikes -= grad_spikes_step
    if APPLY:
        if SUM_OVER_T:
            out = scale * total - less - centred[0] * slope
            tl.store(grad_y + offset, out.to(grad_y.dtype.element_ty), mask=inside)
    else:
        row = partial + tl.program_id(0) * 2 * C + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        exists = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS) < C
        tl.store(row, tl.sum(total, 0), mask=exists)
        tl.store(row + C, tl.sum(total_y, 0), mask=exists)
        if HAS_GRAD_BETA:
            at = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
            tl.store(grad_beta + at, tl.sum(tl.sum(for_beta, 0), 0))
