/* IQ4_NL and IQ4_XS, one lane per 32 elements; the bytes are those of encode_iq4.c. */
#include "isa.h"
#include "kernels.h"
#include "lanes_nearest.h"
#include "lanes_search.h"
#include "pack_iq4.h"
#include "transpose.h"

/* As find_scale of encode_iq4.c; every lane is decided here, NaN included. */
static inline void scale_lanes(const float *x, const float *w, float *scale_out) {
    const vf zero = splat(0.0f), first = splat((float)-IQ4_VALUES[0]);
    vf magnitude[UNROLL], max[UNROLL], scale[UNROLL], best[UNROLL];
    EACH(u) magnitude[u] = max[u] = scale[u] = best[u] = zero;
    for (int i = 0; i < 32; ++i)
        EACH(u) {
            const vf xi = load(x + i * LANES + u * WIDTH), a = vabs(xi);
            const vm larger = less(magnitude[u], a);
            magnitude[u] = pick(larger, a, magnitude[u]);
            max[u] = pick(larger, xi, max[u]);
        }
    for (int step = -1; step <= 14; ++step) {
        vf inverse[UNROLL], sumqx[UNROLL], sumq2[UNROLL];
        EACH(u) {
            inverse[u] = step < 0 ? splat(1.0f) / (max[u] / first) : splat((float)(step - 7 + IQ4_VALUES[0])) / max[u];
            sumqx[u] = sumq2[u] = zero;
        }
        for (int i = 0; i < 32; ++i)
            EACH(u) {
                const vf xi = load(x + i * LANES + u * WIDTH), q = nearest_value(inverse[u] * xi);
                const vf wq = load(w + i * LANES + u * WIDTH) * q;
                sumqx[u] = sumqx[u] + wq * xi;
                sumq2[u] = sumq2[u] + wq * q;
            }
        EACH(u) {
            const vf ratio = sumqx[u] / sumq2[u];
            const vm positive = less(zero, sumq2[u]);
            const vm better = step < 0 ? positive : both(positive, less(best[u] * sumq2[u], sumqx[u] * sumqx[u]));
            scale[u] = pick(better, ratio, scale[u]);
            best[u] = pick(better, ratio * sumqx[u], best[u]);
        }
    }
    EACH(u) store(scale_out + u * WIDTH, pick(less(magnitude[u], splat(GROUP_EPS)), zero, scale[u]));
}

/* Scales of `count` <= LANES groups of 32; `given` has the importance of each, or is NULL. */
static void find_scales(int count, const float *x, const float *const *given, const float *mean_square, float *scale) {
    float xt[32 * LANES], w[32 * LANES];
    transpose_groups(32, count, x, xt);
    if (given) transpose_given(32, count, 1, given, w);
    for (int i = 0; i < 32; ++i)
        EACH(u) {
            const int at = i * LANES + u * WIDTH;
            const vf xi = load(xt + at);
            store(w + at, given ? load(w + at) * vsqrt(load(mean_square + u * WIDTH) + xi * xi) : xi * xi);
        }
    scale_lanes(xt, w, scale);
}

/* Walks LANES groups at a time; `mean_of` elements share a mean square. */
static inline void scales_of_batch(int64_t first, int count, int mean_of, const float *x, int64_t row, const float *weights,
                                   float *scale) {
    const float *given[LANES];
    float mean_square[LANES] = {0};
    for (int k = 0; weights && k < count; ++k) {
        given[k] = weights + (first + k) * 32 % row;
        if (k * 32 % mean_of == 0) mean_square[k] = sum_squares(mean_of, x + k * 32) * (2.0f / (float)mean_of);
        else mean_square[k] = mean_square[k - 1];
    }
    find_scales(count, x, weights ? given : NULL, mean_square, scale);
}

void FN(encode_iq4_nl)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {
    block_iq4_nl *y = (block_iq4_nl *)out;
    const int64_t groups = rows * row / 32;
    float scale[LANES];
    for (int64_t g = 0; g < groups; g += LANES) {
        const int count = (int)MIN(LANES, groups - g);
        scales_of_batch(g, count, 32, x + g * 32, row, weights, scale);
        for (int k = 0; k < count; ++k) store_iq4_nl(x + (g + k) * 32, scale[k], y + g + k);
    }
}

void FN(encode_iq4_xs)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {
    block_iq4_xs *y = (block_iq4_xs *)out;
    const int64_t groups = rows * row / 32;
    float scale[LANES];
    for (int64_t g = 0; g < groups; g += LANES) {
        const int count = (int)MIN(LANES, groups - g);
        scales_of_batch(g, count, SUPER, x + g * 32, row, weights, scale);
        for (int k = 0; k < count; k += 8) store_iq4_xs(x + (g + k) * 32, scale + k, y + (g + k) / 8);
    }
}
