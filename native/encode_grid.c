/* Grid types: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M, scalar.
 *
 * Follows quantize_row_iq{1,2,3}_*_impl of ggml-quants.c (MIT, see LICENSE.ggml). Where ggml would abort
 * (no neighbour at a finite distance, which takes NaN or overflow), the first neighbour is taken.
 */
#include <float.h>
#include <stdbool.h>

#include "blocks.h"
#include "grids.h"
#include "isa.h"
#include "kernels.h"
#include "search.h"

static const float ODD_LEVELS[8] = {1, 3, 5, 7, 9, 11, 13, 15};

static int pack_codes(const grid *g, const int8_t *codes) {
    int point = 0;
    for (int i = 0; i < g->width; ++i) point |= (codes[i] & ((1 << g->bits) - 1)) << g->bits * i;
    return point;
}

/* The neighbour of an off-grid point with the least weighted distance from x; ties to the first. */
static int nearest_neighbour(const grid *g, int point, const float *x, const float *w, float scale, const float *levels) {
    const uint16_t *list = g->neighbours - g->index[point] - 1;
    float best = FLT_MAX;
    int nearest = list[1];
    for (int j = 1; j <= list[0]; ++j) {
        const int8_t *codes = g->codes[list[j]];
        float distance = 0;
        for (int i = 0; i < g->width; ++i) {
            const float diff = scale * levels[codes[i]] - x[i];
            distance += w[i] * diff * diff;
        }
        if (distance < best) {
            best = distance;
            nearest = list[j];
        }
    }
    return nearest;
}

/* Moves the codes of one group onto the grid. Returns the index; `*on_grid` tells whether they were there. */
static int snap(const grid *g, const float *x, const float *w, float scale, const float *levels, int8_t *codes,
                bool *on_grid) {
    const int point = pack_codes(g, codes);
    *on_grid = g->index[point] >= 0;
    if (*on_grid) return g->index[point];
    const int nearest = nearest_neighbour(g, point, x, w, scale, levels);
    memcpy(codes, g->codes[nearest], (size_t)g->width);
    return nearest;
}

/* ---- IQ2 and IQ3: magnitudes on the grid, signs apart ---- */

typedef struct {
    int which, n;      /* grid, elements that share a scale */
    int levels;        /* codes are 0 .. levels - 1 and mean 2 * code + 1 */
    int tries;         /* scales tried on each side of the first guess */
    float step;        /* distance between them, in units of the largest level */
    bool resnap_all;   /* after the search, all groups are rounded anew, not only those that were off the grid */
} grid_type;

static const grid_type IQ2_XXS = {GRID_IQ2_XXS, 32, 3, 6, 0.1f, true}, IQ2_XS = {GRID_IQ2_XS, 16, 3, 9, 0.1f, false},
                       IQ2_S = {GRID_IQ2_S, 16, 3, 9, 0.1f, false}, IQ3_XXS = {GRID_IQ3_XXS, 32, 8, 15, 0.2f, false},
                       IQ3_S = {GRID_IQ3_S, 32, 8, 9, 0.2f, true};

/* What is stored of `n` elements: grid indices, a byte of signs per eight, a non-negative scale. */
typedef struct {
    uint16_t index[8];
    uint8_t signs[4];
    float scale;
} grid_group;

/* Magnitudes and signs of eight elements. With `even`, the sign of the least important element is
 * flipped where needed to make the number of minus signs even, so that seven bits tell all. */
