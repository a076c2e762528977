/* Drivers: tiles and weights. Everything specific to an instruction set is behind kba_isa. */
#include <stdatomic.h>
#include <string.h>

#include "kba.h"
#include "kba_job.h"
#include "threads.h"

enum { OK, NO_ISA, NO_MEMORY };
enum { TILE_PIXELS = 1152, TILE_COLUMNS = 128, ITEMS = 32 };
enum { SHORT = 512 }; /* with fewer terms the errors of split floats do not average out */

static int64_t round_up(int64_t a, int64_t b) { return divide(a, b) * b; }

/* ---- instruction sets, fastest first ---- */

const kba_isa *kba_find(const char *name)
{
    const kba_isa *const all[] = {kba_amx, kba_avx512, kba_avx2, kba_plain};
    for (int i = 0; i < 4; i++)
        if (all[i] && (!*name || !strcmp(name, all[i]->name)) && all[i]->available()) return all[i];
    return NULL;
}

/* Returns `name` if it is available, else NULL; "" stands for the fastest. */
EXPORT const char *kba_choose(const char *name)
{
    const kba_isa *isa = kba_find(name);
    return isa ? isa->name : NULL;
}

/* ---- the job ---- */

kba_tile kba_tile_at(const kba_job *j, int64_t i)
{
    kba_tile t = {i / (j->down * j->across), i / j->across % j->down * j->rows, i % j->across * j->cols, 0, 0};
    t.rows = min(j->rows, j->call->height - t.y);
    t.cols = min(j->cols, j->call->width - t.x);
    return t;
}

void kba_lay_out(kba_job *j)
{
    const kba_call *c = j->call;
    j->pitch = j->cols + 2 * j->half;
    j->across = divide(c->width, j->cols);
    j->down = divide(c->height, j->rows);
    j->tiles = c->batch * j->down * j->across;
    j->pixels = round_up(j->rows * j->pitch, BLOCK);
    j->halo = round_up(j->pixels + 2 * j->half * (j->pitch + 1), BLOCK);
}

static void plan_tiles(kba_job *j, int64_t target)
{
    const kba_call *c = j->call;
    j->cols = divide(c->width, divide(c->width, TILE_COLUMNS));
    j->rows = min(c->height, max(1, target / (j->cols + 2 * j->half)));
    j->rows = divide(c->height, divide(c->height, j->rows));
    kba_lay_out(j);
}

static int bases_of(const kba_job *j, int64_t block) { return (int)min(BASES, j->call->bases - block * BASES); }

/* Bases that the products read, those that are missing as zeros. */
static int read_of(const kba_job *j, int64_t block)
{
    return j->isa->padded ? BASES : (int)round_up(bases_of(j, block), LANES);
}

static float *weight_of(const kba_job *j, int64_t strip, int64_t block)
{
    return j->weight + (size_t)(strip * j->blocks + block) * j->slots * BASES * LANES;
}

/* Whether the product itself spreads the members of a group. */
static int spreads(const kba_job *j)
{
    return j->what >= GRAD_COEFFICIENTS && j->call->group <= j->isa->spreads;
}

/* Whether the members of a group are neighbours among the taps, else the positions in the kernel. */
static int by_position(const kba_job *j) { return j->what == GRAD_INPUT ? !j->isa->slide : spreads(j); }

