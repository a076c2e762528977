/* Not by GCC on Windows, which aligns the stack to 16 bytes only (its bug 54412). */
#if defined(__AVX2__) && (defined(__clang__) || !defined(_WIN32))
#define ISA avx2
#define WIDTH 8
#define PIXELS 4
#include "cpu.h"
#include "vec.h"
#include "vec_block_tiles.h"

static int available(void) { return cpu_supports(AVX2, AVX_STATE); }

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
