/* Kernels of a KBNet_s block (block.h) in GCC vector extensions; include vec.h first. */
#include "block.h"

/* ---- products ---- */

/* Pixels of a 1x1 convolution computed together: twice as many accumulators, two weights and a value fit in registers. */
#if WIDTH == 8
enum { POINTS = 6 };
#else
enum { POINTS = PIXELS };
#endif

/* `rows` rows of: out[m][n] = (add ? out[m][n] : 0) + start[n] + sum_k a[m * am + k * ak] b[k][n] */
INLINE void product_rows(float *out, int64_t ldo, const float *start, int add, const float *a, int64_t am, int64_t ak,
                         const float *b, int64_t ldb, int64_t depth, const int rows, const int vectors)
{
    vf c[8][2];
    UNROLL for (int v = 0; v < vectors; v++) {
        const vf first = start ? load_v(start + v * WIDTH) : (vf){0};
        UNROLL for (int m = 0; m < rows; m++) c[m][v] = first;
    }
    for (int64_t k = 0; k < depth; k++, b += ldb) {
        vf w[2];
        UNROLL for (int v = 0; v < vectors; v++) w[v] = load_v(b + v * WIDTH);
        UNROLL for (int m = 0; m < rows; m++) {
            const float f = a[m * am + k * ak];
            UNROLL for (int v = 0; v < vectors; v++) c[m][v] += f * w[v];
        }
    }
    if (add) /* last, as what is there may be larger than the terms */
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int v = 0; v < vectors; v++) c[m][v] += load_v(out + m * ldo + v * WIDTH);
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int v = 0; v < vectors; v++) store_v(out + m * ldo + v * WIDTH, c[m][v]);
}

INLINE void product(float *out, int64_t ldo, const float *start, int add, const float *a, int64_t am, int64_t ak,
                    const float *b, int64_t ldb, int64_t rows, int64_t columns, int64_t depth, const int together)
{
    int64_t n = 0;
    for (; n + 2 * WIDTH <= columns; n += 2 * WIDTH)
        for (int64_t m = 0; m < rows; m += together)
            product_rows(out + m * ldo + n, ldo, start ? start + n : NULL, add, a + m * am, am, ak, b + n, ldb, depth,
                         together, 2);
    for (; n < columns; n += WIDTH)
        for (int64_t m = 0; m < rows; m += together)
            product_rows(out + m * ldo + n, ldo, start ? start + n : NULL, add, a + m * am, am, ak, b + n, ldb, depth,
                         together, 1);
}

/* A 1x1 convolution: out[p][n] = (add ? out[p][n] : 0) + start[n] + sum_k in[p][k] w[k][n]. Rounds `pixels` up to whole
 * blocks of POINTS. */
static void FN(mix)(float *out, int64_t ldo, const float *start, int add, const float *in, int64_t ldi, const float *w,
                    int64_t ldw, int64_t pixels, int64_t columns, int64_t depth)
{
    product(out, ldo, start, add, in, ldi, 1, w, ldw, pixels, columns, depth, POINTS);
}

/* Its weight's gradient: dw[n][k] += sum_p d[p][n] in[p][k]; n is a multiple of PIXELS. */
static void FN(mix_weight)(float *dw, const float *d, int64_t ldd, const float *in, int64_t ldi, int64_t pixels, int64_t n,
                           int64_t k)
{
    product(dw, k, NULL, 1, d, 1, ldd, in, ldi, n, k, pixels, PIXELS);
}

/* s[l] += sum_p d[p][l] */
static void FN(add_pixels)(float *s, const float *d, int64_t ld, int64_t lanes, int64_t pixels)
{
    for (int64_t l = 0; l < lanes; l += WIDTH) {
        vf even = {0}, odd = {0};
        int64_t p = 0;
        for (; p + 2 <= pixels; p += 2) {
            even += load_v(d + p * ld + l);
            odd += load_v(d + (p + 1) * ld + l);
        }
        if (p < pixels) even += load_v(d + p * ld + l);
        store_v(s + l, load_v(s + l) + even + odd);
    }
}

/* ---- depthwise 3x3 convolutions; row[i] is the pixel above left, left and below left of the first ---- */

