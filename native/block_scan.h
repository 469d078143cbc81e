/* The magnitude, the range and the peak of one block: plain loops in scalar code, vectors otherwise.
 *
 * Reordering a maximum changes nothing but the sign of a zero, which of two equal magnitudes comes first, and
 * what a NaN does: in those cases the vector code falls back on the loops.
 */
#ifndef CONVERTER_BLOCK_SCAN_H
#define CONVERTER_BLOCK_SCAN_H

#include <float.h>
#include <stdbool.h>

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

static inline void range_loop(int n, const float *x, float *low, float *high) {
    *low = FLT_MAX;
    *high = -FLT_MAX;
    for (int i = 0; i < n; ++i) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

/* out[i] = truncate((x[i] - base) * scale + offset) */
static inline void truncate_loop(int n, const float *x, float base, float scale, float offset, int32_t *out) {
    for (int i = 0; i < n; ++i) out[i] = truncate((x[i] - base) * scale + offset);
}

/* out[i] = round_away(x[i] * scale) */
static inline void round_loop(int n, const float *x, float scale, int32_t *out) {
    for (int i = 0; i < n; ++i) out[i] = round_away(x[i] * scale);
}

#ifdef SCALAR

#define largest_magnitude largest_magnitude_loop
#define running_magnitude running_magnitude_loop
#define range range_loop
#define block_peak peak
#define truncate_all truncate_loop
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

static inline void range(int n, const float *x, float *low, float *high) {
    vf min = splat(FLT_MAX), max = splat(-FLT_MAX);
    for (int i = 0; i < n; i += WIDTH) {
        min = vmin(load(x + i), min);
        max = vmax(load(x + i), max);
    }
    *low = -largest_of(-min);
    *high = largest_of(max);
    if (*low == 0 || *high == 0) range_loop(n, x, low, high);
}

static inline float block_peak(int n, const float *x, float *magnitude) {
    vf min = splat(0.0f), max = splat(0.0f);
    for (int i = 0; i < n; i += WIDTH) {
        min = vmin(load(x + i), min);
        max = vmax(load(x + i), max);
    }
    const float low = largest_of(-min), high = largest_of(max);
    if (low == high) return peak(n, x, magnitude);
    /* No branch, since the sign is random; magnitudes compare like their bits. */
    const uint32_t a = float_bits(low) & 0x7FFFFFFFu, b = float_bits(high) & 0x7FFFFFFFu, negative = -(uint32_t)(a > b);
    *magnitude = bits_float(b ^ ((a ^ b) & negative));
    return bits_float(float_bits(*magnitude) | (negative & 0x80000000u));
}

static inline void truncate_all(int n, const float *x, float base, float scale, float offset, int32_t *out) {
    for (int i = 0; i < n; i += WIDTH)
        store_truncated(out + i, (load(x + i) - splat(base)) * splat(scale) + splat(offset));
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
