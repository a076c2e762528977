/* The products in GCC vector extensions, included once for every vector width.
 *
 * The including file defines ISA (suffix of the names), WIDTH (floats per vector) and PIXELS (pixels computed together:
 * PIXELS x 3 accumulators must fit in registers).
 */
#include <string.h>
#if WIDTH == 16
#include <immintrin.h>
#endif

#include "kba.h"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define FN(name) CAT(name##_, ISA)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
/* A use after the products, without which GCC lets the last ones overwrite their factor and then copies the sums. */
#if defined(__AVX512F__)
#define KEEP(v) __asm__("" : : "v"(v))
#elif defined(__x86_64__)
#define KEEP(v) __asm__("" : : "x"(v))
#else
#define KEEP(v) (void)(v)
#endif

typedef float vf __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
typedef float vf4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t vu4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t vh4 __attribute__((vector_size(8), aligned(2), may_alias));

/* SPREADS: the largest group within which a permutation of a vector, cheap where there is one, picks a member. */
#if defined(__GNUC__) && !defined(__clang__) && WIDTH > 4
#define SHUFFLE(v, index) __builtin_shuffle(v, index)
#define SPREADS WIDTH
#else
#define SHUFFLE(v, index) ((void)(index), (v))
#define SPREADS 1
#endif

INLINE vf load_v(const float *p) { return *(const vf *)p; }
INLINE void store_v(float *p, vf v) { *(vf *)p = v; }

