/* AdamP and SGDP. One call updates all tensors of a group; the update in symbols stands in adamp.py.

   A tensor with projection is cut at fixed places into items: blocks of whole rows, or pieces of one row where rows are
   longer than BLOCK. Two passes: gradient and weight decide about the projection; then every item updates its moments,
   has the update u in a buffer that stays in cache, and moves the weights. Only where a row's product <w, u> spans
   several items is a third pass needed, which makes u once more from the stored moments. */

#ifndef ADAMP_COMMON
#define ADAMP_COMMON
enum { FEW = 1024, BLOCK = 8192, LARGE = 1 << 17, NONE = 0, CHANNEL = 1, LAYER = 2, AUTO = 3 };
typedef struct {
    double gw, ww, gg, uw; /* inner products over the item */
    int passes;            /* all whole rows of the item pass the cosine test */
} item_t;
#endif

typedef struct {
    double lr, b1, b2, eps, weight_decay, delta, wd_ratio;
    int nesterov, maximize, mode, legacy, adam;
} NAME(group_t);

typedef struct {
    int64_t numel, rows, length, per_row, items, rows_per_item;
    int code;
    real *w, *m, *v;
    const real *g;
    real eps, step_size; /* for Adam times sqrt(1 - b2^t): u is m / (sqrt(v) + eps) with this eps */
    real keep;                  /* 1 - lr * weight_decay * ratio */
    double coef;                /* of the layer view: <w, u> / (|w| + eps)^2 */
} NAME(tensor_t);

/* u from the gradient and the moments; fresh: bring the moments up to date first. */
static void NAME(direction)(const NAME(group_t) *h, const NAME(tensor_t) *t, int64_t at, int64_t n, int fresh,
                            real *restrict u) {
    const real *restrict g = t->g + at;
    real *restrict m = t->m + at;
    const real sign = h->maximize ? R(-1.0) : R(1.0), b1 = (real)h->b1, a1 = (real)(1.0 - h->b1);
    if (h->adam) {
        real *restrict v = t->v + at;
        const real b2 = (real)h->b2, a2 = (real)(1.0 - h->b2), eps = t->eps;
        if (fresh && !h->nesterov) {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                real x = sign * g[k];
                real a = m[k] + a1 * (x - m[k]), b = b2 * v[k] + a2 * x * x;
                m[k] = a;
                v[k] = b;
                u[k] = a / (SQRT(b) + eps);
            }
            return;
        }
        if (fresh)
#pragma omp simd
            for (int64_t k = 0; k < n; k++) {
                real x = sign * g[k];
                m[k] += a1 * (x - m[k]);
                v[k] = b2 * v[k] + a2 * x * x;
            }
        if (h->nesterov)
#pragma omp simd
            for (int64_t k = 0; k < n; k++)
                u[k] = (m[k] + a1 * (sign * g[k] - m[k])) / (SQRT(v[k]) + eps);
        else
#pragma omp simd
            for (int64_t k = 0; k < n; k++) u[k] = m[k] / (SQRT(v[k]) + eps);
    } else {
        const real damp = (real)(1.0 - h->b2); /* b1 is the momentum and b2 the dampening */
        if (fresh)
#pragma omp simd
            for (int64_t k = 0; k < n; k++) m[k] = b1 * m[k] + damp * (sign * g[k]);
        if (h->nesterov)
#pragma omp simd
            for (int64_t k = 0; k < n; k++) u[k] = sign * g[k] + b1 * m[k];
        else
#pragma omp simd
            for (int64_t k = 0; k < n; k++) u[k] = m[k];
    }
}

/* w <- keep * w - step_size * (u - coef * w); the legacy buffer keeps the projected update. */
static void NAME(move)(const NAME(group_t) *h, const NAME(tensor_t) *t, int64_t at, int64_t n, double coefficient,
                       const real *restrict u) {
    real *restrict w = t->w + at;
    const real keep = t->keep, s = t->step_size, c = (real)coefficient;
    if (t->code == NONE) {
#pragma omp simd
        for (int64_t k = 0; k < n; k++) w[k] = keep * w[k] - s * u[k];
        return;
    }
    if (h->legacy) {
        real *restrict m = t->m + at;
#pragma omp simd
        for (int64_t k = 0; k < n; k++) m[k] = u[k] - c * w[k];
    }
#pragma omp simd
    for (int64_t k = 0; k < n; k++) w[k] = keep * w[k] - s * (u[k] - c * w[k]);
}

