/* The multi-step LIF, forward and backward, for T rows of n neurons in memory order.
 *
 * Same operations in the same order as the eager engine, so spikes are bit-equal as long as nothing
 * is contracted to fused multiply-adds (-ffp-contract=off). Neurons go through in blocks whose
 * potentials stay in the processor's cache. Row strides are in elements; 0 repeats one row, and in
 * grad_current it means: the sum over all timesteps.
 */
#ifndef REAL

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { ATAN, SIGMOID, TRIANGLE, FAST_SIGMOID };

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, REAL)
#define INLINE static inline __attribute__((always_inline))

/* e^x for x <= 0 within a few ulp, in operations that vectorise (libm's expf does not):
 * x = n ln 2 + r, a polynomial (minimax, Cephes) in r, and n into the exponent. */
INLINE float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* 1.5 2^23: rounds to the nearest integer */
    union { float f; int32_t i; } bits = {n};
    n -= 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    bits.i = (bits.i << 23) + 0x3f800000;
    return p * bits.f;
}

#define REAL float
#define EXP exp_negative
#define FABS fabsf
#include "lif.c"
#undef REAL
#undef EXP
#undef FABS

#define REAL double
#define EXP exp
#define FABS fabs
#include "lif.c"

#else

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

INLINE REAL NAME(after_reset)(REAL u, REAL s, REAL theta, int hard) {
    return hard ? u * (1 - s) : u - theta * s;
}

INLINE void NAME(forward_rows)(const REAL *restrict current, ptrdiff_t current_step,
                               const REAL *restrict state, REAL *restrict spikes, ptrdiff_t spikes_step,
                               REAL *restrict end, ptrdiff_t T, ptrdiff_t n, REAL beta, REAL gain,
                               REAL theta, int hard) {
    enum { BLOCK = 1024 };
    REAL v[BLOCK];
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        ptrdiff_t size = n - start < BLOCK ? n - start : BLOCK;
        for (ptrdiff_t i = 0; i < size; i++) v[i] = state ? state[start + i] : 0;
        for (ptrdiff_t t = 0; t < T; t++) {
            const REAL *restrict x = current + t * current_step + start;
            REAL *restrict out = spikes + t * spikes_step + start;
            for (ptrdiff_t i = 0; i < size; i++) {
                REAL u = beta * v[i] + gain * x[i];
                REAL s = u - theta >= 0 ? 1 : 0;
                v[i] = NAME(after_reset)(u, s, theta, hard);
                out[i] = s;
            }
        }
        if (end)
            for (ptrdiff_t i = 0; i < size; i++) end[start + i] = v[i];
    }
}

void NAME(lif_forward)(const REAL *current, ptrdiff_t current_step, const REAL *state, REAL *spikes,
                       ptrdiff_t spikes_step, REAL *end, ptrdiff_t T, ptrdiff_t n, double beta,
                       double gain, double theta, int hard) {
    if (hard)
        NAME(forward_rows)(current, current_step, state, spikes, spikes_step, end, T, n, beta, gain, theta, 1);
    else
        NAME(forward_rows)(current, current_step, state, spikes, spikes_step, end, T, n, beta, gain, theta, 0);
}

typedef struct {
    const REAL *current, *state, *grad_spikes, *grad_end;
    REAL *grad_current, *grad_state;
    ptrdiff_t current_step, grad_spikes_step, grad_current_step, T, n;
    REAL beta, gain, theta, scale;
    int decay_input;
    double *grad_beta; /* added to; may be null */
    REAL *scratch;     /* (T + 3) * block */
    ptrdiff_t block;
} NAME(Backward);

/* d loss / d beta at one timestep: u = beta v + (1 - beta or 1) I. */
INLINE double NAME(beta_row)(const NAME(Backward) *a, const REAL *restrict grad_u, const REAL *restrict before,
                             const REAL *restrict v0, const REAL *restrict x, ptrdiff_t size, int hard) {
    double sum = 0;
    for (ptrdiff_t i = 0; i < size; i++) {
        REAL v = v0 ? v0[i] : 0;
        if (before) v = NAME(after_reset)(before[i], before[i] - a->theta >= 0 ? 1 : 0, a->theta, hard);
        sum += (double)grad_u[i] * (v - (a->decay_input ? x[i] : 0));
    }
    return sum;
}

