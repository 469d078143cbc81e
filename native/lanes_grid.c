/* The searches of the grid types on vectors; the bytes are those of encode_grid.c.
 *
 * Lanes are, by turns, the scales that are tried and the neighbours of a point. Each lane does the scalar
 * operations in the scalar order, and of equal neighbours the first is taken. Where a value is not finite or
 * too large to round in a lane, the scalar search does the group anew.
 */
#include <float.h>

#include "grid_search.h"
#include "isa.h"
#include "kernels.h"
#include "lanes_int.h"
#include "search.h"

#define MAGIC 12582912.0f    /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
#define ROUNDS_TO 4194303.0f /* the largest magnitude it does so for */
#define TRIES_ROOM 48        /* scales tried, and a vector beyond */
#define LANE_BITS ((1u << WIDTH) - 1)
#define INLINE static inline __attribute__((always_inline))

/* Levels of codes of two and three bits, repeated: a table index may hold bits of the next code. */
static const float LEVELS_2[16] = {1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7};
static const float LEVELS_3[16] = {1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15};

static const float COUNT[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static void weigh(int n, const float *x, const float *given, float mean_square, float floor, float *w) {
    for (int i = 0; i < n; i += WIDTH) {
        const vf xi = load(x + i);
        store(w + i, given ? load(given + i) * vsqrt(splat(mean_square) + xi * xi) : splat(floor) + xi * xi);
    }
}

/* ---- the nearest neighbour at one scale ---- */

#define PARTS (NEAR_STEP / WIDTH)

/* The distances of WIDTH points: the sums of what their codes add. */
INLINE vf distances(int width, int bits_each, const uint16_t *list, float (*term)[TABLE]) {
    const vi points = load_u16(list);
    vf distance = look_up(term[0], points);
#pragma GCC unroll 8
    for (int i = 1; i < width; ++i) distance = distance + look_up(term[i], SHIFT_RIGHT(points, bits_each * i));
    return distance;
}

/* Of the neighbours of an off-grid point, the first that is nearest at one scale. `levels` has TABLE entries. */
INLINE int nearest_once(const grid *g, int width, int bits_each, int32_t index, const float *x, const float *w, float scale,
                        const float *levels) {
    float term[8][TABLE]; /* what each code of each element adds to the distance */
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i)
        for (int c = 0; c < TABLE; c += WIDTH) {
            const vf diff = splat(scale) * load(levels + c) - splat(x[i]);
            store(term[i] + c, splat(w[i]) * diff * diff);
        }
    int length;
    const uint16_t *list = near_list(g, index, &length);
    vf best[PARTS], where[PARTS], lowest = splat(FLT_MAX);
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) {
        best[p] = vmin(distances(width, bits_each, list + p * WIDTH, term), splat(FLT_MAX));
        where[p] = splat(0.0f);
    }
    for (int at = NEAR_STEP; at < length; at += NEAR_STEP)
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; ++p) {
            const vf distance = distances(width, bits_each, list + at + p * WIDTH, term);
            const vm closer = less(distance, best[p]);
            best[p] = pick(closer, distance, best[p]);
            where[p] = pick(closer, splat((float)at), where[p]);
        }
    for (int p = 0; p < PARTS; ++p) lowest = vmin(best[p], lowest);
    const vf target = splat(least(lowest));
    uint32_t ties = 0;
    for (int p = 0; p < PARTS; ++p) ties |= bits(equal(best[p], target)) << p * WIDTH;
    if (length <= NEAR_STEP) return list[__builtin_ctz(ties)];
    float starts[NEAR_STEP];
    for (int p = 0; p < PARTS; ++p) store(starts + p * WIDTH, where[p]);
    int first = INT32_MAX;
    for (; ties; ties &= ties - 1) {
        const int lane = __builtin_ctz(ties), position = (int)starts[lane] + lane;
        first = MIN(first, position);
    }
    return list[first];
}