/* Weights of one strip and block as w[tap][base][lane], then in the layout that the product reads. */
static void pack(kba_job *j, int64_t strip, int64_t block)
{
    const kba_call *c = j->call;
    const int64_t size = c->dtype == FLOAT32 ? 4 : 2, kk = c->kernel * c->kernel, first = strip * LANES;
    const int count = (int)min(LANES, c->channels - first);
    const int input = j->what == GRAD_INPUT;
    float *to = weight_of(j, strip, block), *w = to;
    float *temporary = NULL;
    if (j->what == GRAD_COEFFICIENTS) {
        temporary = kba_scratch(OF_THREAD, (int64_t)j->slots * BASES * LANES);
        if (!temporary) {
            atomic_store(&j->failed, 1);
            return;
        }
        w = temporary;
    }
    int64_t offset[LANES], lane[LANES];
    for (int l = 0; l < LANES; l++) {
        const int64_t leader = first + l / c->group * c->group;
        lane[l] = l;
        offset[l] = input ? leader * c->group * kk + l % c->group * kk : (first + l) * c->group * kk;
    }
    const int bases = bases_of(j, block), tap = BASES * LANES;
    for (int n = 0; n < read_of(j, block); n++) {
        const int64_t base = block * BASES + n;
        const int lanes = n < bases ? count : 0;
        const char *row = c->weight + base * c->channels * c->group * kk * size;
        const char *bias = c->bias + (base * c->channels + first) * size;
        float *o = w + n * LANES;
        if (n + 1 < bases) /* too short a run for the hardware prefetcher */
            for (int64_t i = 0; i < count * c->group * kk * size; i += 64)
                __builtin_prefetch(row + (c->channels + first) * c->group * kk * size + i);
        for (int64_t m = 0; m < c->group; m++) {
            const int64_t step = by_position(j) ? c->group : 1, start = by_position(j) ? m : m * kk;
            if (input) /* the kernel is turned */
                j->isa->gather(o + (start + (kk - 1) * step) * tap, -step * tap, row + m * c->group * kk * size, offset,
                               lanes, kk, c->dtype);
            else
                j->isa->gather(o + start * tap, step * tap, row + m * kk * size, offset, lanes, kk, c->dtype);
        }
        for (int t = j->taps; t < j->slots; t++)
            j->isa->gather(o + t * tap, 0, bias, lane, t == j->taps ? lanes : 0, 1, c->dtype);
    }
    if (temporary)
        j->isa->pack_transposed(to, temporary, j->slots, bases, j->exact);
    else if (j->isa->pack_weight)
        j->isa->pack_weight(to, j->slots, j->exact);
}

void kba_pack_all(void *argument)
{
    kba_job *j = argument;
    for (int64_t i; (i = atomic_fetch_add(&j->next, 1)) < j->strips * j->blocks;) pack(j, i / j->blocks, i % j->blocks);
}

int64_t kba_furnish(const kba_job *j, kba_room *r, float *memory)
{
    const kba_call *c = j->call;
    int64_t used = 0;
#define TAKE(field, floats) (r->field = memory + used, used += round_up(floats, 16))
    TAKE(a, j->blocks * j->halo * BASES);
    TAKE(packed, j->blocks * j->halo * BASES);
    TAKE(base, j->halo * LANES);
    TAKE(members, c->group > 1 ? c->group * j->halo * LANES : 0);
    TAKE(d, j->pixels * LANES);
    TAKE(sum, j->blocks * j->pixels * BASES);
    TAKE(ones, j->pixels * LANES);
    TAKE(scratch, SCRATCH);
#undef TAKE
    r->block = (int32_t *)(memory + used);
    used += round_up(j->pixels / j->isa->block, 16);
    return used;
}

void kba_settle(const kba_job *j, kba_room *r)
{
    const kba_call *c = j->call;
    const int64_t kk = c->kernel * c->kernel;
    for (int t = 0; t < j->slots; t++) {
        const int64_t q = by_position(j) ? t / c->group : t % kk, member = by_position(j) ? t % c->group : t / kk;
        r->shift[t] = q / c->kernel * j->pitch + q % c->kernel;
        const float *x = c->group > 1 && !spreads(j) ? r->members + member * j->halo * LANES : r->base;
        r->x[t] = t < j->taps ? x + r->shift[t] * LANES : r->ones;
    }
    for (int64_t i = 0; i < j->pixels * LANES; i++) r->ones[i] = 1;
}

