/* Sizes of a call, the same for every instance. */

typedef struct {
    int64_t steps, rows, inputs, hidden, layers;
    int64_t begin, end; /* rows of this call */
    int64_t outputs;    /* of the read-out: 1, 2 or 4 */
    int64_t group;      /* rows whose gradients are pooled, a problem's; divides `rows` */
    double scale;       /* of the updates */
    double log_range, threshold; /* of the features of a gradient, exp(-log_range) */
} shape;

static inline int64_t fan_in(const shape *s, int64_t layer)
{
    return layer ? s->hidden : s->inputs;
}

static int64_t weight_count(const shape *s)
{
    return 4 * s->hidden * (s->inputs + s->hidden + 2 * s->hidden * (s->layers - 1));
}

enum { MAX_DEPTH = 3 };

typedef struct {
    int64_t steps, rows, features, readouts;
    int64_t memory;         /* units of the LSTM */
    int64_t width, outputs; /* of the perceptron's hidden layers, and of its last map */
    int64_t depth;          /* maps of the perceptron, at most MAX_DEPTH */
    int64_t begin, end;     /* rows of this call */
} head_shape;

typedef struct {
    int64_t steps, rows, begin, end;
} feature_shape;

enum {
    SIGNALS = 13,
    PLANE = 64, /* problems and steps whose signals are found together */
};

enum { GG, UU, YY, SS, PP, YS, GS, GU, GP, US, PRODUCTS }; /* see signals.h */

typedef struct {
    int64_t steps, rows, dim;
    int64_t first; /* number of the first step */
    int64_t begin, end;
} signal_shape;

typedef struct {
    int64_t steps, rows, dim;
    int64_t segments; /* of a problem, whose sums are told */
    int64_t units;
    int64_t begin, end;
    double kept[3], kept_squares[2], agreement; /* shares of averages that are kept */
    double bound;                               /* of features */
} mlp_shape;

enum { SEGMENT = 192 }; /* coordinates: a multiple of the blocks of every instance */

/* What is known of a problem to the rule `mlp`: what gradients are multiplied by; what is added to
 * their root mean square; 1 / the size of the problem's gradients; corrections for the start of three
 * momenta and two squares at 0; the factor of updates. */
enum {
    KNOWN_UNIT,
    KNOWN_LEAST,
    KNOWN_SIZE,
    KNOWN_UNBIAS,
    KNOWN_SCALE = KNOWN_UNBIAS + 5,
    KNOWN_FACTS,
};
enum { OWN_FEATURES = 13, MLP_OUTPUTS = 5 }; /* features of a coordinate; numbers read out */

/* A linear map, whose outputs are packed in groups of four: those of an LSTM by unit, its gates. */
typedef struct {
    int64_t groups, inputs, outputs;
    int64_t apart, stride; /* rows of the weight from group to group, and inside of a group */
} linear;

static inline int64_t row_of(const linear *m, int64_t group, int64_t output)
{
    return group * m->apart + output * m->stride;
}

static inline int64_t tiled(int64_t num, int64_t tile)
{
    return (num + tile - 1) / tile * tile;
}

static inline int64_t groups_of(int64_t outputs) { return (outputs + 3) / 4; }

static inline linear lstm_map(int64_t fan_in, int64_t hidden)
{
    return (linear){hidden, fan_in + hidden, 4 * hidden, 1, hidden};
}

/* The maps of a head, and how many scalars they take when packed. */
static inline int64_t head_maps(const head_shape *s, linear *maps)
{
    int64_t fan_in = s->features + s->readouts, size = 0;
    maps[0] = lstm_map(fan_in, s->memory);
    fan_in += s->memory;
    for (int64_t l = 1; l <= s->depth; l++, fan_in = s->width) {
        int64_t outputs = l < s->depth ? s->width : s->outputs;
        maps[l] = (linear){groups_of(outputs), fan_in, outputs, 4, 1};
    }
    for (int64_t l = 0; l <= s->depth; l++) size += 4 * maps[l].groups * (maps[l].inputs + 1);
    return size;
}
