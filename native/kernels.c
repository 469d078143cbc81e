/* The table of types for each instruction set, and which one is in use. */
#include "kernels.h"

#include <string.h>

/* Every type: DENSE(name, function, bytes), BLOCK(name, function, elements, bytes); READS has no encoder,
 * NEEDS is a BLOCK that must have importance. */
#define TYPES(DENSE, BLOCK, READS, NEEDS, isa)                                                                      \
    DENSE("F32", f32, 4, isa) DENSE("F16", f16, 2, isa) DENSE("BF16", bf16, 2, isa) DENSE("F64", f64, 8, isa)       \
    DENSE("F8_E4M3", f8_e4m3, 1, isa) DENSE("F8_E5M2", f8_e5m2, 1, isa)                                             \
    BLOCK("Q4_0", q4_0, 32, 18, isa) BLOCK("Q4_1", q4_1, 32, 20, isa)                                               \
    BLOCK("Q5_0", q5_0, 32, 22, isa) BLOCK("Q5_1", q5_1, 32, 24, isa)                                               \
    BLOCK("Q8_0", q8_0, 32, 34, isa) READS("Q8_1", q8_1, 32, 36, isa) READS("Q8_K", q8_k, 256, 292, isa)            \
    BLOCK("Q2_K", q2_k, 256, 84, isa) BLOCK("Q3_K", q3_k, 256, 110, isa) BLOCK("Q4_K", q4_k, 256, 144, isa)         \
    BLOCK("Q5_K", q5_k, 256, 176, isa) BLOCK("Q6_K", q6_k, 256, 210, isa)                                           \
    BLOCK("IQ4_NL", iq4_nl, 32, 18, isa) BLOCK("IQ4_XS", iq4_xs, 256, 136, isa)                                     \
    BLOCK("IQ3_XXS", iq3_xxs, 256, 98, isa) BLOCK("IQ3_S", iq3_s, 256, 110, isa) BLOCK("IQ2_S", iq2_s, 256, 82, isa) \
    NEEDS("IQ2_XXS", iq2_xxs, 256, 66, isa) NEEDS("IQ2_XS", iq2_xs, 256, 74, isa)                                   \
    NEEDS("IQ1_S", iq1_s, 256, 50, isa) BLOCK("IQ1_M", iq1_m, 256, 56, isa)                                         \
    BLOCK("TQ1_0", tq1_0, 256, 54, isa) BLOCK("TQ2_0", tq2_0, 256, 66, isa)                                         \
    BLOCK("MXFP4", mxfp4, 32, 17, isa) BLOCK("NVFP4", nvfp4, 64, 36, isa)                                           \
    BLOCK("Q1_0", q1_0, 128, 18, isa) BLOCK("Q2_0", q2_0, 64, 18, isa)

#define DENSE_ROW(NAME, t, bytes, isa) {NAME, 1, bytes, false, encode_##t##_##isa, decode_##t##_##isa, nonfinite_##t##_##isa},
#define BLOCK_ROW(NAME, t, n, bytes, isa) {NAME, n, bytes, false, encode_##t##_##isa, decode_##t##_##isa, NULL},
#define READS_ROW(NAME, t, n, bytes, isa) {NAME, n, bytes, false, NULL, decode_##t##_##isa, NULL},
#define NEEDS_ROW(NAME, t, n, bytes, isa) {NAME, n, bytes, true, encode_##t##_##isa, decode_##t##_##isa, NULL},

#define DENSE_NAME(NAME, t, bytes, isa)      \
    extern encode_fn encode_##t##_##isa;     \
    extern decode_fn decode_##t##_##isa;     \
    extern count_fn nonfinite_##t##_##isa;
#define BLOCK_NAME(NAME, t, n, bytes, isa)   \
    extern encode_fn encode_##t##_##isa;     \
    extern decode_fn decode_##t##_##isa;
#define READS_NAME(NAME, t, n, bytes, isa) extern decode_fn decode_##t##_##isa;

/* Types whose blocks `--effort` makes better. */
#define EFFORTS(ROW, isa)                                                                                           \
    ROW("Q2_K", q2_k, isa) ROW("Q3_K", q3_k, isa) ROW("Q4_K", q4_k, isa) ROW("Q5_K", q5_k, isa) ROW("Q6_K", q6_k, isa) \
    ROW("Q4_0", q4_0, isa) ROW("Q4_1", q4_1, isa) ROW("Q5_0", q5_0, isa) ROW("Q5_1", q5_1, isa)                     \
    ROW("IQ4_NL", iq4_nl, isa) ROW("IQ4_XS", iq4_xs, isa) ROW("IQ3_XXS", iq3_xxs, isa) ROW("IQ3_S", iq3_s, isa)     \
    ROW("IQ2_XXS", iq2_xxs, isa) ROW("IQ2_XS", iq2_xs, isa) ROW("IQ2_S", iq2_s, isa) ROW("IQ1_S", iq1_s, isa)     \
    ROW("MXFP4", mxfp4, isa) ROW("NVFP4", nvfp4, isa)

typedef struct {
    const char *name;
    effort_fn *effort;
} effort_row;

