/* Tiles of a KBNet_s block (block.h); include vec.h first. */
#include "vec_block.h"

/* ---- tiles of the branches ---- */

#define AT(row, column, ld) ((row) + ((column) - t->x + MARGIN) * (ld))
#define ROW(buffer, y, count, ld) ((buffer) + ((y) + (count)) % (count) * j->pitch * (ld))
#define ROWS3(name, buffer, y, ld)                                                                                       \
    const float *const name[3] = {AT(ROW(buffer, (y) - 1, 3, ld), t->x - 1, ld), AT(ROW(buffer, y, 3, ld), t->x - 1, ld), \
                                  AT(ROW(buffer, (y) + 1, 3, ld), t->x - 1, ld)}

INLINE int64_t from(const kba_tile *t, int64_t margin) { return t->x < margin ? 0 : t->x - margin; }

INLINE int64_t to(const kba_tile *t, int64_t margin, int64_t width)
{
    return t->x + t->cols + margin > width ? width : t->x + t->cols + margin;
}

/* Zero is what convolutions see beyond the border. */
INLINE void clear(float *row, const kba_tile *t, int64_t lo, int64_t hi, int64_t ld)
{
    for (int64_t x = t->x - MARGIN; x < lo; x++) memset(AT(row, x, ld), 0, (size_t)ld * sizeof(float));
    for (int64_t x = hi; x < t->x + t->cols + MARGIN; x++) memset(AT(row, x, ld), 0, (size_t)ld * sizeof(float));
}

INLINE int64_t pixel_at(const block_job *j, const kba_tile *t, int64_t y, int64_t x)
{
    return (t->b * j->call->height + y) * j->call->width + x;
}

INLINE int64_t map_at(const kba_tile *t, const block_room *r, int64_t y, int64_t x)
{
    return t->b * r->maps.image + (y - r->maps.y) * r->maps.pitch + x - r->maps.x;
}

/* Rows of norm1's output. */
INLINE void norm_row(const block_job *j, const kba_tile *t, const block_room *r, int64_t y, int64_t lo, int64_t hi)
{
    const int64_t c = j->c, n = hi - lo;
    float *row = ROW(r->t, y, 3, c);
    float *hat = r->hat ? AT(ROW(r->hat, y, 3, c), lo, c) : NULL, *rstd = r->hat ? AT(ROW(r->rstd, y, 3, 1), lo, 1) : NULL;
    const float *x = fetch(r->line, j->call->x, pixel_at(j, t, y, lo) * c, n * c, j->call->xtype);
    if (j->order) {
        for (int64_t p = 0; p < n; p++)
            for (int64_t k = 0; k < c; k++) r->line[n * c + p * c + k] = x[p * c + j->order[k]];
        x = r->line + n * c;
    }
    FN(norm)(AT(row, lo, c), hat, rstd, x, j->w.norm_w, j->w.norm_b, c, n, j->call->eps1);
    clear(row, t, lo, hi, c);
}

/* conv2[0] and its gate at row y, from column `lo` on. */
INLINE void gate_row(const block_job *j, const kba_tile *t, const block_room *r, int64_t y, int64_t lo, int64_t n)
{
    const int64_t c = j->c, gate = j->gate;
    for (int64_t m = 0; m < c; m += gate) {
        const float *rows[3];
        for (int i = 0; i < 3; i++) rows[i] = AT(ROW(r->t, y + i - 1, 3, c), lo - 1, c) + m;
        FN(depth)(r->ab, gate, m ? NULL : j->w.depth2_b, m > 0, rows, c, j->w.depth2 + m, c, gate, n);
    }
    FN(gate)(r->g, LANES, r->ab, j->half, n);
}

