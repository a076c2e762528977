/* Kernel basis attention on the CPU: the interface between the drivers (kba.c) and the instruction sets (isa_*.c).
 *
 * Everything is computed on tiles of pixels, sixteen channels at a time. A tile of R x S pixels is stored as a *strip*:
 * rows of `pitch` = S + k - 1 pixels, sixteen floats per pixel, so that a kernel tap is one constant offset and a block
 * of neighbouring pixels may run past the end of a row (its results in the k - 1 columns between rows are dropped).
 *
 * A tap is one (member of the group, kernel position) pair; the bias is one more tap, whose input is one everywhere.
 */
#ifndef KBA_H
#define KBA_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { LANES = 16, BASES = 32, BLOCK = 32 }; /* channels per strip, bases per block, pixels that divide a strip */
enum { FLOAT32 = 0, BFLOAT16 = 1 };
enum { FORWARD, GRAD_INPUT, GRAD_COEFFICIENTS, GRAD_WEIGHT };

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t divide(int64_t a, int64_t b) { return (a + b - 1) / b; } /* rounded up */

typedef struct {
    int64_t b, y, x, rows, cols;
} kba_tile;

typedef struct { /* a (batch, channel, row, column) tensor; strides in elements */
    char *data;
    int64_t b, c, y, x;
} kba_map;

typedef struct {
    int64_t batch, channels, height, width, bases, group, kernel;
    int64_t dtype, threads;
    kba_map x, a, d, out;
    const char *weight, *bias; /* contiguous (bases, channels * group * kernel^2) and (bases, channels) */
    float *dweight, *dbias;
} kba_call;

typedef struct { /* sixteen channels of a rectangle of a map */
    const kba_map *map;
    int64_t dtype, channels, height, width;
    int64_t b, c, y, x; /* image, and first channel, row and column; rows and columns may be outside the map */
    int64_t rows, cols, pitch, total;
} kba_view;

typedef struct { /* the pixels of a tile within a strip; where rows allow it, without the columns between them */
    int64_t pixels;       /* in all, from the strip's start; divided by BLOCK */
    const int32_t *block; /* where the blocks of neighbouring pixels start */
    int64_t blocks;
} kba_area;

typedef struct {
    const char *name;
    int block;                          /* pixels in a block of an area */
    int coefficients_taps, weight_taps; /* what divides the taps of grad_coefficients and of grad_weight */
    int padded;                         /* the products read all BASES bases, else those there are, up to whole LANES */
    int slide;                          /* conv wants taps with neighbouring shifts side by side, else with equal shifts */
    int spreads;                        /* the largest group whose members the two gradients below spread themselves */
    int (*available)(void);
    void (*enter)(void); /* called before and after a thread's share of the work */
    void (*leave)(void);

    /* Strip <- map (zero outside it and up to `total` pixels) and map <- strip; `stride` floats from pixel to pixel. */
    void (*load)(float *strip, int stride, const kba_view *view);
    void (*store)(const float *strip, int stride, const kba_view *view);
    /* out[p][l] = in[p][l / group * group + member] */
    void (*spread)(float *out, const float *in, int64_t pixels, int group, int member);
    /* out[i * step + l] = in[offset[l] + i] for i < run, lanes beyond `count` zero */
    void (*gather)(float *out, int64_t step, const char *in, const int64_t *offset, int count, int64_t run, int64_t dtype);
    /* out[offset[l] + i] = in[i * step + l] for i < run and l < count */
    void (*scatter)(float *out, const int64_t *offset, int count, int64_t run, const float *in, int64_t step);
    void (*add)(float *sum, const float *more, int64_t count); /* `count` is a multiple of LANES */

    /* Convert floats to operands of the products below, for float32 if `exact`, else for bfloat16. NULL: use floats. */
    void (*pack_rows)(void *out, const float *a, int64_t pixels, int exact);    /* a[pixel][base] for conv */
    void (*pack_columns)(void *out, const float *a, int64_t pixels, int exact); /* the same for grad_weight */
    void (*pack_weight)(float *w, int taps, int exact);                         /* w[tap][base][lane] for conv, in place */
    void (*pack_transposed)(void *out, const float *w, int taps, int bases, int exact); /* for grad_coefficients */
    void (*fold)(float *da, int64_t pixels, int bases); /* completes grad_coefficients after its last strip, or NULL */

    /* acc[p][l] += sum_t (sum_n a[p + shift[t]][n] w[t][n][l]) x[t][p][l]; shift may be NULL (all zero) */
    void (*conv)(float *acc, const void *a, const void *w, const float *const *x, const int64_t *shift, int taps,
                 const kba_area *area, int bases, int exact, float *scratch);
    /* In these two, tap t takes x of the member t % group of every lane's group; 1 where x is spread already. */
    /* da[p][n] += sum_t sum_l d[p][l] x[t][p][l] w[t][n][l] */
    void (*grad_coefficients)(float *da, const float *d, const void *w, const float *const *x, int taps,
                              int group, const kba_area *area, int bases, int exact, float *scratch);
    /* dw[t][n][l] += sum_p a[p][n] d[p][l] x[t][p][l] */
    void (*grad_weight)(float *dw, const float *d, const void *a, const float *const *x, int taps, int group,
                        const kba_area *area, int bases, int exact, float *scratch);
} kba_isa;

enum { SCRATCH = 5120 }; /* floats of scratch memory for a product */

/* NULL where the compiler or the processor family lacks these instructions. */
extern const kba_isa *const kba_amx, *const kba_avx512, *const kba_avx2, *const kba_plain;

#endif
