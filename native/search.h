/* The searches for a scale (and a minimum) that K-quants and weighted simple quants share.
 *
 * A port of make_qx_quants, make_q3_quants, make_qkx2/3_quants and make_qp_quants of ggml-quants.c
 * (MIT, see LICENSE.ggml). Order of operations and types are kept: the bytes depend on each rounding.
 * At the end are those of the simple types without importance, which are no searches.
 */
#ifndef CONVERTER_SEARCH_H
#define CONVERTER_SEARCH_H

#include <float.h>
#include <stdbool.h>

#include "numeric.h"

#define GROUP_EPS 1e-15f /* groups whose largest magnitude is smaller are stored as zeros */

/* The element of largest magnitude; the first one where two are equal. */
static inline float peak(int n, const float *x, float *magnitude) {
    float best = 0, value = 0;
    for (int i = 0; i < n; ++i) {
        const float a = fabsf(x[i]);
        if (a > best) {
            best = a;
            value = x[i];
        }
    }
    *magnitude = best;
    return value;
}

/* Symmetric: x ~ scale * (codes - levels), codes in [0, 2 * levels). Returns the scale.
 * `w` are the weights of the squared errors, NULL for x * x. */
static inline float search_symmetric(int n, int levels, const float *x, int8_t *codes, const float *w) {
    float magnitude;
    const float max = peak(n, x, &magnitude);
    if (magnitude < GROUP_EPS) {
        memset(codes, 0, n);
        return 0.0f;
    }
    float scale = 0, best = 0;
    for (int step = 0; step <= 18; ++step) { /* 0 first, then -9..-1, 1..9 tenths of a level */
        const int shift = step == 0 ? 0 : step < 10 ? step - 10 : step - 9;
        const float inverse = step == 0 ? -levels / max : -(levels + 0.1f * shift) / max;
        float sumlx = 0, suml2 = 0;
        for (int i = 0; i < n; ++i) {
            const int l = clamp(nearest_int(inverse * x[i]), -levels, levels - 1);
            const float weight = w ? w[i] : x[i] * x[i];
            sumlx += weight * x[i] * l;
            suml2 += weight * l * l;
        }
        const bool better = step == 0 || (suml2 > 0 && sumlx * sumlx > best * suml2);
        if (!better) continue;
        for (int i = 0; i < n; ++i) codes[i] = (int8_t)(levels + clamp(nearest_int(inverse * x[i]), -levels, levels - 1));
        scale = step != 0 || suml2 ? sumlx / suml2 : 0.0f;
        best = scale * sumlx;
    }
    return scale;
}

