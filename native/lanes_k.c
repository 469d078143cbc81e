/* K-quants, one lane per sub-block; the bytes are those of encode_k.c.
 *
 * LANES sub-blocks that follow each other are transposed, weighed and searched together. With importance the
 * scales and mins that LANES super-blocks got are searched in turn, one lane per super-block. Then k_block.h
 * stores each. What lanes could not decide is searched anew, one by one.
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
    b->redo = weighted ? affine_lanes(16, 3, b->x, b->w, WEIGHTED_GRID, b->scale, b->min, NULL)
                       : affine_lanes(16, 3, b->x, b->w, Q2_GRID, b->scale, b->min, NULL);
}

static inline void search_q3_k(bool weighted, batch *b) {
    b->redo = weighted ? symmetric_lanes(16, 4, b->x, b->w, b->scale, NULL) : coordinate_lanes(16, 4, b->x, b->scale);
}

static inline void search_q4_k(bool weighted, batch *b) {
    if (!weighted) weigh_by_size(b);
    b->redo = weighted ? affine_lanes(32, 15, b->x, b->w, WEIGHTED_GRID, b->scale, b->min, NULL)
                       : affine_lanes(32, 15, b->x, b->w, Q4_GRID, b->scale, b->min, NULL);
}

static inline void search_q5_k(bool weighted, batch *b) {
    if (!weighted) weigh_by_size(b);
    b->redo = weighted ? affine_lanes(32, 31, b->x, b->w, WEIGHTED_GRID, b->scale, b->min, NULL)
                       : affine_lanes(32, 31, b->x, b->w, Q5_GRID, b->scale, b->min, NULL);
}

static inline void search_q6_k(bool weighted, batch *b) {
    if (!weighted) square_weights(16, b);
    b->redo = symmetric_lanes(16, 32, b->x, b->w, b->scale, NULL);
}

/* sum of squares of each of `count` super-blocks, in order; together, to hide the latency of the sums. */
static inline void sums_of_squares(int count, const float *x, float *sums) {
    for (int s = 0; s < count; ++s) sums[s] = 0;
    for (int i = 0; i < SUPER; ++i)
        for (int s = 0; s < count; ++s) sums[s] += x[s * SUPER + i] * x[s * SUPER + i];
}

/* What the searches left of up to LANES super-blocks: that of sub-block j of super-block s at [j * LANES + s]. */
typedef struct {
    float scale[16 * LANES], min[16 * LANES], sum_w[16 * LANES];
    float mean_square[LANES];
    float d[LANES], dmin[LANES]; /* by the fits below, with the codes of scales and mins */
    float scale_codes[16 * LANES], min_codes[16 * LANES];
    uint32_t undecided;          /* super-blocks that k_block.h must fit */
} supers;

/* The fits of k_block.h, and what they make codes of, `count` super-blocks at once. */
static inline void fit_affine_lanes(int n, int top, supers *all) {
    all->undecided = positive_lanes(n, top, all->scale, all->sum_w, all->scale_codes, all->d) |
                     positive_lanes(n, top, all->min, all->sum_w, all->min_codes, all->dmin);
}

static inline void fit_q2_k(supers *all) { fit_affine_lanes(16, 15, all); }
static inline void fit_q4_k(supers *all) { fit_affine_lanes(8, 63, all); }
static inline void fit_q5_k(supers *all) { fit_affine_lanes(8, 63, all); }

static inline void fit_q3_k(supers *all) {
    const vf low = splat(MAGIC - 32), high = splat(MAGIC + 31), zero = splat(0.0f);
    code_maker maker;
    all->undecided = symmetric_lanes(16, 32, all->scale, all->sum_w, all->d, &maker);
    for (int at = 0; at < 16 * LANES; at += WIDTH) {
        const vf inverse = load(maker.inverse + at % LANES);
        const vf code = round_between(inverse * load(all->scale + at), low, high) + splat(32.0f);
        store(all->scale_codes + at, pick(equal(inverse, zero), zero, code));
    }
}

/* Q6_K has no such search. */
static inline void fit_q6_k(supers *all) { all->undecided = ~0u; }

/* Super-block `s` of `all`, taken out of the lanes. */
static inline void take(const supers *all, int s, int sub_blocks, k_block *b) {
    b->mean_square = all->mean_square[s];
    for (int j = 0; j < sub_blocks; ++j) {
        b->scale[j] = all->scale[j * LANES + s];
        b->min[j] = all->min[j * LANES + s];
        b->sum_w[j] = all->sum_w[j * LANES + s];
    }
    b->fitted = b->given && !(all->undecided >> s & 1);
    if (!b->fitted) return;
    b->d = all->d[s];
    b->dmin = all->dmin[s];
    for (int j = 0; j < sub_blocks; ++j) {
        b->scale_codes[j] = (uint8_t)all->scale_codes[j * LANES + s];
        b->min_codes[j] = (uint8_t)all->min_codes[j * LANES + s];
    }
}

