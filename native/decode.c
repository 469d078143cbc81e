/* Decoding of every block type: plain loops that a compiler vectorizes; no sums, so any width is exact.
 *
 * Follows dequantize_row_* of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#include "blocks.h"
#include "grids.h"
#include "isa.h"
#include "kernels.h"
#include "numeric.h"

/* Walks blocks; the body writes `elements` floats to `out` from `*b`. */
#define DECODE(type, elements, ...)                                                             \
    void FN(decode_##type)(const uint8_t *data, float *out, int64_t n) {                            \
        const block_##type *b = (const block_##type *)data;                                     \
        for (int64_t i = 0; i < n; i += elements, ++b, out += elements) __VA_ARGS__             \
    }

DECODE(q1_0, 128, {
    const uint32_t d = float_bits(f16_to_f32(b->d));
    for (int j = 0; j < 16; ++j)
        for (uint32_t k = 0; k < 8; ++k) out[8 * j + k] = bits_float(d ^ (~((uint32_t)b->qs[j] >> k) & 1u) << 31);
})

DECODE(q2_0, 64, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; ++j)
        for (int k = 0; k < 4; ++k) out[4 * j + k] = (float)((b->qs[j] >> 2 * k & 3) - 1) * d;
})

DECODE(q4_0, 32, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; ++j) {
        out[j] = (float)((b->qs[j] & 15) - 8) * d;
        out[j + 16] = (float)((b->qs[j] >> 4) - 8) * d;
    }
})

DECODE(q4_1, 32, {
    const float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    for (int j = 0; j < 16; ++j) {
        out[j] = (float)(b->qs[j] & 15) * d + m;
        out[j + 16] = (float)(b->qs[j] >> 4) * d + m;
    }
})

/* The fifth bits of 32 codes, and that of code `j` as 0 or 16. */
static inline uint32_t fifth_bits(const uint8_t *qh) {
    uint32_t all;
    memcpy(&all, qh, 4);
    return all;
}

static inline int fifth_bit(uint32_t all, uint32_t j) { return (int)((all >> j & 1u) << 4); }

DECODE(q5_0, 32, {
    const float d = f16_to_f32(b->d);
    const uint32_t high = fifth_bits(b->qh);
    for (int j = 0; j < 16; ++j) {
        out[j] = (float)(((b->qs[j] & 15) | fifth_bit(high, (uint32_t)j)) - 16) * d;
        out[j + 16] = (float)((b->qs[j] >> 4 | fifth_bit(high, (uint32_t)j + 16)) - 16) * d;
    }
})

DECODE(q5_1, 32, {
    const float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    const uint32_t high = fifth_bits(b->qh);
    for (int j = 0; j < 16; ++j) {
        out[j] = (float)((b->qs[j] & 15) | fifth_bit(high, (uint32_t)j)) * d + m;
        out[j + 16] = (float)(b->qs[j] >> 4 | fifth_bit(high, (uint32_t)j + 16)) * d + m;
    }
})

DECODE(q8_0, 32, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 32; ++j) out[j] = (float)b->qs[j] * d;
})

DECODE(q8_1, 32, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 32; ++j) out[j] = (float)b->qs[j] * d;
})

DECODE(q8_k, SUPER, {
    const float d = b->d;
    for (int j = 0; j < SUPER; ++j) out[j] = d * (float)b->qs[j];
})

DECODE(mxfp4, 32, {
    const float d = e8m0_half_to_f32(b->e);
    for (int j = 0; j < 16; ++j) {
        out[j] = (float)FP4_VALUES[b->qs[j] & 15] * d;
        out[j + 16] = (float)FP4_VALUES[b->qs[j] >> 4] * d;
    }
})

DECODE(nvfp4, 64, {
    for (int s = 0; s < 4; ++s) {
        const float d = ue4m3_half_to_f32(b->d[s]);
        for (int j = 0; j < 8; ++j) {
            out[16 * s + j] = (float)FP4_VALUES[b->qs[8 * s + j] & 15] * d;
            out[16 * s + j + 8] = (float)FP4_VALUES[b->qs[8 * s + j] >> 4] * d;
        }
    }
})

