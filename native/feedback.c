/* `--calibrate`: blocks whose rounding errors are made good by the columns to the right (error feedback, as in GPTQ,
 * arXiv:2210.17323).
 *
 * The factor of a matrix says how its inputs go together: with H, their second moments, and H^-1 = V^T D V, it holds
 * the upper triangle of V row by row, BF16, where V has its ones stand the diagonal of D^-1. V[j][k] is what an error of
 * column j is worth in column k > j, and D^-1[j] what remains of it after that: the importance of the column.
 *
 * At the start of a block its steps are fitted, by the encoder of the type, to the weights as they are by then. They
 * stay. Its columns are rounded one after the other, and x[k] -= (x[j] - y[j]) * V[j][k] for all k > j.
 *
 * A lane is a row, and every element takes its corrections in the order of the columns: neither the instruction set
 * nor the size of what is done together changes a byte.
 */
#include <stdlib.h>

#include "isa.h"
#include "k_block.h"
#include "kernels.h"
#include "lanes.h"
#include "pack_simple.h"

enum {
    STRIP = 32, /* rows that go together */
    PANEL = 32, /* columns that are rounded before what is right of them hears of it */
    TILE = 8,   /* columns that hear of it together */
};

/* A type as steps and codes: element i of a block is step * (low + code) - offset, by the sub-block that it is in. */
typedef struct {
    int elements, size, sub, low, top;
    encode_fn *encode;
    effort_fn *effort; /* or NULL */
    void (*steps)(const void *block, float *step, float *offset);
    void (*put)(uint8_t *codes, void *block);
} lattice;

/* Columns of a strip, one lane per row. */
typedef float column[STRIP];

/* Row `j` of the factor of `n` columns, of which [j, n) are there. */
static inline const uint16_t *factor_row(const uint16_t *factor, int64_t n, int64_t j) {
    return factor + (j * n - j * (j - 1) / 2 - j);
}

/* Columns [from, to), a multiple of TILE, hear of the errors of the panel at `first`. */
static void spread(const column *error, const uint16_t *factor, int64_t n, int64_t first, int64_t from, int64_t to,
                   column *x) {
    for (int64_t k = from; k < to; k += TILE) {
        float worth[PANEL][TILE];
        for (int j = 0; j < PANEL; ++j) {
            const uint16_t *row = factor_row(factor, n, first + j) + k;
            for (int t = 0; t < TILE; ++t) worth[j][t] = bf16_to_f32(row[t]);
        }
        for (int g = 0; g < STRIP; g += WIDTH) {
            vf sum[TILE];
            for (int t = 0; t < TILE; ++t) sum[t] = load(x[k + t] + g);
            for (int j = 0; j < PANEL; ++j) {
                const vf e = load(error[j] + g);
                for (int t = 0; t < TILE; ++t) sum[t] = sum[t] - e * splat(worth[j][t]);
            }
            for (int t = 0; t < TILE; ++t) store(x[k + t] + g, sum[t]);
        }
    }
}

/* Rounds one column to the nearest codes. An error that is no number, or beyond all, is not passed on. */
static void round_column(const lattice *t, const float *x, const float *step, const float *inverse, const float *offset,
                         float *code, float *error) {
    const vf magic = splat(12582912.0f), low = splat((float)t->low), top = splat((float)t->top), most = splat(0x1p+100f);
    for (int g = 0; g < STRIP; g += WIDTH) {
        const vf v = load(x + g), o = load(offset + g);
        const vf c = (vmin(vmax((v + o) * load(inverse + g), low), top) + magic) - magic;
        const vf e = v - (load(step + g) * c - o);
        store(code + g, c - low);
        store(error + g, pick(less(vabs(e), most), e, splat(0.0f)));
    }
}

/* What a strip needs while a block of it is done. */
typedef struct {
    float rows[STRIP * SUPER];   /* the block as its encoder wants it */
    uint8_t bytes[STRIP * 256];
    float step[SUPER / 16][STRIP], inverse[SUPER / 16][STRIP], offset[SUPER / 16][STRIP];
    column code[SUPER], error[PANEL];
    float weights[SUPER];
} room;

