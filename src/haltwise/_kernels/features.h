/* Part of an instance (instance.h): what a halter reads of the signals of an optimization.
 *
 * haltwise.halting.features.optimization says what the features mean, haltwise.processes.signals
 * what the signals do.
 */

/* Of finite numbers or NaN: sign x log(1 + y), y = |x| + x^2 / (1 + sqrt(1 + x^2)). */
INLINE V FN(asinh)(V x)
{
    const REAL far = 1e9; /* from where on y = 2 |x| - 1 */
    V size = VMAX(-x, x), near = VMIN(FN(splat)(far), size), square = near * near;
    V y = near + square / (1 + FN(sqrt)(1 + square));
    y = GENERIC_SELECT(V, size > far, (IV)(2 * size - 1), (IV)y);
    V u = 1 + y, value = FN(log)(u) + (y - (u - 1)) / u;
    return GENERIC_SELECT(V, x < 0, (IV)(-value), (IV)value);
}

/* A gain in prices, cut off at `range`: linear about zero, logarithmic beyond. */
INLINE V FN(priced)(V gain, V price, REAL range)
{
    return FN(asinh)(FN(clamp)(gain / price, range)) / 4;
}

/* signals [rows, steps, SIGNALS]; features [rows, steps, FEATURES]; price, last_loss and lowest
 * [rows]; previous [rows, CHANGING]. */
static TARGET int FN(features)(const feature_shape *s, const REAL *signals, const REAL *price,
                               const REAL *previous, const REAL *last_loss, const REAL *lowest,
                               REAL *features, REAL *previous_out, REAL *last_loss_out,
                               REAL *lowest_out)
{
    enum { STEP, LOSS, LOG_GRAD, LOG_UPDATE, GAIN, BEND, LEAST_GAIN, MOST_GAIN, OVERSHOOT };
    enum { LOG_CURVATURE = OVERSHOOT + 1, COSINES };
    enum { CHANGING = 9, FEATURES = 2 * CHANGING + 8 };
    const REAL huge = 1e30, far = 1e8;
    void *memory;
    REAL *seen = allocate((SIGNALS + FEATURES + 4 + CHANGING) * BLOCK * sizeof(REAL), &memory);
    if (!seen) return 1;
    REAL *found = seen + SIGNALS * BLOCK, *before = found + FEATURES * BLOCK;
    REAL *cost = before + CHANGING * BLOCK, *log_cost = cost + BLOCK;
    REAL *last = log_cost + BLOCK, *least = last + BLOCK;
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t rows = s->end - begin < BLOCK ? s->end - begin : BLOCK;
        FN(gather)(cost, price + begin, 1, rows, 1);
        FN(gather)(before, previous + begin * CHANGING, CHANGING, rows, CHANGING);
        FN(gather)(last, last_loss + begin, 1, rows, 1);
        FN(gather)(least, lowest + begin, 1, rows, 1);
        for (int64_t b = 0; b < BLOCK; b++) log_cost[b] = DOUBLE ? log(cost[b]) : logf(cost[b]);
        for (int64_t t = 0; t < s->steps; t++) {
            FN(gather)(seen, signals + (begin * s->steps + t) * SIGNALS, s->steps * SIGNALS, rows,
                       SIGNALS);
            for (int64_t v = 0; v < NV; v++) {
                const V *in = (const V *)seen + v;
                V *out = (V *)found + v, *old = (V *)before + v;
                V *last_v = (V *)last + v, *least_v = (V *)least + v;
                V price_v = ((V *)cost)[v], loss = in[LOSS * NV], step = in[STEP * NV];
                IV first = step == 0;
                /* The least is NaN from the first NaN on. */
                V lower = VMIN(*least_v, loss);
                *least_v = GENERIC_SELECT(V, *least_v == *least_v, (IV)lower, (IV)*least_v);
                V gain = in[GAIN * NV], fallen = *last_v - loss;
                *last_v = loss;
                V now[CHANGING] = {
                    in[LOG_GRAD * NV] / 4,
                    in[LOG_UPDATE * NV] / 4,
                    FN(priced)(loss, price_v, huge) / 2,
                    FN(priced)((V)(~first & (IV)fallen), price_v, far),
                    FN(priced)(gain, price_v, far),
                    FN(priced)(gain - in[BEND * NV], price_v, far),
                    FN(priced)(in[LEAST_GAIN * NV], price_v, far),
                    FN(priced)(in[MOST_GAIN * NV], price_v, far),
                    in[LOG_CURVATURE * NV] / 4,
                };
                UNROLL for (int i = 0; i < CHANGING; i++) {
                    V change = now[i] - old[i * NV];
                    out[i * NV] = old[i * NV] = now[i];
                    out[(CHANGING + i) * NV] = (V)(~first & (IV)change);
                }
                out += 2 * CHANGING * NV;
                out[0] = FN(priced)(loss - *least_v, price_v, far);
                out[NV] = FN(priced)(*least_v, price_v, huge) / 2;
                out[2 * NV] = FN(priced)(in[OVERSHOOT * NV], price_v, far);
                UNROLL for (int i = 0; i < 3; i++) out[(3 + i) * NV] = in[(COSINES + i) * NV];
                out[6 * NV] = FN(log)(1 + step) / 2;
                out[7 * NV] = ((V *)log_cost)[v] / 2;
            }
            FN(scatter)(features + (begin * s->steps + t) * FEATURES, found, s->steps * FEATURES,
                        rows, FEATURES);
        }
        FN(scatter)(previous_out + begin * CHANGING, before, CHANGING, rows, CHANGING);
        FN(scatter)(last_loss_out + begin, last, 1, rows, 1);
        FN(scatter)(lowest_out + begin, least, 1, rows, 1);
    }
    free(memory);
    return 0;
}