INLINE void depth_block(float *out, int64_t ldo, vf start, int add, const float *const *row, int64_t ldi, const vf *w,
                        const int count)
{
    vf s[4];
    UNROLL for (int p = 0; p < count; p++) s[p] = start;
    if (add) UNROLL for (int p = 0; p < count; p++) s[p] += load_v(out + p * ldo);
    UNROLL for (int i = 0; i < 3; i++) {
        vf x[6];
        UNROLL for (int p = 0; p < count + 2; p++) x[p] = load_v(row[i] + p * ldi);
        UNROLL for (int p = 0; p < count; p++)
            UNROLL for (int k = 0; k < 3; k++) s[p] += w[3 * i + k] * x[p + k];
    }
    UNROLL for (int p = 0; p < count; p++) store_v(out + p * ldo, s[p]);
}

/* out[p][l] = (add ? out[p][l] : 0) + start[l] + sum_q w[q][l] in[p + q][l] */
static void FN(depth)(float *out, int64_t ldo, const float *start, int add, const float *const *rows, int64_t ldi,
                      const float *weight, int64_t ldw, int64_t lanes, int64_t pixels)
{
    for (int64_t l = 0; l < lanes; l += WIDTH) {
        vf w[9];
        UNROLL for (int q = 0; q < 9; q++) w[q] = load_v(weight + q * ldw + l);
        const vf first = start ? load_v(start + l) : (vf){0};
        const float *row[3] = {rows[0] + l, rows[1] + l, rows[2] + l};
        int64_t p = 0;
        for (; p + 4 <= pixels; p += 4) {
            depth_block(out + p * ldo + l, ldo, first, add, row, ldi, w, 4);
            UNROLL for (int i = 0; i < 3; i++) row[i] += 4 * ldi;
        }
        for (; p < pixels; p++) {
            depth_block(out + p * ldo + l, ldo, first, add, row, ldi, w, 1);
            UNROLL for (int i = 0; i < 3; i++) row[i] += ldi;
        }
    }
}

/* Both gradients, from that of the output (rows of d) and the input in:
 * din[p][l] = (add ? din[p][l] : 0) + sum_q w[q][l] d[p - q][l] and dw[q][l] += sum_p in[p][l] d[p - q][l] */
static void FN(depth_back)(float *din, int64_t ldo, int add, float *dw, const float *in, int64_t ldi,
                           const float *const *rows, int64_t ldd, const float *weight, int64_t ldw, int64_t lanes,
                           int64_t pixels)
{
    for (int64_t l = 0; l < lanes; l += WIDTH) {
        vf w[9], s[9];
        UNROLL for (int q = 0; q < 9; q++) w[q] = load_v(weight + q * ldw + l), s[q] = load_v(dw + q * ldw + l);
        const float *r0 = rows[0] + l, *r1 = rows[1] + l, *r2 = rows[2] + l;
        for (int64_t p = 0; p < pixels; p++, r0 += ldd, r1 += ldd, r2 += ldd) {
            const float *row[3] = {r0, r1, r2};
            const vf x = load_v(in + p * ldi + l);
            vf part[3];
            UNROLL for (int i = 0; i < 3; i++) {
                UNROLL for (int k = 0; k < 3; k++) {
                    const vf d = load_v(row[i] + k * ldd);
                    const int q = 8 - 3 * i - k;
                    part[i] = k ? part[i] + w[q] * d : w[q] * d;
                    s[q] += x * d;
                }
            }
            vf sum = part[0] + part[1] + part[2];
            if (add) sum += load_v(din + p * ldo + l);
            store_v(din + p * ldo + l, sum);
        }
        UNROLL for (int q = 0; q < 9; q++) store_v(dw + q * ldw + l, s[q]);
    }
}

/* ---- layer norm ---- */

INLINE vf4 quarters(vf v)
{
    vf4 part[WIDTH / 4];
    memcpy(part, &v, sizeof part);
    vf4 s = part[0];
    UNROLL for (int k = 1; k < WIDTH / 4; k++) s += part[k];
    return s;
}

#if WIDTH == 16
#define QUADS(a, b, c, d) (vu){a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12}
#elif WIDTH == 8
#define QUADS(a, b, c, d) (vu){a, b, c, d, a + 4, b + 4, c + 4, d + 4}
#else
#define QUADS(a, b, c, d) (vu){a, b, c, d}
#endif