/* Steps of the block at column `first`, fitted to what its weights are by now. */
static void fit(const lattice *t, const column *x, int64_t n, int64_t first, const uint16_t *factor, int effort, room *r) {
    for (int i = 0; i < t->elements; ++i) {
        r->weights[i] = bf16_to_f32(factor_row(factor, n, first + i)[first + i]);
        for (int l = 0; l < STRIP; ++l) r->rows[l * t->elements + i] = x[first + i][l];
    }
    t->encode(r->rows, r->bytes, STRIP, t->elements, r->weights);
    if (effort && t->effort) t->effort(r->rows, r->bytes, STRIP, t->elements, r->weights, effort);
    for (int l = 0; l < STRIP; ++l) {
        float step[SUPER / 16], offset[SUPER / 16] = {0};
        t->steps(r->bytes + l * t->size, step, offset);
        for (int s = 0; s < t->elements / t->sub; ++s) {
            r->step[s][l] = step[s];
            r->inverse[s][l] = step[s] != 0 ? 1 / step[s] : 0;
            r->offset[s][l] = offset[s];
        }
    }
}

/* Rounds the panel whose first column is `at` within the block at `first`, and tells all columns right of it. */
static void round_panel(const lattice *t, column *x, int64_t n, int64_t first, int at, const uint16_t *factor, room *r) {
    const int64_t start = first + at;
    for (int j = 0; j < PANEL; ++j) {
        const int s = (at + j) / t->sub;
        const uint16_t *row = factor_row(factor, n, start + j);
        round_column(t, x[start + j], r->step[s], r->inverse[s], r->offset[s], r->code[at + j], r->error[j]);
        for (int k = j + 1; k < PANEL; ++k) {
            const vf worth = splat(bf16_to_f32(row[start + k]));
            float *other = x[start + k];
            for (int g = 0; g < STRIP; g += WIDTH) store(other + g, load(other + g) - load(r->error[j] + g) * worth);
        }
    }
    spread(r->error, factor, n, start, start + PANEL, n, x);
}

static void one_strip(const lattice *t, column *x, int64_t n, const uint16_t *factor, int effort, int rows, uint8_t *out,
                      room *r) {
    const int64_t row_size = n / t->elements * t->size;
    for (int64_t first = 0; first < n; first += t->elements) {
        fit(t, x, n, first, factor, effort, r);
        for (int at = 0; at < t->elements; at += PANEL) round_panel(t, x, n, first, at, factor, r);
        for (int l = 0; l < rows; ++l) {
            uint8_t codes[SUPER], *block = r->bytes + l * t->size;
            for (int i = 0; i < t->elements; ++i) codes[i] = (uint8_t)r->code[i][l];
            t->put(codes, block);
            memcpy(out + l * row_size + first / t->elements * t->size, block, (size_t)t->size);
        }
    }
}

static bool with_feedback(const lattice *t, const float *x, uint8_t *out, int64_t rows, int64_t n, const uint16_t *factor,
                          int effort) {
    column *strip = malloc((size_t)n * sizeof *strip);
    room *r = calloc(1, sizeof *r);
    for (int64_t at = 0; strip && r && at < rows; at += STRIP) {
        const int count = (int)MIN(STRIP, rows - at);
        for (int64_t k = 0; k < n; ++k)
            for (int l = 0; l < STRIP; ++l) strip[k][l] = l < count ? x[(at + l) * n + k] : 0;
        one_strip(t, strip, n, factor, effort, count, out + at * (n / t->elements * t->size), r);
    }
    const bool done = strip && r;
    free(strip);
    free(r);
    return done;
}

/* ---- the types ---- */

static void steps_q2_k(const void *block, float *step, float *offset) {
    const block_q2_k *y = block;
    const float d = f16_to_f32(y->d), dmin = f16_to_f32(y->dmin);
    for (int j = 0; j < 16; ++j) {
        step[j] = d * (float)(y->scales[j] & 15);
        offset[j] = dmin * (float)(y->scales[j] >> 4);
    }
}

static void steps_q3_k(const void *block, float *step, float *offset) {
    const block_q3_k *y = block;
    (void)offset;
    for (int j = 0; j < 16; ++j) step[j] = f16_to_f32(y->d) * (float)unpack_scale_q3(y->scales, j);
}