static kba_view view_of(const kba_job *j, const kba_map *map, const kba_tile *t, int64_t margin, int64_t first, int64_t channels)
{
    const kba_call *c = j->call;
    return (kba_view){map, c->dtype, channels, c->height, c->width, t->b, first, t->y - margin, t->x - margin,
                      t->rows + 2 * margin, t->cols + 2 * margin, j->pitch, margin ? j->halo : j->pixels};
}

static const float *load_coefficients(const kba_job *j, const kba_room *r, const kba_map *map, const kba_tile *t,
                                      int64_t margin, void (*pack)(void *, const float *, int64_t, int))
{
    for (int64_t n = 0; n < j->blocks; n++) {
        const int64_t at = n * j->halo * BASES;
        for (int s = 0; s < read_of(j, n) / LANES; s++) {
            const int64_t first = min(n * BASES + s * LANES, j->call->bases);
            const kba_view v = view_of(j, map, t, margin, first, j->call->bases);
            j->isa->load(r->a + at + s * LANES, BASES, &v);
        }
        if (pack) pack(r->packed + at, r->a + at, margin ? j->halo : j->pixels, j->exact);
    }
    return pack ? r->packed : r->a;
}

/* The strip and, for each member of a group, a copy with that member's value in all lanes of its group. */
static void load_members(const kba_job *j, const kba_room *r, const kba_map *map, const kba_tile *t, int64_t strip)
{
    const kba_call *c = j->call;
    const kba_view v = view_of(j, map, t, j->half, strip * LANES, c->channels);
    j->isa->load(r->base, LANES, &v);
    for (int m = 0; c->group > 1 && !spreads(j) && m < c->group; m++)
        j->isa->spread(r->members + m * j->halo * LANES, r->base, j->halo, (int)c->group, m);
}

static void load_centre(const kba_job *j, const kba_room *r, const kba_tile *t, int64_t strip)
{
    const kba_view v = view_of(j, &j->call->d, t, 0, strip * LANES, j->call->channels);
    j->isa->load(r->d, LANES, &v);
}

/* Blocks by rows where they fit between the margins, else one after the other. */
static kba_area area_of(const kba_job *j, const kba_room *r, const kba_tile *t)
{
    const int64_t size = j->isa->block, rows = round_up(t->cols, size) <= j->pitch ? t->rows : 1;
    const int64_t length = rows == t->rows ? t->cols : t->rows * j->pitch;
    int64_t blocks = 0;
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < length; x += size) r->block[blocks++] = (int32_t)(y * j->pitch + x);
    return (kba_area){j->pixels, r->block, blocks};
}

/* Forward, and the gradient of x: the same sum with reversed weights and shifted coefficients. */
void kba_convolve(const kba_job *j, const kba_call *c, const kba_room *r, const kba_tile *t, int64_t from, int64_t to)
{
    const kba_area area = area_of(j, r, t);
    const int input = j->what == GRAD_INPUT;
    const float *a = load_coefficients(j, r, &c->a, t, input ? j->half : 0, j->isa->pack_rows);
    for (int64_t s = from; s < to; s++) {
        load_members(j, r, input ? &c->d : &c->x, t, s);
        memset(r->sum, 0, (size_t)j->pixels * LANES * sizeof(float));
        for (int64_t n = 0; n < j->blocks; n++)
            j->isa->conv(r->sum, a + n * j->halo * BASES, weight_of(j, s, n), r->x, input ? r->shift : NULL, j->slots,
                         &area, bases_of(j, n), j->exact, r->scratch);
        const kba_view v = view_of(j, &c->out, t, 0, s * LANES, c->channels);
        j->isa->store(r->sum, LANES, &v);
    }
}

