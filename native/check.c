/* Runs every kernel of every instruction set without Python: for sanitizers and for foreign processors.
 *
 *     check [kernel_digests.json]
 *
 * Encodes seeded data of all kinds and decodes the result, from buffers of exactly the needed size. Prints a
 * digest of what scalar code makes of each; fails where another instruction set, single rows or blocks, or the
 * digests of ggml's output in the given file differ. The data are those of tests/tensors/test_kernels.py.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "grids.h"
#include "kernels.h"
#include "numeric.h"

enum { ROW = 512, ROWS = 3, COUNT = ROW * ROWS };

static int failures, compared; /* with stored digests */

static void fail(const char *type, const char *what, const char *who) {
    fprintf(stderr, "%s: %s: %s differs\n", type, what, who);
    ++failures;
}

/* ---- the data ---- */

/* Block `counter` of numpy's Philox(key=seed): four words of its raw stream (Philox4x64-10). */
static void philox(uint64_t seed, uint64_t counter, uint64_t c[4]) {
    uint64_t k0 = seed, k1 = 0;
    c[0] = counter, c[1] = c[2] = c[3] = 0;
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B97F4A7C15u, k1 += 0xBB67AE8584CAA73Bu) {
        const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c[0];
        const unsigned __int128 b = (unsigned __int128)0xCA5A826395121157u * c[2];
        const uint64_t next[4] = {(uint64_t)(b >> 64) ^ c[1] ^ k0, (uint64_t)b, (uint64_t)(a >> 64) ^ c[3] ^ k1, (uint64_t)a};
        memcpy(c, next, sizeof next);
    }
}

/* Exact multiples of 2^-16 in [0, 1). */
static void uniform(int n, uint64_t seed, float *out) {
    uint64_t words[4];
    for (int i = 0; i < n; ++i) {
        if (i % 4 == 0) philox(seed, (uint64_t)i / 4 + 1, words);
        out[i] = (float)(words[i % 4] >> 48) / 65536.0f;
    }
}

static void normal(int n, uint64_t seed, float *out) {
    float u[COUNT];
    for (int i = 0; i < n; ++i) out[i] = -6.0f; /* every sum is exact */
    for (uint64_t k = 0; k < 12; ++k) {
        uniform(n, 1000 * seed + k, u);
        for (int i = 0; i < n; ++i) out[i] += u[i];
    }
}

enum { NORMAL, HEAVY, POSITIVE, NEGATIVE, CONSTANT, ZERO, TINY, HUGE_ONES, HALF_FLAT, SUBNORMAL, SPARSE, TIES, MIXED, KINDS };
static const char *const KIND_NAMES[] = {"normal", "heavy-tailed", "positive", "negative", "constant", "zero",  "tiny",
                                         "huge",   "half-flat",    "subnormal", "sparse", "ties",     "mixed"};
/* After them, normal data in which one of these stands here and there. No digests of those: the sign of the NaN
 * that an operation makes depends on the processor, here as in ggml. */
static const float ODD_VALUES[] = {NAN, INFINITY, -INFINITY, 3e38f};
static const char *const ODD_NAMES[] = {"nan", "infinity", "minus infinity", "near overflow"};
enum { ALL_KINDS = KINDS + 4 };

static float shaped(int kind, int i, float v, float first) {
    switch (kind) {
    case HEAVY: return v * v * v;
    case POSITIVE: return fabsf(v);
    case NEGATIVE: return -fabsf(v) - 0.5f;
    case CONSTANT: return first;
    case ZERO: return 0.0f;
    case TINY: return v * 0x1p-66f;
    case HUGE_ONES: return v * 0x1p+20f;
    case HALF_FLAT: return i % ROW / 16 % 2 ? v : 0.25f;
    case SUBNORMAL: return v * 0x1p-133f;
    case SPARSE: return fabsf(v) > 2 ? v : 0.0f;
    case TIES: return rintf(v * 8) / 8.0f;
    case MIXED: return v * ldexpf(1.0f, i / 32 % 31 - 24);
    default: return v * 0x1p-5f;
    }
}

static void sample(int kind, float *out) {
    float v[COUNT], u[COUNT];
    normal(COUNT, kind < KINDS ? (uint64_t)kind : 0, v);
    uniform(COUNT, 5, u);
    for (int i = 0; i < COUNT; ++i) {
        out[i] = shaped(kind, i, v[i], v[i / ROW * ROW]);
        if (kind >= KINDS && u[i] < 0.02f) out[i] = ODD_VALUES[kind - KINDS];
    }
}

