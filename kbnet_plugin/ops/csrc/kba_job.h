/* Kernel basis attention: what the drivers (kba.c, whole.c) share. */
#ifndef KBA_JOB_H
#define KBA_JOB_H

#include <stdatomic.h>

#include "kba.h"

enum { MAX_TAPS = 16 * 25 + 3 };

typedef struct {
    const kba_call *call;
    const kba_isa *isa;
    int what, exact;
    int taps, slots;                   /* taps without the bias; with it, rounded up as the product requires */
    int64_t half, strips, blocks;      /* k / 2; strips of sixteen channels; blocks of 32 bases */
    int64_t rows, cols, down, across;  /* of a tile in pixels; of an image in tiles */
    int64_t pitch, pixels, halo;       /* of a strip: pixels from row to row, in all, in all with the margin */
    int64_t tiles, chunks, splits;     /* tiles in all; items are (chunk of tiles) x (split of the channels) */
    float *weight, *partial;
    atomic_llong next;
    atomic_int failed;
} kba_job;

typedef struct { /* a thread's buffers */
    float *a, *packed, *base, *members, *d, *sum, *ones, *scratch;
    int32_t *block;
    const float *x[MAX_TAPS];
    int64_t shift[MAX_TAPS];
} kba_room;

/* The instruction set of this name, "" for the fastest, or NULL if it is not available. */
const kba_isa *kba_find(const char *name);

/* Completes a job whose call, isa, what and exact are set; of the tiles, nothing is planned yet. */
void kba_begin(kba_job *j);
/* Completes a job whose tiles have rows and cols. */
void kba_lay_out(kba_job *j);
/* Floats of all packed weights; packs them in all threads that call it together, after which `failed` tells. */
int64_t kba_weight_floats(const kba_job *j);
void kba_pack_all(void *job);
/* A thread's buffers from `memory`, or only their floats; then what does not change from tile to tile. */
int64_t kba_furnish(const kba_job *j, kba_room *r, float *memory);
void kba_settle(const kba_job *j, kba_room *r);
kba_tile kba_tile_at(const kba_job *j, int64_t i);
/* FORWARD or GRAD_INPUT of a tile of the maps of a call, for the strips from `from` to `to`. */
void kba_convolve(const kba_job *j, const kba_call *c, const kba_room *r, const kba_tile *t, int64_t from, int64_t to);

#endif
