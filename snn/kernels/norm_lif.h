/* Batch norm and the LIF behind it in one pass, for one REAL.
 *
 * A step's memory is [outer][channels][inner]: examples, channels, positions in NCHW; positions,
 * channels and 1 in channels_last. A tile is a run of at most BLOCK of the channels * inner elements
 * of a row (an index of outer) or, where several such rows fit, several whole rows: every visit of a
 * tile has the same channels at the same places, so what is per channel is laid out once per tile. */

#ifndef NORM_LIF_SHAPES
#define NORM_LIF_SHAPES

typedef struct {
    ptrdiff_t outer, channels, inner;
} Shape;

typedef struct {
    ptrdiff_t from, to; /* elements of a row */
    ptrdiff_t rows;     /* rows of one visit */
} Tile;

/* What every channel is normalised by; `of` counts what the statistics were taken over, 0 where they
 * are constants of the backward pass (running statistics). */
typedef struct {
    const double *mean, *rstd;
    const void *weight, *bias; /* REAL; may be null */
    double of;
} Norm;

INLINE Tile tile_at(const Shape *s, ptrdiff_t from, ptrdiff_t to) {
    ptrdiff_t row = s->channels * s->inner;
    if (row <= BLOCK && to - from == row) return (Tile){from, to, BLOCK / row};
    return (Tile){from, to - from > BLOCK ? from + BLOCK : to, 1};
}

/* Elements of the next visit, which starts at row o and ends before row `end`. */
INLINE ptrdiff_t visited(const Tile *tile, ptrdiff_t o, ptrdiff_t end) {
    ptrdiff_t rows = end - o < tile->rows ? end - o : tile->rows;
    return rows * (tile->to - tile->from);
}

/* `for` over the runs of one channel in n elements of a tile: channel c, elements i up to `stop`. */
#define RUNS(s, tile, n)                                                                              \
    for (ptrdiff_t i = 0, c = (tile)->from / (s)->inner, stop = (c + 1) * (s)->inner - (tile)->from;  \
         i < (n);                                                                                     \
         i = stop, c = c + 1 == (s)->channels ? 0 : c + 1, stop += (s)->inner)
#define LAST(n) (stop < (n) ? stop : (n))

/* Channels whose statistics are finished before their neurons run: enough for a tile. */
INLINE ptrdiff_t channel_group(const Shape *s) {
    if (s->channels * s->inner <= BLOCK) return s->channels;
    return s->inner >= BLOCK ? 1 : BLOCK / s->inner;
}
#endif

/* sums += a tile's sums, channel by channel; with pairs of channels' elements far apart added in double */
INLINE void NAME(fold)(const Shape *s, const Tile *tile, ptrdiff_t n, REAL *restrict values,
                       double *restrict sums) {
    if (s->inner == 1) {
        RUNS(s, tile, n) sums[c] += values[i];
    } else {
        RUNS(s, tile, n) {
            double part[8] = {0};
            ptrdiff_t end = LAST(n), j = i;
            for (; j + 8 <= end; j += 8)
                for (int k = 0; k < 8; k++) part[k] += values[j + k];
            for (int k = 0; j < end; j++, k++) part[k] += values[j];
            sums[c] += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
        }
    }
    memset(values, 0, n * sizeof(REAL));
}

INLINE void NAME(fold_both)(const Shape *s, const Tile *tile, ptrdiff_t n, REAL *first, REAL *second,
                            double *sums) {
    NAME(fold)(s, tile, n, first, sums);
    NAME(fold)(s, tile, n, second, sums + s->channels);
}

INLINE void NAME(affine)(const Shape *s, const Tile *tile, ptrdiff_t n, const Norm *norm,
                         REAL *restrict scale, REAL *restrict shift, REAL *restrict mean) {
    const REAL *weight = norm->weight, *bias = norm->bias;
    RUNS(s, tile, n) {
        double a = (weight ? weight[c] : 1.0) * norm->rstd[c];
        REAL by = a, plus = (bias ? bias[c] : 0.0) - norm->mean[c] * a, middle = norm->mean[c];
        for (ptrdiff_t j = i; j < LAST(n); j++) {
            scale[j] = by;
            shift[j] = plus;
            if (mean) mean[j] = middle;
        }
    }
}

