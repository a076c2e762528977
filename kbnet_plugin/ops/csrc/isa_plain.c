/* Any processor: four floats at a time, SSE2 on x86 and NEON on ARM. */
#define ISA plain
#define WIDTH 4
#if defined(__aarch64__)
#define PIXELS 8 /* 32 registers */
#else
#define PIXELS 4
#endif
#include "vec.h"
#include "vec_block_tiles.h"

static int available(void) { return 1; }

static const kba_isa table = VEC_ISA("plain", available);
const kba_isa *const kba_plain = &table;
static const block_isa block = VEC_BLOCK;
const block_isa *const block_plain = &block;
