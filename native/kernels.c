/* The table of types, and which instruction set serves it. */
#include "kernels.h"

#include <string.h>

#define DENSE(NAME, t, bytes) {NAME, 1, bytes, false, encode_##t, decode_##t, nonfinite_##t}
#define BLOCK(NAME, t, elements, bytes) {NAME, elements, bytes, false, encode_##t, decode_##t, NULL}
#define NEEDS(NAME, t, elements, bytes) {NAME, elements, bytes, true, encode_##t, decode_##t, NULL}
#define READS(NAME, t, elements, bytes) {NAME, elements, bytes, false, NULL, decode_##t, NULL}

static const kernel SCALAR[] = {
    DENSE("F32", f32, 4), DENSE("F16", f16, 2), DENSE("BF16", bf16, 2), DENSE("F64", f64, 8),
    DENSE("F8_E4M3", f8_e4m3, 1), DENSE("F8_E5M2", f8_e5m2, 1),
    BLOCK("Q4_0", q4_0, 32, 18), BLOCK("Q4_1", q4_1, 32, 20), BLOCK("Q5_0", q5_0, 32, 22), BLOCK("Q5_1", q5_1, 32, 24),
    BLOCK("Q8_0", q8_0, 32, 34), READS("Q8_1", q8_1, 32, 36), READS("Q8_K", q8_k, 256, 292),
    BLOCK("Q2_K", q2_k, 256, 84), BLOCK("Q3_K", q3_k, 256, 110), BLOCK("Q4_K", q4_k, 256, 144),
    BLOCK("Q5_K", q5_k, 256, 176), BLOCK("Q6_K", q6_k, 256, 210),
    BLOCK("IQ4_NL", iq4_nl, 32, 18), BLOCK("IQ4_XS", iq4_xs, 256, 136),
    BLOCK("IQ3_XXS", iq3_xxs, 256, 98), BLOCK("IQ3_S", iq3_s, 256, 110),
    NEEDS("IQ2_XXS", iq2_xxs, 256, 66), NEEDS("IQ2_XS", iq2_xs, 256, 74), BLOCK("IQ2_S", iq2_s, 256, 82),
    NEEDS("IQ1_S", iq1_s, 256, 50), BLOCK("IQ1_M", iq1_m, 256, 56),
    BLOCK("TQ1_0", tq1_0, 256, 54), BLOCK("TQ2_0", tq2_0, 256, 66),
    BLOCK("MXFP4", mxfp4, 32, 17), BLOCK("NVFP4", nvfp4, 64, 36),
    BLOCK("Q1_0", q1_0, 128, 18), BLOCK("Q2_0", q2_0, 64, 18),
};

static const char *const ISAS[] = {"scalar", NULL};

const kernel *kernel_at(int i) { return i < (int)(sizeof SCALAR / sizeof *SCALAR) ? &SCALAR[i] : NULL; }

const kernel *find_kernel(const char *name) {
    for (size_t i = 0; i < sizeof SCALAR / sizeof *SCALAR; ++i)
        if (strcmp(SCALAR[i].name, name) == 0) return &SCALAR[i];
    return NULL;
}

const char *const *available_isas(void) { return ISAS; }

bool select_isa(const char *name) { return strcmp(name, "scalar") == 0; }

const char *current_isa(void) { return "scalar"; }
