/* One kernel per type: how a row of blocks is written and read. */
#ifndef CONVERTER_KERNELS_H
#define CONVERTER_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compare.h"
#include "crc32c.h"

/* Encodes `rows` rows of `row` floats to `out`. `weights` holds `row` importances, or is NULL. */
typedef void encode_fn(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights);

/* Encodes with more effort than the reference, at the same bytes; `level` is 1 to MOST_EFFORT, the rest as of
 * `encode_fn`. */
typedef void effort_fn(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level);

#define MOST_EFFORT 3

/* How much more a block's squared error may be because an F16 cannot hold its steps at the right length. */
#define DEARER 1.02f

/* Encodes rows whose rounding errors are spread by `factor` (feedback.c): row * (row + 1) / 2 BF16 numbers.
 * `effort` as of `--effort`. False where there is no memory. */
typedef bool feedback_fn(const float *x, uint8_t *out, int64_t rows, int64_t row, const uint16_t *factor, int effort);

/* Decodes `n` elements (a whole number of blocks) to `out`. */
typedef void decode_fn(const uint8_t *data, float *out, int64_t n);

/* Counts the values among `n` that are NaN or infinite. */
typedef int64_t count_fn(const uint8_t *data, int64_t n);

/* The largest magnitude among `n` floats: NaN where one is. */
typedef float largest_fn(const float *x, int64_t n);

typedef struct {
    const char *name;
    int block;           /* elements of a block */
    int size;            /* bytes of a block */
    bool needs_weights;  /* ggml refuses to encode without an importance matrix */
    encode_fn *encode;   /* NULL where ggml has no encoder */
    decode_fn *decode;
    count_fn *nonfinite; /* dense types only */
} kernel;

/* The kernel of a type for the instruction set in use, or NULL. */
const kernel *find_kernel(const char *name);

/* What encodes a type with more effort, for the instruction set in use, or NULL where nothing does. */
effort_fn *find_effort(const char *name);

/* What encodes a type with error feedback, for the instruction set in use, or NULL where nothing does. */
feedback_fn *find_feedback(const char *name);

/* Name of the i-th type that is encoded with error feedback, NULL past the end. */
const char *feedback_at(int i);

/* The i-th kernel in a fixed order, NULL past the end. */
const kernel *kernel_at(int i);

/* Comparison of two arrays by the instruction set in use. */
compare_fn *compare_in_use(void);

/* The largest of floats by the instruction set in use. */
largest_fn *largest_in_use(void);

/* CRC-32C by the instruction set in use. */
crc32c_fn *crc32c_in_use(void);

/* Names of the instruction sets this machine can run, best first; ends with NULL. */
const char *const *available_isas(void);

/* Switches all kernels to one instruction set; false where the machine cannot run it. Not while kernels run. */
bool select_isa(const char *name);

/* The instruction set in use. */
const char *current_isa(void);

/* Builds the decoding tables of the grid types; called once, when the module is loaded. */
void init_grids(void);

#endif
