/* Part of an instance (instance.h): the stacked LSTM and the coordinatewise rule around it. */

/* Offsets, in scalars, of one time step's record and of the packed parameters. */
typedef struct {
    int64_t in, h, c, g, tc; /* inputs; hidden, cell, gates, tanh(cell) of layer 0 */
    int64_t size;
} FN(record);

INLINE FN(record) FN(layout)(const shape *s, int save)
{
    FN(record) r;
    int64_t units = s->layers * s->hidden * BLOCK;
    r.in = 0;
    r.h = s->inputs * BLOCK;
    r.c = r.h + units;
    r.g = r.c + units;
    r.tc = r.g + 4 * (save ? units : s->hidden * BLOCK);
    r.size = r.tc + (save ? units : 0);
    return r;
}

static void FN(pack)(const shape *s, const REAL *const *weights, const REAL *const *biases,
                     REAL *packed, REAL *packed_bias)
{
    for (int64_t l = 0; l < s->layers; l++) {
        const linear m = lstm_map(fan_in(s, l), s->hidden);
        FN(pack_map)(&m, weights[l], biases[l], packed, packed_bias);
        packed += m.inputs * m.outputs, packed_bias += m.outputs;
    }
}

/* Layer 0 leaves its inputs out: they have no gradient. */
static void FN(pack_transposed)(const shape *s, const REAL *const *weights, REAL *packed)
{
    for (int64_t l = 0; l < s->layers; l++) {
        const linear m = lstm_map(fan_in(s, l), s->hidden);
        packed = FN(pack_columns)(&m, weights[l], l ? 0 : s->inputs, m.inputs, packed);
    }
}

/* The read-out as [feature][output], bias last, missing outputs zero. */
static void FN(pack_readout)(const shape *s, const REAL *weight, const REAL *bias, REAL *packed)
{
    for (int64_t j = 0; j <= s->hidden; j++)
        for (int64_t o = 0; o < 4; o++)
            *packed++ = o >= s->outputs ? 0 : j < s->hidden ? weight[o * s->hidden + j] : bias[o];
}

/* One layer, one step, one block: all units' sums first, then their activations. A sigmoid
 * 1 / (1 + exp(-x)) and a tanh e / (e + 2), e = exp(2 x) - 1, that are multiplied share a division. */
INLINE void FN(cell)(int save, int64_t width, int64_t hidden, const REAL *w, const REAL *bias,
                     const REAL *x, const REAL *h_old, const REAL *c_old, REAL *h, REAL *c,
                     REAL *gates, REAL *tc)
{
    const REAL twice = (REAL)(2 * LOG2E);
    const REAL gate_factors[4] = {-LOG2E, -LOG2E, twice, -LOG2E};
    const REAL cell_factors[MAX_CHAINS] = {twice, twice, twice, twice};
    const REAL range = DOUBLE ? 600 : 60, steep = DOUBLE ? 20 : 10; /* where a float is saturated */
    FN(affine)(hidden, w, bias, x, width, h_old, hidden, gates);
    for (int64_t j = 0; j < hidden; j++, gates += 4 * BLOCK) {
        for (int64_t v = 0; v < BLOCK; v += LANES) {
            REAL *gate = gates + v;
            V y[4], s[4];
            UNROLL for (int g = 0; g < 4; g++)
                y[g] = FN(clamp)(*(const V *)(gate + g * BLOCK), g == 2 ? steep : range);
            FN(exp2_parts)(4, y, gate_factors, s);
            UNROLL for (int g = 0; g < 4; g++) y[g] = y[g] * s[g] + (g == 2 ? s[g] - 1 : s[g] + 1);
            V share = RECIP(y[0] * (y[2] + 2)), forget = RECIP(y[1]), entering = y[2] * share;
            *(V *)(c + j * BLOCK + v) = forget * *(const V *)(c_old + j * BLOCK + v) + entering;
            *(V *)(gate + 3 * BLOCK) = y[3]; /* inverse */
            if (save) {
                *(V *)gate = (y[2] + 2) * share;
                *(V *)(gate + BLOCK) = forget;
                *(V *)(gate + 2 * BLOCK) = y[0] * entering;
            }
        }
    }
    gates -= 4 * hidden * BLOCK;
    for (int64_t j = 0; j < hidden; j++) {
        REAL *leave = gates + (4 * j + 3) * BLOCK;
        V y[NV], s[NV];
        UNROLL for (int v = 0; v < NV; v++)
            y[v] = FN(clamp)(*(const V *)(c + j * BLOCK + v * LANES), steep);
        FN(exp2_parts)(NV, y, cell_factors, s);
        UNROLL for (int v = 0; v < NV; v++) {
            int64_t at = j * BLOCK + v * LANES;
            V e = y[v] * s[v] + (s[v] - 1), inverse = *(V *)(leave + v * LANES);
            V share = RECIP(inverse * (e + 2));
            *(V *)(h + at) = e * share;
            if (save) {
                *(V *)(leave + v * LANES) = (e + 2) * share;
                *(V *)(tc + at) = inverse * (e * share);
            }
        }
    }
}

