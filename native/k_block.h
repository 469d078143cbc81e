/* A K-quant super-block: the scalar search of each sub-block, and from their scales to bytes.
 *
 * Follows quantize_row_q{2..6}_K_{ref,impl} of ggml-quants.c (MIT, see LICENSE.ggml). encode_k.c searches
 * with what is here; lanes_k.c searches many sub-blocks at once and comes back here for the rest.
 */
#ifndef CONVERTER_K_BLOCK_H
#define CONVERTER_K_BLOCK_H

#include <stdbool.h>

#include "blocks.h"
#include "search.h"

/* One super-block between search and bytes. `given` is its importance or NULL, `mean_square` what weighs it.
 * A search leaves scale, min (negated; affine types only), sum_w (with importance only) and codes of every
 * sub-block. Codes are needed only where the scale is stored as zero; `has_codes` tells which are there. */
typedef struct {
    const float *x, *given;
    float mean_square;
    float scale[16], min[16], sum_w[16];
    uint8_t codes[SUPER];
    uint32_t has_codes;
    /* With importance: the steps of the scales and mins, and their codes, once fit() has run. */
    bool fitted;
    float d, dmin;
    uint8_t scale_codes[16], min_codes[16];
} k_block;

/* The scalar search of sub-block `j`. */
typedef void find_fn(k_block *b, int j);

/* Grids of search_affine without and with importance. */
static const affine_grid Q2_GRID = {-0.5f, 0.1f, 15, true}, Q4_GRID = {-1.0f, 0.1f, 20, false},
                         Q5_GRID = {-0.5f, 0.1f, 15, false}, WEIGHTED_GRID = {-0.9f, 0.05f, 36, false};

/* Weights by importance of the `n` elements of sub-block `j`, and their sum. */
static inline void weigh(k_block *b, int j, int n, float *w) {
    importance(n, b->x + n * j, b->given + n * j, b->mean_square, w);
    b->sum_w[j] = 0;
    for (int i = 0; i < n; ++i) b->sum_w[j] += w[i];
}

static inline void find_q2_k(k_block *b, int j) {
    const float *x = b->x + 16 * j;
    float w[16];
    if (b->given) weigh(b, j, 16, w);
    for (int i = 0; !b->given && i < 16; ++i) w[i] = fabsf(x[i]);
    b->scale[j] = search_affine(16, 3, x, w, b->given ? WEIGHTED_GRID : Q2_GRID, b->codes + 16 * j, &b->min[j]);
    b->has_codes |= 1u << j;
}

static inline void find_q3_k(k_block *b, int j) {
    const float *x = b->x + 16 * j;
    int8_t *codes = (int8_t *)b->codes + 16 * j;
    float w[16];
    if (b->given) weigh(b, j, 16, w);
    b->scale[j] = b->given ? search_symmetric(16, 4, x, codes, w) : search_coordinate(16, 4, x, codes);
    b->has_codes |= 1u << j;
}

static inline void find_affine_k(k_block *b, int j, int top) {
    const float *x = b->x + 32 * j;
    float w[32];
    if (b->given) {
        weigh(b, j, 32, w);
    } else {
        const float rms = sqrtf(sum_squares(32, x) / 32);
        for (int i = 0; i < 32; ++i) w[i] = rms + fabsf(x[i]);
    }
    const affine_grid grid = b->given ? WEIGHTED_GRID : top == 15 ? Q4_GRID : Q5_GRID;
    b->scale[j] = search_affine(32, top, x, w, grid, b->codes + 32 * j, &b->min[j]);
    b->has_codes |= 1u << j;
}

static inline void find_q4_k(k_block *b, int j) { find_affine_k(b, j, 15); }

static inline void find_q5_k(k_block *b, int j) { find_affine_k(b, j, 31); }

static inline void find_q6_k(k_block *b, int j) {
    const float *given = b->given ? b->given + 16 * j : NULL;
    b->scale[j] = search_symmetric(16, 32, b->x + 16 * j, (int8_t *)b->codes + 16 * j, given);
    b->has_codes |= 1u << j;
}

/* What a block's importance is weighed with. Q6_K takes it as it is. */
static inline float mean_square_q2_k(const float *x) { return sum_squares(SUPER, x) / SUPER; }
static inline float mean_square_k(const float *x) { return 2 * sum_squares(SUPER, x) / SUPER; }

static inline float largest(int n, const float *v) {
    float max = 0;
    for (int i = 0; i < n; ++i)
        if (v[i] > max) max = v[i];
    return max;
}

/* The search for the steps of a super-block with importance: affine types (Q2_K, Q4_K, Q5_K), and Q3_K. */
static inline void fit_affine(k_block *b, int n, int top) {
    if (b->fitted) return;
    b->d = search_positive(n, top, b->scale, b->scale_codes, b->sum_w);
    b->dmin = search_positive(n, top, b->min, b->min_codes, b->sum_w);
}

static inline void fit_symmetric(k_block *b) {
    if (b->fitted) return;
    b->d = search_symmetric(16, 32, b->scale, (int8_t *)b->scale_codes, b->sum_w);
}

