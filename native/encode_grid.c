/* Grid types: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M, scalar.
 *
 * Follows quantize_row_iq{1,2,3}_*_impl of ggml-quants.c (MIT, see LICENSE.ggml). Where ggml would abort
 * (no neighbour at a finite distance, which takes NaN or overflow), the first neighbour is taken. What searches
 * is scalar here and on vectors in lanes_grid.c; the bytes are put together here for both.
 */
#include "grid_search.h"

#include <float.h>

#include "isa.h"
#include "kernels.h"
#include "search.h"

/* The code of element `i` of a point. */
static int code_of(const grid *g, int point, int i) { return point >> g->bits * i & ((1 << g->bits) - 1); }

int nearest_neighbour(const grid *g, int32_t index, const float *x, const float *w, float scale, const float *levels) {
    const int count = 1 << g->bits;
    float term[8][8], best = FLT_MAX; /* what each code of each element adds to the distance */
    for (int i = 0; i < g->width; ++i)
        for (int c = 0; c < count; ++c) {
            const float diff = scale * levels[c] - x[i];
            term[i][c] = w[i] * diff * diff;
        }
    int length;
    const uint16_t *list = near_list(g, index, &length);
    int nearest = list[0];
    for (int j = 0; j < length; ++j) {
        float distance = 0;
        for (int i = 0; i < g->width; ++i) distance += term[i][code_of(g, list[j], i)];
        if (distance < best) {
            best = distance;
            nearest = list[j];
        }
    }
    return nearest;
}

/* ---- IQ2 and IQ3 ---- */

