/* Lookup tables of the grid types. Follows ggml-quants.c (MIT, see LICENSE.ggml). */
#include "grids.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "grid_points.h"
#include "kernels.h"

grid GRIDS[GRID_COUNT] = {
    [GRID_IQ2_XXS] = {.size = 256, .width = 8, .bits = 2, .shells = 2, .packed = POINTS_IQ2_XXS},
    [GRID_IQ2_XS] = {.size = 512, .width = 8, .bits = 2, .shells = 2, .packed = POINTS_IQ2_XS},
    [GRID_IQ2_S] = {.size = 1024, .width = 8, .bits = 2, .shells = 1, .packed = POINTS_IQ2_S},
    [GRID_IQ1] = {.size = 2048, .width = 8, .bits = 2, .shells = 3, .packed = POINTS_IQ1},
    [GRID_IQ3_XXS] = {.size = 256, .width = 4, .bits = 3, .shells = 2, .packed = POINTS_IQ3_XXS},
    [GRID_IQ3_S] = {.size = 512, .width = 4, .bits = 3, .shells = 3, .packed = POINTS_IQ3_S},
};

int8_t VALUES_IQ2_XXS[256][8], VALUES_IQ2_XS[512][8], VALUES_IQ2_S[1024][8], VALUES_IQ1[2048][8];
int8_t VALUES_IQ3_XXS[256][4], VALUES_IQ3_S[512][4];
int8_t NEGATED[256][8], EVEN_NEGATED[128][8];

static int code_at(const grid *g, int point, int i) { return point >> g->bits * i & ((1 << g->bits) - 1); }

/* The value of each code when decoded. */
static void fill_values(const grid *g, const int8_t *value_of_code, int8_t *values) {
    for (int p = 0; p < g->size; ++p)
        for (int i = 0; i < g->width; ++i) *values++ = value_of_code[code_at(g, g->packed[p], i)];
}

void init_grids(void) {
    static const int8_t TWO_BITS[4] = {8, 25, 43, 0}, TERNARY[4] = {-1, 0, 1, 0};
    static const int8_t THREE_BITS[8] = {4, 12, 20, 28, 36, 44, 52, 62}, ODD[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    fill_values(&GRIDS[GRID_IQ2_XXS], TWO_BITS, VALUES_IQ2_XXS[0]);
    fill_values(&GRIDS[GRID_IQ2_XS], TWO_BITS, VALUES_IQ2_XS[0]);
    fill_values(&GRIDS[GRID_IQ2_S], TWO_BITS, VALUES_IQ2_S[0]);
    fill_values(&GRIDS[GRID_IQ1], TERNARY, VALUES_IQ1[0]);
    fill_values(&GRIDS[GRID_IQ3_XXS], THREE_BITS, VALUES_IQ3_XXS[0]);
    fill_values(&GRIDS[GRID_IQ3_S], ODD, VALUES_IQ3_S[0]);
    for (int signs = 0; signs < 256; ++signs)
        for (int i = 0; i < 8; ++i) NEGATED[signs][i] = (int8_t)-(signs >> i & 1);
    for (uint32_t signs = 0; signs < 128; ++signs) memcpy(EVEN_NEGATED[signs], NEGATED[even_signs(signs)], 8);
}

/* Writes to `list` the points in the nearest `shells` distances, nearest first; returns their number. */
static int near_points(const grid *g, int point, uint16_t *list) {
    int distance[2048], count = 0, last = -1;
    for (int p = 0; p < g->size; ++p) {
        distance[p] = 0;
        for (int i = 0; i < g->width; ++i) {
            const int diff = code_at(g, g->packed[p], i) - code_at(g, point, i);
            distance[p] += diff * diff;
        }
    }
    for (int shell = 0; shell < g->shells; ++shell) {
        int next = INT_MAX;
        for (int p = 0; p < g->size; ++p)
            if (distance[p] > last && distance[p] < next) next = distance[p];
        for (int p = 0; p < g->size; ++p)
            if (distance[p] == next) list[count++] = g->packed[p];
        last = next;
    }
    return count;
}

/* Whether every code of a point is one that rounding can give: two bits hold three levels. */
static bool possible(const grid *g, int point) {
    return g->bits == 3 || (point & point >> 1 & 0x5555) == 0;
}

/* Calls near_points for every point that codes can form but the grid lacks. */
static bool fill_neighbours(grid *g) {
    const int points = 1 << g->bits * g->width;
    size_t used = 0, room = 0;
    for (int p = 0; p < points; ++p) {
        if (g->index[p] >= 0 || !possible(g, p)) continue;
        if (room < used + NEAR_STEP + (size_t)g->size) {
            room = 2 * room + 65536;
            uint16_t *grown = realloc(g->neighbours, room * sizeof *grown);
            if (!grown) return false;
            g->neighbours = grown;
        }
        uint16_t *list = g->neighbours + used;
        int count = near_points(g, p, list);
        g->index[p] = ~((int32_t)(used / NEAR_STEP) << NEAR_BITS | count);
        for (; count % NEAR_STEP; ++count) list[count] = list[0];
        used += (size_t)count;
    }
    return true;
}

bool ensure_grid(int which) {
    grid *g = &GRIDS[which];
    if (g->neighbours) return true;
    const int points = 1 << g->bits * g->width;
    g->index = malloc((size_t)points * sizeof *g->index);
    if (g->index) {
        memset(g->index, 0xFF, (size_t)points * sizeof *g->index); /* -1: an empty list for codes that cannot occur */
        for (int p = 0; p < g->size; ++p) g->index[g->packed[p]] = p;
        if (fill_neighbours(g)) return true;
    }
    free(g->index);
    free(g->neighbours);
    g->index = NULL;
    g->neighbours = NULL;
    return false;
}
