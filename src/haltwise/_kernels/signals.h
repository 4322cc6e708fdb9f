/* Part of an instance (instance.h): the signals of an optimization, in double precision.
 *
 * haltwise.processes.signals says what they mean. An instance of float calls its twin of double for
 * all but the products.
 */

#if DOUBLE
/* PLANE problems and steps: products to signals, of which step and loss are there. */
static TARGET void FN(combine)(double dim, const REAL *products, REAL *signals)
{
    enum { APART_BY = PLANE / LANES };
    const REAL tiny = 1e-30, huge = 1e30, flat = 1e-8, largest = 1.7976931348623157e308;
    for (int64_t at = 0; at < PLANE; at += LANES) {
        V *out = (V *)(signals + at), squares[5], roots[5], held[8], cosines[3];
        const V *in = (const V *)(products + at);
        UNROLL for (int i = 0; i < 5; i++) { /* roots first: a product of two might vanish */
            squares[i] = VMIN(FN(splat)(largest), in[i * APART_BY]);
            roots[i] = VMAX(FN(splat)(tiny), FN(sqrt)(squares[i]));
        }
        UNROLL for (int i = 0; i < 8; i++) {
            V value = FN(clamp)(in[i * APART_BY], huge);
            held[i] = GENERIC_SELECT(V, value == value, (IV)value, (IV)FN(splat)(huge));
        }
        cosines[0] = in[GU * APART_BY] / roots[GG] / roots[UU];
        cosines[1] = in[GP * APART_BY] / roots[GG] / roots[PP];
        cosines[2] = in[US * APART_BY] / roots[UU] / roots[SS];
        UNROLL for (int i = 0; i < 3; i++) {
            V value = FN(clamp)(cosines[i], 1);
            cosines[i] = (V)((value == value) & (IV)value);
        }
        V curvature = held[YS] / VMAX(FN(splat)(tiny), held[SS]);
        curvature = VMIN(FN(splat)(huge), VMAX(FN(splat)(flat), curvature));
        V inverse = held[YS] / VMAX(FN(splat)(tiny), held[YY]);
        inverse = VMIN(FN(splat)(1 / flat), VMAX(FN(splat)(0), inverse));
        IV known = out[0] > 0; /* whether there is a step to look back at */
        UNROLL for (int i = 0; i < 2; i++) {
            V mean = squares[i] / dim, floor = FN(splat)(tiny * tiny * tiny); /* that of log_rms */
            out[(2 + i) * APART_BY] = FN(log)(VMAX(floor, mean)) / 2 + mean * 0;
        }
        out[4 * APART_BY] = -held[GU];
        out[5 * APART_BY] = (V)(known & (IV)(0.5 * curvature * held[UU]));
        out[6 * APART_BY] = (V)(known & (IV)(0.5 * inverse * held[GG]));
        out[7 * APART_BY] = (V)(known & (IV)(0.5 * held[GG] / curvature));
        out[8 * APART_BY] = -held[GS];
        out[9 * APART_BY] = (V)(known & (IV)FN(log)(curvature));
        out[10 * APART_BY] = -cosines[0];
        out[11 * APART_BY] = cosines[1];
        out[12 * APART_BY] = cosines[2];
    }
}
#endif

/* One column of products: of gamma (g), the update (u), the gradient's change (y), and the update
 * (s) and gamma (p) before. */
static TARGET void FN(products)(int64_t dim, const REAL *grad, const REAL *update,
                                const REAL *last_grad, const REAL *last_update, double *out)
{
    typedef WIDE(vector) wide;
    enum { WIDTH = VBYTES / sizeof(double), MANY = 64 };
    typedef REAL part __attribute__((vector_size(WIDTH * sizeof(REAL)), aligned(sizeof(REAL))));
    double sums[PRODUCTS] = {0};
    int64_t i = 0;
    if (dim >= MANY) {
        wide acc[PRODUCTS];
        memset(acc, 0, sizeof acc);
        for (; i + WIDTH <= dim; i += WIDTH) {
            wide g = __builtin_convertvector(*(const part *)(grad + i), wide);
            wide u = __builtin_convertvector(*(const part *)(update + i), wide);
            wide p = __builtin_convertvector(*(const part *)(last_grad + i), wide);
            wide s = __builtin_convertvector(*(const part *)(last_update + i), wide), y = g - p;
            acc[GG] += g * g, acc[UU] += u * u, acc[YY] += y * y, acc[SS] += s * s;
            acc[PP] += p * p, acc[YS] += y * s, acc[GS] += g * s, acc[GU] += g * u;
            acc[GP] += g * p, acc[US] += u * s;
        }
        for (int k = 0; k < PRODUCTS; k++) sums[k] = WIDE(drain)(acc + k);
    }
    for (; i < dim; i++) {
        double g = grad[i], u = update[i], p = last_grad[i], s = last_update[i], y = g - p;
        sums[GG] += g * g, sums[UU] += u * u, sums[YY] += y * y, sums[SS] += s * s;
        sums[PP] += p * p, sums[YS] += y * s, sums[GS] += g * s, sums[GU] += g * u;
        sums[GP] += g * p, sums[US] += u * s;
    }
    for (int k = 0; k < PRODUCTS; k++) out[k * PLANE] = sums[k];
}

/* losses [rows, steps], grads and updates [rows, steps, dim], those before [rows, dim]; signals
 * [rows, steps, SIGNALS]. */
static TARGET int FN(signals)(const signal_shape *s, const REAL *losses, const REAL *grads,
                              const REAL *updates, const REAL *last_grad, const REAL *last_update,
                              REAL *signals)
{
    void *memory;
    double *products = allocate((PRODUCTS + SIGNALS) * PLANE * sizeof(double), &memory);
    if (!products) return 1;
    double *found = products + PRODUCTS * PLANE;
    memset(products, 0, (PRODUCTS + SIGNALS) * PLANE * sizeof(double));
    const int64_t end = s->end * s->steps, dim = s->dim;
    for (int64_t begin = s->begin * s->steps; begin < end; begin += PLANE) {
        int64_t num = end - begin < PLANE ? end - begin : PLANE;
        for (int64_t i = 0; i < num; i++) {
            int64_t at = begin + i, row = at / s->steps, t = at % s->steps;
            const REAL *grad = grads + at * dim, *update = updates + at * dim;
            FN(products)(dim, grad, update, t ? grad - dim : last_grad + row * dim,
                         t ? update - dim : last_update + row * dim, products + i);
            found[i] = (double)(s->first + t), found[PLANE + i] = losses[at];
        }
        WIDE(combine)((double)dim, products, found);
        for (int64_t i = 0; i < num; i++)
            for (int k = 0; k < SIGNALS; k++)
                signals[(begin + i) * SIGNALS + k] = (REAL)found[k * PLANE + i];
    }
    free(memory);
    return 0;
}
