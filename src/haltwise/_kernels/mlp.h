/* Part of an instance (instance.h): a step of the rule `mlp`, a perceptron that every coordinate has
 * to itself; haltwise.update_rules.mlp says what it computes.
 *
 * Rows of a call are counted as if every problem had whole segments. grads, updates and agreement
 * [problems, dim]; momenta [problems, dim, 3]; squares [problems, dim, 2]; facts [problems,
 * KNOWN_FACTS]; bias [problems, units], of the first layer, in which lies all that a problem's
 * coordinates share; params: its weight [units, OWN_FEATURES], weight and bias of the second layer,
 * [units, units] and [units], and of the last, [MLP_OUTPUTS, units] and [MLP_OUTPUTS]; sums
 * [problems, segments, units], of the second layer's outputs. New states may replace the old ones in
 * their place.
 */

INLINE V FN(average)(V old, V new, REAL kept) { return kept * old + (1 - kept) * new; }

/* A vector of gradients: its states, four directions and the features, planes that lie BLOCK apart. */
INLINE void FN(look)(const mlp_shape *s, const REAL *facts, V *grad, V *momenta, V *squares,
                     V *agreement, V *directions, V *features)
{
    const REAL bound = (REAL)s->bound, tiny = (REAL)1e-30;
    const V least = FN(splat)(tiny);
    V own = FN(clamp)(*grad * facts[KNOWN_UNIT], (REAL)1e12), roots[2];
    for (int i = 0; i < 3; i++)
        momenta[i * NV] = FN(average)(momenta[i * NV], own, (REAL)s->kept[i]);
    for (int i = 0; i < 2; i++) {
        squares[i * NV] = FN(average)(squares[i * NV], own * own, (REAL)s->kept_squares[i]);
        roots[i] = FN(sqrt)(squares[i * NV] * facts[KNOWN_UNBIAS + 3 + i]);
    }
    V root = roots[1] + facts[KNOWN_LEAST], log_root = FN(log)(VMAX(least, root));
    V d[4] = {own}, inverse = RECIP(root);
    for (int i = 0; i < 3; i++) d[i + 1] = momenta[i * NV] * facts[KNOWN_UNBIAS + i];
    UNROLL for (int i = 0; i < 4; i++) directions[i * NV] = d[i] = FN(clamp)(d[i] * inverse, bound);
    *agreement = FN(average)(*agreement, d[0] * d[1], (REAL)s->agreement);
    V found[OWN_FEATURES] = {
        d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3], d[0] * d[1], d[0] * d[2], d[0] * d[3],
        d[1] * d[2], d[1] * d[3], d[2] * d[3], *agreement,
        FN(log)(VMAX(least, root * facts[KNOWN_SIZE])) / 2,
        FN(log)(VMAX(least, roots[0])) - log_root,
    };
    UNROLL for (int i = 0; i < OWN_FEATURES; i++) features[i * NV] = FN(clamp)(found[i], bound);
}

/* -scale exp(bound tanh(x_0 / bound)) sum_j 2 tanh(x_j / 2) u_j, where x_3 is increased by 1. */
INLINE V FN(step_of)(const mlp_shape *s, REAL scale, const V *outputs, const V *directions)
{
    const REAL range = DOUBLE ? 600 : 60, bound = (REAL)s->bound;
    const REAL factors[4] = {LOG2E, LOG2E, LOG2E, LOG2E}, factor = (REAL)(2 * LOG2E) / bound;
    V x[4], scales[4], mixed = {0};
    UNROLL for (int i = 0; i < 4; i++)
        x[i] = FN(clamp)(outputs[(i + 1) * NV] + (REAL)(i == 2), range);
    FN(exp2_parts)(4, x, factors, scales);
    UNROLL for (int i = 0; i < 4; i++) {
        V e = x[i] * scales[i];
        mixed += (e + (scales[i] - 1)) * RECIP(e + (scales[i] + 1)) * directions[i * NV];
    }
    x[0] = FN(clamp)(outputs[0], range);
    FN(exp2_parts)(1, x, &factor, scales);
    V e = x[0] * scales[0];
    return -2 * scale * FN(exp)(bound * (e + (scales[0] - 1)) * RECIP(e + (scales[0] + 1))) * mixed;
}

INLINE void FN(relu)(int64_t planes, REAL *x)
{
    for (int64_t at = 0; at < planes * BLOCK; at += LANES) {
        V *value = (V *)(x + at);
        *value = VMAX((V){0}, *value);
    }
}

