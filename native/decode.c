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
        uint8_t q[16]; /* a copy: bytes alias everything, so that those in the block had to be read again */
        memcpy(q, b->qs + 32 * (j / 8) + 16 * (j % 2), sizeof q);
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

/* A super-block of lattice points, gathered before any arithmetic: the loops over it then vectorize. */
typedef struct {
    int8_t values[SUPER], change[SUPER]; /* change: -1 where the value is negated, or its shift in eighths */
    float step[SUPER / 16];
} lattice_points;

static inline void gather(lattice_points *p, int at, int count, const int8_t *values, const int8_t *change) {
    memcpy(p->values + at, values, (size_t)count);
    memcpy(p->change + at, change, (size_t)count);
}

static inline void write_signed(const lattice_points *p, float *out) {
    for (int s = 0; s < SUPER / 16; ++s)
        for (int j = 16 * s; j < 16 * s + 16; ++j) out[j] = p->step[s] * (float)((p->values[j] ^ p->change[j]) - p->change[j]);
}

DECODE(iq2_xxs, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int g = 0; g < 8; ++g) {
        uint16_t q[4];
        memcpy(q, &b->qs[4 * g], sizeof q); /* blocks are not aligned */
        const uint32_t rest = q[2] | (uint32_t)q[3] << 16;
        p.step[2 * g] = p.step[2 * g + 1] = d * (0.5f + (float)(rest >> 28)) * 0.25f;
        for (int k = 0; k < 4; ++k)
            gather(&p, 32 * g + 8 * k, 8, VALUES_IQ2_XXS[q[k / 2] >> 8 * (k % 2) & 255], EVEN_NEGATED[rest >> 7 * k & 127]);
    }
    write_signed(&p, out);
})

DECODE(iq2_xs, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int s = 0; s < 16; ++s) p.step[s] = d * (0.5f + (float)(b->scales[s / 2] >> 4 * (s % 2) & 15)) * 0.25f;
    for (int k = 0; k < 32; ++k) gather(&p, 8 * k, 8, VALUES_IQ2_XS[b->qs[k] & 511], EVEN_NEGATED[b->qs[k] >> 9]);
    write_signed(&p, out);
})

DECODE(iq2_s, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int s = 0; s < 16; ++s) p.step[s] = d * (0.5f + (float)(b->scales[s / 2] >> 4 * (s % 2) & 15)) * 0.25f;
    for (int k = 0; k < 32; ++k)
        gather(&p, 8 * k, 8, VALUES_IQ2_S[b->qs[k] | (b->qh[k / 4] >> 2 * (k % 4) & 3) << 8], NEGATED[b->signs[k]]);
    write_signed(&p, out);
})

DECODE(iq3_xxs, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int g = 0; g < 8; ++g) {
        const uint32_t rest = b->scales_and_signs[g];
        p.step[2 * g] = p.step[2 * g + 1] = d * (0.5f + (float)(rest >> 28)) * 0.5f;
        for (int k = 0; k < 8; ++k)
            gather(&p, 32 * g + 4 * k, 4, VALUES_IQ3_XXS[b->qs[8 * g + k]], EVEN_NEGATED[rest >> 7 * (k / 2) & 127] + 4 * (k % 2));
    }
    write_signed(&p, out);
})

DECODE(iq3_s, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int s = 0; s < 16; ++s) p.step[s] = d * (float)(1 + 2 * (b->scales[s / 4] >> 4 * (s / 2 % 2) & 15));
    for (int k = 0; k < 64; ++k)
        gather(&p, 4 * k, 4, VALUES_IQ3_S[b->qs[k] | (b->qh[k / 8] >> k % 8 & 1) << 8], NEGATED[b->signs[k / 2]] + 4 * (k % 2));
    write_signed(&p, out);
})

/* Shifts of the ternary lattice by +-IQ1_DELTA, in eighths. */
static const int8_t SHIFTS[2][8] = {{1, 1, 1, 1, 1, 1, 1, 1}, {-1, -1, -1, -1, -1, -1, -1, -1}};

static inline void write_shifted(const lattice_points *p, float *out) {
    for (int s = 0; s < SUPER / 16; ++s)
        for (int j = 16 * s; j < 16 * s + 16; ++j) out[j] = p->step[s] * ((float)(8 * p->values[j] + p->change[j]) * 0.125f);
}

DECODE(iq1_s, SUPER, {
    const float d = f16_to_f32(b->d);
    lattice_points p;
    for (int g = 0; g < 8; ++g) {
        const int high = b->qh[g];
        p.step[2 * g] = p.step[2 * g + 1] = d * (float)(2 * (high >> 12 & 7) + 1);
        for (int k = 0; k < 4; ++k)
            gather(&p, 32 * g + 8 * k, 8, VALUES_IQ1[b->qs[4 * g + k] | (high >> 3 * k & 7) << 8], SHIFTS[high >> 15]);
    }
    write_shifted(&p, out);
})

DECODE(iq1_m, SUPER, {
    uint16_t s[4];
    memcpy(s, b->scales, sizeof s);
    const float d = f16_to_f32((uint16_t)(s[0] >> 12 | (s[1] >> 8 & 0x00F0) | (s[2] >> 4 & 0x0F00) | (s[3] & 0xF000)));
    lattice_points p;
    for (int i = 0; i < 16; ++i) p.step[i] = d * (float)(2 * (s[i / 4] >> 3 * (i % 4) & 7) + 1);
    for (int k = 0; k < 32; ++k) {
        const int high = b->qh[k / 2] >> 4 * (k % 2);
        gather(&p, 8 * k, 8, VALUES_IQ1[b->qs[k] | (high & 7) << 8], SHIFTS[high >> 3 & 1]);
    }
    write_shifted(&p, out);
})
