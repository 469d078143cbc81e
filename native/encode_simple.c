/* Types with one plain scale per block: Q4_0 .. Q8_0, MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0.
 *
 * Follows quantize_row_*_{ref,impl} of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#include "block_scan.h"
#include "blocks.h"
#include "isa.h"
#include "kernels.h"
#include "pack_simple.h"

/* Integers to bytes, apart from what made them, so that compilers use whole vectors of floats there. */
static inline void narrow(int n, const int32_t *wide, uint8_t *bytes) {
    for (int i = 0; i < n; ++i) bytes[i] = (uint8_t)wide[i];
}

#ifdef SCALAR
/* Q4_0 to Q5_1; lanes_simple.c has them for the other instruction sets. */

/* With importance `given`; the mean square is that of the whole row. */
static float find_symmetric_weighted(int levels, const float *x, const float *given, float mean_square, uint8_t *codes) {
    float w[32];
    importance(32, x, given, mean_square, w);
    return search_symmetric(32, levels, x, (int8_t *)codes, w);
}

static float find_affine_weighted(int top, const float *x, const float *given, float mean_square, uint8_t *codes,
                                  float *m) {
    float w[32], minus_min;
    importance(32, x, given, mean_square, w);
    const float d = search_affine(32, top, x, w, SIMPLE_GRID, codes, &minus_min);
    *m = -minus_min;
    return d;
}

#define FIND_SYMMETRIC_WEIGHTED(levels) find_symmetric_weighted(levels, x, weights + i, mean_square, codes)
#define FIND_AFFINE_WEIGHTED(top) find_affine_weighted(top, x, weights + i, mean_square, codes, &m)

#define ENCODE_WEIGHTED(type, FIND)                                                                       \
    static void FN(encode_##type##_weighted)(const float *x, uint8_t *out, int64_t rows, int64_t row,     \
                                             const float *weights) {                                      \
        block_##type *y = (block_##type *)out;                                                            \
        for (int64_t r = 0; r < rows; ++r) {                                                              \
            const float mean_square = sum_squares(row, x) / (float)row;                                   \
            for (int64_t i = 0; i < row; i += 32, x += 32, ++y) {                                         \
                uint8_t codes[32];                                                                        \
                float m = 0;                                                                              \
                const float d = FIND;                                                                     \
                store_##type(d, m, codes, y);                                                             \
            }                                                                                             \
        }                                                                                                 \
    }

ENCODE_WEIGHTED(q4_0, FIND_SYMMETRIC_WEIGHTED(8))
ENCODE_WEIGHTED(q4_1, FIND_AFFINE_WEIGHTED(15))
ENCODE_WEIGHTED(q5_0, FIND_SYMMETRIC_WEIGHTED(16))
ENCODE_WEIGHTED(q5_1, FIND_AFFINE_WEIGHTED(31))
#define ENCODE_EITHER(type, FIND)                                                                         \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                            \
        if (weights) {                                                                                    \
            FN(encode_##type##_weighted)(x, out, rows, row, weights);                                     \
            return;                                                                                       \
        }                                                                                                 \
        for (int64_t n = rows * row / 32; n > 0; --n, x += 32, ++y) {                                     \
            uint8_t codes[32];                                                                            \
            float m = 0;                                                                                  \
            const float d = FIND;                                                                         \
            store_##type(d, m, codes, y);                                                                 \
        }                                                                                                 \
    }

ENCODE_EITHER(q4_0, find_symmetric(8, x, codes))
ENCODE_EITHER(q4_1, find_affine(15, x, codes, &m))
ENCODE_EITHER(q5_0, find_symmetric(16, x, codes))
ENCODE_EITHER(q5_1, find_affine(31, x, codes, &m))
#endif

/* Walks the blocks of a type that knows no importance; the body writes `*y` from `x`. */
#define ENCODE_SIMPLE(type, elements, ...)                                                                \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                            \
        (void)weights;                                                                                    \
        for (int64_t n = rows * row; n > 0; n -= elements, x += elements, ++y) __VA_ARGS__                \
    }

ENCODE_SIMPLE(q8_0, 32, {
    const float d = running_magnitude(32, x) / 127.0f, inverse = reciprocal(d);
    y->d = f32_to_f16(d);
    int32_t wide[32];
    round_all(32, x, inverse, wide);
    narrow(32, wide, (uint8_t *)y->qs);
})

ENCODE_SIMPLE(q1_0, 128, {
    float sum = 0;
    for (int j = 0; j < 128; ++j) sum += fabsf(x[j]);
    y->d = f32_to_f16(sum / 128.0f);
    for (int j = 0; j < 16; ++j) {
        int byte = 0;
        for (int bit = 0; bit < 8; ++bit) byte |= (x[8 * j + bit] >= 0.0f) << bit;
        y->qs[j] = (uint8_t)byte;
    }
})

/* -1, 0 or 1 plus one for each x * inverse; what ggml's rounding cannot represent counts as `odd`. */
static void find_trits(int n, const float *x, float inverse, int odd, uint8_t *trits) {
    int32_t wide[SUPER];
    round_all(n, x, inverse, wide);
    for (int i = 0; i < n; ++i) wide[i] = (wide[i] == INT32_MIN ? odd : wide[i]) + 1;
    narrow(n, wide, trits);
}