enum { PLAIN, WEIGHTED, SOME_ZERO, WEIGHTINGS };
static const char *const WEIGHTING_NAMES[] = {"plain", "weighted", "some zero"};

static void importance_of(int weighting, float *out) {
    float u[ROW];
    uniform(ROW, 77, out);
    uniform(ROW, 78, u);
    for (int i = 0; i < ROW; ++i) out[i] = weighting == SOME_ZERO && u[i] < 0.3f ? 0.0f : out[i] * out[i];
}

/* ---- digests: the first 16 hexadecimal digits of SHA-256 ---- */

static uint32_t rotate(uint32_t v, int by) { return v >> by | v << (32 - by); }

/* The fractions of the square (or cube) roots of the first primes, that SHA-256 is made of. */
static uint32_t root_bits(int prime, bool cube) {
    const long double root = cube ? cbrtl((long double)prime) : sqrtl((long double)prime);
    return (uint32_t)((root - floorl(root)) * 4294967296.0L);
}

static void sha_block(const uint8_t *data, const uint32_t *k, uint32_t *h) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; ++i)
        w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; ++i)
        w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; ++i) {
        const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]), majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        const uint32_t a = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + choice + k[i] + w[i];
        const uint32_t b = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) + majority;
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += a;
        v[0] = a + b;
    }
    for (int i = 0; i < 8; ++i) h[i] += v[i];
}

static void digest(const uint8_t *data, size_t n, char hex[17]) {
    static uint32_t k[64], start[8];
    for (int prime = 2, found = 0; !k[63]; ++prime) {
        bool composite = false;
        for (int i = 2; i * i <= prime; ++i) composite |= prime % i == 0;
        if (composite) continue;
        if (found < 8) start[found] = root_bits(prime, false);
        k[found++] = root_bits(prime, true);
    }
    uint32_t h[8];
    memcpy(h, start, sizeof h);
    uint8_t last[128] = {0};
    const size_t whole = n / 64 * 64, rest = n - whole, padded = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i += 64) sha_block(data + i, k, h);
    if (rest) memcpy(last, data + whole, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; ++i) last[padded - 1 - i] = (uint8_t)((uint64_t)n * 8 >> 8 * i);
    for (size_t i = 0; i < padded; i += 64) sha_block(last + i, k, h);
    snprintf(hex, 17, "%08x%08x", h[0], h[1]);
}

/* The digest that the file has for a case, NULL where it has none: `"type": {... "what": "digest"`. */
static const char *stored_digest(const char *stored, const char *type, const char *what) {
    char key[96];
    snprintf(key, sizeof key, "\"%s\": {", type);
    const char *from = strstr(stored, key), *end = from ? strchr(from, '}') : NULL;
    snprintf(key, sizeof key, "\"%s\": \"", what);
    const char *at = from ? strstr(from, key) : NULL;
    return at && at < end ? at + strlen(key) : NULL;
}

/* ---- the kernels ---- */

/* A copy that ends where its buffer ends, so that a sanitizer sees the first byte read beyond. */
static void *exact(const void *data, size_t n) {
    void *copy = malloc(n);
    if (!copy) abort();
    if (data) memcpy(copy, data, n);
    return copy;
}

static uint8_t *encoded(const kernel *k, const float *x, int rows, int row, const float *weights) {
    const size_t n = (size_t)rows * (size_t)row;
    float *input = exact(x, n * sizeof *x), *given = weights ? exact(weights, (size_t)row * sizeof *x) : NULL;
    const size_t size = n / (size_t)k->block * (size_t)k->size;
    uint8_t *room = exact(NULL, size + 1); /* blocks may stand at any byte */
    k->encode(input, room + 1, rows, row, given);
    uint8_t *out = exact(room + 1, size);
    free(room);
    free(input);
    free(given);
    return out;
}

/* Values of `n` elements; every NaN as the same, for processors differ in those they make. */
static float *decoded(const kernel *k, const uint8_t *data, int n) {
    const size_t size = (size_t)n / (size_t)k->block * (size_t)k->size;
    uint8_t *input = exact(NULL, size + 1);
    memcpy(input + 1, data, size);
    float *out = exact(NULL, (size_t)n * sizeof *out);
    k->decode(input + 1, out, n);
    for (int i = 0; i < n; ++i)
        if (out[i] != out[i]) out[i] = NAN;
    free(input);
    return out;
}

