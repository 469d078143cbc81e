/* `--effort 2` and `3`: blocks whose steps, scales and minima are searched for, from the reference's on.
 *
 * lanes_effort.h searches many sub-blocks at once. A block that it makes no better is that of `--effort 1`.
 */
#include "isa.h"
#include "k_block.h"
#include "kernels.h"
#include "lanes_effort.h"
#include "pack_iq4.h"
#include "pack_simple.h"
#include "transpose.h"

/* A block, taken apart; scales and mins of types without are 1. `codes` begin at 0. */
typedef struct {
    f16 d, dmin;
    int scale[16], min[16];
    uint8_t codes[SUPER];
} parts;

#define EACH_SUB(count) for (int j = 0; j < count; ++j)

static void read_q2_k(const block_q2_k *y, parts *p) {
    p->d = y->d, p->dmin = y->dmin;
    EACH_SUB(16) p->scale[j] = y->scales[j] & 15, p->min[j] = y->scales[j] >> 4;
}

static void write_q2_k(parts *p, block_q2_k *y) {
    y->d = p->d, y->dmin = p->dmin;
    EACH_SUB(16) y->scales[j] = (uint8_t)(p->scale[j] | p->min[j] << 4);
    pack_codes_q2_k(p->codes, y);
}

static void read_q3_k(const block_q3_k *y, parts *p) {
    p->d = y->d;
    EACH_SUB(16) p->scale[j] = unpack_scale_q3(y->scales, j);
}

static void write_q3_k(parts *p, block_q3_k *y) {
    int8_t scales[16];
    y->d = p->d;
    EACH_SUB(16) scales[j] = (int8_t)(p->scale[j] + 32);
    pack_scales_q3(scales, y->scales);
    pack_codes_q3_k(p->codes, y);
}

#define AFFINE_K(type)                                                              \
    static void read_##type(const block_##type *y, parts *p) {                      \
        p->d = y->d, p->dmin = y->dmin;                                             \
        EACH_SUB(8) unpack_scale_min(y->scales, j, p->scale + j, p->min + j);       \
    }                                                                               \
    static void write_##type(parts *p, block_##type *y) {                           \
        uint8_t scales[8], mins[8];                                                 \
        y->d = p->d, y->dmin = p->dmin;                                             \
        EACH_SUB(8) scales[j] = (uint8_t)p->scale[j], mins[j] = (uint8_t)p->min[j]; \
        pack_scale_min(scales, mins, y->scales);                                    \
        pack_codes_##type(p->codes, y);                                             \
    }
AFFINE_K(q4_k)
AFFINE_K(q5_k)

static void read_q6_k(const block_q6_k *y, parts *p) {
    p->d = y->d;
    EACH_SUB(16) p->scale[j] = y->scales[j];
}

static void write_q6_k(parts *p, block_q6_k *y) {
    y->d = p->d;
    EACH_SUB(16) y->scales[j] = (int8_t)p->scale[j];
    pack_codes_q6_k(p->codes, y);
}

#define NEGATED 0x8000 /* the sign of an F16: what these types add is what others subtract */
#define SIMPLE(type, MIN_IN, MIN_OUT, FIFTH)                                                \
    static void read_##type(const block_##type *y, parts *p) { p->d = y->d; MIN_IN; }       \
    static void write_##type(parts *p, block_##type *y) {                                   \
        y->d = p->d;                                                                        \
        MIN_OUT;                                                                            \
        pack_nibbles(p->codes, y->qs);                                                      \
        FIFTH;                                                                              \
    }
SIMPLE(q4_0, , , )
SIMPLE(q5_0, , , pack_fifth_bits(p->codes, y->qh))
SIMPLE(q4_1, p->dmin = y->m ^ NEGATED, y->m = p->dmin ^ NEGATED, )
SIMPLE(q5_1, p->dmin = y->m ^ NEGATED, y->m = p->dmin ^ NEGATED, pack_fifth_bits(p->codes, y->qh))
SIMPLE(iq4_nl, , , )

static void read_iq4_xs(const block_iq4_xs *y, parts *p) {
    p->d = y->d;
    EACH_SUB(8) p->scale[j] = ((y->scales_l[j / 2] >> 4 * (j % 2) & 15) | (y->scales_h >> 2 * j & 3) << 4) - 32;
}

