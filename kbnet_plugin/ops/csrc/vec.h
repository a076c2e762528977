/* The products in GCC vector extensions, included once for every vector width.
 *
 * The including file defines ISA (suffix of the names), WIDTH (floats per vector) and PIXELS (pixels computed together:
 * PIXELS x 3 accumulators must fit in registers).
 */
#include <string.h>

#include "kba.h"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define FN(name) CAT(name##_, ISA)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
typedef float vf4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t vu4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t vh4 __attribute__((vector_size(8), aligned(2), may_alias));

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
    const int64_t size = dtype == FLOAT32 ? 4 : 2;
    if (m->c == 1 && lanes == LANES) {
        for (int64_t p = 0; p < n; p++)
            for (int s = 0; s < LANES; s += WIDTH) {
                if (dtype == FLOAT32)
                    store_v(out + p * stride + s, load_v((const float *)in + p * m->x + s));
                else
                    store_v(out + p * stride + s, WIDEN(vu, vf, *(const vh *)((const uint16_t *)in + p * m->x + s)));
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
#if defined(__GNUC__) && !defined(__clang__)
    if (group <= WIDTH && WIDTH > 4) { /* groups do not straddle vectors */
        const vu i = *(const vu *)index;
        for (int64_t p = 0; p < pixels; p++)
            for (int s = 0; s < LANES; s += WIDTH)
                store_v(out + p * LANES + s, __builtin_shuffle(load_v(in + p * LANES + s), i));
        return;
    }
#endif
    for (int64_t p = 0; p < pixels; p++)
        for (int l = 0; l < LANES; l++) out[p * LANES + l] = in[p * LANES + index[l]];
}

static void FN(gather)(float *out, const char *in, const int64_t *offset, int count, int64_t dtype)
{
    for (int l = 0; l < count; l++) out[l] = get(in, offset[l], dtype);
    for (int l = count; l < LANES; l++) out[l] = 0;
}

static void FN(pack_transposed)(void *out, const float *w, int taps, int exact)
{
    (void)exact;
    float *o = out;
    for (int t = 0; t < taps; t++, w += BASES * LANES, o += BASES * LANES)
        for (int n = 0; n < BASES; n += 4)
            for (int l = 0; l < LANES; l += 4) {
                vf4 r[4];
                UNROLL for (int j = 0; j < 4; j++) r[j] = *(const vf4 *)(w + (n + j) * LANES + l);
                transpose4(&r[0], &r[1], &r[2], &r[3]);
                UNROLL for (int j = 0; j < 4; j++) *(vf4 *)(o + (l + j) * BASES + n) = r[j];
            }
}

/* PIXELS pixels and `taps` taps; the kernels stay in registers. */
INLINE void conv_block(float *acc, const float *a, const float *w, const float *const *x, const int taps, int64_t p,
                       int bases)
{
    for (int s = 0; s < LANES; s += WIDTH) {
        vf k[PIXELS][3] = {{{0}}};
        for (int n = 0; n < bases; n++) {
            vf v[3];
            UNROLL for (int t = 0; t < taps; t++) v[t] = load_v(w + (t * BASES + n) * LANES + s);
            UNROLL for (int j = 0; j < PIXELS; j++) {
                const float f = a[(p + j) * BASES + n];
                UNROLL for (int t = 0; t < taps; t++) k[j][t] += f * v[t];
            }
        }
        UNROLL for (int j = 0; j < PIXELS; j++) {
            vf o = load_v(acc + (p + j) * LANES + s);
            UNROLL for (int t = 0; t < taps; t++) o += k[j][t] * load_v(x[t] + (p + j) * LANES + s);
            store_v(acc + (p + j) * LANES + s, o);
        }
    }
}

static void FN(conv)(float *acc, const void *coefficients, const void *weight, const float *const *x,
                     const int64_t *shift, int taps, int64_t pixels, int bases, int exact, float *scratch)
{
    (void)exact, (void)scratch;
    for (int t = 0, count; t < taps; t += count) {
        const float *a = (const float *)coefficients + (shift ? shift[t] * BASES : 0);
        const float *w = (const float *)weight + (size_t)t * BASES * LANES;
        int same = 1; /* taps with the same coefficients */
        while (t + same < taps && (!shift || shift[t + same] == shift[t])) same++;
        count = same == 4 ? 2 : same < 3 ? same : 3;
        for (int64_t p = 0; p < pixels; p += PIXELS)
            if (count == 3)
                conv_block(acc, a, w, x + t, 3, p, bases);
            else if (count == 2)
                conv_block(acc, a, w, x + t, 2, p, bases);
            else
                conv_block(acc, a, w, x + t, 1, p, bases);
    }
}

static void FN(grad_coefficients)(float *da, const float *d, const void *weight, const float *const *x, int taps,
                                  int64_t pixels, int exact, float *z)
{
    (void)exact;
    enum { CHUNK = 10 }; /* taps whose weights fit the first level of cache */
    for (int t0 = 0; t0 < taps; t0 += CHUNK) {
        const int count = taps - t0 < CHUNK ? taps - t0 : CHUNK;
        const float *w = (const float *)weight + (size_t)t0 * BASES * LANES;
        for (int64_t p = 0; p < pixels; p += PIXELS) {
            for (int t = 0; t < count; t++)
                UNROLL for (int j = 0; j < PIXELS * LANES; j += WIDTH)
                    store_v(z + t * PIXELS * LANES + j, load_v(d + p * LANES + j) * load_v(x[t0 + t] + p * LANES + j));
            for (int s = 0; s < BASES; s += 2 * WIDTH) {
                vf c[PIXELS][2];
                UNROLL for (int j = 0; j < PIXELS; j++) {
                    c[j][0] = load_v(da + (p + j) * BASES + s);
                    c[j][1] = load_v(da + (p + j) * BASES + s + WIDTH);
                }
                for (int t = 0; t < count; t++)
                    for (int l = 0; l < LANES; l++) {
                        const float *r = w + (t * LANES + l) * BASES + s;
                        const vf w0 = load_v(r), w1 = load_v(r + WIDTH);
                        UNROLL for (int j = 0; j < PIXELS; j++) {
                            const float f = z[(t * PIXELS + j) * LANES + l];
                            c[j][0] += f * w0;
                            c[j][1] += f * w1;
                        }
                    }
                UNROLL for (int j = 0; j < PIXELS; j++) {
                    store_v(da + (p + j) * BASES + s, c[j][0]);
                    store_v(da + (p + j) * BASES + s + WIDTH, c[j][1]);
                }
            }
        }
    }
}

static void FN(grad_weight)(float *dw, const float *d, const void *coefficients, const float *const *x, int taps,
                            int64_t pixels, int exact, float *z)
{
    (void)exact;
    enum { CHUNK = 64 }; /* pixels whose products fit the first level of cache */
    for (int t = 0; t < taps; t += 3, dw += 3 * BASES * LANES)
        for (int64_t p0 = 0; p0 < pixels; p0 += CHUNK) {
            const int count = pixels - p0 < CHUNK ? (int)(pixels - p0) : CHUNK;
            const float *a = (const float *)coefficients + p0 * BASES;
            for (int i = 0; i < 3; i++)
                for (int p = 0; p < count * LANES; p += WIDTH)
                    store_v(z + i * CHUNK * LANES + p,
                            load_v(d + p0 * LANES + p) * load_v(x[t + i] + p0 * LANES + p));
            for (int n = 0; n < BASES; n += PIXELS)
                for (int s = 0; s < LANES; s += WIDTH) {
                    vf c[PIXELS][3];
                    UNROLL for (int j = 0; j < PIXELS; j++)
                        UNROLL for (int i = 0; i < 3; i++) c[j][i] = load_v(dw + (i * BASES + n + j) * LANES + s);
                    for (int p = 0; p < count; p++) {
                        vf v[3];
                        UNROLL for (int i = 0; i < 3; i++) v[i] = load_v(z + (i * CHUNK + p) * LANES + s);
                        UNROLL for (int j = 0; j < PIXELS; j++)
                            UNROLL for (int i = 0; i < 3; i++) c[j][i] += a[p * BASES + n + j] * v[i];
                    }
                    UNROLL for (int j = 0; j < PIXELS; j++)
                        UNROLL for (int i = 0; i < 3; i++) store_v(dw + (i * BASES + n + j) * LANES + s, c[j][i]);
                }
        }
}

#define VEC_ISA(label, available)                                                                                        \
    {                                                                                                                    \
        label, available, NULL, NULL, FN(load), FN(store), FN(spread), FN(gather), NULL, NULL, NULL, FN(pack_transposed), \
            FN(conv), FN(grad_coefficients), FN(grad_weight)                                                             \
    }