/* The sum of each of four vectors. */
INLINE vf4 lane_sums(const vf *v)
{
#if defined(__GNUC__) && !defined(__clang__)
    enum { W = WIDTH };
#define PAIR(a, b) __builtin_shuffle(a, b, QUADS(0, W, 1, W + 1)) + __builtin_shuffle(a, b, QUADS(2, W + 2, 3, W + 3))
    const vf s = PAIR(v[0], v[1]), t = PAIR(v[2], v[3]);
#undef PAIR
    return quarters(__builtin_shuffle(s, t, QUADS(0, 1, W, W + 1)) + __builtin_shuffle(s, t, QUADS(2, 3, W + 2, W + 3)));
#else
    vf4 s[4];
    UNROLL for (int i = 0; i < 4; i++) s[i] = quarters(v[i]);
    transpose4(&s[0], &s[1], &s[2], &s[3]);
    return (s[0] + s[1]) + (s[2] + s[3]);
#endif
}

/* t = hat * w + b, where hat = (x - mean) * rstd; hat and rstd are stored unless hat is NULL */
static void FN(norm)(float *t, float *hat, float *rstd, const float *x, const float *w, const float *b, int64_t c,
                     int64_t pixels, float eps)
{
    for (int64_t p = 0; p < pixels; p += 4) {
        const int count = pixels - p < 4 ? (int)(pixels - p) : 4;
        const float *r[4];
        for (int i = 0; i < 4; i++) r[i] = x + (p + (i < count ? i : 0)) * c;
        vf s[4] = {{0}};
        for (int64_t l = 0; l < c; l += WIDTH) UNROLL for (int i = 0; i < 4; i++) s[i] += load_v(r[i] + l);
        const vf4 mean = lane_sums(s) / (float)c;
        UNROLL for (int i = 0; i < 4; i++) s[i] = (vf){0};
        for (int64_t l = 0; l < c; l += WIDTH) UNROLL for (int i = 0; i < 4; i++) {
            const vf d = load_v(r[i] + l) - mean[i];
            s[i] += d * d;
        }
        vf4 scale = lane_sums(s) / (float)c + eps;
        UNROLL for (int i = 0; i < 4; i++) scale[i] = __builtin_sqrtf(scale[i]);
        scale = 1 / scale;
        for (int i = 0; i < count; i++) {
            if (hat) rstd[p + i] = scale[i];
            for (int64_t l = 0; l < c; l += WIDTH) {
                const vf h = (load_v(r[i] + l) - mean[i]) * scale[i];
                if (hat) store_v(hat + (p + i) * c + l, h);
                store_v(t + (p + i) * c + l, h * load_v(w + l) + load_v(b + l));
            }
        }
    }
}

/* dx = base + rstd (g - mean(g) - hat mean(g hat)) with g = dt w; dw += dt hat; db += dt */
static void FN(norm_back)(float *dx, const float *base, float *dw, float *db, const float *dt, const float *hat,
                          const float *rstd, const float *w, int64_t c, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p += 4) {
        const int count = pixels - p < 4 ? (int)(pixels - p) : 4;
        int64_t r[4];
        for (int i = 0; i < 4; i++) r[i] = (p + (i < count ? i : 0)) * c;
        vf s[4] = {{0}}, z[4] = {{0}};
        for (int64_t l = 0; l < c; l += WIDTH) UNROLL for (int i = 0; i < 4; i++) {
            const vf g = load_v(dt + r[i] + l) * load_v(w + l);
            s[i] += g;
            z[i] += g * load_v(hat + r[i] + l);
        }
        const vf4 mean = lane_sums(s) / (float)c, along = lane_sums(z) / (float)c;
        for (int i = 0; i < count; i++)
            for (int64_t l = 0; l < c; l += WIDTH) {
                const vf g = load_v(dt + r[i] + l) * load_v(w + l);
                vf d = rstd[p + i] * (g - mean[i] - load_v(hat + r[i] + l) * along[i]);
                if (base) d += load_v(base + r[i] + l);
                store_v(dx + r[i] + l, d);
            }
    }
    for (int64_t l = 0; l < c; l += WIDTH) {
        vf a = load_v(dw + l), b = load_v(db + l);
        for (int64_t p = 0; p < pixels; p++) {
            const vf d = load_v(dt + p * c + l);
            a += d * load_v(hat + p * c + l);
            b += d;
        }
        store_v(dw + l, a);
        store_v(db + l, b);
    }
}

/* ---- gates ---- */

/* g[p][l] = h[p][l] h[p][half + l]; whole vectors, so lanes from `half` on may hold anything */
static void FN(gate)(float *g, int64_t ldg, const float *h, int64_t half, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t l = 0; l < half; l += WIDTH)
            store_v(g + p * ldg + l, load_v(h + p * 2 * half + l) * load_v(h + p * 2 * half + half + l));
}