static void FN(branches)(const block_job *j, const kba_tile *t, const block_room *r, float *sums, float *own)
{
    (void)sums;
    const block_call *q = j->call;
    const block_weights *w = &j->w;
    const int64_t c = j->c, wide = j->wide, n = t->cols, lo = from(t, 1), hi = to(t, 1, q->width), dtype = r->maps.dtype;
    if (own) memset(own, 0, (size_t)c * sizeof(float));
    for (int64_t y = t->y - 1; y <= t->y + t->rows; y++) {
        float *row = ROW(r->t, y, 3, c), *u = ROW(r->u, y, 3, wide);
        const int inside = y >= t->y && y < t->y + t->rows;
        if (y < 0 || y >= q->height) {
            memset(row, 0, (size_t)(j->pitch * c) * sizeof(float));
            memset(u, 0, (size_t)(j->pitch * wide) * sizeof(float));
        } else {
            norm_row(j, t, r, y, lo, hi);
            FN(mix)(AT(u, lo, wide), wide, w->in_b, 0, AT(row, lo, c), c, w->in, wide, hi - lo, inside ? wide : 2 * c, c);
            clear(u, t, lo, hi, wide);
            if (inside && own) FN(add_pixels)(own, AT(row, t->x, c), c, c, n);
        }
        if (y <= t->y) continue;
        const int64_t e = y - 1, pixel = map_at(t, r, e, t->x);
        for (int k = 0; k < 2; k++) {
            char *map = k ? r->maps.spatial : r->maps.features;
            const float *rows[3];
            for (int i = 0; i < 3; i++) rows[i] = AT(ROW(r->u, e + i - 1, 3, wide), t->x - 1, wide) + k * c;
            FN(depth)(aim(r->line, map, pixel * c, dtype), c, w->depth_b + k * c, 0, rows, wide, w->depth + k * c, 2 * c, c, n);
            flush(map, pixel * c, r->line, n * c, dtype);
        }
        gate_row(j, t, r, e, t->x, n);
        float *a = AT(ROW(r->u, e, 3, wide), t->x, wide) + 2 * c;
        FN(mix)(a, wide, NULL, 1, r->g, LANES, w->base, j->bases, n, j->bases, j->half);
        send(r->maps.coefficients, pixel * q->bases, a, wide, q->bases, n, dtype);
    }
}

static void FN(mean)(const block_job *j, const kba_tile *t, const block_room *r, float *sums, float *own)
{
    (void)sums;
    memset(own, 0, (size_t)j->c * sizeof(float));
    for (int64_t y = t->y; y < t->y + t->rows; y++) {
        norm_row(j, t, r, y, t->x, t->x + t->cols);
        FN(add_pixels)(own, AT(ROW(r->t, y, 3, j->c), t->x, j->c), j->c, j->c, t->cols);
    }
}

/* At row y the norm, one row later the gradient behind conv2's gate, two rows later the gradient of x. */
static void FN(branches_back)(const block_job *j, const kba_tile *t, const block_room *r, float *sums, float *own)
{
    (void)own;
    const block_call *q = j->call;
    const block_weights *w = &j->w;
    const int64_t c = j->c, wide = j->wide, gate = j->gate, n = t->cols, dtype = q->dtype;
    const int64_t lo2 = from(t, 2), hi2 = to(t, 2, q->width), lo = from(t, 1), hi = to(t, 1, q->width);
    for (int64_t y = t->y - 2; y <= t->y + t->rows + 1; y++) {
        if (y < 0 || y >= q->height)
            memset(ROW(r->t, y, 3, c), 0, (size_t)(j->pitch * c) * sizeof(float));
        else
            norm_row(j, t, r, y, lo2, hi2);

        if (y < t->y) continue;
        const int64_t e = y - 1;
        float *d = ROW(r->d, e, 2, wide), *dab = ROW(r->dab, e, 3, gate), *dfs = ROW(r->dfs, e, 3, 2 * c);
        if (e < 0 || e >= q->height) {
            memset(dab, 0, (size_t)(j->pitch * gate) * sizeof(float));
            memset(dfs, 0, (size_t)(j->pitch * 2 * c) * sizeof(float));
        } else {
            const int64_t pixel = pixel_at(j, t, e, lo);
            bring(AT(d, lo, wide) + 2 * c, wide, q->dcoefficients, pixel * q->bases, q->bases, hi - lo, dtype);
            bring_sum(AT(dfs, lo, 2 * c), 2 * c, q->dfeatures, q->more_dfeatures, pixel * c, c, hi - lo, dtype);
            bring(AT(dfs, lo, 2 * c) + c, 2 * c, q->dspatial, pixel * c, c, hi - lo, dtype);
            clear(dfs, t, lo, hi, 2 * c);
            gate_row(j, t, r, e, lo, hi - lo);
            FN(mix)(r->dg, LANES, NULL, 0, AT(d, lo, wide) + 2 * c, wide, w->base_t, LANES, hi - lo, LANES, j->bases);
            FN(gate_back)(AT(dab, lo, gate), r->dg, LANES, r->ab, j->half, hi - lo);
            clear(dab, t, lo, hi, gate);
            if (e >= t->y && e < t->y + t->rows)
                FN(mix_weight)(sums + j->at.base, AT(d, t->x, wide) + 2 * c, wide, r->g + (t->x - lo) * LANES, LANES, n,
                               j->bases, LANES);
        }

        if (y < t->y + 2) continue;
        const int64_t s = y - 2, pixel = pixel_at(j, t, s, t->x);
        const float *row = AT(ROW(r->t, s, 3, c), t->x, c);
        float *ds = AT(ROW(r->d, s, 2, wide), t->x, wide);
        FN(mix)(r->du, 2 * c, w->in_b, 0, row, c, w->in, wide, n, 2 * c, c);
        ROWS3(dfs3, r->dfs, s, 2 * c);
        ROWS3(dab3, r->dab, s, gate);
        FN(depth_back)(ds, wide, 0, sums + j->at.depth, r->du, 2 * c, dfs3, 2 * c, w->depth, 2 * c, 2 * c, n);
        FN(add_pixels)(sums + j->at.depth_b, dfs3[1] + 2 * c, 2 * c, 2 * c, n);
        FN(mix)(r->dt, c, w->dmean + t->b * c, 0, ds, wide, w->in_t, c, n, c, wide);
        for (int64_t m = 0; m < c; m += gate)
            FN(depth_back)(r->dt + m, c, 1, sums + j->at.depth2 + m, row + m, c, dab3, gate, w->depth2 + m, c, gate, n);
        FN(add_pixels)(sums + j->at.depth2_b, dab3[1] + gate, gate, gate, n);
        FN(mix_weight)(sums + j->at.in, ds, wide, row, c, n, wide, c);
        FN(add_pixels)(sums + j->at.in_b, ds, wide, wide, n);
        const float *hat = AT(ROW(r->hat, s, 3, c), t->x, c), *rstd = AT(ROW(r->rstd, s, 3, 1), t->x, 1);
        const float *base = fetch(r->line, q->dx, pixel * c, n * c, q->xtype);
        float *dx = aim(r->line, q->dx, pixel * c, q->xtype);
        if (j->order) {
            FN(norm_back)(r->du, NULL, sums + j->at.norm_w, sums + j->at.norm_b, r->dt, hat, rstd, w->norm_w, c, n);
            for (int64_t p = 0; p < n; p++)
                for (int64_t k = 0; k < c; k++) dx[p * c + j->order[k]] = base[p * c + j->order[k]] + r->du[p * c + k];
        } else
            FN(norm_back)(dx, base, sums + j->at.norm_w, sums + j->at.norm_b, r->dt, hat, rstd, w->norm_w, c, n);
        flush(q->dx, pixel * c, dx, n * c, q->xtype);
    }
}

