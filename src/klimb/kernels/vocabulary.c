/* Log-probs of tokens from their logits, and the gradient in the logits: each row is read while it is in the cache.
 *
 * Exponentials are taken in float32 and summed in float64.
 */
#include "vectors.h"

#if defined(__GLIBC__) && defined(__PIC__) && !defined(__PIE__)
/* glibc 2.29 gave log a new version without SVID error handling. The first version returns the same numbers, and with
 * it the library loads on every glibc from 2.17 on. */
#if defined(__x86_64__)
__asm__(".symver log, log@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver log, log@GLIBC_2.17");
#endif
#endif

enum { RUN = 1024 }; /* numbers summed in float32 before they are added in float64 */

struct rows { /* of logits */
    int64_t type, num_rows, size, next;
    float temperature;
    char *logits;
    const int64_t *ids;
    const float *grad; /* null where the log-probs are asked for */
    float *log_probs;
};

#define scaled NAME(scaled)
#define number NAME(number)
#define most_of NAME(most_of)
#define total_of NAME(total_of)
#define row_gradient NAME(row_gradient)
#define row_log_prob NAME(row_log_prob)
#define STEPS "vocabulary_steps.h"
#include "processors.h"

/* log π(v) = z_v / τ − log Σ_u exp(z_u / τ), of each row's token. */
void klimb_token_log_probs(int type, int64_t num_threads, int64_t num_rows, int64_t size, void *logits,
                           const int64_t *ids, double temperature, float *log_probs) {
    struct rows job = {type, num_rows, size, 0, (float)temperature, logits, ids, 0, log_probs};
    klimb_in_parallel(CHOSEN(vocabulary_rows), &job, num_threads, num_rows * size);
}

/* In place of the logits: g (1[u = v] − π(u)) / τ. */
void klimb_token_log_prob_gradients(int type, int64_t num_threads, int64_t num_rows, int64_t size, void *logits,
                                    const int64_t *ids, double temperature, const float *grad) {
    struct rows job = {type, num_rows, size, 0, (float)temperature, logits, ids, grad, 0};
    klimb_in_parallel(CHOSEN(vocabulary_rows), &job, num_threads, num_rows * size);
}