/* In order: what a wide vector writes past its half is written again afterwards. */
static void FN(gate_back)(float *dh, const float *dg, int64_t ldg, const float *h, int64_t half, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++) {
        float *o = dh + p * 2 * half;
        const float *i = h + p * 2 * half;
        for (int64_t l = 0; l < half; l += WIDTH) store_v(o + l, load_v(dg + p * ldg + l) * load_v(i + half + l));
        for (int64_t l = 0; l < half; l += WIDTH) store_v(o + half + l, load_v(dg + p * ldg + l) * load_v(i + l));
    }
}

/* ---- maps ---- */

/* `count` floats, converted to the buffer unless they are floats already */
INLINE const float *fetch(float *buffer, const char *map, int64_t at, int64_t count, int64_t dtype)
{
    if (dtype == FLOAT32) return (const float *)map + at;
    for (int64_t i = 0; i < count; i += WIDTH)
        store_v(buffer + i, WIDEN(vu, vf, *(const vh *)((const uint16_t *)map + at + i)));
    return buffer;
}

INLINE float *aim(float *buffer, char *map, int64_t at, int64_t dtype)
{
    return dtype == FLOAT32 ? (float *)map + at : buffer;
}

INLINE void flush(char *map, int64_t at, const float *buffer, int64_t count, int64_t dtype)
{
    if (dtype != FLOAT32)
        for (int64_t i = 0; i < count; i += WIDTH) *(vh *)((uint16_t *)map + at + i) = NARROW(vu, vh, load_v(buffer + i));
}

/* Pixels of `lanes` channels, into or out of the first lanes of wider pixels; up to whole LANES, `bring` fills with 0. */
INLINE void bring(float *out, int64_t ldo, const char *map, int64_t at, int64_t lanes, int64_t pixels, int64_t dtype)
{
    const int64_t whole = lanes / WIDTH * WIDTH, end = (lanes + LANES - 1) / LANES * LANES;
    for (int64_t p = 0; p < pixels; p++) {
        int64_t i = at + p * lanes, l = 0;
        for (; l < whole; l += WIDTH, i += WIDTH)
            store_v(out + p * ldo + l, dtype == FLOAT32 ? load_v((const float *)map + i)
                                                        : WIDEN(vu, vf, *(const vh *)((const uint16_t *)map + i)));
        for (; l < end; l += WIDTH, i += WIDTH) {
            const size_t left = (size_t)(lanes > l ? lanes - l : 0);
            vf v = {0};
            vh h = {0};
            if (dtype == FLOAT32) {
                memcpy(&v, (const float *)map + i, left * sizeof(float));
            } else {
                memcpy(&h, (const uint16_t *)map + i, left * sizeof(uint16_t));
                v = WIDEN(vu, vf, h);
            }
            store_v(out + p * ldo + l, v);
        }
    }
}

INLINE void bring_sum(float *out, int64_t ldo, const char *map, const char *more, int64_t at, int64_t lanes, int64_t pixels,
                      int64_t dtype)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t l = 0; l < lanes; l += WIDTH) {
            const int64_t i = at + p * lanes + l;
            store_v(out + p * ldo + l,
                    dtype == FLOAT32 ? load_v((const float *)map + i) + load_v((const float *)more + i)
                                     : WIDEN(vu, vf, *(const vh *)((const uint16_t *)map + i)) +
                                           WIDEN(vu, vf, *(const vh *)((const uint16_t *)more + i)));
        }
}

INLINE void send(char *map, int64_t at, const float *in, int64_t ldi, int64_t lanes, int64_t pixels, int64_t dtype)
{
    const int64_t whole = lanes / WIDTH * WIDTH;
    for (int64_t p = 0; p < pixels; p++) {
        int64_t i = at + p * lanes, l = 0;
        for (; l < whole; l += WIDTH, i += WIDTH)
            if (dtype == FLOAT32)
                store_v((float *)map + i, load_v(in + p * ldi + l));
            else
                *(vh *)((uint16_t *)map + i) = NARROW(vu, vh, load_v(in + p * ldi + l));
        if (l < lanes) {
            const size_t left = (size_t)(lanes - l);
            const vf v = load_v(in + p * ldi + l);
            const vh h = NARROW(vu, vh, v);
            if (dtype == FLOAT32)
                memcpy((float *)map + i, &v, left * sizeof(float));
            else
                memcpy((uint16_t *)map + i, &h, left * sizeof(uint16_t));
        }
    }
}
