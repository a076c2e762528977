/* Parameters of a KBNet_s block: packed for the products, and their gradients from the sums over pixels. */
#include <string.h>

#include "block.h"
#include "kba.h"

void block_lay_out_sums(block_job *j)
{
    const int64_t c = j->c;
    int64_t used = 0;
#define TAKE(field, floats) (j->at.field = used, used += block_whole(floats))
    TAKE(norm_w, c);
    TAKE(norm_b, c);
    if (j->what == BRANCHES_BACKWARD) {
        TAKE(in, j->wide * c);
        TAKE(in_b, j->wide);
        TAKE(depth, 9 * 2 * c);
        TAKE(depth_b, 2 * c);
        TAKE(depth2, 9 * c);
        TAKE(depth2_b, j->gate);
        TAKE(base, j->bases * LANES);
    } else {
        TAKE(conv3, c * c);
        TAKE(conv3_b, c);
        TAKE(conv4, 2 * j->inner * c);
        TAKE(conv4_b, 2 * j->inner);
        TAKE(conv5, c * j->inner);
        TAKE(conv5_b, c);
        TAKE(ga1, c);
    }
#undef TAKE
    j->at.size = used;
}

int64_t block_lay_out_weights(block_job *j, float *memory)
{
    const int64_t c = j->c;
    block_weights *w = &j->w;
    int64_t used = 0;
#define TAKE(field, floats) block_take(&w->field, memory, &used, floats)
    TAKE(norm_w, c);
    TAKE(norm_b, c);
    if (j->what == MEAN) return used;
    if (j->what == BRANCHES || j->what == BRANCHES_BACKWARD) {
        TAKE(in, c * j->wide);
        TAKE(in_b, j->wide);
        TAKE(depth, 9 * 2 * c);
        TAKE(depth_b, 2 * c);
        TAKE(depth2, 9 * c);
        TAKE(depth2_b, j->gate);
        TAKE(base, LANES * j->bases);
        if (j->what == BRANCHES_BACKWARD) {
            TAKE(in_t, j->wide * c);
            TAKE(base_t, j->bases * LANES);
            TAKE(dmean, j->call->batch * c);
        }
    } else {
        TAKE(ga1, c);
        TAKE(conv3, c * c);
        TAKE(conv3_b, c);
        TAKE(conv4, c * 2 * j->inner);
        TAKE(conv4_b, 2 * j->inner);
        TAKE(conv5, j->inner * c);
        TAKE(conv5_b, c);
        if (j->what == COMBINE_BACKWARD) {
            TAKE(conv3_t, c * c);
            TAKE(conv4_t, 2 * j->inner * c);
            TAKE(conv5_t, c * j->inner);
        }
    }
#undef TAKE
    return used;
}

/* ---- weights ---- */

/* Packs a matrix [output][input], times a scale per output, as out[input][output] and, unless that is NULL, as
 * out_t[output][input]; `order` is the input at each position or NULL. */
static void pack(float *out, int64_t ldo, float *out_t, int64_t ldt, const float *in, int64_t outputs, int64_t inputs,
                 const int32_t *order, const float *scale)
{
    for (int64_t first = 0; first < outputs; first += LANES) { /* a cache line of `out` at a time */
        const int64_t count = outputs - first < LANES ? outputs - first : LANES;
        const float *rows = in + first * inputs;
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t o = 0; o < count; o++)
                out[k * ldo + first + o] = rows[o * inputs + (order ? order[k] : k)] * (scale ? scale[first + o] : 1);
    }
    if (out_t)
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t k = 0; k < inputs; k++)
                out_t[o * ldt + k] = in[o * inputs + (order ? order[k] : k)] * (scale ? scale[o] : 1);
}