static const float ODD_LEVELS[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/* The point that rounding gives. */
static int round_point(const grid_type *t, const float *x, float inverse) {
    int point = 0;
    for (int i = 0; i < t->width; ++i)
        point |= clamp(nearest_int(0.5f * (inverse * x[i] - 1)), 0, t->levels - 1) << t->bits * i;
    return point;
}

/* Sums of weight * x * level and weight * level^2 over the group. */
static void correlate(const grid_type *t, const float *x, const float *w, const uint16_t *points, float *sumqx, float *sumq2) {
    *sumqx = *sumq2 = 0;
    for (int i = 0; i < t->n; ++i) {
        const float q = ODD_LEVELS[code_of(&GRIDS[t->which], points[i / t->width], i % t->width)];
        *sumqx += w[i] * x[i] * q;
        *sumq2 += w[i] * q * q;
    }
}

static float find_points(const grid_type *t, const float *x, const float *w, float reach, float scale, uint16_t *points) {
    const grid *g = &GRIDS[t->which];
    const int groups = t->n / t->width, top = 2 * t->levels - 1;
    float root[32], sumqx, sumq2, best = 0;
    bool on_grid[8], trial_on_grid[8];
    uint16_t trial[8] = {0};
    for (int i = 0; i < t->n; ++i) root[i] = sqrtf(w[i]);
    for (int k = 0; k < groups; ++k) on_grid[k] = !t->resnap_all;
    for (int shift = -t->tries; shift <= t->tries; ++shift) {
        const float inverse = (top + shift * t->step) / reach, trial_scale = 1 / inverse;
        for (int k = 0; k < groups; ++k) {
            const int at = k * t->width, point = round_point(t, x + at, inverse);
            trial_on_grid[k] = g->index[point] >= 0;
            trial[k] = (uint16_t)(trial_on_grid[k] ? point : nearest_neighbour(g, g->index[point], x + at, root + at,
                                                                               trial_scale, ODD_LEVELS));
        }
        correlate(t, x, w, trial, &sumqx, &sumq2);
        if (sumq2 > 0 && sumqx * sumqx > best * sumq2) {
            scale = sumqx / sumq2;
            best = scale * sumqx;
            memcpy(points, trial, sizeof trial);
            memcpy(on_grid, trial_on_grid, sizeof on_grid);
        }
    }
    bool all_on_grid = true;
    for (int k = 0; k < groups; ++k) all_on_grid = all_on_grid && on_grid[k];
    if (!(scale > 0) || (all_on_grid && t->which != GRID_IQ2_XXS)) return scale;
    const float inverse = 1 / scale;
    for (int k = 0; k < groups; ++k) {
        if (on_grid[k] && !t->resnap_all) continue;
        const int at = k * t->width, point = round_point(t, x + at, inverse);
        const bool snaps = g->index[point] < 0;
        points[k] = (uint16_t)(snaps ? nearest_neighbour(g, g->index[point], x + at, root + at, scale, ODD_LEVELS) : point);
    }
    correlate(t, x, w, points, &sumqx, &sumq2);
    return sumq2 > 0 ? sumqx / sumq2 : scale;
}

/* What is stored of `n` elements: grid indices, a byte of signs per eight, a non-negative scale. */
typedef struct {
    uint16_t index[8];
    uint8_t signs[4];
    float scale;
} grid_group;

uint8_t split_signs(const float *x, const float *w, bool even, float *magnitude) {
    uint8_t signs = 0;
    int minus = 0;
    for (int i = 0; i < 8; ++i) {
        const bool positive = x[i] >= 0;
        magnitude[i] = bits_float(float_bits(x[i]) ^ (uint32_t)!positive << 31); /* no branch: signs are random */
        signs |= (uint8_t)(!positive << i);
        minus += !positive;
    }
    if (!even) return signs;
    if (minus % 2) {
        int least = 0;
        float min = w[0] * x[0] * x[0];
        for (int i = 1; i < 8; ++i) {
            const float value = w[i] * x[i] * x[i];
            if (value < min) {
                min = value;
                least = i;
            }
        }
        magnitude[least] = -magnitude[least];
        signs ^= (uint8_t)(1 << least);
    }
    return signs & 127;
}

/* Finds indices, signs and scale of one group; `eps` is the magnitude below which it is stored as zeros.
 * Returns false for such a group, whose indices ggml leaves at zero. */
static bool find_group(const grid_searches *s, const grid_type *t, const float *x, const float *w, bool even, float eps,
                       grid_group *out) {
    float magnitude[32];
    uint16_t points[8] = {0};
    memset(out, 0, sizeof *out);
    for (int k = 0; k < t->n / 8; ++k) out->signs[k] = split_signs(x + 8 * k, w + 8 * k, even, magnitude + 8 * k);
    float max = magnitude[0];
    for (int i = 1; i < t->n; ++i) max = MAX(max, magnitude[i]);
    if (max < eps) return false;
    float reach = max, scale = max / (float)(2 * t->levels - 1);
    if (t->which == GRID_IQ2_XXS) {
        uint8_t codes[32];
        scale = s->search_positive(32, t->levels + 1, magnitude, codes, w);
        reach = scale * (float)t->levels;
        for (int i = 0; i < 32; ++i) points[i / 8] |= (uint16_t)((codes[i] & 3) << 2 * (i % 8));
        if (reach <= 0) return false;
    }
    scale = s->find_points(t, magnitude, w, reach, scale, points);
    if (scale < 0) {
        scale = -scale;
        for (int k = 0; k < t->n / 8; ++k) out->signs[k] = (uint8_t)(~out->signs[k] & (even ? 127 : 255));
    }
    for (int k = 0; k < t->n / t->width; ++k) out->index[k] = (uint16_t)MAX(0, GRIDS[t->which].index[points[k]]);
    out->scale = scale;
    return true;
}

static float largest_scale(int n, const grid_group *groups) {
    float max = 0;
    for (int j = 0; j < n; ++j) max = MAX(max, groups[j].scale);
    return max;
}

/* Walks super-blocks; the body writes the zeroed `*y` from `x` and `given`, which may be NULL. */
#define ENCODE_GRID(type, ...)                                                                            \
    void encode_grid_##type(const grid_searches *s, const float *x, uint8_t *out, int64_t rows, int64_t row,  \
                            const float *weights) {                                                           \
        block_##type *y = (block_##type *)out;                                                            \
        for (int64_t r = 0; r < rows; ++r)                                                                \
            for (int64_t i = 0; i < row; i += SUPER, x += SUPER, ++y) {                                   \
                const float *given = weights ? weights + i : NULL;                                        \
                memset(y, 0, sizeof *y);                                                                  \
                __VA_ARGS__                                                                               \
            }                                                                                             \
    }

