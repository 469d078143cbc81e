/* K-quants, one lane per sub-block; the bytes are those of encode_k.c.
 *
 * LANES sub-blocks that follow each other are transposed, weighed and searched together; then each
 * super-block is stored by k_block.h, which searches anew, one by one, what the lanes could not decide.
 */
#include "isa.h"
#include "k_block.h"
#include "kernels.h"
#include "lanes_search.h"
#include "transpose.h"

#define MOST (LANES * 32) /* floats of a batch */

/* The sub-blocks of a batch, transposed: element i of sub-block k at [i * LANES + k]. */
typedef struct {
    float x[MOST], w[MOST];
    float scale[LANES], min[LANES], sum_w[LANES];
    uint32_t redo; /* lanes that the scalar search must do */
} batch;

/* Weights of Q4_K and Q5_K without importance: |x| plus the root mean square of the sub-block. */
static inline void weigh_by_size(batch *b) {
    EACH(u) {
        vf sum = splat(0.0f);
        for (int i = 0; i < 32; ++i) {
            const vf x = load(b->x + i * LANES + u * WIDTH);
            sum = sum + x * x;
        }
        const vf rms = vsqrt(sum / splat(32.0f));
        for (int i = 0; i < 32; ++i) {
            const int at = i * LANES + u * WIDTH;
            store(b->w + at, rms + vabs(load(b->x + at)));
        }
    }
}

/* Weights by importance, which stands transposed in b->w, and their sums. */
static inline void weigh_by_importance(int n, const float *mean_square, batch *b) {
    EACH(u) {
        const vf mean = load(mean_square + u * WIDTH);
        vf sum = splat(0.0f);
        for (int i = 0; i < n; ++i) {
            const int at = i * LANES + u * WIDTH;
            const vf x = load(b->x + at), w = load(b->w + at) * vsqrt(mean + x * x);
            store(b->w + at, w);
            sum = sum + w;
        }
        store(b->sum_w + u * WIDTH, sum);
    }
}

static inline void square_weights(int n, batch *b) {
    for (int at = 0; at < n * LANES; at += WIDTH) {
        const vf x = load(b->x + at);
        store(b->w + at, x * x);
    }
}

static inline void magnitude_weights(int n, batch *b) {
    for (int at = 0; at < n * LANES; at += WIDTH) store(b->w + at, vabs(load(b->x + at)));
}

static inline void search_q2_k(bool weighted, batch *b) {
    if (!weighted) magnitude_weights(16, b);
    b->redo = weighted ? affine_lanes(16, 3, b->x, b->w, WEIGHTED_GRID, b->scale, b->min)
                       : affine_lanes(16, 3, b->x, b->w, Q2_GRID, b->scale, b->min);
}

static inline void search_q3_k(bool weighted, batch *b) {
    b->redo = weighted ? symmetric_lanes(16, 4, b->x, b->w, b->scale) : coordinate_lanes(16, 4, b->x, b->scale);
}

static inline void search_q4_k(bool weighted, batch *b) {
    if (!weighted) weigh_by_size(b);
    b->redo = weighted ? affine_lanes(32, 15, b->x, b->w, WEIGHTED_GRID, b->scale, b->min)
                       : affine_lanes(32, 15, b->x, b->w, Q4_GRID, b->scale, b->min);
}

static inline void search_q5_k(bool weighted, batch *b) {
    if (!weighted) weigh_by_size(b);
    b->redo = weighted ? affine_lanes(32, 31, b->x, b->w, WEIGHTED_GRID, b->scale, b->min)
                       : affine_lanes(32, 31, b->x, b->w, Q5_GRID, b->scale, b->min);
}

static inline void search_q6_k(bool weighted, batch *b) {
    if (!weighted) square_weights(16, b);
    b->redo = symmetric_lanes(16, 32, b->x, b->w, b->scale);
}

/* sum of squares of each of `count` super-blocks, in order; together, to hide the latency of the sums. */
static inline void sums_of_squares(int count, const float *x, float *sums) {
    for (int s = 0; s < count; ++s) sums[s] = 0;
    for (int i = 0; i < SUPER; ++i)
        for (int s = 0; s < count; ++s) sums[s] += x[s * SUPER + i] * x[s * SUPER + i];
}

/* Encodes all rows of a type with sub-blocks of `n`. `MEAN` makes the mean square of a sum of squares,
 * WEIGHS tells whether importance is weighed with it (or else taken as it is). */
#define ENCODE_LANES(type, n, MEAN, WEIGHS)                                                                     \
    static void batch_##type(const float *x, int supers, const float *const *given, block_##type *y) {          \
        enum { PER = SUPER / n };                                                                               \
        batch b;                                                                                                \
        float mean_square[LANES] = {0}, sums[LANES / PER];                                                      \
        transpose_groups(n, supers * PER, x, b.x);                                                              \
        if (given) {                                                                                            \
            transpose_given(n, supers * PER, PER, given, b.w);                                                  \
            if (WEIGHS) {                                                                                       \
                sums_of_squares(supers, x, sums);                                                               \
                for (int k = 0; k < supers * PER; ++k) mean_square[k] = MEAN(sums[k / PER]);                    \
                weigh_by_importance(n, mean_square, &b);                                                        \
            }                                                                                                   \
            search_##type(true, &b);                                                                            \
        } else {                                                                                                \
            search_##type(false, &b);                                                                           \
        }                                                                                                       \
        for (int s = 0; s < supers; ++s) {                                                                      \
            k_block one = {.x = x + s * SUPER, .given = given ? given[s] : NULL, .mean_square = mean_square[s * PER]}; \
            memcpy(one.scale, b.scale + s * PER, PER * sizeof(float));                                          \
            memcpy(one.min, b.min + s * PER, PER * sizeof(float));                                              \
            memcpy(one.sum_w, b.sum_w + s * PER, PER * sizeof(float));                                          \
            for (int j = 0; j < PER; ++j)                                                                       \
                if (b.redo >> (s * PER + j) & 1) find_##type(&one, j);                                          \
            store_##type(&one, y + s);                                                                          \
        }                                                                                                       \
    }                                                                                                           \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {     \
        enum { TOGETHER = LANES * n / SUPER };                                                                  \
        const int64_t supers = rows * row / SUPER, per_row = row / SUPER;                                       \
        block_##type *y = (block_##type *)out;                                                                  \
        for (int64_t s = 0; s < supers; s += TOGETHER) {                                                        \
            const int count = (int)MIN(TOGETHER, supers - s);                                                   \
            const float *given[TOGETHER];                                                                       \
            for (int k = 0; weights && k < count; ++k) given[k] = weights + (s + k) % per_row * SUPER;          \
            batch_##type(x + s * SUPER, count, weights ? given : NULL, y + s);                                  \
        }                                                                                                       \
    }

#define MEAN_OF(sum) ((sum) / SUPER)
#define TWICE_MEAN_OF(sum) (2 * (sum) / SUPER)

ENCODE_LANES(q2_k, 16, MEAN_OF, true)
ENCODE_LANES(q3_k, 16, TWICE_MEAN_OF, true)
ENCODE_LANES(q4_k, 32, TWICE_MEAN_OF, true)
ENCODE_LANES(q5_k, 32, TWICE_MEAN_OF, true)
ENCODE_LANES(q6_k, 16, TWICE_MEAN_OF, false)
