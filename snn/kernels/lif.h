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

typedef struct {
    REAL beta, gain, theta, scale;
    REAL kept;             /* of u - theta after a spike: 1 in the soft reset, 0 in the hard one */
    REAL by_u, by_theta;   /* attached reset: -dv/ds = by_u u + by_theta */
    int decay_input, surrogate;
} NAME(Cell);

INLINE NAME(Cell) NAME(cell)(const Neuron *p) {
    NAME(Cell) c = {p->beta, p->gain, p->theta, p->scale, p->hard ? 0 : 1,
                    !p->detach && p->hard ? 1 : 0, !p->detach && !p->hard ? p->theta : 0,
                    p->decay_input, p->surrogate};
    return c;
}

/* K timesteps of n neurons from potential v to potential v. */
INLINE void NAME(forward_steps)(const NAME(Cell) *c, int K, int write, const REAL *restrict current,
                                ptrdiff_t step, REAL *restrict v, REAL *restrict out, ptrdiff_t out_step,
                                ptrdiff_t n) {
    const REAL beta = c->beta, gain = c->gain, theta = c->theta, kept = c->kept;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL vi = v[i];
        UNROLLED
        for (int k = 0; k < K; k++) {
            REAL u = beta * vi + gain * current[k * step + i];
            REAL over = u - theta;
            if (write) out[k * out_step + i] = over >= 0 ? 1 : 0;
            vi = over >= 0 ? kept * over : u;
        }
        v[i] = vi;
    }
}

/* Timesteps [t, end) of one block; `states` (where given) keeps the potential at each segment's start. */
INLINE void NAME(forward_block)(const NAME(Cell) *c, int write, int singly, const REAL *current,
                                ptrdiff_t step, REAL *v, REAL *out, ptrdiff_t out_step, ptrdiff_t T,
                                ptrdiff_t n, REAL *states) {
    for (ptrdiff_t t = 0; t < T;) {
        if (states) {
            memcpy(states, v, n * sizeof(REAL));
            states += BLOCK;
        }
        const REAL *x = current + t * step;
        REAL *s = write ? out + t * out_step : NULL;
        if (!singly && T - t >= STEPS) {
            NAME(forward_steps)(c, STEPS, write, x, step, v, s, out_step, n);
            t += STEPS;
        } else {
            NAME(forward_steps)(c, 1, write, x, step, v, s, out_step, n);
            t++;
        }
    }
}

void NAME(lif_forward)(const REAL *current, ptrdiff_t current_step, const REAL *state, REAL *spikes,
                       ptrdiff_t spikes_step, REAL *end, ptrdiff_t T, ptrdiff_t n, const Neuron *p) {
    NAME(Cell) c = NAME(cell)(p);
    REAL v[BLOCK] __attribute__((aligned(64)));
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        ptrdiff_t size = n - start < BLOCK ? n - start : BLOCK;
        if (state) memcpy(v, state + start, size * sizeof(REAL));
        else memset(v, 0, size * sizeof(REAL));
        NAME(forward_block)(&c, 1, 0, current + start, current_step, v, spikes + start, spikes_step, T, size,
                            NULL);
        if (end) memcpy(end + start, v, size * sizeof(REAL));
    }
}

/* Gradients of one block of n neurons, at all timesteps. */
typedef struct {
    ptrdiff_t T, n;
    const REAL *current, *grad_spikes;
    ptrdiff_t step, grad_spikes_step, out_step;
    REAL *out;         /* gradients of currents */
    REAL *grad_v;      /* in: at the end; out: at the start */
    double *grad_beta; /* += those of each neuron's beta; may be null */
} NAME(Block);

typedef struct {
    REAL *states; /* segments * BLOCK */
    REAL *v, *row;
} NAME(Scratch);