INLINE void NAME(backward_rows)(const NAME(Backward) *a, int hard, int detach, int surrogate) {
    const ptrdiff_t T = a->T, block = a->block;
    const REAL beta = a->beta, gain = a->gain, theta = a->theta, scale = a->scale;
    REAL *restrict u = a->scratch;
    REAL *restrict v = u + T * block;
    REAL *restrict grad_v = v + block;
    REAL *restrict row = grad_v + block;
    const int summed = a->grad_current_step == 0;
    const int apart = summed || a->grad_beta; /* gradients of u go through a row of scratch */
    const REAL factor = apart ? 1 : gain;
    for (ptrdiff_t start = 0; start < a->n; start += block) {
        ptrdiff_t size = a->n - start < block ? a->n - start : block;
        const REAL *v0 = a->state ? a->state + start : NULL;
        for (ptrdiff_t i = 0; i < size; i++) v[i] = v0 ? v0[i] : 0;
        for (ptrdiff_t t = 0; t < T; t++) {
            const REAL *restrict x = a->current + t * a->current_step + start;
            REAL *restrict ut = u + t * block;
            for (ptrdiff_t i = 0; i < size; i++) {
                ut[i] = beta * v[i] + gain * x[i];
                v[i] = NAME(after_reset)(ut[i], ut[i] - theta >= 0 ? 1 : 0, theta, hard);
            }
        }
        for (ptrdiff_t i = 0; i < size; i++) grad_v[i] = a->grad_end ? a->grad_end[start + i] : 0;
        if (summed)
            for (ptrdiff_t i = 0; i < size; i++) a->grad_current[start + i] = 0;
        for (ptrdiff_t t = T - 1; t >= 0; t--) {
            const REAL *restrict gs = a->grad_spikes + t * a->grad_spikes_step + start;
            REAL *restrict gx = a->grad_current + t * a->grad_current_step + start;
            const REAL *restrict ut = u + t * block;
            REAL *restrict out = apart ? row : gx;
            for (ptrdiff_t i = 0; i < size; i++) {
                REAL x = ut[i] - theta;
                REAL p = NAME(phi)(x, scale, surrogate);
                REAL dv_du = hard && x >= 0 ? 0 : 1;
                if (!detach) dv_du -= (hard ? ut[i] : theta) * p;
                REAL g = gs[i] * p + grad_v[i] * dv_du;
                out[i] = factor * g;
                grad_v[i] = beta * g;
            }
            if (summed)
                for (ptrdiff_t i = 0; i < size; i++) gx[i] += gain * row[i];
            else if (apart)
                for (ptrdiff_t i = 0; i < size; i++) gx[i] = gain * row[i];
            if (a->grad_beta)
                *a->grad_beta += NAME(beta_row)(a, row, t ? ut - block : NULL, v0,
                                                a->current + t * a->current_step + start, size, hard);
        }
        if (a->grad_state)
            for (ptrdiff_t i = 0; i < size; i++) a->grad_state[start + i] = grad_v[i];
    }
}

#define CASE(S)                                                                     \
    case S:                                                                         \
        if (hard && detach) NAME(backward_rows)(&a, 1, 1, S);                       \
        else if (hard) NAME(backward_rows)(&a, 1, 0, S);                            \
        else if (detach) NAME(backward_rows)(&a, 0, 1, S);                          \
        else NAME(backward_rows)(&a, 0, 0, S);                                      \
        break;

/* 0 on success, 1 when there is no memory for the scratch. */
int NAME(lif_backward)(const REAL *current, ptrdiff_t current_step, const REAL *state,
                       const REAL *grad_spikes, ptrdiff_t grad_spikes_step, const REAL *grad_end,
                       REAL *grad_current, ptrdiff_t grad_current_step, REAL *grad_state,
                       double *grad_beta, ptrdiff_t T, ptrdiff_t n, double beta, double gain, double theta,
                       double scale, int hard, int detach, int decay_input, int surrogate) {
    ptrdiff_t block = 16384 / (T + 3) / 64 * 64;
    if (block < 64) block = 64;
    REAL *scratch = malloc(sizeof(REAL) * (T + 3) * block);
    if (!scratch) return 1;
    NAME(Backward) a = {current, state, grad_spikes, grad_end, grad_current, grad_state,
                        current_step, grad_spikes_step, grad_current_step, T, n,
                        beta, gain, theta, scale, decay_input, grad_beta, scratch, block};
    switch (surrogate) {
        CASE(ATAN)
        CASE(SIGMOID)
        CASE(TRIANGLE)
        CASE(FAST_SIGMOID)
    }
    free(scratch);
    return 0;
}
#undef CASE

#endif
