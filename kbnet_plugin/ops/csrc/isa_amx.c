/* AMX tiles: 16 x 32 by 32 x 16 products of bfloat16 with float32 sums.
 *
 * A float is the sum of two bfloat16 to within 2^-17 of its size, so float32 takes three products (high * high,
 * high * low, low * high). While the tile unit computes one block, the vector unit consumes the previous one: the two
 * are interleaved by hand and exchange data through the first level of cache.
 */
#define _GNU_SOURCE /* for syscall */
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kba.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Forces one register with constant offsets; otherwise GCC keeps an offset for every row on the stack. */
#define OPAQUE(pointer) __asm__("" : "+r"(pointer))

enum { TILE = 512 }; /* bfloat16 in a tile */

typedef uint16_t half_t;

static int available(void)
{
    static int answer = -1;
    if (answer >= 0) return answer;
    unsigned a, b, c, d, low, high;
    int ok = kba_avx512 && kba_avx512->available() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) &&
             (d >> 24 & 1) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
    if (ok) {
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        ok = (low >> 17 & 3) == 3;
    }
    /* A process must request the tile state from the kernel: ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA. */
    return answer = ok && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

static void enter(void)
{
    /* Constant, because GCC believes only the first eight bytes are read and would drop stores to the rest. */
    static const struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}

static void leave(void) { _tile_release(); }

/* x = high + low, both exact bfloat16; finite for finite x, and the sum preserves infinity and NaN. */
INLINE void halves(__m512 x, __m512i *high, __m512i *low, const int exact)
{
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f7f0000));
    const __m512 h = exact ? _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), most), _mm512_min_ps(most, x)) : x;
#define ROUND(v) _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16)
    *high = ROUND(h);
    *low = ROUND(_mm512_sub_ps(x, _mm512_castsi512_ps(*high)));
#undef ROUND
}

/* Upper halves of two floats side by side. */
INLINE __m512i pair(__m512i first, __m512i second)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(first, 16), second, mask, 0xf8); /* a | (b & c) */
}

/* A faster split for the products, which rounds ties away from zero. vrangeps (the smaller magnitude, the sign of the
 * first) keeps the largest floats from rounding to infinity. */
INLINE void split(__m512 first, __m512 second, half_t *high, half_t *low, const int exact)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000), half = _mm512_set1_epi32(0x8000);
#define ADD(v) _mm512_add_epi32(_mm512_castps_si512(v), half)
#define CUT(v) _mm512_castsi512_ps(_mm512_and_si512(v, mask))
#define BOUND(v) (exact ? _mm512_range_ps(v, most, 2) : (v))
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f7f0000));
    const __m512i h0 = ADD(BOUND(first)), h1 = ADD(BOUND(second));
    _mm512_store_si512(high, pair(h0, h1));
    if (exact) _mm512_store_si512(low, pair(ADD(_mm512_sub_ps(first, CUT(h0))), ADD(_mm512_sub_ps(second, CUT(h1)))));
#undef ADD
#undef BOUND
#undef CUT
}

static void transpose(__m512i *r)
{
    __m512i t[16];
    UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

static void load(float *strip, int stride, const kba_view *v) { kba_avx512->load(strip, stride, v); }
static void store(const float *strip, int stride, const kba_view *v) { kba_avx512->store(strip, stride, v); }
static void spread(float *o, const float *i, int64_t n, int group, int m) { kba_avx512->spread(o, i, n, group, m); }
static void gather(float *out, int64_t step, const char *in, const int64_t *offset, int count, int64_t run, int64_t dtype)
{
    kba_avx512->gather(out, step, in, offset, count, run, dtype);
}
static void scatter(float *out, const int64_t *offset, int count, int64_t run, const float *in, int64_t step)
{
    kba_avx512->scatter(out, offset, count, run, in, step);
}
static void add(float *sum, const float *more, int64_t count) { kba_avx512->add(sum, more, count); }

/* [pixel][high, low][base] */
static void pack_rows(void *out, const float *a, int64_t pixels, int exact)
{
    __m256i *o = out;
    for (int64_t p = 0; p < pixels; p++, o += 4)
        for (int s = 0; s < 2; s++) {
            __m512i high, low;
            halves(_mm512_loadu_ps(a + p * BASES + s * LANES), &high, &low, exact);
            _mm256_store_si256(o + s, _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
            _mm256_store_si256(o + 2 + s, _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16)));
        }
}

