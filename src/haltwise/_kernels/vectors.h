/* Part of an instance (instance.h): vectors of rows, and products with packed weights. */

#define LANES ((int64_t)(VBYTES / sizeof(REAL)))
#define BLOCK ((int64_t)(NV * LANES))
#ifndef WT
#define WT 2
#endif
#define V FN(vector)
#define IV FN(ivector)
#define QUAD FN(quad)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define APART static __attribute__((noinline)) TARGET /* has all registers to itself */

typedef REAL V __attribute__((vector_size(VBYTES)));
typedef INT IV __attribute__((vector_size(VBYTES)));
typedef REAL QUAD __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL))));

INLINE V FN(splat)(REAL value) { return value - (V){0}; }

/* 2^(k x) - 1 = s q + (s - 1) and 2^(k x) = s q + s of `num` vectors x, which q replaces, with a
 * factor k each; k x = n + f, s = 2^n, |f| <= 1/2, q = 2^f - 1. |k x| must stay below the range of
 * normal exponents, or be NaN, which q keeps. Stage by stage: chains next to each other hide each
 * other's latency. */
INLINE void FN(exp2_parts)(int num, V *x, const REAL *factor, V *scale)
{
#if DOUBLE
    static const REAL series[] = {/* ln(2)^k / k! */
        1.3691488853904128880e-12, 2.5678435993488205142e-11, 4.4455382718708114976e-10,
        7.0549116208011233299e-9, 1.0178086009239699728e-7, 1.3215486790144309488e-6,
        1.5252733804059840280e-5, 1.5403530393381609954e-4, 1.3333558146428443423e-3,
        9.6181291076284771620e-3, 5.5504108664821579953e-2, 2.4022650695910071233e-1,
        6.9314718055994530942e-1};
    const REAL magic = 6755399441055744.0 + 1023;
    enum { MANTISSA = 52 };
#else
    static const REAL series[] = {/* of Chebyshev's points: 2^y to 5e-8 */
        1.54531629e-4f, 1.33908634e-3f, 9.61808256e-3f, 5.55035711e-2f, 2.402265076e-1f,
        6.93147188e-1f};
    const REAL magic = 12582912.0f + 127; /* its low bits carry the biased exponent */
    enum { MANTISSA = 23 };
#endif
    V p[MAX_CHAINS];
    UNROLL for (int i = 0; i < num; i++) p[i] = x[i] * factor[i] + magic;
    UNROLL for (int i = 0; i < num; i++) scale[i] = (V)((IV)p[i] << MANTISSA);
    /* Rounded once: not every compiler does so by itself where the product is needed twice. */
    UNROLL for (int i = 0; i < num; i++) x[i] = FMA(x[i], FN(splat)(factor[i]), magic - p[i]);
    UNROLL for (int i = 0; i < num; i++) p[i] = x[i] * series[0] + series[1];
    UNROLL for (size_t k = 2; k < sizeof series / sizeof *series; k++)
        UNROLL for (int i = 0; i < num; i++) p[i] = p[i] * x[i] + series[k];
    UNROLL for (int i = 0; i < num; i++) x[i] = x[i] * p[i];
}

INLINE V FN(clamp)(V x, REAL range)
{
    return VMIN(FN(splat)(range), VMAX(FN(splat)(-range), x));
}

INLINE V FN(exp)(V x)
{
    const REAL factor = (REAL)LOG2E;
    V scale, q = FN(clamp)(x, DOUBLE ? 708 : 87);
    FN(exp2_parts)(1, &q, &factor, &scale);
    return q * scale + scale;
}

INLINE V FN(sqrt)(V x)
{
    REAL lanes[LANES];
    memcpy(lanes, &x, sizeof lanes);
    for (int64_t i = 0; i < LANES; i++) lanes[i] = DOUBLE ? sqrt(lanes[i]) : sqrtf(lanes[i]);
    memcpy(&x, lanes, sizeof lanes);
    return x;
}

/* Of positive normal numbers: log(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)), m about 1. */
INLINE V FN(log)(V x)
{
#if DOUBLE
    const INT half = 0x3fe6a09e667f3bcd, bits = 52;
    enum { TERMS = 12 };
#else
    const INT half = 0x3f3504f3, bits = 23; /* sqrt(1/2) */
    enum { TERMS = 5 };
#endif
    IV e = ((IV)x - half) >> bits;
    V m = (V)((IV)x - (e << bits));
    V ratio = (m - 1) / (m + 1), square = ratio * ratio;
    V p = FN(splat)((REAL)1 / (2 * TERMS + 1));
    UNROLL for (int k = TERMS - 1; k >= 0; k--) p = p * square + (REAL)1 / (2 * k + 1);
    return __builtin_convertvector(e, V) * (REAL)0.69314718055994530942 + 2 * ratio * p;
}