/* The value of largest magnitude, sign kept. */
static inline float extreme(int n, const float *v) {
    float magnitude;
    return peak(n, v, &magnitude);
}

/* Codes of non-negative values at the step that gives the largest one `top`. Returns the step. */
static inline f16 quantize_values(int n, float top, const float *v, uint8_t *codes) {
    const float max = largest(n, v), inverse = max > 0 ? top / max : 0.0f;
    for (int i = 0; i < n; ++i) codes[i] = (uint8_t)nearest_int(inverse * v[i]);
    return f32_to_f16(max / top);
}

/* Final codes of sub-block `j`: nearest((x + shift) / step) in [0, top]; those of the search where step is 0. */
static inline void requantize_affine(k_block *b, int j, int n, int top, float step, float shift, find_fn *find) {
    const float *restrict x = b->x + n * j;
    uint8_t *restrict codes = b->codes + n * j;
    if (step) {
        int32_t wide[32]; /* apart from the bytes, so that compilers use whole vectors of floats */
#pragma GCC unroll 1 /* gcc unrolls 16 steps before it looks for vectors, and then finds none */
        for (int i = 0; i < n; ++i) wide[i] = clamp(nearest_int((x[i] + shift) / step), 0, top);
        for (int i = 0; i < n; ++i) codes[i] = (uint8_t)wide[i];
    } else if (!(b->has_codes >> j & 1)) {
        find(b, j);
    }
}

/* The same for symmetric types: nearest(x / step) + levels, in [0, 2 * levels). */
static inline void requantize_symmetric(k_block *b, int j, int n, int levels, float step, find_fn *find) {
    const float *restrict x = b->x + n * j;
    uint8_t *restrict codes = b->codes + n * j;
    if (step) {
        int32_t wide[32];
#pragma GCC unroll 1
        for (int i = 0; i < n; ++i) wide[i] = clamp(nearest_int(x[i] / step), -levels, levels - 1) + levels;
        for (int i = 0; i < n; ++i) codes[i] = (uint8_t)wide[i];
    } else if (!(b->has_codes >> j & 1)) {
        find(b, j);
    }
}

/* Four groups of 32 two-bit codes to a byte, 128 codes at a time. */
static inline void pack_two_bits(const uint8_t *restrict codes, uint8_t *restrict qs) {
    for (int half = 0; half < 2; ++half, codes += 128, qs += 32)
        for (int i = 0; i < 32; ++i)
            qs[i] = (uint8_t)(codes[i] | codes[i + 32] << 2 | codes[i + 64] << 4 | codes[i + 96] << 6);
}

