/* The tile unit in AVX-512, for processors without one: `gcc -include amx_emulation.h isa_amx.c`, with the flags of
 * isa_avx512.c only. TDPBF16PS follows the pseudocode of Intel's Software Developer's Manual, volume 2. */
#define _GNU_SOURCE /* as in isa_amx.c; too late there */
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* What isa_amx.c asks the compiler, the processor and the kernel. The assembler prefers a macro to an instruction. */
#define __AMX_BF16__ 1
#define __AVX512BF16__ 1
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(a) = *(b) = *(c) = *(d) = ~0u, 1)
#define syscall(...) 0
__asm__(".macro xgetbv\n\tmovl $-1, %eax\n\tmovl $-1, %edx\n.endm");

#define _Pragma(text) /* no unrolling, which takes five times as long to compile */

/* A tile intrinsic that is not replaced below would assemble, and fault on the first use. */
__asm__(".irp name, ldtilecfg, sttilecfg, tilerelease, tilezero, tileloadd, tileloaddt1, tilestored, tdpbf16ps\n"
        ".macro \\name operands:vararg\n.error \"an AMX instruction is not emulated\"\n.endm\n.endr");

#define EMULATED static __attribute__((noinline, unused))

__attribute__((visibility("default"))) atomic_llong amx_products, amx_faults;

typedef struct {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} amx_config;

static _Thread_local struct {
    amx_config config;
    uint32_t tile[8][16][16];
} amx;

/* Counts what would raise an exception; the results are garbage then. */
static int amx_check(int fine)
{
    if (!fine) atomic_fetch_add(&amx_faults, 1);
    return fine;
}

EMULATED void amx_loadconfig(const void *config)
{
    memset(&amx, 0, sizeof amx);
    memcpy(&amx.config, config, sizeof amx.config);
    int fine = amx.config.palette == 1 && amx.config.start == 0;
    for (int i = 0; i < 16; i++) {
        fine &= amx.config.rows[i] <= (i < 8 ? 16 : 0) && amx.config.bytes[i] <= (i < 8 ? 64 : 0);
        fine &= !amx.config.rows[i] == !amx.config.bytes[i];
    }
    for (int i = 0; i < 14; i++) fine &= !amx.config.zero[i];
    amx_check(fine);
}

EMULATED void amx_release(void) { memset(&amx, 0, sizeof amx); }

static int amx_ready(int t) { return amx_check(amx.config.palette && t >= 0 && t < 8 && amx.config.rows[t]); }

EMULATED void amx_zero(int t)
{
    if (amx_ready(t)) memset(amx.tile[t], 0, sizeof amx.tile[t]);
}

EMULATED void amx_load(int t, const void *base, int64_t stride)
{
    if (!amx_ready(t)) return;
    memset(amx.tile[t], 0, sizeof amx.tile[t]);
    for (int r = 0; r < amx.config.rows[t]; r++)
        memcpy(amx.tile[t][r], (const char *)base + r * stride, amx.config.bytes[t]);
}

EMULATED void amx_store(int t, void *base, int64_t stride)
{
    if (!amx_ready(t)) return;
    for (int r = 0; r < amx.config.rows[t]; r++)
        memcpy((char *)base + r * stride, amx.tile[t][r], amx.config.bytes[t]);
}

/* Sums of the even and of the odd elements of the pairs, added to the tile at the end. */
EMULATED void amx_accumulate(int c, int a, int b)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000);
    const __mmask16 columns = (__mmask16)((1u << amx.config.bytes[c] / 4) - 1);
#define EVEN(v) _mm512_castsi512_ps(_mm512_slli_epi32(v, 16))
#define ODD(v) _mm512_castsi512_ps(_mm512_and_si512(v, mask))
    for (int m = 0; m < amx.config.rows[c]; m++) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < amx.config.bytes[a] / 4; k++) {
            const __m512i u = _mm512_set1_epi32((int)amx.tile[a][m][k]), v = _mm512_loadu_si512(amx.tile[b][k]);
            even = _mm512_fmadd_ps(EVEN(u), EVEN(v), even);
            odd = _mm512_fmadd_ps(ODD(u), ODD(v), odd);
        }
        const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(amx.tile[c][m]), _mm512_add_ps(even, odd));
        _mm512_storeu_ps(amx.tile[c][m], _mm512_maskz_mov_ps(columns, sum));
    }
#undef EVEN
#undef ODD
}

EMULATED void amx_product(int c, int a, int b)
{
    if (!amx_ready(c) || !amx_ready(a) || !amx_ready(b)) return;
    const uint16_t *bytes = amx.config.bytes;
    const uint8_t *rows = amx.config.rows;
    if (!amx_check(a != b && a != c && b != c)) return;
    if (!amx_check(rows[c] == rows[a] && bytes[c] == bytes[b] && bytes[a] == 4 * rows[b])) return;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* all masked, to nearest; denormals are zeros, in and out */
    amx_accumulate(c, a, b);
    _mm_setcsr(before);
    atomic_fetch_add_explicit(&amx_products, 1, memory_order_relaxed);
}

/* To nearest even; denormals become zeros, NaN quiet. */
EMULATED __m256i amx_narrow(__m512 x)
{
    const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16), one = _mm512_set1_epi32(1);
    const __m512i bias = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, one));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __mmask16 denormal = _mm512_testn_epi32_mask(u, _mm512_set1_epi32(0x7f800000));
    rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    rounded = _mm512_mask_and_epi32(rounded, denormal, high, _mm512_set1_epi32(0x8000));
    return _mm512_cvtepi32_epi16(rounded);
}

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_loadconfig
#define _tile_release amx_release
#define _tile_zero amx_zero
#define _tile_loadd amx_load
#define _tile_stream_loadd amx_load
#define _tile_stored amx_store
#define _tile_dpbf16ps amx_product
#define _mm512_cvtneps_pbh amx_narrow
