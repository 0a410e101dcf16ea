/* The CPU engine: the multi-step LIF (lif.h), forward and backward, in float and in double.
 *
 * Neurons go through in blocks whose potentials stay in the processor's cache, and within a block in pieces,
 * a few timesteps at a time: whole rows, one timestep after the other, are measured to be slower.
 * Potentials take the operations of the eager engine in its order, so spikes are bit-equal to an unfused
 * loop's as long as nothing is contracted to fused multiply-adds (-ffp-contract=off). Strides over time are
 * in elements; 0 repeats one row.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ATAN, SIGMOID, TRIANGLE, FAST_SIGMOID };
enum { BLOCK = 1024, STEPS = 4, PIECE = 64 }; /* PIECE divides BLOCK */

typedef struct {
    double beta, gain, theta, scale;
    int hard, detach, decay_input, surrogate;
} Neuron;

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, REAL)
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define INDEPENDENT _Pragma("GCC ivdep")

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
#include "lif.h"
#undef REAL
#undef EXP
#undef FABS

#define REAL double
#define EXP exp
#define FABS fabs
#include "lif.h"