INLINE float widen(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

INLINE uint16_t narrow(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

/* Rounds to nearest even; a comparison yields all ones, so NaN becomes 0xffff, also a NaN. */
#define NARROW(U, H, v)                                                                                                  \
    __builtin_convertvector((((U)(v) + 0x7fffu + (((U)(v) >> 16) & 1u)) | (U)((v) != (v))) >> 16, H)
#define WIDEN(U, F, h) ((F)(__builtin_convertvector(h, U) << 16))

INLINE float get(const char *p, int64_t i, int64_t dtype)
{
    return dtype == FLOAT32 ? ((const float *)p)[i] : widen(((const uint16_t *)p)[i]);
}

INLINE void put(char *p, int64_t i, float f, int64_t dtype)
{
    if (dtype == FLOAT32)
        ((float *)p)[i] = f;
    else
        ((uint16_t *)p)[i] = narrow(f);
}

INLINE vf4 get4(const char *p, int64_t i, int64_t dtype)
{
    if (dtype == FLOAT32) return *(const vf4 *)((const float *)p + i);
    return WIDEN(vu4, vf4, *(const vh4 *)((const uint16_t *)p + i));
}

INLINE void put4(char *p, int64_t i, vf4 v, int64_t dtype)
{
    if (dtype == FLOAT32)
        *(vf4 *)((float *)p + i) = v;
    else
        *(vh4 *)((uint16_t *)p + i) = NARROW(vu4, vh4, v);
}

INLINE void transpose4(vf4 *a, vf4 *b, vf4 *c, vf4 *d)
{
    vf4 ab = {(*a)[0], (*b)[0], (*a)[1], (*b)[1]}, AB = {(*a)[2], (*b)[2], (*a)[3], (*b)[3]};
    vf4 cd = {(*c)[0], (*d)[0], (*c)[1], (*d)[1]}, CD = {(*c)[2], (*d)[2], (*c)[3], (*d)[3]};
    *a = (vf4){ab[0], ab[1], cd[0], cd[1]};
    *b = (vf4){ab[2], ab[3], cd[2], cd[3]};
    *c = (vf4){AB[0], AB[1], CD[0], CD[1]};
    *d = (vf4){AB[2], AB[3], CD[2], CD[3]};
}

/* Loads `n` pixels of a row, with fast paths for channels-last and for contiguous rows. */
INLINE void load_row(float *out, int stride, const char *in, const kba_map *m, int lanes, int64_t n, const int64_t dtype)
{
    enum { AHEAD = 16 }; /* pixels, to prefetch, as other channels lie between ours */
    const int64_t size = dtype == FLOAT32 ? 4 : 2;
    if (m->c == 1 && lanes == LANES) {
        for (int64_t p = 0; p < n; p++) {
            __builtin_prefetch(in + (p + AHEAD) * m->x * size);
            for (int s = 0; s < LANES; s += WIDTH) {
                if (dtype == FLOAT32)
                    store_v(out + p * stride + s, load_v((const float *)in + p * m->x + s));
                else
                    store_v(out + p * stride + s, WIDEN(vu, vf, *(const vh *)((const uint16_t *)in + p * m->x + s)));
            }
        }
        return;
    }
    if (lanes < LANES)
        for (int64_t p = 0; p < n; p++) memset(out + p * stride, 0, LANES * sizeof(float));
    int c = 0;
    if (m->x == 1)
        for (; c + 4 <= lanes; c += 4) {
            const char *r[4];
            for (int j = 0; j < 4; j++) r[j] = in + (c + j) * m->c * size;
            int64_t p = 0;
            for (; p + 4 <= n; p += 4) {
                vf4 v0 = get4(r[0], p, dtype), v1 = get4(r[1], p, dtype);
                vf4 v2 = get4(r[2], p, dtype), v3 = get4(r[3], p, dtype);
                transpose4(&v0, &v1, &v2, &v3);
                float *o = out + p * stride + c;
                *(vf4 *)o = v0;
                *(vf4 *)(o + stride) = v1;
                *(vf4 *)(o + 2 * stride) = v2;
                *(vf4 *)(o + 3 * stride) = v3;
            }
            for (; p < n; p++)
                for (int j = 0; j < 4; j++) out[p * stride + c + j] = get(r[j], p, dtype);
        }
    for (; c < lanes; c++)
        for (int64_t p = 0; p < n; p++) out[p * stride + c] = get(in, c * m->c + p * m->x, dtype);
}

INLINE void store_row(const float *in, int stride, char *out, const kba_map *m, int lanes, int64_t n, const int64_t dtype)
{
    const int64_t size = dtype == FLOAT32 ? 4 : 2;
    if (m->c == 1 && lanes == LANES) {
        for (int64_t p = 0; p < n; p++)
            for (int s = 0; s < LANES; s += WIDTH) {
                vf v = load_v(in + p * stride + s);
                if (dtype == FLOAT32)
                    store_v((float *)out + p * m->x + s, v);
                else
                    *(vh *)((uint16_t *)out + p * m->x + s) = NARROW(vu, vh, v);
            }
        return;
    }
    int c = 0;
    if (m->x == 1)
        for (; c + 4 <= lanes; c += 4) {
            char *r[4];
            for (int j = 0; j < 4; j++) r[j] = out + (c + j) * m->c * size;
            int64_t p = 0;
            for (; p + 4 <= n; p += 4) {
                const float *i = in + p * stride + c;
                vf4 v0 = *(const vf4 *)i, v1 = *(const vf4 *)(i + stride);
                vf4 v2 = *(const vf4 *)(i + 2 * stride), v3 = *(const vf4 *)(i + 3 * stride);
                transpose4(&v0, &v1, &v2, &v3);
                put4(r[0], p, v0, dtype);
                put4(r[1], p, v1, dtype);
                put4(r[2], p, v2, dtype);
                put4(r[3], p, v3, dtype);
            }
            for (; p < n; p++)
                for (int j = 0; j < 4; j++) put(r[j], p, in[p * stride + c + j], dtype);
        }
    for (; c < lanes; c++)
        for (int64_t p = 0; p < n; p++) put(out, c * m->c + p * m->x, in[p * stride + c], dtype);
}

INLINE void zero(float *strip, int stride, int64_t n)
{
    for (int64_t p = 0; p < n; p++)
        for (int s = 0; s < LANES; s += WIDTH) store_v(strip + p * stride + s, (vf){0});
}

static void FN(load)(float *strip, int stride, const kba_view *v)
{
    const kba_map *m = v->map;
    const int64_t size = v->dtype == FLOAT32 ? 4 : 2;
    const int lanes = v->channels - v->c < LANES ? (int)(v->channels - v->c) : LANES;
    const int64_t left = v->x < 0 ? -v->x : 0;
    const int64_t right = v->x + v->cols > v->width ? v->width - v->x : v->cols;
    for (int64_t r = 0; r < v->rows; r++, strip += v->pitch * stride) {
        const int64_t y = v->y + r;
        if (y < 0 || y >= v->height) {
            zero(strip, stride, v->pitch);
            continue;
        }
        const char *in = m->data + (v->b * m->b + v->c * m->c + y * m->y + (v->x + left) * m->x) * size;
        zero(strip, stride, left);
        if (v->dtype == FLOAT32)
            load_row(strip + left * stride, stride, in, m, lanes, right - left, FLOAT32);
        else
            load_row(strip + left * stride, stride, in, m, lanes, right - left, BFLOAT16);
        zero(strip + right * stride, stride, v->pitch - right);
    }
    zero(strip, stride, v->total - v->rows * v->pitch);
}

static void FN(store)(const float *strip, int stride, const kba_view *v)
{
    const kba_map *m = v->map;
    const int64_t size = v->dtype == FLOAT32 ? 4 : 2;
    const int lanes = v->channels - v->c < LANES ? (int)(v->channels - v->c) : LANES;
    for (int64_t r = 0; r < v->rows; r++, strip += v->pitch * stride) {
        char *out = m->data + (v->b * m->b + v->c * m->c + (v->y + r) * m->y + v->x * m->x) * size;
        if (v->dtype == FLOAT32)
            store_row(strip, stride, out, m, lanes, v->cols, FLOAT32);
        else
            store_row(strip, stride, out, m, lanes, v->cols, BFLOAT16);
    }
}

static void FN(spread)(float *out, const float *in, int64_t pixels, int group, int member)
{
    uint32_t index[LANES];
    for (int l = 0; l < LANES; l++) index[l] = (uint32_t)(l / group * group + member);
    if (group <= SPREADS) {
        const vu i = *(const vu *)index;
        for (int64_t p = 0; p < pixels; p++)
            for (int s = 0; s < LANES; s += WIDTH) store_v(out + p * LANES + s, SHUFFLE(load_v(in + p * LANES + s), i));
        return;
    }
    for (int64_t p = 0; p < pixels; p++)
        for (int l = 0; l < LANES; l++) out[p * LANES + l] = in[p * LANES + index[l]];
}

static void FN(gather)(float *out, int64_t step, const char *in, const int64_t *offset, int count, int64_t run,
                       int64_t dtype)
{
    const int whole = count / 4 * 4;
    int64_t i = 0;
    for (; i + 4 <= run; i += 4)
        for (int l = 0; l < whole; l += 4) {
            vf4 v[4];
            UNROLL for (int j = 0; j < 4; j++) v[j] = get4(in, offset[l + j] + i, dtype);
            transpose4(&v[0], &v[1], &v[2], &v[3]);
            UNROLL for (int j = 0; j < 4; j++) *(vf4 *)(out + (i + j) * step + l) = v[j];
        }
    for (; i < run; i++)
        for (int l = 0; l < whole; l++) out[i * step + l] = get(in, offset[l] + i, dtype);
    for (i = 0; i < run && whole < LANES; i++) {
        for (int l = whole; l < count; l++) out[i * step + l] = get(in, offset[l] + i, dtype);
        for (int l = count; l < LANES; l++) out[i * step + l] = 0;
    }
}

static void FN(scatter)(float *out, const int64_t *offset, int count, int64_t run, const float *in, int64_t step)
{
    const int whole = count / 4 * 4;
    int64_t i = 0;
    for (; i + 4 <= run; i += 4)
        for (int l = 0; l < whole; l += 4) {
            vf4 v[4];
            UNROLL for (int j = 0; j < 4; j++) v[j] = *(const vf4 *)(in + (i + j) * step + l);
            transpose4(&v[0], &v[1], &v[2], &v[3]);
            UNROLL for (int j = 0; j < 4; j++) *(vf4 *)(out + offset[l + j] + i) = v[j];
        }
    for (; i < run; i++)
        for (int l = 0; l < whole; l++) out[offset[l] + i] = in[i * step + l];
    for (i = 0; i < run; i++)
        for (int l = whole; l < count; l++) out[offset[l] + i] = in[i * step + l];
}

static void FN(add)(float *sum, const float *more, int64_t count)
{
    for (int64_t i = 0; i < count; i += WIDTH) store_v(sum + i, load_v(sum + i) + load_v(more + i));
}

/* Few bases leave lanes of a vector free. A vector of grad_coefficients then holds the sums of several channels, those
 * of one base side by side, and one broadcast spreads the values of as many channels. */
INLINE int together(int bases)
{
    (void)bases;
#if defined(__GNUC__) && !defined(__clang__)
    if (WIDTH >= 16 && bases <= WIDTH / 4) return 4;
    if (WIDTH >= 8 && bases <= WIDTH / 2) return 2;
#endif
    return 1;
}

INLINE vf broadcast(const float *p, const int many)
{
    typedef uint64_t v2 __attribute__((vector_size(WIDTH * 4)));
#if WIDTH == 16
    if (many == 4) return (vf)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#endif
    if (many == 2) {
        uint64_t u;
        memcpy(&u, p, 8);
        return (vf)(u + (v2){0});
    }
    return *p - (vf){0};
}

/* w[tap][base][lane] as [tap][lane][base], or [tap][lane / together][base][lane % together] */
static void FN(pack_transposed)(void *out, const float *w, int taps, int bases, int exact)
{
    (void)exact;
    float *o = out;
    const int many = together(bases);
    for (int t = 0; t < taps; t++, w += BASES * LANES, o += BASES * LANES / many)
        for (int n = 0; n < bases; n += 4)
            for (int l = 0; l < LANES; l += 4) {
                vf4 r[4];
                UNROLL for (int j = 0; j < 4; j++) r[j] = *(const vf4 *)(w + (n + j) * LANES + l);
                if (many == 1) {
                    transpose4(&r[0], &r[1], &r[2], &r[3]);
                    UNROLL for (int j = 0; j < 4; j++) *(vf4 *)(o + (l + j) * BASES + n) = r[j];
                } else
                    UNROLL for (int j = 0; j < 4; j++)
                        UNROLL for (int i = 0; i < 4; i++) o[(l + i) / many * BASES + (n + j) * many + (l + i) % many] = r[j][i];
            }
}

/* Adds up the channels of a base. */
static void FN(fold)(float *da, int64_t pixels, int bases)
{
    (void)da, (void)pixels, (void)bases;
#if defined(__GNUC__) && !defined(__clang__)
    vu even, odd;
    for (unsigned i = 0; i < WIDTH; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (int many = together(bases); many > 1; many /= 2)
        for (float *o = da, *end = da + pixels * BASES; o < end; o += 2 * BASES) {
            const vf v = load_v(o), w = load_v(o + BASES);
            const vf sum = __builtin_shuffle(v, w, even) + __builtin_shuffle(v, w, odd);
            memcpy(o, &sum, WIDTH * 2);
            memcpy(o + BASES, (const char *)&sum + WIDTH * 2, WIDTH * 2);
        }
#endif
}

/* PIXELS pixels and `taps` taps; the kernels stay in registers. `slide`: the coefficients of the next tap are those of
 * the next pixel, so that one broadcast serves all taps. */
INLINE void conv_block(float *acc, const float *a, const float *w, const float *const *x, const int taps,
                       const int slide, int64_t p, int bases)
{
    const int pixels = PIXELS + (slide ? taps - 1 : 0);
    a += p * BASES;
    acc += p * LANES;
    for (int s = 0; s < LANES; s += WIDTH) {
        vf k[PIXELS][3] = {{{0}}};
        const float *b = a, *u = w + s;
        for (const float *end = a + bases; b < end; b++, u += LANES) {
            vf v[3];
            UNROLL for (int t = 0; t < taps; t++) v[t] = load_v(u + t * BASES * LANES);
            UNROLL for (int r = 0; r < pixels; r++) {
                const vf f = broadcast(b + r * BASES, 1);
                UNROLL for (int t = 0; t < taps; t++) {
                    const int j = slide ? r - t : r;
                    if (j >= 0 && j < PIXELS) k[j][t] += f * v[t];
                }
                if (taps > 1) KEEP(f);
            }
            UNROLL for (int t = 0; t < taps; t++) KEEP(v[t]);
        }
        const float *v[3];
        for (int t = 0; t < taps; t++) v[t] = x[t] + p * LANES + s;
        UNROLL for (int j = 0; j < PIXELS; j++) {
            vf o = load_v(acc + j * LANES + s);
            UNROLL for (int t = 0; t < taps; t++) o += k[j][t] * load_v(v[t] + j * LANES);
            store_v(acc + j * LANES + s, o);
        }
    }
}

INLINE void conv_blocks(float *acc, const float *a, const float *w, const float *const *x, const int taps,
                        const int slide, const int32_t *block, const int32_t *end, int bases)
{
    for (; block < end; block++) conv_block(acc, a, w, x, taps, slide, *block, bases);
}

static void FN(conv)(float *acc, const void *coefficients, const void *weight, const float *const *x,
                     const int64_t *shift, int taps, const kba_area *area, int bases, int exact, float *scratch)
{
    (void)exact, (void)scratch;
    enum { CHUNK = 64 / PIXELS }; /* blocks whose operands fit the first level of cache */
    const int slide = shift && shift[taps - 1];
    for (int64_t i = 0; i < area->blocks; i += CHUNK) {
        const int32_t *block = area->block + i, *end = i + CHUNK < area->blocks ? block + CHUNK : area->block + area->blocks;
        for (int t = 0, count; t < taps; t += count) {
            const float *a = (const float *)coefficients + (slide ? shift[t] * BASES : 0);
            const float *w = (const float *)weight + (size_t)t * BASES * LANES;
            for (count = 1; count < 3 && t + count < taps; count++)
                if (slide && shift[t + count] != shift[t] + count) break;
            if (count == 3 && slide)
                conv_blocks(acc, a, w, x + t, 3, 1, block, end, bases);
            else if (count == 3)
                conv_blocks(acc, a, w, x + t, 3, 0, block, end, bases);
            else if (count == 2 && slide)
                conv_blocks(acc, a, w, x + t, 2, 1, block, end, bases);
            else if (count == 2)
                conv_blocks(acc, a, w, x + t, 2, 0, block, end, bases);
            else
                conv_blocks(acc, a, w, x + t, 1, 0, block, end, bases);
        }
    }
}

typedef struct { /* what grad_coefficients and grad_weight multiply first */
    const float *d, *const *x;
    int group;
    vu member[WIDTH]; /* the permutation that spreads each member of a group */
} FN(factors);

INLINE FN(factors) factors(const float *d, const float *const *x, int group)
{
    FN(factors) f = {.d = d, .x = x, .group = group};
    for (int m = 0; group > 1 && m < group; m++)
        for (int l = 0; l < WIDTH; l++) f.member[m][l] = (uint32_t)(l / group * group + m);
    return f;
}

INLINE void member_products(float *restrict z, int64_t step, const float *d, const float *x, const vu *member,
                            const int members)
{
    UNROLL for (int j = 0; j < PIXELS * LANES; j += WIDTH) {
        const vf u = load_v(d + j), v = load_v(x + j);
        UNROLL for (int m = 0; m < members; m++) store_v(z + m * step + j, u * SHUFFLE(v, member[m]));
    }
}

/* z[i][pixel][lane] = d[pixel][lane] x[t + i][pixel][lane] for a block at p; z[i] and z[i + 1] are `step` apart. With a
 * group, t is divided by four or by the group, so that up to four taps take the same vectors of x. */
INLINE void products(float *restrict z, int64_t step, const FN(factors) *f, int t, int taps, int64_t p)
{
    const float *d = f->d + p * LANES;
    if (f->group == 1)
        for (int i = 0; i < taps; i++, z += step) {
            const float *x = f->x[t + i] + p * LANES;
            UNROLL for (int j = 0; j < PIXELS * LANES; j += WIDTH) store_v(z + j, load_v(d + j) * load_v(x + j));
        }
    else
        for (int left = taps, run; left > 0; left -= run, t += run, z += run * step) {
            const float *x = f->x[t] + p * LANES;
            const vu *member = f->member + (t & (f->group - 1)); /* a power of two */
            run = left < 2 ? 1 : left < 4 || f->group == 2 ? 2 : 4;
            if (run == 4)
                member_products(z, step, d, x, member, 4);
            else if (run == 2)
                member_products(z, step, d, x, member, 2);
            else
                member_products(z, step, d, x, member, 1);
        }
}

/* `taps` taps from t on, `many` blocks of PIXELS pixels by `vectors` vectors of bases; `lanes` channels in a broadcast. */
INLINE void coefficients_block(float *da, const float *w, const FN(factors) *f, int t, int taps, const int32_t *block,
                               int bases, float *restrict z, const int many, const int vectors, const int lanes)
{
    enum { STEP = PIXELS * LANES };
    float *at[2];
    for (int b = 0; b < many; b++) {
        at[b] = da + (int64_t)block[b] * BASES;
        products(z + b * STEP, many * STEP, f, t, taps, block[b]);
    }
    for (int s = 0; s < bases; s += vectors * WIDTH) {
        vf c[2 * PIXELS][2];
        UNROLL for (int b = 0; b < many; b++)
            UNROLL for (int j = 0; j < PIXELS; j++)
                UNROLL for (int i = 0; i < vectors; i++) c[b * PIXELS + j][i] = load_v(at[b] + j * BASES + s + i * WIDTH);
        const float *r = w + s;
        for (const float *e = z, *end = z + taps * many * STEP; e < end; e += many * STEP - LANES)
            for (int l = 0; l < LANES; l += lanes, e += lanes, r += BASES) {
                vf v[2];
                UNROLL for (int i = 0; i < vectors; i++) v[i] = load_v(r + i * WIDTH);
                UNROLL for (int j = 0; j < many * PIXELS; j++) {
                    const vf g = broadcast(e + j * LANES, lanes);
                    UNROLL for (int i = 0; i < vectors; i++) c[j][i] += g * v[i];
                    if (vectors > 1 || lanes > 1) KEEP(g);
                }
                UNROLL for (int i = 0; i < vectors; i++) KEEP(v[i]);
            }
        UNROLL for (int b = 0; b < many; b++)
            UNROLL for (int j = 0; j < PIXELS; j++)
                UNROLL for (int i = 0; i < vectors; i++) store_v(at[b] + j * BASES + s + i * WIDTH, c[b * PIXELS + j][i]);
    }
}

INLINE void coefficients_blocks(float *da, const float *w, const FN(factors) *f, int t, int taps, const kba_area *area,
                                int bases, float *z, const int vectors, const int lanes)
{
    const int32_t *b = area->block, *end = b + area->blocks;
    if (vectors == 1)
        for (; b + 2 <= end; b += 2) coefficients_block(da, w, f, t, taps, b, bases, z, 2, vectors, lanes);
    for (; b < end; b++) coefficients_block(da, w, f, t, taps, b, bases, z, 1, vectors, lanes);
}

static void FN(grad_coefficients)(float *da, const float *d, const void *weight, const float *const *x, int taps,
                                  int group, const kba_area *area, int bases, int exact, float *z)
{
    (void)exact;
    enum { CHUNK = 8 }; /* taps whose weights fit the first level of cache */
    const FN(factors) f = factors(d, x, group);
    const int many = together(bases);
    for (int t = 0; t < taps; t += CHUNK) {
        const int count = taps - t < CHUNK ? taps - t : CHUNK;
        const float *w = (const float *)weight + (size_t)t * BASES * LANES / many;
        if (bases > WIDTH)
            coefficients_blocks(da, w, &f, t, count, area, bases, z, 2, 1);
        else if (many == 1)
            coefficients_blocks(da, w, &f, t, count, area, bases, z, 1, 1);
        else if (many == 2)
            coefficients_blocks(da, w, &f, t, count, area, bases, z, 1, 2);
        else
            coefficients_blocks(da, w, &f, t, count, area, bases, z, 1, 4);
    }
}

enum { CHUNK = 64, TAPS = 4 }; /* pixels and taps whose products fit the first level of cache */

INLINE void weight_block(float *dw, const float *a, const float *z, const int32_t *block, int blocks, const int many,
                         const int taps)
{
    for (int s = 0; s < LANES; s += WIDTH) {
        vf c[PIXELS][TAPS];
        UNROLL for (int j = 0; j < many; j++)
            UNROLL for (int i = 0; i < taps; i++) c[j][i] = load_v(dw + (i * BASES + j) * LANES + s);
        const float *e = z + s;
        for (int b = 0; b < blocks; b++) {
            const float *f = a + (int64_t)block[b] * BASES;
            for (int p = 0; p < PIXELS; p++, f += BASES, e += LANES) {
                vf v[TAPS];
                UNROLL for (int i = 0; i < taps; i++) v[i] = load_v(e + i * CHUNK * LANES);
                UNROLL for (int j = 0; j < many; j++) {
                    const vf g = broadcast(f + j, 1);
                    UNROLL for (int i = 0; i < taps; i++) c[j][i] += g * v[i];
                    if (taps > 1) KEEP(g);
                }
                UNROLL for (int i = 0; i < taps; i++) KEEP(v[i]);
            }
        }
        UNROLL for (int j = 0; j < many; j++)
            UNROLL for (int i = 0; i < taps; i++) store_v(dw + (i * BASES + j) * LANES + s, c[j][i]);
    }
}

static void FN(grad_weight)(float *dw, const float *d, const void *coefficients, const float *const *x, int taps,
                            int group, const kba_area *area, int bases, int exact, float *restrict z)
{
    (void)exact;
    const FN(factors) f = factors(d, x, group);
    for (int t = 0, count; t < taps; t += count, dw += count * BASES * LANES) {
        count = taps - t < TAPS ? 1 : TAPS;
        for (int64_t i0 = 0; i0 < area->blocks; i0 += CHUNK / PIXELS) {
            const int32_t *block = area->block + i0;
            const int blocks = (int)(area->blocks - i0 < CHUNK / PIXELS ? area->blocks - i0 : CHUNK / PIXELS);
            for (int b = 0; b < blocks; b++)
                products(z + b * PIXELS * LANES, CHUNK * LANES, &f, t, count, block[b]);
            const float *a = coefficients;
            if (count == TAPS)
                for (int n = 0; n < bases; n += PIXELS / 2)
                    weight_block(dw + n * LANES, a + n, z, block, blocks, PIXELS / 2, TAPS);
            else
                for (int n = 0; n < bases; n += PIXELS)
                    weight_block(dw + n * LANES, a + n, z, block, blocks, PIXELS, 1);
        }
    }
}

#define VEC_ISA(label, available)                                                                                        \
    {                                                                                                                    \
        label, PIXELS, 1, 1, 0, 1, SPREADS, available, NULL, NULL, FN(load), FN(store), FN(spread), FN(gather),          \
            FN(scatter), FN(add), NULL, NULL, NULL, FN(pack_transposed), FN(fold), FN(conv), FN(grad_coefficients),      \
            FN(grad_weight)                                                                                              \
    }