static void weigh(int n, const float *x, const float *given, float mean_square, float floor, float *w) {
    if (given) {
        importance(n, x, given, mean_square, w);
        return;
    }
    for (int i = 0; i < n; ++i) w[i] = floor + x[i] * x[i];
}

ENCODE_GRID(iq2_xxs, {
    const float mean_square = sum_squares(SUPER, x) / SUPER;
    grid_group groups[8];
    uint32_t indices[8] = {0}, rest[8] = {0};
    float w[32];
    for (int j = 0; j < 8; ++j) {
        s->weigh(32, x + 32 * j, given + 32 * j, mean_square, 0, w);
        if (!find_group(s, &IQ2_XXS, x + 32 * j, w, true, GROUP_EPS, &groups[j])) continue;
        for (int k = 0; k < 4; ++k) {
            indices[j] |= (uint32_t)groups[j].index[k] << 8 * k;
            rest[j] |= (uint32_t)groups[j].signs[k] << 7 * k;
        }
    }
    const float max = largest_scale(8, groups);
    if (!max) continue;
    const float d = max / 31, inverse = 1 / d;
    y->d = f32_to_f16(d);
    for (int j = 0; j < 8; ++j) {
        rest[j] |= (uint32_t)scale_code(inverse, groups[j].scale, 15) << 28;
        memcpy(y->qs + 4 * j, &indices[j], 4);
        memcpy(y->qs + 4 * j + 2, &rest[j], 4);
    }
})

ENCODE_GRID(iq2_xs, {
    const float mean_square = sum_squares(SUPER, x) / SUPER;
    grid_group groups[16];
    uint16_t stored[32] = {0};
    float w[16];
    for (int j = 0; j < 16; ++j) {
        s->weigh(16, x + 16 * j, given + 16 * j, mean_square, 0, w);
        if (!find_group(s, &IQ2_XS, x + 16 * j, w, true, GROUP_EPS, &groups[j])) continue;
        for (int k = 0; k < 2; ++k) stored[2 * j + k] = (uint16_t)(groups[j].index[k] | groups[j].signs[k] << 9);
    }
    const float max = largest_scale(16, groups);
    if (!max) continue;
    const float d = max / 31, inverse = 1 / d;
    y->d = f32_to_f16(d);
    memcpy(y->qs, stored, sizeof y->qs);
    for (int j = 0; j < 16; ++j) y->scales[j / 2] |= (uint8_t)(scale_code(inverse, groups[j].scale, 15) << 4 * (j % 2));
})

ENCODE_GRID(iq2_s, {
    const float mean_square = 2 * sum_squares(SUPER, x) / SUPER;
    grid_group groups[16];
    float w[16];
    for (int j = 0; j < 16; ++j) {
        s->weigh(16, x + 16 * j, given ? given + 16 * j : NULL, mean_square, 0.25f * mean_square, w);
        if (!find_group(s, &IQ2_S, x + 16 * j, w, false, 1e-8f, &groups[j])) continue;
        for (int k = 0; k < 2; ++k) put_iq2_s(y, 2 * j + k, groups[j].index[k], groups[j].signs[k]);
    }
    const float max = largest_scale(16, groups);
    if (!max) continue;
    const float d = max / 31, inverse = 1 / d;
    y->d = f32_to_f16(d * 0.9875f);
    for (int j = 0; j < 16; ++j) y->scales[j / 2] |= (uint8_t)(scale_code(inverse, groups[j].scale, 15) << 4 * (j % 2));
})

