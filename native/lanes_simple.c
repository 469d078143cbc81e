/* Q4_0, Q4_1, Q5_0 and Q5_1 with importance, one lane per block; the bytes are those of encode_simple.c. */
#include "isa.h"
#include "kernels.h"
#include "lanes_search.h"
#include "pack_simple.h"
#include "transpose.h"

/* LANES blocks and what the search finds: x ~ scale * code + min, the codes by `maker`. */
typedef struct {
    float x[32 * LANES], w[32 * LANES]; /* transposed */
    float scale[LANES], minus_min[LANES];
    code_maker maker;
    uint32_t redo;
} batch;

/* Transposes `count` blocks from number `first` on and weighs them. `row` elements share a mean square: that of
 * the row of the last block taken is kept in `mean`. */
static void weigh_blocks(int64_t first, int count, const float *x, int64_t row, const float *weights, float *mean, batch *b) {
    const float *given[LANES];
    float mean_square[LANES] = {0};
    for (int k = 0; k < count; ++k) {
        const int64_t at = (first + k) * 32 % row;
        if (at == 0) *mean = sum_squares(row, x + k * 32) / (float)row;
        given[k] = weights + at;
        mean_square[k] = *mean;
    }
    transpose_groups(32, count, x, b->x);
    transpose_given(32, count, 1, given, b->w);
    for (int i = 0; i < 32; ++i)
        EACH(u) {
            const int at = i * LANES + u * WIDTH;
            const vf v = load(b->x + at);
            store(b->w + at, load(b->w + at) * vsqrt(load(mean_square + u * WIDTH) + v * v));
        }
}

/* Codes of 32 elements: nearest(inverse * (x - base)), between `low` and `high`, less `low`. */
static inline void make_codes(const float *restrict x, float inverse, float base, int low, int high, uint8_t *restrict codes) {
    int32_t wide[32];
    for (int i = 0; i < 32; ++i) wide[i] = clamp(nearest_int(inverse * (x[i] - base)), low, high) - low;
    for (int i = 0; i < 32; ++i) codes[i] = (uint8_t)(inverse ? wide[i] : 0);
}

/* Block `k` of the batch by the scalar search. */
static void redo_block(batch *b, int k, const float *x, int levels, int top, uint8_t *codes) {
    float w[32];
    for (int i = 0; i < 32; ++i) w[i] = b->w[i * LANES + k];
    b->minus_min[k] = 0;
    b->scale[k] = levels ? search_symmetric(32, levels, x, (int8_t *)codes, w)
                         : search_affine(32, top, x, w, SIMPLE_GRID, codes, b->minus_min + k);
}

/* Symmetric types have `levels`, affine ones `top`; the other is 0. */
#define ENCODE_WEIGHTED(type, levels, top)                                                                          \
    void FN(encode_##type##_weighted)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {  \
        const int64_t blocks = rows * row / 32;                                                                     \
        block_##type *y = (block_##type *)out;                                                                      \
        batch b;                                                                                                    \
        float mean = 0;                                                                                             \
        for (int64_t first = 0; first < blocks; first += LANES) {                                                   \
            const int count = (int)MIN(LANES, blocks - first);                                                      \
            weigh_blocks(first, count, x + first * 32, row, weights, &mean, &b);                                    \
            memset(b.minus_min, 0, sizeof b.minus_min);                                                             \
            b.redo = levels ? symmetric_lanes(32, levels, b.x, b.w, b.scale, &b.maker)                              \
                            : affine_lanes(32, top, b.x, b.w, SIMPLE_GRID, b.scale, b.minus_min, &b.maker);         \
            for (int k = 0; k < count; ++k) {                                                                       \
                const float *block = x + (first + k) * 32;                                                          \
                uint8_t codes[32];                                                                                  \
                if (b.redo >> k & 1) redo_block(&b, k, block, levels, top, codes);                                  \
                else make_codes(block, b.maker.inverse[k], b.maker.base[k], -levels, levels ? levels - 1 : top, codes); \
                store_##type(b.scale[k], -b.minus_min[k], codes, y + first + k);                                    \
            }                                                                                                       \
        }                                                                                                           \
    }

ENCODE_WEIGHTED(q4_0, 8, 0)
ENCODE_WEIGHTED(q4_1, 0, 15)
ENCODE_WEIGHTED(q5_0, 16, 0)
ENCODE_WEIGHTED(q5_1, 0, 31)