static void pack_branches(block_job *j)
{
    const block_call *q = j->call;
    const float *const *p = q->parameter;
    const block_weights *w = &j->w;
    const int64_t c = j->c, gate = j->gate, members = c / gate;
    for (int64_t k = 0; k < c; k++) {
        w->norm_w[k] = p[NORM1_W][block_channel(j, k)];
        w->norm_b[k] = p[NORM1_B][block_channel(j, k)];
    }
    if (j->what == MEAN) return;
    if (q->bases != j->bases) { /* what fills the last lanes of the bases */
        memset(w->in, 0, (size_t)(c * j->wide) * sizeof(float));
        memset(w->in_b, 0, (size_t)j->wide * sizeof(float));
        if (w->in_t) memset(w->in_t, 0, (size_t)(j->wide * c) * sizeof(float));
    }
    const int which[] = {CONV1_W, CONV11_W, CONV211_W};
    for (int i = 0; i < 3; i++) {
        const int64_t outputs = i < 2 ? c : q->bases, first = i * c;
        pack(w->in + first, j->wide, w->in_t ? w->in_t + first * c : NULL, c, p[which[i]], outputs, c, j->order, NULL);
        for (int64_t o = 0; o < outputs; o++)
            w->in_b[first + o] = p[which[i] + 1][o] + (i < 2 ? 0 : p[ATTGAMMA][o] * p[CONV22_B][o]);
    }
    for (int64_t l = 0; l < 2 * c; l++) {
        const int which = l < c ? CONV21_W : CONV12_W;
        w->depth_b[l] = p[which + 1][l % c];
        for (int i = 0; i < 9; i++) w->depth[i * 2 * c + l] = p[which][l % c * 9 + i];
    }
    for (int64_t o = 0; o < gate; o++) {
        w->depth2_b[o] = p[CONV2_B][o];
        for (int64_t m = 0; m < members; m++)
            for (int i = 0; i < 9; i++) w->depth2[i * c + m * gate + o] = p[CONV2_W][(o * members + m) * 9 + i];
    }
    const size_t base = (size_t)(LANES * j->bases) * sizeof(float);
    memset(w->base, 0, base);
    if (w->base_t) memset(w->base_t, 0, base);
    pack(w->base, j->bases, w->base_t, LANES, p[CONV22_W], q->bases, j->half, NULL, p[ATTGAMMA]);
    if (j->what == BRANCHES_BACKWARD) {
        const float scale = 1 / ((float)q->height * (float)q->width);
        for (int64_t b = 0; b < q->batch; b++)
            for (int64_t k = 0; k < c; k++) w->dmean[b * c + k] = q->dmean[b * c + block_channel(j, k)] * scale;
    }
}

static void pack_combine(block_job *j)
{
    const float *const *p = j->call->parameter;
    const block_weights *w = &j->w;
    const int64_t c = j->c, inner = j->inner, half = j->call->hidden / 2;
    memcpy(w->norm_w, p[NORM2_W], (size_t)c * sizeof(float));
    memcpy(w->norm_b, p[NORM2_B], (size_t)c * sizeof(float));
    memcpy(w->ga1, p[GA1], (size_t)c * sizeof(float));
    for (int64_t o = 0; o < c; o++) {
        w->conv3_b[o] = p[BETA][o] * p[CONV3_B][o];
        w->conv5_b[o] = p[GAMMA][o] * p[CONV5_B][o];
    }
    if (half != inner) { /* what fills the last vector of each half */
        memset(w->conv4, 0, (size_t)(c * 2 * inner) * sizeof(float));
        memset(w->conv4_b, 0, (size_t)(2 * inner) * sizeof(float));
        memset(w->conv5, 0, (size_t)(inner * c) * sizeof(float));
        if (w->conv4_t) memset(w->conv4_t, 0, (size_t)(2 * inner * c) * sizeof(float));
        if (w->conv5_t) memset(w->conv5_t, 0, (size_t)(c * inner) * sizeof(float));
    }
    pack(w->conv3, c, w->conv3_t, c, p[CONV3_W], c, c, NULL, p[BETA]);
    pack(w->conv5, c, w->conv5_t, inner, p[CONV5_W], c, half, NULL, p[GAMMA]);
    for (int i = 0; i < 2; i++) {
        float *transposed = w->conv4_t ? w->conv4_t + i * inner * c : NULL;
        pack(w->conv4 + i * inner, 2 * inner, transposed, c, p[CONV4_W] + i * half * c, half, c, NULL, NULL);
        memcpy(w->conv4_b + i * inner, p[CONV4_B] + i * half, (size_t)half * sizeof(float));
    }
}

/* ---- gradients of the parameters from the sums ---- */

