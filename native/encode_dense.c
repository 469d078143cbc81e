/* Casts between F32 and the dense types, and the count of their non-finite values. */
#include "isa.h"
#include "kernels.h"
#include "numeric.h"

/* Binary32 to e4m3 (fn): nearest, ties to even; what rounds beyond 448 and infinities become NaN. */
static inline uint8_t f32_to_e4m3(float v) {
    const uint32_t w = float_bits(v), magnitude = w & 0x7FFFFFFFu;
    const uint32_t normal = (magnitude + 0x7FFFFu + (magnitude >> 20 & 1u)) >> 20;
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 16384.0f) - 0x46800000u; /* unit 2^-9 */
    const uint32_t code = magnitude < 0x3C800000u ? subnormal : normal - (120u << 3);
    return (uint8_t)(w >> 24 & 0x80u) | (uint8_t)(magnitude > 0x43E80000u ? 0x7Fu : code);
}

/* Binary32 to e5m2: nearest, ties to even; overflow to infinity; NaN to sign | 0x7E. */
static inline uint8_t f32_to_e5m2(float v) {
    const uint32_t w = float_bits(v), magnitude = w & 0x7FFFFFFFu;
    const uint32_t normal = (magnitude + 0xFFFFFu + (magnitude >> 21 & 1u)) >> 21;
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 128.0f) - 0x43000000u; /* unit 2^-16 */
    const uint32_t code = magnitude < 0x38800000u ? subnormal : normal - (112u << 2);
    return (uint8_t)(w >> 24 & 0x80u) | (uint8_t)(magnitude > 0x7F800000u ? 0x7Eu : MIN(code, 0x7Cu));
}

static inline float e4m3_to_f32(uint8_t h) {
    const uint32_t sign = (uint32_t)(h & 0x80) << 24, code = h & 0x7F;
    if (code == 0x7F) return bits_float(sign | 0x7FC00000u);
    return bits_float(sign | float_bits(bits_float(code << 20) * 0x1.0p+120f));
}

static inline float e5m2_to_f32(uint8_t h) { return f16_to_f32((uint16_t)(h << 8)); }

static inline uint64_t f32_to_f64_bits(float v) {
    const double wide = v;
    uint64_t bits;
    memcpy(&bits, &wide, 8);
    return bits;
}

static inline float f64_bits_to_f32(uint64_t bits) {
    double wide;
    memcpy(&wide, &bits, 8);
    return (float)wide;
}

/* Encode, decode and count of one dense type stored in an unsigned integer of any alignment.
 * A value is not finite when its exponent bits are all set, which `code & mask >= limit` says. */
#define DENSE(type, word, FROM_F32, TO_F32, mask, limit)                                                        \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {         \
        (void)weights;                                                                                          \
        for (int64_t i = 0; i < rows * row; ++i) {                                                              \
            const word value = FROM_F32(x[i]);                                                                  \
            memcpy(out + i * (int64_t)sizeof value, &value, sizeof value);                                      \
        }                                                                                                       \
    }                                                                                                           \
    void FN(decode_##type)(const uint8_t *data, float *out, int64_t n) {                                            \
        for (int64_t i = 0; i < n; ++i) {                                                                       \
            word value;                                                                                         \
            memcpy(&value, data + i * (int64_t)sizeof value, sizeof value);                                     \
            out[i] = TO_F32(value);                                                                             \
        }                                                                                                       \
    }                                                                                                           \
    int64_t FN(nonfinite_##type)(const uint8_t *data, int64_t n) {                                                  \
        int64_t count = 0;                                                                                      \
        for (int64_t i = 0; i < n; ++i) {                                                                       \
            word value;                                                                                         \
            memcpy(&value, data + i * (int64_t)sizeof value, sizeof value);                                     \
            count += (value & (word)(mask)) >= (word)(limit);                                                   \
        }                                                                                                       \
        return count;                                                                                           \
    }

DENSE(f32, uint32_t, float_bits, bits_float, 0x7FFFFFFFu, 0x7F800000u)
DENSE(f64, uint64_t, f32_to_f64_bits, f64_bits_to_f32, 0x7FFFFFFFFFFFFFFFu, 0x7FF0000000000000u)
#if defined(__F16C__)
DENSE(f16_plain, uint16_t, f32_to_f16, f16_to_f32, 0x7FFF, 0x7C00)
#else
DENSE(f16, uint16_t, f32_to_f16, f16_to_f32, 0x7FFF, 0x7C00)
#endif
DENSE(bf16, uint16_t, f32_to_bf16, bf16_to_f32, 0x7FFF, 0x7F80)
DENSE(f8_e4m3, uint8_t, f32_to_e4m3, e4m3_to_f32, 0x7F, 0x7F)
DENSE(f8_e5m2, uint8_t, f32_to_e5m2, e5m2_to_f32, 0x7F, 0x7C)

#if defined(__F16C__)
/* The processor's own conversion, which differs in what it makes of NaN. */
#include <immintrin.h>

void FN(encode_f16)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {
    const int64_t n = rows * row, whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
        if (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q))) {
            uint16_t each[8];
            for (int k = 0; k < 8; ++k) each[k] = f32_to_f16(x[i + k]);
            h = _mm_loadu_si128((const __m128i *)each);
        }
        _mm_storeu_si128((__m128i *)(out + 2 * i), h);
    }
    FN(encode_f16_plain)(x + whole, out + 2 * whole, 1, n - whole, weights);
}

void FN(decode_f16)(const uint8_t *data, float *out, int64_t n) {
    const int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(data + 2 * i))));
    FN(decode_f16_plain)(data + 2 * whole, out + whole, n - whole);
}

int64_t FN(nonfinite_f16)(const uint8_t *data, int64_t n) { return FN(nonfinite_f16_plain)(data, n); }
#endif

float FN(largest)(const float *x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = (int32_t)(float_bits(x[i]) & 0x7FFFFFFFu);
        most = bits > most ? bits : most;
    }
    return bits_float((uint32_t)most);
}