static void write_iq4_xs(parts *p, block_iq4_xs *y) {
    uint16_t high = 0;
    y->d = p->d;
    memset(y->scales_l, 0, sizeof y->scales_l);
    EACH_SUB(8) {
        y->scales_l[j / 2] |= (uint8_t)(((p->scale[j] + 32) & 15) << 4 * (j % 2));
        high |= (uint16_t)((p->scale[j] + 32) >> 4 << 2 * j);
        pack_nibbles(p->codes + 32 * j, y->qs + 16 * j);
    }
    y->scales_h = high;
}

/* Codes as nearest_code finds them, counted from the lowest. */
INLINE void codes_of(layout t, const float *restrict x, float step, float offset, uint8_t *restrict codes) {
    const float inverse = step ? 1.0f / step : 0.0f;
    int32_t wide[32];
    for (int i = 0; t.uneven && i < t.n; ++i) codes[i] = nearest_iq4(inverse * x[i]);
    if (t.uneven) return;
    for (int i = 0; i < t.n; i += WIDTH) {
        const vf v = when(affine(t), load(x + i) + splat(offset), load(x + i));
        store_truncated(wide + i, nearest_code(t, v * splat(inverse)) - splat((float)t.low));
    }
    for (int i = 0; i < t.n; ++i) codes[i] = (uint8_t)wide[i];
}

/* A step times `gain`, if an F16 can hold it. */
static inline f16 stretched(float step, float gain) {
    const f16 next = f32_to_f16(step * gain);
    return (next & 0x7C00) == 0x7C00 ? f32_to_f16(step) : next;
}

/* Block whose first lane is `k`, out of the lanes. */
INLINE void take(layout t, const float *x, const steps *s, const float *gain, int k, parts *p) {
    p->d = stretched(s->d[k], gain[k]);
    p->dmin = stretched(s->dmin[k], gain[k]);
    for (int j = 0; j < t.per; ++j) {
        p->scale[j] = (int)s->scale[k + j];
        p->min[j] = (int)s->min[k + j];
        codes_of(t, x + j * t.n, s->d[k] * s->scale[k + j], s->dmin[k] * s->min[k + j], p->codes + j * t.n);
    }
}

/* And into them. */
INLINE void put(layout t, const parts *p, int k, steps *s) {
    for (int j = 0; j < t.per; ++j) {
        s->d[k + j] = f16_to_f32(p->d);
        s->dmin[k + j] = affine(t) ? f16_to_f32(p->dmin) : 0.0f;
        s->scale[k + j] = (float)p->scale[j];
        s->min[k + j] = (float)p->min[j];
    }
}

/* Importance as the reference weighs it: times the root of x * x plus a mean square, over all elements of a
 * row or of a block, once or twice; or as it is. */
typedef enum { AS_IS, ROW_MEAN, MEAN, TWICE_MEAN } weighing;

INLINE void fill(layout t, weighing how, int64_t first, int count, const float *x, int64_t row, const float *weights, float *mean, batch *b) {
    transpose_groups(t.n, count * t.per, x, b->x);
    if (weights) {
        const int size = t.n * t.per;
        const float *given[LANES];
        float mean_square[LANES] = {0};
        for (int s = 0; s < count; ++s) {
            const int64_t at = (first + s) * size % row;
            given[s] = weights + at;
            if (how == ROW_MEAN && at == 0) *mean = sum_squares(row, x + s * size) / (float)row;
            if (how == MEAN || how == TWICE_MEAN) *mean = sum_squares(size, x + s * size) * (how == MEAN ? 1.0f : 2.0f) / (float)size;
            for (int j = 0; j < t.per; ++j) mean_square[s * t.per + j] = *mean;
        }
        transpose_given(t.n, count * t.per, t.per, given, b->given);
        for (int i = 0; i < t.n; ++i)
            EACH(u) {
                const int at = i * LANES + u * WIDTH;
                const vf g = load(b->given + at), v = load(b->x + at);
                store(b->w + at, when(how == AS_IS, g, g * vsqrt(load(mean_square + u * WIDTH) + v * v)));
            }
    }
    if (weights) sum_batch(t, true, b);
    else sum_batch(t, false, b);
}

