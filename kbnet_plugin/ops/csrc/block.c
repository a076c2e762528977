/* All of a KBNet_s block but kernel basis attention: tiles and threads. The arithmetic is in vec_block_tiles.h. */
#include <stdatomic.h>
#include <string.h>

#include "block.h"
#include "kba.h"
#include "kba_job.h"
#include "threads.h"

enum { OK, NO_ISA, NO_MEMORY };
enum { ROW_FLOATS = 4096, ITEMS = 32 };
enum { MIN_ROWS = 8, MIN_PIXELS = 128, MAX_PIXELS = 4096 }; /* of a tile; fewer rows would repeat too many of the margin */

typedef struct {
    block_job job;
    const block_isa *isa;
    int64_t room; /* floats */
    atomic_llong next;
    atomic_int failed;
} crew;

static const block_isa *choose(const char *name)
{
    const kba_isa *found = kba_find(name);
    if (!found) return NULL;
    if (found == kba_plain) return block_plain;
    if (found == kba_avx2) return block_avx2;
    return block_avx512; /* also with AMX: most products here are too short for it */
}

/* Only the shape decides, because it fixes the order of sums. */
static void plan(block_job *j)
{
    const block_call *q = j->call;
    const int64_t all = q->batch * q->height * q->width;
    const int64_t target = max(MIN_PIXELS, min(MAX_PIXELS, all / ITEMS));
    if (j->what == COMBINE || j->what == COMBINE_BACKWARD) { /* pixels in a row */
        const int64_t pixels = q->height * q->width;
        j->rows = j->down = 1;
        j->across = divide(pixels, target);
        j->cols = divide(pixels, j->across);
        j->across = divide(pixels, j->cols);
    } else {
        j->across = divide(q->width, max(LANES, ROW_FLOATS / j->c));
        j->cols = divide(q->width, j->across);
        j->across = divide(q->width, j->cols);
        j->rows = min(q->height, max(MIN_ROWS, target / j->cols));
        j->rows = divide(q->height, divide(q->height, j->rows));
        j->down = divide(q->height, j->rows);
    }
    j->tiles = q->batch * j->down * j->across;
    j->chunks = min(ITEMS, j->tiles);
    j->step = min(j->cols, max(LANES, ROW_FLOATS / j->c));
    j->pitch = (j->what == COMBINE || j->what == COMBINE_BACKWARD ? j->step : j->cols + 2 * MARGIN) + 8;
}

static kba_tile tile_at(const block_job *j, int64_t i)
{
    const block_call *q = j->call;
    const int whole = j->what == COMBINE || j->what == COMBINE_BACKWARD;
    kba_tile t = {i / (j->down * j->across), i / j->across % j->down * j->rows, i % j->across * j->cols, 0, 0};
    t.rows = min(j->rows, (whole ? 1 : q->height) - t.y);
    t.cols = min(j->cols, (whole ? q->height * q->width : q->width) - t.x);
    return t;
}

/* Takes a thread's buffers from `memory`, or only counts the floats. */
int64_t block_furnish(const block_job *j, block_room *r, float *memory)
{
    const int64_t c = j->c, p = j->pitch, slack = LANES;
    int64_t used = 0;
    r->hat = NULL;
#define TAKE(field, floats) block_take(&r->field, memory, &used, floats)
    const int back = j->what == BRANCHES_BACKWARD || j->what == COMBINE_BACKWARD;
    if (j->what == COMBINE || j->what == COMBINE_BACKWARD) {
        for (int i = 0; i < 4; i++) TAKE(temporary[i], p * c);
        TAKE(v, p * c);
        TAKE(y, p * c);
        TAKE(n, p * c);
        TAKE(h, 2 * p * j->inner);
        TAKE(g, p * j->inner);
        if (back) {
            TAKE(hat, p * c);
            TAKE(rstd, p);
            TAKE(dg, p * j->inner);
            TAKE(dh, 2 * p * j->inner);
            TAKE(dy, p * c);
            TAKE(dv, p * c);
        }
        return used;
    }
    TAKE(line, 2 * p * c);
    TAKE(t, 3 * p * c);
    if (j->what == MEAN) return used;
    TAKE(ab, p * j->gate + slack);
    TAKE(g, p * LANES + slack);
    if (back) {
        TAKE(hat, 3 * p * c);
        TAKE(rstd, 3 * p);
        TAKE(du, 2 * p * c);
        TAKE(d, 2 * p * j->wide);
        TAKE(dfs, 3 * p * 2 * c);
        TAKE(dab, 3 * p * j->gate + slack);
        TAKE(dg, p * LANES);
        TAKE(dt, p * c);
    } else {
        TAKE(u, 3 * p * j->wide);
    }
#undef TAKE
    return used;
}

