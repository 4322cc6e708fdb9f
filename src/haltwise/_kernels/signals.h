/* Part of an instance (instance.h): the signals of an optimization, haltwise.processes.signals, which
 * says what they mean. Double precision throughout; an instance of float calls its twin of double for
 * all but the products.
 */

#define WV WIDE(vector)

#if DOUBLE
/* `rows` columns of products to columns of signals, of which the first two are there. */
static TARGET void FN(combine)(int64_t rows, double dim, const REAL *products, REAL *signals)
{
    enum { GG, UU, YY, SS, PP, YS, GS, GU, GP, US };
    const REAL tiny = 1e-30, huge = 1e30, flat = 1e-8, largest = 1.7976931348623157e308;
    for (int64_t at = 0; at < rows; at += LANES) {
        const V *in = (const V *)(products + at);
        V *out = (V *)(signals + at), held[8], root[5];
        enum { SPAN = SIGNAL_ROWS / LANES };
        UNROLL for (int i = 0; i < 8; i++) {
            V value = FN(clamp)(in[i * SPAN], huge);
            held[i] = GENERIC_SELECT(V, value == value, (IV)value, (IV)FN(splat)(huge));
        }
        UNROLL for (int i = 0; i < 5; i++) /* first: a product of two squares might vanish */
            root[i] = VMAX(FN(splat)(tiny), FN(sqrt)(VMIN(FN(splat)(largest), in[i * SPAN])));
        V cosine[3] = {in[GU * SPAN] / root[GG] / root[UU], in[GP * SPAN] / root[GG] / root[PP],
                       in[US * SPAN] / root[UU] / root[SS]};
        UNROLL for (int i = 0; i < 3; i++) {
            V value = FN(clamp)(cosine[i], 1);
            cosine[i] = (V)((value == value) & (IV)value);
        }
        V curvature = held[YS] / VMAX(FN(splat)(tiny), held[SS]);
        curvature = VMIN(FN(splat)(huge), VMAX(FN(splat)(flat), curvature));
        V inverse = held[YS] / VMAX(FN(splat)(tiny), held[YY]);
        inverse = VMIN(FN(splat)(1 / flat), VMAX(FN(splat)(0), inverse));
        IV known = out[0] > 0; /* whether there is a step to look back at */
        UNROLL for (int i = 0; i < 2; i++) {
            V mean = VMIN(FN(splat)(largest), in[i * SPAN]) / dim; /* its floor is log_rms' */
            out[(2 + i) * SPAN] =
                FN(log)(VMAX(FN(splat)(tiny * tiny * tiny), mean)) / 2 + mean * 0;
        }
        out[4 * SPAN] = -held[GU];
        out[5 * SPAN] = (V)(known & (IV)(0.5 * curvature * held[UU]));
        out[6 * SPAN] = (V)(known & (IV)(0.5 * inverse * held[GG]));
        out[7 * SPAN] = (V)(known & (IV)(0.5 * held[GG] / curvature));
        out[8 * SPAN] = -held[GS];
        out[9 * SPAN] = (V)(known & (IV)FN(log)(curvature));
        out[10 * SPAN] = -cosine[0];
        out[11 * SPAN] = cosine[1];
        out[12 * SPAN] = cosine[2];
    }
}
#endif

/* Products of gamma, g, y, g before and gamma before, as `combine` takes them, SIGNAL_ROWS apart. */
static TARGET void FN(products)(int64_t dim, const REAL *grad, const REAL *update,
                                const REAL *last_grad, const REAL *last_update, double *out)
{
    typedef REAL part __attribute__((vector_size(VBYTES / 8 * sizeof(REAL)), aligned(sizeof(REAL))));
    enum { WIDTH = VBYTES / 8, MANY = 64 };
    double sums[SIGNAL_PRODUCTS] = {0};
    int64_t i = 0;
    if (dim >= MANY) {
        WV acc[SIGNAL_PRODUCTS];
        memset(acc, 0, sizeof acc);
        for (; i + WIDTH <= dim; i += WIDTH) {
            WV g = __builtin_convertvector(*(const part *)(grad + i), WV);
            WV u = __builtin_convertvector(*(const part *)(update + i), WV);
            WV p = __builtin_convertvector(*(const part *)(last_grad + i), WV);
            WV s = __builtin_convertvector(*(const part *)(last_update + i), WV), y = g - p;
            acc[0] += g * g, acc[1] += u * u, acc[2] += y * y, acc[3] += s * s, acc[4] += p * p;
            acc[5] += y * s, acc[6] += g * s, acc[7] += g * u, acc[8] += g * p, acc[9] += u * s;
        }
        for (int k = 0; k < SIGNAL_PRODUCTS; k++) sums[k] = WIDE(drain)(acc + k);
    }
    for (; i < dim; i++) {
        double g = grad[i], u = update[i], p = last_grad[i], s = last_update[i], y = g - p;
        sums[0] += g * g, sums[1] += u * u, sums[2] += y * y, sums[3] += s * s, sums[4] += p * p;
        sums[5] += y * s, sums[6] += g * s, sums[7] += g * u, sums[8] += g * p, sums[9] += u * s;
    }
    for (int k = 0; k < SIGNAL_PRODUCTS; k++) out[k * SIGNAL_ROWS] = sums[k];
}

static TARGET int FN(signals)(const signal_shape *s, const REAL *losses, const REAL *grads,
                              const REAL *updates, const REAL *last_grad, const REAL *last_update,
                              REAL *signals)
{
    void *memory;
    double *products =
        allocate((SIGNAL_PRODUCTS + SIGNALS) * SIGNAL_ROWS * sizeof(double), &memory);
    if (!products) return 1;
    double *found = products + SIGNAL_PRODUCTS * SIGNAL_ROWS;
    memset(products, 0, SIGNAL_PRODUCTS * SIGNAL_ROWS * sizeof(double));
    const int64_t end = s->end * s->steps, dim = s->dim;
    for (int64_t begin = s->begin * s->steps; begin < end; begin += SIGNAL_ROWS) {
        int64_t rows = end - begin < SIGNAL_ROWS ? end - begin : SIGNAL_ROWS;
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = begin + i, row = at / s->steps, t = at % s->steps;
            const REAL *grad = grads + at * dim, *update = updates + at * dim;
            FN(products)(dim, grad, update, t ? grad - dim : last_grad + row * dim,
                         t ? update - dim : last_update + row * dim, products + i);
            found[i] = (double)(s->first + t), found[SIGNAL_ROWS + i] = losses[at];
        }
        for (int64_t i = rows; i < SIGNAL_ROWS; i++) found[i] = 0;
        WIDE(combine)(SIGNAL_ROWS, (double)dim, products, found);
        for (int64_t i = 0; i < rows; i++)
            for (int k = 0; k < SIGNALS; k++)
                signals[(begin + i) * SIGNALS + k] = (REAL)found[k * SIGNAL_ROWS + i];
    }
    free(memory);
    return 0;
}

#undef WV