/* ---- the nearest neighbours at the scales that are tried ----
 *
 * The weighted distance of a point with levels q at a scale s, sum w (s q - x)^2, is sum w x^2 + s (s C - B) with
 * C = sum w q^2 and B = sum 2 w x q, which do not depend on s: scales that are tried one after the other mostly
 * round to the same point, so that C and B of its neighbours serve several of them. s C - B ranks the neighbours up
 * to rounding, and is linear in s: what is lowest at two scales is lowest between them.
 *
 * Why the same neighbour wins: with u = 2^-24 and M = sum w (s max|q| + |x|)^2, the reference's sum is within 14 u M
 * of the distance (6 u for the terms, 7 u for their sum), and s (s C - B) within 11 u M. So of two neighbours that are
 * more than 50 u M apart the lower one is nearer in the reference as well; between two scales, 28 u M + 22 u M. SLACK
 * is 64 u. Where more than one is that close to the lowest, scalar code decides. Nothing overflows, and what vanishes
 * is far below the slack, where weights and scales have a `plain_size`. */
#define SLACK 0x1p-18f
#define MOST_NEAR 512 /* neighbours of a point; lists are shorter than 1 << NEAR_BITS */

/* Eight (or four) elements and their weights, and what each level of each element adds to B and C. */
typedef struct {
    const float *x, *w, *levels;
    float b[8][TABLE], c[8][TABLE];
    float sum_w, sum_wx, sum_wx2; /* of weights, weights * |x|, weights * x^2 */
} spread;

/* `levels` has TABLE entries. */
INLINE void spread_out(int width, const float *x, const float *w, const float *levels, spread *e) {
    e->x = x;
    e->w = w;
    e->levels = levels;
    e->sum_w = e->sum_wx = e->sum_wx2 = 0;
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) {
        for (int l = 0; l < TABLE; l += WIDTH) {
            const vf level = load(levels + l), weighted = splat(w[i]) * level;
            store(e->b[i] + l, weighted * splat(2 * x[i]));
            store(e->c[i] + l, weighted * level);
        }
        e->sum_w += w[i];
        e->sum_wx += w[i] * fabsf(x[i]);
        e->sum_wx2 += w[i] * x[i] * x[i];
    }
}

INLINE bool plain_size(float v) { return v > 1e-12f && v < 1e12f; }

/* SLACK * M / s. */
INLINE vf slack_of(const spread *e, float largest_level, vf scale) {
    const vf q = splat(largest_level);
    const vf sum = scale * q * q * splat(e->sum_w) + splat(2.0f) * q * splat(e->sum_wx) + splat(e->sum_wx2) / scale;
    return splat(SLACK) * sum;
}

/* B and C of WIDTH neighbours of `length` from number `at` on; what follows the last is far from everything. */
INLINE void make_lines(int width, int bits_each, const uint16_t *list, int length, int at, const spread *e, vf *b, vf *c) {
    const vi near = load_u16(list + at);
    vf sum_b = look_up(e->b[0], near), sum_c = look_up(e->c[0], near);
#pragma GCC unroll 8
    for (int i = 1; i < width; ++i) {
        const vi level = SHIFT_RIGHT(near, bits_each * i);
        sum_b = sum_b + look_up(e->b[i], level);
        sum_c = sum_c + look_up(e->c[i], level);
    }
    *b = sum_b;
    *c = pick(less(load(COUNT), splat((float)(length - at))), sum_c, splat(FLT_MAX));
}

/* The lanes in which a line is at most `slack` above the lowest one. */
INLINE uint32_t close_lines(const vf *b, const vf *c, float scale, float slack) {
    vf score[PARTS], low = splat(FLT_MAX);
    uint32_t close = 0;
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) {
        score[p] = splat(scale) * c[p] - b[p];
        low = vmin(score[p], low);
    }
    const vf limit = splat(least(low) + slack);
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) close |= bits(less(score[p], limit)) << p * WIDTH;
    return close;
}

