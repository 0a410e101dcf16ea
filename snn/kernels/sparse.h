/* The convolution of sparse.c in one type, REAL, of which a vector holds LANES. */

typedef REAL NAME(Vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));

/* out[j][i] = in[i][j] for i < rows, j < columns; rows of `in` and of `out` so many elements apart. */
INLINE void NAME(transpose_any)(const REAL *restrict in, ptrdiff_t in_step, ptrdiff_t rows,
                                ptrdiff_t columns, REAL *restrict out, ptrdiff_t out_step) {
    for (ptrdiff_t j = 0; j < columns; j++)
        for (ptrdiff_t i = 0; i < rows; i++) out[j * out_step + i] = in[i * in_step + j];
}

#if CAN_SHUFFLE
/* LANES x LANES in registers: interleaving rows i and i + LANES / 2, once per bit of an index. */
INLINE void NAME(transpose_square)(const REAL *restrict in, ptrdiff_t in_step, REAL *restrict out,
                                   ptrdiff_t out_step) {
    NAME(Vector) a[LANES], b[LANES];
    EVERY
    for (int i = 0; i < LANES; i++) a[i] = *(const NAME(Vector) *)(in + i * in_step);
    EVERY
    for (int bit = 1; bit < LANES; bit *= 2) {
        EVERY
        for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = OF_LANES(LOW, LANES)(a[i], a[i + LANES / 2]);
            b[2 * i + 1] = OF_LANES(HIGH, LANES)(a[i], a[i + LANES / 2]);
        }
        EVERY
        for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
    EVERY
    for (int i = 0; i < LANES; i++) *(NAME(Vector) *)(out + i * out_step) = a[i];
}
#endif

static void NAME(transpose)(const REAL *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t columns, REAL *out,
                            ptrdiff_t out_step) {
#if CAN_SHUFFLE
    ptrdiff_t i = 0;
    for (; i + LANES <= rows; i += LANES) {
        ptrdiff_t j = 0;
        for (; j + LANES <= columns; j += LANES)
            NAME(transpose_square)(in + i * in_step + j, in_step, out + j * out_step + i, out_step);
        NAME(transpose_any)(in + i * in_step + j, in_step, LANES, columns - j, out + j * out_step + i,
                            out_step);
    }
    in += i * in_step;
    out += i;
    rows -= i;
#endif
    NAME(transpose_any)(in, in_step, rows, columns, out, out_step);
}

/* Rows of a group's images from `first`, zeros around them, as
 * [channel][row][column % stride][column / stride][image]. */
static void NAME(pack)(const Convolution *c, const REAL *x, ptrdiff_t images, ptrdiff_t first, REAL *tile) {
    const ptrdiff_t phase = c->row / c->stride_x;
    for (ptrdiff_t r = 0; r < c->plane / c->row; r++) {
        const ptrdiff_t h = first + r;
        REAL *row = tile + r * c->row;
        if (h < 0 || h >= c->height) {
            for (ptrdiff_t i = 0; i < c->channels; i++) memset(row + i * c->plane, 0, sizeof(REAL) * c->row);
            continue;
        }
        const REAL *from = x + h * c->x_row;
        if (c->x_channel == 1) {
            for (ptrdiff_t w = 0, at = c->left; w < c->width; w++, at++)
                NAME(transpose)(from + w * c->x_column, c->x_image, images, c->channels,
                                row + at % c->stride_x * phase + at / c->stride_x * c->group, c->plane);
            continue;
        }
        for (ptrdiff_t i = 0; i < c->channels; i++, from += c->x_channel, row += c->plane) {
            if (c->stride_x == 1) {
                NAME(transpose)(from, c->x_image, images, c->width, row + c->left * c->group, c->group);
                continue;
            }
            for (ptrdiff_t w = 0, at = c->left; w < c->width; w++, at++)
                NAME(transpose_any)(from + w, c->x_image, images, 1,
                                    row + at % c->stride_x * phase + at / c->stride_x * c->group, 1);
        }
    }
}

/* One output channel at `rows` x `vectors` outputs, which stay in registers over all its weights. */
INLINE void NAME(block)(int rows, int vectors, const REAL *x, ptrdiff_t row, const REAL *values,
                        const int32_t *offsets, ptrdiff_t n, REAL bias, REAL *out) {
    NAME(Vector) sum[MOST_VECTORS];
    EVERY
    for (int k = 0; k < rows * vectors; k++) sum[k] = bias - (NAME(Vector)){0};
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL *at = x + offsets[i], value = values[i];
        EVERY
        for (int r = 0; r < rows; r++) {
            EVERY
            for (int v = 0; v < vectors; v++)
                sum[r * vectors + v] += value * *(const NAME(Vector) *)(at + r * row + v * LANES);
        }
    }
    EVERY
    for (int k = 0; k < rows * vectors; k++) *(NAME(Vector) *)(out + k * LANES) = sum[k];
}