ENCODE_GRID(iq3_xxs, {
    const float mean_square = 2 * sum_squares(SUPER, x) / SUPER;
    grid_group groups[8];
    uint8_t stored[64] = {0};
    uint32_t rest[8] = {0};
    float w[32];
    for (int j = 0; j < 8; ++j) {
        s->weigh(32, x + 32 * j, given ? given + 32 * j : NULL, mean_square, 0, w);
        if (!find_group(s, &IQ3_XXS, x + 32 * j, w, true, 1e-8f, &groups[j])) continue;
        for (int k = 0; k < 8; ++k) stored[8 * j + k] = (uint8_t)groups[j].index[k];
        for (int k = 0; k < 4; ++k) rest[j] |= (uint32_t)groups[j].signs[k] << 7 * k;
    }
    const float max = largest_scale(8, groups);
    if (!max) continue;
    const float d = max / 31, inverse = 1 / d;
    y->d = f32_to_f16(d * 1.0125f);
    memcpy(y->qs, stored, sizeof y->qs);
    for (int j = 0; j < 8; ++j) y->scales_and_signs[j] = rest[j] | (uint32_t)scale_code(inverse, groups[j].scale, 15) << 28;
})

/* ggml does not step over the bytes of an all-zero group: those of the next group take their place, while
 * `qh` and the scales stay where they belong. Such a block decodes to other values than were meant. */
ENCODE_GRID(iq3_s, {
    const float mean_square = 2 * sum_squares(SUPER, x) / SUPER;
    grid_group groups[8];
    uint8_t *qs = y->qs, *signs = y->signs;
    float w[32];
    for (int j = 0; j < 8; ++j) {
        s->weigh(32, x + 32 * j, given ? given + 32 * j : NULL, mean_square, 0, w);
        if (!find_group(s, &IQ3_S, x + 32 * j, w, false, FLT_TRUE_MIN, &groups[j])) continue;
        for (int k = 0; k < 8; ++k) {
            *qs++ = (uint8_t)groups[j].index[k];
            y->qh[j] |= (uint8_t)(groups[j].index[k] >> 8 << k);
        }
        memcpy(signs, groups[j].signs, 4);
        signs += 4;
    }
    const float max = largest_scale(8, groups);
    if (!max) continue;
    const float d = max / 31, inverse = 1 / d;
    y->d = f32_to_f16(d * 1.033f);
    for (int j = 0; j < 8; ++j) y->scales[j / 2] |= (uint8_t)(scale_code(inverse, groups[j].scale, 15) << 4 * (j % 2));
})

/* ---- IQ1 ---- */

static void sort_order(int n, const float *x, int *order) {
    for (int i = 0; i < n; ++i) {
        int j = i;
        for (; j > 0 && x[order[j - 1]] > x[i]; --j) order[j] = order[j - 1];
        order[j] = i;
    }
}

static split choose_iq1_s(const float *x, const float *w, const int *order) {
    enum { N = 32 };
    float sumx[N + 1] = {0}, sumw[N + 1] = {0}, score = -FLT_MAX;
    split best = {-1, -1, 0, 0};
    for (int j = 0; j < N; ++j) {
        sumx[j + 1] = sumx[j] + w[order[j]] * x[order[j]];
        sumw[j + 1] = sumw[j] + w[order[j]];
    }
    for (int a = 0; a <= N; ++a)
        for (int b = a; b <= N; ++b)
            for (int shift = 0; shift < 2; ++shift) {
                const float *v = shift ? DOWN : UP;
                const float sumqx = (sumx[a] - sumx[0]) * v[0] + (sumx[b] - sumx[a]) * v[1] + (sumx[N] - sumx[b]) * v[2];
                const float sumq2 = (sumw[a] - sumw[0]) * v[0] * v[0] + (sumw[b] - sumw[a]) * v[1] * v[1] +
                                    (sumw[N] - sumw[b]) * v[2] * v[2];
                consider(&best, &score, sumqx, sumq2, a, b, shift);
            }
    return best;
}

