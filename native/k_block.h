/* From the scales of sub-blocks to the bytes of a K-quant super-block.
 *
 * Follows quantize_row_q{2..6}_K of ggml-quants.c (MIT, see LICENSE.ggml). The searches that come
 * before are in search.h (scalar) and lanes_k.c (one lane per sub-block); both end here.
 */
#ifndef CONVERTER_PACK_K_H
#define CONVERTER_PACK_K_H

#include "blocks.h"
#include "search.h"

/* What a search knows of one super-block. `min` is the negated minimum, unused by symmetric types.
 * `codes` are used only for sub-blocks whose scale is stored as zero; `sum_w` only with weights. */
typedef struct {
    float scale[16], min[16], sum_w[16];
    uint8_t codes[SUPER];
} found;

static inline float largest(int n, const float *v) {
    float max = 0;
    for (int i = 0; i < n; ++i)
        if (v[i] > max) max = v[i];
    return max;
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

/* codes = nearest((x + shift) / step), in [0, top]; untouched where the step is zero. */
static inline void requantize_affine(int n, int top, const float *x, float step, float shift, uint8_t *codes) {
    if (!step) return;
    for (int i = 0; i < n; ++i) codes[i] = (uint8_t)clamp(nearest_int((x[i] + shift) / step), 0, top);
}

/* codes = nearest(x / step) + levels, in [0, 2 * levels); untouched where the step is zero. */
static inline void requantize_symmetric(int n, int levels, const float *x, float step, uint8_t *codes) {
    if (!step) return;
    for (int i = 0; i < n; ++i) codes[i] = (uint8_t)(clamp(nearest_int(x[i] / step), -levels, levels - 1) + levels);
}

/* Four groups of 32 two-bit codes to a byte, 128 codes at a time. */
static inline void pack_two_bits(const uint8_t *codes, uint8_t *qs) {
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

static inline void store_q2_k(const float *x, found *f, bool weighted, block_q2_k *y) {
    uint8_t scales[16], mins[16];
    if (weighted) {
        y->d = f32_to_f16(search_positive(16, 15, f->scale, scales, f->sum_w));
        y->dmin = f32_to_f16(search_positive(16, 15, f->min, mins, f->sum_w));
    } else {
        y->d = quantize_values(16, 15.0f, f->scale, scales);
        y->dmin = quantize_values(16, 15.0f, f->min, mins);
    }
    const float d = f16_to_f32(y->d), dmin = f16_to_f32(y->dmin);
    for (int j = 0; j < 16; ++j) {
        y->scales[j] = (uint8_t)(scales[j] | mins[j] << 4);
        requantize_affine(16, 3, x + 16 * j, d * (y->scales[j] & 15), dmin * (y->scales[j] >> 4), f->codes + 16 * j);
    }
    pack_two_bits(f->codes, y->qs);
}

static inline void store_q3_k(const float *x, found *f, bool weighted, block_q3_k *y) {
    int8_t scales[16] = {0};
    if (weighted) {
        y->d = f32_to_f16(search_symmetric(16, 32, f->scale, scales, f->sum_w));
    } else {
        const float max = extreme(16, f->scale), inverse = -32.0f / max;
        for (int j = 0; max != 0 && j < 16; ++j)
            scales[j] = (int8_t)(clamp((int8_t)nearest_int(inverse * f->scale[j]), -32, 31) + 32);
        y->d = max != 0 ? f32_to_f16(1 / inverse) : 0;
    }
    for (int j = 0; j < 8; ++j) y->scales[j] = (uint8_t)((scales[j] & 15) | (scales[j + 8] & 15) << 4);
    for (int j = 0; j < 4; ++j)
        y->scales[j + 8] = (uint8_t)(scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 |
                                     scales[j + 12] >> 4 << 6);
    const float d = f16_to_f32(y->d);
    for (int j = 0; j < 16; ++j)
        requantize_symmetric(16, 4, x + 16 * j, d * unpack_scale_q3(y->scales, j), f->codes + 16 * j);
    memset(y->hmask, 0, sizeof y->hmask);
    for (int g = 0; g < 8; ++g)
        for (int i = 0; i < 32; ++i) {
            uint8_t *code = f->codes + 32 * g + i;
            y->hmask[i] |= (uint8_t)((*code >> 2 & 1) << g);
            *code &= 3;
        }
    pack_two_bits(f->codes, y->qs);
}

/* The part that Q4_K and Q5_K share: d, dmin, packed scales, final codes in [0, top]. */
static inline void store_affine_k(const float *x, found *f, int top, bool weighted, f16 *d, f16 *dmin, uint8_t *packed) {
    uint8_t scales[8], mins[8];
    if (weighted) {
        *d = f32_to_f16(search_positive(8, 63, f->scale, scales, f->sum_w));
        *dmin = f32_to_f16(search_positive(8, 63, f->min, mins, f->sum_w));
    } else {
        *d = quantize_values(8, 63.0f, f->scale, scales);
        *dmin = quantize_values(8, 63.0f, f->min, mins);
    }
    const bool raw = weighted && top == 15; /* ggml clamps wrapped codes everywhere but here */
    for (int j = 0; !raw && j < 8; ++j) {
        scales[j] = MIN(63, scales[j]);
        mins[j] = MIN(63, mins[j]);
    }
    pack_scale_min(scales, mins, packed);
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        unpack_scale_min(packed, j, &scale, &min);
        requantize_affine(32, top, x + 32 * j, f16_to_f32(*d) * scale, f16_to_f32(*dmin) * min, f->codes + 32 * j);
    }
}

static inline void store_q4_k(const float *x, found *f, bool weighted, block_q4_k *y) {
    f16 d, dmin;
    store_affine_k(x, f, 15, weighted, &d, &dmin, y->scales);
    y->d = d;
    y->dmin = dmin;
    for (int g = 0; g < 4; ++g)
        for (int i = 0; i < 32; ++i) y->qs[32 * g + i] = (uint8_t)(f->codes[64 * g + i] | f->codes[64 * g + 32 + i] << 4);
}

static inline void store_q5_k(const float *x, found *f, bool weighted, block_q5_k *y) {
    f16 d, dmin;
    store_affine_k(x, f, 31, weighted, &d, &dmin, y->scales);
    y->d = d;
    y->dmin = dmin;
    memset(y->qh, 0, sizeof y->qh);
    for (int g = 0; g < 4; ++g)
        for (int i = 0; i < 32; ++i) {
            const int low = f->codes[64 * g + i], high = f->codes[64 * g + 32 + i];
            y->qs[32 * g + i] = (uint8_t)((low & 15) | (high & 15) << 4);
            y->qh[i] |= (uint8_t)((low >> 4) << 2 * g | (high >> 4) << (2 * g + 1));
        }
}

static inline void store_q6_k(const float *x, found *f, block_q6_k *y) {
    const float max = extreme(16, f->scale);
    if (fabsf(max) < GROUP_EPS) {
        memset(y, 0, sizeof *y);
        return;
    }
    const float inverse = -128.0f / max;
    y->d = f32_to_f16(1 / inverse);
    const float d = f16_to_f32(y->d);
    for (int j = 0; j < 16; ++j) {
        y->scales[j] = (int8_t)MIN(127, nearest_int(inverse * f->scale[j]));
        requantize_symmetric(16, 32, x + 16 * j, d * y->scales[j], f->codes + 16 * j);
    }
    const uint8_t *codes = f->codes;
    for (int half = 0; half < 2; ++half, codes += 128)
        for (int i = 0; i < 32; ++i) {
            const uint8_t a = codes[i], b = codes[i + 32], c = codes[i + 64], e = codes[i + 96];
            y->ql[64 * half + i] = (uint8_t)((a & 15) | (c & 15) << 4);
            y->ql[64 * half + 32 + i] = (uint8_t)((b & 15) | (e & 15) << 4);
            y->qh[32 * half + i] = (uint8_t)(a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6);
        }
}

#endif
