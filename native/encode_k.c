/* K-quants, scalar: the search of each sub-block, then pack_k.h.
 *
 * Follows quantize_row_q{2..6}_K_{ref,impl} of ggml-quants.c (MIT, see LICENSE.ggml).
 */
#include <stdbool.h>

#include "kernels.h"
#include "pack_k.h"

/* Grids of search_affine without and with importance weights. */
static const affine_grid Q2_GRID = {-0.5f, 0.1f, 15, true}, Q4_GRID = {-1.0f, 0.1f, 20, false},
                         Q5_GRID = {-0.5f, 0.1f, 15, false}, WEIGHTED_GRID = {-0.9f, 0.05f, 36, false};

/* Importance weights of one sub-block and their sum. */
static void weigh(int n, const float *x, const float *given, float mean_square, float *w, float *sum) {
    importance(n, x, given, mean_square, w);
    *sum = 0;
    for (int i = 0; i < n; ++i) *sum += w[i];
}

static void find_q2_k(const float *x, const float *given, found *f) {
    float w[16];
    const float mean_square = given ? sum_squares(SUPER, x) / SUPER : 0;
    for (int j = 0; j < 16; ++j, x += 16) {
        if (given) weigh(16, x, given + 16 * j, mean_square, w, &f->sum_w[j]);
        for (int i = 0; !given && i < 16; ++i) w[i] = fabsf(x[i]);
        f->scale[j] = search_affine(16, 3, x, w, given ? WEIGHTED_GRID : Q2_GRID, f->codes + 16 * j, &f->min[j]);
    }
}

static void find_q3_k(const float *x, const float *given, found *f) {
    float w[16];
    const float mean_square = given ? 2 * sum_squares(SUPER, x) / SUPER : 0;
    for (int j = 0; j < 16; ++j, x += 16) {
        int8_t *codes = (int8_t *)f->codes + 16 * j;
        if (given) {
            weigh(16, x, given + 16 * j, mean_square, w, &f->sum_w[j]);
            f->scale[j] = search_symmetric(16, 4, x, codes, w);
        } else {
            f->scale[j] = search_coordinate(16, 4, x, codes);
        }
    }
}

static void find_affine_k(int top, const float *x, const float *given, found *f) {
    float w[32];
    const float mean_square = given ? 2 * sum_squares(SUPER, x) / SUPER : 0;
    const affine_grid grid = given ? WEIGHTED_GRID : top == 15 ? Q4_GRID : Q5_GRID;
    for (int j = 0; j < 8; ++j, x += 32) {
        if (given) {
            weigh(32, x, given + 32 * j, mean_square, w, &f->sum_w[j]);
        } else {
            const float rms = sqrtf(sum_squares(32, x) / 32);
            for (int i = 0; i < 32; ++i) w[i] = rms + fabsf(x[i]);
        }
        f->scale[j] = search_affine(32, top, x, w, grid, f->codes + 32 * j, &f->min[j]);
    }
}

static void find_q6_k(const float *x, const float *given, found *f) {
    for (int j = 0; j < 16; ++j)
        f->scale[j] = search_symmetric(16, 32, x + 16 * j, (int8_t *)f->codes + 16 * j, given ? given + 16 * j : NULL);
}

/* Walks the super-blocks of all rows; FIND and STORE see one block `x`, its weights `given` and `y`. */
#define ENCODE_K(type, FIND, STORE)                                                                       \
    void encode_##type(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) {   \
        block_##type *y = (block_##type *)out;                                                            \
        for (int64_t r = 0; r < rows; ++r)                                                                \
            for (int64_t i = 0; i < row; i += SUPER, x += SUPER, ++y) {                                   \
                const float *given = weights ? weights + i : NULL;                                        \
                found f;                                                                                  \
                FIND;                                                                                     \
                STORE;                                                                                    \
            }                                                                                             \
    }

ENCODE_K(q2_k, find_q2_k(x, given, &f), store_q2_k(x, &f, given, y))
ENCODE_K(q3_k, find_q3_k(x, given, &f), store_q3_k(x, &f, given, y))
ENCODE_K(q4_k, find_affine_k(15, x, given, &f), store_q4_k(x, &f, given, y))
ENCODE_K(q5_k, find_affine_k(31, x, given, &f), store_q5_k(x, &f, given, y))
ENCODE_K(q6_k, find_q6_k(x, given, &f), store_q6_k(x, &f, y))
