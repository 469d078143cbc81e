/* Types with one plain scale per block: Q4_0 .. Q8_0, MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0.
 *
 * Follows quantize_row_*_{ref,impl} of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#include <float.h>
#include <stdbool.h>

#include "blocks.h"
#include "isa.h"
#include "kernels.h"
#include "search.h"

/* Largest magnitude; a NaN counts as nothing. */
static float largest_magnitude(int n, const float *x) {
    float max = 0;
    for (int i = 0; i < n; ++i)
        if (fabsf(x[i]) > max) max = fabsf(x[i]);
    return max;
}

/* The same, but a NaN makes what follows it start again: so ggml has it for Q8_0 and the ternary types. */
static float running_magnitude(int n, const float *x) {
    float max = 0;
    for (int i = 0; i < n; ++i) max = MAX(max, fabsf(x[i]));
    return max;
}

static void range(int n, const float *x, float *low, float *high) {
    *low = FLT_MAX;
    *high = -FLT_MAX;
    for (int i = 0; i < n; ++i) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

static float reciprocal(float d) { return d ? 1.0f / d : 0.0f; }

/* 32 codes: element i in the low half of byte i, element i + 16 in the high half. */
static void pack_nibbles(const uint8_t *codes, uint8_t *qs) {
    for (int i = 0; i < 16; ++i) qs[i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

static void pack_fifth_bits(const uint8_t *codes, uint8_t *qh) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= (uint32_t)(codes[i] >> 4 & 1) << i;
    memcpy(qh, &bits, 4);
}

/* One block without importance: x ~ d * (code - levels). The step may be negative: the element of
 * largest magnitude gets the code 0, which has no positive twin. */
static f16 find_symmetric(int levels, const float *x, uint8_t *codes) {
    float magnitude;
    const float d = peak(32, x, &magnitude) / (float)-levels, inverse = reciprocal(d);
    for (int i = 0; i < 32; ++i)
        codes[i] = (uint8_t)MIN(2 * levels - 1, (int8_t)truncate(x[i] * inverse + ((float)levels + 0.5f)));
    return f32_to_f16(d);
}

/* One block without importance: x ~ d * code + m. */
static f16 find_affine(int top, const float *x, uint8_t *codes, f16 *m) {
    float low, high;
    range(32, x, &low, &high);
    const float d = (high - low) / (float)top, inverse = reciprocal(d);
    for (int i = 0; i < 32; ++i) codes[i] = (uint8_t)MIN(top, (int8_t)truncate((x[i] - low) * inverse + 0.5f));
    *m = f32_to_f16(low);
    return f32_to_f16(d);
}

/* The same two with importance `given`; the mean square is that of the whole row. */
static f16 find_symmetric_weighted(int levels, const float *x, const float *given, float mean_square, uint8_t *codes) {
    float w[32];
    importance(32, x, given, mean_square, w);
    return f32_to_f16(search_symmetric(32, levels, x, (int8_t *)codes, w));
}

static f16 find_affine_weighted(int top, const float *x, const float *given, float mean_square, uint8_t *codes, f16 *m) {
    const affine_grid grid = {-0.9f, 0.05f, 36, false};
    float w[32], minus_min;
    importance(32, x, given, mean_square, w);
    const float d = search_affine(32, top, x, w, grid, codes, &minus_min);
    *m = f32_to_f16(-minus_min);
    return f32_to_f16(d);
}

/* Walks rows and blocks; the body writes `*y` from `x`, with `given` and the row's `mean_square` if any. */
#define ENCODE_SIMPLE(type, elements, ...)                                                                \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                            \
        for (int64_t r = 0; r < rows; ++r) {                                                              \
            const float mean_square = weights ? sum_squares(row, x) / (float)row : 0.0f;                  \
            for (int64_t i = 0; i < row; i += elements, x += elements, ++y) {                             \
                const float *given = weights ? weights + i : NULL;                                        \
                (void)given, (void)mean_square;                                                           \
                __VA_ARGS__                                                                               \
            }                                                                                             \
        }                                                                                                 \
    }

#define SYMMETRIC(levels) \
    (given ? find_symmetric_weighted(levels, x, given, mean_square, codes) : find_symmetric(levels, x, codes))
#define AFFINE(top) \
    (given ? find_affine_weighted(top, x, given, mean_square, codes, &m) : find_affine(top, x, codes, &m))

ENCODE_SIMPLE(q4_0, 32, {
    uint8_t codes[32];
    y->d = SYMMETRIC(8);
    pack_nibbles(codes, y->qs);
})

ENCODE_SIMPLE(q4_1, 32, {
    uint8_t codes[32];
    f16 m;
    y->d = AFFINE(15);
    y->m = m;
    pack_nibbles(codes, y->qs);
})

ENCODE_SIMPLE(q5_0, 32, {
    uint8_t codes[32];
    y->d = SYMMETRIC(16);
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
})

ENCODE_SIMPLE(q5_1, 32, {
    uint8_t codes[32];
    f16 m;
    y->d = AFFINE(31);
    y->m = m;
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
})

ENCODE_SIMPLE(q8_0, 32, {
    const float d = running_magnitude(32, x) / 127.0f, inverse = reciprocal(d);
    y->d = f32_to_f16(d);
    for (int j = 0; j < 32; ++j) y->qs[j] = (int8_t)round_away(x[j] * inverse);
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

ENCODE_SIMPLE(q2_0, 64, {
    const float d = largest_magnitude(64, x), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    y->d = f32_to_f16(d);
    for (int j = 0; j < 16; ++j) {
        int byte = 0;
        for (int k = 0; k < 4; ++k) {
            const int32_t whole = round_away(x[4 * j + k] * inverse);
            byte |= clamp(MAX(whole, -1) + 1, 0, 3) << 2 * k;
        }
        y->qs[j] = (uint8_t)byte;
    }
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

/* The same by comparison with midpoints, which are exact multiples of d. Far outside the range of the codes
 * (d saturated, or zero) the errors round to equal numbers, and only computing them tells which is first. */
static int nearest_fp4(float x, float d) {
    static const float MIDDLES[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    const float magnitude = fabsf(x);
    if (!(magnitude <= 16.0f * d)) return nearest_fp4_by_error(x, d);
    int index = 0;
    for (int i = 0; i < 7; ++i) index += magnitude > MIDDLES[i] * d;
    return index && x < 0 ? index + 8 : index;
}

static void pack_fp4(int half, const float *x, float d, uint8_t *qs) {
    for (int i = 0; i < half; ++i) qs[i] = (uint8_t)(nearest_fp4(x[i], d) | nearest_fp4(x[i + half], d) << 4);
}

ENCODE_SIMPLE(mxfp4, 32, {
    const float max = largest_magnitude(32, x);
    y->e = max > 0.0f ? (uint8_t)truncate(floorf(log2f(max)) - 2 + 127) : 0;
    pack_fp4(16, x, e8m0_half_to_f32(y->e), y->qs);
})

ENCODE_SIMPLE(nvfp4, 64, {
    for (int s = 0; s < 4; ++s) {
        y->d[s] = f32_to_ue4m3(largest_magnitude(16, x + 16 * s) / 6.0f);
        pack_fp4(8, x + 16 * s, ue4m3_half_to_f32(y->d[s]), y->qs + 8 * s);
    }
})

/* -1, 0 or 1 plus one; what lroundf cannot represent counts as 0, as its cast to int gives. */
static int trit(float v) {
    const int32_t whole = round_away(v);
    return (whole == INT32_MIN ? 0 : whole) + 1;
}

/* `count` trits at a distance of `stride`, most significant first, as a fraction of 3^5 in a byte. */
static uint8_t pack_trits(const float *x, float inverse, int count, int stride) {
    uint8_t q = 0;
    for (int i = 0; i < 5; ++i) q = (uint8_t)(q * 3 + (i < count ? trit(x[i * stride] * inverse) : 0));
    return (uint8_t)((q * 256 + 242) / 243);
}

ENCODE_SIMPLE(tq1_0, 256, {
    const float d = running_magnitude(SUPER, x), inverse = reciprocal(d);
    y->d = f32_to_f16(d);
    for (int j = 0; j < 32; ++j) y->qs[j] = pack_trits(x + j, inverse, 5, 32);
    for (int j = 0; j < 16; ++j) y->qs[32 + j] = pack_trits(x + 160 + j, inverse, 5, 16);
    for (int j = 0; j < 4; ++j) y->qh[j] = pack_trits(x + 240 + j, inverse, 4, 4);
})

ENCODE_SIMPLE(tq2_0, 256, {
    const float d = running_magnitude(SUPER, x), inverse = reciprocal(d);
    y->d = f32_to_f16(d);
    for (int j = 0; j < 64; ++j) {
        int byte = 0;
        for (int k = 0; k < 4; ++k) byte |= (trit(x[128 * (j / 32) + j % 32 + 32 * k] * inverse) & 3) << 2 * k;
        y->qs[j] = (uint8_t)byte;
    }
})
