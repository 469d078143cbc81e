/* From scales to the bytes of IQ4_NL and IQ4_XS blocks.
 *
 * Follows quantize_row_iq4_nl_impl of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#ifndef CONVERTER_PACK_IQ4_H
#define CONVERTER_PACK_IQ4_H

#include "blocks.h"
#include "search.h"

/* Midpoints of IQ4_VALUES: code = number of midpoints not above the value. */
static const float IQ4_MIDDLES[15] = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f,
                                      7.0f,    19.0f,  31.5f,  45.5f,  61.0f,  79.0f,  101.0f};

/* Code of the value nearest to v; the upper one at a midpoint. NaN gives the last, as in ggml. */
static inline uint8_t nearest_iq4(float v) {
    int code = 0;
    for (int i = 0; i < 15; ++i) code += !(v < IQ4_MIDDLES[i]);
    return (uint8_t)code;
}

static inline void pack_iq4(const float *x, float inverse, uint8_t *qs) {
    for (int i = 0; i < 16; ++i)
        qs[i] = (uint8_t)(nearest_iq4(inverse * x[i]) | nearest_iq4(inverse * x[i + 16]) << 4);
}

static inline void store_iq4_nl(const float *x, float scale, block_iq4_nl *y) {
    y->d = f32_to_f16(scale);
    pack_iq4(x, scale ? 1 / scale : 0, y->qs);
}

static inline void store_iq4_xs(const float *x, const float *scale, block_iq4_xs *y) {
    float magnitude;
    const float d = -peak(8, scale, &magnitude) / 32, inverse = d ? 1 / d : 0.0f;
    uint16_t high = 0;
    y->d = f32_to_f16(d);
    memset(y->scales_l, 0, sizeof y->scales_l);
    for (int j = 0; j < 8; ++j) {
        const int l = clamp(nearest_int(inverse * scale[j]), -32, 31);
        const float step = d * l;
        pack_iq4(x + 32 * j, step ? 1 / step : 0.0f, y->qs + 16 * j);
        y->scales_l[j / 2] |= (uint8_t)(((l + 32) & 15) << 4 * (j % 2));
        high |= (uint16_t)((l + 32) >> 4 << 2 * j);
    }
    y->scales_h = high;
}

#endif
