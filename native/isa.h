/* Names of what is compiled once per instruction set: FN(encode_q4_k) is encode_q4_k_avx2, and so on.
 * The build defines ISA as scalar, sse2, neon, avx2 or avx512. */
#ifndef CONVERTER_ISA_H
#define CONVERTER_ISA_H

#define ISA_JOIN_(name, isa) name##_##isa
#define ISA_JOIN(name, isa) ISA_JOIN_(name, isa)
#define FN(name) ISA_JOIN(name, ISA)

#endif
