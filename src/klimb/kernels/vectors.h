/* What the files that work on vectors of numbers share.
 *
 * GCC breaks its vectors up for the processor at hand before it makes a function's clones for others, so the
 * work is compiled three times by hand: processors.h includes the includer's own STEPS, which include vector_steps.h,
 * once for each path, under names that end in its own.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { MOST_LANES = 16 }; /* numbers of a vector on the path with the widest registers */

enum stored { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 }; /* as in weighted_sum.c */


/* convert(from, to) puts each number of one vector into the other. Compilers before GCC 9 do it one by one. */
#ifdef KLIMB_PLAIN
#define convert(from, to)                                        \
    do                                                           \
        for (int i_ = 0; i_ < LANES; i_++) (to)[i_] = (from)[i_]; \
    while (0)
#else
#define convert(from, to) (to) = __builtin_convertvector(from, __typeof__(to))
#endif

#define floats NAME(floats)
#define ints NAME(ints)
#define words NAME(words)
#define halves NAME(halves)
#define all NAME(all)
#define load NAME(load)
#define rounded NAME(rounded)
#define store NAME(store)
#define load_some NAME(load_some)
#define sum_of NAME(sum_of)
#define exponential NAME(exponential)

/* Run function(job) in several threads, where there is work for them; each takes its share of the job itself. */
void klimb_in_parallel(void (*function)(void *), void *job, int64_t num_threads, int64_t work);
