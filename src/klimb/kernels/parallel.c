/* Several threads, PyTorch's own where it has any. */
#include "vectors.h"

enum { SMALL_WORK = 1 << 16 }; /* operations up to which one thread is faster than several */

/* GNU OpenMP's own entry, if PyTorch has brought it along: its threads are waiting already. */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

void klimb_use_threads(void *gomp_parallel) { memcpy(&parallel, &gomp_parallel, sizeof parallel); }

void klimb_in_parallel(void (*function)(void *), void *job, int64_t num_threads, int64_t work) {
    if (parallel && num_threads > 1 && work > SMALL_WORK) parallel(function, job, (unsigned)num_threads, 0);
    else function(job);
}