/* A value near each channel's mean, so that squares around it lose nothing: the mean of some values. */
void NAME(norm_pivots)(const REAL *y, const Shape *s, ptrdiff_t c0, ptrdiff_t c1, double *pivots) {
    ptrdiff_t rows = s->inner >= 16 ? 1 : 16 / s->inner;
    if (rows > s->outer) rows = s->outer;
    for (ptrdiff_t c = c0; c < c1; c++) pivots[c] = 0;
    for (ptrdiff_t o = 0; o < rows; o++)
        for (ptrdiff_t c = c0; c < c1; c++) {
            const REAL *from = y + (o * s->channels + c) * s->inner;
            double sum = 0;
            ptrdiff_t some = s->inner < 64 ? s->inner : 64;
            for (ptrdiff_t i = 0; i < some; i++) sum += from[i];
            pivots[c] += sum / (double)(some * rows);
        }
    for (ptrdiff_t c = c0; c < c1; c++) pivots[c] = (REAL)pivots[c];
}

INLINE void NAME(add_rows)(int K, const REAL *restrict y, ptrdiff_t step, const REAL *restrict pivot,
                           REAL *restrict sum, REAL *restrict square, ptrdiff_t n) {
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL s1 = sum[i], s2 = square[i];
        UNROLLED
        for (int k = 0; k < K; k++) {
            REAL d = y[k * step + i] - pivot[i];
            s1 += d;
            s2 += d * d;
        }
        sum[i] = s1;
        square[i] = s2;
    }
}

/* sums[c] += y - pivot, sums[channels + c] += (y - pivot)^2 over T steps, rows [o0, o1), channels [c0, c1). */
void NAME(norm_sums)(const REAL *y, ptrdiff_t step, ptrdiff_t T, const Shape *s, ptrdiff_t o0, ptrdiff_t o1,
                     ptrdiff_t c0, ptrdiff_t c1, const double *pivots, double *sums) {
    REAL pivot[BLOCK], sum[BLOCK] = {0}, square[BLOCK] = {0};
    const ptrdiff_t row = s->channels * s->inner;
    for (ptrdiff_t at = c0 * s->inner; at < c1 * s->inner;) {
        Tile tile = tile_at(s, at, c1 * s->inner);
        ptrdiff_t full = visited(&tile, 0, tile.rows), added = 0;
        RUNS(s, &tile, full)
            for (ptrdiff_t j = i; j < LAST(full); j++) pivot[j] = pivots[c];
        for (ptrdiff_t o = o0; o < o1; o += tile.rows) {
            ptrdiff_t n = visited(&tile, o, o1), t = 0;
            const REAL *from = y + o * row + at;
            for (ptrdiff_t end = T < MOST ? T : MOST;; end = T - t < MOST ? T : t + MOST) {
                for (; t + STEPS <= end; t += STEPS)
                    NAME(add_rows)(STEPS, from + t * step, step, pivot, sum, square, n);
                for (; t < end; t++) NAME(add_rows)(1, from + t * step, step, pivot, sum, square, n);
                if (t == T) break;
                NAME(fold_both)(s, &tile, full, sum, square, sums);
            }
            added += T;
            if (added + T > MOST) {
                NAME(fold_both)(s, &tile, full, sum, square, sums);
                added = 0;
            }
        }
        NAME(fold_both)(s, &tile, full, sum, square, sums);
        at = tile.to;
    }
}

/* Mean, biased variance and 1 / sqrt(variance + eps) from the sums over `of` values. */
void NAME(norm_moments)(const Shape *s, ptrdiff_t c0, ptrdiff_t c1, const double *pivots, const double *sums,
                        double of, double eps, double *mean, double *var, double *rstd) {
    for (ptrdiff_t c = c0; c < c1; c++) {
        double d = sums[c] / of, v = sums[s->channels + c] / of - d * d;
        mean[c] = pivots[c] + d;
        var[c] = v > 0 || v != v ? v : 0;
        rstd[c] = 1 / sqrt(var[c] + eps);
    }
}