/* All layers of one step, from the record `old` into `new`, whose inputs are in place. */
INLINE void FN(stack)(int save, const shape *s, const FN(record) *r, const REAL *w,
                      const REAL *bias, const REAL *old, REAL *new)
{
    const int64_t plane = s->hidden * BLOCK;
    for (int64_t l = 0; l < s->layers; l++) {
        const REAL *x = l ? new + r->h + (l - 1) * plane : new + r->in;
        FN(cell)(save, fan_in(s, l), s->hidden, w, bias, x, old + r->h + l * plane,
                 old + r->c + l * plane, new + r->h + l * plane, new + r->c + l * plane,
                 new + r->g + (save ? 4 * l * plane : 0), new + r->tc + l * plane);
        w += 4 * s->hidden * (fan_in(s, l) + s->hidden);
        bias += 4 * s->hidden;
    }
}

/* A block's inputs, two or four planes, and basis, two planes, from its `rows` gradients on and the
 * (mean, 1 / root mean square) of every group's. */
INLINE void FN(rule_inputs)(const shape *s, const REAL *grad, const REAL *pooled, int64_t begin,
                         int64_t rows, REAL *in, REAL *basis)
{
    V values[3][NV];
    memset(values, 0, sizeof values);
    REAL *own = (REAL *)values[0], *mean = (REAL *)values[1], *inverse = (REAL *)values[2];
    memcpy(own, grad, rows * sizeof(REAL));
    int64_t group = begin / s->group, left = (group + 1) * s->group - begin;
    for (int64_t b = 0; b < rows; b++, left--) {
        if (left == 0) group++, left = s->group;
        mean[b] = pooled[2 * group], inverse[b] = pooled[2 * group + 1];
    }
    UNROLL for (int v = 0; v < NV; v++) {
        V *to = (V *)(in + v * LANES), *shared = (V *)(in + 2 * BLOCK + v * LANES);
        FN(preprocess)(s, values[0][v], to, to + NV);
        if (s->inputs == 4) FN(preprocess)(s, values[1][v], shared, shared + NV);
        V level = values[1][v] * values[2][v];
        *(V *)(basis + v * LANES) = values[0][v] * values[2][v] - level;
        *(V *)(basis + BLOCK + v * LANES) = level;
    }
}

#ifdef POOL /* one instance a type will do */
/* (mean, 1 / root mean square) of every group of `grads` [steps, rows]. */
static void FN(pool)(const shape *s, const REAL *grads, REAL *pooled)
{
    for (const REAL *end = grads + s->steps * s->rows; grads < end; grads += s->group) {
        REAL largest = (REAL)1e-30; /* whose square is still a number */
        for (int64_t i = 0; i < s->group; i++) {
            REAL size = grads[i] < 0 ? -grads[i] : grads[i];
            largest = size > largest ? size : largest;
        }
        double sum = 0, squares = 0, inverse = 1.0 / largest;
        for (int64_t i = 0; i < s->group; i++) {
            double scaled = grads[i] * inverse;
            sum += grads[i], squares += scaled * scaled;
        }
        double mean_square = squares / s->group;
        /* The floor keeps gradients of all zeros at zero. */
        double rms = largest * sqrt(mean_square < 1e-30 ? 1e-30 : mean_square);
        *pooled++ = (REAL)(sum / s->group);
        *pooled++ = (REAL)(1 / (rms < 1.8048513878454153e-35 ? 1.8048513878454153e-35 : rms));
    }
}

