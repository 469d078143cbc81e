/* CRC-32C by the processor's instruction where the instruction set has one, else by tables, eight bytes at a time.
 *
 * Source: RFC 3720 for the sum and its test vectors; Kounavis and Berry for slicing by eight. The instruction takes
 * three cycles and can start in each, so three lanes advance together; appending n zero bytes to a message multiplies
 * its remainder by x^(8n), which joins them. */
#include "crc32c.h"

#include <string.h>

#include "isa.h"

#define POLYNOMIAL 0x82F63B78u /* bit-reversed */

#if defined(SCALAR)
uint32_t crc32c_tables[8][256];

void init_crc32c(void) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (POLYNOMIAL & -(value & 1));
        crc32c_tables[0][byte] = value;
    }
    for (int k = 1; k < 8; ++k)
        for (int byte = 0; byte < 256; ++byte) {
            const uint32_t before = crc32c_tables[k - 1][byte];
            crc32c_tables[k][byte] = before >> 8 ^ crc32c_tables[0][before & 0xFF];
        }
}
#endif

#if !defined(SCALAR) && defined(__SSE4_2__)
#include <nmmintrin.h>
#define HAS_INSTRUCTION
static inline uint32_t step(uint32_t crc, uint64_t word) { return (uint32_t)_mm_crc32_u64(crc, word); }
#elif !defined(SCALAR) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define HAS_INSTRUCTION
static inline uint32_t step(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
#else
static inline uint32_t step(uint32_t crc, uint64_t word) {
    uint32_t next = 0;
    word ^= crc;
    for (int k = 0; k < 8; ++k) next ^= crc32c_tables[7 - k][word >> 8 * k & 0xFF];
    return next;
}
#endif

/* Eight bytes, the first the lowest. */
static inline uint64_t load(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

#if defined(HAS_INSTRUCTION)
#define LANE 8192
#define AFTER_LANE 0x28461564u /* x^(8 * LANE) modulo the polynomial */

static uint32_t after_lane(uint32_t crc) {
    uint32_t product = 0;
    for (uint32_t power = AFTER_LANE; power; power <<= 1) {
        product ^= crc & -(power >> 31);
        crc = crc >> 1 ^ (POLYNOMIAL & -(crc & 1));
    }
    return product;
}
#endif

uint32_t FN(crc32c)(uint32_t crc, const uint8_t *data, size_t n) {
    crc = ~crc;
#if defined(HAS_INSTRUCTION)
    for (; n >= 3 * LANE; data += 3 * LANE, n -= 3 * LANE) {
        uint32_t second = 0, third = 0;
        for (int i = 0; i < LANE; i += 8) {
            crc = step(crc, load(data + i));
            second = step(second, load(data + LANE + i));
            third = step(third, load(data + 2 * LANE + i));
        }
        crc = after_lane(after_lane(crc) ^ second) ^ third;
    }
#endif
    for (; n >= 8; data += 8, n -= 8) crc = step(crc, load(data));
    for (; n; ++data, --n) crc = crc >> 8 ^ crc32c_tables[0][(crc ^ *data) & 0xFF];
    return ~crc;
}
