/* Part of an instance (instance.h): the head of a halter, an LSTM of one layer whose output a
 * perceptron with SiLU reads beside the LSTM's own inputs.
 *
 * Its linear maps are numbered: 0 is the memory's, 1 to depth the perceptron's. Of every map
 * `params` has a weight [outputs, inputs] and a bias [outputs], those of the memory as an LSTM has
 * them and NULL if memory is 0. features [rows, steps, features]; readouts [rows, steps, readouts];
 * outputs [rows, steps, outputs]; states [rows, memory]. grad_params is added to, in the order of
 * params; grad_readouts, which may be NULL, is by way of the perceptron alone.
 */

/* Offsets, in scalars, of one step's record. */
typedef struct {
    int64_t in, h, c, g, tc;
    int64_t value, slope; /* of hidden layer 1, whose derivative takes the slope's place */
    int64_t layer;        /* from one hidden layer to the next */
    int64_t out, size;
} FN(head_record);

INLINE FN(head_record) FN(head_layout)(const head_shape *s)
{
    FN(head_record) r;
    int64_t units = s->memory * BLOCK, hidden = 4 * groups_of(s->width) * BLOCK;
    r.in = 0;
    r.h = (s->features + s->readouts) * BLOCK;
    r.c = r.h + units;
    r.g = r.c + units;
    r.tc = r.g + 4 * units;
    r.value = r.tc + units;
    r.slope = r.value + hidden;
    r.layer = 2 * hidden;
    r.out = r.value + (s->depth - 1) * r.layer;
    r.size = r.out + 4 * groups_of(s->outputs) * BLOCK;
    return r;
}

/* SiLU z / (1 + exp(-z)) of planes and, if wanted, its derivative in the place of z. */
INLINE void FN(silu)(int wants_slope, int64_t planes, REAL *z, REAL *value)
{
    const REAL factors[MAX_CHAINS] = {-LOG2E, -LOG2E, -LOG2E, -LOG2E};
    const REAL range = DOUBLE ? 600 : 60;
    for (int64_t at = 0; at < planes * BLOCK; at += BLOCK) {
        V y[NV], s[NV];
        UNROLL for (int v = 0; v < NV; v++)
            y[v] = FN(clamp)(*(const V *)(z + at + v * LANES), range);
        FN(exp2_parts)(NV, y, factors, s);
        UNROLL for (int v = 0; v < NV; v++) {
            V *x = (V *)(z + at + v * LANES), sigmoid = RECIP(y[v] * s[v] + (s[v] + 1));
            V product = *x * sigmoid;
            *(V *)(value + at + v * LANES) = product;
            if (wants_slope) *x = sigmoid + product * (1 - sigmoid);
        }
    }
}

/* Packed weights of all maps, their biases behind each; from `packed` on. */
static void FN(head_pack)(const head_shape *s, const linear *maps, const REAL *const *params,
                          REAL *packed, const REAL **w, const REAL **bias)
{
    for (int64_t l = 0; l <= s->depth; l++) {
        REAL *behind = packed + 4 * maps[l].groups * maps[l].inputs;
        w[l] = packed, bias[l] = behind;
        FN(pack_map)(&maps[l], params[2 * l], params[2 * l + 1], packed, behind);
        packed = behind + 4 * maps[l].groups;
    }
}

/* One step of a block's `rows`, from the record `old` into `new`. */
INLINE void FN(head_step)(int wants_slope, const head_shape *s, const FN(head_record) *r,
                          const linear *maps, const REAL *const *w, const REAL *const *bias,
                          const REAL *features, const REAL *readouts, int64_t begin, int64_t t,
                          int64_t rows, const REAL *old, REAL *new)
{
    const int64_t at = begin * s->steps + t, F = s->features, R = s->readouts, M = s->memory;
    REAL *in = new + r->in, *value = new + r->value;
    FN(gather)(in, features + at * F, s->steps * F, rows, F);
    FN(gather)(in + F * BLOCK, readouts + at * R, s->steps * R, rows, R);
    FN(cell)(1, F + R, M, w[0], bias[0], in, old + r->h, old + r->c, new + r->h, new + r->c,
             new + r->g, new + r->tc);
    REAL *z = s->depth > 1 ? new + r->slope : new + r->out;
    FN(affine)(maps[1].groups, w[1], bias[1], in, F + R, new + r->h, M, z);
    for (int64_t l = 2; l <= s->depth; l++, value += r->layer) {
        FN(silu)(wants_slope, s->width, z, value);
        z = l < s->depth ? z + r->layer : new + r->out;
        FN(affine)(maps[l].groups, w[l], bias[l], value, s->width, value, 0, z);
    }
}