/* Means of the top layer's `hidden` [rows, layers, hidden] over every group. */
static void FN(mean)(const shape *s, const REAL *hidden, REAL *means)
{
    enum { WIDTH = 8 }; /* units whose sums, in double for there may be millions, stay in registers */
    const int64_t units = s->layers * s->hidden;
    hidden += units - s->hidden;
    for (int64_t begin = 0; begin < s->rows; begin += s->group, means += s->hidden)
        for (int64_t j = 0; j < s->hidden; j += WIDTH) {
            const REAL *from = hidden + begin * units + j;
            int64_t width = s->hidden - j < WIDTH ? s->hidden - j : WIDTH;
            double sums[WIDTH] = {0};
            if (width == WIDTH)
                for (int64_t i = 0; i < s->group; i++, from += units)
                    UNROLL for (int k = 0; k < WIDTH; k++) sums[k] += from[k];
            else
                for (int64_t i = 0; i < s->group; i++, from += units)
                    for (int64_t k = 0; k < width; k++) sums[k] += from[k];
            for (int64_t k = 0; k < width; k++) means[j + k] = (REAL)(sums[k] / s->group);
        }
}
#endif

/* The update u = e (a + k n + l m) of a block and its factors a + k n + l m and e = scale exp(b),
 * with (a, b, k, l) read out of the top layer's `h` and (n, m) the two planes of `basis`. */
INLINE void FN(read_out)(const shape *s, const REAL *readout, const REAL *h, const REAL *basis,
                         V direction[NV], V length[NV])
{
    V acc[4][NV];
    UNROLL for (int o = 0; o < 4; o++)
        UNROLL for (int v = 0; v < NV; v++) acc[o][v] = FN(splat)(readout[4 * s->hidden + o]);
    FN(multiply)(acc, readout, h, s->hidden);
    UNROLL for (int v = 0; v < NV; v++) {
        V n = *(const V *)(basis + v * LANES), m = *(const V *)(basis + BLOCK + v * LANES);
        direction[v] = acc[0][v] + acc[2][v] * n + acc[3][v] * m;
        V root = FN(exp)(acc[1][v] * (REAL)0.5); /* whose square may overflow, as it should */
        length[v] = root * root * (REAL)s->scale;
    }
}

static TARGET int FN(forward)(const shape *s, const REAL *inputs, const REAL *hidden,
                              const REAL *cell, const REAL *const *weights,
                              const REAL *const *biases, const REAL *grads, const REAL *pooled,
                              REAL *outputs, REAL *updates, REAL *hidden_out, REAL *cell_out)
{
    const FN(record) r = FN(layout)(s, 0);
    const int64_t units = s->layers * s->hidden, top = (units - s->hidden) * BLOCK;
    const int64_t num_weights = weight_count(s), num_biases = 4 * units;
    void *memory;
    REAL *buffer = allocate(
        (2 * r.size + 3 * BLOCK + num_weights + num_biases + 4 * (s->hidden + 1)) * sizeof(REAL),
        &memory);
    if (!buffer) return 1;
    REAL *planes = buffer + 2 * r.size; /* two of the basis, one of the updates */
    REAL *w = planes + 3 * BLOCK, *bias = w + num_weights, *reader = bias + num_biases;
    FN(pack)(s, weights, biases, w, bias);
    if (updates) FN(pack_readout)(s, weights[s->layers], biases[s->layers], reader);
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t rows = s->end - begin < BLOCK ? s->end - begin : BLOCK;
        REAL *old = buffer, *new = buffer + r.size;
        FN(gather)(old + r.h, hidden + begin * units, units, rows, units);
        FN(gather)(old + r.c, cell + begin * units, units, rows, units);
        for (int64_t t = 0; t < s->steps; t++) {
            int64_t at = t * s->rows + begin;
            if (grads)
                FN(rule_inputs)(s, grads + at, pooled + 2 * (t * s->rows / s->group), begin, rows,
                             new + r.in, planes);
            else
                FN(gather)(new + r.in, inputs + at * s->inputs, s->inputs, rows, s->inputs);
            FN(stack)(0, s, &r, w, bias, old, new);
            if (outputs)
                FN(scatter)(outputs + at * s->hidden, new + r.h + top,
                            s->hidden, rows, s->hidden);
            if (updates) {
                V direction[NV], length[NV];
                FN(read_out)(s, reader, new + r.h + top, planes, direction, length);
                V *update = (V *)(planes + 2 * BLOCK);
                UNROLL for (int v = 0; v < NV; v++) update[v] = direction[v] * length[v];
                memcpy(updates + at, update, rows * sizeof(REAL));
            }
            REAL *swap = old;
            old = new;
            new = swap;
        }
        FN(scatter)(hidden_out + begin * units, old + r.h, units, rows, units);
        FN(scatter)(cell_out + begin * units, old + r.c, units, rows, units);
    }
    free(memory);
    return 0;
}