/* L2L's features of a gradient: magnitude on a log scale, and sign; an infinity becomes NaN. */
INLINE void FN(preprocess)(const shape *s, V grad, V *magnitude, V *sign)
{
    V size = VMAX(-grad, grad), least = FN(splat)((REAL)s->threshold);
    V poison = grad * 0;
    *magnitude = FN(log)(VMAX(least, size)) * (REAL)(1 / s->log_range) + poison;
    V scaled = grad * (REAL)(1 / s->threshold);
    *sign = VMIN(FN(splat)(1), VMAX(FN(splat)(-1), scaled)) + poison;
}

/* Four vectors of four, transposed; strides in scalars. */
INLINE void FN(transpose)(REAL *dst, int64_t dst_stride, const REAL *src, int64_t src_stride)
{
    QUAD a = *(const QUAD *)src, b = *(const QUAD *)(src + src_stride);
    QUAD c = *(const QUAD *)(src + 2 * src_stride), d = *(const QUAD *)(src + 3 * src_stride);
    QUAD ab = SHUFFLE(INT, a, b, 0, 4, 1, 5), cd = SHUFFLE(INT, c, d, 0, 4, 1, 5);
    *(QUAD *)dst = SHUFFLE(INT, ab, cd, 0, 1, 4, 5);
    *(QUAD *)(dst + dst_stride) = SHUFFLE(INT, ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE(INT, a, b, 2, 6, 3, 7), cd = SHUFFLE(INT, c, d, 2, 6, 3, 7);
    *(QUAD *)(dst + 2 * dst_stride) = SHUFFLE(INT, ab, cd, 0, 1, 4, 5);
    *(QUAD *)(dst + 3 * dst_stride) = SHUFFLE(INT, ab, cd, 2, 3, 6, 7);
}

/* Rows of `src` into planes; the block's missing rows become zero. */
APART void FN(gather)(REAL *dst, const REAL *src, int64_t stride, int64_t rows, int64_t width)
{
    int64_t quads = rows / 4 * 4, whole = width / 4 * 4;
    for (int64_t b = 0; b < quads; b += 4)
        for (int64_t f = 0; f < whole; f += 4)
            FN(transpose)(dst + f * BLOCK + b, BLOCK, src + b * stride + f, stride);
    for (int64_t f = 0; f < width; f++) {
        for (int64_t b = f < whole ? quads : 0; b < rows; b++)
            dst[f * BLOCK + b] = src[b * stride + f];
        for (int64_t b = rows; b < BLOCK; b++) dst[f * BLOCK + b] = 0;
    }
}

APART void FN(scatter)(REAL *dst, const REAL *src, int64_t stride, int64_t rows, int64_t width)
{
    int64_t quads = rows / 4 * 4, whole = width / 4 * 4;
    for (int64_t b = 0; b < quads; b += 4)
        for (int64_t f = 0; f < whole; f += 4)
            FN(transpose)(dst + b * stride + f, stride, src + f * BLOCK + b, BLOCK);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t f = b < quads ? whole : 0; f < width; f++)
            dst[b * stride + f] = src[f * BLOCK + b];
}

INLINE void FN(multiply)(V acc[4][NV], const REAL *w, const REAL *x, int64_t width)
{
    for (int64_t k = 0; k < width; k++, w += 4, x += BLOCK) {
        V value[NV];
        UNROLL for (int v = 0; v < NV; v++) value[v] = *(const V *)(x + v * LANES);
        UNROLL for (int g = 0; g < 4; g++) {
            V weight = FN(splat)(w[g]);
            UNROLL for (int v = 0; v < NV; v++) acc[g][v] += weight * value[v];
        }
    }
}

/* W x + b of a block for groups of four outputs; x lies in two places, `width` and `more` of it. */
INLINE void FN(affine)(int64_t groups, const REAL *w, const REAL *bias, const REAL *x,
                       int64_t width, const REAL *h, int64_t more, REAL *out)
{
    for (int64_t j = 0; j < groups; j++, out += 4 * BLOCK) {
        V acc[4][NV];
        UNROLL for (int g = 0; g < 4; g++)
            UNROLL for (int v = 0; v < NV; v++) acc[g][v] = FN(splat)(bias[4 * j + g]);
        FN(multiply)(acc, w, x, width);
        w += 4 * width;
        FN(multiply)(acc, w, h, more);
        w += 4 * more;
        UNROLL for (int g = 0; g < 4; g++)
            UNROLL for (int v = 0; v < NV; v++) *(V *)(out + g * BLOCK + v * LANES) = acc[g][v];
    }
}

