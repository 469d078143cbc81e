/* Vectors of WIDTH floats in which every lane does what scalar code would do, in the same order.
 *
 * + - * / are those of the compiler's vector extension; what it lacks is below, once for AVX-512, once for
 * AVX2 and once in plain vector extensions (SSE2, NEON). No operation here rounds differently from its
 * scalar twin (through_f16 makes other NaNs); vmin and vmax are `a < b ? a : b` and `a > b ? a : b`, NaN included.
 */
#ifndef CONVERTER_LANES_H
#define CONVERTER_LANES_H

#include "numeric.h"

#if defined(__AVX512F__)

#include <immintrin.h>
#define WIDTH 16
typedef __m512 vf;
typedef __mmask16 vm;
static inline vf splat(float v) { return _mm512_set1_ps(v); }
static inline vf load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vabs(vf a) { return _mm512_abs_ps(a); }
static inline vf vsqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vm less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vm equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline vf pick(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
static inline vm both(vm a, vm b) { return a & b; }
static inline vm either(vm a, vm b) { return a | b; }
static inline vm inverse_of(vm a) { return (vm)~a; }
static inline uint32_t bits(vm m) { return m; }
static inline float largest_of(vf a) { return _mm512_reduce_max_ps(a); } /* no NaN in `a` */
static inline vf toward_zero(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline void store_truncated(int32_t *p, vf v) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(v)); }
static inline vf through_f16(vf v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }

#elif defined(__AVX2__)

#include <immintrin.h>
#define WIDTH 8
typedef __m256 vf;
typedef __m256 vm;
static inline vf splat(float v) { return _mm256_set1_ps(v); }
static inline vf load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf vsqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vm less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline vm equal(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline vf pick(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
static inline vm both(vm a, vm b) { return _mm256_and_ps(a, b); }
static inline vm either(vm a, vm b) { return _mm256_or_ps(a, b); }
static inline vm inverse_of(vm a) { return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
static inline uint32_t bits(vm m) { return (uint32_t)_mm256_movemask_ps(m); }
static inline float largest_of(vf a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
static inline vf toward_zero(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline void store_truncated(int32_t *p, vf v) { _mm256_storeu_si256((__m256i *)p, _mm256_cvttps_epi32(v)); }
static inline vf through_f16(vf v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }

#else

#define WIDTH 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));
static inline vf splat(float v) { return (vf){v, v, v, v}; }
static inline vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vm less(vf a, vf b) { return a < b; }
static inline vm equal(vf a, vf b) { return a == b; }
static inline vf pick(vm m, vf yes, vf no) { return (vf)((m & (vm)yes) | (~m & (vm)no)); }
static inline vf vmin(vf a, vf b) { return pick(a < b, a, b); }
static inline vf vmax(vf a, vf b) { return pick(a > b, a, b); }
static inline vf vabs(vf a) { return (vf)((vm)a & 0x7FFFFFFF); }
static inline vf vsqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
static inline vm both(vm a, vm b) { return a & b; }
static inline vm either(vm a, vm b) { return a | b; }
static inline vm inverse_of(vm a) { return ~a; }
static inline uint32_t bits(vm m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
static inline float largest_of(vf a) {
    const float b = a[0] > a[1] ? a[0] : a[1], c = a[2] > a[3] ? a[2] : a[3];
    return b > c ? b : c;
}
static inline vf toward_zero(vf a) { return (vf){truncf(a[0]), truncf(a[1]), truncf(a[2]), truncf(a[3])}; }
static inline void store_truncated(int32_t *p, vf v) {
    for (int i = 0; i < WIDTH; ++i) p[i] = truncate(v[i]);
}
static inline vf through_f16(vf v) {
    for (int i = 0; i < WIDTH; ++i) v[i] = f16_to_f32(f32_to_f16(v[i]));
    return v;
}

#endif

/* Registers that the searches keep in flight to hide the latency of each operation. */
#define UNROLL (WIDTH == 4 ? 4 : 2)
#define LANES (WIDTH * UNROLL)

#define EACH(u) for (int u = 0; u < UNROLL; ++u)

/* Lane masks of all registers as one word. */
static inline uint32_t all_bits(const vm *m) {
    uint32_t word = 0;
    EACH(u) word |= bits(m[u]) << WIDTH * u;
    return word;
}

#endif