/* As search_symmetric, weighted by x * x, by moving one code at a time; for Q3_K. */
static inline float search_coordinate(int n, int levels, const float *x, int8_t *codes) {
    float magnitude;
    const float max = peak(n, x, &magnitude);
    if (magnitude < GROUP_EPS) {
        memset(codes, 0, n);
        return 0.0f;
    }
    const float inverse = -levels / max;
    float sumlx = 0, suml2 = 0;
    for (int i = 0; i < n; ++i) {
        const int l = clamp(nearest_int(inverse * x[i]), -levels, levels - 1);
        const float w = x[i] * x[i];
        codes[i] = (int8_t)l;
        sumlx += w * x[i] * l;
        suml2 += w * l * l;
    }
    for (int pass = 0; pass < 5; ++pass) {
        bool changed = false;
        for (int i = 0; i < n; ++i) {
            const float w = x[i] * x[i];
            float slx = sumlx - w * x[i] * codes[i];
            if (!(slx > 0)) continue;
            float sl2 = suml2 - w * codes[i] * codes[i];
            const int l = clamp(nearest_int(x[i] * sl2 / slx), -levels, levels - 1);
            if (l == codes[i]) continue;
            slx += w * x[i] * l;
            sl2 += w * l * l;
            if (sl2 > 0 && slx * slx * suml2 > sumlx * sumlx * sl2) {
                codes[i] = (int8_t)l;
                sumlx = slx;
                suml2 = sl2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    for (int i = 0; i < n; ++i) codes[i] = (int8_t)(codes[i] + levels);
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

/* The grid of scales that search_affine tries: (top + first + step * i) / (max - min), i in 0..steps. */
typedef struct {
    float first, step;
    int steps;
    bool absolute; /* minimize |error| rather than error^2 */
} affine_grid;

/* That of Q4_1 and Q5_1 with importance. */
#define SIMPLE_GRID ((affine_grid){-0.9f, 0.05f, 36, false})

/* Affine: x ~ scale * codes - *minus_min, codes in [0, top]. Returns the scale.
 * Note that `min` moves while the grid is walked: each candidate starts from the best so far. */
static inline float search_affine(int n, int top, const float *x, const float *w, affine_grid grid, uint8_t *codes,
                                  float *minus_min) {
    float min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < n; ++i) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (min > 0) min = 0;
    if (max == min) {
        memset(codes, 0, n);
        *minus_min = -min;
        return 0.0f;
    }
    float inverse = top / (max - min), scale = 1 / inverse, best = 0;
    for (int i = 0; i < n; ++i) {
        codes[i] = (uint8_t)clamp(nearest_int(inverse * (x[i] - min)), 0, top);
        const float diff = scale * codes[i] + min - x[i];
        best += w[i] * (grid.absolute ? fabsf(diff) : diff * diff);
    }
    uint8_t trial[32];
    for (int step = 0; step <= grid.steps; ++step) {
        inverse = (grid.first + grid.step * step + top) / (max - min);
        float sum_l = 0, sum_l2 = 0, sum_xl = 0;
        for (int i = 0; i < n; ++i) {
            const int l = clamp(nearest_int(inverse * (x[i] - min)), 0, top);
            trial[i] = (uint8_t)l;
            sum_l += w[i] * l;
            sum_l2 += w[i] * l * l;
            sum_xl += w[i] * l * x[i];
        }
        const float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0)) continue;
        float trial_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        float trial_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (trial_min > 0) {
            trial_min = 0;
            trial_scale = sum_xl / sum_l2;
        }
        float error = 0;
        for (int i = 0; i < n; ++i) {
            const float diff = trial_scale * trial[i] + trial_min - x[i];
            error += w[i] * (grid.absolute ? fabsf(diff) : diff * diff);
        }
        if (error < best) {
            memcpy(codes, trial, n);
            best = error;
            scale = trial_scale;
            min = trial_min;
        }
    }
    *minus_min = -min;
    return scale;
}

/* Positive: x ~ scale * codes, codes in [0, top]; for the scales and mins of super-blocks.
 * Codes are bytes on purpose: a negative one wraps, as it does in ggml. */
static inline float search_positive(int n, int top, const float *x, uint8_t *codes, const float *w) {
    float max = 0;
    for (int i = 0; i < n; ++i) max = MAX(max, x[i]);
    if (max < GROUP_EPS) {
        memset(codes, 0, n);
        return 0.0f;
    }
    float inverse = top / max, best = 0;
    const float scale = 1 / inverse;
    for (int i = 0; i < n; ++i) {
        codes[i] = (uint8_t)nearest_int(inverse * x[i]);
        const float diff = x[i] - scale * codes[i];
        best += w[i] * diff * diff;
    }
    for (int shift = -4; shift <= 4; ++shift) {
        if (shift == 0) continue;
        const float trial = (0.1f * shift + top) / max, trial_scale = 1 / trial;
        float error = 0;
        for (int i = 0; i < n; ++i) {
            const int l = MIN(top, nearest_int(trial * x[i]));
            const float diff = x[i] - trial_scale * l;
            error += w[i] * diff * diff;
        }
        if (error < best) {
            best = error;
            inverse = trial;
        }
    }
    float sumlx = 0, suml2 = 0;
    for (int i = 0; i < n; ++i) {
        const int l = MIN(top, nearest_int(inverse * x[i]));
        codes[i] = (uint8_t)l;
        sumlx += w[i] * x[i] * l;
        suml2 += w[i] * l * l;
    }
    for (int pass = 0; pass < 5; ++pass) {
        bool changed = false;
        for (int i = 0; i < n; ++i) {
            float slx = sumlx - w[i] * x[i] * codes[i];
            float sl2 = suml2 - w[i] * codes[i] * codes[i];
            if (!(slx > 0 && sl2 > 0)) continue;
            const int l = MIN(top, nearest_int(x[i] * sl2 / slx));
            if (l == codes[i]) continue;
            slx += w[i] * x[i] * l;
            sl2 += w[i] * l * l;
            if (slx * slx * suml2 > sumlx * sumlx * sl2) {
                codes[i] = (uint8_t)l;
                sumlx = slx;
                suml2 = sl2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

/* sum of x * x in order, the start of most importance weights. */
static inline float sum_squares(int64_t n, const float *x) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

/* Importance of each element: the given one times the root of its own square plus the mean's. */
static inline void importance(int n, const float *x, const float *given, float mean_square, float *w) {
    for (int i = 0; i < n; ++i) w[i] = given[i] * sqrtf(mean_square + x[i] * x[i]);
}

static inline float reciprocal(float d) { return d ? 1.0f / d : 0.0f; }

/* codes[i] = truncate((x[i] - base) * inverse + offset), its low byte, at most `top` */
static inline void truncate_codes(const float *x, float base, float inverse, float offset, int top, uint8_t *codes) {
    for (int i = 0; i < 32; ++i) {
        const int8_t code = (int8_t)truncate((x[i] - base) * inverse + offset);
        codes[i] = (uint8_t)MIN((int8_t)top, code);
    }
}

/* One block of Q4_0 or Q5_0 without importance: x ~ d * (code - levels). The step may be negative: the element
 * of largest magnitude gets the code 0, which has no positive twin. */
static inline float find_symmetric(int levels, const float *x, uint8_t *codes) {
    float magnitude;
    const float d = peak(32, x, &magnitude) / (float)-levels;
    truncate_codes(x, 0.0f, reciprocal(d), (float)levels + 0.5f, 2 * levels - 1, codes);
    return d;
}

/* One block of Q4_1 or Q5_1 without importance: x ~ d * code + m. */
static inline float find_affine(int top, const float *x, uint8_t *codes, float *m) {
    float low = FLT_MAX, high = -FLT_MAX;
    for (int i = 0; i < 32; ++i) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
    const float d = (high - low) / (float)top;
    truncate_codes(x, low, reciprocal(d), 0.5f, top, codes);
    *m = low;
    return d;
}

#endif