/* [32 pixels][half of the bases][high, low][base][pixel] */
static void pack_columns(void *out, const float *a, int64_t pixels, int exact)
{
    __m512i *o = out;
    for (int64_t p = 0; p < pixels; p += 32, a += 32 * BASES)
        for (int s = 0; s < 2; s++, o += 32) {
            for (int r = 0; r < 16; r++) {
                __m512i h0, l0, h1, l1;
                halves(_mm512_loadu_ps(a + 2 * r * BASES + s * LANES), &h0, &l0, exact);
                halves(_mm512_loadu_ps(a + (2 * r + 1) * BASES + s * LANES), &h1, &l1, exact);
                o[r] = pair(h0, h1);
                o[16 + r] = pair(l0, l1);
            }
            transpose(o);
            if (exact) transpose(o + 16);
        }
}

/* [tap][high, low][pair of bases][lane][base of the pair] */
static void pack_weight(float *w, int taps, int exact)
{
    for (int t = 0; t < taps; t++, w += BASES * LANES) {
        __m512i o[32];
        for (int r = 0; r < 16; r++) {
            __m512i h0, l0, h1, l1;
            halves(_mm512_loadu_ps(w + 2 * r * LANES), &h0, &l0, exact);
            halves(_mm512_loadu_ps(w + (2 * r + 1) * LANES), &h1, &l1, exact);
            o[r] = pair(h0, h1);
            o[16 + r] = pair(l0, l1);
        }
        memcpy(w, o, sizeof o);
    }
}

/* [pair of taps][half of the bases][high, low][lane][base][tap of the pair] */
static void pack_transposed(void *out, const float *w, int taps, int bases, int exact)
{
    (void)bases;
    __m512i *o = out;
    for (int t = 0; t < taps; t += 2, w += 2 * BASES * LANES)
        for (int s = 0; s < 2; s++, o += 32) {
            for (int r = 0; r < 16; r++) {
                const float *first = w + (s * 16 + r) * LANES;
                __m512i h0, l0, h1, l1;
                halves(_mm512_loadu_ps(first), &h0, &l0, exact);
                halves(_mm512_loadu_ps(first + BASES * LANES), &h1, &l1, exact);
                o[r] = pair(h0, h1);
                o[16 + r] = pair(l0, l1);
            }
            transpose(o);
            if (exact) transpose(o + 16);
        }
}

enum { TAPS = 10 }; /* taps whose weights and kernels for sixteen pixels fit the first level of cache */

/* Coefficients of sixteen pixels. */
#define ROWS(rows)                                                                                                       \
    do {                                                                                                                 \
        _tile_loadd(0, rows, 4 * BASES);                                                                                 \
        if (exact) _tile_loadd(1, rows + BASES, 4 * BASES);                                                              \
    } while (0)

/* Their kernels for one tap; tiles (kernels, weights high and low) alternate between taps, so that taps overlap. */
#define TAP(K, H, L)                                                                                                     \
    do {                                                                                                                 \
        _tile_zero(K);                                                                                                   \
        _tile_loadd(H, b, 64);                                                                                           \
        _tile_dpbf16ps(K, 0, H);                                                                                         \
        if (exact) {                                                                                                     \
            _tile_loadd(L, b + TILE, 64);                                                                                \
            _tile_dpbf16ps(K, 1, H);                                                                                     \
            _tile_dpbf16ps(K, 0, L);                                                                                     \
        }                                                                                                                \
        _tile_stored(K, now + t * 256, 64);                                                                              \
    } while (0)

INLINE void conv_taps(float *acc, const half_t *a, const half_t *w, const float *const *x, const int64_t *shift,
                      int64_t pixels, float *scratch, const int taps, const int shifted, const int exact)
{
    for (int64_t p = 0; p <= pixels; p += 16) {
        float *now = scratch + (p & 16 ? TAPS * 256 : 0), *before = scratch + (p & 16 ? 0 : TAPS * 256);
        __m512 sum[16]; /* of the previous block */
        if (p < pixels && !shifted) ROWS(a + p * 2 * BASES);
        if (p > 0) UNROLL for (int j = 0; j < 16; j++) sum[j] = _mm512_load_ps(acc + (p - 16 + j) * LANES);
        UNROLL for (int t = 0; t < taps; t++) {
            if (p < pixels) {
                const half_t *b = w + (size_t)t * 2 * TILE;
                if (shifted && (t == 0 || shift[t] != shift[t - 1])) ROWS(a + (p + shift[t]) * 2 * BASES);
                switch (t % 3) {
                case 0: TAP(2, 5, 6); break;
                case 1: TAP(3, 7, 6); break;
                default: TAP(4, 5, 6);
                }
            }
            if (p > 0) {
                const float *k = before + t * 256, *v = x[t] + (p - 16) * LANES;
                OPAQUE(k);
                OPAQUE(v);
                UNROLL for (int j = 0; j < 16; j++)
                    sum[j] = _mm512_fmadd_ps(_mm512_load_ps(k + j * LANES), _mm512_loadu_ps(v + j * LANES), sum[j]);
            }
        }
        if (p > 0) UNROLL for (int j = 0; j < 16; j++) _mm512_store_ps(acc + (p - 16 + j) * LANES, sum[j]);
    }
}