void NAME(norm_lif_forward)(const REAL *y, ptrdiff_t step, REAL *spikes, ptrdiff_t spikes_step, ptrdiff_t T,
                            const Shape *s, ptrdiff_t o0, ptrdiff_t o1, ptrdiff_t c0, ptrdiff_t c1,
                            const Norm *norm, const Neuron *p) {
    NAME(Cell) cell = NAME(cell)(p);
    REAL scale[BLOCK], shift[BLOCK], v[BLOCK];
    const ptrdiff_t row = s->channels * s->inner;
    for (ptrdiff_t at = c0 * s->inner; at < c1 * s->inner;) {
        Tile tile = tile_at(s, at, c1 * s->inner);
        NAME(affine)(s, &tile, visited(&tile, 0, tile.rows), norm, scale, shift, NULL);
        for (ptrdiff_t o = o0; o < o1; o += tile.rows) {
            ptrdiff_t n = visited(&tile, o, o1), start = o * row + at;
            memset(v, 0, n * sizeof(REAL));
            NAME(forward_block)(&cell, 1, 1, 0, y + start, step, scale, shift, v, spikes + start, spikes_step, T,
                                n, NULL);
        }
        at = tile.to;
    }
}

/* Training on channels [c0, c1), a group at a time, which may still be in the cache when it is normalised. */
void NAME(norm_lif_train)(const REAL *y, ptrdiff_t step, REAL *spikes, ptrdiff_t spikes_step, ptrdiff_t T,
                          const Shape *s, ptrdiff_t c0, ptrdiff_t c1, const Norm *norm, double eps,
                          double *pivots, double *sums, double *mean, double *var, double *rstd,
                          const Neuron *p) {
    const ptrdiff_t group = channel_group(s);
    for (ptrdiff_t c = c0; c < c1; c += group) {
        ptrdiff_t end = c1 - c < group ? c1 : c + group;
        NAME(norm_pivots)(y, s, c, end, pivots);
        NAME(norm_sums)(y, step, step ? T : 1, s, 0, s->outer, c, end, pivots, sums);
        NAME(norm_moments)(s, c, end, pivots, sums, norm->of, eps, mean, var, rstd);
        NAME(norm_lif_forward)(y, step, spikes, spikes_step, T, s, 0, s->outer, c, end, norm, p);
    }
}

/* grad_y = gradients of the currents; sums[c] += them, sums[channels + c] += them times y - mean;
 * grad_beta[c] (may be null) += the gradient of beta. 0 on success, 1 when there is no memory for the scratch. */
int NAME(norm_lif_backward)(const REAL *y, ptrdiff_t step, const REAL *grad_spikes, ptrdiff_t grad_spikes_step,
                            REAL *grad_y, ptrdiff_t grad_y_step, ptrdiff_t T, const Shape *s, ptrdiff_t o0,
                            ptrdiff_t o1, ptrdiff_t c0, ptrdiff_t c1, const Norm *norm, double *sums,
                            double *grad_beta, const Neuron *p) {
    NAME(Cell) cell = NAME(cell)(p);
    NAME(Scratch) scratch;
    REAL scale[BLOCK], shift[BLOCK], mean[BLOCK], sum[BLOCK] = {0}, sum_y[BLOCK] = {0}, grad_v[BLOCK];
    double of_beta[BLOCK] = {0};
    const ptrdiff_t row = s->channels * s->inner;
    if (!NAME(make_scratch)(&scratch, T)) return 1;
    for (ptrdiff_t at = c0 * s->inner; at < c1 * s->inner;) {
        Tile tile = tile_at(s, at, c1 * s->inner);
        ptrdiff_t full = visited(&tile, 0, tile.rows), added = 0;
        NAME(affine)(s, &tile, full, norm, scale, shift, mean);
        for (ptrdiff_t o = o0; o < o1; o += tile.rows) {
            ptrdiff_t n = visited(&tile, o, o1), start = o * row + at;
            memset(scratch.v, 0, n * sizeof(REAL));
            memset(grad_v, 0, n * sizeof(REAL));
            NAME(Block) b = {T, n, y + start, grad_spikes + start, step, grad_spikes_step, grad_y_step, scale,
                             shift, mean, sum, sum_y, grad_y + start, grad_v, grad_beta ? of_beta : NULL};
            for (ptrdiff_t to = NAME(segments)(&cell, &b, 1, &scratch), from; to > 0; to = from) {
                from = T > MOST && to > MOST / STEPS ? to - MOST / STEPS : 0;
                NAME(backward_segments)(&cell, &b, 1, &scratch, from, to);
                if (from) NAME(fold_both)(s, &tile, full, sum, sum_y, sums);
            }
            added += T;
            if (added + T > MOST) {
                NAME(fold_both)(s, &tile, full, sum, sum_y, sums);
                added = 0;
            }
        }
        NAME(fold_both)(s, &tile, full, sum, sum_y, sums);
        if (grad_beta) {
            RUNS(s, &tile, full)
                for (ptrdiff_t j = i; j < LAST(full); j++) grad_beta[c] += of_beta[j];
            memset(of_beta, 0, sizeof(of_beta));
        }
        at = tile.to;
    }
    free(scratch.states);
    return 0;
}