static void run_coefficients(const kba_job *j, const kba_room *r, const kba_tile *t)
{
    const int group = spreads(j) ? (int)j->call->group : 1;
    const kba_area area = area_of(j, r, t);
    const kba_call *c = j->call;
    memset(r->sum, 0, (size_t)j->blocks * j->pixels * BASES * sizeof(float));
    for (int64_t s = 0; s < j->strips; s++) {
        load_members(j, r, &c->x, t, s);
        load_centre(j, r, t, s);
        for (int64_t n = 0; n < j->blocks; n++)
            j->isa->grad_coefficients(r->sum + n * j->pixels * BASES, r->d, weight_of(j, s, n), r->x, j->slots, group, &area,
                                      bases_of(j, n), j->exact, r->scratch);
    }
    for (int64_t n = 0; j->isa->fold && n < j->blocks; n++)
        j->isa->fold(r->sum + n * j->pixels * BASES, j->pixels, bases_of(j, n));
    for (int64_t first = 0; first < c->bases; first += LANES) {
        const kba_view v = view_of(j, &c->out, t, 0, first, c->bases);
        j->isa->store(r->sum + first / BASES * j->pixels * BASES + first % BASES, BASES, &v);
    }
}

static float *partial_of(const kba_job *j, int64_t chunk, int64_t strip, int64_t block)
{
    return j->partial + (size_t)((chunk * j->strips + strip) * j->blocks + block) * j->slots * BASES * LANES;
}

static void run_weight(const kba_job *j, const kba_room *r, const kba_tile *t, int64_t chunk, int64_t from, int64_t to)
{
    const int group = spreads(j) ? (int)j->call->group : 1;
    const kba_area area = area_of(j, r, t);
    const float *a = load_coefficients(j, r, &j->call->a, t, 0, j->isa->pack_columns);
    for (int64_t s = from; s < to; s++) {
        load_members(j, r, &j->call->x, t, s);
        load_centre(j, r, t, s);
        for (int64_t n = 0; n < j->blocks; n++)
            j->isa->grad_weight(partial_of(j, chunk, s, n), r->d, a + n * j->halo * BASES, r->x, j->slots, group, &area,
                                bases_of(j, n), j->exact, r->scratch);
    }
}

static void run_items(void *argument)
{
    kba_job *j = argument;
    kba_room r;
    float *memory = kba_scratch(OF_THREAD, kba_furnish(j, &r, NULL));
    if (!memory) {
        atomic_store(&j->failed, 1);
        return;
    }
    kba_furnish(j, &r, memory);
    kba_settle(j, &r);
    if (j->isa->enter) j->isa->enter();
    for (int64_t i; (i = atomic_fetch_add(&j->next, 1)) < j->chunks * j->splits;) {
        const int64_t chunk = i / j->splits, split = i % j->splits;
        const int64_t from = j->strips * split / j->splits, to = j->strips * (split + 1) / j->splits;
        if (j->what == GRAD_WEIGHT)
            memset(partial_of(j, chunk, from, 0), 0, (size_t)(partial_of(j, chunk, to, 0) - partial_of(j, chunk, from, 0)) * 4);
        for (int64_t k = j->tiles * chunk / j->chunks; k < j->tiles * (chunk + 1) / j->chunks; k++) {
            const kba_tile t = kba_tile_at(j, k);
            if (j->what == GRAD_WEIGHT)
                run_weight(j, &r, &t, chunk, from, to);
            else if (j->what == GRAD_COEFFICIENTS)
                run_coefficients(j, &r, &t);
            else
                kba_convolve(j, j->call, &r, &t, from, to);
        }
    }
    if (j->isa->leave) j->isa->leave();
}

/* Adds the chunks in a fixed order, so that threads and timing do not change the result. */
static void reduce_all(void *argument)
{
    kba_job *j = argument;
    const kba_call *c = j->call;
    const int64_t kk = c->kernel * c->kernel;
    for (int64_t i; (i = atomic_fetch_add(&j->next, 1)) < j->strips * j->blocks;) {
        const int64_t strip = i / j->blocks, block = i % j->blocks, first = strip * LANES;
        const int64_t size = (int64_t)j->slots * BASES * LANES;
        float *sum = partial_of(j, 0, strip, block);
        for (int64_t k = 1; k < j->chunks; k++) j->isa->add(sum, partial_of(j, k, strip, block), size);
        int64_t offset[LANES], lane[LANES];
        for (int l = 0; l < LANES; l++) {
            lane[l] = l;
            offset[l] = (first + l) * c->group * kk;
        }
        const int count = (int)min(LANES, c->channels - first), tap = BASES * LANES;
        for (int64_t n = 0; n < bases_of(j, block); n++) {
            const int64_t row = (block * BASES + n) * c->channels;
            const float *in = sum + n * LANES;
            for (int64_t m = 0; m < c->group; m++)
                j->isa->scatter(c->dweight + row * c->group * kk + m * kk, offset, count, kk,
                                in + (by_position(j) ? m : m * kk) * tap, (by_position(j) ? c->group : 1) * tap);
            j->isa->scatter(c->dbias + row + first, lane, count, 1, in + j->taps * tap, tap);
        }
    }
}