/* Trit `i` of a byte that holds five as a fraction of 3^5, minus one. */
static inline int trit(uint8_t packed, int i) {
    static const uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    return ((uint8_t)(packed * POWERS[i]) * 3 >> 8) - 1;
}

DECODE(tq1_0, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int t = 0; t < 5; ++t)
        for (int j = 0; j < 32; ++j) out[32 * t + j] = (float)trit(b->qs[j], t) * d;
    for (int t = 0; t < 5; ++t)
        for (int j = 0; j < 16; ++j) out[160 + 16 * t + j] = (float)trit(b->qs[32 + j], t) * d;
    for (int t = 0; t < 4; ++t)
        for (int j = 0; j < 4; ++j) out[240 + 4 * t + j] = (float)trit(b->qh[j], t) * d;
})

DECODE(tq2_0, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 4; ++k)
            for (int j = 0; j < 32; ++j)
                out[128 * half + 32 * k + j] = (float)((b->qs[32 * half + j] >> 2 * k & 3) - 1) * d;
})

DECODE(q2_k, SUPER, {
    const float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * (float)(b->scales[j] & 15), min = dmin * (float)(b->scales[j] >> 4);
        const uint8_t *q = b->qs + 32 * (j / 8) + 16 * (j % 2);
        const int shift = j % 8 / 2 * 2;
        for (int l = 0; l < 16; ++l) out[16 * j + l] = scale * (float)(q[l] >> shift & 3) - min;
    }
})

DECODE(q3_k, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * (float)unpack_scale_q3(b->scales, j);
        const uint8_t *q = b->qs + 32 * (j / 8) + 16 * (j % 2), *high = b->hmask + 16 * (j % 2);
        const int shift = j % 8 / 2 * 2, bit = j / 2;
        for (int l = 0; l < 16; ++l)
            out[16 * j + l] = scale * (float)((q[l] >> shift & 3) + (high[l] >> bit & 1) * 4 - 4);
    }
})

DECODE(q4_k, SUPER, {
    const float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        unpack_scale_min(b->scales, j, &scale, &min);
        const float step = d * (float)scale, offset = dmin * (float)min;
        const uint8_t *q = b->qs + 32 * (j / 2);
        const int shift = j % 2 * 4;
        for (int l = 0; l < 32; ++l) out[32 * j + l] = step * (float)(q[l] >> shift & 15) - offset;
    }
})

DECODE(q5_k, SUPER, {
    const float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        unpack_scale_min(b->scales, j, &scale, &min);
        const float step = d * (float)scale, offset = dmin * (float)min;
        const uint8_t *q = b->qs + 32 * (j / 2);
        const int shift = j % 2 * 4;
        for (int l = 0; l < 32; ++l)
            out[32 * j + l] = step * (float)((q[l] >> shift & 15) + (b->qh[l] >> j & 1) * 16) - offset;
    }
})

DECODE(q6_k, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * (float)b->scales[j];
        const int half = j / 8, group = j % 8 / 2, at = 16 * (j % 2);
        const uint8_t *low = b->ql + 64 * half + 32 * (group % 2) + at, *high = b->qh + 32 * half + at;
        const int shift = group / 2 * 4;
        for (int l = 0; l < 16; ++l)
            out[16 * j + l] = scale * (float)(((low[l] >> shift & 15) | (high[l] >> 2 * group & 3) << 4) - 32);
    }
})

DECODE(iq4_nl, 32, {
    const float d = f16_to_f32(b->d);
    for (int j = 0; j < 16; ++j) {
        out[j] = d * (float)IQ4_VALUES[b->qs[j] & 15];
        out[j + 16] = d * (float)IQ4_VALUES[b->qs[j] >> 4];
    }
})

DECODE(iq4_xs, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int g = 0; g < 8; ++g) {
        const int scale = (b->scales_l[g / 2] >> 4 * (g % 2) & 15) | (b->scales_h >> 2 * g & 3) << 4;
        const float step = d * (float)(scale - 32);
        for (int j = 0; j < 16; ++j) {
            out[32 * g + j] = step * (float)IQ4_VALUES[b->qs[16 * g + j] & 15];
            out[32 * g + j + 16] = step * (float)IQ4_VALUES[b->qs[16 * g + j] >> 4];
        }
    }
})