static void finish_branches(const block_job *j)
{
    float *const *g = j->call->gradient;
    const float *const *p = j->call->parameter;
    const float *s = j->sums;
    const block_sums *at = &j->at;
    const int64_t c = j->c, gate = j->gate, members = c / gate;
    for (int64_t k = 0; k < c; k++) {
        g[NORM1_W][block_channel(j, k)] = s[at->norm_w + k];
        g[NORM1_B][block_channel(j, k)] = s[at->norm_b + k];
    }
    for (int64_t o = 0; o < 2 * c + j->call->bases; o++) {
        const int which = o < c ? CONV1_W : o < 2 * c ? CONV11_W : CONV211_W;
        const int64_t row = o < c ? o : o < 2 * c ? o - c : o - 2 * c;
        g[which + 1][row] = s[at->in_b + o];
        for (int64_t k = 0; k < c; k++) g[which][row * c + block_channel(j, k)] = s[at->in + o * c + k];
    }
    for (int64_t l = 0; l < 2 * c; l++) {
        const int which = l < c ? CONV21_W : CONV12_W;
        g[which + 1][l % c] = s[at->depth_b + l];
        for (int i = 0; i < 9; i++) g[which][l % c * 9 + i] = s[at->depth + i * 2 * c + l];
    }
    for (int64_t o = 0; o < gate; o++) {
        g[CONV2_B][o] = s[at->depth2_b + o];
        for (int64_t m = 0; m < members; m++)
            for (int i = 0; i < 9; i++) g[CONV2_W][(o * members + m) * 9 + i] = s[at->depth2 + i * c + m * gate + o];
    }
    for (int64_t n = 0; n < j->call->bases; n++) {
        const float bias = s[at->in_b + 2 * c + n];
        float sum = p[CONV22_B][n] * bias;
        g[CONV22_B][n] = p[ATTGAMMA][n] * bias;
        for (int64_t k = 0; k < j->half; k++) {
            const float value = s[at->base + n * LANES + k];
            g[CONV22_W][n * j->half + k] = p[ATTGAMMA][n] * value;
            sum += p[CONV22_W][n * j->half + k] * value;
        }
        g[ATTGAMMA][n] = sum;
    }
}

/* The last 1x1 convolution of a branch and the scale behind it. */
static void finish_scaled(const block_job *j, int scale, int weight, const float *product, const float *bias, int64_t inputs,
                          int64_t ld)
{
    float *const *g = j->call->gradient;
    const float *const *p = j->call->parameter;
    for (int64_t o = 0; o < j->c; o++) {
        const float f = p[scale][o];
        float sum = p[weight + 1][o] * bias[o];
        g[weight + 1][o] = f * bias[o];
        for (int64_t k = 0; k < inputs; k++) {
            g[weight][o * inputs + k] = f * product[o * ld + k];
            sum += p[weight][o * inputs + k] * product[o * ld + k];
        }
        g[scale][o] = sum;
    }
}

static void finish_combine(const block_job *j)
{
    float *const *g = j->call->gradient;
    const float *s = j->sums;
    const block_sums *at = &j->at;
    const size_t row = (size_t)j->c * sizeof(float);
    memcpy(g[NORM2_W], s + at->norm_w, row);
    memcpy(g[NORM2_B], s + at->norm_b, row);
    memcpy(g[GA1], s + at->ga1, row);
    const int64_t half = j->call->hidden / 2;
    for (int i = 0; i < 2; i++) {
        memcpy(g[CONV4_B] + i * half, s + at->conv4_b + i * j->inner, (size_t)half * sizeof(float));
        memcpy(g[CONV4_W] + i * half * j->c, s + at->conv4 + i * j->inner * j->c, (size_t)half * row);
    }
    finish_scaled(j, BETA, CONV3_W, s + at->conv3, s + at->conv3_b, j->c, j->c);
    finish_scaled(j, GAMMA, CONV5_W, s + at->conv5, s + at->conv5_b, j->call->hidden / 2, j->inner);
}

void block_pack(block_job *j)
{
    if (j->what == BRANCHES || j->what == BRANCHES_BACKWARD || j->what == MEAN)
        pack_branches(j);
    else
        pack_combine(j);
}

void block_finish(const block_job *j)
{
    if (j->what == BRANCHES_BACKWARD)
        finish_branches(j);
    else
        finish_combine(j);
}
