/* Convolution over the weights that are not zero, for inference, in float and in double.
 *
 * A group of images is packed so that images (powers of two of them) lie side by side and then pixels
 * of a row: one vector of the processor holds one pixel of many images, or some pixels of a few. A
 * block of outputs of one channel stays in the processor's registers while the channel's surviving
 * weights pass by, each of them one multiply-add per vector; where in the input a weight reads is one
 * precomputed offset, whatever the kernel size, padding, dilation or number of channel groups. Columns
 * that a stride jumps over lie apart ("phases"), so that vectors are contiguous under any stride. Large
 * images go strip by strip of rows, whose packed input fits the caches.
 *
 * Every output is one sum in the order of its weights: who computes it changes nothing.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of a vector, and how many of them a block of outputs may hold. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define MOST_VECTORS 16
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define MOST_VECTORS 8
#else
#define VECTOR_BYTES 16
#define MOST_VECTORS 8
#endif

/* Blocks: rows of outputs, vectors of a row. */
#if MOST_VECTORS == 16
#define SHAPES SHAPE(1, 16) SHAPE(2, 8) SHAPE(4, 4) SHAPE(1, 8) SHAPE(2, 4) SHAPE(1, 4) SHAPE(1, 1)
#else
#define SHAPES SHAPE(1, 8) SHAPE(2, 4) SHAPE(4, 2) SHAPE(1, 4) SHAPE(2, 2) SHAPE(1, 1)
#endif

/* Steps are in elements. `strip` rows of outputs are computed from one packed input, in which `group` images
 * lie side by side; `row` and `plane` are its steps, `slack` is what blocks read beyond its end. */
typedef struct {
    ptrdiff_t images, channels, height, width, x_image, x_channel, x_row, x_column;
    ptrdiff_t out_height, out_width, y_image, y_channel, y_row, y_column;
    ptrdiff_t top, left, stride_y, stride_x;
    ptrdiff_t group, strip, row, plane, slack, block_rows, block_vectors;
} Convolution;

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, REAL)
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define EVERY _Pragma("GCC unroll 16")

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define CAN_SHUFFLE 1
#endif
#endif

/* The first and the second halves of a and b, interleaved; for LANES of 16, 8, 4 and 2. */
#define LOW_2(a, b) __builtin_shufflevector(a, b, 0, 2)
#define HIGH_2(a, b) __builtin_shufflevector(a, b, 1, 3)
#define LOW_4(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH_4(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LOW_8(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_8(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW_16(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH_16(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define OF_LANES_(name, n) name##_##n
#define OF_LANES(name, n) OF_LANES_(name, n)

#define REAL float
#if VECTOR_BYTES == 64
#define LANES 16
#elif VECTOR_BYTES == 32
#define LANES 8
#else
#define LANES 4
#endif
#include "sparse.h"
#undef REAL
#undef LANES

#define REAL double
#if VECTOR_BYTES == 64
#define LANES 8
#elif VECTOR_BYTES == 32
#define LANES 4
#else
#define LANES 2
#endif
#include "sparse.h"

const int sparse_vector_bytes = VECTOR_BYTES;

/* Rows and vectors of every block, zeros after the last. */
#define SHAPE(rows, vectors) rows, vectors,
const int sparse_blocks[] = {SHAPES 0, 0};
