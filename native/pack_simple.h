/* From 32 codes to the bytes of Q4_0, Q4_1, Q5_0 and Q5_1 blocks. */
#ifndef CONVERTER_PACK_SIMPLE_H
#define CONVERTER_PACK_SIMPLE_H

#include "blocks.h"
#include "numeric.h"

/* 32 codes: element i in the low half of byte i, element i + 16 in the high half; eight bytes at a time. */
static inline void pack_nibbles(const uint8_t *codes, uint8_t *qs) {
    for (int i = 0; i < 16; i += 8) {
        uint64_t low, high;
        memcpy(&low, codes + i, 8);
        memcpy(&high, codes + i + 16, 8);
        low = (low & 0x0F0F0F0F0F0F0F0Fu) | (high & 0x0F0F0F0F0F0F0F0Fu) << 4;
        memcpy(qs + i, &low, 8);
    }
}

/* The fifth bits of 32 codes: of eight at a time, brought together by one multiplication. */
static inline void pack_fifth_bits(const uint8_t *codes, uint8_t *qh) {
    for (int i = 0; i < 4; ++i) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, 8);
        qh[i] = (uint8_t)((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

/* The same signature for all four, though only two have a minimum. */
static inline void store_q4_0(float d, float m, const uint8_t *codes, block_q4_0 *y) {
    (void)m;
    y->d = f32_to_f16(d);
    pack_nibbles(codes, y->qs);
}

static inline void store_q4_1(float d, float m, const uint8_t *codes, block_q4_1 *y) {
    y->d = f32_to_f16(d);
    y->m = f32_to_f16(m);
    pack_nibbles(codes, y->qs);
}

static inline void store_q5_0(float d, float m, const uint8_t *codes, block_q5_0 *y) {
    (void)m;
    y->d = f32_to_f16(d);
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
}

static inline void store_q5_1(float d, float m, const uint8_t *codes, block_q5_1 *y) {
    y->d = f32_to_f16(d);
    y->m = f32_to_f16(m);
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
}

#endif
