/* `--effort 1`: blocks as the reference encodes them, every code kept, and their steps of the right length.
 *
 * A scale of the least squares is too short: what comes back is <x, y> / <x, x> of what went in, by a factor that the
 * products of thousands of weights do not average out. The steps of a block (its F16 scales) are multiplied by
 * <x, x> / <x, y>, y being what the block decodes to, with the importance of the columns where there is one.
 *
 * Sums are those of sixteen lanes, added up in one order: the same on every processor.
 */
#include <stddef.h>

#include "blocks.h"
#include "isa.h"
#include "kernels.h"
#include "numeric.h"

#define LANE 16

static inline float added(const float *lanes) {
    float sum[8];
    for (int i = 0; i < 8; ++i) sum[i] = lanes[i] + lanes[i + 8];
    return sum_lanes(sum);
}

/* Weighted sums of x * x, x * y and y * y. */
typedef struct {
    float xx, xy, yy;
} sums;

static inline sums sums_of(int n, const float *restrict x, const float *restrict y, const float *restrict w) {
    float xx[LANE] = {0}, xy[LANE] = {0}, yy[LANE] = {0};
    for (int i = 0; i < n; i += LANE)
        for (int l = 0; l < LANE; ++l) {
            const float wx = w[i + l] * x[i + l];
            xx[l] += wx * x[i + l];
            xy[l] += wx * y[i + l];
            yy[l] += w[i + l] * y[i + l] * y[i + l];
        }
    return (sums){added(xx), added(xy), added(yy)};
}

/* <x, x> / <x, y>; 1 where that is no factor. */
static inline float gain_of(sums s) {
    const float gain = s.xx / s.xy;
    return gain > 0.5f && gain < 2.0f ? gain : 1.0f;
}

/* The squared error with y times `gain`. */
static inline float error_of(sums s, float gain) { return s.xx - 2 * gain * s.xy + gain * gain * s.yy; }

/* Blocks of a type: elements and bytes of one, and where its F16 scales are. */
typedef struct {
    int n, size, count;
    size_t steps[2];
    decode_fn *decode;
} shape;

/* A step times `gain`. Returns whether an F16 holds that coarsely (as a subnormal number) or not at all. */
static inline bool stretch_step(void *at, float gain) {
    f16 stored;
    memcpy(&stored, at, sizeof stored);
    const f16 next = f32_to_f16(f16_to_f32(stored) * gain), exponent = next & 0x7C00;
    if (exponent != 0x7C00) memcpy(at, &next, sizeof next);
    return exponent == 0 || exponent == 0x7C00;
}

/* Coarse steps are not in the proportion that was meant. They stay as they were if the error is more by it than it was,
 * and than it would be with exact ones: by more than the share DEARER (kernels.h). */
static inline void stretch_block(shape t, const float *x, uint8_t *y, const float *w) {
    float back[SUPER];
    f16 before[2];
    t.decode(y, back, t.n);
    const sums given = sums_of(t.n, x, back, w);
    const float gain = gain_of(given);
    bool coarse = false;
    for (int k = 0; k < t.count; ++k) {
        memcpy(before + k, y + t.steps[k], sizeof *before);
        coarse |= stretch_step(y + t.steps[k], gain);
    }
    if (!coarse) return;
    t.decode(y, back, t.n);
    const float now = error_of(sums_of(t.n, x, back, w), 1);
    if (now < DEARER * MAX(error_of(given, 1), error_of(given, gain))) return;
    for (int k = 0; k < t.count; ++k) memcpy(y + t.steps[k], before + k, sizeof *before);
}

/* Walks the blocks of all rows; `STEP`s are the offsets of their F16 scales. */
#define STEP(type, field) offsetof(block_##type, field)
#define COUNT(...) ((int)(sizeof(size_t[]){__VA_ARGS__} / sizeof(size_t)))
#define STRETCH(type, elements, ...)                                                                             \
    extern decode_fn FN(decode_##type);                                                                         \
    void FN(stretch_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {     \
        const shape t = {elements, sizeof(block_##type), COUNT(__VA_ARGS__), {__VA_ARGS__}, FN(decode_##type)}; \
        float same[elements];                                                                                   \
        for (int i = 0; i < elements; ++i) same[i] = 1;                                                         \
        for (int64_t r = 0; r < rows; ++r)                                                                      \
            for (int64_t i = 0; i < row; i += elements, x += elements, out += t.size)                           \
                stretch_block(t, x, out, weights ? weights + i : same);                                         \
    }

STRETCH(q2_k, SUPER, STEP(q2_k, d), STEP(q2_k, dmin))
STRETCH(q3_k, SUPER, STEP(q3_k, d))
STRETCH(q4_k, SUPER, STEP(q4_k, d), STEP(q4_k, dmin))
STRETCH(q5_k, SUPER, STEP(q5_k, d), STEP(q5_k, dmin))
STRETCH(q6_k, SUPER, STEP(q6_k, d))
STRETCH(q4_0, 32, STEP(q4_0, d))
STRETCH(q5_0, 32, STEP(q5_0, d))
STRETCH(q4_1, 32, STEP(q4_1, d), STEP(q4_1, m))
STRETCH(q5_1, 32, STEP(q5_1, d), STEP(q5_1, m))
STRETCH(iq4_nl, 32, STEP(iq4_nl, d))
STRETCH(iq4_xs, SUPER, STEP(iq4_xs, d))
STRETCH(iq3_xxs, SUPER, STEP(iq3_xxs, d))
STRETCH(iq3_s, SUPER, STEP(iq3_s, d))
STRETCH(iq2_xxs, SUPER, STEP(iq2_xxs, d))
STRETCH(iq2_xs, SUPER, STEP(iq2_xs, d))
STRETCH(iq2_s, SUPER, STEP(iq2_s, d))
STRETCH(iq1_s, SUPER, STEP(iq1_s, d))

/* Types that have no other effort than this. */
#define EFFORT(type)                                                                                            \
    extern encode_fn FN(encode_##type);                                                                         \
    void FN(effort_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level) { \
        (void)level;                                                                                            \
        FN(encode_##type)(x, out, rows, row, weights);                                                          \
        FN(stretch_##type)(x, out, rows, row, weights);                                                         \
    }

EFFORT(iq2_xxs)
EFFORT(iq2_xs)
EFFORT(iq1_s)