/* A list of at most NEAR_STEP neighbours, scale by scale: few branches, for their outcomes would be random. */
INLINE void nearest_of_few(const grid *g, int width, int bits_each, int32_t index, const spread *e, int count,
                           const float *scale, const float *slack, int32_t *points) {
    vf b[PARTS], c[PARTS];
    int length;
    const uint16_t *list = near_list(g, index, &length);
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; ++p) make_lines(width, bits_each, list, length, p * WIDTH, e, b + p, c + p);
    for (int t = 0; t < count; ++t) {
        const uint32_t close = close_lines(b, c, scale[t], slack[t]);
        points[t] = close & (close - 1) ? nearest_neighbour(g, index, e->x, e->w, scale[t], e->levels)
                                        : list[__builtin_ctz(close)];
    }
}

/* The one line that is lowest, by more than `slack`, at both scales and so at all between; -1 if there is none. */
INLINE int lowest_line(int length, const float *b, const float *c, float scale, float other, float slack) {
    vf low = splat(FLT_MAX), other_low = low;
    for (int at = 0; at < length; at += WIDTH) {
        const vf bs = load(b + at), cs = load(c + at);
        low = vmin(splat(scale) * cs - bs, low);
        other_low = vmin(splat(other) * cs - bs, other_low);
    }
    const vf limit = splat(least(low) + slack), other_limit = splat(least(other_low) + slack);
    int found = -1;
    uint32_t more = 0; /* not zero after a second one */
    for (int at = 0; at < length; at += WIDTH) {
        const vf bs = load(b + at), cs = load(c + at);
        const vm low_here = either(less(splat(scale) * cs - bs, limit), less(splat(other) * cs - bs, other_limit));
        const uint32_t close = bits(low_here);
        more |= (close & (close - 1)) | (found >= 0 ? close : 0);
        found = close ? at + __builtin_ctz(close) : found;
    }
    return more ? -1 : found;
}

/* Of the neighbours of an off-grid point, the first that is nearest, at each of `count` scales in order of size. */
INLINE void nearest(const grid *g, int width, int bits_each, int32_t index, const spread *e, int count, const float *scale,
                    const float *slack, int32_t *points) {
    float b[MOST_NEAR], c[MOST_NEAR];
    int length;
    const uint16_t *list = near_list(g, index, &length);
    if (length <= NEAR_STEP) {
        nearest_of_few(g, width, bits_each, index, e, count, scale, slack, points);
        return;
    }
    for (int at = 0; at < length; at += WIDTH) {
        vf some_b, some_c;
        make_lines(width, bits_each, list, length, at, e, &some_b, &some_c);
        store(b + at, some_b);
        store(c + at, some_c);
    }
    for (int first = 0, last = count - 1; first < count;) {
        const int found = lowest_line(length, b, c, scale[first], scale[last], MAX(slack[first], slack[last]));
        if (found < 0 && first < last) {
            last = (first + last) / 2;
            continue;
        }
        const int point = found < 0 ? nearest_neighbour(g, index, e->x, e->w, scale[first], e->levels) : list[found];
        while (first <= last) points[first++] = point;
        last = count - 1;
    }
}

/* The points that rounding gives, for WIDTH inverse scales. */
INLINE vi round_points(grid_type t, const float *x, vf inverse) {
    const vf low = splat(MAGIC), high = splat(MAGIC + (float)(t.levels - 1));
    vi points = splat_int(0);
#pragma GCC unroll 8
    for (int i = 0; i < t.width; ++i) {
        const vf code = splat(0.5f) * (inverse * splat(x[i]) - splat(1.0f)) + splat(MAGIC);
        points = plus(points, SHIFT_LEFT(bits_of(vmax(vmin(code, high), low)), t.bits * i));
    }
    return mask_int(points, (1 << t.bits * t.width) - 1);
}

/* Sums of weight * x * level and weight * level^2 over the group, for WIDTH choices of points. */
INLINE void correlate(grid_type t, const float *x, const float *w, int32_t (*points)[TRIES_ROOM], int at, vf *sumqx, vf *sumq2) {
    *sumqx = *sumq2 = splat(0.0f);
    for (int k = 0; k < t.n / t.width; ++k) {
        const vi codes = load_int(points[k] + at);
#pragma GCC unroll 8
        for (int i = 0; i < t.width; ++i) {
            const vf q = look_up(t.bits == 2 ? LEVELS_2 : LEVELS_3, SHIFT_RIGHT(codes, t.bits * i));
            const vf wi = splat(w[k * t.width + i]);
            *sumqx = *sumqx + wi * splat(x[k * t.width + i]) * q;
            *sumq2 = *sumq2 + wi * q * q;
        }
    }
}