/* Eight six-bit scales and mins in twelve bytes. */
static inline void pack_scale_min(const uint8_t *scales, const uint8_t *mins, uint8_t *packed) {
    for (int j = 0; j < 4; ++j) {
        packed[j] = (uint8_t)(scales[j] | (scales[j + 4] >> 4) << 6);
        packed[j + 4] = (uint8_t)(mins[j] | (mins[j + 4] >> 4) << 6);
        packed[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

/* Sixteen six-bit scales, biased by 32, in twelve bytes. */
static inline void pack_scales_q3(const int8_t *scales, uint8_t *packed) {
    for (int j = 0; j < 8; ++j) packed[j] = (uint8_t)((scales[j] & 15) | (scales[j + 8] & 15) << 4);
    for (int j = 0; j < 4; ++j)
        packed[j + 8] = (uint8_t)(scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 |
                                  scales[j + 12] >> 4 << 6);
}

/* From 256 codes to the bytes of a block, all but its scales. */
static inline void pack_codes_q2_k(const uint8_t *codes, block_q2_k *y) { pack_two_bits(codes, y->qs); }

/* The codes lose their third bits. */
static inline void pack_codes_q3_k(uint8_t *codes, block_q3_k *y) {
    memset(y->hmask, 0, sizeof y->hmask);
    for (int g = 0; g < 8; ++g)
        for (int i = 0; i < 32; ++i) {
            uint8_t *code = codes + 32 * g + i;
            y->hmask[i] |= (uint8_t)((*code >> 2 & 1) << g);
            *code &= 3;
        }
    pack_two_bits(codes, y->qs);
}

static inline void pack_codes_q4_k(const uint8_t *codes, block_q4_k *y) {
    for (int g = 0; g < 4; ++g)
        for (int i = 0; i < 32; ++i) y->qs[32 * g + i] = (uint8_t)(codes[64 * g + i] | codes[64 * g + 32 + i] << 4);
}

static inline void pack_codes_q5_k(const uint8_t *codes, block_q5_k *y) {
    memset(y->qh, 0, sizeof y->qh);
    for (int g = 0; g < 4; ++g)
        for (int i = 0; i < 32; ++i) {
            const int low = codes[64 * g + i], high = codes[64 * g + 32 + i];
            y->qs[32 * g + i] = (uint8_t)((low & 15) | (high & 15) << 4);
            y->qh[i] |= (uint8_t)((low >> 4) << 2 * g | (high >> 4) << (2 * g + 1));
        }
}

static inline void pack_codes_q6_k(const uint8_t *codes, block_q6_k *y) {
    for (int half = 0; half < 2; ++half, codes += 128)
        for (int i = 0; i < 32; ++i) {
            const uint8_t a = codes[i], c = codes[i + 32], e = codes[i + 64], g = codes[i + 96];
            y->ql[64 * half + i] = (uint8_t)((a & 15) | (e & 15) << 4);
            y->ql[64 * half + 32 + i] = (uint8_t)((c & 15) | (g & 15) << 4);
            y->qh[32 * half + i] = (uint8_t)(a >> 4 | (c >> 4) << 2 | (e >> 4) << 4 | (g >> 4) << 6);
        }
}

static inline void store_q2_k(k_block *b, block_q2_k *y) {
    uint8_t *scales = b->scale_codes, *mins = b->min_codes;
    if (b->given) {
        fit_affine(b, 16, 15);
        y->d = f32_to_f16(b->d);
        y->dmin = f32_to_f16(b->dmin);
    } else {
        y->d = quantize_values(16, 15.0f, b->scale, scales);
        y->dmin = quantize_values(16, 15.0f, b->min, mins);
    }
    const float d = f16_to_f32(y->d), dmin = f16_to_f32(y->dmin);
    for (int j = 0; j < 16; ++j) {
        y->scales[j] = (uint8_t)(scales[j] | mins[j] << 4);
        requantize_affine(b, j, 16, 3, d * (y->scales[j] & 15), dmin * (y->scales[j] >> 4), find_q2_k);
    }
    pack_codes_q2_k(b->codes, y);
}

static inline void store_q3_k(k_block *b, block_q3_k *y) {
    int8_t *scales = (int8_t *)b->scale_codes;
    if (b->given) {
        fit_symmetric(b);
        y->d = f32_to_f16(b->d);
    } else {
        memset(scales, 0, 16);
        const float max = extreme(16, b->scale), inverse = -32.0f / max;
        for (int j = 0; max != 0 && j < 16; ++j)
            scales[j] = (int8_t)(clamp((int8_t)nearest_int(inverse * b->scale[j]), -32, 31) + 32);
        y->d = max != 0 ? f32_to_f16(1 / inverse) : 0;
    }
    pack_scales_q3(scales, y->scales);
    const float d = f16_to_f32(y->d);
    for (int j = 0; j < 16; ++j)
        requantize_symmetric(b, j, 16, 4, d * unpack_scale_q3(y->scales, j), find_q3_k);
    pack_codes_q3_k(b->codes, y);
}

/* The part that Q4_K and Q5_K share: d, dmin, packed scales, final codes in [0, top]. */
static inline void store_affine_k(k_block *b, int top, f16 *d, f16 *dmin, uint8_t *packed) {
    uint8_t *scales = b->scale_codes, *mins = b->min_codes;
    if (b->given) {
        fit_affine(b, 8, 63);
        *d = f32_to_f16(b->d);
        *dmin = f32_to_f16(b->dmin);
    } else {
        *d = quantize_values(8, 63.0f, b->scale, scales);
        *dmin = quantize_values(8, 63.0f, b->min, mins);
    }
    const bool raw = b->given && top == 15; /* ggml clamps wrapped codes everywhere but here */
    for (int j = 0; !raw && j < 8; ++j) {
        scales[j] = MIN(63, scales[j]);
        mins[j] = MIN(63, mins[j]);
    }
    pack_scale_min(scales, mins, packed);
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        unpack_scale_min(packed, j, &scale, &min);
        requantize_affine(b, j, 32, top, f16_to_f32(*d) * scale, f16_to_f32(*dmin) * min, top == 15 ? find_q4_k : find_q5_k);
    }
}

static inline void store_q4_k(k_block *b, block_q4_k *y) {
    f16 d, dmin;
    store_affine_k(b, 15, &d, &dmin, y->scales);
    y->d = d;
    y->dmin = dmin;
    pack_codes_q4_k(b->codes, y);
}

static inline void store_q5_k(k_block *b, block_q5_k *y) {
    f16 d, dmin;
    store_affine_k(b, 31, &d, &dmin, y->scales);
    y->d = d;
    y->dmin = dmin;
    pack_codes_q5_k(b->codes, y);
}

static inline void store_q6_k(k_block *b, block_q6_k *y) {
    const float max = extreme(16, b->scale);
    if (fabsf(max) < GROUP_EPS) {
        memset(y, 0, sizeof *y);
        return;
    }
    const float inverse = -128.0f / max;
    y->d = f32_to_f16(1 / inverse);
    const float d = f16_to_f32(y->d);
    for (int j = 0; j < 16; ++j) {
        y->scales[j] = (int8_t)MIN(127, nearest_int(inverse * b->scale[j]));
        requantize_symmetric(b, j, 16, 32, d * y->scales[j], find_q6_k);
    }
    pack_codes_q6_k(b->codes, y);
}

#endif