static int run_phase(kba_job *j, void (*phase)(void *), int64_t items)
{
    atomic_store(&j->next, 0);
    kba_parallel(phase, j, min(j->call->threads, items));
    return atomic_load(&j->failed);
}

void kba_begin(kba_job *j)
{
    const kba_call *c = j->call;
    j->half = c->kernel / 2;
    j->taps = (int)(c->group * c->kernel * c->kernel);
    const int64_t all = c->batch * c->height * c->width;
    const int64_t terms = j->what == GRAD_WEIGHT ? all : j->taps * (j->what == GRAD_COEFFICIENTS ? c->channels : c->bases);
    if (j->exact && j->isa == kba_amx && terms < SHORT) j->isa = kba_avx512;
    j->strips = divide(c->channels, LANES);
    j->blocks = divide(c->bases, BASES);
    j->slots = j->taps + (j->what != GRAD_INPUT);
    if (j->what == GRAD_COEFFICIENTS) j->slots = (int)round_up(j->slots, j->isa->coefficients_taps);
    if (j->what == GRAD_WEIGHT) j->slots = (int)round_up(j->slots, j->isa->weight_taps);
}

int64_t kba_weight_floats(const kba_job *j) { return j->strips * j->blocks * j->slots * BASES * LANES; }

EXPORT int kba_run(const kba_call *c, int what, const char *name)
{
    kba_job j = {.call = c, .isa = kba_find(name), .what = what, .exact = c->dtype == FLOAT32};
    if (!j.isa) return NO_ISA;
    kba_begin(&j);

    /* Enough items for the threads. For the weight's gradient they fix the order of its sums, so only the shape decides. */
    const int64_t all = c->batch * c->height * c->width;
    const int64_t wanted = what == GRAD_WEIGHT ? ITEMS : 4 * c->threads;
    const int64_t most = what == GRAD_COEFFICIENTS ? 1 : j.strips; /* splits; for coefficients, every strip adds to the same sums */
    plan_tiles(&j, min(TILE_PIXELS, max(what == GRAD_WEIGHT ? 320 : 256, all * most / wanted)));
    j.splits = min(most, divide(wanted, min(j.tiles, what == GRAD_WEIGHT ? ITEMS / 2 : j.tiles)));
    while (j.strips % j.splits) j.splits++; /* equal shares */
    j.chunks = j.tiles;
    if (what == GRAD_WEIGHT) /* few, as each has sums of its own */
        j.chunks = divide(j.tiles, divide(j.tiles, min(ITEMS / 2, divide(ITEMS, j.splits))));

    float *memory = kba_scratch(OF_JOB, kba_weight_floats(&j) * (what == GRAD_WEIGHT ? j.chunks : 1));
    if (!memory) return NO_MEMORY;
    int failed = 0;
    if (what == GRAD_WEIGHT) {
        j.partial = memory;
    } else {
        j.weight = memory;
        failed = run_phase(&j, kba_pack_all, j.strips * j.blocks);
    }
    if (!failed) failed = run_phase(&j, run_items, j.chunks * j.splits);
    if (!failed && what == GRAD_WEIGHT) failed = run_phase(&j, reduce_all, j.strips * j.blocks);
    return failed ? NO_MEMORY : OK;
}
