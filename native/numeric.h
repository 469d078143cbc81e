/* Conversions between number formats, each with the rounding of ggml.
 *
 * Follows ggml-impl.h of ggml (MIT, see LICENSE.ggml). Every function is total: NaN, infinities
 * and out-of-range values give the result that ggml gives on x86-64.
 */
#ifndef CONVERTER_NUMERIC_H
#define CONVERTER_NUMERIC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline uint32_t float_bits(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

/* Binary16 to binary32, exact; a signalling NaN becomes quiet. */
static inline float f16_to_f32(uint16_t h) {
    const uint32_t w = (uint32_t)h << 16, sign = w & 0x80000000u, twice = w + w;
    const float normal = bits_float((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    const float subnormal = bits_float((twice >> 17) | (126u << 23)) - 0.5f;
    return bits_float(sign | (twice < (1u << 27) ? float_bits(subnormal) : float_bits(normal)));
}

/* Binary32 to binary16: nearest, ties to even; overflow to infinity; every NaN to sign | 0x7E00. */
static inline uint16_t f32_to_f16(float v) {
    const uint32_t w = float_bits(v), twice = w + w;
    const uint32_t exponent = MAX(twice & 0xFF000000u, 0x71000000u);
    const float scaled = (fabsf(v) * 0x1.0p+112f) * 0x1.0p-110f;
    const uint32_t bits = float_bits(bits_float((exponent >> 1) + 0x07800000u) + scaled);
    const uint32_t magnitude = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
    return (uint16_t)((w & 0x80000000u) >> 16 | (twice > 0xFF000000u ? 0x7E00u : magnitude));
}

static inline float bf16_to_f32(uint16_t h) { return bits_float((uint32_t)h << 16); }

/* Binary32 to bfloat16: nearest, ties to even; a NaN keeps its upper bits and becomes quiet. */
static inline uint16_t f32_to_bf16(float v) {
    const uint32_t w = float_bits(v);
    const uint32_t rounded = (w + 0x7FFFu + (w >> 16 & 1u)) >> 16;
    return (uint16_t)((w & 0x7FFFFFFFu) > 0x7F800000u ? (w >> 16 | 64u) : rounded);
}

/* Half of 2^(e-127): the scale of MXFP4, whose code values are stored doubled. */
static inline float e8m0_half_to_f32(uint8_t e) { return bits_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

/* Half of an unsigned e4m3 number: the scale of NVFP4. 0x7F (NaN) counts as zero. */
static inline float ue4m3_half_to_f32(uint8_t e) {
    if (e == 0 || e == 0x7F) return 0.0f;
    const int exponent = e >> 3 & 15, mantissa = e & 7;
    return exponent == 0 ? (float)mantissa * 0x1.0p-10f
                         : (1.0f + (float)mantissa / 8.0f) * bits_float((uint32_t)(exponent - 8 + 127) << 23);
}

/* Binary32 to unsigned e4m3: ties away from zero, saturates at 448, negative and NaN to zero. */
static inline uint8_t f32_to_ue4m3(float v) {
    if (!(v > 0.0f)) return 0;
    v = MIN(v, 448.0f);
    const uint32_t bits = float_bits(v);
    const int exponent = (int)(bits >> 23 & 0xFF) - 127 + 7;
    if (exponent <= 0) return (uint8_t)MIN(7, (int)(v * 512.0f + 0.5f));
    if (exponent >= 15) return 0x7E;
    const int code = (exponent << 3 | (int)(bits >> 20 & 7)) + (int)(bits >> 19 & 1);
    return (uint8_t)(code >= 0x78 ? 0x7E : code);
}

/* Nearest integer, ties to even, of |v| < 2^22; beyond that the low bits of the sum, as in ggml. */
static inline int nearest_int(float v) {
    return (int)(float_bits(v + 12582912.0f) & 0x007FFFFFu) - 0x00400000;
}

/* Truncation as cvttss2si does it: INT32_MIN for NaN and what does not fit. */
static inline int32_t truncate(float v) {
    return v >= -2147483648.0f && v < 2147483648.0f ? (int32_t)v : INT32_MIN;
}

/* roundf (ties away from zero), then truncate(). */
static inline int32_t round_away(float v) {
    const int32_t whole = truncate(v);
    if (whole == INT32_MIN) return whole;
    const float rest = v - (float)whole; /* exact */
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* The sum of eight lanes, always in this order. */
static inline float sum_lanes(const float *v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static inline int clamp(int v, int low, int high) { return MAX(low, MIN(high, v)); }

#endif
