#if defined(__AVX512F__) && (defined(__clang__) || !defined(_WIN32)) /* as in isa_avx2.c */
#define ISA avx512
#define WIDTH 16
#define PIXELS 8
#include "cpu.h"
#include "vec.h"
#include "vec_block_tiles.h"

static int available(void) { return cpu_supports(AVX512_F_DQ_BW_VL, AVX512_STATE); }

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