/* Whether rounding in lanes is rounding as nearest_int does it, up to this inverse scale. */
INLINE bool in_range(int n, const float *x, float inverse) {
    uint32_t beyond = 0;
    for (int i = 0; i < n; i += WIDTH)
        beyond |= bits(inverse_of(less(vabs(load(x + i)) * splat(inverse), splat(ROUNDS_TO))));
    return !beyond;
}

/* The scale that correlates best, -1 where none does; `scale` becomes the one that fits its points. */
static int best_try(int tries, const float *sumqx, const float *sumq2, float *scale) {
    int chosen = -1;
    float best = 0;
    for (int c = 0; c < tries; ++c)
        if (sumq2[c] > 0 && sumqx[c] * sumqx[c] > best * sumq2[c]) {
            *scale = sumqx[c] / sumq2[c];
            best = *scale * sumqx[c];
            chosen = c;
        }
    return chosen;
}

/* find_points for one type, whose numbers the compiler knows. */
INLINE float search(grid_type t, const grid_type *type, const float *x, const float *w, float reach, float scale,
                    uint16_t *points) {
    const grid *g = &GRIDS[t.which];
    const int groups = t.n / t.width, top = 2 * t.levels - 1, tries = 2 * t.tries + 1;
    const float *levels = t.bits == 2 ? LEVELS_2 : LEVELS_3;
    float root[32], trial_scale[TRIES_ROOM], slack[TRIES_ROOM], sumqx[TRIES_ROOM], sumq2[TRIES_ROOM];
    int32_t rounded[8][TRIES_ROOM], trial[8][TRIES_ROOM];
    bool off_grid[8] = {false};
    if (!in_range(t.n, x, ((float)top + (float)t.tries * t.step) / reach))
        return GRID_SCALAR.find_points(type, x, w, reach, scale, points);
    for (int i = 0; i < t.n; i += WIDTH) store(root + i, vsqrt(load(w + i)));
    for (int c = 0; c < tries; c += WIDTH) {
        const vf shift = load(COUNT) + splat((float)(c - t.tries));
        const vf inv = (splat((float)top) + shift * splat(t.step)) / splat(reach);
        store(trial_scale + c, splat(1.0f) / inv);
        for (int k = 0; k < groups; ++k) {
            const vi points_k = round_points(t, x + k * t.width, inv);
            store_int(rounded[k] + c, points_k);
            store_int(trial[k] + c, points_k);
        }
    }
    for (int k = 0; k < groups; ++k) {
        spread e;
        spread_out(t.width, x + k * t.width, root + k * t.width, levels, &e);
        const bool plain = plain_size(e.sum_w) && plain_size(trial_scale[0]) && plain_size(trial_scale[tries - 1]);
        for (int c = 0; c < tries; c += WIDTH) store(slack + c, slack_of(&e, (float)top, load(trial_scale + c)));
        uint32_t last = 1u << (tries - 1); /* the tries after which another point begins */
        for (int c = 0; c < tries; c += WIDTH)
            last |= differ(load_int(rounded[k] + c), load_int(rounded[k] + c + 1)) << c;
        for (int c = 0; c < tries; last &= last - 1) {
            const int32_t index = g->index[rounded[k][c]], next = __builtin_ctz(last) + 1;
            if (index < 0 && plain)
                nearest(g, t.width, t.bits, index, &e, next - c, trial_scale + c, slack + c, trial[k] + c);
            for (int i = c; i < next && index < 0 && !plain; ++i)
                trial[k][i] = nearest_neighbour(g, index, e.x, e.w, trial_scale[i], levels);
            c = next;
        }
    }
    for (int c = 0; c < tries; c += WIDTH) {
        vf qx, q2;
        correlate(t, x, w, trial, c, &qx, &q2);
        store(sumqx + c, qx);
        store(sumq2 + c, q2);
    }
    const int chosen = best_try(tries, sumqx, sumq2, &scale);
    bool again = t.resnap_all && (t.which == GRID_IQ2_XXS || chosen < 0);
    for (int k = 0; chosen >= 0 && k < groups; ++k) {
        points[k] = (uint16_t)trial[k][chosen];
        off_grid[k] = g->index[rounded[k][chosen]] < 0;
        again = again || off_grid[k];
    }
    if (!(scale > 0) || !again) return scale;
    const float back = 1 / scale;
    if (!in_range(t.n, x, back)) return GRID_SCALAR.find_points(type, x, w, reach, scale, points);
    for (int k = 0; k < groups; ++k) {
        if (!t.resnap_all && !off_grid[k]) continue;
        store_int(rounded[k], round_points(t, x + k * t.width, splat(back)));
        const int32_t index = g->index[rounded[k][0]], at = k * t.width;
        points[k] = (uint16_t)(index >= 0 ? rounded[k][0]
                                          : nearest_once(g, t.width, t.bits, index, x + at, root + at, scale, levels));
    }
    for (int k = 0; k < groups; ++k) trial[k][0] = points[k];
    vf qx, q2;
    correlate(t, x, w, trial, 0, &qx, &q2);
    store(sumqx, qx);
    store(sumq2, q2);
    return sumq2[0] > 0 ? sumqx[0] / sumq2[0] : scale;
}

