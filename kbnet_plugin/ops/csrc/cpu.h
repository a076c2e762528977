/* What x86 processor and system support. Not by __builtin_cpu_supports: with MSVC's linker its tables are missing. */
#ifndef CPU_H
#define CPU_H

#include <cpuid.h>

enum { AVX_STATE = 0x6, AVX512_STATE = 0xe6 }; /* registers that the system saves, as XCR0 has them */
#define AVX2 (1u << 5)
#define AVX512_F_DQ_BW_VL (1u << 16 | 1u << 17 | 1u << 30 | 1u << 31)

/* FMA, and these features of leaf 7, with their registers. */
static inline int cpu_supports(unsigned features, unsigned state)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 12 & 1) || !(c >> 27 & 1)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & state) == state && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}

#endif