static uint8_t split_signs(const float *x, const float *w, bool even, float *magnitude) {
    uint8_t signs = 0;
    int minus = 0;
    for (int i = 0; i < 8; ++i) {
        const bool positive = x[i] >= 0;
        magnitude[i] = positive ? x[i] : -x[i];
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

static void round_codes(const grid_type *t, const float *x, float inverse, int8_t *codes) {
    for (int i = 0; i < GRIDS[t->which].width; ++i)
        codes[i] = (int8_t)clamp(nearest_int(0.5f * (inverse * x[i] - 1)), 0, t->levels - 1);
}

/* Sums of weight * x * level and weight * level^2 over the group. */
static void correlate(int n, const float *x, const float *w, const int8_t *codes, float *sumqx, float *sumq2) {
    *sumqx = *sumq2 = 0;
    for (int i = 0; i < n; ++i) {
        const float q = ODD_LEVELS[codes[i]];
        *sumqx += w[i] * x[i] * q;
        *sumq2 += w[i] * q * q;
    }
}

/* Searches scale and codes of one group of magnitudes `x` that the largest level at `reach` covers. */
static float search_grid(const grid_type *t, const float *x, const float *w, float reach, float scale, int8_t *codes) {
    const grid *g = &GRIDS[t->which];
    const int groups = t->n / g->width, top = 2 * t->levels - 1;
    float root[32], sumqx, sumq2, best = 0;
    bool on_grid[8], trial_on_grid[8];
    int8_t trial[32];
    for (int i = 0; i < t->n; ++i) root[i] = sqrtf(w[i]);
    for (int k = 0; k < groups; ++k) on_grid[k] = !t->resnap_all;
    for (int shift = -t->tries; shift <= t->tries; ++shift) {
        const float inverse = (top + shift * t->step) / reach, trial_scale = 1 / inverse;
        for (int k = 0; k < groups; ++k) {
            const int at = k * g->width;
            round_codes(t, x + at, inverse, trial + at);
            snap(g, x + at, root + at, trial_scale, ODD_LEVELS, trial + at, &trial_on_grid[k]);
        }
        correlate(t->n, x, w, trial, &sumqx, &sumq2);
        if (sumq2 > 0 && sumqx * sumqx > best * sumq2) {
            scale = sumqx / sumq2;
            best = scale * sumqx;
            memcpy(codes, trial, (size_t)t->n);
            memcpy(on_grid, trial_on_grid, sizeof on_grid);
        }
    }
    bool all_on_grid = true;
    for (int k = 0; k < groups; ++k) all_on_grid = all_on_grid && on_grid[k];
    if (!(scale > 0) || (all_on_grid && t->which != GRID_IQ2_XXS)) return scale;
    const float inverse = 1 / scale;
    for (int k = 0; k < groups; ++k) {
        const int at = k * g->width;
        bool was_on_grid;
        if (on_grid[k] && !t->resnap_all) continue;
        round_codes(t, x + at, inverse, codes + at);
        snap(g, x + at, root + at, scale, ODD_LEVELS, codes + at, &was_on_grid);
    }
    correlate(t->n, x, w, codes, &sumqx, &sumq2);
    return sumq2 > 0 ? sumqx / sumq2 : scale;
}

/* Finds indices, signs and scale of one group; `eps` is the magnitude below which it is stored as zeros.
 * Returns false for such a group, whose indices ggml leaves at zero. */
static bool find_group(const grid_type *t, const float *x, const float *w, bool even, float eps, grid_group *out) {
    const grid *g = &GRIDS[t->which];
    float magnitude[32];
    int8_t codes[32] = {0};
    memset(out, 0, sizeof *out);
    for (int k = 0; k < t->n / 8; ++k) out->signs[k] = split_signs(x + 8 * k, w + 8 * k, even, magnitude + 8 * k);
    float max = magnitude[0];
    for (int i = 1; i < t->n; ++i) max = MAX(max, magnitude[i]);
    if (max < eps) return false;
    float reach = max, scale = max / (float)(2 * t->levels - 1);
    if (t->which == GRID_IQ2_XXS) {
        scale = search_positive(32, t->levels + 1, magnitude, (uint8_t *)codes, w);
        reach = scale * (float)t->levels;
        if (reach <= 0) return false;
    }
    scale = search_grid(t, magnitude, w, reach, scale, codes);
    if (scale < 0) {
        scale = -scale;
        for (int k = 0; k < t->n / 8; ++k) out->signs[k] = (uint8_t)(~out->signs[k] & (even ? 127 : 255));
    }
    for (int k = 0; k < t->n / g->width; ++k) {
        const int32_t index = g->index[pack_codes(g, codes + k * g->width)];
        out->index[k] = (uint16_t)MAX(0, index);
    }
    out->scale = scale;
    return true;
}

/* A four-bit scale code: the scale is d * (2 * code + 1). */
static int scale_code(float inverse, float scale, int top) { return clamp(nearest_int(0.5f * (inverse * scale - 1)), 0, top); }

static float largest_scale(int n, const grid_group *groups) {
    float max = 0;
    for (int j = 0; j < n; ++j) max = MAX(max, groups[j].scale);
    return max;
}

/* Walks super-blocks; the body writes the zeroed `*y` from `x` and `given`, which may be NULL. */
#define ENCODE_GRID(type, ...)                                                                            \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                            \
        for (int64_t r = 0; r < rows; ++r)                                                                \
            for (int64_t i = 0; i < row; i += SUPER, x += SUPER, ++y) {                                   \
                const float *given = weights ? weights + i : NULL;                                        \
                memset(y, 0, sizeof *y);                                                                  \
                __VA_ARGS__                                                                               \
            }                                                                                             \
    }

/* Importance, or x * x + floor where none is given. */
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
        weigh(32, x + 32 * j, given + 32 * j, mean_square, 0, w);
        if (!find_group(&IQ2_XXS, x + 32 * j, w, true, GROUP_EPS, &groups[j])) continue;
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
        weigh(16, x + 16 * j, given + 16 * j, mean_square, 0, w);
        if (!find_group(&IQ2_XS, x + 16 * j, w, true, GROUP_EPS, &groups[j])) continue;
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
        weigh(16, x + 16 * j, given ? given + 16 * j : NULL, mean_square, 0.25f * mean_square, w);
        if (!find_group(&IQ2_S, x + 16 * j, w, false, 1e-8f, &groups[j])) continue;
        for (int k = 0; k < 2; ++k) {
            const int at = 2 * j + k;
            y->qs[at] = (uint8_t)groups[j].index[k];
            y->qh[at / 4] |= (uint8_t)(groups[j].index[k] >> 8 << 2 * (at % 4));
            y->signs[at] = groups[j].signs[k];
        }
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
        weigh(32, x + 32 * j, given ? given + 32 * j : NULL, mean_square, 0, w);
        if (!find_group(&IQ3_XXS, x + 32 * j, w, true, 1e-8f, &groups[j])) continue;
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
        weigh(32, x + 32 * j, given ? given + 32 * j : NULL, mean_square, 0, w);
        if (!find_group(&IQ3_S, x + 32 * j, w, false, FLT_TRUE_MIN, &groups[j])) continue;
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

/* ---- IQ1: ternary codes, shifted up or down by IQ1_DELTA ---- */

static const float UP[3] = {-1 + IQ1_DELTA, IQ1_DELTA, 1 + IQ1_DELTA};
static const float DOWN[3] = {-1 - IQ1_DELTA, -IQ1_DELTA, 1 - IQ1_DELTA};

/* Order of the elements by value, equal ones as they stand. */
static void sort_order(int n, const float *x, int *order) {
    for (int i = 0; i < n; ++i) {
        int j = i;
        for (; j > 0 && x[order[j - 1]] > x[i]; --j) order[j] = order[j - 1];
        order[j] = i;
    }
}

/* The best two boundaries of the sorted elements: -1 below the first, +1 from the second, 0 between. */
typedef struct {
    int first, second, shift; /* shift: what choose_* tells of UP and DOWN; first < 0 when nothing was found */
    float scale;
} split;

/* Keeps the better of `best` and this split. */
static void consider(split *best, float *score, float sumqx, float sumq2, int first, int second, int shift) {
    if (!(sumq2 > 0 && sumqx * sumqx > *score * sumq2)) return;
    best->scale = sumqx / sumq2;
    *score = best->scale * sumqx;
    best->first = first;
    best->second = second;
    best->shift = shift;
}

/* One shift for all 32 elements: 0 is UP, 1 is DOWN. */
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

/* A shift for each half of 16 elements: bit 1 is the first half's, bit 0 the second's; set is DOWN. */
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

/* Levels of the k-th eight elements under a shift. */
static const float *iq1_levels(bool per_half, int shift, int k) {
    const int down = per_half ? shift >> (k == 0) & 1 : shift;
    return down ? DOWN : UP;
}

/* Scale, shift and grid indices of `n` elements; false where they are stored as zeros. */
static bool find_ternary(bool per_half, const float *x, const float *w, float eps, uint16_t *index, float *scale,
                         int *shift) {
    const grid *g = &GRIDS[GRID_IQ1];
    const int n = per_half ? 16 : 32;
    float max = fabsf(x[0]);
    for (int i = 1; i < n; ++i) max = MAX(max, fabsf(x[i]));
    *scale = 0;
    *shift = 0;
    if (max < eps) return false;
    int order[32];
    sort_order(n, x, order);
    split best = per_half ? choose_iq1_m(x, w, order) : choose_iq1_s(x, w, order);
    if (best.first < 0) return false;
    int8_t codes[32];
    const bool mirror = best.scale < 0;
    for (int j = 0; j < n; ++j) {
        const int code = j < best.first ? 0 : j < best.second ? 1 : 2;
        codes[order[j]] = (int8_t)(mirror ? 2 - code : code);
    }
    if (mirror) {
        best.scale = -best.scale;
        best.shift ^= per_half ? 3 : 1;
    }
    bool all_on_grid = true, on_grid;
    for (int k = 0; k < n / 8; ++k) {
        const float *levels = iq1_levels(per_half, best.shift, k);
        index[k] = (uint16_t)snap(g, x + 8 * k, w + 8 * k, best.scale, levels, codes + 8 * k, &on_grid);
        all_on_grid = all_on_grid && on_grid;
    }
    float sumqx = 0, sumq2 = 0;
    for (int i = 0; !all_on_grid && i < n; ++i) {
        const float q = iq1_levels(per_half, best.shift, i / 8)[codes[i]];
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
        weigh(32, x + 32 * j, given + 32 * j, mean_square, 0, w);
        if (!find_ternary(false, x + 32 * j, w, 1e-12f, index, &scale[j], &shift[j])) continue;
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
    float w[16], scale[16], max = 0;
    int shift[16];
    for (int j = 0; j < 16; ++j) {
        uint16_t index[2];
        weigh(16, x + 16 * j, given ? given + 16 * j : NULL, mean_square, 0, w);
        if (!find_ternary(true, x + 16 * j, w, 1e-7f, index, &scale[j], &shift[j])) continue;
        y->qs[2 * j] = (uint8_t)index[0];
        y->qs[2 * j + 1] = (uint8_t)index[1];
        y->qh[j] = (uint8_t)(index[0] >> 8 | index[1] >> 8 << 4);
        max = MAX(max, scale[j]);
    }
    if (!max) continue;
    float d = max / 15, sumqx = 0, sumq2 = 0;
    const float inverse = 1 / d;
    for (int j = 0; j < 16; ++j) {
        const int code = scale_code(inverse, scale[j], 7);
        y->scales[j / 4] |= (uint16_t)(code << 3 * (j % 4));
        y->qh[j] |= (uint8_t)((shift[j] >> 1) << 3 | (shift[j] & 1) << 7);
        weigh(16, x + 16 * j, given ? given + 16 * j : NULL, mean_square, 0, w);
        for (int i = 0; i < 16; ++i) {
            const int k = i / 8, point = y->qs[2 * j + k] | (y->qh[j] >> 4 * k & 7) << 8;
            const int8_t *codes = GRIDS[GRID_IQ1].codes[point];
            const float q = iq1_levels(true, shift[j], k)[codes[i % 8]] * (float)(2 * code + 1);
            sumqx += w[i] * q * x[16 * j + i];
            sumq2 += w[i] * q * q;
        }
    }
    if (sumq2 > 0) d = sumqx / sumq2;
    const uint16_t bits = f32_to_f16(d * 1.1125f);
    for (int k = 0; k < 4; ++k) y->scales[k] |= (uint16_t)((bits >> 4 * k & 15) << 12);
})