/* `count` values of a grid point times `step`, negated where `signs` has a bit. */
static inline void write_signed(int count, const int8_t *values, float step, int signs, float *out) {
    for (int j = 0; j < count; ++j) out[j] = step * (float)values[j] * (signs >> j & 1 ? -1.0f : 1.0f);
}

DECODE(iq2_xxs, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int g = 0; g < 8; ++g) {
        uint16_t q[4];
        memcpy(q, &b->qs[4 * g], sizeof q); /* blocks are not aligned */
        const uint32_t rest = q[2] | (uint32_t)q[3] << 16;
        const float step = d * (0.5f + (float)(rest >> 28)) * 0.25f;
        for (int k = 0; k < 4; ++k)
            write_signed(8, VALUES_IQ2_XXS[q[k / 2] >> 8 * (k % 2) & 255], step, even_signs(rest >> 7 * k & 127),
                         out + 32 * g + 8 * k);
    }
})

DECODE(iq2_xs, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int k = 0; k < 32; ++k) {
        const float step = d * (0.5f + (float)(b->scales[k / 4] >> 4 * (k / 2 % 2) & 15)) * 0.25f;
        write_signed(8, VALUES_IQ2_XS[b->qs[k] & 511], step, even_signs(b->qs[k] >> 9), out + 8 * k);
    }
})

DECODE(iq2_s, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int k = 0; k < 32; ++k) {
        const float step = d * (0.5f + (float)(b->scales[k / 4] >> 4 * (k / 2 % 2) & 15)) * 0.25f;
        const int point = b->qs[k] | (b->qh[k / 4] >> 2 * (k % 4) & 3) << 8;
        write_signed(8, VALUES_IQ2_S[point], step, b->signs[k], out + 8 * k);
    }
})

DECODE(iq3_xxs, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int g = 0; g < 8; ++g) {
        const uint32_t rest = b->scales_and_signs[g];
        const float step = d * (0.5f + (float)(rest >> 28)) * 0.5f;
        for (int k = 0; k < 8; ++k)
            write_signed(4, VALUES_IQ3_XXS[b->qs[8 * g + k]], step, even_signs(rest >> 7 * (k / 2) & 127) >> 4 * (k % 2),
                         out + 32 * g + 4 * k);
    }
})

DECODE(iq3_s, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int k = 0; k < 64; ++k) {
        const float step = d * (float)(1 + 2 * (b->scales[k / 16] >> 4 * (k / 8 % 2) & 15));
        const int point = b->qs[k] | (b->qh[k / 8] >> k % 8 & 1) << 8;
        write_signed(4, VALUES_IQ3_S[point], step, b->signs[k / 2] >> 4 * (k % 2), out + 4 * k);
    }
})

/* Eight values of the ternary grid, shifted by `delta`. */
static inline void write_shifted(const int8_t *values, float step, float delta, float *out) {
    for (int j = 0; j < 8; ++j) out[j] = step * ((float)values[j] + delta);
}

DECODE(iq1_s, SUPER, {
    const float d = f16_to_f32(b->d);
    for (int k = 0; k < 32; ++k) {
        const int high = b->qh[k / 4];
        const float step = d * (float)(2 * (high >> 12 & 7) + 1);
        write_shifted(VALUES_IQ1[b->qs[k] | (high >> 3 * (k % 4) & 7) << 8], step,
                      high & 0x8000 ? -IQ1_DELTA : IQ1_DELTA, out + 8 * k);
    }
})

DECODE(iq1_m, SUPER, {
    uint16_t s[4];
    memcpy(s, b->scales, sizeof s);
    const float d = f16_to_f32((uint16_t)(s[0] >> 12 | (s[1] >> 8 & 0x00F0) | (s[2] >> 4 & 0x0F00) | (s[3] & 0xF000)));
    for (int k = 0; k < 32; ++k) {
        const int high = b->qh[k / 2] >> 4 * (k % 2);
        const float step = d * (float)(2 * (s[k / 8] >> 3 * (k / 2 % 4) & 7) + 1);
        write_shifted(VALUES_IQ1[b->qs[k] | (high & 7) << 8], step, high & 8 ? -IQ1_DELTA : IQ1_DELTA, out + 8 * k);
    }
})