/* Gates' derivatives in place of the gates; sums them into `sums` ([unit][gate] vectors). */
INLINE void FN(cell_backward)(int64_t hidden, const REAL *dh, REAL *dc, const REAL *c_old,
                              REAL *gates, const REAL *tc, V *sums)
{
    for (int64_t j = 0; j < hidden; j++, gates += 4 * BLOCK, sums += 4) {
        V total[4] = {sums[0], sums[1], sums[2], sums[3]};
        UNROLL for (int v = 0; v < NV; v++) {
            int64_t at = j * BLOCK + v * LANES;
            V *i = (V *)(gates + v * LANES), *f = (V *)(gates + BLOCK + v * LANES);
            V *g = (V *)(gates + 2 * BLOCK + v * LANES), *o = (V *)(gates + 3 * BLOCK + v * LANES);
            V up = *(const V *)(dh + at), squashed = *(const V *)(tc + at);
            V enter = *i, forget = *f, candidate = *g, leave = *o;
            V down = *(const V *)(dc + at) + up * leave * (1 - squashed * squashed);
            *(V *)(dc + at) = down * forget;
            V di = down * candidate * (enter * (1 - enter));
            V df = down * *(const V *)(c_old + at) * (forget * (1 - forget));
            V dg = down * enter * (1 - candidate * candidate);
            V dl = up * squashed * (leave * (1 - leave));
            *i = di, *f = df, *g = dg, *o = dl;
            total[0] += di, total[1] += df, total[2] += dg, total[3] += dl;
        }
        UNROLL for (int g = 0; g < 4; g++) sums[g] = total[g];
    }
}

/* dG x^T of a layer over `steps` records into `sums`. */
INLINE void FN(weight_gradient)(const shape *s, const FN(record) *r, int64_t l, const REAL *record,
                                int64_t steps, V *sums)
{
    const int64_t plane = s->hidden * BLOCK;
    const REAL *x = l ? record + r->h + (l - 1) * plane : record + r->in;
    FN(outer)(s->hidden, record + r->g + 4 * l * plane, x, fan_in(s, l),
              record - r->size + r->h + l * plane, s->hidden, r->size, steps, sums);
}

/* Lane sums into the gradients. */
static TARGET void FN(flush)(const shape *s, V *sums, V *bias_sums, V *readout_sums, double *grad)
{
    for (int64_t l = 0; l < s->layers; l++) {
        const linear m = lstm_map(fan_in(s, l), s->hidden);
        grad = FN(flush_map)(&m, sums, bias_sums, grad);
        sums += m.inputs * m.outputs, bias_sums += m.outputs;
    }
    for (int64_t j = 0; readout_sums && j <= s->hidden; j++, readout_sums += 4)
        for (int64_t o = 0; o < s->outputs; o++)
            grad[j < s->hidden ? o * s->hidden + j : s->outputs * s->hidden + o] +=
                FN(drain)(readout_sums + o);
}

/* Derivatives of the updates ([BLOCK]) back to the top layer's `h`, added to `dh`, and to the
 * read-out, summed into `sums` ([hidden + 1][output] vectors). */
