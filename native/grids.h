/* Lattices of the grid types: which combinations of 4 or 8 codes a stored index can mean.
 *
 * The tables and the neighbour lists follow iq2xs_init_impl and iq3xs_init_impl of ggml-quants.c
 * (MIT, see LICENSE.ggml).
 */
#ifndef CONVERTER_GRIDS_H
#define CONVERTER_GRIDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NEAR_STEP 16 /* lists of neighbours start at multiples of this and are filled up to one */
#define NEAR_BITS 9  /* bits of a list's length */

/* A point holds `width` codes of `bits` bits, code 0 in the lowest ones. */
typedef struct {
    int size, width, bits, shells; /* shells: distances from an off-grid point that count as near */
    const uint16_t *packed;        /* size points */
    int32_t *index;                /* point -> its index, or ~(start << NEAR_BITS | length) of its neighbours */
    uint16_t *neighbours;          /* points, nearest first, then the first one again as filling; see near_list */
} grid;

enum { GRID_IQ2_XXS, GRID_IQ2_XS, GRID_IQ2_S, GRID_IQ1, GRID_IQ3_XXS, GRID_IQ3_S, GRID_COUNT };

extern grid GRIDS[GRID_COUNT];

/* The neighbours of a point whose `index` is negative. */
static inline const uint16_t *near_list(const grid *g, int32_t index, int *length) {
    const uint32_t list = ~(uint32_t)index;
    *length = list & ((1 << NEAR_BITS) - 1);
    return g->neighbours + (size_t)NEAR_STEP * (list >> NEAR_BITS);
}

/* What decoding reads: the value of each code of each point. */
extern int8_t VALUES_IQ2_XXS[256][8], VALUES_IQ2_XS[512][8], VALUES_IQ2_S[1024][8], VALUES_IQ1[2048][8];
extern int8_t VALUES_IQ3_XXS[256][4], VALUES_IQ3_S[512][4];
/* -1 where a byte of signs has a bit, else 0; EVEN_NEGATED by the seven stored bits of even_signs. */
extern int8_t NEGATED[256][8], EVEN_NEGATED[128][8];

/* Eight signs from seven stored bits: the eighth makes the number of minus signs even. */
static inline uint8_t even_signs(uint32_t seven) {
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (uint8_t)(seven | (parity & 1) << 7);
}

/* Builds index and neighbours of one grid on first use; false when out of memory. Hold the GIL. */
bool ensure_grid(int which);

#endif
