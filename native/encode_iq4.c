/* IQ4_NL and IQ4_XS: four-bit codes of sixteen unevenly spaced values.
 *
 * Follows quantize_row_iq4_nl_impl of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#include <stdbool.h>

#include "isa.h"
#include "kernels.h"
#include "pack_iq4.h"

/* Scale of 32 elements: 1 + 15 candidates around the one that maps the largest element to an end. */
static float find_scale(const float *x, const float *given, float mean_square) {
    float w[32], magnitude;
    if (given) importance(32, x, given, mean_square, w);
    for (int i = 0; !given && i < 32; ++i) w[i] = x[i] * x[i];
    const float max = peak(32, x, &magnitude);
    if (magnitude < GROUP_EPS) return 0.0f;
    float d = 0, best = 0;
    for (int step = -1; step <= 14; ++step) {
        const bool first = step < 0;
        const float inverse = first ? 1 / (-max / IQ4_VALUES[0]) : (step - 7 + IQ4_VALUES[0]) / max;
        float sumqx = 0, sumq2 = 0;
        for (int i = 0; i < 32; ++i) {
            const float q = IQ4_VALUES[nearest_iq4(inverse * x[i])];
            sumqx += w[i] * q * x[i];
            sumq2 += w[i] * q * q;
        }
        if (first) {
            d = sumq2 > 0 ? sumqx / sumq2 : 0.0f;
            best = d * sumqx;
        } else if (sumq2 > 0 && sumqx * sumqx > best * sumq2) {
            d = sumqx / sumq2;
            best = d * sumqx;
        }
    }
    return d;
}

void FN(encode_iq4_nl)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {
    block_iq4_nl *y = (block_iq4_nl *)out;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < row; i += 32, x += 32, ++y) {
            const float mean_square = sum_squares(32, x) * (2.0f / 32);
            store_iq4_nl(x, find_scale(x, weights ? weights + i : NULL, mean_square), y);
        }
}

void FN(encode_iq4_xs)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {
    block_iq4_xs *y = (block_iq4_xs *)out;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < row; i += SUPER, x += SUPER, ++y) {
            const float mean_square = sum_squares(SUPER, x) * (2.0f / SUPER);
            float scale[8];
            for (int j = 0; j < 8; ++j)
                scale[j] = find_scale(x + 32 * j, weights ? weights + i + 32 * j : NULL, mean_square);
            store_iq4_xs(x, scale, y);
        }
}