INLINE void FN(read_out_backward)(const shape *s, const REAL *readout, const REAL *h,
                                  const REAL *basis, const REAL *grad, REAL *dh, V *sums)
{
    V direction[NV], length[NV], dz[4][NV];
    FN(read_out)(s, readout, h, basis, direction, length);
    UNROLL for (int v = 0; v < NV; v++) {
        dz[0][v] = *(const V *)(grad + v * LANES) * length[v];
        dz[1][v] = dz[0][v] * direction[v];
        dz[2][v] = dz[0][v] * *(const V *)(basis + v * LANES);
        dz[3][v] = dz[0][v] * *(const V *)(basis + BLOCK + v * LANES);
    }
    for (int64_t j = 0; j < s->hidden; j++, readout += 4, sums += 4, h += BLOCK, dh += BLOCK) {
        V total[4] = {sums[0], sums[1], sums[2], sums[3]};
        UNROLL for (int v = 0; v < NV; v++) {
            V value = *(const V *)(h + v * LANES), down = *(V *)(dh + v * LANES);
            UNROLL for (int o = 0; o < 4; o++) {
                down += readout[o] * dz[o][v];
                total[o] += value * dz[o][v];
            }
            *(V *)(dh + v * LANES) = down;
        }
        UNROLL for (int o = 0; o < 4; o++) sums[o] = total[o];
    }
    UNROLL for (int o = 0; o < 4; o++)
        UNROLL for (int v = 0; v < NV; v++) sums[o] += dz[o][v];
}

