/* `--effort 2` and `3` of MXFP4 and NVFP4: scales next to the reference's, where the error is less with them.
 *
 * One lane per scale, sums in scalar order. These scales are too coarse to be given the right length, so there is no
 * `--effort 1`. Blocks whose scale stays are the reference's, and so are those that hold something that is no number.
 */
#include "blocks.h"
#include "isa.h"
#include "kernels.h"
#include "lanes.h"
#include "pack_simple.h"
#include "transpose.h"

/* Between the magnitudes of FP4_VALUES, and how far these are apart. */
static const float MIDDLES[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f}, GAPS[7] = {1, 1, 1, 1, 2, 2, 4};

/* Weighted squared errors of LANES groups of `n`, transposed, with a step for each. */
static inline void errors_fp4(int n, const float *x, const float *w, const float *step, float *error_out) {
    EACH(u) {
        const vf zero = splat(0.0f), d = load(step + u * WIDTH), inverse = pick(equal(d, zero), zero, splat(1.0f) / d);
        vf error = zero;
        for (int i = 0; i < n; ++i) {
            const vf a = vabs(load(x + i * LANES + u * WIDTH)), v = a * inverse;
            vf q = zero;
            for (int k = 0; k < 7; ++k) q = q + pick(less(splat(MIDDLES[k]), v), splat(GAPS[k]), zero);
            const vf diff = a - q * d;
            error = error + load(w + i * LANES + u * WIDTH) * diff * diff;
        }
        store(error_out + u * WIDTH, error);
    }
}

/* The codes that errors_fp4 means. */
static inline void codes_fp4(int n, const float *x, float step, uint8_t *codes) {
    const float inverse = step ? 1.0f / step : 0.0f;
    int32_t wide[32];
    for (int i = 0; i < n; ++i) wide[i] = 0;
    for (int k = 0; k < 7; ++k)
        for (int i = 0; i < n; ++i) wide[i] += fabsf(x[i]) * inverse > MIDDLES[k];
    for (int i = 0; i < n; ++i) codes[i] = (uint8_t)(wide[i] + ((wide[i] > 0) & (x[i] < 0) ? 8 : 0));
}

/* The scales of `count` <= LANES groups of `n` elements that follow each other at element `first` of rows of `row`:
 * of those up to `window` codes from the given ones, and within [0, top], the ones with the least error. */
static void nearest_scales(int n, int top, int window, float (*value)(uint8_t), int64_t first, int count, const float *x,
                           int64_t row, const float *weights, uint8_t *scales) {
    float xt[32 * LANES], w[32 * LANES], step[LANES] = {0}, error[LANES], least[LANES];
    const float *given[LANES];
    int best[LANES];
    transpose_groups(n, count, x, xt);
    for (int k = 0; weights && k < count; ++k) given[k] = weights + (first + k * n) % row;
    if (weights) transpose_given(n, count, 1, given, w);
    for (int i = 0; !weights && i < n * LANES; ++i) w[i] = 1;
    for (int trial = 0; trial <= 2 * window; ++trial) { /* 0, -1, 1, -2, 2, ... */
        const int by = trial % 2 ? -(trial + 1) / 2 : trial / 2;
        int code[LANES];
        for (int k = 0; k < count; ++k) {
            code[k] = clamp(scales[k] + by, 0, top);
            step[k] = value((uint8_t)code[k]);
        }
        errors_fp4(n, xt, w, step, error);
        for (int k = 0; k < count; ++k) {
            if (trial && !(error[k] < least[k])) continue;
            least[k] = error[k];
            best[k] = code[k];
        }
    }
    for (int k = 0; k < count; ++k) scales[k] = (uint8_t)best[k];
}

static float mxfp4_value(uint8_t e) { return e8m0_half_to_f32(e); }

static float nvfp4_value(uint8_t e) { return ue4m3_half_to_f32(e); }

extern encode_fn FN(encode_mxfp4), FN(encode_nvfp4);

void FN(effort_mxfp4)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level) {
    const int64_t blocks = rows * row / 32;
    block_mxfp4 *y = (block_mxfp4 *)out;
    FN(encode_mxfp4)(x, out, rows, row, weights);
    for (int64_t first = 0; level > 1 && first < blocks; first += LANES, x += LANES * 32, y += LANES) {
        const int count = (int)MIN(LANES, blocks - first);
        uint8_t scales[LANES];
        for (int k = 0; k < count; ++k) scales[k] = y[k].e;
        nearest_scales(32, 254, level - 1, mxfp4_value, first * 32, count, x, row, weights, scales);
        for (int k = 0; k < count; ++k) {
            uint8_t codes[32];
            if (scales[k] == y[k].e) continue;
            y[k].e = scales[k];
            codes_fp4(32, x + k * 32, mxfp4_value(scales[k]), codes);
            pack_nibbles(codes, y[k].qs);
        }
    }
}

void FN(effort_nvfp4)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level) {
    const int64_t groups = rows * row / 16;
    FN(encode_nvfp4)(x, out, rows, row, weights);
    for (int64_t first = 0; level > 1 && first < groups; first += LANES, x += LANES * 16) {
        const int count = (int)MIN(LANES, groups - first);
        block_nvfp4 *y = (block_nvfp4 *)out + first / 4;
        uint8_t scales[LANES];
        for (int k = 0; k < count; ++k) scales[k] = y[k / 4].d[k % 4];
        nearest_scales(16, 0x7E, level == 2 ? 1 : 4, nvfp4_value, first * 16, count, x, row, weights, scales);
        for (int k = 0; k < count; ++k) {
            uint8_t codes[16], *qs = y[k / 4].qs + k % 4 * 8;
            if (scales[k] == y[k / 4].d[k % 4]) continue;
            y[k / 4].d[k % 4] = scales[k];
            codes_fp4(16, x + k * 16, nvfp4_value(scales[k]), codes);
            for (int i = 0; i < 8; ++i) qs[i] = (uint8_t)(codes[i] | codes[i + 8] << 4);
        }
    }
}
