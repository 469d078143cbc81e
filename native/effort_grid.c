/* `--effort 2` and `3` of IQ2_S, IQ3_XXS and IQ3_S: scales and points searched for, from the reference's on.
 *
 * A block is x ~ d * unit * (2 * code + 1) * level: d is of the block, code of each group of 16 or 32 elements, levels are
 * those that decoding gives to the points of the lattice (the reference searches by odd numbers, which are close to them).
 * By turns codes move to the neighbour with the least error, with the points nearest then, and d is that of the least
 * squares. effort.c gives blocks their length; what is compared here is the error after that.
 *
 * What is searched on vectors is in `grid_searches`; the rest is compiled once, so that sums are the same everywhere.
 */
#include "grid_search.h"
#include "kernels.h"
#include "search.h"

#define GROUPS 16     /* of a block, at most */
#define SPREAD 0.033f /* between the steps from which level 3 starts, as a share */
#define STARTS 5
#define ROUNDS 2

/* A block, taken apart. `signs` are 1 for minus. */
typedef struct {
    f16 d;
    uint8_t code[GROUPS], signs[SUPER / 8];
    uint16_t index[SUPER / 4];
} parts;

/* What is known of a type beside its grid. */
typedef struct {
    const grid_type *grid;
    bool even;           /* the number of minus signs in eight */
    float unit;
    const float *levels; /* as snap_fn takes them */
    size_t size;
    decode_fn *decode;
    void (*read)(const void *block, parts *p); /* d and codes */
    void (*write)(const parts *p, void *block);
} lattice;

#define TOP_CODE 15 /* of scales */

static void read_nibbles(int n, const uint8_t *from, parts *p) {
    for (int j = 0; j < n; ++j) p->code[j] = from[j / 2] >> 4 * (j % 2) & 15;
}

static void write_nibbles(int n, const parts *p, uint8_t *to) {
    for (int j = 0; j < n; j += 2) to[j / 2] = (uint8_t)(p->code[j] | p->code[j + 1] << 4);
}

static void read_iq2_s(const void *block, parts *p) {
    const block_iq2_s *y = block;
    p->d = y->d;
    read_nibbles(16, y->scales, p);
}

static void write_iq2_s(const parts *p, void *block) {
    block_iq2_s *y = block;
    memset(y, 0, sizeof *y);
    y->d = p->d;
    for (int k = 0; k < 32; ++k) put_iq2_s(y, k, p->index[k], p->signs[k]);
    write_nibbles(16, p, y->scales);
}

static void read_iq3_xxs(const void *block, parts *p) {
    const block_iq3_xxs *y = block;
    p->d = y->d;
    for (int j = 0; j < 8; ++j) p->code[j] = (uint8_t)(y->scales_and_signs[j] >> 28);
}

static void write_iq3_xxs(const parts *p, void *block) {
    block_iq3_xxs *y = block;
    y->d = p->d;
    for (int k = 0; k < 64; ++k) y->qs[k] = (uint8_t)p->index[k];
    for (int j = 0; j < 8; ++j) {
        uint32_t rest = (uint32_t)p->code[j] << 28;
        for (int k = 0; k < 4; ++k) rest |= (uint32_t)(p->signs[4 * j + k] & 127) << 7 * k;
        y->scales_and_signs[j] = rest;
    }
}

static void read_iq3_s(const void *block, parts *p) {
    const block_iq3_s *y = block;
    p->d = y->d;
    read_nibbles(8, y->scales, p);
}

static void write_iq3_s(const parts *p, void *block) {
    block_iq3_s *y = block;
    memset(y, 0, sizeof *y);
    y->d = p->d;
    for (int k = 0; k < 64; ++k) {
        y->qs[k] = (uint8_t)p->index[k];
        y->qh[k / 8] |= (uint8_t)(p->index[k] >> 8 << k % 8);
    }
    memcpy(y->signs, p->signs, sizeof y->signs);
    write_nibbles(8, p, y->scales);
}

static const float TWO_BITS[16] = {8, 25, 43, 0, 8, 25, 43, 0, 8, 25, 43, 0, 8, 25, 43, 0},
                   THREE_BITS[16] = {4, 12, 20, 28, 36, 44, 52, 62, 4, 12, 20, 28, 36, 44, 52, 62},
                   ODD[16] = {1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15};

/* ---- the search ---- */

#define LANE 8

/* Of x and q: the weighted error of scale * q, and sums of w * x * q and w * q * q. */
typedef struct {
    float error, xq, qq;
} fit;

static fit fit_of(int n, const float *restrict x, const float *restrict q, const float *restrict w, float scale) {
    float error[LANE] = {0}, xq[LANE] = {0}, qq[LANE] = {0};
    for (int i = 0; i < n; i += LANE)
        for (int l = 0; l < LANE; ++l) {
            const float wq = w[i + l] * q[i + l], diff = x[i + l] - scale * q[i + l];
            error[l] += w[i + l] * diff * diff;
            xq[l] += wq * x[i + l];
            qq[l] += wq * q[i + l];
        }
    return (fit){sum_lanes(error), sum_lanes(xq), sum_lanes(qq)};
}