static bool equal_bytes(void *a, const void *b, size_t n) {
    const bool same = memcmp(a, b, n) == 0;
    free(a);
    return same;
}

static void report(const char *type, const char *what, const char *suffix, const void *data, size_t n, const char *stored) {
    char hex[17];
    digest(data, n, hex);
    const char *expected = stored ? stored_digest(stored, type, what) : NULL;
    compared += expected != NULL;
    if (expected && strncmp(expected, hex, 16) != 0) fail(type, what, "the stored digest");
    printf("%s, %s%s: %s\n", type, what, suffix, hex);
}

/* One type on one kind of data: all instruction sets against scalar code, parts against the whole. */
static void check_encode(int type, int kind, const float *x, const float *weights, const char *what, const char *stored) {
    select_isa("scalar");
    const kernel *scalar = kernel_at(type);
    const size_t size = (size_t)scalar->size, bytes = COUNT / (size_t)scalar->block * size;
    uint8_t *expected = encoded(scalar, x, ROWS, ROW, weights);
    float *values = decoded(scalar, expected, COUNT);
    if (kind < KINDS) {
        report(scalar->name, what, "", expected, bytes, stored);
        report(scalar->name, what, ", decoded", values, COUNT * sizeof *values, NULL);
    }
    uint8_t *block = encoded(scalar, x, 1, scalar->block, weights);
    for (const char *const *isa = available_isas(); *isa; ++isa) {
        select_isa(*isa);
        const kernel *k = kernel_at(type);
        if (!equal_bytes(encoded(k, x, ROWS, ROW, weights), expected, bytes)) fail(k->name, what, *isa);
        if (!equal_bytes(encoded(k, x, 1, k->block, weights), block, size)) fail(k->name, what, "a single block");
        for (int r = 0; r < ROWS; ++r)
            if (!equal_bytes(encoded(k, x + r * ROW, 1, ROW, weights), expected + (size_t)r * bytes / ROWS, bytes / ROWS))
                fail(k->name, what, "a single row");
        if (!equal_bytes(decoded(k, expected, COUNT), values, COUNT * sizeof *values)) fail(k->name, what, "decoding");
    }
    free(block);
    free(values);
    free(expected);
}

/* Encoded with more effort, by the instruction set in use. */
static uint8_t *improved(const kernel *k, const float *x, int rows, const float *weights, int level) {
    const size_t n = (size_t)rows * ROW, size = n / (size_t)k->block * (size_t)k->size;
    float *input = exact(x, n * sizeof *x), *given = weights ? exact(weights, ROW * sizeof *x) : NULL;
    uint8_t *room = exact(NULL, size + 1);
    find_effort(k->name)(input, room + 1, rows, ROW, given, level);
    uint8_t *out = exact(room + 1, size);
    free(room);
    free(input);
    free(given);
    return out;
}

static void check_effort(int type, int kind, const float *x, const float *weights, const char *what, int level) {
    select_isa("scalar");
    const kernel *scalar = kernel_at(type);
    if (!find_effort(scalar->name)) return;
    char effort[16];
    snprintf(effort, sizeof effort, ", effort %d", level);
    const size_t bytes = COUNT / (size_t)scalar->block * (size_t)scalar->size;
    uint8_t *expected = improved(scalar, x, ROWS, weights, level);
    if (kind < KINDS) report(scalar->name, what, effort, expected, bytes, NULL);
    for (const char *const *isa = available_isas(); *isa; ++isa) {
        select_isa(*isa);
        const kernel *k = kernel_at(type);
        if (!equal_bytes(improved(k, x, ROWS, weights, level), expected, bytes)) fail(k->name, effort, *isa);
        for (int r = 0; r < ROWS; ++r)
            if (!equal_bytes(improved(k, x + r * ROW, 1, weights, level), expected + (size_t)r * bytes / ROWS, bytes / ROWS))
                fail(k->name, effort, "a single row");
    }
    free(expected);
}

