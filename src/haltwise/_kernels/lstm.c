/* What learned optimizers and halters compute, over many independent rows: the stacked LSTM, the
 * head of a halter, the signals and features it reads, and the rule `mlp`. Backward passes recompute
 * the forward.
 *
 * Plain C11 with GNU vector types; called from native.py by ctypes. Reentrant, no global state.
 * Every instance is compiled for its own instruction set and chosen at run time, so that a binary
 * runs on any machine of its architecture.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LOG2E 1.4426950408889634074

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Elements of two vectors of four, whose integer type is given. */
#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...)                                                                   \
    __builtin_shuffle(a, b, (type __attribute__((vector_size(4 * sizeof(type))))){__VA_ARGS__})
#endif

enum {
    ALIGNMENT = 64,
    MAX_CHAINS = 4, /* vectors that are exponentiated side by side */
    WEIGHT_STEPS = 8,  /* steps of a weight-gradient product: its operands should stay in cache */
    FLUSH_STEPS = 256, /* steps whose gradients are summed in lanes of the working precision */
};

enum { INTO, ONTO, TIMES }; /* how a result meets what lies in its place */

#include "shapes.h"

/* Aligned memory; `memory` is what to free. */
static void *allocate(size_t bytes, void **memory)
{
    *memory = malloc(bytes + ALIGNMENT);
    if (!*memory) return NULL;
    return (void *)(((uintptr_t)*memory + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
}

/* Vectors of 128 bits for the baseline, and its operations on them. */
#if defined(__aarch64__)
#define GENERIC_FMA(bits, lanes, a, b, c)                                                          \
    (generic_f##bits)vfmaq_f##bits((float##bits##x##lanes##_t)(c), (float##bits##x##lanes##_t)(a), \
                                   (float##bits##x##lanes##_t)(b))
#else
#define GENERIC_FMA(bits, lanes, a, b, c) (a) * (b) + (c)
#endif
#define GENERIC_SELECT(type, mask, a, b) (type)(((mask) & (a)) | (~(mask) & (b)))
#define GENERIC(real, bits, lanes)                                                                 \
    typedef real generic_f##bits __attribute__((vector_size(16)));                                 \
    typedef int##bits##_t generic_i##bits __attribute__((vector_size(16)));                        \
    static inline generic_f##bits max_base_f##bits(generic_f##bits a, generic_f##bits b)           \
    {                                                                                              \
        return GENERIC_SELECT(generic_f##bits, b < a, (generic_i##bits)a, (generic_i##bits)b);     \
    }                                                                                              \
    static inline generic_f##bits min_base_f##bits(generic_f##bits a, generic_f##bits b)           \
    {                                                                                              \
        return GENERIC_SELECT(generic_f##bits, a < b, (generic_i##bits)a, (generic_i##bits)b);     \
    }                                                                                              \
    static inline generic_f##bits fma_base_f##bits(generic_f##bits a, generic_f##bits b,           \
                                                   generic_f##bits c)                              \
    {                                                                                              \
        return GENERIC_FMA(bits, lanes, a, b, c);                                                  \
    }
GENERIC(double, 64, 2)
GENERIC(float, 32, 4)

/* Baseline: 128-bit vectors, which every supported architecture has. */
#if defined(__x86_64__)
#define BASE_TILE 2 /* 16 registers */
#else
#define BASE_TILE 4 /* 32 registers */
#endif
#define REAL double
#define INT int64_t
#define DOUBLE 1
#define VBYTES 16
#define NV BASE_TILE
#define FT BASE_TILE
#define FN(x) x##_base_f64
#define WIDE FN
#define POOL
#define TARGET
#define VMAX(a, b) max_base_f64(a, b)
#define VMIN(a, b) min_base_f64(a, b)
#define FMA(a, b, c) fma_base_f64(a, b, c)
#define RECIP(d) (1 / (d))
#include "instance.h"

#define REAL float
#define INT int32_t
#define DOUBLE 0
#define VBYTES 16
#define NV BASE_TILE
#define FT BASE_TILE
#define FN(x) x##_base_f32
#define WIDE(x) x##_base_f64
#define POOL
#define TARGET
#define VMAX(a, b) max_base_f32(a, b)
#define VMIN(a, b) min_base_f32(a, b)
#define FMA(a, b, c) fma_base_f32(a, b, c)
#define RECIP(d) (1 / (d))
#include "instance.h"

#if defined(__x86_64__)
#define REAL double
#define INT int64_t
#define DOUBLE 1
#define VBYTES 32
#define NV 3
#define FT 4
#define WT 3 /* with four gates each, and 16 registers */
#define FN(x) x##_avx2_f64
#define WIDE FN
#define TARGET __attribute__((target("avx2,fma")))
#define VMAX(a, b) _mm256_max_pd(a, b)
#define VMIN(a, b) _mm256_min_pd(a, b)
#define FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define RECIP(d) (1 / (d))
#include "instance.h"

#define REAL float
#define INT int32_t
#define DOUBLE 0
#define VBYTES 32
#define NV 3
#define FT 4
#define WT 3 /* with four gates each, and 16 registers */
#define FN(x) x##_avx2_f32
#define WIDE(x) x##_avx2_f64
#define TARGET __attribute__((target("avx2,fma")))
#define VMAX(a, b) _mm256_max_ps(a, b)
#define VMIN(a, b) _mm256_min_ps(a, b)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define RECIP(d) (1 / (d))
#include "instance.h"

#define AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))

/* One Newton step on a 14-bit estimate; d must not be infinite. */
static inline AVX512 __m512 reciprocal_avx512(__m512 d)
{
    __m512 estimate = _mm512_rcp14_ps(d);
    __m512 error = _mm512_fnmadd_ps(d, estimate, _mm512_set1_ps(1));
    return _mm512_fmadd_ps(estimate, error, estimate);
}

#define REAL double
#define INT int64_t
#define DOUBLE 1
#define VBYTES 64
#define NV 4
#define FT 4
#define WT 6 /* with four gates each, and 32 registers */
#define FN(x) x##_avx512_f64
#define WIDE FN
#define TARGET AVX512
#define VMAX(a, b) _mm512_max_pd(a, b)
#define VMIN(a, b) _mm512_min_pd(a, b)
#define FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define RECIP(d) (1 / (d))
#include "instance.h"

#define REAL float
#define INT int32_t
#define DOUBLE 0
#define VBYTES 64
#define NV 4
#define FT 4
#define WT 6 /* with four gates each, and 32 registers */
#define FN(x) x##_avx512_f32
#define WIDE(x) x##_avx512_f64
#define TARGET AVX512
#define VMAX(a, b) _mm512_max_ps(a, b)
#define VMIN(a, b) _mm512_min_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define RECIP(d) reciprocal_avx512(d)
#include "instance.h"
#endif

/* The best instruction set: 0 baseline, 1 AVX2, 2 AVX-512. */
EXPORT int haltwise_lstm_isa(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* What fades away ends among the subnormals, with which some processors take a hundred times as long:
 * they count as zero. What to restore. */
static unsigned flush_subnormals(void)
{
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* results and operands */
    return before;
#else
    return 0;
#endif
}

static void restore_subnormals(unsigned before)
{
#if defined(__x86_64__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

/* All return 0, or 1 when out of memory. `isa` must not exceed the machine's. Arrays of the head,
 * the features and the signals are described where they are computed.
 *
 * Layouts of the LSTM, row-major: inputs [steps, rows, inputs]; states [rows, layers, hidden],
 * which may be replaced in place; weights[l] [4 hidden, fan_in + hidden]; biases[l] [4 hidden]; outputs
 * [steps, rows, hidden] or NULL.
 *
 * With gradients `grads` [steps, rows] in the place of inputs, their features are the inputs: L2L's
 * of the gradient and, if inputs is 4, of its group's mean; `pooled` [steps, rows / group, 2] is from
 * haltwise_lstm_pool. Then updates [steps, rows] are read out of the top layer: scale exp(b)
 * (a + k n + l m) with (a, b, k, l) = weights[layers] h + biases[layers], [outputs, hidden] and
 * [outputs], those left out zero, n + m the gradient and m its mean over the group, divided by its root mean square.
 * grad_sums [steps, rows / group, hidden] is the gradient of the top layer's sums over a group;
 * haltwise_lstm_mean writes that layer's means over every group, [rows / group, hidden].
 *
 * grad_params is added to: per layer a weight, then a bias; at last, where there are grad_updates,
 * the read-out. Any other gradient may be NULL: zero if it comes in, not wanted if it goes out.
 */
#if defined(__x86_64__)
#define DISPATCH(name, type, ...)                                                                  \
    (isa == 2   ? name##_avx512_##type(__VA_ARGS__)                                                \
     : isa == 1 ? name##_avx2_##type(__VA_ARGS__)                                                  \
                : name##_base_##type(__VA_ARGS__))
#else
#define DISPATCH(name, type, ...) ((void)isa, name##_base_##type(__VA_ARGS__))
#endif

#define DEFINE(type, real)                                                                         \
    EXPORT int haltwise_lstm_forward_##type(                                                       \
        int isa, const shape *s, const real *inputs, const real *hidden, const real *cell,         \
        const real *const *weights, const real *const *biases, const real *grads,                  \
        const real *pooled, real *outputs, real *updates, real *hidden_out, real *cell_out)        \
    {                                                                                              \
        unsigned before = flush_subnormals();                                                      \
        int code = DISPATCH(forward, type, s, inputs, hidden, cell, weights, biases, grads,        \
                            pooled, outputs, updates, hidden_out, cell_out);                       \
        restore_subnormals(before);                                                                \
        return code;                                                                               \
    }                                                                                              \
    EXPORT int haltwise_lstm_backward_##type(                                                      \
        int isa, const shape *s, const real *inputs, const real *hidden, const real *cell,         \
        const real *const *weights, const real *const *biases, const real *grads,                  \
        const real *pooled, const real *grad_outputs, const real *grad_updates,                    \
        const real *grad_sums, const real *grad_hidden_out, const real *grad_cell_out,             \
        real *grad_hidden, real *grad_cell, double *grad_params)                                   \
    {                                                                                              \
        unsigned before = flush_subnormals();                                                      \
        int code =                                                                                 \
            DISPATCH(backward, type, s, inputs, hidden, cell, weights, biases, grads, pooled,      \
                     grad_outputs, grad_updates, grad_sums, grad_hidden_out, grad_cell_out,        \
                     grad_hidden, grad_cell, grad_params);                                         \
        restore_subnormals(before);                                                                \
        return code;                                                                               \
    }                                                                                              \
    EXPORT void haltwise_lstm_pool_##type(const shape *s, const real *grads, real *pooled)         \
    {                                                                                              \
        pool_base_##type(s, grads, pooled);                                                        \
    }                                                                                              \
    EXPORT void haltwise_lstm_mean_##type(const shape *s, const real *hidden, real *means)         \
    {                                                                                              \
        mean_base_##type(s, hidden, means);                                                        \
    }                                                                                              \
    EXPORT int haltwise_features_##type(                                                           \
        int isa, const feature_shape *s, const real *signals, const real *price,                   \
        const real *previous, const real *last_loss, const real *lowest, real *features,           \
        real *previous_out, real *last_loss_out, real *lowest_out)                                 \
    {                                                                                              \
        return DISPATCH(features, type, s, signals, price, previous, last_loss, lowest, features,  \
                        previous_out, last_loss_out, lowest_out);                                  \
    }                                                                                              \
    EXPORT int haltwise_signals_##type(                                                            \
        int isa, const signal_shape *s, const real *losses, const real *grads,                     \
        const real *updates, const real *last_grad, const real *last_update, real *signals)        \
    {                                                                                              \
        return DISPATCH(signals, type, s, losses, grads, updates, last_grad, last_update,          \
                        signals);                                                                  \
    }                                                                                              \
    EXPORT int haltwise_mlp_##type(                                                                \
        int isa, const mlp_shape *s, const real *grads, const real *momenta, const real *squares,  \
        const real *agreement, const real *facts, const real *bias, const real *const *params,     \
        real *updates, real *momenta_out, real *squares_out, real *agreement_out, real *sums)      \
    {                                                                                              \
        unsigned before = flush_subnormals();                                                      \
        int code = DISPATCH(mlp, type, s, grads, momenta, squares, agreement, facts, bias, params, \
                            updates, momenta_out, squares_out, agreement_out, sums);               \
        restore_subnormals(before);                                                                \
        return code;                                                                               \
    }                                                                                              \
    EXPORT int haltwise_head_forward_##type(                                                       \
        int isa, const head_shape *s, const real *features, const real *readouts,                  \
        const real *hidden, const real *cell, const real *const *params, real *outputs,            \
        real *hidden_out, real *cell_out)                                                          \
    {                                                                                              \
        unsigned before = flush_subnormals();                                                      \
        int code = DISPATCH(head_forward, type, s, features, readouts, hidden, cell, params,       \
                            outputs, hidden_out, cell_out);                                        \
        restore_subnormals(before);                                                                \
        return code;                                                                               \
    }                                                                                              \
    EXPORT int haltwise_head_backward_##type(                                                      \
        int isa, const head_shape *s, const real *features, const real *readouts,                  \
        const real *const *params, const real *grad_outputs, real *grad_readouts,                  \
        double *grad_params)                                                                       \
    {                                                                                              \
        unsigned before = flush_subnormals();                                                      \
        int code = DISPATCH(head_backward, type, s, features, readouts, params, grad_outputs,      \
                            grad_readouts, grad_params);                                           \
        restore_subnormals(before);                                                                \
        return code;                                                                               \
    }

DEFINE(f32, float)
DEFINE(f64, double)

/* Not importable, but linkers that export an extension module's initialiser find one. */
EXPORT void *PyInit__lstm(void);
EXPORT void *PyInit__lstm(void) { return NULL; }
