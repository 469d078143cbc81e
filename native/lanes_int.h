/* Vectors of WIDTH integers, and tables that they index; beside lanes.h, in the same three ways. */
#ifndef CONVERTER_LANES_INT_H
#define CONVERTER_LANES_INT_H

#include "lanes.h"

/* truncated: towards zero, of what fits or is NaN; a NaN gives a multiple of 256. store_f16: as f32_to_f16, but a
 * NaN gives any NaN. sign_bits: the lanes below zero. differ: the lanes that are not the same. store_bytes: the
 * sixteen integers of 16 / WIDTH vectors, which are in 0 .. 255, as bytes. */

#define TABLE (WIDTH > 8 ? WIDTH : 8) /* floats of a table; an index counts modulo this */

#if defined(__AVX512F__)

typedef __m512i vi;
static inline vi splat_int(int32_t v) { return _mm512_set1_epi32(v); }
static inline void store_int(int32_t *p, vi v) { _mm512_storeu_si512(p, v); }
static inline vi load_int(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vi load_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline vi bits_of(vf v) { return _mm512_castps_si512(v); }
static inline vi plus(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi mask_int(vi a, int32_t m) { return _mm512_and_si512(a, splat_int(m)); }
#define SHIFT_LEFT(v, n) _mm512_slli_epi32(v, n)
#define SHIFT_RIGHT(v, n) _mm512_srli_epi32(v, n)
static inline vf look_up(const float *table, vi at) { return _mm512_permutexvar_ps(at, load(table)); }
static inline vi truncated(vf v) { return _mm512_cvttps_epi32(v); }
static inline void store_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline uint32_t differ(vi a, vi b) { return _mm512_cmpneq_epi32_mask(a, b); }
static inline uint32_t sign_bits(vi v) { return (uint32_t)_mm512_movepi32_mask(v); }
static inline void store_bytes(uint8_t *p, const vi *v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v[0])); }
static inline float least(vf v) { return _mm512_reduce_min_ps(v); }

#elif defined(__AVX2__)

typedef __m256i vi;
static inline vi splat_int(int32_t v) { return _mm256_set1_epi32(v); }
static inline void store_int(int32_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline vi load_int(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi load_u16(const uint16_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline vi bits_of(vf v) { return _mm256_castps_si256(v); }
static inline vi plus(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi mask_int(vi a, int32_t m) { return _mm256_and_si256(a, splat_int(m)); }
#define SHIFT_LEFT(v, n) _mm256_slli_epi32(v, n)
#define SHIFT_RIGHT(v, n) _mm256_srli_epi32(v, n)
static inline vf look_up(const float *table, vi at) { return _mm256_permutevar8x32_ps(load(table), at); }
static inline vi truncated(vf v) { return _mm256_cvttps_epi32(v); }
static inline void store_f16(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline uint32_t sign_bits(vi v) { return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(v)); }
static inline uint32_t differ(vi a, vi b) { return sign_bits(_mm256_cmpeq_epi32(a, b)) ^ 255; }
static inline void store_bytes(uint8_t *p, const vi *v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v[0], v[1]), 0xD8);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline float least(vf v) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_min_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}

#else

typedef int32_t vi __attribute__((vector_size(16)));
static inline vi splat_int(int32_t v) { return (vi){v, v, v, v}; }
static inline void store_int(int32_t *p, vi v) { memcpy(p, &v, sizeof v); }
static inline vi load_int(const int32_t *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline vi load_u16(const uint16_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
static inline vi bits_of(vf v) { return (vi)v; }
/* Sums and shifts wrap, as those of the other instruction sets do. */
typedef uint32_t wrapping __attribute__((vector_size(16)));
static inline vi plus(vi a, vi b) { return (vi)((wrapping)a + (wrapping)b); }
static inline vi mask_int(vi a, int32_t m) { return a & m; }
#define SHIFT_LEFT(v, n) ((vi)((wrapping)(v) << (n)))
#define SHIFT_RIGHT(v, n) ((v) >> (n))
static inline vf look_up(const float *table, vi at) {
    return (vf){table[at[0] & 7], table[at[1] & 7], table[at[2] & 7], table[at[3] & 7]};
}
static inline vi truncated(vf v) { return __builtin_convertvector(pick(equal(v, v), v, splat(0.0f)), vi); }
static inline void store_f16(uint16_t *p, vf v) {
    for (int i = 0; i < WIDTH; ++i) p[i] = f32_to_f16(v[i]);
}
static inline uint32_t differ(vi a, vi b) { return bits(a != b); }
static inline uint32_t sign_bits(vi v) { return bits(v >> 31); }
static inline void store_bytes(uint8_t *p, const vi *v) {
    typedef uint8_t four __attribute__((vector_size(4)));
    for (int i = 0; i < 4; ++i) {
        const four bytes = __builtin_convertvector(v[i], four);
        memcpy(p + 4 * i, &bytes, 4);
    }
}
static inline float least(vf v) {
    const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
}

#endif

#endif
