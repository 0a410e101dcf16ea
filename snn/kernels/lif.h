/* The LIF for one REAL. */

INLINE REAL NAME(phi)(REAL x, REAL a, int surrogate) {
    if (surrogate == ATAN) {
        REAL y = (REAL)1.57079632679489661923 * a * x;
        return a / 2 / (1 + y * y);
    }
    if (surrogate == SIGMOID) {
        REAL e = EXP(-FABS(a * x));
        return a * e / ((1 + e) * (1 + e));
    }
    if (surrogate == TRIANGLE) {
        REAL y = 1 - a * FABS(x);
        return y > 0 ? a * y : 0;
    }
    REAL y = 1 + a * FABS(x);
    return 1 / (y * y);
}

/* One timestep of n neurons: potential v to potential `after`, and spikes where wanted. */
INLINE void NAME(step)(const Neuron *p, const REAL *restrict current, const REAL *v, REAL *after,
                       REAL *restrict spikes, ptrdiff_t n) {
    const REAL beta = p->beta, gain = p->gain, theta = p->theta;
    const REAL kept = p->hard ? 0 : 1; /* of u - theta after a spike */
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL u = beta * v[i] + gain * current[i];
        REAL over = u - theta;
        if (spikes) spikes[i] = over >= 0 ? 1 : 0;
        after[i] = over >= 0 ? kept * over : u;
    }
}

void NAME(lif_forward)(const REAL *current, ptrdiff_t current_step, REAL *spikes, ptrdiff_t spikes_step,
                       ptrdiff_t T, ptrdiff_t n, const Neuron *p) {
    REAL v[BLOCK] __attribute__((aligned(64)));
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const ptrdiff_t size = n - start < BLOCK ? n - start : BLOCK;
        memset(v, 0, sizeof(v));
        for (ptrdiff_t t = 0; t < T; t++)
            NAME(step)(p, current + t * current_step + start, v, v, spikes + t * spikes_step + start, size);
    }
}

/* Back through one timestep of n neurons that began it at potential v; `grad_v` in: at its end, out: at its
 * start. `grad_u` (may be null) takes the gradient at u = beta v + gain x. */
INLINE void NAME(back)(const Neuron *p, int surrogate, const REAL *restrict x, const REAL *restrict v,
                       const REAL *restrict grad_spikes, REAL *restrict grad_v, REAL *restrict grad_u,
                       REAL *restrict grad_current, ptrdiff_t n) {
    const REAL beta = p->beta, gain = p->gain, theta = p->theta, a = p->scale;
    const REAL kept = p->hard ? 0 : 1;
    /* attached reset: -dv/ds = by_u u + by_theta */
    const REAL by_u = !p->detach && p->hard ? 1 : 0, by_theta = !p->detach && !p->hard ? theta : 0;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL u = beta * v[i] + gain * x[i];
        REAL over = u - theta;
        REAL slope = NAME(phi)(over, a, surrogate);
        REAL dv_du = (over >= 0 ? kept : 1) - (by_u * u + by_theta) * slope;
        REAL g = grad_spikes[i] * slope + grad_v[i] * dv_du;
        grad_v[i] = beta * g;
        if (grad_u) grad_u[i] = g;
        grad_current[i] = gain * g;
    }
}

#define CASE(S) \
    case S: NAME(back)(p, S, x, v, grad_spikes, grad_v, grad_u, grad_current, n); break;

static void NAME(back_any)(const Neuron *p, const REAL *x, const REAL *v, const REAL *grad_spikes, REAL *grad_v,
                           REAL *grad_u, REAL *grad_current, ptrdiff_t n) {
    switch (p->surrogate) {
        CASE(ATAN)
        CASE(SIGMOID)
        CASE(TRIANGLE)
        CASE(FAST_SIGMOID)
    }
}
#undef CASE

/* 0 on success, 1 when there is no memory for the potentials. `grad_beta` (may be null): += a sum for every
 * PIECE neurons. */
int NAME(lif_backward)(const REAL *current, ptrdiff_t current_step, const REAL *grad_spikes,
                       ptrdiff_t grad_spikes_step, REAL *grad_current, ptrdiff_t grad_current_step,
                       double *grad_beta, ptrdiff_t T, ptrdiff_t n, const Neuron *p) {
    REAL grad_v[BLOCK] __attribute__((aligned(64))), grad_u[BLOCK] __attribute__((aligned(64)));
    REAL *states = aligned_alloc(64, sizeof(REAL) * BLOCK * T); /* potentials before each timestep */
    if (!states) return 1;
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const ptrdiff_t size = n - start < BLOCK ? n - start : BLOCK;
        memset(states, 0, sizeof(REAL) * BLOCK);
        memset(grad_v, 0, sizeof(grad_v));
        for (ptrdiff_t t = 0; t + 1 < T; t++)
            NAME(step)(p, current + t * current_step + start, states + t * BLOCK, states + (t + 1) * BLOCK, NULL,
                       size);
        for (ptrdiff_t t = T - 1; t >= 0; t--) {
            const REAL *x = current + t * current_step + start, *v = states + t * BLOCK;
            NAME(back_any)(p, x, v, grad_spikes + t * grad_spikes_step + start, grad_v,
                           grad_beta ? grad_u : NULL, grad_current + t * grad_current_step + start, size);
            if (!grad_beta) continue;
            for (ptrdiff_t i = 0; i < size; i++) /* u = beta v + (1 - beta or 1) x */
                grad_beta[(start + i) / PIECE] += (double)grad_u[i] * (v[i] - (p->decay_input ? x[i] : 0));
        }
    }
    free(states);
    return 0;
}
