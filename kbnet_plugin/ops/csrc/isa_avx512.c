#ifdef __AVX512F__
#define ISA avx512
#define WIDTH 16
#define PIXELS 8
#include "vec.h"
#include "vec_block_tiles.h"

static int available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

static const kba_isa table = VEC_ISA("avx512", available);
const kba_isa *const kba_avx512 = &table;
static const block_isa block = VEC_BLOCK;
const block_isa *const block_avx512 = &block;
#else
#include "block.h"
#include "kba.h"
const kba_isa *const kba_avx512 = NULL;
const block_isa *const block_avx512 = NULL;
#endif