/* STEPS timesteps at t: the potentials again, then back through them, all in registers. */
INLINE void NAME(backward_steps)(const NAME(Cell) *c, const NAME(Block) *b, int summed, int surrogate,
                                 ptrdiff_t t, const REAL *restrict before) {
    const REAL beta = c->beta, gain = c->gain, theta = c->theta, kept = c->kept, a = c->scale;
    const REAL by_u = c->by_u, by_theta = c->by_theta;
    const ptrdiff_t step = b->step, gs_step = b->grad_spikes_step, out_step = b->out_step, n = b->n;
    const REAL *restrict current = b->current + t * step;
    const REAL *restrict gs = b->grad_spikes + t * gs_step;
    REAL *restrict out = b->out + t * out_step, *restrict grad_v = b->grad_v;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL u[STEPS], v = before[i];
        UNROLLED
        for (int k = 0; k < STEPS; k++) {
            u[k] = beta * v + gain * current[k * step + i];
            v = u[k] - theta >= 0 ? kept * (u[k] - theta) : u[k];
        }
        REAL gv = grad_v[i], total = 0;
        UNROLLED
        for (int k = STEPS - 1; k >= 0; k--) {
            REAL over = u[k] - theta;
            REAL p = NAME(phi)(over, a, surrogate);
            REAL dv_du = (over >= 0 ? kept : 1) - (by_u * u[k] + by_theta) * p;
            REAL g = gs[k * gs_step + i] * p + gv * dv_du;
            gv = beta * g;
            g *= gain;
            if (summed) total += g;
            else out[k * out_step + i] = g;
        }
        grad_v[i] = gv;
        if (summed) out[i] += total;
    }
}

INLINE void NAME(backward_row)(const NAME(Cell) *c, int surrogate, const REAL *restrict before,
                               const REAL *restrict x, const REAL *restrict gs, REAL *restrict grad_v,
                               REAL *restrict row, ptrdiff_t n) {
    const REAL beta = c->beta, gain = c->gain, theta = c->theta, kept = c->kept, a = c->scale;
    const REAL by_u = c->by_u, by_theta = c->by_theta;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL u = beta * before[i] + gain * x[i];
        REAL over = u - theta;
        REAL p = NAME(phi)(over, a, surrogate);
        REAL dv_du = (over >= 0 ? kept : 1) - (by_u * u + by_theta) * p;
        row[i] = gs[i] * p + grad_v[i] * dv_du;
        grad_v[i] = beta * row[i];
    }
}

/* One timestep of any kind: slower, with everything that the loop above leaves out. */
static void NAME(backward_step)(const NAME(Cell) *c, const NAME(Block) *b, int summed, ptrdiff_t t,
                                const REAL *restrict before, const NAME(Scratch) *s) {
    const ptrdiff_t n = b->n;
    const REAL gain = c->gain;
    const REAL *restrict x = b->current + t * b->step;
    const REAL *restrict gs = b->grad_spikes + t * b->grad_spikes_step;
    REAL *restrict row = s->row, *restrict out = b->out + t * b->out_step;
    switch (c->surrogate) {
        case ATAN: NAME(backward_row)(c, ATAN, before, x, gs, b->grad_v, row, n); break;
        case SIGMOID: NAME(backward_row)(c, SIGMOID, before, x, gs, b->grad_v, row, n); break;
        case TRIANGLE: NAME(backward_row)(c, TRIANGLE, before, x, gs, b->grad_v, row, n); break;
        default: NAME(backward_row)(c, FAST_SIGMOID, before, x, gs, b->grad_v, row, n);
    }
    if (b->grad_beta) {
        /* u = beta v + (1 - beta or 1) x */
        double *restrict sum = b->grad_beta;
        for (ptrdiff_t i = 0; i < n; i++) sum[i] += (double)row[i] * (before[i] - (c->decay_input ? x[i] : 0));
    }
    for (ptrdiff_t i = 0; i < n; i++) row[i] *= gain;
    if (summed)
        for (ptrdiff_t i = 0; i < n; i++) out[i] += row[i];
    else
        memcpy(out, row, n * sizeof(REAL));
}

#define CASE(S)                                                                        \
    case S:                                                                            \
        if (summed) NAME(backward_steps)(c, b, 1, S, t, states);                       \
        else NAME(backward_steps)(c, b, 0, S, t, states);                              \
        break;

/* Segments of several timesteps; single ones follow. Doubles go singly: they are for tests, and half as
 * many loops compile in half the time. */