/* Sums in the precision of the tensor over at most 2048 elements, lane by lane, and in double beyond. */
typedef real NAME(lanes) __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));

static double NAME(total)(NAME(lanes) x) {
    double sum = 0;
    for (int j = 0; j < (int)(64 / sizeof(real)); j++) sum += x[j];
    return sum;
}

static void NAME(products_with_gradient)(const real *g, const real *w, int64_t n, item_t *sum) {
    enum { L = 64 / sizeof(real) };
    for (int64_t start = 0; start < n; start += 2048) {
        const int64_t end = start + 2048 < n ? start + 2048 : n;
        int64_t k = start;
        NAME(lanes) gw = {0}, ww = {0}, gg = {0};
        for (; k + L <= end; k += L) {
            const NAME(lanes) a = *(const NAME(lanes) *)(g + k), b = *(const NAME(lanes) *)(w + k);
            gw += a * b;
            ww += b * b;
            gg += a * a;
        }
        for (int j = 0; k < end; k++, j++) {
            gw[j] += g[k] * w[k];
            ww[j] += w[k] * w[k];
            gg[j] += g[k] * g[k];
        }
        sum->gw += NAME(total)(gw);
        sum->ww += NAME(total)(ww);
        sum->gg += NAME(total)(gg);
    }
}

static void NAME(products_with_update)(const real *u, const real *w, int64_t n, item_t *sum) {
    enum { L = 64 / sizeof(real) };
    for (int64_t start = 0; start < n; start += 2048) {
        const int64_t end = start + 2048 < n ? start + 2048 : n;
        int64_t k = start;
        NAME(lanes) uw = {0}, ww = {0};
        for (; k + L <= end; k += L) {
            const NAME(lanes) a = *(const NAME(lanes) *)(u + k), b = *(const NAME(lanes) *)(w + k);
            uw += a * b;
            ww += b * b;
        }
        for (int j = 0; k < end; k++, j++) {
            uw[j] += u[k] * w[k];
            ww[j] += w[k] * w[k];
        }
        sum->uw += NAME(total)(uw);
        sum->ww += NAME(total)(ww);
    }
}

static int NAME(passes)(const item_t *sum, double eps, double threshold) {
    const double floor = eps > 1e-300 ? eps : 1e-300;
    const double g = sqrt(sum->gg), w = sqrt(sum->ww);
    return fabs(sum->gw) / (g > floor ? g : floor) / (w > floor ? w : floor) < threshold; /* false for NaN */
}

static double NAME(coefficient)(const item_t *sum, double eps) {
    const double norm = sqrt(sum->ww) + eps;
    return norm > 0 ? sum->uw / (norm * norm) : 0.0;
}

static void NAME(span)(const NAME(tensor_t) *t, int64_t item, int64_t *at, int64_t *n) {
    if (t->per_row > 1) { /* pieces of one row */
        const int64_t row = item / t->per_row, piece = item % t->per_row;
        *at = row * t->length + piece * BLOCK;
        *n = t->length - piece * BLOCK < BLOCK ? t->length - piece * BLOCK : BLOCK;
    } else {
        const int64_t row = item * t->rows_per_item;
        const int64_t rows = t->rows - row < t->rows_per_item ? t->rows - row : t->rows_per_item;
        *at = row * t->length;
        *n = rows * t->length;
    }
}

