#ifdef __AVX2__
#define ISA avx2
#define WIDTH 8
#define PIXELS 4
#include "vec.h"
#include "vec_block_tiles.h"

static int available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static const kba_isa table = VEC_ISA("avx2", available);
const kba_isa *const kba_avx2 = &table;
static const block_isa block = VEC_BLOCK;
const block_isa *const block_avx2 = &block;
#else
#include "block.h"
#include "kba.h"
const kba_isa *const kba_avx2 = NULL;
const block_isa *const block_avx2 = NULL;
#endif