static float find_points(const grid_type *t, const float *x, const float *w, float reach, float scale, uint16_t *points) {
    switch (t->which) {
    case GRID_IQ2_XXS: return search(IQ2_XXS, t, x, w, reach, scale, points);
    case GRID_IQ2_XS: return search(IQ2_XS, t, x, w, reach, scale, points);
    case GRID_IQ2_S: return search(IQ2_S, t, x, w, reach, scale, points);
    case GRID_IQ3_XXS: return search(IQ3_XXS, t, x, w, reach, scale, points);
    default: return search(IQ3_S, t, x, w, reach, scale, points);
    }
}

static int nearest_iq1(int32_t index, const float *x, const float *w, float scale, const float *levels) {
    float repeated[TABLE];
    for (int c = 0; c < TABLE; ++c) repeated[c] = levels[c % 4];
    return nearest_once(&GRIDS[GRID_IQ1], 8, 2, index, x, w, scale, repeated);
}

/* The place of an element is the number of those before it: less, or equal and to its left. */
static void sort_order(int n, const float *x, int *order) {
    uint32_t ordered = ~0u;
    for (int i = 0; i < n; i += WIDTH) ordered &= bits(equal(load(x + i), load(x + i))) | ~LANE_BITS;
    if (~ordered) {
        GRID_SCALAR.sort_order(n, x, order);
        return;
    }
    for (int i = 0; i < n; i += WIDTH) {
        float place[WIDTH];
        const vf xi = load(x + i);
        vf before = splat(0.0f);
        for (int j = 0; j < i; ++j) before = before + pick(less(xi, splat(x[j])), splat(0.0f), splat(1.0f));
        for (int j = i; j < i + WIDTH; ++j) {
            const vm left = less(splat((float)(j - i)), load(COUNT)), smaller = less(splat(x[j]), xi);
            const vm same = both(left, equal(splat(x[j]), xi));
            before = before + pick(either(smaller, same), splat(1.0f), splat(0.0f));
        }
        for (int j = i + WIDTH; j < n; ++j) before = before + pick(less(splat(x[j]), xi), splat(1.0f), splat(0.0f));
        store(place, before);
        for (int k = 0; k < WIDTH; ++k) order[(int)place[k]] = i + k;
    }
}

