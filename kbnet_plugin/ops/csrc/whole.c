/* A KBNet_s block without gradients: branches, kernel basis attention and combination of one tile after the other, so
 * that the maps between them stay in cache. They are float32; in bfloat16 only the products of the attention may be
 * less exact. */
#include <stdatomic.h>

#include "block.h"
#include "kba_job.h"
#include "threads.h"

enum { OK, NO_MEMORY };
enum { COLUMNS = 64, TILE_FLOATS = 16384, GOOD_ROWS = 16, LEAST_ROWS = 4 }; /* of a tile, without its margin */

typedef struct {
    const block_isa *isa;
    kba_call maps; /* without data */
    kba_job kba;
    block_job branches, combine;
    int64_t pitch, map; /* of a tile's maps with margin, in pixels: from row to row, in all */
    int64_t room, kba_room;
    atomic_llong next;
    atomic_int failed;
} crew;

/* Tiles as the cache allows, but enough for all threads; no sum crosses them, so that they change no bit. */
static void plan(crew *a, const block_call *q)
{
    kba_job *k = &a->kba;
    const int64_t across = divide(q->width, COLUMNS), wanted = q->threads > 1 ? 2 * q->threads : 1;
    k->cols = divide(q->width, across);
    const int64_t rows = max(GOOD_ROWS, TILE_FLOATS / q->channels / k->cols);
    const int64_t down = max(divide(q->height, rows), min(divide(wanted, q->batch * across), divide(q->height, LEAST_ROWS)));
    k->rows = divide(q->height, down);
    kba_lay_out(k);
    a->pitch = k->cols + 2 * k->half;
    a->map = (k->rows + 2 * k->half) * a->pitch;
    block_job *b = &a->branches, *c = &a->combine;
    b->rows = k->rows + 2 * k->half;
    b->cols = a->pitch;
    b->pitch = b->cols + 2 * MARGIN + 8;
    c->rows = 1;
    c->cols = c->step = k->cols;
    c->pitch = c->step + 8;
}

/* A thread's buffers from `memory`, or only their floats. */
static int64_t furnish(const crew *a, block_room *branches, block_room *combine, float *memory)
{
    const block_call *q = a->branches.call;
    block_maps maps = {.dtype = FLOAT32, .pitch = a->pitch};
    int64_t used = block_furnish(&a->branches, branches, memory);
    used += block_furnish(&a->combine, combine, memory ? memory + used : NULL);
    char **const map[] = {&maps.features, &maps.spatial, &maps.mixed, &maps.coefficients};
    for (int i = 0; i < 4; i++) {
        float *start;
        block_take(&start, memory, &used, a->map * (i < 3 ? q->channels : q->bases) + LANES);
        *map[i] = (char *)start;
    }
    branches->maps = combine->maps = maps;
    return used;
}

/* A tile's map as kernel basis attention addresses it: by row and column of the image. */
static kba_map by_image(const block_maps *m, char *map, int64_t lanes)
{
    const int64_t first = (m->y * m->pitch + m->x) * lanes;
    return (kba_map){(char *)((uintptr_t)map - (uintptr_t)first * sizeof(float)), 0, 1, m->pitch * lanes, lanes};
}

static void run_tile(const crew *a, const kba_tile *t, block_room *branches, block_room *combine, const kba_room *kba)
{
    const block_call *q = a->branches.call;
    const int64_t half = a->kba.half, y = max(0, t->y - half), x = max(0, t->x - half);
    const kba_tile wider = {t->b, y, x, min(q->height, t->y + t->rows + half) - y, min(q->width, t->x + t->cols + half) - x};
    branches->maps.y = combine->maps.y = y;
    branches->maps.x = combine->maps.x = x;
    a->isa->run[BRANCHES](&a->branches, &wider, branches, NULL, NULL);

    const block_maps *m = &branches->maps;
    kba_call call = a->maps;
    call.x = by_image(m, m->features, q->channels);
    call.a = by_image(m, m->coefficients, q->bases);
    call.out = by_image(m, m->mixed, q->channels);
    const kba_tile tile = {0, t->y, t->x, t->rows, t->cols}; /* its maps are of one image */
    kba_convolve(&a->kba, &call, kba, &tile, 0, a->kba.strips);

    for (int64_t row = t->y; row < t->y + t->rows; row++) {
        const kba_tile line = {t->b, row, t->x, 1, t->cols};
        a->isa->run[COMBINE](&a->combine, &line, combine, NULL, NULL);
    }
}

static void run_tiles(void *argument)
{
    crew *a = argument;
    const kba_job *k = &a->kba;
    float *memory = kba_scratch(OF_THREAD, a->room + a->kba_room);
    if (!memory) {
        atomic_store(&a->failed, 1);
        return;
    }
    block_room branches = {0}, combine = {0};
    kba_room kba;
    furnish(a, &branches, &combine, memory);
    kba_furnish(k, &kba, memory + a->room);
    kba_settle(k, &kba);
    if (k->isa->enter) k->isa->enter();
    for (int64_t i; (i = atomic_fetch_add(&a->next, 1)) < k->tiles;) {
        const kba_tile t = kba_tile_at(k, i);
        run_tile(a, &t, &branches, &combine, &kba);
    }
    if (k->isa->leave) k->isa->leave();
}

int block_run_whole(const block_call *q, const block_isa *isa, const char *name)
{
    crew a = {.isa = isa, .branches = {.call = q, .what = BRANCHES}, .combine = {.call = q, .what = COMBINE}};
    a.maps = (kba_call){.batch = q->batch, .channels = q->channels, .height = q->height, .width = q->width,
                        .bases = q->bases, .group = q->group, .kernel = 3, .dtype = FLOAT32, .threads = q->threads,
                        .weight = (const char *)q->kernels, .bias = (const char *)q->biases};
    a.kba.call = &a.maps;
    a.kba.isa = kba_find(name);
    a.kba.what = FORWARD;
    a.kba.exact = q->dtype == FLOAT32;
    kba_begin(&a.kba);
    block_begin(&a.branches);
    block_begin(&a.combine);
    plan(&a, q);
    a.room = furnish(&a, &(block_room){0}, &(block_room){0}, NULL);
    a.kba_room = kba_furnish(&a.kba, &(kba_room){0}, NULL);

    const int64_t kernels = kba_weight_floats(&a.kba), first = block_lay_out_weights(&a.branches, NULL);
    const int64_t second = block_lay_out_weights(&a.combine, NULL);
    float *memory = kba_reserve(kernels + first + second + q->channels);
    if (!memory) return NO_MEMORY;
    a.kba.weight = memory;
    block_lay_out_weights(&a.branches, memory + kernels);
    block_lay_out_weights(&a.combine, memory + kernels + first);
    block_order(&a.branches, (int32_t *)(memory + kernels + first + second));
    block_pack(&a.branches);
    block_pack(&a.combine);
    kba_parallel(kba_pack_all, &a.kba, min(q->threads, a.kba.strips * a.kba.blocks));
    kba_parallel(run_tiles, &a, min(q->threads, a.kba.tiles));
    kba_release(memory);
    return atomic_load(&a.failed) ? NO_MEMORY : OK;
}