static TARGET int FN(mlp)(const mlp_shape *s, const REAL *grads, const REAL *momenta,
                          const REAL *squares, const REAL *agreement, const REAL *facts,
                          const REAL *bias, const REAL *const *params, REAL *updates,
                          REAL *momenta_out, REAL *squares_out, REAL *agreement_out, REAL *sums)
{
    const int64_t units = s->units, groups = groups_of(units), padded = 4 * groups;
    const int64_t last = groups_of(MLP_OUTPUTS), planes = 7 + 4 + OWN_FEATURES + 4 * last;
    const linear maps[3] = {
        {groups, OWN_FEATURES, units, 4, 1},
        {groups, units, units, 4, 1},
        {last, units, MLP_OUTPUTS, 4, 1},
    };
    const int64_t weights = padded * (OWN_FEATURES + units + 2) + 4 * last * (units + 1);
    void *memory;
    REAL *grad = allocate(((planes + 2 * padded) * BLOCK + units * LANES + weights) * sizeof(REAL),
                          &memory);
    if (!grad) return 1;
    REAL *m = grad + BLOCK, *sq = m + 3 * BLOCK, *agree = sq + 2 * BLOCK, *u = agree + BLOCK;
    REAL *features = u + 4 * BLOCK, *out = features + OWN_FEATURES * BLOCK;
    REAL *one = out + 4 * last * BLOCK, *two = one + padded * BLOCK, *w[3], *b[3];
    V *lanes = (V *)(two + padded * BLOCK);
    w[0] = (REAL *)(lanes + units), b[0] = w[0] + padded * OWN_FEATURES;
    w[1] = b[0] + padded, b[1] = w[1] + padded * units;
    w[2] = b[1] + padded, b[2] = w[2] + 4 * last * units;
    FN(pack_map)(&maps[1], params[1], params[2], w[1], b[1]);
    FN(pack_map)(&maps[2], params[3], params[4], w[2], b[2]);
    for (int64_t begin = s->begin; begin < s->end; begin += SEGMENT) {
        const int64_t segment = begin / SEGMENT, problem = segment / s->segments;
        const int64_t first = segment % s->segments * SEGMENT;
        const int64_t end = s->dim - first < SEGMENT ? s->dim : first + SEGMENT;
        const REAL *known = facts + problem * KNOWN_FACTS;
        REAL *sum = sums + segment * units;
        if (begin == s->begin || first == 0)
            FN(pack_map)(&maps[0], params[0], bias + problem * units, w[0], b[0]);
        memset(lanes, 0, units * sizeof(V));
        for (int64_t row = first; row < end; row += BLOCK) {
            const int64_t rows = end - row < BLOCK ? end - row : BLOCK;
            const int64_t at = problem * s->dim + row;
            FN(gather)(grad, grads + at, 1, rows, 1);
            FN(gather)(m, momenta + 3 * at, 3, rows, 3);
            FN(gather)(sq, squares + 2 * at, 2, rows, 2);
            FN(gather)(agree, agreement + at, 1, rows, 1);
            for (int64_t v = 0; v < BLOCK; v += LANES)
                FN(look)(s, known, (V *)(grad + v), (V *)(m + v), (V *)(sq + v), (V *)(agree + v),
                         (V *)(u + v), (V *)(features + v));
            FN(affine)(groups, w[0], b[0], features, OWN_FEATURES, features, 0, one);
            FN(relu)(units, one);
            FN(affine)(groups, w[1], b[1], one, units, one, 0, two);
            FN(relu)(units, two);
            FN(affine)(last, w[2], b[2], two, units, two, 0, out);
            for (int64_t v = 0; v < BLOCK; v += LANES)
                *(V *)(grad + v) =
                    FN(step_of)(s, known[KNOWN_SCALE], (const V *)(out + v), (const V *)(u + v));
            for (int64_t j = 0; j < units; j++)
                for (int64_t i = rows; i < BLOCK; i++) two[j * BLOCK + i] = 0;
            FN(add_planes)(units, two, lanes);
            FN(scatter)(updates + at, grad, 1, rows, 1);
            FN(scatter)(momenta_out + 3 * at, m, 3, rows, 3);
            FN(scatter)(squares_out + 2 * at, sq, 2, rows, 2);
            FN(scatter)(agreement_out + at, agree, 1, rows, 1);
        }
        for (int64_t j = 0; j < units; j++) sum[j] = (REAL)FN(drain)(lanes + j);
    }
    free(memory);
    return 0;
}