/* From gradients of the normalised values to gradients of y, in place, in `steps` steps:
 * weight rstd (g - mean(g) - xhat mean(g xhat)), means over what the statistics were taken over. */
void NAME(norm_gradient)(const REAL *y, ptrdiff_t step, REAL *grad_y, ptrdiff_t grad_y_step, ptrdiff_t steps,
                         const Shape *s, ptrdiff_t o0, ptrdiff_t o1, ptrdiff_t c0, ptrdiff_t c1,
                         const Norm *norm, const double *sums) {
    REAL scale[BLOCK], mean[BLOCK], slope[BLOCK], offset[BLOCK];
    const REAL *weight = norm->weight;
    const ptrdiff_t row = s->channels * s->inner;
    for (ptrdiff_t at = c0 * s->inner; at < c1 * s->inner;) {
        Tile tile = tile_at(s, at, c1 * s->inner);
        ptrdiff_t full = visited(&tile, 0, tile.rows);
        RUNS(s, &tile, full) {
            double rstd = norm->rstd[c], a = (weight ? weight[c] : 1.0) * rstd;
            REAL by = a, middle = norm->mean[c], down = 0, along = 0;
            if (norm->of > 0) {
                down = a * sums[c] / norm->of;
                along = a * rstd * rstd * sums[s->channels + c] / norm->of;
            }
            for (ptrdiff_t j = i; j < LAST(full); j++) {
                scale[j] = by;
                mean[j] = middle;
                slope[j] = along;
                offset[j] = down;
            }
        }
        for (ptrdiff_t o = o0; o < o1; o += tile.rows) {
            ptrdiff_t n = visited(&tile, o, o1), start = o * row + at;
            for (ptrdiff_t t = 0; t < steps; t++) {
                const REAL *restrict x = y + t * step + start;
                REAL *restrict g = grad_y + t * grad_y_step + start;
                for (ptrdiff_t i = 0; i < n; i++)
                    g[i] = scale[i] * g[i] - offset[i] - (x[i] - mean[i]) * slope[i];
            }
        }
        at = tile.to;
    }
}

/* Both, on channels [c0, c1), a group at a time. */
int NAME(norm_lif_gradient)(const REAL *y, ptrdiff_t step, const REAL *grad_spikes, ptrdiff_t grad_spikes_step,
                            REAL *grad_y, ptrdiff_t grad_y_step, ptrdiff_t T, const Shape *s, ptrdiff_t c0,
                            ptrdiff_t c1, const Norm *norm, double *sums, double *grad_beta, const Neuron *p) {
    const ptrdiff_t group = channel_group(s);
    for (ptrdiff_t c = c0; c < c1; c += group) {
        ptrdiff_t end = c1 - c < group ? c1 : c + group;
        if (NAME(norm_lif_backward)(y, step, grad_spikes, grad_spikes_step, grad_y, grad_y_step, T, s, 0, s->outer,
                                    c, end, norm, sums, grad_beta, p))
            return 1;
        NAME(norm_gradient)(y, step, grad_y, grad_y_step, grad_y_step ? T : 1, s, 0, s->outer, c, end, norm, sums);
    }
    return 0;
}
