/* Q4_0, Q4_1, Q5_0 and Q5_1, one lane per block; the bytes are those of encode_simple.c. */
#include "isa.h"
#include "kernels.h"
#include "lanes_int.h"
#include "lanes_search.h"
#include "pack_simple.h"
#include "transpose.h"

/* ---- with importance ---- */

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
    static void weighted_##type(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {        \
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

/* ---- without ---- */

/* What makes the codes of WIDTH blocks: truncate((x - m) * inverse + offset), at most the largest code. */
typedef struct {
    float d[WIDTH], m[WIDTH], inverse[WIDTH];
    uint16_t d16[WIDTH], m16[WIDTH];
    uint32_t redo; /* blocks that scalar code must do */
} plain;

/* The largest element of each block, or of each negated block, but not below `from`; a NaN counts as nothing. */
static inline vf highest(const float *x, float from, bool negated) {
    vf max[WIDTH];
    for (int k = 0; k < WIDTH; ++k) {
        max[k] = splat(from);
        for (int i = 0; i < 32; i += WIDTH) {
            const vf v = load(x + 32 * k + i);
            max[k] = vmax(negated ? -v : v, max[k]);
        }
    }
    transpose_square(max);
    for (int i = 1; i < WIDTH; ++i) max[0] = vmax(max[0], max[i]);
    return max[0];
}

/* As find_symmetric and find_affine. Which of two equal magnitudes comes first, the sign of a zero and codes that
 * do not fit, as by infinities, are left to them: the range of an ordinary block is about `top` steps. */
static inline void find_plain(int levels, int top, const float *x, plain *p) {
    const vf zero = splat(0.0f), one = splat(1.0f);
    const float from = levels ? 0.0f : -FLT_MAX;
    const vf high = highest(x, from, false), low = -highest(x, from, true);
    vf d, m = zero, span;
    vm odd;
    if (levels) {
        const vf magnitude = vmax(high, -low);
        d = pick(less(high, -low), low, high) / splat((float)-levels);
        span = magnitude + magnitude;
        odd = equal(high, -low);
    } else {
        m = low;
        span = high - low;
        d = span / splat((float)top);
        odd = either(equal(low, zero), equal(high, zero));
    }
    const vf inverse = one / d;
    odd = either(odd, inverse_of(less(span * vabs(inverse), splat((float)top + 2.0f))));
    store(p->d, d);
    store(p->m, m);
    store(p->inverse, inverse);
    store_f16(p->d16, d);
    store_f16(p->m16, m);
    p->redo = bits(odd);
}

/* The nibbles of 32 codes and their fifth bits, as pack_simple.h has them; `qh` may be NULL. */
static inline void write_codes(const float *x, float m, float inverse, float offset, int top, uint8_t *qs, uint8_t *qh) {
    enum { HALF = 16 / WIDTH };
    vi codes[2 * HALF];
    uint32_t fifth = 0;
    for (int i = 0; i < 2 * HALF; ++i) {
        const vf v = (load(x + i * WIDTH) - splat(m)) * splat(inverse) + splat(offset);
        codes[i] = truncated(vmin(splat((float)top + 0.5f), v));
        if (qh) fifth |= sign_bits(SHIFT_LEFT(codes[i], 27)) << i * WIDTH;
        codes[i] = mask_int(codes[i], 15);
    }
    for (int i = 0; i < HALF; ++i) codes[i] = plus(codes[i], SHIFT_LEFT(codes[i + HALF], 4));
    store_bytes(qs, codes);
    if (qh) memcpy(qh, &fifth, 4);
}

#define FIFTH_q4_0(y) NULL
#define FIFTH_q4_1(y) NULL
#define FIFTH_q5_0(y) (y)->qh
#define FIFTH_q5_1(y) (y)->qh
#define HEAD_q4_0(p, k, y) (y)->d = (p).d16[k]
#define HEAD_q5_0 HEAD_q4_0
#define HEAD_q4_1(p, k, y) (y)->d = (p).d16[k], (y)->m = (p).m16[k]
#define HEAD_q5_1 HEAD_q4_1

/* Arguments as of ENCODE_WEIGHTED. */
#define ENCODE_EITHER(type, levels, top)                                                                            \
    static void redo_##type(const float *x, block_##type *y) {                                                      \
        uint8_t codes[32];                                                                                          \
        float m = 0;                                                                                                \
        const float d = levels ? find_symmetric(levels, x, codes) : find_affine(top, x, codes, &m);                 \
        store_##type(d, m, codes, y);                                                                               \
    }                                                                                                               \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {         \
        enum { TOP = levels ? 2 * levels - 1 : top };                                                               \
        block_##type *y = (block_##type *)out;                                                                      \
        float last[32 * WIDTH];                                                                                     \
        plain p;                                                                                                    \
        if (weights) {                                                                                              \
            weighted_##type(x, out, rows, row, weights);                                                            \
            return;                                                                                                 \
        }                                                                                                           \
        for (int64_t left = rows * row / 32; left > 0; left -= WIDTH, x += 32 * WIDTH, y += WIDTH) {                \
            const int count = (int)MIN(WIDTH, left);                                                                \
            if (count < WIDTH) {                                                                                    \
                memset(last, 0, sizeof last);                                                                       \
                x = memcpy(last, x, (size_t)count * 32 * sizeof *x);                                                \
            }                                                                                                       \
            find_plain(levels, TOP, x, &p);                                                                         \
            for (int k = 0; k < count; ++k) {                                                                       \
                HEAD_##type(p, k, y + k);                                                                           \
                write_codes(x + 32 * k, p.m[k], p.inverse[k], (float)levels + 0.5f, TOP, y[k].qs, FIFTH_##type(y + k)); \
            }                                                                                                       \
            for (uint32_t redo = p.redo & ((1u << count) - 1); redo; redo &= redo - 1)                              \
                redo_##type(x + 32 * __builtin_ctz(redo), y + __builtin_ctz(redo));                                 \
        }                                                                                                           \
    }

ENCODE_EITHER(q4_0, 8, 0)
ENCODE_EITHER(q4_1, 0, 15)
ENCODE_EITHER(q5_0, 16, 0)
ENCODE_EITHER(q5_1, 0, 31)