INLINE void conv_chunk(float *acc, const half_t *a, const half_t *w, const float *const *x, const int64_t *shift,
                       int64_t pixels, float *scratch, int taps, const int shifted, const int exact)
{
    if (taps == 9) /* unrolled, as they are the most common */
        conv_taps(acc, a, w, x, shift, pixels, scratch, 9, shifted, exact);
    else if (taps == 10)
        conv_taps(acc, a, w, x, shift, pixels, scratch, 10, shifted, exact);
    else
        conv_taps(acc, a, w, x, shift, pixels, scratch, taps, shifted, exact);
}

static void conv(float *acc, const void *a, const void *w, const float *const *x, const int64_t *shift, int taps,
                 const kba_area *area, int bases, int exact, float *scratch)
{
    (void)bases;
    const int64_t pixels = area->pixels;
    const int chunks = (taps + TAPS - 2) / (TAPS - 1) - (taps % (TAPS - 1) == 1 && taps > 1); /* 4 * 9 + 1 is 10, 9, 9, 9 */
    for (int i = 0, t = 0; i < chunks; i++) {
        const int count = (taps - t + chunks - i - 1) / (chunks - i);
        const half_t *b = (const half_t *)w + (size_t)t * 2 * TILE;
        if (shift && exact)
            conv_chunk(acc, a, b, x + t, shift + t, pixels, scratch, count, 1, 1);
        else if (shift)
            conv_chunk(acc, a, b, x + t, shift + t, pixels, scratch, count, 1, 0);
        else if (exact)
            conv_chunk(acc, a, b, x + t, NULL, pixels, scratch, count, 0, 1);
        else
            conv_chunk(acc, a, b, x + t, NULL, pixels, scratch, count, 0, 0);
        t += count;
    }
}

enum { PAIRS = 5 };

INLINE void coefficients_chunk(float *da, const float *d, const half_t *w, const float *const *x, int64_t pixels,
                               float *scratch, int pairs, const int exact)
{
    half_t *z = (half_t *)scratch;
    for (int64_t p = 0; p <= pixels; p += 16) {
        half_t *now = z + (p & 16 ? PAIRS * 2 * TILE : 0), *before = z + (p & 16 ? 0 : PAIRS * 2 * TILE);
        float *c = da + (p - 16) * BASES;
        if (p > 0) {
            _tile_loadd(0, c, 4 * BASES);
            _tile_loadd(1, c + 16, 4 * BASES);
        }
        for (int u = 0; u < pairs; u++) {
            if (p < pixels) {
                const float *x0 = x[2 * u] + p * LANES, *x1 = x[2 * u + 1] + p * LANES;
                half_t *o = now + u * 2 * TILE;
                UNROLL for (int j = 0; j < 16; j++) {
                    const __m512 v = _mm512_load_ps(d + (p + j) * LANES);
                    split(_mm512_mul_ps(v, _mm512_loadu_ps(x0 + j * LANES)), _mm512_mul_ps(v, _mm512_loadu_ps(x1 + j * LANES)),
                          o + j * 32, o + TILE + j * 32, exact);
                }
            }
            if (p > 0) {
                const half_t *i = before + u * 2 * TILE, *b = w + (size_t)u * 4 * TILE;
                _tile_loadd(2, i, 64);
                _tile_loadd(4, b, 64);
                _tile_loadd(6, b + 2 * TILE, 64);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(1, 2, 6);
                if (exact) {
                    _tile_loadd(3, i + TILE, 64);
                    _tile_loadd(5, b + TILE, 64);
                    _tile_loadd(7, b + 3 * TILE, 64);
                    _tile_dpbf16ps(0, 3, 4);
                    _tile_dpbf16ps(1, 3, 6);
                    _tile_dpbf16ps(0, 2, 5);
                    _tile_dpbf16ps(1, 2, 7);
                }
            }
        }
        if (p > 0) {
            _tile_stored(0, c, 4 * BASES);
            _tile_stored(1, c + 16, 4 * BASES);
        }
    }
}

