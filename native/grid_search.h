/* What the encoders of the grid types search for, and the scalar searches.
 *
 * encode_grid.c holds the scalar searches and turns what was found into bytes. lanes_grid.c holds the same
 * searches on vectors and comes back to the scalar ones for what vectors cannot decide (NaN, infinity).
 */
#ifndef CONVERTER_GRID_SEARCH_H
#define CONVERTER_GRID_SEARCH_H

#include <stdbool.h>

#include "blocks.h"
#include "grids.h"
#include "numeric.h"

/* IQ2 and IQ3: magnitudes on the grid, signs apart. */
typedef struct {
    int which, width, bits; /* grid, codes of a point, bits of a code */
    int n;                  /* elements that share a scale */
    int levels;             /* codes are 0 .. levels - 1 and mean 2 * code + 1 */
    int tries;              /* scales tried on each side of the first guess */
    float step;             /* distance between them, in units of the largest level */
    bool resnap_all;        /* after the search, all points are rounded anew, not only those that were off the grid */
} grid_type;

static const grid_type IQ2_XXS = {GRID_IQ2_XXS, 8, 2, 32, 3, 6, 0.1f, true},
                       IQ2_XS = {GRID_IQ2_XS, 8, 2, 16, 3, 9, 0.1f, false},
                       IQ2_S = {GRID_IQ2_S, 8, 2, 16, 3, 9, 0.1f, false},
                       IQ3_XXS = {GRID_IQ3_XXS, 4, 3, 32, 8, 15, 0.2f, false},
                       IQ3_S = {GRID_IQ3_S, 4, 3, 32, 8, 9, 0.2f, true};

#define MOST_TRIES 31 /* 2 * tries + 1 of IQ3_XXS */

/* Searches scale and points of one group of magnitudes `x` that the largest level at `reach` covers, from a
 * first guess of both. Returns the scale. */
typedef float find_points_fn(const grid_type *t, const float *x, const float *w, float reach, float scale, uint16_t *points);

/* The points nearest to a group at one scale. `levels` is what the codes mean, ascending; it has 16 entries, the codes by
 * their bits again and again. */
typedef void snap_fn(const grid_type *t, const float *levels, const float *x, const float *w, float scale, uint16_t *points);

/* Magnitudes and signs of eight elements. With `even`, the sign of the least important element is
 * flipped where needed to make the number of minus signs even, so that seven bits tell all. */
uint8_t split_signs(const float *x, const float *w, bool even, float *magnitude);

/* The code of a scale, which is (2 * code + 1) / inverse. */
static inline int scale_code(float inverse, float scale, int top) { return clamp(nearest_int(0.5f * (inverse * scale - 1)), 0, top); }

/* Point `k` of a block, whose bytes were zeros. */
static inline void put_iq2_s(block_iq2_s *y, int k, uint16_t index, uint8_t signs) {
    y->qs[k] = (uint8_t)index;
    y->qh[k / 4] |= (uint8_t)(index >> 8 << 2 * (k % 4));
    y->signs[k] = signs;
}

/* The neighbour of an off-grid point with the least weighted distance from x; ties to the first. Scalar. */
int nearest_neighbour(const grid *g, int32_t index, const float *x, const float *w, float scale, const float *levels);

/* IQ1: ternary codes, shifted up or down by IQ1_DELTA; the fourth does not occur. */
static const float UP[4] = {-1 + IQ1_DELTA, IQ1_DELTA, 1 + IQ1_DELTA};
static const float DOWN[4] = {-1 - IQ1_DELTA, -IQ1_DELTA, 1 - IQ1_DELTA};

/* The best two boundaries of the sorted elements: -1 below the first, +1 from the second, 0 between. IQ1_S has
 * one shift for 32 elements: 0 is UP, 1 is DOWN. IQ1_M has one for each half of 16 elements: bit 1 is that of
 * the first half, bit 0 that of the second. */
typedef struct {
    int first, second, shift; /* first < 0 when nothing was found */
    float scale;
} split;

/* The best split of elements that are in ascending order after `order`. */
typedef split choose_split_fn(const float *x, const float *w, const int *order);

/* The searches of one instruction set. */
typedef struct {
    /* Importance of each element, or x * x + floor where none is given. */
    void (*weigh)(int n, const float *x, const float *given, float mean_square, float floor, float *w);
    /* That of search.h. */
    float (*search_positive)(int n, int top, const float *x, uint8_t *codes, const float *w);
    find_points_fn *find_points;
    /* Order of the elements by value, equal ones as they stand. */
    void (*sort_order)(int n, const float *x, int *order);
    choose_split_fn *choose_iq1_s, *choose_iq1_m;
    /* The neighbour of an off-grid IQ1 point with the least weighted distance from x; ties to the first. */
    int (*nearest_iq1)(int32_t index, const float *x, const float *w, float scale, const float *levels);
    snap_fn *snap;
} grid_searches;

extern const grid_searches GRID_SCALAR;

/* Keeps the better of `best` and this split. */
static inline void consider(split *best, float *score, float sumqx, float sumq2, int first, int second, int shift) {
    if (!(sumq2 > 0 && sumqx * sumqx > *score * sumq2)) return;
    best->scale = sumqx / sumq2;
    *score = best->scale * sumqx;
    best->first = first;
    best->second = second;
    best->shift = shift;
}

/* The encoders of one instruction set are these with its searches. */
typedef void encode_grid_fn(const grid_searches *s, const float *x, uint8_t *out, int64_t rows, int64_t row,
                            const float *weights);
extern encode_grid_fn encode_grid_iq2_xxs, encode_grid_iq2_xs, encode_grid_iq2_s, encode_grid_iq3_xxs, encode_grid_iq3_s,
    encode_grid_iq1_s, encode_grid_iq1_m;

#define GRID_ENCODER(type, searches)                                                                       \
    void FN(encode_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights) { \
        encode_grid_##type(&searches, x, out, rows, row, weights);                                         \
    }
#define GRID_ENCODERS(searches)                                                                                \
    GRID_ENCODER(iq2_xxs, searches) GRID_ENCODER(iq2_xs, searches) GRID_ENCODER(iq2_s, searches)               \
    GRID_ENCODER(iq3_xxs, searches) GRID_ENCODER(iq3_s, searches) GRID_ENCODER(iq1_s, searches)                \
    GRID_ENCODER(iq1_m, searches)

/* What effort_grid.c makes of blocks of a grid's type that are encoded; `level` is 2 or 3. */
void improve_grid(const grid_searches *s, int which, int level, const float *x, uint8_t *out, int64_t rows, int64_t row,
                  const float *weights);

#define GRID_EFFORT(type, which, searches)                                                                            \
    extern encode_fn FN(stretch_##type);                                                                               \
    void FN(effort_##type)(const float *x, uint8_t *out, int64_t rows, int64_t row, const float *weights, int level) { \
        FN(encode_##type)(x, out, rows, row, weights);                                                                 \
        if (level > 1) improve_grid(&searches, which, level, x, out, rows, row, weights);                              \
        FN(stretch_##type)(x, out, rows, row, weights);                                                                \
    }
#define GRID_EFFORTS(searches)                                                                                  \
    GRID_EFFORT(iq2_s, GRID_IQ2_S, searches) GRID_EFFORT(iq3_xxs, GRID_IQ3_XXS, searches)                          \
    GRID_EFFORT(iq3_s, GRID_IQ3_S, searches)

#endif