#define SHAPE(rows, vectors)                                                              \
    case rows * 100 + vectors:                                                            \
        NAME(block)(rows, vectors, x, row, values, offsets, n, bias, out);                \
        break;

static void NAME(any_block)(const Convolution *c, const REAL *x, const REAL *values, const int32_t *offsets,
                            ptrdiff_t n, REAL bias, REAL *out) {
    const ptrdiff_t row = c->stride_y * c->row;
    switch (c->block_rows * 100 + c->block_vectors) {
        SHAPES
    }
}
#undef SHAPE

/* A block's outputs of some channels, `apart` values from one channel to the next, into y. */
INLINE void NAME(unpack)(const Convolution *c, const REAL *block, ptrdiff_t apart, ptrdiff_t channels,
                         ptrdiff_t column, ptrdiff_t columns, ptrdiff_t images, REAL *y) {
    const ptrdiff_t group = c->group;
    if (c->y_channel != 1 && group <= columns) { /* whole pixels, a row of them in each image */
        NAME(transpose)(block, group, columns / group, images, y + column / group * c->y_column, c->y_image);
        return;
    }
    for (ptrdiff_t i = 0; i < columns; i += group) { /* one pixel, or some of its images */
        const ptrdiff_t image = (column + i) % group, left = images - image;
        const ptrdiff_t run = group < columns ? group : columns;
        if (left > 0)
            NAME(transpose)(block + i, apart, channels, run < left ? run : left,
                            y + (column + i) / group * c->y_column + image * c->y_image, c->y_image);
    }
}

/* Outputs of the units and output channels from and to (a unit is a strip of rows of a group of images);
 * 0 on success, 1 when there is no memory. */
int NAME(sparse_convolution)(const Convolution *c, const REAL *x, const REAL *values, const int32_t *offsets,
                             const int64_t *starts, const REAL *bias, REAL *y, ptrdiff_t unit_from,
                             ptrdiff_t unit_to, ptrdiff_t out_from, ptrdiff_t out_to) {
    const ptrdiff_t width = c->block_vectors * LANES, block = c->block_rows * width;
    const ptrdiff_t columns = c->out_width * c->group;       /* of a row of outputs */
    const ptrdiff_t at_once = c->y_channel == 1 ? LANES : 1; /* channels that are written together */
    const ptrdiff_t strips = (c->out_height + c->strip - 1) / c->strip;
    const ptrdiff_t size = (c->channels * c->plane + c->slack + LANES) / LANES * LANES;
    REAL *tile = aligned_alloc(VECTOR_BYTES, sizeof(REAL) * (size + at_once * block));
    if (!tile) return 1;
    REAL *out = tile + size;
    memset(tile, 0, sizeof(REAL) * size);
    for (ptrdiff_t unit = unit_from; unit < unit_to; unit++) {
        const ptrdiff_t image = unit / strips * c->group, top = unit % strips * c->strip;
        const ptrdiff_t images = MIN(c->images - image, c->group), bottom = MIN(top + c->strip, c->out_height);
        NAME(pack)(c, x + image * c->x_image, images, top * c->stride_y - c->top, tile);
        for (ptrdiff_t h = top; h < bottom; h += c->block_rows)
            for (ptrdiff_t column = 0; column < columns; column += width) {
                const REAL *at = tile + (h - top) * c->stride_y * c->row + column;
                const ptrdiff_t rows = MIN(bottom - h, c->block_rows), left = MIN(columns - column, width);
                for (ptrdiff_t o = out_from; o < out_to; o += at_once) {
                    const ptrdiff_t several = MIN(out_to - o, at_once);
                    for (ptrdiff_t k = 0; k < several; k++) {
                        const int64_t start = starts[o + k], n = starts[o + k + 1] - start;
                        NAME(any_block)(c, at, values + start, offsets + start, n, bias ? bias[o + k] : 0,
                                        out + k * block);
                    }
                    for (ptrdiff_t r = 0; r < rows; r++)
                        NAME(unpack)(c, out + r * width, block, several, column, left, images,
                                     y + image * c->y_image + o * c->y_channel + (h + r) * c->y_row);
                }
            }
    }
    free(tile);
    return 0;
}
