/* CRC-32C (Castagnoli), the checksum of TensorFlow's files and of iSCSI. */
#ifndef CONVERTER_CRC32C_H
#define CONVERTER_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The sum of what has the sum `crc` (0: of nothing) and then `n` bytes of data. */
typedef uint32_t crc32c_fn(uint32_t crc, const uint8_t *data, size_t n);

/* [k][b]: the remainder of byte b with k zero bytes after it. */
extern uint32_t crc32c_tables[8][256];

/* Builds the tables; called once, when the module is loaded. */
void init_crc32c(void);

#endif
