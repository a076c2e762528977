/* All of a KBNet_s block but kernel basis attention: the interface between the driver (block.c) and the instruction
 * sets (vec_block_tiles.h).
 *
 * Two parts, each forward and backward. BRANCHES: norm1; conv1 and conv21; conv11; conv2, conv211 and attgamma; the
 * average of norm1's output. COMBINE: the product of the branches, conv3, norm2, conv4, gate, conv5. A thread takes
 * tiles and keeps what is between their inputs and outputs in its scratch memory; the backward pass computes it again.
 *
 * Without gradients (whole.c), MEAN computes only the average, and WHOLE the rest of the block, kernel basis attention
 * included, on tiles whose maps stay in cache.
 *
 * Maps are dense and channels-last, in float32 or bfloat16; everything else is float32. Where conv2 has several input
 * channels in a group, norm1's output is stored member by member (`order`), which makes conv2 a sum of depthwise
 * convolutions.
 */
#ifndef BLOCK_H
#define BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include "kba.h"

enum { BRANCHES, BRANCHES_BACKWARD, COMBINE, COMBINE_BACKWARD, MEAN, WHOLE };

enum { /* parameters, in torch's shapes */
    NORM1_W, NORM1_B, CONV1_W, CONV1_B, CONV21_W, CONV21_B, CONV11_W, CONV11_B, CONV12_W, CONV12_B,
    CONV2_W, CONV2_B, CONV22_W, CONV22_B, ATTGAMMA, CONV211_W, CONV211_B,
    GA1, CONV3_W, CONV3_B, BETA, NORM2_W, NORM2_B, CONV4_W, CONV4_B, CONV5_W, CONV5_B, GAMMA, PARAMETERS
};

typedef struct {
    int64_t batch, height, width, channels, bases, gate, hidden; /* gate and hidden: channels out of conv2[0] and conv4 */
    int64_t dtype, xtype, threads; /* xtype: of x and dx; out and dout are float32, dtype is of the other maps */
    float eps1, eps2;
    char *x, *features, *coefficients, *spatial, *mixed, *out;
    /* Gradients. That of the features has two parts; BRANCHES_BACKWARD adds to dx, COMBINE_BACKWARD sets it. */
    char *dout, *dx, *dfeatures, *more_dfeatures, *dcoefficients, *dspatial, *dmixed;
    float *mean, *channel, *dmean, *dchannel; /* (batch, channels) */
    /* For WHOLE, channel is (batch, grid_height, grid_width, channels) and interpolated to the size of x. */
    int64_t grid_height, grid_width, group;
    const float *kernels, *biases; /* w and b of kernel basis attention, for WHOLE */
    const float *parameter[PARAMETERS];
    float *gradient[PARAMETERS];
} block_call;

enum { MARGIN = 2 }; /* pixels left and right of a tile's rows in scratch memory */

typedef struct { /* weights as the products read them: [input][output], transposed for the backward pass */
    float *norm_w, *norm_b;
    float *in, *in_b, *in_t;                /* conv1, conv11[0], conv211 side by side */
    float *depth, *depth_b;                 /* conv21 and conv11[1], [9][2 channels] */
    float *depth2, *depth2_b;               /* conv2[0], [9][channels] */
    float *base, *base_t;                   /* conv2[2] times attgamma */
    float *dmean;                           /* over the number of pixels */
    float *conv3, *conv3_b, *conv3_t, *conv4, *conv4_b, *conv4_t, *conv5, *conv5_b, *conv5_t, *ga1;
} block_weights;

typedef struct { /* sums over pixels, from which the gradients of the parameters follow */
    int64_t norm_w, norm_b, in, in_b, depth, depth_b, depth2, depth2_b, base;
    int64_t conv3, conv3_b, conv4, conv4_b, conv5, conv5_b, ga1, size; /* offsets in floats */
} block_sums;

typedef struct { /* the maps between the parts: those of the call, or a thread's own, of one tile */
    char *features, *coefficients, *spatial, *mixed;
    int64_t dtype, image, pitch, y, x; /* pixels from image to image and from row to row; the first row and column */
} block_maps;

typedef struct { /* a thread's buffers */
    block_maps maps;
    float *line, *t, *hat, *rstd, *u, *d, *dfs, *dab, *ab, *g, *dg, *dt, *du;
    float *v, *y, *n, *h, *dh, *dy, *dv, *temporary[4];
} block_room;

typedef struct {
    const block_call *call;
    int what;
    int64_t c, bases, wide, gate, half, inner; /* wide: 2c + bases; half: gate / 2; bases and inner (hidden / 2) in whole LANES */
    int64_t rows, cols, down, across;          /* of a tile in pixels; of an image in tiles */
    int64_t tiles, chunks, pitch, step;        /* pitch: pixels of a row in scratch; step: pixels of COMBINE at a time */
    const int32_t *order;                      /* channel of x at each position, or NULL */
    block_weights w;
    block_sums at;
    float *sums, *tile_sums;                   /* of each chunk; of each tile (channels) */
} block_job;

/* One tile; `sums` are its chunk's, `own` are its own. */
typedef void block_run(const block_job *, const kba_tile *, const block_room *, float *sums, float *own);

typedef struct {
    block_run *run[5]; /* all but WHOLE */
} block_isa;

/* Arrays are whole cache lines. */
static inline int64_t block_whole(int64_t floats) { return (floats + 15) / 16 * 16; }

/* Takes an array from `memory`, of which `used` floats are taken; with NULL, only counts. */
static inline void block_take(float **array, float *memory, int64_t *used, int64_t floats)
{
    *array = memory ? memory + *used : NULL;
    *used += block_whole(floats);
}

/* The channel of x at position k. */
static inline int64_t block_channel(const block_job *j, int64_t k) { return j->order ? j->order[k] : k; }

/* block_weights.c: the layouts (weights need `memory` or, to only count the floats, NULL), packing, gradients. */
void block_lay_out_sums(block_job *j);
int64_t block_lay_out_weights(block_job *j, float *memory);
void block_pack(block_job *j);
void block_finish(const block_job *j);

/* Without gradients. */
int block_run_whole(const block_call *q, const block_isa *isa, const char *name);

/* block.c: a thread's buffers from `memory`, or only the floats; a job whose call and what are set. */
int64_t block_furnish(const block_job *j, block_room *r, float *memory);
void block_begin(block_job *j);
void block_order(block_job *j, int32_t *order);

/* NULL where the compiler or the processor family lacks these instructions. */
extern const block_isa *const block_avx512, *const block_avx2, *const block_plain;

#endif
