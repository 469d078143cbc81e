/* Groups that stand one after the other, transposed for the lanes. */
#ifndef CONVERTER_TRANSPOSE_H
#define CONVERTER_TRANSPOSE_H

#include "lanes.h"

/* Transposes a square of WIDTH rows in registers. */
static inline void transpose_square(vf *r) {
    vf t[WIDTH];
#if WIDTH == 16
    for (int i = 0; i < 16; i += 4) { /* 4 x 4 within each quarter */
        const vf a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const vf c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; ++i) { /* then the quarters */
        const vf a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xDD);
        const vf c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xDD);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
#elif WIDTH == 8
    for (int i = 0; i < 8; i += 4) {
        const vf a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const vf c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xEE);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
#else
    for (int i = 0; i < 4; ++i) t[i] = (vf){r[0][i], r[1][i], r[2][i], r[3][i]};
    memcpy(r, t, sizeof t);
#endif
}

/* out[i * LANES + k] = element i of group k, for LANES groups of `n` <= 32 of which `count` are at `x`; zeros else. */
static inline void transpose_groups(int n, int count, const float *x, float *out) {
    static const float NOTHING[32];
    for (int k = 0; k < LANES; k += WIDTH)
        for (int i = 0; i < n; i += WIDTH) {
            vf square[WIDTH];
            for (int r = 0; r < WIDTH; ++r) square[r] = load(k + r < count ? x + (k + r) * n + i : NOTHING);
            transpose_square(square);
            for (int r = 0; r < WIDTH; ++r) store(out + (i + r) * LANES + k, square[r]);
        }
}

/* The same for importance: groups are consecutive within a super-block (or row), whose start differs. */
static inline void transpose_given(int n, int count, int per, const float *const *given, float *out) {
    static const float NOTHING[32];
    for (int k = 0; k < LANES; k += WIDTH)
        for (int i = 0; i < n; i += WIDTH) {
            vf square[WIDTH];
            for (int r = 0; r < WIDTH; ++r)
                square[r] = load(k + r < count ? given[(k + r) / per] + (k + r) % per * n + i : NOTHING);
            transpose_square(square);
            for (int r = 0; r < WIDTH; ++r) store(out + (i + r) * LANES + k, square[r]);
        }
}

#endif