static void grad_coefficients(float *da, const float *d, const void *w, const float *const *x, int taps, int group,
                              const kba_area *area, int bases, int exact, float *scratch)
{
    (void)bases, (void)group;
    const int64_t pixels = area->pixels;
    for (int t = 0; t < taps; t += 2 * PAIRS) {
        const int pairs = taps - t < 2 * PAIRS ? (taps - t) / 2 : PAIRS;
        const half_t *b = (const half_t *)w + (size_t)t * 2 * TILE;
        if (exact)
            coefficients_chunk(da, d, b, x + t, pixels, scratch, pairs, 1);
        else
            coefficients_chunk(da, d, b, x + t, pixels, scratch, pairs, 0);
    }
}

/* The products of one half (of the bases) by three taps, for the high or the low part of the coefficients. */
#define THREE(C0, C1, C2, A, low)                                                                                        \
    do {                                                                                                                 \
        _tile_loadd(6, A, 64);                                                                                           \
        _tile_loadd(7, b, 64);                                                                                           \
        _tile_dpbf16ps(C0, 6, 7);                                                                                        \
        _tile_loadd(7, b + 2 * TILE, 64);                                                                                \
        _tile_dpbf16ps(C1, 6, 7);                                                                                        \
        _tile_loadd(7, b + 4 * TILE, 64);                                                                                \
        _tile_dpbf16ps(C2, 6, 7);                                                                                        \
        if (low) {                                                                                                       \
            _tile_loadd(7, b + TILE, 64);                                                                                \
            _tile_dpbf16ps(C0, 6, 7);                                                                                    \
            _tile_loadd(7, b + 3 * TILE, 64);                                                                            \
            _tile_dpbf16ps(C1, 6, 7);                                                                                    \
            _tile_loadd(7, b + 5 * TILE, 64);                                                                            \
            _tile_dpbf16ps(C2, 6, 7);                                                                                    \
        }                                                                                                                \
    } while (0)

INLINE void weight_taps(float *dw, const float *d, const half_t *a, const float *const *x, int64_t pixels, float *scratch,
                        const int exact)
{
    half_t *z = (half_t *)scratch;
    _tile_loadd(0, dw, 64);
    _tile_loadd(1, dw + 256, 64);
    _tile_loadd(2, dw + 512, 64);
    _tile_loadd(3, dw + 768, 64);
    _tile_loadd(4, dw + 1024, 64);
    _tile_loadd(5, dw + 1280, 64);
    for (int64_t p = 0; p <= pixels; p += 32) {
        half_t *now = z + (p & 32 ? 6 * TILE : 0);
        const half_t *b = z + (p & 32 ? 0 : 6 * TILE), *c = a + (p - 32) * 2 * BASES;
        UNROLL for (int s = 0; s < 4; s++) {
            if (p < pixels && s < 3) {
                const float *v = d + p * LANES, *xs = x[s] + p * LANES;
                half_t *o = now + s * 2 * TILE;
                UNROLL for (int j = 0; j < 16; j++, v += 2 * LANES, xs += 2 * LANES)
                    split(_mm512_mul_ps(_mm512_load_ps(v), _mm512_loadu_ps(xs)),
                          _mm512_mul_ps(_mm512_load_ps(v + LANES), _mm512_loadu_ps(xs + LANES)), o + j * 32,
                          o + TILE + j * 32, exact);
            }
            if (p > 0) switch (s) {
                case 0: THREE(0, 2, 4, c, exact); break;
                case 1: if (exact) THREE(0, 2, 4, c + TILE, 0); break;
                case 2: THREE(1, 3, 5, c + 2 * TILE, exact); break;
                default: if (exact) THREE(1, 3, 5, c + 3 * TILE, 0);
                }
        }
    }
    _tile_stored(0, dw, 64);
    _tile_stored(1, dw + 256, 64);
    _tile_stored(2, dw + 512, 64);
    _tile_stored(3, dw + 768, 64);
    _tile_stored(4, dw + 1024, 64);
    _tile_stored(5, dw + 1280, 64);
}

static void grad_weight(float *dw, const float *d, const void *a, const float *const *x, int taps, int group,
                        const kba_area *area, int bases, int exact, float *scratch)
{
    (void)bases, (void)group;
    const int64_t pixels = area->pixels;
    for (int t = 0; t < taps; t += 3, dw += 3 * BASES * LANES)
        if (exact)
            weight_taps(dw, d, a, x + t, pixels, scratch, 1);
        else
            weight_taps(dw, d, a, x + t, pixels, scratch, 0);
}

static const kba_isa table = {
    "amx", BLOCK,  2,           3,          1,           0,               1, available, enter, leave,             load,       store,
    spread, gather, scatter, add, pack_rows, pack_columns, pack_weight, pack_transposed, NULL, conv, grad_coefficients, grad_weight,
};
const kba_isa *const kba_amx = &table;
#else
#include "kba.h"
const kba_isa *const kba_amx = NULL;
#endif