static TARGET int FN(backward)(const shape *s, const REAL *inputs, const REAL *hidden,
                               const REAL *cell, const REAL *const *weights,
                               const REAL *const *biases, const REAL *grads,
                               const REAL *pooled, const REAL *grad_outputs, const REAL *grad_updates,
                               const REAL *grad_sums, const REAL *grad_hidden_out, const REAL *grad_cell_out,
                               REAL *grad_hidden, REAL *grad_cell, double *grad_params)
{
    const FN(record) r = FN(layout)(s, 1);
    const int64_t units = s->layers * s->hidden, plane = s->hidden * BLOCK;
    const int64_t num_weights = weight_count(s), num_biases = 4 * units;
    int64_t num_transposed = 0;
    for (int64_t l = 0; l < s->layers; l++) {
        int64_t width = (l ? s->hidden : 0) + s->hidden;
        num_transposed += tiled(width, FT) * 4 * s->hidden;
    }
    /* Vectors first, so that all of them are aligned. */
    const int64_t num_sums = num_weights + num_biases + 4 * (s->hidden + 1);
    const int64_t vectors =
        num_sums * LANES + (s->steps + 1) * r.size +
        (2 * units + s->hidden + 1 + 2 * s->steps) * BLOCK;
    void *memory;
    REAL *buffer = allocate((vectors + num_sums + num_transposed) * sizeof(REAL), &memory);
    if (!buffer) return 1;
    V *sums = (V *)buffer, *bias_sums = sums + num_weights, *readout_sums = bias_sums + num_biases;
    REAL *records = (REAL *)(sums + num_sums), *dh = records + (s->steps + 1) * r.size;
    REAL *dc = dh + units * BLOCK, *spare = dc + units * BLOCK;
    REAL *basis = spare + plane + BLOCK; /* two planes a step */
    REAL *w = basis + 2 * s->steps * BLOCK, *bias = w + num_weights, *reader = bias + num_biases;
    REAL *transposed = reader + 4 * (s->hidden + 1);
    memset(sums, 0, num_sums * sizeof(V));
    FN(pack)(s, weights, biases, w, bias);
    if (grad_updates) FN(pack_readout)(s, weights[s->layers], biases[s->layers], reader);
    FN(pack_transposed)(s, weights, transposed);
    int64_t pending = 0; /* steps summed since the last flush */
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t rows = s->end - begin < BLOCK ? s->end - begin : BLOCK;
        FN(gather)(records + r.h, hidden + begin * units, units, rows, units);
        FN(gather)(records + r.c, cell + begin * units, units, rows, units);
        for (int64_t t = 0; t < s->steps; t++) {
            REAL *old = records + t * r.size, *new = old + r.size;
            int64_t at = t * s->rows + begin;
            if (grads)
                FN(rule_inputs)(s, grads + at, pooled + 2 * (t * s->rows / s->group), begin, rows,
                             new + r.in, basis + 2 * t * BLOCK);
            else
                FN(gather)(new + r.in, inputs + at * s->inputs, s->inputs, rows, s->inputs);
            FN(stack)(1, s, &r, w, bias, old, new);
        }
        if (grad_hidden_out)
            FN(gather)(dh, grad_hidden_out + begin * units, units, rows, units);
        else
            memset(dh, 0, units * BLOCK * sizeof(REAL));
        if (grad_cell_out)
            FN(gather)(dc, grad_cell_out + begin * units, units, rows, units);
        else
            memset(dc, 0, units * BLOCK * sizeof(REAL));
        for (int64_t t = s->steps - 1, done = 0; t >= 0; t--) {
            REAL *old = records + t * r.size, *new = old + r.size;
            if (grad_outputs) {
                FN(gather)(spare, grad_outputs + (t * s->rows + begin) * s->hidden, s->hidden,
                           rows, s->hidden);
                V *to = (V *)(dh + (s->layers - 1) * plane);
                for (int64_t i = 0; i < s->hidden * NV; i++) to[i] += ((V *)spare)[i];
            }
            const int64_t top = (s->layers - 1) * plane, at = t * s->rows + begin;
            if (grad_updates) {
                FN(gather)(spare, grad_updates + at, 1, rows, 1);
                FN(read_out_backward)(s, reader, new + r.h + top, basis + 2 * t * BLOCK, spare,
                                      dh + top, readout_sums);
            }
            if (grad_sums)
                for (int64_t b = 0; b < rows; b++) {
                    const REAL *from = grad_sums + (at + b) / s->group * s->hidden;
                    for (int64_t j = 0; j < s->hidden; j++) dh[top + j * BLOCK + b] += from[j];
                }
            const REAL *wt = transposed + num_transposed;
            V *sum = bias_sums + num_biases;
            for (int64_t l = s->layers - 1; l >= 0; l--) {
                REAL *gates = new + r.g + 4 * l * plane;
                int64_t below = l ? s->hidden : 0, width = below + s->hidden;
                sum -= 4 * s->hidden;
                FN(cell_backward)(s->hidden, dh + l * plane, dc + l * plane,
                                  old + r.c + l * plane, gates, new + r.tc + l * plane, sum);
                wt -= tiled(width, FT) * 4 * s->hidden;
                for (int64_t k = 0; k < width; k += FT) {
                    V acc[FT][NV];
                    FN(multiply_transposed)(acc, wt + k * 4 * s->hidden, gates, 4 * s->hidden);
                    UNROLL for (int i = 0; i < FT; i++) {
                        if (k + i < below) {
                            V *to = (V *)(dh + (l - 1) * plane + (k + i) * BLOCK);
                            UNROLL for (int v = 0; v < NV; v++) to[v] += acc[i][v];
                        } else if (k + i < width) {
                            V *to = (V *)(dh + l * plane + (k + i - below) * BLOCK);
                            UNROLL for (int v = 0; v < NV; v++) to[v] = acc[i][v];
                        }
                    }
                }
            }
            if (++done == WEIGHT_STEPS || t == 0) {
                V *to = sums;
                for (int64_t l = 0; l < s->layers; l++) {
                    FN(weight_gradient)(s, &r, l, new, done, to);
                    to += 4 * s->hidden * (fan_in(s, l) + s->hidden);
                }
                done = 0;
            }
        }
        if (grad_hidden)
            FN(scatter)(grad_hidden + begin * units, dh, units, rows, units);
        if (grad_cell)
            FN(scatter)(grad_cell + begin * units, dc, units, rows, units);
        pending += s->steps;
        if (pending >= FLUSH_STEPS || begin + BLOCK >= s->end) {
            FN(flush)(s, sums, bias_sums, grad_updates ? readout_sums : NULL, grad_params);
            pending = 0;
        }
    }
    free(memory);
    return 0;
}