INLINE ptrdiff_t NAME(several)(const NAME(Block) *b) {
    return b->grad_beta != NULL || sizeof(REAL) == 8 ? 0 : b->T / STEPS;
}

/* The potentials at every segment's start, from those at the first one's in `s->v`: how many segments. */
INLINE ptrdiff_t NAME(segments)(const NAME(Cell) *c, const NAME(Block) *b, const NAME(Scratch) *s) {
    const ptrdiff_t several = NAME(several)(b), segments = several + b->T - several * STEPS;
    const ptrdiff_t last = segments - several ? 1 : STEPS; /* timesteps of the last segment */
    /* the last segment's potentials are its own business */
    memcpy(s->states, s->v, b->n * sizeof(REAL));
    if (segments > 1) {
        NAME(forward_block)(c, 0, several == 0, b->current, b->step, s->v, NULL, 0, b->T - last, b->n,
                            s->states);
        memcpy(s->states + (segments - 1) * BLOCK, s->v, b->n * sizeof(REAL));
    }
    if (b->out_step == 0) memset(b->out, 0, b->n * sizeof(REAL));
    return segments;
}

/* Back through the segments, the last ones first. */
INLINE void NAME(backward_segments)(const NAME(Cell) *c, const NAME(Block) *b, const NAME(Scratch) *s,
                                    ptrdiff_t segments) {
    const int summed = b->out_step == 0;
    const ptrdiff_t several = NAME(several)(b);
    for (ptrdiff_t segment = segments - 1; segment >= 0; segment--) {
        const REAL *states = s->states + segment * BLOCK;
        if (segment >= several) {
            NAME(backward_step)(c, b, summed, segment + several * (STEPS - 1), states, s);
            continue;
        }
        const ptrdiff_t t = segment * STEPS;
        switch (c->surrogate) {
            CASE(ATAN)
            CASE(SIGMOID)
            CASE(TRIANGLE)
            CASE(FAST_SIGMOID)
        }
    }
}
#undef CASE

static int NAME(make_scratch)(NAME(Scratch) *s, ptrdiff_t T) {
    s->states = aligned_alloc(64, sizeof(REAL) * BLOCK * (T + 2));
    if (!s->states) return 0;
    s->v = s->states + T * BLOCK;
    s->row = s->v + BLOCK;
    return 1;
}

/* 0 on success, 1 when there is no memory for the scratch. `grad_beta` (may be null): += a sum for every
 * PIECE neurons. */
int NAME(lif_backward)(const REAL *current, ptrdiff_t current_step, const REAL *state,
                       const REAL *grad_spikes, ptrdiff_t grad_spikes_step, const REAL *grad_end,
                       REAL *grad_current, ptrdiff_t grad_current_step, REAL *grad_state,
                       double *grad_beta, ptrdiff_t T, ptrdiff_t n, const Neuron *p) {
    NAME(Cell) c = NAME(cell)(p);
    NAME(Scratch) scratch;
    REAL grad_v[BLOCK] __attribute__((aligned(64)));
    double of_beta[BLOCK] = {0};
    if (!NAME(make_scratch)(&scratch, T)) return 1;
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        ptrdiff_t size = n - start < BLOCK ? n - start : BLOCK;
        if (state) memcpy(scratch.v, state + start, size * sizeof(REAL));
        else memset(scratch.v, 0, size * sizeof(REAL));
        if (grad_end) memcpy(grad_v, grad_end + start, size * sizeof(REAL));
        else memset(grad_v, 0, size * sizeof(REAL));
        NAME(Block) b = {T, size, current + start, grad_spikes + start, current_step, grad_spikes_step,
                         grad_current_step, grad_current + start, grad_v, grad_beta ? of_beta : NULL};
        NAME(backward_segments)(&c, &b, &scratch, NAME(segments)(&c, &b, &scratch));
        if (grad_beta) {
            for (ptrdiff_t i = 0; i < size; i++) grad_beta[(start + i) / PIECE] += of_beta[i];
            memset(of_beta, 0, sizeof(of_beta));
        }
        if (grad_state) memcpy(grad_state + start, grad_v, size * sizeof(REAL));
    }
    free(scratch.states);
    return 0;
}
