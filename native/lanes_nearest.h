/* Rounding of lanes to the values of IQ4_NL and IQ4_XS. */
#ifndef CONVERTER_LANES_NEAREST_H
#define CONVERTER_LANES_NEAREST_H

#include "lanes.h"
#include "pack_iq4.h"

/* The value of the code nearest to v, as a float; what IQ4_VALUES[nearest_iq4(v)] is. */
#if WIDTH == 16
static inline vf nearest_value(vf v) {
    /* Binary search: `code` gathers the bits; the tables stay in registers. */
    const vf middles = _mm512_setr_ps(-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f, 7.0f, 19.0f, 31.5f,
                                      45.5f, 61.0f, 79.0f, 101.0f, 0.0f);
    const vf values = _mm512_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    __m512i code = _mm512_setzero_si512();
    for (int step = 8; step; step /= 2) {
        const __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        const vm above = _mm512_cmp_ps_mask(v, _mm512_permutexvar_ps(probe, middles), _CMP_NLT_UQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    return _mm512_permutexvar_ps(code, values);
}
#elif WIDTH == 8
static inline vf nearest_value(vf v) {
    /* The same in the upper or lower half of the tables, which the first midpoint, -4.5, tells apart. */
    const vf low = _mm256_setr_ps(-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, 0.0f);
    const vf high = _mm256_setr_ps(7.0f, 19.0f, 31.5f, 45.5f, 61.0f, 79.0f, 101.0f, 0.0f);
    const vf low_values = _mm256_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10);
    const vf high_values = _mm256_setr_ps(1, 13, 25, 38, 53, 69, 89, 113);
    const vm upper = _mm256_cmp_ps(v, splat(-4.5f), _CMP_NLT_UQ);
    __m256i code = _mm256_setzero_si256();
    for (int step = 4; step; step /= 2) {
        const __m256i probe = _mm256_add_epi32(code, _mm256_set1_epi32(step - 1));
        const vf middle = pick(upper, _mm256_permutevar8x32_ps(high, probe), _mm256_permutevar8x32_ps(low, probe));
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(v, middle, _CMP_NLT_UQ));
        code = _mm256_add_epi32(code, _mm256_and_si256(above, _mm256_set1_epi32(step)));
    }
    return pick(upper, _mm256_permutevar8x32_ps(high_values, code), _mm256_permutevar8x32_ps(low_values, code));
}
#else
static inline vf nearest_value(vf v) {
    vf value = splat((float)IQ4_VALUES[0]);
    for (int i = 0; i < 15; ++i) value = pick(less(v, splat(IQ4_MIDDLES[i])), value, splat((float)IQ4_VALUES[i + 1]));
    return value;
}
#endif

#endif