/* ---- tiles of the combination ---- */

typedef struct {
    const float *s, *f, *m; /* spatial, features, mixed */
} FN(inputs);

/* Where a row or column lies between those of the grid, as torch.nn.functional.interpolate has it without align_corners. */
INLINE float between(int64_t i, int64_t size, int64_t grid, int64_t *first, int64_t *second)
{
    const float at = ((float)i + 0.5f) * ((float)grid / (float)size) - 0.5f;
    *first = at > 0 ? (int64_t)at : 0;
    *second = *first + (*first < grid - 1);
    return at > 0 ? at - (float)*first : 0;
}

/* The scale of each of n pixels, from the grid of the call. */
INLINE void interpolate(const block_job *j, const kba_tile *t, const block_room *r, int64_t x, int64_t n)
{
    const block_call *q = j->call;
    const int64_t c = j->c, width = q->grid_width;
    int64_t above, below, left, right;
    const float down = between(t->y, q->height, q->grid_height, &above, &below);
    const float *image = q->channel + t->b * q->grid_height * width * c;
    for (int64_t p = 0; p < n; p++) {
        const float across = between(x + p, q->width, width, &left, &right);
        const float *a = image + above * width * c, *b = image + below * width * c;
        for (int64_t l = 0; l < c; l += WIDTH) {
            const vf upper = (1 - across) * load_v(a + left * c + l) + across * load_v(a + right * c + l);
            const vf lower = (1 - across) * load_v(b + left * c + l) + across * load_v(b + right * c + l);
            store_v(r->temporary[3] + p * c + l, (1 - down) * upper + down * lower);
        }
    }
}

/* Everything up to the gate of the feed-forward layer, for n pixels of row t->y from column x on. */
INLINE FN(inputs) forward_to_gate(const block_job *j, const kba_tile *t, const block_room *r, int64_t x, int64_t n)
{
    const block_call *q = j->call;
    const block_weights *w = &j->w;
    const int64_t c = j->c, inner = j->inner, dtype = r->maps.dtype, at = map_at(t, r, t->y, x) * c;
    const int64_t step = q->grid_height * q->grid_width > 1 ? c : 0;
    const float *scale = step ? r->temporary[3] : q->channel + t->b * c;
    const FN(inputs) in = {fetch(r->temporary[0], r->maps.spatial, at, n * c, dtype),
                           fetch(r->temporary[1], r->maps.features, at, n * c, dtype),
                           fetch(r->temporary[2], r->maps.mixed, at, n * c, dtype)};
    if (step) interpolate(j, t, r, x, n);
    for (int64_t l = 0; l < c; l += WIDTH) {
        const vf ga1 = load_v(w->ga1 + l);
        for (int64_t i = l, k = l; i < n * c; i += c, k += step)
            store_v(r->v + i, load_v(in.s + i) * load_v(scale + k) * (load_v(in.f + i) + ga1 * load_v(in.m + i)));
    }
    bring(r->y, c, q->x, pixel_at(j, t, t->y, x) * c, c, n, q->xtype);
    FN(mix)(r->y, c, w->conv3_b, 1, r->v, c, w->conv3, c, n, c, c);
    FN(norm)(r->n, r->hat, r->rstd, r->y, w->norm_w, w->norm_b, c, n, q->eps2);
    FN(mix)(r->h, 2 * inner, w->conv4_b, 0, r->n, c, w->conv4, 2 * inner, n, 2 * inner, c);
    FN(gate)(r->g, inner, r->h, inner, n);
    return in;
}

