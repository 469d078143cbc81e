/* K-quants, scalar. Follows ggml-quants.c (MIT, see LICENSE.ggml). */
#include "isa.h"
#include "k_block.h"
#include "kernels.h"

/* Walks the super-blocks of all rows: the search of each sub-block, then the bytes. */
#define ENCODE_K(type, sub_blocks, MEAN_SQUARE)                                                               \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                                \
        for (int64_t r = 0; r < rows; ++r)                                                                    \
            for (int64_t i = 0; i < row; i += SUPER, x += SUPER, ++y) {                                       \
                k_block b = {.x = x, .given = weights ? weights + i : NULL};                                  \
                if (weights) b.mean_square = MEAN_SQUARE;                                                     \
                for (int j = 0; j < sub_blocks; ++j) find_##type(&b, j);                                      \
                store_##type(&b, y);                                                                          \
            }                                                                                                 \
    }

ENCODE_K(q2_k, 16, mean_square_q2_k(x))
ENCODE_K(q3_k, 16, mean_square_k(x))
ENCODE_K(q4_k, 8, mean_square_k(x))
ENCODE_K(q5_k, 8, mean_square_k(x))
ENCODE_K(q6_k, 16, 0)