static TARGET int FN(head_forward)(const head_shape *s, const REAL *features, const REAL *readouts,
                                   const REAL *hidden, const REAL *cell,
                                   const REAL *const *params, REAL *outputs, REAL *hidden_out,
                                   REAL *cell_out)
{
    const FN(head_record) r = FN(head_layout)(s);
    const int64_t M = s->memory, K = s->outputs;
    linear maps[MAX_DEPTH + 1] = {{0}};
    const int64_t num_packed = head_maps(s, maps);
    void *memory;
    REAL *records = allocate((2 * r.size + num_packed) * sizeof(REAL), &memory);
    if (!records) return 1;
    const REAL *w[MAX_DEPTH + 1], *bias[MAX_DEPTH + 1];
    FN(head_pack)(s, maps, params, records + 2 * r.size, w, bias);
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t rows = s->end - begin < BLOCK ? s->end - begin : BLOCK;
        REAL *old = records, *new = records + r.size;
        FN(gather)(old + r.h, hidden + begin * M, M, rows, M);
        FN(gather)(old + r.c, cell + begin * M, M, rows, M);
        for (int64_t t = 0; t < s->steps; t++) {
            FN(head_step)(0, s, &r, maps, w, bias, features, readouts, begin, t, rows, old, new);
            FN(scatter)(outputs + (begin * s->steps + t) * K, new + r.out, s->steps * K, rows, K);
            REAL *swap = old;
            old = new;
            new = swap;
        }
        FN(scatter)(hidden_out + begin * M, old + r.h, M, rows, M);
        FN(scatter)(cell_out + begin * M, old + r.c, M, rows, M);
    }
    free(memory);
    return 0;
}

/* Steps of a block up to the last that has a derivative: later ones change nothing. */
static int64_t FN(steps_with_gradient)(const head_shape *s, const REAL *grad_outputs, int64_t begin)
{
    const int64_t end = s->end - begin < BLOCK ? s->end : begin + BLOCK;
    for (int64_t t = s->steps; t > 0; t--)
        for (int64_t b = begin; b < end; b++)
            for (int64_t k = 0; k < s->outputs; k++)
                if (grad_outputs[(b * s->steps + t - 1) * s->outputs + k] != 0) return t;
    return 0;
}

/* W^T dG of columns packed by `pack_columns`, into planes, onto them, or times what is there. */
INLINE void FN(pull)(int how, const REAL *transposed, int64_t groups, const REAL *gates,
                     int64_t width, REAL *planes)
{
    for (int64_t k = 0; k < width; k += FT) {
        V acc[FT][NV];
        FN(multiply_transposed)(acc, transposed + k * 4 * groups, gates, 4 * groups);
        UNROLL for (int i = 0; i < FT; i++) {
            if (k + i >= width) break;
            V *to = (V *)(planes + (k + i) * BLOCK);
            UNROLL for (int v = 0; v < NV; v++)
                to[v] = how == INTO   ? acc[i][v]
                        : how == ONTO ? to[v] + acc[i][v]
                                      : to[v] * acc[i][v];
        }
    }
}

