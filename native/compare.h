/* How far two arrays of floats are apart, in one pass over both. */
#ifndef CONVERTER_COMPARE_H
#define CONVERTER_COMPARE_H

#include <stdint.h>

#define COMPARED_TOGETHER 256
#define ERROR_BUCKETS 8192 /* of |error|: exponent and five bits of mantissa, so each is at most 1/32 wide */

/* Sums are over the elements that are finite on both sides. */
typedef struct {
    double noise, energy_a, energy_b, product; /* of (a - b)^2, a^2, b^2, a * b */
    double max_abs, max_rel;                   /* max_rel: where a is not 0 */
    double worst;                              /* largest noise of COMPARED_TOGETHER elements */
    int64_t worst_at, differing;               /* their first element (-1: none differ); elements that differ */
    int64_t nonfinite_a, nonfinite_b, mismatched; /* mismatched: not finite on one side, or differently so */
} comparison;

#define COUNTED_GROUPS 4 /* the histogram takes one group in so many: counting costs as much as all sums */

/* Adds the comparison of `n` elements to `*c`, and |error| to the `histogram` of ERROR_BUCKETS unless NULL. `at` is the
 * number of the first element. */
typedef void compare_fn(const float *a, const float *b, int64_t n, int64_t at, uint64_t *histogram, comparison *c);

#endif