static split choose_iq1_m(const float *x, const float *w, const int *order) {
    enum { N = 16 };
    float sumx[2][N + 1] = {{0}}, sumw[2][N + 1] = {{0}}, score = -FLT_MAX;
    split best = {-1, -1, 0, 0};
    for (int j = 0; j < N; ++j) {
        const int i = order[j], half = i >= N / 2;
        sumx[half][j + 1] = sumx[half][j] + w[i] * x[i];
        sumw[half][j + 1] = sumw[half][j] + w[i];
        sumx[!half][j + 1] = sumx[!half][j];
        sumw[!half][j + 1] = sumw[!half][j];
    }
    for (int a = 0; a <= N; ++a)
        for (int b = a; b <= N; ++b) {
            float qx[2][2], q2[2][2]; /* [shift][half] */
            for (int shift = 0; shift < 2; ++shift) {
                const float *v = shift ? DOWN : UP;
                const float low = v[0] * v[0] - v[1] * v[1], high = v[1] * v[1] - v[2] * v[2];
                for (int h = 0; h < 2; ++h) {
                    qx[shift][h] = sumx[h][N] * v[2] - (sumx[h][a] + sumx[h][b]);
                    q2[shift][h] = sumw[h][N] * v[2] * v[2] + sumw[h][a] * low + sumw[h][b] * high;
                }
            }
            for (int k = 0; k < 4; ++k)
                consider(&best, &score, qx[k >> 1][0] + qx[k & 1][1], q2[k >> 1][0] + q2[k & 1][1], a, b, k);
        }
    return best;
}

static int nearest_iq1(int32_t index, const float *x, const float *w, float scale, const float *levels) {
    return nearest_neighbour(&GRIDS[GRID_IQ1], index, x, w, scale, levels);
}

/* Levels of the k-th eight elements under a shift. */
static const float *iq1_levels(bool per_half, int shift, int k) {
    const int down = per_half ? shift >> (k == 0) & 1 : shift;
    return down ? DOWN : UP;
}

/* Scale, shift and grid indices of `n` elements; false where they are stored as zeros. */
static bool find_ternary(const grid_searches *s, bool per_half, const float *x, const float *w, float eps, uint16_t *index,
                         float *scale, int *shift) {
    const grid *g = &GRIDS[GRID_IQ1];
    const int n = per_half ? 16 : 32;
    float max = fabsf(x[0]);
    for (int i = 1; i < n; ++i) max = MAX(max, fabsf(x[i]));
    *scale = 0;
    *shift = 0;
    if (max < eps) return false;
    int order[32];
    s->sort_order(n, x, order);
    split best = (per_half ? s->choose_iq1_m : s->choose_iq1_s)(x, w, order);
    if (best.first < 0) return false;
    int points[4] = {0};
    uint8_t codes[32];
    const bool mirror = best.scale < 0;
    for (int j = 0; j < n; ++j) {
        const int code = (j >= best.first) + (j >= best.second);
        codes[order[j]] = (uint8_t)(mirror ? 2 - code : code);
    }
    for (int i = 0; i < n; ++i) points[i / 8] |= codes[i] << 2 * (i % 8);
    if (mirror) {
        best.scale = -best.scale;
        best.shift ^= per_half ? 3 : 1;
    }
    bool all_on_grid = true;
    for (int k = 0; k < n / 8; ++k) {
        if (g->index[points[k]] < 0) {
            const float *levels = iq1_levels(per_half, best.shift, k);
            all_on_grid = false;
            points[k] = s->nearest_iq1(g->index[points[k]], x + 8 * k, w + 8 * k, best.scale, levels);
        }
        index[k] = (uint16_t)g->index[points[k]];
    }
    float sumqx = 0, sumq2 = 0;
    for (int i = 0; !all_on_grid && i < n; ++i) {
        const float q = iq1_levels(per_half, best.shift, i / 8)[code_of(g, points[i / 8], i % 8)];
        sumqx += w[i] * q * x[i];
        sumq2 += w[i] * q * q;
    }
    *scale = sumqx > 0 && sumq2 > 0 ? sumqx / sumq2 : best.scale;
    *shift = best.shift;
    return true;
}

