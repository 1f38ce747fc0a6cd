/* What a decoder's layers do between their matrix products, and backwards, in float32: one read from memory each.
 *
 * Rows are taken in runs of RUN_ROWS; sums over rows are kept by run, so that no number of threads changes them.
 */
#include "vectors.h"

enum { RUN_ROWS = 32 };

struct layer_rows {
    int64_t num_rows, size, next;
    float epsilon;
    const float *x, *weight, *grad; /* of a gate: gate, up, and the gradient of their product */
    float *out, *second, *third;
};

#define norm_row NAME(norm_row)
#define norm_gradient NAME(norm_gradient)
#define gate_row NAME(gate_row)
#define gate_gradient NAME(gate_gradient)
#define inverse_root NAME(inverse_root)
#define STEPS "layer_steps.h"
#include "processors.h"

static void over_rows(void (*function)(void *), struct layer_rows *job, int64_t num_threads) {
    klimb_in_parallel(function, job, num_threads, 4 * job->num_rows * job->size);
}

/* out = w x / sqrt(mean x^2 + epsilon). */
void klimb_norm(int64_t num_threads, int64_t num_rows, int64_t size, const float *x, const float *weight,
                double epsilon, float *out) {
    struct layer_rows job = {num_rows, size, 0, (float)epsilon, x, weight, 0, out, 0, 0};
    over_rows(CHOSEN(norms), &job, num_threads);
}

/* Its gradient: to x (rows, size), and to the weight, a sum for each run of rows. */
void klimb_norm_gradient(int64_t num_threads, int64_t num_rows, int64_t size, const float *x, const float *weight,
                         const float *grad, double epsilon, float *to_x, float *to_weight) {
    struct layer_rows job = {num_rows, size, 0, (float)epsilon, x, weight, grad, to_x, to_weight, 0};
    over_rows(CHOSEN(norm_gradients), &job, num_threads);
}

/* out = silu(gate) up. */
void klimb_gate(int64_t num_threads, int64_t num_rows, int64_t size, const float *gate, const float *up, float *out) {
    struct layer_rows job = {num_rows, size, 0, 0, gate, up, 0, out, 0, 0};
    over_rows(CHOSEN(gates), &job, num_threads);
}

/* Its gradient, and the product once more. */
void klimb_gate_gradient(int64_t num_threads, int64_t num_rows, int64_t size, const float *gate, const float *up,
                         const float *grad, float *out, float *to_gate, float *to_up) {
    struct layer_rows job = {num_rows, size, 0, 0, gate, up, grad, out, to_gate, to_up};
    over_rows(CHOSEN(gate_gradients), &job, num_threads);
}
