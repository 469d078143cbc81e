/* The magnitude of one block and the rounding of its elements: plain loops in scalar code, vectors otherwise.
 *
 * Reordering a maximum changes nothing but what a NaN does: then the vector code falls back on the loop.
 */
#ifndef CONVERTER_BLOCK_SCAN_H
#define CONVERTER_BLOCK_SCAN_H

#include "search.h"

/* Largest magnitude; a NaN counts as nothing. */
static inline float largest_magnitude_loop(int n, const float *x) {
    float max = 0;
    for (int i = 0; i < n; ++i)
        if (fabsf(x[i]) > max) max = fabsf(x[i]);
    return max;
}

/* The same, but a NaN makes what follows it start again: so ggml has it for Q8_0 and the ternary types. */
static inline float running_magnitude_loop(int n, const float *x) {
    float max = 0;
    for (int i = 0; i < n; ++i) max = MAX(max, fabsf(x[i]));
    return max;
}

/* out[i] = round_away(x[i] * scale) */
static inline void round_loop(int n, const float *x, float scale, int32_t *out) {
    for (int i = 0; i < n; ++i) out[i] = round_away(x[i] * scale);
}

#ifdef SCALAR

#define largest_magnitude largest_magnitude_loop
#define running_magnitude running_magnitude_loop
#define round_all round_loop

#else

#include "lanes.h"

static inline float largest_magnitude(int n, const float *x) {
    vf max = splat(0.0f);
    for (int i = 0; i < n; i += WIDTH) max = vmax(vabs(load(x + i)), max);
    return largest_of(max);
}

static inline float running_magnitude(int n, const float *x) {
    vf defect = splat(0.0f), zero = splat(0.0f);
    for (int i = 0; i < n; i += WIDTH) defect = defect + load(x + i) * zero;
    return bits(inverse_of(equal(defect, zero))) ? running_magnitude_loop(n, x) : largest_magnitude(n, x);
}

static inline void round_all(int n, const float *x, float scale, int32_t *out) {
    const vf half = splat(0.5f), one = splat(1.0f), zero = splat(0.0f);
    for (int i = 0; i < n; i += WIDTH) {
        const vf v = load(x + i) * splat(scale), whole = toward_zero(v), rest = v - whole; /* exact */
        const vf up = pick(less(rest, half), zero, one), down = pick(less(-half, rest), zero, one);
        store_truncated(out + i, pick(equal(rest, rest), whole + up - down, v));
    }
}

#endif
#endif
