/* Sophia, one pass:  m <- m + (1 - b1)(g - m),  w <- w (1 - lr decay) - lr clip(m / max(gamma h, eps), -c, c) */

static void NAME(tensor)(int64_t n, real *restrict w, const real *restrict g, real *restrict m, const real *restrict h,
                         real share, real gamma, real eps, real c, real shrink, real lr, real sign)
{
    for (int64_t i = 0; i < n; i++) {
        real mean = m[i] + share * (sign * g[i] - m[i]);
        real scale = gamma * h[i];
        real u = mean / (scale > eps ? scale : eps);
        u = u < -c ? -c : (u > c ? c : u); /* NaN stays NaN */
        m[i] = mean;
        w[i] = w[i] * shrink - lr * u;
    }
}

#define CHUNK 65536

int NAME(sophia)(int64_t n, void *const *table, const int64_t *sizes, const double *hyper, int threads)
{
    const real share = (real)(1.0 - hyper[0]), gamma = (real)hyper[1], eps = (real)hyper[2], c = (real)hyper[3];
    const real shrink = (real)(1.0 - hyper[4] * hyper[5]), lr = (real)hyper[4], sign = (real)hyper[6];
    for (int64_t i = 0; i < n; i++) {
        if (!table[n + i])
            continue;
        real *w = table[i], *m = table[3 * n + i];
        const real *g = table[n + i], *h = table[4 * n + i];
        *(float *)table[2 * n + i] += 1.0f;
        const int64_t size = sizes[i], chunks = (size + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) if (threads > 1 && chunks > 1)
        for (int64_t k = 0; k < chunks; k++) {
            const int64_t at = k * CHUNK, left = size - at;
            NAME(tensor)(left < CHUNK ? left : CHUNK, w + at, g + at, m + at, h + at, share, gamma, eps, c, shrink, lr, sign);
        }
    }
    return 0;
}

#undef CHUNK
