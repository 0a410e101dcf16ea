/* Batch norm on weighted examples, for one REAL: its sums, and the gradient of its input. */

/* Sum of n values, or of their squared distances from `mean`: in lanes, so that it vectorises. */
INLINE REAL NAME(row_moment)(const REAL *restrict x, ptrdiff_t n, REAL mean, int square) {
    REAL lane[LANES] = {0}, sum = 0;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            REAL d = x[i + k] - mean;
            lane[k] += square ? d * d : d;
        }
    for (int k = 0; i + k < n; k++) {
        REAL d = x[i + k] - mean;
        lane[k] += square ? d * d : d;
    }
    for (int k = 0; k < LANES; k++) sum += lane[k];
    return sum;
}

/* out[c] += sum_n share[n] sum_p of x, or of (x - mean[c])^2 where there is a mean; x is [rows, channels,
 * positions], or with `last` [rows, positions, channels]. */
INLINE void NAME(moment)(const REAL *x, ptrdiff_t rows, ptrdiff_t channels, ptrdiff_t positions, int last,
                         const REAL *share, const REAL *mean, double *out, int square) {
    REAL of_row[BLOCK], centre[BLOCK];
    for (ptrdiff_t n = 0; n < rows; n++, x += channels * positions) {
        if (!last) {
            for (ptrdiff_t c = 0; c < channels; c++)
                out[c] += (double)share[n]
                        * NAME(row_moment)(x + c * positions, positions, square ? mean[c] : 0, square);
            continue;
        }
        for (ptrdiff_t first = 0; first < channels; first += BLOCK) {
            const ptrdiff_t m = channels - first < BLOCK ? channels - first : BLOCK;
            for (ptrdiff_t c = 0; c < m; c++) of_row[c] = 0, centre[c] = square ? mean[first + c] : 0;
            for (ptrdiff_t p = 0; p < positions; p++) {
                const REAL *restrict at = x + p * channels + first;
                INDEPENDENT
                for (ptrdiff_t c = 0; c < m; c++) {
                    REAL d = at[c] - centre[c];
                    of_row[c] += square ? d * d : d;
                }
            }
            for (ptrdiff_t c = 0; c < m; c++) out[first + c] += (double)share[n] * of_row[c];
        }
    }
}

void NAME(weighted_moment)(const REAL *x, ptrdiff_t rows, ptrdiff_t channels, ptrdiff_t positions, int last,
                           const REAL *share, const REAL *mean, double *out) {
    if (mean)
        NAME(moment)(x, rows, channels, positions, last, share, mean, out, 1);
    else
        NAME(moment)(x, rows, channels, positions, last, share, mean, out, 0);
}

/* out = scale[c] grad + share[n] (slope[c] (x - mean[c]) + shift[c]), all of one layout. */
void NAME(weighted_gradient)(const REAL *grad, const REAL *x, ptrdiff_t rows, ptrdiff_t channels,
                             ptrdiff_t positions, int last, const REAL *share, const REAL *mean,
                             const REAL *scale, const REAL *slope, const REAL *shift, REAL *out) {
    for (ptrdiff_t n = 0; n < rows; n++, grad += channels * positions, x += channels * positions,
                  out += channels * positions) {
        if (!last) {
            for (ptrdiff_t c = 0; c < channels; c++) {
                const REAL by_g = scale[c], by_x = share[n] * slope[c], rest = share[n] * shift[c];
                const REAL centre = mean[c];
                const REAL *restrict g = grad + c * positions, *restrict at = x + c * positions;
                REAL *restrict to = out + c * positions;
                for (ptrdiff_t p = 0; p < positions; p++) to[p] = by_g * g[p] + (by_x * (at[p] - centre) + rest);
            }
            continue;
        }
        for (ptrdiff_t p = 0; p < positions; p++) {
            const REAL *restrict g = grad + p * channels, *restrict at = x + p * channels;
            REAL *restrict to = out + p * channels;
            INDEPENDENT
            for (ptrdiff_t c = 0; c < channels; c++)
                to[c] = scale[c] * g[c] + share[n] * (slope[c] * (at[c] - mean[c]) + shift[c]);
        }
    }
}