static void NAME(look)(const NAME(group_t) *h, const NAME(tensor_t) *t, int64_t item, item_t *out) {
    int64_t at, n;
    NAME(span)(t, item, &at, &n);
    *out = (item_t){.passes = 1};
    if (t->per_row > 1) {
        NAME(products_with_gradient)(t->g + at, t->w + at, n, out);
        return;
    }
    const double threshold = h->delta / sqrt((double)t->length);
    for (int64_t k = at; k < at + n; k += t->length) {
        item_t row = {0};
        NAME(products_with_gradient)(t->g + k, t->w + k, t->length, &row);
        out->passes &= NAME(passes)(&row, h->eps, threshold);
        out->gw += row.gw;
        out->ww += row.ww;
        out->gg += row.gg;
    }
}

static int NAME(decide)(const NAME(group_t) *h, const NAME(tensor_t) *t, const item_t *items) {
    item_t all = {0};
    int channel = 1;
    for (int64_t i = 0; i < t->items; i += t->per_row) {
        item_t row = {0};
        for (int64_t j = i; j < i + t->per_row; j++) {
            row.gw += items[j].gw;
            row.ww += items[j].ww;
            row.gg += items[j].gg;
            channel &= items[j].passes;
        }
        if (t->per_row > 1) channel &= NAME(passes)(&row, h->eps, h->delta / sqrt((double)t->length));
        all.gw += row.gw;
        all.ww += row.ww;
        all.gg += row.gg;
    }
    if (channel) return CHANNEL;
    return NAME(passes)(&all, h->eps, h->delta / sqrt((double)t->numel)) ? LAYER : NONE;
}

/* Update the moments of an item and, where <w, u> is known within it, the weights. */
static void NAME(advance)(const NAME(group_t) *h, const NAME(tensor_t) *t, int64_t item, item_t *out) {
    real u[BLOCK];
    int64_t at, n;
    NAME(span)(t, item, &at, &n);
    if (t->code == NONE) {
        for (int64_t k = 0; k < n; k += FEW) {
            NAME(direction)(h, t, at + k, n - k < FEW ? n - k : FEW, 1, u);
            NAME(move)(h, t, at + k, n - k < FEW ? n - k : FEW, 0.0, u);
        }
        return;
    }
    NAME(direction)(h, t, at, n, 1, u);
    if (t->code == CHANNEL && t->per_row == 1) {
        for (int64_t k = 0; k < n; k += t->length) {
            item_t row = {0};
            NAME(products_with_update)(u + k, t->w + at + k, t->length, &row);
            NAME(move)(h, t, at + k, t->length, NAME(coefficient)(&row, h->eps), u + k);
        }
    } else {
        *out = (item_t){0};
        NAME(products_with_update)(u, t->w + at, n, out);
    }
}

static void NAME(finish)(const NAME(group_t) *h, const NAME(tensor_t) *t, int64_t item, const item_t *items) {
    real u[BLOCK];
    int64_t at, n;
    double coefficient = t->coef;
    NAME(span)(t, item, &at, &n);
    if (t->code == CHANNEL) {
        item_t row = {0};
        const int64_t first = item - item % t->per_row;
        for (int64_t j = first; j < first + t->per_row; j++) {
            row.uw += items[j].uw;
            row.ww += items[j].ww;
        }
        coefficient = NAME(coefficient)(&row, h->eps);
    }
    NAME(direction)(h, t, at, n, 0, u);
    NAME(move)(h, t, at, n, coefficient, u);
}

static void NAME(tensor_step)(const NAME(group_t) *h, NAME(tensor_t) *t, item_t *items, int8_t *projection,
                              int threads) {
    const int64_t n = t->items;
    t->code = h->mode;
    if (h->mode == AUTO) {
#pragma omp parallel for if (threads > 1) num_threads(threads) schedule(static)
        for (int64_t i = 0; i < n; i++) NAME(look)(h, t, i, items + i);
        t->code = NAME(decide)(h, t, items);
    }
    const double ratio = t->code == NONE ? 1.0 : h->wd_ratio;
    t->keep = (real)(1.0 - h->lr * h->weight_decay * ratio);
    *projection = (int8_t)t->code;
#pragma omp parallel for if (threads > 1) num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) NAME(advance)(h, t, i, items + i);
    if (t->code == NONE || (t->code == CHANNEL && t->per_row == 1)) return;
    item_t all = {0};
    for (int64_t i = 0; i < n; i++) {
        all.uw += items[i].uw;
        all.ww += items[i].ww;
    }
    t->coef = NAME(coefficient)(&all, h->eps);
#pragma omp parallel for if (threads > 1) num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) NAME(finish)(h, t, i, items);
}