/* A feature tile of W^T dG: outputs' derivatives back to FT features. */
INLINE void FN(multiply_transposed)(V acc[FT][NV], const REAL *w, const REAL *gates,
                                    int64_t num_outputs)
{
    UNROLL for (int i = 0; i < FT; i++)
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = (V){0};
    for (int64_t k = 0; k < num_outputs; k++, w += FT, gates += BLOCK) {
        V value[NV];
        UNROLL for (int v = 0; v < NV; v++) value[v] = *(const V *)(gates + v * LANES);
        UNROLL for (int i = 0; i < FT; i++) {
            V weight = FN(splat)(w[i]);
            UNROLL for (int v = 0; v < NV; v++) acc[i][v] += weight * value[v];
        }
    }
}

/* dG x^T over `steps` records, `stride` apart, into `sums` ([group][feature][4] vectors), for groups
 * of four outputs; x lies in two places. */
INLINE void FN(outer)(int64_t groups, const REAL *gates, const REAL *x, int64_t width,
                      const REAL *h, int64_t more, int64_t stride, int64_t steps, V *sums)
{
    const int64_t all = width + more;
    for (int64_t k = 0; k < all; k += WT) {
        const REAL *feature[WT];
        for (int64_t i = 0; i < WT; i++) {
            int64_t at = k + i < all ? k + i : all - 1; /* the last tile's surplus is dropped */
            feature[i] = at < width ? x + at * BLOCK : h + (at - width) * BLOCK;
        }
        for (int64_t j = 0; j < groups; j++) {
            V acc[WT][4];
            UNROLL for (int i = 0; i < WT; i++)
                UNROLL for (int g = 0; g < 4; g++) acc[i][g] = (V){0};
            for (int64_t t = 0; t < steps; t++) {
                const REAL *from = gates + 4 * j * BLOCK + t * stride;
                UNROLL for (int v = 0; v < NV; v++) {
                    V value[4];
                    UNROLL for (int g = 0; g < 4; g++)
                        value[g] = *(const V *)(from + g * BLOCK + v * LANES);
                    UNROLL for (int i = 0; i < WT; i++) {
                        V other = *(const V *)(feature[i] + t * stride + v * LANES);
                        UNROLL for (int g = 0; g < 4; g++) acc[i][g] += value[g] * other;
                    }
                }
            }
            V *out = sums + 4 * (j * all + k);
            UNROLL for (int i = 0; i < WT; i++)
                if (k + i < all)
                    UNROLL for (int g = 0; g < 4; g++) out[4 * i + g] += acc[i][g];
        }
    }
}

INLINE double FN(drain)(V *sum)
{
    REAL lanes[LANES];
    memcpy(lanes, sum, sizeof lanes);
    *sum = (V){0};
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

INLINE void FN(add_planes)(int64_t planes, const REAL *x, V *sums)
{
    for (int64_t i = 0; i < planes; i++)
        UNROLL for (int v = 0; v < NV; v++) sums[i] += *(const V *)(x + i * BLOCK + v * LANES);
}

/* A map's weights as [group][feature][4] and bias as [group][4], zero where there is no output. */
static void FN(pack_map)(const linear *m, const REAL *weight, const REAL *bias, REAL *packed,
                         REAL *packed_bias)
{
    for (int64_t j = 0; j < m->groups; j++) {
        for (int64_t k = 0; k < m->inputs; k++)
            for (int64_t g = 0; g < 4; g++) {
                int64_t row = row_of(m, j, g);
                *packed++ = row < m->outputs ? weight[row * m->inputs + k] : 0;
            }
        for (int64_t g = 0; g < 4; g++) {
            int64_t row = row_of(m, j, g);
            *packed_bias++ = row < m->outputs ? bias[row] : 0;
        }
    }
}

/* Its weights' columns from `first` to `end` as [feature tile][group][4][feature of the tile],
 * zero-padded; the end of them. */
static REAL *FN(pack_columns)(const linear *m, const REAL *weight, int64_t first, int64_t end,
                              REAL *packed)
{
    for (int64_t k = first; k < end; k += FT)
        for (int64_t j = 0; j < m->groups; j++)
            for (int64_t g = 0; g < 4; g++)
                for (int64_t i = 0; i < FT; i++) {
                    int64_t row = row_of(m, j, g);
                    int there = row < m->outputs && k + i < end;
                    *packed++ = there ? weight[row * m->inputs + k + i] : 0;
                }
    return packed;
}

/* Lane sums into its gradient, [outputs, inputs] then [outputs], which is double: there may be
 * millions of addends. The end of the gradient. */
static TARGET double *FN(flush_map)(const linear *m, V *sums, V *bias_sums, double *grad)
{
    double *bias = grad + m->outputs * m->inputs;
    for (int64_t j = 0; j < m->groups; j++)
        for (int64_t g = 0; g < 4; g++) {
            int64_t row = row_of(m, j, g);
            if (row >= m->outputs) break;
            for (int64_t k = 0; k < m->inputs; k++)
                grad[row * m->inputs + k] += FN(drain)(sums + 4 * (j * m->inputs + k) + g);
            bias[row] += FN(drain)(bias_sums + 4 * j + g);
        }
    return bias + m->outputs;
}
