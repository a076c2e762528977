/* Any processor: four floats at a time, SSE2 on x86 and NEON on ARM. */
#define ISA plain
#define WIDTH 4
#if defined(__aarch64__)
#define PIXELS 8 /* 32 registers */
#else
#define PIXELS 4
#endif
#include "vec.h"

static int available(void) { return 1; }

static const kba_isa table = VEC_ISA("plain", available);
const kba_isa *const kba_plain = &table;