/* The scan for the best split keeps its scalar order. It starts from a score that is known to be beaten, so
 * that few splits have to be taken and dropped: that of a good guess times MARGIN.
 *
 * Why the same split wins: as long as this scan and one that starts from nothing hold different splits, a split
 * that only one of them takes scores within rounding (2^-22) of what the other holds. So neither score can pass
 * the first one by more than 2^-22 a split, of which there are at most 1122. The guess is above that: both take
 * it, if they have not agreed on another before, and agree from there on. Rounding is as said, and the sums of
 * weights are positive, if nothing overflows or vanishes, which `guessable` tells. */
#define MARGIN 0.999f

/* Boundaries 0 .. 32 or 0 .. 16, then what fills the last vector. */
#define EDGES (33 + 16)

/* What a boundary adds to the sums of a split, alone or as the first or second one; [shift] of IQ1_S. */
typedef struct {
    float x[EDGES], w[EDGES];                                                    /* sums of w * x and w below it */
    float first_x[2][EDGES], second_x[2][EDGES], first_w[2][EDGES], second_w[2][EDGES];
} edges_iq1_s;

/* The same for IQ1_M: [half], and [shift][half] of what depends on the shift. */
typedef struct {
    float x[2][EDGES], all_x[2][2], first_w[2][2][EDGES], second_w[2][2][EDGES];
} edges_iq1_m;

static void fill_edges_iq1_s(edges_iq1_s *e, const float *x, const float *w, const int *order) {
    float wx[32], sumx = 0, sumw = 0;
    for (int i = 0; i < 32; i += WIDTH) store(wx + i, load(w + i) * load(x + i));
    for (int j = 0; j < 32; ++j) {
        e->x[j] = sumx;
        e->w[j] = sumw;
        sumx += wx[order[j]];
        sumw += w[order[j]];
    }
    store(e->x + 32, splat(sumx));
    store(e->w + 32, splat(sumw));
    for (int s = 0; s < 2; ++s) {
        const vf low = splat((s ? DOWN : UP)[0]), top = splat((s ? DOWN : UP)[2]);
        for (int j = 0; j <= 32; j += WIDTH) {
            const vf x1 = load(e->x + j), w1 = load(e->w + j);
            store(e->first_x[s] + j, x1 * low);
            store(e->second_x[s] + j, (splat(sumx) - x1) * top);
            store(e->first_w[s] + j, w1 * low * low);
            store(e->second_w[s] + j, (splat(sumw) - w1) * top * top);
        }
    }
}

static void fill_edges_iq1_m(edges_iq1_m *e, const float *x, const float *w, const int *order) {
    float part_x[2][16], part_w[2][16], below[2][EDGES], sumx[2] = {0}, sumw[2] = {0};
    for (int i = 0; i < 16; i += WIDTH) { /* zeros for the other half: adding them changes nothing */
        const vf wi = load(w + i), wx = wi * load(x + i), zero = splat(0.0f);
        const vm first = less(load(COUNT + i), splat(8.0f));
        store(part_x[0] + i, pick(first, wx, zero));
        store(part_x[1] + i, pick(first, zero, wx));
        store(part_w[0] + i, pick(first, wi, zero));
        store(part_w[1] + i, pick(first, zero, wi));
    }
    for (int h = 0; h < 2; ++h) {
        for (int j = 0; j < 16; ++j) {
            e->x[h][j] = sumx[h];
            below[h][j] = sumw[h];
            sumx[h] += part_x[h][order[j]];
            sumw[h] += part_w[h][order[j]];
        }
        store(e->x[h] + 16, splat(sumx[h]));
        store(below[h] + 16, splat(sumw[h]));
    }
    for (int s = 0; s < 2; ++s) {
        const float *v = s ? DOWN : UP;
        const vf low = splat(v[0] * v[0] - v[1] * v[1]), high = splat(v[1] * v[1] - v[2] * v[2]);
        for (int h = 0; h < 2; ++h) {
            e->all_x[s][h] = sumx[h] * v[2];
            for (int j = 0; j <= 16; j += WIDTH) {
                store(e->first_w[s][h] + j, splat(sumw[h] * v[2] * v[2]) + load(below[h] + j) * low);
                store(e->second_w[s][h] + j, load(below[h] + j) * high);
            }
        }
    }
}