static void NAME(one)(const NAME(group_t) *group, int64_t n, void *const *table, const int64_t *sizes, int64_t i,
                      item_t *items, int threads) {
    NAME(group_t) h = *group;
    NAME(tensor_t) t = {0};
    const int slots = h.adam ? 6 : 5; /* parameter, gradient, step, moments, projection */
    t.w = table[0 * n + i];
    t.g = table[1 * n + i];
    t.m = table[3 * n + i];
    t.v = h.adam ? table[4 * n + i] : NULL;
    float *step = table[2 * n + i];
    *step += 1.0f;
    const double root2 = h.adam ? sqrt(1.0 - pow(h.b2, *step)) : 1.0;
    t.eps = (real)(h.eps * root2);
    t.step_size = (real)(h.adam ? h.lr * root2 / (1.0 - pow(h.b1, *step)) : h.lr);
    t.numel = sizes[0 * n + i];
    t.rows = sizes[1 * n + i];
    if (t.rows == 0) { /* vectors and scalars are never projected */
        h.mode = NONE;
        t.rows = 1;
    }
    t.length = t.numel / t.rows;
    t.per_row = (t.length + BLOCK - 1) / BLOCK;
    t.rows_per_item = t.per_row > 1 ? 1 : BLOCK / t.length;
    t.items = t.per_row > 1 ? t.rows * t.per_row : (t.rows + t.rows_per_item - 1) / t.rows_per_item;
    NAME(tensor_step)(&h, &t, items, table[(slots - 1) * n + i], threads);
}

static int NAME(all)(const NAME(group_t) *h, int64_t n, void *const *table, const int64_t *sizes, int threads) {
    int64_t largest = 0;
    for (int64_t i = 0; i < n; i++)
        if (sizes[i] > largest) largest = sizes[i];
    /* a BLOCK holds more than half of an item, but for the last one of a row or tensor */
    item_t *items = malloc((size_t)(2 * (largest / BLOCK) + 2) * sizeof(item_t));
    if (!items) return 1;
    for (int64_t i = 0; i < n; i++) /* large tensors one by one, by all threads */
        if (table[n + i] && (threads == 1 || sizes[i] >= LARGE)) NAME(one)(h, n, table, sizes, i, items, threads);
    free(items);
    if (threads == 1) return 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < n; i++) { /* small tensors side by side */
        item_t few[2 * (LARGE / BLOCK) + 2];
        if (table[n + i] && sizes[i] < LARGE) NAME(one)(h, n, table, sizes, i, few, 1);
    }
    return 0;
}

/* hyper: lr, beta1, beta2, eps, weight_decay, delta, wd_ratio, nesterov, maximize, mode */
int NAME(adamp)(int64_t n, void *const *table, const int64_t *sizes, const double *hyper, int threads) {
    const NAME(group_t) h = {hyper[0], hyper[1], hyper[2], hyper[3], hyper[4], hyper[5], hyper[6],
                             hyper[7] != 0, hyper[8] != 0, (int)hyper[9], 0, 1};
    return NAME(all)(&h, n, table, sizes, threads);
}

/* hyper: lr, momentum, dampening, eps, weight_decay / (1 - momentum), delta, wd_ratio, nesterov, maximize, mode, legacy */
int NAME(sgdp)(int64_t n, void *const *table, const int64_t *sizes, const double *hyper, int threads) {
    const NAME(group_t) h = {hyper[0], hyper[1], hyper[2], hyper[3], hyper[4], hyper[5], hyper[6],
                             hyper[7] != 0, hyper[8] != 0, (int)hyper[9], hyper[10] != 0, 0};
    return NAME(all)(&h, n, table, sizes, threads);
}