/* Backward from the zero state; derivatives take the place of what they are of in the records. */
static TARGET int FN(head_backward)(const head_shape *s, const REAL *features,
                                    const REAL *readouts, const REAL *const *params,
                                    const REAL *grad_outputs, REAL *grad_readouts,
                                    double *grad_params)
{
    const FN(head_record) r = FN(head_layout)(s);
    const int64_t F = s->features, R = s->readouts, M = s->memory, K = s->outputs;
    const int64_t depth = s->depth;
    linear maps[MAX_DEPTH + 1] = {{0}};
    const int64_t num_sums = head_maps(s, maps); /* vectors of gradients, scalars of weights */
    int64_t num_transposed = tiled(R, FT) * 4 * maps[1].groups, width[MAX_DEPTH + 1];
    for (int64_t l = 0; l <= depth; l++) {
        width[l] = l > 1 ? s->width : M; /* the columns of the layer below, or of the memory */
        num_transposed += tiled(width[l], FT) * 4 * maps[l].groups;
    }
    int64_t num_steps = 0;
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t found = FN(steps_with_gradient)(s, grad_outputs, begin);
        num_steps = found > num_steps ? found : num_steps;
    }
    const int64_t vectors = num_sums * LANES + (num_steps + 1) * r.size + (2 * M + R) * BLOCK;
    void *memory;
    REAL *buffer = allocate((vectors + num_sums + num_transposed) * sizeof(REAL), &memory);
    if (!buffer) return 1;
    memset(buffer, 0, vectors * sizeof(REAL)); /* planes that pad stay zero */
    REAL *records = buffer + num_sums * LANES, *dh = records + (num_steps + 1) * r.size;
    REAL *dc = dh + M * BLOCK, *d_read = dc + M * BLOCK, *packed = d_read + R * BLOCK;
    const REAL *w[MAX_DEPTH + 1], *bias[MAX_DEPTH + 1], *transposed[MAX_DEPTH + 1];
    FN(head_pack)(s, maps, params, packed, w, bias);
    packed += num_sums;
    V *sums[MAX_DEPTH + 1], *bias_sums[MAX_DEPTH + 1], *next = (V *)buffer;
    for (int64_t l = 0; l <= depth; l++) {
        sums[l] = next, bias_sums[l] = next + 4 * maps[l].groups * maps[l].inputs;
        next = bias_sums[l] + 4 * maps[l].groups;
        transposed[l] = packed;
        packed = FN(pack_columns)(&maps[l], params[2 * l], maps[l].inputs - width[l],
                                  maps[l].inputs, packed);
    }
    const REAL *of_readouts = packed;
    FN(pack_columns)(&maps[1], params[2], F, F + R, packed);
    int64_t pending = 0; /* steps summed since the last flush */
    for (int64_t begin = s->begin; begin < s->end; begin += BLOCK) {
        int64_t rows = s->end - begin < BLOCK ? s->end - begin : BLOCK;
        num_steps = FN(steps_with_gradient)(s, grad_outputs, begin);
        for (int64_t t = 0; t < num_steps; t++)
            FN(head_step)(1, s, &r, maps, w, bias, features, readouts, begin, t, rows,
                          records + t * r.size, records + (t + 1) * r.size);
        for (int64_t b = begin; grad_readouts && b < begin + rows; b++)
            memset(grad_readouts + (b * s->steps + num_steps) * R, 0,
                   (s->steps - num_steps) * R * sizeof(REAL));
        memset(dh, 0, 2 * M * BLOCK * sizeof(REAL));
        for (int64_t t = num_steps - 1; t >= 0; t--) {
            REAL *old = records + t * r.size, *new = old + r.size, *dz = new + r.out;
            const int64_t at = begin * s->steps + t;
            FN(gather)(dz, grad_outputs + at * K, s->steps * K, rows, K);
            for (int64_t l = depth; l > 1; l--) {
                REAL *below = new + r.slope + (l - 2) * r.layer;
                FN(add_planes)(4 * maps[l].groups, dz, bias_sums[l]);
                FN(pull)(TIMES, transposed[l], maps[l].groups, dz, s->width, below);
                dz = below;
            }
            FN(add_planes)(4 * maps[1].groups, dz, bias_sums[1]);
            if (grad_readouts) {
                FN(pull)(INTO, of_readouts, maps[1].groups, dz, R, d_read);
                FN(scatter)(grad_readouts + at * R, d_read, s->steps * R, rows, R);
            }
            FN(pull)(ONTO, transposed[1], maps[1].groups, dz, M, dh);
            FN(cell_backward)(M, dh, dc, old + r.c, new + r.g, new + r.tc, bias_sums[0]);
            FN(pull)(INTO, transposed[0], M, new + r.g, M, dh);
            if (t % WEIGHT_STEPS) continue;
            int64_t steps = num_steps - t < WEIGHT_STEPS ? num_steps - t : WEIGHT_STEPS;
            dz = new + r.out;
            for (int64_t l = depth; l > 1; l--) {
                const REAL *value = new + r.value + (l - 2) * r.layer;
                FN(outer)(maps[l].groups, dz, value, s->width, value, 0, r.size, steps, sums[l]);
                dz = new + r.slope + (l - 2) * r.layer;
            }
            FN(outer)(maps[1].groups, dz, new + r.in, F + R, new + r.h, M, r.size, steps, sums[1]);
            FN(outer)(M, new + r.g, new + r.in, F + R, old + r.h, M, r.size, steps, sums[0]);
        }
        pending += num_steps;
        if (pending >= FLUSH_STEPS || begin + BLOCK >= s->end) {
            double *grad = grad_params;
            for (int64_t l = 0; l <= depth; l++)
                grad = FN(flush_map)(&maps[l], sums[l], bias_sums[l], grad);
            pending = 0;
        }
    }
    free(memory);
    return 0;
}