/* One boundary for all lanes, or one for each lane from it on. */
INLINE vf edge(const float *p, bool one) { return one ? splat(*p) : load(p); }

/* Sums of weight * x * level and weight * level^2 of each shift. Boundary a is one for all lanes or b is. */
INLINE void sums_iq1_s(const edges_iq1_s *e, int a, bool one_a, int b, bool one_b, vf *sumqx, vf *sumq2) {
    const vf delta = splat(IQ1_DELTA); /* minus it with shift 1: the middle level */
    const vf x = (edge(e->x + b, one_b) - edge(e->x + a, one_a)) * delta;
    const vf w = (edge(e->w + b, one_b) - edge(e->w + a, one_a)) * delta * delta;
    sumqx[0] = edge(e->first_x[0] + a, one_a) + x + edge(e->second_x[0] + b, one_b);
    sumqx[1] = edge(e->first_x[1] + a, one_a) - x + edge(e->second_x[1] + b, one_b);
    for (int s = 0; s < 2; ++s) sumq2[s] = edge(e->first_w[s] + a, one_a) + w + edge(e->second_w[s] + b, one_b);
}

/* The same for every pair of shifts. */
INLINE void sums_iq1_m(const edges_iq1_m *e, int a, bool one_a, int b, bool one_b, vf *sumqx, vf *sumq2) {
    vf x[2], qx[2][2], q2[2][2];
    for (int h = 0; h < 2; ++h) x[h] = edge(e->x[h] + a, one_a) + edge(e->x[h] + b, one_b);
    for (int s = 0; s < 2; ++s)
        for (int h = 0; h < 2; ++h) {
            qx[s][h] = splat(e->all_x[s][h]) - x[h];
            q2[s][h] = edge(e->first_w[s][h] + a, one_a) + edge(e->second_w[s][h] + b, one_b);
        }
    for (int k = 0; k < 4; ++k) {
        sumqx[k] = qx[k >> 1][0] + qx[k & 1][1];
        sumq2[k] = q2[k >> 1][0] + q2[k & 1][1];
    }
}

INLINE void split_sums(bool per_half, const void *e, int a, bool one_a, int b, bool one_b, vf *sumqx, vf *sumq2) {
    if (per_half) {
        sums_iq1_m(e, a, one_a, b, one_b, sumqx, sumq2);
    } else {
        sums_iq1_s(e, a, one_a, b, one_b, sumqx, sumq2);
    }
}

static bool guessable(int n, const float *w, float score) {
    uint32_t negative = 0;
    vf most = splat(0.0f);
    for (int i = 0; i < n; i += WIDTH) {
        negative |= bits(less(load(w + i), splat(0.0f)));
        most = vmax(load(w + i), most);
    }
    const float largest = largest_of(most);
    return !negative && largest > 1e-12f && largest < 1e12f && score > 1e-15f && score < 1e15f;
}

/* The best of the boundaries first .. last before (or after) the fixed one, by and large; `score` becomes its score. */
INLINE int guess(bool per_half, const void *e, int fixed, int first, int last, bool before, float *score) {
    int found = first;
    *score = 0;
    for (int from = first; from <= last; from += WIDTH) {
        vf sumqx[4], sumq2[4];
        split_sums(per_half, e, before ? from : fixed, !before, before ? fixed : from, before, sumqx, sumq2);
        vf above = sumqx[0] * sumqx[0], below = sumq2[0];
        for (int k = 1; k < 2 + 2 * per_half; ++k) {
            const vf square = sumqx[k] * sumqx[k];
            const vm better = less(above * sumq2[k], square * below);
            above = pick(better, square, above);
            below = pick(better, sumq2[k], below);
        }
        const vf scores = pick(less(load(COUNT), splat((float)(last - from + 1))), above / below, splat(0.0f));
        const float highest = largest_of(scores);
        if (highest > *score) {
            *score = highest;
            found = from + __builtin_ctz(bits(equal(scores, splat(highest))));
        }
    }
    return found;
}