ENCODE_SIMPLE(q2_0, 64, {
    const float d = largest_magnitude(64, x), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    uint8_t trits[64];
    y->d = f32_to_f16(d);
    find_trits(64, x, inverse, -1, trits);
    for (int j = 0; j < 16; ++j)
        y->qs[j] = (uint8_t)(trits[4 * j] | trits[4 * j + 1] << 2 | trits[4 * j + 2] << 4 | trits[4 * j + 3] << 6);
})

/* Index of the value nearest to x among FP4_VALUES times d, the first of equals: as ggml computes it. */
static int nearest_fp4_by_error(float x, float d) {
    int best = 0;
    float least = fabsf((float)FP4_VALUES[0] * d - x);
    for (int i = 1; i < 16; ++i) {
        const float error = fabsf((float)FP4_VALUES[i] * d - x);
        if (error < least) {
            least = error;
            best = i;
        }
    }
    return best;
}

/* The same for `n` <= 32 elements of at most `magnitude`, by comparison with midpoints, which are exact multiples
 * of d. Far outside the range of the codes (d saturated, or zero) the errors round to equal numbers, and only
 * computing them tells which is first. */
static void find_fp4(int n, const float *x, float magnitude, float d, uint8_t *codes) {
    static const float MIDDLES[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    int32_t wide[32];
    if (!(magnitude <= 16.0f * d)) {
        for (int i = 0; i < n; ++i) codes[i] = (uint8_t)nearest_fp4_by_error(x[i], d);
        return;
    }
    for (int i = 0; i < n; ++i) wide[i] = 0;
    for (int k = 0; k < 7; ++k)
        for (int i = 0; i < n; ++i) wide[i] += fabsf(x[i]) > MIDDLES[k] * d;
    for (int i = 0; i < n; ++i) wide[i] += (wide[i] > 0) & (x[i] < 0) ? 8 : 0;
    narrow(n, wide, codes);
}

/* floor(log2f(v)) of a positive v. Where log2f could round up to an integer, it must be asked. */
static float floor_log2(float v) {
    const uint32_t bits = float_bits(v), exponent = bits >> 23;
    const bool plain = exponent > 0 && exponent < 255 && (bits & 0x7FFFFFu) < 0x7FFF00u;
    return plain ? (float)((int)exponent - 127) : floorf(log2f(v));
}

ENCODE_SIMPLE(mxfp4, 32, {
    const float max = largest_magnitude(32, x);
    uint8_t codes[32];
    y->e = max > 0.0f ? (uint8_t)truncate(floor_log2(max) - 2 + 127) : 0;
    find_fp4(32, x, max, e8m0_half_to_f32(y->e), codes);
    pack_nibbles(codes, y->qs);
})

ENCODE_SIMPLE(nvfp4, 64, {
    for (int s = 0; s < 4; ++s) {
        const float max = largest_magnitude(16, x + 16 * s);
        uint8_t codes[16];
        y->d[s] = f32_to_ue4m3(max / 6.0f);
        find_fp4(16, x + 16 * s, max, ue4m3_half_to_f32(y->d[s]), codes);
        for (int i = 0; i < 8; ++i) y->qs[8 * s + i] = (uint8_t)(codes[i] | codes[i + 8] << 4);
    }
})

/* `n` bytes of five trits, each `stride` after the last, most significant first, as fractions of 3^5. */
static void pack_trits(int n, int stride, const uint8_t *trits, uint8_t *bytes) {
    for (int j = 0; j < n; ++j) {
        const uint8_t *t = trits + j;
        const int q = 81 * t[0] + 27 * t[stride] + 9 * t[2 * stride] + 3 * t[3 * stride] + t[4 * stride];
        bytes[j] = (uint8_t)(((uint8_t)q * 256 + 242) / 243);
    }
}

ENCODE_SIMPLE(tq1_0, 256, {
    const float d = running_magnitude(SUPER, x), inverse = reciprocal(d);
    uint8_t trits[SUPER + 4] = {0}; /* the last four bytes hold only four trits */
    y->d = f32_to_f16(d);
    find_trits(SUPER, x, inverse, 0, trits);
    pack_trits(32, 32, trits, y->qs);
    pack_trits(16, 16, trits + 160, y->qs + 32);
    pack_trits(4, 4, trits + 240, y->qh);
})

ENCODE_SIMPLE(tq2_0, 256, {
    const float d = running_magnitude(SUPER, x), inverse = reciprocal(d);
    uint8_t trits[SUPER];
    y->d = f32_to_f16(d);
    find_trits(SUPER, x, inverse, 0, trits);
    for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 32; ++j) {
            const uint8_t *t = trits + 128 * half + j;
            y->qs[32 * half + j] = (uint8_t)((t[0] & 3) | (t[32] & 3) << 2 | (t[64] & 3) << 4 | t[96] << 6);
        }
})
