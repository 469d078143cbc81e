/* Block layouts of every ggml type that a GGUF file can hold.
 *
 * The layouts follow ggml-common.h of ggml (MIT, (c) 2023-2026 The ggml authors; see LICENSE.ggml).
 * Structures are packed: a block may start at any byte of a mapped file.
 */
#ifndef CONVERTER_BLOCKS_H
#define CONVERTER_BLOCKS_H

#include <stdint.h>

#define SUPER 256 /* elements of a super-block */

typedef uint16_t f16;

#pragma pack(push, 1)

typedef struct { f16 d; uint8_t qs[16]; } block_q1_0;                 /* 128 x 1 bit */
typedef struct { f16 d; uint8_t qs[16]; } block_q2_0;                 /* 64 x 2 bits */
typedef struct { f16 d; uint8_t qs[16]; } block_q4_0;                 /* 32 x 4 bits */
typedef struct { f16 d, m; uint8_t qs[16]; } block_q4_1;
typedef struct { f16 d; uint8_t qh[4], qs[16]; } block_q5_0;
typedef struct { f16 d, m; uint8_t qh[4], qs[16]; } block_q5_1;
typedef struct { f16 d; int8_t qs[32]; } block_q8_0;
typedef struct { f16 d, s; int8_t qs[32]; } block_q8_1;
typedef struct { uint8_t e, qs[16]; } block_mxfp4;                    /* 32 x e2m1, scale e8m0 */
typedef struct { uint8_t d[4], qs[32]; } block_nvfp4;                 /* 64 x e2m1, a ue4m3 scale per 16 */
typedef struct { uint8_t qs[48], qh[4]; f16 d; } block_tq1_0;         /* 256 trits, five to a byte */
typedef struct { uint8_t qs[64]; f16 d; } block_tq2_0;

typedef struct { uint8_t scales[16], qs[64]; f16 d, dmin; } block_q2_k;
typedef struct { uint8_t hmask[32], qs[64], scales[12]; f16 d; } block_q3_k;
typedef struct { f16 d, dmin; uint8_t scales[12], qs[128]; } block_q4_k;
typedef struct { f16 d, dmin; uint8_t scales[12], qh[32], qs[128]; } block_q5_k;
typedef struct { uint8_t ql[128], qh[64]; int8_t scales[16]; f16 d; } block_q6_k;
typedef struct { float d; int8_t qs[256]; int16_t bsums[16]; } block_q8_k;

typedef struct { f16 d; uint16_t qs[32]; } block_iq2_xxs;
typedef struct { f16 d; uint16_t qs[32]; uint8_t scales[8]; } block_iq2_xs;
typedef struct { f16 d; uint8_t qs[32], signs[32], qh[8], scales[8]; } block_iq2_s;
typedef struct { f16 d; uint8_t qs[64]; uint32_t scales_and_signs[8]; } block_iq3_xxs;
typedef struct { f16 d; uint8_t qs[64], qh[8], signs[32], scales[4]; } block_iq3_s;
typedef struct { f16 d; uint8_t qs[32]; uint16_t qh[8]; } block_iq1_s;
typedef struct { uint8_t qs[32], qh[16]; uint16_t scales[4]; } block_iq1_m;
typedef struct { f16 d; uint8_t qs[16]; } block_iq4_nl;
typedef struct { f16 d; uint16_t scales_h; uint8_t scales_l[4], qs[128]; } block_iq4_xs;

#pragma pack(pop)

#define IQ1_DELTA 0.125f /* shift of the ternary grid of IQ1_S and IQ1_M */

/* Values of the four-bit codes of IQ4_NL and IQ4_XS. */
static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Twice the value of the four-bit codes of MXFP4 and NVFP4 (e2m1). */
static const int8_t FP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Scale and min of sub-block `j` of Q4_K and Q5_K: eight pairs of six bits in twelve bytes. */
static inline void unpack_scale_min(const uint8_t *packed, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *min = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
    }
}

/* Scale of sub-block `j` of Q3_K: sixteen of six bits in twelve bytes, biased by 32. */
static inline int unpack_scale_q3(const uint8_t *packed, int j) {
    int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
    return (low | (packed[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
}

#endif