/* The lanes in which some shift scores more. */
INLINE uint32_t beaten(int shifts, float score, const vf *sumqx, const vf *sumq2) {
    vm better = less(splat(score) * sumq2[0], sumqx[0] * sumqx[0]);
    for (int k = 1; k < shifts; ++k) better = either(better, less(splat(score) * sumq2[k], sumqx[k] * sumqx[k]));
    return bits(better);
}

/* Considers the splits at `a` and each lane's boundary from `b` on, up to `n`, in order; returns the score. */
INLINE float consider_lanes(int shifts, float score, const vf *sumqx, const vf *sumq2, int a, int b, int n, split *best) {
    const uint32_t valid = n - b >= WIDTH - 1 ? LANE_BITS : (2u << (n - b)) - 1;
    uint32_t left = valid & beaten(shifts, score, sumqx, sumq2);
    while (left) {
        const int lane = __builtin_ctz(left);
        for (int k = 0; k < shifts; ++k) {
            float qx[WIDTH], q2[WIDTH];
            store(qx, sumqx[k]);
            store(q2, sumq2[k]);
            consider(best, &score, qx[lane], q2[lane], a, b + lane, k);
        }
        left = valid & ~1u << lane & beaten(shifts, score, sumqx, sumq2);
    }
    return score;
}

/* Tries all splits of `n` elements in order, each with every shift; false where scalar code must. */
INLINE bool choose_split(bool per_half, int n, const void *e, const float *w, split *best) {
    const int shifts = 2 + 2 * per_half;
    float score;
    const int second = guess(per_half, e, n / 4, n / 4, n, false, &score);
    guess(per_half, e, second, 0, second, true, &score);
    if (!guessable(n, w, score)) return false;
    score *= MARGIN;
    best->first = -1;
    for (int a = 0; a <= n; ++a)
        for (int b = a; b <= n; b += WIDTH) {
            vf sumqx[4], sumq2[4];
            split_sums(per_half, e, a, true, b, false, sumqx, sumq2);
            if (beaten(shifts, score, sumqx, sumq2)) score = consider_lanes(shifts, score, sumqx, sumq2, a, b, n, best);
        }
    return true;
}

static split choose_iq1_s(const float *x, const float *w, const int *order) {
    edges_iq1_s e;
    split best;
    fill_edges_iq1_s(&e, x, w, order);
    return choose_split(false, 32, &e, w, &best) ? best : GRID_SCALAR.choose_iq1_s(x, w, order);
}

static split choose_iq1_m(const float *x, const float *w, const int *order) {
    edges_iq1_m e;
    split best;
    fill_edges_iq1_m(&e, x, w, order);
    return choose_split(true, 16, &e, w, &best) ? best : GRID_SCALAR.choose_iq1_m(x, w, order);
}

static void snap(const grid_type *t, const float *levels, const float *x, const float *w, float scale, uint16_t *points) {
    const grid *g = &GRIDS[t->which];
    const vf inverse = splat(1.0f) / splat(scale), one = splat(1.0f), zero = splat(0.0f);
    int32_t codes[32];
    for (int i = 0; i < t->n; i += WIDTH) {
        const vf v = load(x + i) * inverse;
        vf code = zero;
        for (int l = 1; l < t->levels; ++l) code = code + pick(less(splat(0.5f * (levels[l - 1] + levels[l])), v), one, zero);
        store_truncated(codes + i, code);
    }
    for (int at = 0, k = 0; at < t->n; at += t->width, ++k) {
        int point = 0;
        for (int i = 0; i < t->width; ++i) point |= codes[at + i] << t->bits * i;
        const int32_t index = g->index[point];
        points[k] = (uint16_t)(index >= 0 ? point : t->bits == 2 ? nearest_once(g, 8, 2, index, x + at, w + at, scale, levels)
                                                                 : nearest_once(g, 4, 3, index, x + at, w + at, scale, levels));
    }
}

static const grid_searches SEARCHES = {weigh,        search_positive, find_points, sort_order,
                                       choose_iq1_s, choose_iq1_m,    nearest_iq1, snap};

GRID_ENCODERS(SEARCHES)
GRID_EFFORTS(SEARCHES)