static void FN(combine)(const block_job *j, const kba_tile *t, const block_room *r, float *sums, float *own)
{
    (void)sums, (void)own;
    const int64_t c = j->c;
    for (int64_t first = t->x; first < t->x + t->cols; first += j->step) {
        const int64_t left = t->x + t->cols - first, n = left < j->step ? left : j->step;
        forward_to_gate(j, t, r, first, n);
        FN(mix)(r->y, c, j->w.conv5_b, 1, r->g, j->inner, j->w.conv5, c, n, c, j->inner);
        send(j->call->out, pixel_at(j, t, t->y, first) * c, r->y, c, c, n, FLOAT32);
    }
}

static void FN(combine_back)(const block_job *j, const kba_tile *t, const block_room *r, float *sums, float *own)
{
    const block_call *q = j->call;
    const block_weights *w = &j->w;
    const int64_t c = j->c, inner = j->inner, dtype = q->dtype;
    memset(own, 0, (size_t)c * sizeof(float));
    for (int64_t first = t->x; first < t->x + t->cols; first += j->step) {
        const int64_t left = t->x + t->cols - first, n = left < j->step ? left : j->step;
        const int64_t at = t->b * q->height * q->width + first;
        const FN(inputs) in = forward_to_gate(j, t, r, first, n);
        float *dout = r->y; /* y is needed no more */
        bring(dout, c, q->dout, at * c, c, n, FLOAT32);
        FN(mix)(r->dg, inner, NULL, 0, dout, c, w->conv5_t, inner, n, inner, c);
        FN(mix_weight)(sums + j->at.conv5, dout, c, r->g, inner, n, c, inner);
        FN(add_pixels)(sums + j->at.conv5_b, dout, c, c, n);
        FN(gate_back)(r->dh, r->dg, inner, r->h, inner, n);
        FN(mix)(r->dv, c, NULL, 0, r->dh, 2 * inner, w->conv4_t, c, n, c, 2 * inner);
        FN(mix_weight)(sums + j->at.conv4, r->dh, 2 * inner, r->n, c, n, 2 * inner, c);
        FN(add_pixels)(sums + j->at.conv4_b, r->dh, 2 * inner, 2 * inner, n);
        FN(norm_back)(r->dy, dout, sums + j->at.norm_w, sums + j->at.norm_b, r->dv, r->hat, r->rstd, w->norm_w, c, n);
        send(q->dx, at * c, r->dy, c, c, n, q->xtype);
        FN(mix)(r->dv, c, NULL, 0, r->dy, c, w->conv3_t, c, n, c, c);
        FN(mix_weight)(sums + j->at.conv3, r->dy, c, r->v, c, n, c, c);
        FN(add_pixels)(sums + j->at.conv3_b, r->dy, c, c, n);
        float *ds = aim(r->n, q->dspatial, at * c, dtype), *df = aim(r->hat, q->dfeatures, at * c, dtype);
        float *dm = aim(r->dy, q->dmixed, at * c, dtype);
        for (int64_t l = 0; l < c; l += WIDTH) {
            const vf scale = load_v(q->channel + t->b * c + l), ga1 = load_v(w->ga1 + l);
            vf dscale = load_v(own + l), dga1 = load_v(sums + j->at.ga1 + l);
            for (int64_t i = l; i < n * c; i += c) {
                const vf m = load_v(in.m + i), s = load_v(in.s + i), d = load_v(r->dv + i);
                const vf adaptive = load_v(in.f + i) + ga1 * m, da = d * s * scale;
                store_v(ds + i, d * adaptive * scale);
                store_v(df + i, da);
                store_v(dm + i, da * ga1);
                dscale += d * s * adaptive;
                dga1 += da * m;
            }
            store_v(own + l, dscale);
            store_v(sums + j->at.ga1 + l, dga1);
        }
        flush(q->dspatial, at * c, ds, n * c, dtype);
        flush(q->dfeatures, at * c, df, n * c, dtype);
        flush(q->dmixed, at * c, dm, n * c, dtype);
    }
}

#define VEC_BLOCK {{FN(branches), FN(branches_back), FN(combine), FN(combine_back), FN(mean)}}