#define SEARCH(type, how, ...)                                                                                     \
    extern encode_fn FN(encode_##type), FN(stretch_##type);                                                        \
    INLINE uint32_t search_##type(bool weighted, int level, const batch *b, const steps *given, steps *best, float *gain) {  \
        const layout t = {__VA_ARGS__};                                                                            \
        return search_steps(t, weighted, reach_of(t, level), b, given, best, gain);                                \
    }                                                                                                              \
    void FN(effort_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level) { \
        const layout t = {__VA_ARGS__};                                                                            \
        const int size = t.n * t.per, together = LANES / t.per;                                                    \
        const bool plain = t.per == 1 && !t.uneven && !weights; /* the reference does not search */                \
        const int64_t blocks = rows * row / size;                                                                  \
        block_##type *y = (block_##type *)out;                                                                     \
        if (!plain || level == 1) FN(encode_##type)(x, out, rows, row, weights);                                   \
        if (level == 1) {                                                                                          \
            FN(stretch_##type)(x, out, rows, row, weights);                                                        \
            return;                                                                                                \
        }                                                                                                          \
        batch b;                                                                                                   \
        steps given = {.d = {0}}, best;                                                                            \
        float gain[LANES], mean = 0;                                                                               \
        for (int64_t first = 0; first < blocks; first += together, x += together * size, y += together) {          \
            const int count = (int)MIN(together, blocks - first);                                                  \
            parts p = {.dmin = 0};                                                                                 \
            for (int j = 0; j < t.per; ++j) p.scale[j] = p.min[j] = 1;                                             \
            fill(t, how, first, count, x, row, weights, &mean, &b);                                                \
            if (plain) widest_steps(t, &b, &given);                                                                \
            for (int s = 0; !plain && s < count; ++s) {                                                            \
                read_##type(y + s, &p);                                                                            \
                put(t, &p, s * t.per, &given);                                                                     \
            }                                                                                                      \
            const uint32_t usual = weights ? search_##type(true, level, &b, &given, &best, gain)                   \
                                           : search_##type(false, level, &b, &given, &best, gain);                 \
            for (int s = 0; s < count; ++s) {                                                                      \
                const float *from = x + s * size;                                                                  \
                if (usual >> s * t.per & 1) {                                                                      \
                    take(t, from, &best, gain, s * t.per, &p);                                                     \
                    write_##type(&p, y + s);                                                                       \
                    continue;                                                                                      \
                }                                                                                                  \
                if (plain) FN(encode_##type)(from, (uint8_t *)(y + s), 1, size, NULL);                             \
                FN(stretch_##type)(from, (uint8_t *)(y + s), 1, size, weights ? weights + (first + s) * size % row : NULL); \
            }                                                                                                      \
        }                                                                                                          \
    }

SEARCH(q2_k, MEAN, 16, 16, 0, 3, 0, 15, 0, 15, false)
SEARCH(q3_k, TWICE_MEAN, 16, 16, -4, 3, -32, 31, 0, 0, false)
SEARCH(q4_k, TWICE_MEAN, 32, 8, 0, 15, 0, 63, 0, 63, false)
SEARCH(q5_k, TWICE_MEAN, 32, 8, 0, 31, 0, 63, 0, 63, false)
SEARCH(q6_k, AS_IS, 16, 16, -32, 31, -128, 127, 0, 0, false)
SEARCH(q4_0, ROW_MEAN, 32, 1, -8, 7, 1, 1, 0, 0, false)
SEARCH(q5_0, ROW_MEAN, 32, 1, -16, 15, 1, 1, 0, 0, false)
SEARCH(q4_1, ROW_MEAN, 32, 1, 0, 15, 1, 1, 1, 1, false)
SEARCH(q5_1, ROW_MEAN, 32, 1, 0, 31, 1, 1, 1, 1, false)
SEARCH(iq4_nl, TWICE_MEAN, 32, 1, -127, 113, 1, 1, 0, 0, true)
SEARCH(iq4_xs, TWICE_MEAN, 32, 8, -127, 113, -32, 31, 0, 0, true)