/* The tiles' sums over an image, in a fixed order. */
static void finish_tiles(const block_job *j, float *out, float scale)
{
    const int64_t per = j->down * j->across;
    for (int64_t b = 0; b < j->call->batch; b++)
        for (int64_t k = 0; k < j->c; k++) {
            float sum = 0;
            for (int64_t i = b * per; i < (b + 1) * per; i++) sum += j->tile_sums[i * j->c + k];
            out[b * j->c + block_channel(j, k)] = sum * scale;
        }
}

/* ---- the run ---- */

static void run_chunks(void *argument)
{
    crew *a = argument;
    const block_job *j = &a->job;
    float *memory = kba_scratch(OF_THREAD, a->room);
    if (!memory) {
        atomic_store(&a->failed, 1);
        return;
    }
    const block_call *q = j->call;
    block_room r = {.maps = {.features = q->features, .coefficients = q->coefficients, .spatial = q->spatial, .mixed = q->mixed}};
    r.maps.dtype = q->dtype;
    r.maps.image = q->height * q->width;
    r.maps.pitch = q->width;
    block_furnish(j, &r, memory);
    for (int64_t i; (i = atomic_fetch_add(&a->next, 1)) < j->chunks;) {
        float *sums = j->sums ? j->sums + i * j->at.size : NULL;
        if (sums) memset(sums, 0, (size_t)j->at.size * sizeof(float));
        for (int64_t k = j->tiles * i / j->chunks; k < j->tiles * (i + 1) / j->chunks; k++) {
            const kba_tile t = tile_at(j, k);
            a->isa->run[j->what](j, &t, &r, sums, j->tile_sums + k * j->c);
        }
    }
}

/* Adds the chunks to the first, in a fixed order, so that threads and timing do not change the result. */
static void add_chunks(void *argument)
{
    enum { PART = 1024 };
    crew *a = argument;
    const block_job *j = &a->job;
    for (int64_t i; (i = atomic_fetch_add(&a->next, 1) * PART) < j->at.size;) {
        const int64_t count = min(PART, j->at.size - i);
        for (int64_t k = 1; k < j->chunks; k++)
            for (int64_t l = i; l < i + count; l++) j->sums[l] += j->sums[k * j->at.size + l];
    }
}

void block_begin(block_job *j)
{
    const block_call *q = j->call;
    j->c = q->channels;
    j->bases = divide(q->bases, LANES) * LANES;
    j->wide = 2 * j->c + j->bases;
    j->gate = q->gate;
    j->half = q->gate / 2;
    j->inner = divide(q->hidden / 2, LANES) * LANES;
}

void block_order(block_job *j, int32_t *order)
{
    const int64_t members = j->c / j->gate;
    if (members == 1 || j->what == COMBINE || j->what == COMBINE_BACKWARD) return;
    for (int64_t k = 0; k < j->c; k++) order[k] = (int32_t)(k % j->gate * members + k / j->gate);
    j->order = order;
}

EXPORT int block_run_part(const block_call *q, int what, const char *name)
{
    crew a = {.job = {.call = q, .what = what}};
    block_job *j = &a.job;
    a.isa = choose(name);
    if (!a.isa) return NO_ISA;
    if (what == WHOLE) return block_run_whole(q, a.isa, name) ? NO_MEMORY : OK;
    block_begin(j);
    plan(j);
    const int back = what == BRANCHES_BACKWARD || what == COMBINE_BACKWARD;
    if (back) block_lay_out_sums(j);
    a.room = block_furnish(j, &(block_room){0}, NULL);
    const int64_t weights = block_lay_out_weights(j, NULL), sums = back ? j->chunks * j->at.size : 0;
    const int64_t floats = weights + sums + j->tiles * j->c + j->c;
    float *memory = kba_reserve(floats);
    if (!memory) return NO_MEMORY;
    block_lay_out_weights(j, memory);
    j->sums = back ? memory + weights : NULL;
    j->tile_sums = memory + weights + sums;
    block_order(j, (int32_t *)(memory + weights + sums + j->tiles * j->c));
    block_pack(j);
    kba_parallel(run_chunks, &a, min(q->threads, j->chunks));
    const int failed = atomic_load(&a.failed);
    if (!failed && back) {
        atomic_store(&a.next, 0);
        kba_parallel(add_chunks, &a, j->at.size * j->chunks < 1 << 16 ? 1 : q->threads);
        block_finish(j);
    }
    if (!failed && (what == BRANCHES || what == MEAN)) finish_tiles(j, q->mean, 1 / ((float)q->height * (float)q->width));
    if (!failed && what == COMBINE_BACKWARD) finish_tiles(j, q->dchannel, 1);
    kba_release(memory);
    return failed ? NO_MEMORY : OK;
}