ENCODE_GRID(iq1_s, {
    const float mean_square = 2 * sum_squares(SUPER, x) / SUPER;
    float w[32], scale[8], max = 0;
    int shift[8];
    for (int j = 0; j < 8; ++j) {
        uint16_t index[4];
        s->weigh(32, x + 32 * j, given + 32 * j, mean_square, 0, w);
        if (!find_ternary(s, false, x + 32 * j, w, 1e-12f, index, &scale[j], &shift[j])) continue;
        for (int k = 0; k < 4; ++k) {
            y->qs[4 * j + k] = (uint8_t)index[k];
            y->qh[j] |= (uint16_t)(index[k] >> 8 << 3 * k);
        }
        max = MAX(max, scale[j]);
    }
    if (!max) continue;
    const float d = max / 15, inverse = 1 / d;
    y->d = f32_to_f16(d * 1.125f);
    for (int j = 0; j < 8; ++j) y->qh[j] |= (uint16_t)((scale_code(inverse, scale[j], 7) | shift[j] << 3) << 12);
})

ENCODE_GRID(iq1_m, {
    const float mean_square = 2 * sum_squares(SUPER, x) / SUPER;
    float w[SUPER], scale[16], max = 0;
    uint16_t index[32] = {0};
    int shift[16];
    for (int j = 0; j < 16; ++j) {
        s->weigh(16, x + 16 * j, given ? given + 16 * j : NULL, mean_square, 0, w + 16 * j);
        if (!find_ternary(s, true, x + 16 * j, w + 16 * j, 1e-7f, index + 2 * j, &scale[j], &shift[j])) continue;
        y->qs[2 * j] = (uint8_t)index[2 * j];
        y->qs[2 * j + 1] = (uint8_t)index[2 * j + 1];
        y->qh[j] = (uint8_t)(index[2 * j] >> 8 | index[2 * j + 1] >> 8 << 4);
        max = MAX(max, scale[j]);
    }
    if (!max) continue;
    float d = max / 15, sumqx = 0, sumq2 = 0;
    const float inverse = 1 / d;
    for (int j = 0; j < 16; ++j) {
        const int code = scale_code(inverse, scale[j], 7);
        y->scales[j / 4] |= (uint16_t)(code << 3 * (j % 4));
        y->qh[j] |= (uint8_t)((shift[j] >> 1) << 3 | (shift[j] & 1) << 7);
        for (int i = 16 * j; i < 16 * j + 16; ++i) {
            const int level = code_of(&GRIDS[GRID_IQ1], GRIDS[GRID_IQ1].packed[index[i / 8]], i % 8);
            const float q = iq1_levels(true, shift[j], i / 8 % 2)[level] * (float)(2 * code + 1);
            sumqx += w[i] * q * x[i];
            sumq2 += w[i] * q * q;
        }
    }
    if (sumq2 > 0) d = sumqx / sumq2;
    const uint16_t bits = f32_to_f16(d * 1.1125f);
    for (int k = 0; k < 4; ++k) y->scales[k] |= (uint16_t)((bits >> 4 * k & 15) << 12);
})

static void snap(const grid_type *t, const float *levels, const float *x, const float *w, float scale, uint16_t *points) {
    const grid *g = &GRIDS[t->which];
    const float inverse = 1 / scale;
    for (int k = 0; k < t->n / t->width; ++k, x += t->width, w += t->width) {
        int point = 0;
        for (int i = 0; i < t->width; ++i)
            for (int l = 1; l < t->levels; ++l) point += (0.5f * (levels[l - 1] + levels[l]) < x[i] * inverse) << t->bits * i;
        const int32_t index = g->index[point];
        points[k] = (uint16_t)(index >= 0 ? point : nearest_neighbour(g, index, x, w, scale, levels));
    }
}

const grid_searches GRID_SCALAR = {weigh,        search_positive, find_points, sort_order,
                                   choose_iq1_s, choose_iq1_m,    nearest_iq1, snap};

GRID_ENCODERS(GRID_SCALAR)
GRID_EFFORTS(GRID_SCALAR)