static void levels_at(const grid_type *t, const float *levels, const uint16_t *points, float *q) {
    const int mask = (1 << t->bits) - 1;
    for (int i = 0; i < t->n; ++i) q[i] = levels[points[i / t->width] >> t->bits * (i % t->width) & mask];
}

/* 0, -1, 1, -2, 2, ... */
static int neighbour(int i) { return i % 2 ? -(i + 1) / 2 : i / 2; }

/* The scale code of group `j` with the least error of those up to `window` away, and its points. */
static fit settle_group(const grid_searches *s, const lattice *t, int window, float step, int j, const float *x, const float *w,
                        parts *p) {
    const int n = t->grid->n, many = n / t->grid->width, first = p->code[j];
    fit best = {.error = HUGE_VALF};
    for (int trial = 0; trial <= 2 * window; ++trial) {
        const int code = first + neighbour(trial);
        uint16_t points[8];
        float q[32];
        if (code < 0 || code > TOP_CODE) continue;
        const float scale = step * (float)(2 * code + 1);
        s->snap(t->grid, t->levels, x + n * j, w + n * j, scale, points);
        levels_at(t->grid, t->levels, points, q);
        const fit own = fit_of(n, x + n * j, q, w + n * j, scale);
        if (!(own.error < best.error)) continue;
        best = own;
        p->code[j] = (uint8_t)code;
        for (int k = 0; k < many; ++k) p->index[many * j + k] = (uint16_t)GRIDS[t->grid->which].index[points[k]];
    }
    return best;
}

/* Codes, then d, by turns. Returns <x, y>^2 / <y, y>, which is more where less of x is missing. */
static float settle(const grid_searches *s, const lattice *t, int window, const float *x, const float *w, parts *p) {
    float xy = 0, yy = 0;
    for (int round = 0; round < ROUNDS; ++round) {
        const float step = f16_to_f32(p->d) * t->unit;
        xy = yy = 0;
        for (int j = 0; j < SUPER / t->grid->n; ++j) {
            const fit own = settle_group(s, t, window, step, j, x, w, p);
            const float k = (float)(2 * p->code[j] + 1);
            xy += k * own.xq;
            yy += k * k * own.qq;
        }
        const f16 d = f32_to_f16(xy / yy / t->unit);
        if (!(xy > 0 && yy > 0) || (d & 0x7C00) == 0x7C00) return 0;
        p->d = d;
    }
    return xy / yy * xy;
}

/* The same steps by a d that is `factor` as long. */
static void rescale(const lattice *t, float factor, parts *p) {
    p->d = f32_to_f16(f16_to_f32(p->d) * factor);
    for (int j = 0; j < SUPER / t->grid->n; ++j) {
        const float wanted = (float)(2 * p->code[j] + 1) / factor;
        p->code[j] = (uint8_t)scale_code(1, wanted, TOP_CODE);
    }
}

static void improve_block(const grid_searches *s, const lattice *t, int level, const float *x, const float *given, void *block) {
    const int window = level - 1, starts = level == 2 ? 1 : STARTS;
    parts p = {.d = 0}, best;
    float magnitude[SUPER], w[SUPER], back[SUPER];
    t->read(block, &p);
    if (given) s->weigh(SUPER, x, given, 2 * sum_squares(SUPER, x) / SUPER, 0, w);
    for (int i = 0; !given && i < SUPER; ++i) w[i] = 1;
    for (int k = 0; k < SUPER / 8; ++k) p.signs[k] = split_signs(x + 8 * k, w + 8 * k, t->even, magnitude + 8 * k);
    t->decode(block, back, SUPER);
    const fit before = fit_of(SUPER, x, back, w, 1);
    float most = before.xq / before.qq * before.xq;
    bool found = false;
    for (int start = 0; start < starts; ++start) {
        parts trial = p;
        if (start) rescale(t, 1.0f + SPREAD * (float)neighbour(start), &trial);
        const float score = settle(s, t, window, magnitude, w, &trial);
        if (!(score > most && score < HUGE_VALF)) continue;
        most = score;
        best = trial;
        found = true;
    }
    if (found) t->write(&best, block);
}

extern decode_fn decode_iq2_s_scalar, decode_iq3_xxs_scalar, decode_iq3_s_scalar;

#define LATTICE(type, grid, even, unit, levels) \
    {&grid, even, unit, levels, sizeof(block_##type), decode_##type##_scalar, read_##type, write_##type}
static const lattice LATTICES[GRID_COUNT] = {
    [GRID_IQ2_S] = LATTICE(iq2_s, IQ2_S, false, 0.125f, TWO_BITS),
    [GRID_IQ3_XXS] = LATTICE(iq3_xxs, IQ3_XXS, true, 0.25f, THREE_BITS),
    [GRID_IQ3_S] = LATTICE(iq3_s, IQ3_S, false, 1, ODD),
};

void improve_grid(const grid_searches *s, int which, int level, const float *x, uint8_t *out, int64_t rows, int64_t row,
                  const float *weights) {
    const lattice *t = &LATTICES[which];
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < row; i += SUPER, x += SUPER, out += t->size)
            improve_block(s, t, level, x, weights ? weights + i : NULL, out);
}
