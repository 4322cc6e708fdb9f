/* One instance of the kernels, for one scalar type and one instruction set.
 *
 * Included by lstm.c once per instance, which defines:
 *   REAL    float or double;        INT      an integer of the same width
 *   DOUBLE  1 if REAL is double
 *   VBYTES  bytes of a SIMD vector; NV       vectors of a row block
 *   FT      features of a register tile in the backward products
 *   WT      features of one in the products of weight gradients, 2 if not defined
 *   FN(x)   the instance's name of x;        WIDE(x) that of its twin of double, included before
 *   TARGET  its target attribute
 *   VMAX, VMIN  of two vectors; the second operand where either is NaN
 *   FMA     a b + c of vectors, rounded once where the instruction set can
 *   RECIP   1 / vector
 *
 * Rows lie in SIMD lanes: inside a block every feature is a row of BLOCK values ("plane"), so no
 * operation mixes rows but the weight gradient's sum over them.
 */

#include "vectors.h"
#include "lstm_impl.h"
#include "head.h"
#include "signals.h"
#include "features.h"
#include "mlp.h"

#undef LANES
#undef BLOCK
#undef V
#undef IV
#undef QUAD
#undef INLINE
#undef APART
#undef REAL
#undef INT
#undef DOUBLE
#undef VBYTES
#undef NV
#undef FT
#undef WT
#undef FN
#undef WIDE
#undef TARGET
#undef VMAX
#undef VMIN
#undef FMA
#undef RECIP
#undef POOL
