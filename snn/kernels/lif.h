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

/* The potential after a timestep that reached u; of u - theta, a spike leaves the share `kept`. */
INLINE REAL NAME(after)(REAL u, REAL theta, REAL kept) {
    const REAL over = u - theta;
    return over >= 0 ? kept * over : u;
}

/* One timestep of n neurons of potential v. Where given, `reached` takes u = beta v + gain x and `spikes`
 * 0 or 1. */
INLINE void NAME(step)(const Neuron *p, const REAL *restrict current, REAL *restrict v,
                       REAL *restrict reached, REAL *restrict spikes, ptrdiff_t n) {
    const REAL beta = p->beta, gain = p->gain, theta = p->theta, kept = p->hard ? 0 : 1;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL u = beta * v[i] + gain * current[i];
        if (reached) reached[i] = u;
        if (spikes) spikes[i] = u - theta >= 0 ? 1 : 0;
        v[i] = NAME(after)(u, theta, kept);
    }
}

void NAME(lif_forward)(const REAL *current, ptrdiff_t current_step, REAL *spikes, ptrdiff_t spikes_step,
                       ptrdiff_t T, ptrdiff_t n, const Neuron *p) {
    REAL v[BLOCK] __attribute__((aligned(64)));
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        memset(v, 0, sizeof(v));
        for (ptrdiff_t from = 0; from < T; from += STEPS)
            for (ptrdiff_t i = start; i < MIN(n, start + BLOCK); i += PIECE)
                for (ptrdiff_t t = from; t < MIN(T, from + STEPS); t++)
                    NAME(step)(p, current + t * current_step + i, v + i - start, NULL,
                               spikes + t * spikes_step + i, MIN(PIECE, n - i));
    }
}

/* Back through one timestep of n neurons that reached potential u; `grad_v` in: at its end, out: at its
 * start. `grad_u` (may be null) takes the gradient at u. */
INLINE void NAME(back)(const Neuron *p, int surrogate, const REAL *restrict u,
                       const REAL *restrict grad_spikes, REAL *restrict grad_v, REAL *restrict grad_u,
                       REAL *restrict grad_current, ptrdiff_t n) {
    const REAL beta = p->beta, gain = p->gain, theta = p->theta, a = p->scale;
    const REAL kept = p->hard ? 0 : 1;
    /* attached reset: -dv/ds = by_u u + by_theta */
    const REAL by_u = !p->detach && p->hard ? 1 : 0, by_theta = !p->detach && !p->hard ? theta : 0;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL over = u[i] - theta;
        REAL slope = NAME(phi)(over, a, surrogate);
        REAL dv_du = (over >= 0 ? kept : 1) - (by_u * u[i] + by_theta) * slope;
        REAL g = grad_spikes[i] * slope + grad_v[i] * dv_du;
        grad_v[i] = beta * g;
        if (grad_u) grad_u[i] = g;
        grad_current[i] = gain * g;
    }
}

/* The gradient of beta at one timestep, of n neurons that reached `last` before it (null: none did). */
static double NAME(of_beta)(const Neuron *p, const REAL *grad_u, const REAL *last, const REAL *x,
                            ptrdiff_t n) {
    double sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) { /* u = beta v + (1 - beta or 1) x */
        REAL v = last ? NAME(after)(last[i], p->theta, p->hard ? 0 : 1) : 0;
        sum += (double)grad_u[i] * (v - (p->decay_input ? x[i] : 0));
    }
    return sum;
}

#define CASE(S) \
    case S: NAME(back)(p, S, u, grad_spikes, grad_v, grad_u, grad_current, n); break;

static void NAME(back_any)(const Neuron *p, const REAL *u, const REAL *grad_spikes, REAL *grad_v,
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
    const ptrdiff_t block = T > STEPS ? BLOCK : PIECE; /* few timesteps: forward and back piece by piece */
    REAL grad_u[PIECE] __attribute__((aligned(64)));
    REAL *v = aligned_alloc(64, sizeof(REAL) * block * (T + 2));
    if (!v) return 1;
    REAL *grad_v = v + block, *reached = grad_v + block; /* T rows: potentials before resets */
    for (ptrdiff_t start = 0; start < n; start += block) {
        const ptrdiff_t end = MIN(n, start + block);
        memset(v, 0, sizeof(REAL) * block * 2);
        for (ptrdiff_t from = 0; from < T; from += STEPS)
            for (ptrdiff_t i = start; i < end; i += PIECE)
                for (ptrdiff_t t = from; t < MIN(T, from + STEPS); t++)
                    NAME(step)(p, current + t * current_step + i, v + i - start,
                               reached + t * block + i - start, NULL, MIN(PIECE, end - i));
        for (ptrdiff_t to = T; to > 0; to -= STEPS)
            for (ptrdiff_t i = start; i < end; i += PIECE)
                for (ptrdiff_t t = to - 1; t >= MAX(0, to - STEPS); t--) {
                    const REAL *x = current + t * current_step + i, *u = reached + t * block + i - start;
                    const ptrdiff_t size = MIN(PIECE, end - i);
                    NAME(back_any)(p, u, grad_spikes + t * grad_spikes_step + i, grad_v + i - start,
                                   grad_beta ? grad_u : NULL, grad_current + t * grad_current_step + i, size);
                    if (grad_beta)
                        grad_beta[i / PIECE] += NAME(of_beta)(p, grad_u, t ? u - block : NULL, x, size);
                }
    }
    free(v);
    return 0;
}
