/* The work of weighted_sum.c, compiled once for each path: the sums in float32, and in float64. */
#if AVX == 2
#include "weighted_sum_avx2.h"
#endif

#define COMPUTE float
#define STORED_float FLOAT32
#include "weighted_sum_typed.h"
#undef COMPUTE
#undef STORED_float

#define COMPUTE double
#define STORED_double FLOAT64
#include "weighted_sum_typed.h"
#undef COMPUTE
#undef STORED_double