static void steps_affine_k(f16 d, f16 dmin, const uint8_t *scales, float *step, float *offset) {
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        unpack_scale_min(scales, j, &scale, &min);
        step[j] = f16_to_f32(d) * (float)scale;
        offset[j] = f16_to_f32(dmin) * (float)min;
    }
}

static void steps_q4_k(const void *block, float *step, float *offset) {
    const block_q4_k *y = block;
    steps_affine_k(y->d, y->dmin, y->scales, step, offset);
}

static void steps_q5_k(const void *block, float *step, float *offset) {
    const block_q5_k *y = block;
    steps_affine_k(y->d, y->dmin, y->scales, step, offset);
}

static void steps_q6_k(const void *block, float *step, float *offset) {
    const block_q6_k *y = block;
    (void)offset;
    for (int j = 0; j < 16; ++j) step[j] = f16_to_f32(y->d) * (float)y->scales[j];
}

/* Q4_0, Q5_0, Q8_0: one step, which is the first field; Q4_1, Q5_1: a minimum after it. */
static void steps_symmetric(const void *block, float *step, float *offset) {
    f16 d;
    (void)offset;
    memcpy(&d, block, sizeof d);
    *step = f16_to_f32(d);
}

static void steps_affine(const void *block, float *step, float *offset) {
    f16 d[2];
    memcpy(d, block, sizeof d);
    *step = f16_to_f32(d[0]);
    *offset = -f16_to_f32(d[1]);
}

#define PUT(type, ...)                                                  \
    static void codes_##type(uint8_t *codes, void *block) {       \
        block_##type *y = block;                                        \
        __VA_ARGS__;                                                    \
    }

PUT(q2_k, pack_codes_q2_k(codes, y))
PUT(q3_k, pack_codes_q3_k(codes, y))
PUT(q4_k, pack_codes_q4_k(codes, y))
PUT(q5_k, pack_codes_q5_k(codes, y))
PUT(q6_k, pack_codes_q6_k(codes, y))
PUT(q4_0, pack_nibbles(codes, y->qs))
PUT(q4_1, pack_nibbles(codes, y->qs))
PUT(q5_0, pack_nibbles(codes, y->qs); pack_fifth_bits(codes, y->qh))
PUT(q5_1, pack_nibbles(codes, y->qs); pack_fifth_bits(codes, y->qh))
PUT(q8_0, for (int i = 0; i < 32; ++i) y->qs[i] = (int8_t)(codes[i] - 127))

#define FEEDBACK(type, elements, sub, low, top, steps, effort)                                                        \
    extern encode_fn FN(encode_##type);                                                                               \
    bool FN(feedback_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const uint16_t *factor, int level) { \
        static const lattice t = {elements, sizeof(block_##type), sub, low, top, FN(encode_##type), effort, steps,    \
                                  codes_##type};                                                                      \
        return with_feedback(&t, x, out, rows, row, factor, level);                                                   \
    }

extern effort_fn FN(effort_q2_k), FN(effort_q3_k), FN(effort_q4_k), FN(effort_q5_k), FN(effort_q6_k);
extern effort_fn FN(effort_q4_0), FN(effort_q4_1), FN(effort_q5_0), FN(effort_q5_1);

FEEDBACK(q2_k, SUPER, 16, 0, 3, steps_q2_k, FN(effort_q2_k))
FEEDBACK(q3_k, SUPER, 16, -4, 3, steps_q3_k, FN(effort_q3_k))
FEEDBACK(q4_k, SUPER, 32, 0, 15, steps_q4_k, FN(effort_q4_k))
FEEDBACK(q5_k, SUPER, 32, 0, 31, steps_q5_k, FN(effort_q5_k))
FEEDBACK(q6_k, SUPER, 16, -32, 31, steps_q6_k, FN(effort_q6_k))
FEEDBACK(q4_0, 32, 32, -8, 7, steps_symmetric, FN(effort_q4_0))
FEEDBACK(q4_1, 32, 32, 0, 15, steps_affine, FN(effort_q4_1))
FEEDBACK(q5_0, 32, 32, -16, 15, steps_symmetric, FN(effort_q5_0))
FEEDBACK(q5_1, 32, 32, 0, 31, steps_affine, FN(effort_q5_1))
FEEDBACK(q8_0, 32, 32, -127, 127, steps_symmetric, NULL) /* -128 has no positive twin, which runtimes count on */