/* Encodes all rows of a type with sub-blocks of `n`. `MEAN` makes the mean square of a sum of squares,
 * WEIGHS tells whether importance is weighed with it (or else taken as it is). */
#define ENCODE_LANES(type, n, MEAN, WEIGHS)                                                                     \
    /* Searches `count` super-blocks, whose lanes are those from `first` on. */                                 \
    static void batch_##type(const float *x, int count, const float *const *given, int first, supers *all) {    \
        enum { PER = SUPER / n };                                                                               \
        batch b;                                                                                                \
        float mean_square[LANES] = {0};                                                                         \
        memset(b.min, 0, sizeof b.min); /* not all types have them */                                           \
        memset(b.sum_w, 0, sizeof b.sum_w);                                                                     \
        transpose_groups(n, count * PER, x, b.x);                                                               \
        if (given) {                                                                                            \
            transpose_given(n, count * PER, PER, given, b.w);                                                   \
            if (WEIGHS) {                                                                                       \
                float sums[LANES / PER];                                                                        \
                sums_of_squares(count, x, sums);                                                                \
                for (int k = 0; k < count * PER; ++k) mean_square[k] = MEAN(sums[k / PER]);                     \
                weigh_by_importance(n, mean_square, &b);                                                        \
            }                                                                                                   \
            search_##type(true, &b);                                                                            \
        } else {                                                                                                \
            search_##type(false, &b);                                                                           \
        }                                                                                                       \
        for (int k = 0; k < count * PER; ++k) {                                                                 \
            const int s = k / PER, at = k % PER * LANES + first + s;                                            \
            if (b.redo >> k & 1) {                                                                              \
                k_block one = {.x = x + s * SUPER, .given = given ? given[s] : NULL, .mean_square = mean_square[k]}; \
                find_##type(&one, k % PER);                                                                     \
                b.scale[k] = one.scale[k % PER];                                                                \
                b.min[k] = one.min[k % PER];                                                                    \
                b.sum_w[k] = one.sum_w[k % PER];                                                                \
            }                                                                                                   \
            all->mean_square[first + s] = mean_square[k];                                                       \
            all->scale[at] = b.scale[k];                                                                        \
            all->min[at] = b.min[k];                                                                            \
            all->sum_w[at] = b.sum_w[k];                                                                        \
        }                                                                                                       \
    }                                                                                                           \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {     \
        enum { TOGETHER = LANES * n / SUPER };                                                                  \
        const int64_t blocks = rows * row / SUPER, per_row = row / SUPER;                                       \
        block_##type *y = (block_##type *)out;                                                                  \
        supers all = {.undecided = 0};                                                                          \
        for (int64_t start = 0; start < blocks; start += LANES, x += LANES * SUPER, y += LANES) {               \
            const int count = (int)MIN(LANES, blocks - start);                                                  \
            const float *given[LANES];                                                                          \
            for (int s = 0; weights && s < count; ++s) given[s] = weights + (start + s) % per_row * SUPER;      \
            for (int s = 0; s < count; s += TOGETHER)                                                           \
                batch_##type(x + s * SUPER, MIN(TOGETHER, count - s), weights ? given + s : NULL, s, &all);     \
            if (weights) fit_##type(&all);                                                                      \
            for (int s = 0; s < count; ++s) {                                                                   \
                k_block one = {.x = x + s * SUPER, .given = weights ? given[s] : NULL};                         \
                take(&all, s, SUPER / n, &one);                                                                 \
                store_##type(&one, y + s);                                                                      \
            }                                                                                                   \
        }                                                                                                       \
    }

#define MEAN_OF(sum) ((sum) / SUPER)
#define TWICE_MEAN_OF(sum) (2 * (sum) / SUPER)

ENCODE_LANES(q2_k, 16, MEAN_OF, true)
ENCODE_LANES(q3_k, 16, TWICE_MEAN_OF, true)
ENCODE_LANES(q4_k, 32, TWICE_MEAN_OF, true)
ENCODE_LANES(q5_k, 32, TWICE_MEAN_OF, true)
ENCODE_LANES(q6_k, 16, TWICE_MEAN_OF, false)
