/* How far two arrays of floats are apart. */
#include "compare.h"

#include <math.h>
#include <string.h>

#include "isa.h"
#include "numeric.h"

#define WIDE COMPARED_TOGETHER

static inline uint32_t is_nonfinite(float x) { return (float_bits(x) & 0x7F800000u) == 0x7F800000u; }

/* Replaces what is not finite by zero on both sides, and counts it. */
static void drop_nonfinite(int n, float *a, float *b, comparison *c) {
    for (int i = 0; i < n; ++i) {
        const uint32_t bad_a = is_nonfinite(a[i]), bad_b = is_nonfinite(b[i]);
        const int same = (isnan(a[i]) && isnan(b[i])) || a[i] == b[i];
        c->nonfinite_a += bad_a;
        c->nonfinite_b += bad_b;
        if (!bad_a && !bad_b) continue;
        c->mismatched += !same;
        c->differing += !same;
        a[i] = b[i] = 0;
    }
}

/* Sums over WIDE elements, in binary64. */
typedef struct {
    double noise, energy_a, energy_b, product;
} sums;

/* Sum of WIDE values, by halves: loops of constant length, which compilers vectorize. Spoils `v`. */
static double total(float *v) {
#define FOLD(n) \
    for (int i = 0; i < n; ++i) v[i] += v[i + n];
    FOLD(128) FOLD(64) FOLD(32) FOLD(16) FOLD(8)
#undef FOLD
    return ((double)v[0] + v[1] + v[2] + v[3]) + ((double)v[4] + v[5] + v[6] + v[7]);
}

/* In binary32, for values whose squares neither vanish nor overflow. */
static sums quick_sums(const float *restrict a, const float *restrict b) {
    float v[WIDE];
    sums s;
    for (int i = 0; i < WIDE; ++i) v[i] = (a[i] - b[i]) * (a[i] - b[i]);
    s.noise = total(v);
    for (int i = 0; i < WIDE; ++i) v[i] = a[i] * a[i];
    s.energy_a = total(v);
    for (int i = 0; i < WIDE; ++i) v[i] = b[i] * b[i];
    s.energy_b = total(v);
    for (int i = 0; i < WIDE; ++i) v[i] = a[i] * b[i];
    s.product = total(v);
    return s;
}

static sums careful_sums(const float *a, const float *b) {
    sums s = {0};
    for (int i = 0; i < WIDE; ++i) {
        const double x = a[i], y = b[i];
        s.noise += (x - y) * (x - y);
        s.energy_a += x * x;
        s.energy_b += y * y;
        s.product += x * y;
    }
    return s;
}

/* WIDE finite elements; returns their noise. Maxima are those of magnitudes as integers, which have the same order. */
static double compare_wide(const float *restrict a, const float *restrict b, uint64_t *histogram, comparison *c) {
    int32_t error[WIDE], ratio[WIDE], largest = 0, relative = 0, differing = 0, big = 0;
    for (int i = 0; i < WIDE; ++i) error[i] = (int32_t)(float_bits(a[i] - b[i]) & 0x7FFFFFFFu);
    for (int i = 0; i < WIDE; ++i) {
        const uint32_t size = float_bits(a[i]) & 0x7FFFFFFFu;
        ratio[i] = (int32_t)float_bits(bits_float((uint32_t)error[i]) / bits_float(size ? size : 0x7F800000u));
    }
    for (int i = 0; i < WIDE; ++i) {
        const int32_t size = (int32_t)(float_bits(a[i]) & 0x7FFFFFFFu);
        differing += error[i] != 0;
        largest = error[i] > largest ? error[i] : largest;
        relative = ratio[i] > relative ? ratio[i] : relative;
        big = size > big ? size : big;
    }
    if (histogram)
        for (int i = 0; i < WIDE; ++i) ++histogram[error[i] >> 18];
    const float error_size = bits_float((uint32_t)largest), size = bits_float((uint32_t)big);
    const int normal = (error_size == 0 || error_size > 1e-12f) && error_size < 1e15f && size > 1e-12f && size < 1e15f;
    const sums s = normal ? quick_sums(a, b) : careful_sums(a, b);
    c->energy_a += s.energy_a;
    c->energy_b += s.energy_b;
    c->product += s.product;
    c->differing += differing;
    c->max_abs = fmax(c->max_abs, error_size);
    c->max_rel = fmax(c->max_rel, bits_float((uint32_t)relative));
    return s.noise;
}

/* Whether all of WIDE elements are finite on both sides. */
static int all_finite(const float *a, const float *b) {
    int32_t bad = 0;
    for (int i = 0; i < WIDE; ++i) bad += (int32_t)(is_nonfinite(a[i]) | is_nonfinite(b[i]));
    return !bad;
}

void FN(compare)(const float *a, const float *b, int64_t n, int64_t at, uint64_t *histogram, comparison *c) {
    for (int64_t i = 0; i < n; i += WIDE) {
        uint64_t *counted = i / WIDE % COUNTED_GROUPS == 0 ? histogram : NULL;
        const int count = (int)(n - i < WIDE ? n - i : WIDE);
        double noise;
        if (count == WIDE && all_finite(a + i, b + i)) {
            noise = compare_wide(a + i, b + i, counted, c);
        } else {
            float own_a[WIDE] = {0}, own_b[WIDE] = {0};
            memcpy(own_a, a + i, (size_t)count * sizeof *a);
            memcpy(own_b, b + i, (size_t)count * sizeof *b);
            drop_nonfinite(count, own_a, own_b, c);
            noise = compare_wide(own_a, own_b, counted, c);
        }
        c->noise += noise;
        if (noise > c->worst) {
            c->worst = noise;
            c->worst_at = at + i;
        }
    }
}
