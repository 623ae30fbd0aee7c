/* AdaHessian, one pass:  m <- m + (1 - b1)(g - m),
 *                        w <- w (1 - lr decay) - lr/(1 - b1^t) m / ((v/(1 - b2^n))^(power/2) + eps)
 * v has one entry for every `block` consecutive elements (the last block may be shorter). */

static real NAME(denominator)(real v, real half_power, real eps)
{
    return (half_power == R(0.5) ? SQRT(v) : POW(v, half_power)) + eps;
}

static void NAME(elements)(int64_t n, real *restrict w, const real *restrict g, real *restrict m, const real *restrict v,
                           real share, real bias, real eps, real shrink, real rate, real sign)
{
    for (int64_t i = 0; i < n; i++) {
        real mean = m[i] + share * (sign * g[i] - m[i]);
        m[i] = mean;
        w[i] = w[i] * shrink - rate * mean / (SQRT(v[i] / bias) + eps);
    }
}

static void NAME(powers)(int64_t n, real *restrict w, const real *restrict g, real *restrict m, const real *restrict v,
                         real share, real bias, real half_power, real eps, real shrink, real rate, real sign)
{
    for (int64_t i = 0; i < n; i++) {
        real mean = m[i] + share * (sign * g[i] - m[i]);
        m[i] = mean;
        w[i] = w[i] * shrink - rate * mean / NAME(denominator)(v[i] / bias, half_power, eps);
    }
}

static void NAME(one_block)(int64_t n, real *restrict w, const real *restrict g, real *restrict m, real share,
                            real denominator, real shrink, real rate, real sign)
{
    for (int64_t i = 0; i < n; i++) {
        real mean = m[i] + share * (sign * g[i] - m[i]);
        m[i] = mean;
        w[i] = w[i] * shrink - rate * mean / denominator;
    }
}

#define CHUNK 65536

int NAME(adahessian)(int64_t n, void *const *table, const int64_t *sizes, const double *hyper, int threads)
{
    const double b1 = hyper[1], b2 = hyper[2];
    const real share = (real)(1.0 - b1), eps = (real)hyper[3], half_power = (real)(hyper[5] / 2), sign = (real)hyper[6];
    const real shrink = (real)(1.0 - hyper[0] * hyper[4]);
    for (int64_t i = 0; i < n; i++) {
        if (!table[n + i])
            continue;
        real *w = table[i], *m = table[4 * n + i];
        const real *g = table[n + i], *v = table[5 * n + i];
        const float t = *(float *)table[2 * n + i] += 1.0f;
        const real bias = (real)(1.0 - pow(b2, *(float *)table[3 * n + i]));
        const real rate = (real)(hyper[0] / (1.0 - pow(b1, t)));
        const int64_t size = sizes[i], block = sizes[n + i];
        const int64_t length = block * (1 + (CHUNK - 1) / block), chunks = (size + length - 1) / length;
#pragma omp parallel for num_threads(threads) if (threads > 1 && chunks > 1)
        for (int64_t k = 0; k < chunks; k++) {
            const int64_t at = k * length, end = at + length < size ? at + length : size;
            if (block == 1 && half_power == R(0.5))
                NAME(elements)(end - at, w + at, g + at, m + at, v + at, share, bias, eps, shrink, rate, sign);
            else if (block == 1)
                NAME(powers)(end - at, w + at, g + at, m + at, v + at, share, bias, half_power, eps, shrink, rate, sign);
            else
                for (int64_t j = at; j < end; j += block)
                    NAME(one_block)(j + block < end ? block : end - j, w + j, g + j, m + j, share,
                                    NAME(denominator)(v[j / block] / bias, half_power, eps), shrink, rate, sign);
        }
    }
    return 0;
}

#undef CHUNK