/* A factor for rows of ROW: importance from 1 to 2, and errors that a quarter of the columns behind hear of. */
static const uint16_t *some_factor(void) {
    static uint16_t factor[ROW * (ROW + 1) / 2];
    static float u[ROW];
    uint16_t *at = factor;
    for (int j = 0; j < ROW; ++j) {
        uniform(ROW, 9000 + (uint64_t)j, u);
        for (int k = j; k < ROW; ++k) *at++ = f32_to_bf16(k == j ? 1 + u[k] : u[k] < 0.25f ? u[k] - 0.125f : 0);
    }
    return factor;
}

static uint8_t *spread(const char *name, const float *x, size_t bytes, const uint16_t *factor, int effort) {
    uint8_t *y = exact(NULL, bytes);
    if (!find_feedback(name)(x, y, ROWS, ROW, factor, effort)) exit(2);
    return y;
}

static void check_feedback(int type, int kind, const float *x, const uint16_t *factor, const char *what) {
    select_isa("scalar");
    const kernel *scalar = kernel_at(type);
    if (!find_feedback(scalar->name)) return;
    const size_t bytes = COUNT / (size_t)scalar->block * (size_t)scalar->size;
    for (int effort = 0; effort < 2; ++effort) { /* the others take the same way, and long */
        uint8_t *expected = spread(scalar->name, x, bytes, factor, effort);
        char how[32];
        snprintf(how, sizeof how, ", feedback, effort %d", effort);
        if (kind < KINDS) report(scalar->name, what, how, expected, bytes, NULL);
        for (const char *const *isa = available_isas(); *isa; ++isa) {
            select_isa(*isa);
            if (!equal_bytes(spread(scalar->name, x, bytes, factor, effort), expected, bytes)) fail(scalar->name, "feedback", *isa);
        }
        free(expected);
    }
}

/* Random bytes: every code and scale that a file can hold. */
static void check_decode(int type) {
    uint8_t data[COUNT * 8];
    for (size_t i = 0; i < sizeof data / 32; ++i) {
        uint64_t words[4];
        philox(4321, i, words);
        memcpy(data + 32 * i, words, 32);
    }
    select_isa("scalar");
    const kernel *scalar = kernel_at(type);
    float *expected = decoded(scalar, data, COUNT);
    const int64_t odd = scalar->nonfinite ? scalar->nonfinite(data, COUNT) : 0;
    report(scalar->name, "random bytes", ", decoded", expected, COUNT * sizeof *expected, NULL);
    for (const char *const *isa = available_isas(); *isa; ++isa) {
        select_isa(*isa);
        const kernel *k = kernel_at(type);
        if (!equal_bytes(decoded(k, data, COUNT), expected, COUNT * sizeof *expected)) fail(k->name, "random bytes", *isa);
        if (k->nonfinite && k->nonfinite(data, COUNT) != odd) fail(k->name, "count of non-finite values", *isa);
    }
    free(expected);
}

/* The largest of floats of every kind, in buffers of every length, by every instruction set. */
static void check_largest(void) {
    const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f};
    float x[67];
    for (int n = 0; n <= 67; ++n)
        for (int at = -1; at < n; ++at)
            for (int kind = 0; kind < (at < 0 ? 1 : 6); ++kind) {
                for (int i = 0; i < n; ++i) x[i] = (i % 2 ? 1.0f : -1.0f) * (float)i / 64;
                if (at >= 0) x[at] = odd[kind];
                const float expected = at >= 0 ? fabsf(odd[kind]) : n ? (float)(n - 1) / 64 : 0;
                float *given = exact(x, (size_t)n * sizeof *x);
                for (const char *const *isa = available_isas(); *isa; ++isa) {
                    select_isa(*isa);
                    const float found = largest_in_use()(given, n);
                    if (found != expected && !(isnan(found) && isnan(expected))) fail("largest", "floats", *isa);
                }
                free(given);
            }
}

/* Two arrays of `n` elements against each other, in buffers of exactly that size. */
static comparison compared_by(const float *a, const float *b, int n, uint64_t *histogram) {
    float *x = exact(a, (size_t)n * sizeof *x), *y = exact(b, (size_t)n * sizeof *y);
    comparison c = {.worst_at = -1};
    memset(histogram, 0, ERROR_BUCKETS * sizeof *histogram);
    compare_in_use()(x, y, n, 0, histogram, &c);
    free(x);
    free(y);
    return c;
}