/* Types that are encoded with error feedback. */
#define FEEDBACKS(ROW, isa)                                                                                         \
    ROW("Q2_K", q2_k, isa) ROW("Q3_K", q3_k, isa) ROW("Q4_K", q4_k, isa) ROW("Q5_K", q5_k, isa) ROW("Q6_K", q6_k, isa) \
    ROW("Q4_0", q4_0, isa) ROW("Q4_1", q4_1, isa) ROW("Q5_0", q5_0, isa) ROW("Q5_1", q5_1, isa) ROW("Q8_0", q8_0, isa)

typedef struct {
    const char *name;
    feedback_fn *feedback;
} feedback_row;

#define FEEDBACK_NAME(NAME, t, isa) extern feedback_fn feedback_##t##_##isa;
#define FEEDBACK_ROW(NAME, t, isa) {NAME, feedback_##t##_##isa},
#define EFFORT_NAME(NAME, t, isa) extern effort_fn effort_##t##_##isa;
#define EFFORT_ROW(NAME, t, isa) {NAME, effort_##t##_##isa},

#define TABLE(isa)                                                           \
    EFFORTS(EFFORT_NAME, isa)                                                \
    static const effort_row EFFORTS_##isa[] = {EFFORTS(EFFORT_ROW, isa) {NULL, NULL}}; \
    FEEDBACKS(FEEDBACK_NAME, isa)                                            \
    static const feedback_row FEEDBACKS_##isa[] = {FEEDBACKS(FEEDBACK_ROW, isa) {NULL, NULL}}; \
    extern compare_fn compare_##isa;                                         \
    extern largest_fn largest_##isa;                                         \
    extern crc32c_fn crc32c_##isa;                                           \
    TYPES(DENSE_NAME, BLOCK_NAME, READS_NAME, BLOCK_NAME, isa)              \
    static const kernel TABLE_##isa[] = {TYPES(DENSE_ROW, BLOCK_ROW, READS_ROW, NEEDS_ROW, isa)};

TABLE(scalar)
#define COUNT ((int)(sizeof TABLE_scalar / sizeof *TABLE_scalar))

static bool always(void) { return true; }

#if defined(HAVE_X86)
TABLE(sse2)
TABLE(avx2)
TABLE(avx512)

static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#elif defined(HAVE_NEON)
TABLE(neon)
#endif

/* Best first. */
static const struct {
    const char *name;
    const kernel *table;
    const effort_row *efforts;
    const feedback_row *feedbacks;
    compare_fn *compare;
    largest_fn *largest;
    crc32c_fn *crc32c;
    bool (*runs)(void);
} SETS[] = {
#if defined(HAVE_X86)
    {"avx512", TABLE_avx512, EFFORTS_avx512, FEEDBACKS_avx512, compare_avx512, largest_avx512, crc32c_avx512, has_avx512},
    {"avx2", TABLE_avx2, EFFORTS_avx2, FEEDBACKS_avx2, compare_avx2, largest_avx2, crc32c_avx2, has_avx2},
    {"sse2", TABLE_sse2, EFFORTS_sse2, FEEDBACKS_sse2, compare_sse2, largest_sse2, crc32c_sse2, always},
#elif defined(HAVE_NEON)
    {"neon", TABLE_neon, EFFORTS_neon, FEEDBACKS_neon, compare_neon, largest_neon, crc32c_neon, always},
#endif
    {"scalar", TABLE_scalar, EFFORTS_scalar, FEEDBACKS_scalar, compare_scalar, largest_scalar, crc32c_scalar, always},
};
#define SET_COUNT ((int)(sizeof SETS / sizeof *SETS))

static int in_use = SET_COUNT - 1;

const kernel *kernel_at(int i) { return i < COUNT ? &SETS[in_use].table[i] : NULL; }

const kernel *find_kernel(const char *name) {
    const kernel *k;
    for (int i = 0; (k = kernel_at(i)); ++i)
        if (strcmp(k->name, name) == 0) return k;
    return NULL;
}

effort_fn *find_effort(const char *name) {
    for (const effort_row *row = SETS[in_use].efforts; row->name; ++row)
        if (strcmp(row->name, name) == 0) return row->effort;
    return NULL;
}

feedback_fn *find_feedback(const char *name) {
    for (const feedback_row *row = SETS[in_use].feedbacks; row->name; ++row)
        if (strcmp(row->name, name) == 0) return row->feedback;
    return NULL;
}

const char *feedback_at(int i) {
    return i < (int)(sizeof FEEDBACKS_scalar / sizeof *FEEDBACKS_scalar) ? FEEDBACKS_scalar[i].name : NULL;
}

compare_fn *compare_in_use(void) { return SETS[in_use].compare; }

largest_fn *largest_in_use(void) { return SETS[in_use].largest; }

crc32c_fn *crc32c_in_use(void) { return SETS[in_use].crc32c; }

const char *const *available_isas(void) {
    static const char *names[SET_COUNT + 1];
    int n = 0;
    for (int i = 0; i < SET_COUNT; ++i)
        if (SETS[i].runs()) names[n++] = SETS[i].name;
    names[n] = NULL;
    return names;
}

bool select_isa(const char *name) {
    for (int i = 0; i < SET_COUNT; ++i)
        if (strcmp(SETS[i].name, name) == 0 && SETS[i].runs()) {
            in_use = i;
            return true;
        }
    return false;
}

const char *current_isa(void) { return SETS[in_use].name; }