static void check_compare(const char *what, const float *a, const float *b) {
    static uint64_t expected_counts[ERROR_BUCKETS], counts[ERROR_BUCKETS];
    for (int n = COUNT; n >= COUNT - 3; n -= 3) {
        select_isa("scalar");
        const comparison expected = compared_by(a, b, n, expected_counts);
        if (n == COUNT) report("comparison", what, "", &expected, sizeof expected, NULL);
        for (const char *const *isa = available_isas(); *isa; ++isa) {
            select_isa(*isa);
            const comparison c = compared_by(a, b, n, counts);
            if (memcmp(&c, &expected, sizeof c) != 0 || memcmp(counts, expected_counts, sizeof counts) != 0)
                fail("comparison", what, *isa);
        }
    }
}

/* The same sum by every instruction set, from any address, in one piece and in two. */
static void check_crc32c(void) {
    enum { SIZE = 3 * 8192 + 77 };
    static uint8_t data[SIZE + 32];
    for (size_t i = 0; i < sizeof data / 32; ++i) {
        uint64_t words[4];
        philox(3720, i, words);
        memcpy(data + 32 * i, words, 32);
    }
    for (size_t n = 0; n <= SIZE; n = n < 40 ? n + 1 : n + (SIZE - 40) / 3) {
        select_isa("scalar");
        const uint32_t expected = crc32c_in_use()(0, data, n);
        char what[32];
        snprintf(what, sizeof what, "%d random bytes", (int)n);
        report("CRC-32C", what, "", &expected, sizeof expected, NULL);
        for (const char *const *isa = available_isas(); *isa; ++isa) {
            select_isa(*isa);
            crc32c_fn *sum = crc32c_in_use();
            uint8_t *room = exact(NULL, n + 1);
            memcpy(room + 1, data, n);
            if (sum(0, room + 1, n) != expected) fail("CRC-32C", what, *isa);
            if (sum(sum(0, room + 1, n / 3), room + 1 + n / 3, n - n / 3) != expected) fail("CRC-32C", "two pieces", *isa);
            free(room);
        }
    }
    if (crc32c_in_use()(0, (const uint8_t *)"123456789", 9) != 0xE3069283u) fail("CRC-32C", "the check value", "it");
}

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);
    if (!file || !text || fread(text, 1, (1 << 20) - 1, file) == 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    return text;
}

int main(int argc, char **argv) {
    char *stored = argc > 1 ? read_text(argv[1]) : NULL;
    static float x[ALL_KINDS][COUNT], weights[WEIGHTINGS][ROW];
    for (int kind = 0; kind < ALL_KINDS; ++kind) sample(kind, x[kind]);
    for (int i = 0; i < WEIGHTINGS; ++i) importance_of(i, weights[i]);
    init_grids();
    init_crc32c();
    check_crc32c();
    check_largest();
    for (int i = 0; i < GRID_COUNT; ++i)
        if (!ensure_grid(i)) return 2;
    const uint16_t *factor = some_factor();
    const kernel *k;
    for (int type = 0; (k = kernel_at(type)); ++type) {
        check_decode(type);
        for (int kind = 0; kind < ALL_KINDS; ++kind)
            check_feedback(type, kind, x[kind], factor, kind < KINDS ? KIND_NAMES[kind] : ODD_NAMES[kind - KINDS]);
        for (int kind = 0; k->encode && kind < ALL_KINDS; ++kind)
            for (int w = k->needs_weights ? WEIGHTED : PLAIN; w < WEIGHTINGS; ++w) {
                char what[64];
                const char *name = kind < KINDS ? KIND_NAMES[kind] : ODD_NAMES[kind - KINDS];
                snprintf(what, sizeof what, "%s, %s", name, WEIGHTING_NAMES[w]);
                check_encode(type, kind, x[kind], w == PLAIN ? NULL : weights[w], what, stored);
                for (int level = 1; level <= MOST_EFFORT; ++level)
                    check_effort(type, kind, x[kind], w == PLAIN ? NULL : weights[w], what, level);
            }
    }
    for (int kind = 0; kind < ALL_KINDS; ++kind)
        check_compare(kind < KINDS ? KIND_NAMES[kind] : ODD_NAMES[kind - KINDS], x[kind], x[(kind + 1) % ALL_KINDS]);
    fprintf(stderr, "%d differences; %d stored digests compared\n", failures, compared);
    free(stored);
    return failures > 0;
}
