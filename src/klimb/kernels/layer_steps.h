/* The work of layers.c, compiled once for each path. */
#include "vector_steps.h"

INLINE float inverse_root(const struct layer_rows *job, const float *x) {
    floats squares = all(0);
    for (int64_t j = 0; j < job->size; j += LANES) {
        const floats value = load_some(FLOAT32, x, j, job->size - j);
        squares += value * value;
    }
    return 1.0f / sqrtf(sum_of(squares) / (float)job->size + job->epsilon);
}

INLINE void norm_row(const struct layer_rows *job, int64_t i) {
    const float *x = job->x + i * job->size;
    const float root = inverse_root(job, x);
    for (int64_t j = 0; j < job->size; j += LANES) {
        const int64_t left = job->size - j;
        store(FLOAT32, job->out + i * job->size, j,
              load_some(FLOAT32, x, j, left) * root * load_some(FLOAT32, job->weight, j, left), left);
    }
}

INLINE void norm_gradient(const struct layer_rows *job, int64_t i) {
    const float *x = job->x + i * job->size, *grad = job->grad + i * job->size;
    float *to_weight = job->second + i / RUN_ROWS * job->size;
    const float root = inverse_root(job, x);
    floats along = all(0);
    for (int64_t j = 0; j < job->size; j += LANES) {
        const int64_t left = job->size - j;
        const floats normed = load_some(FLOAT32, x, j, left) * root, slope = load_some(FLOAT32, grad, j, left);
        along += normed * slope * load_some(FLOAT32, job->weight, j, left);
        const floats before = i % RUN_ROWS ? load_some(FLOAT32, to_weight, j, left) : all(0);
        store(FLOAT32, to_weight, j, before + slope * normed, left);
    }
    const float mean = sum_of(along) / (float)job->size;
    for (int64_t j = 0; j < job->size; j += LANES) {
        const int64_t left = job->size - j;
        const floats normed = load_some(FLOAT32, x, j, left) * root;
        const floats slope = load_some(FLOAT32, grad, j, left) * load_some(FLOAT32, job->weight, j, left);
        store(FLOAT32, job->out + i * job->size, j, (slope - normed * mean) * root, left);
    }
}

INLINE void gate_row(const struct layer_rows *job, int64_t i) {
    for (int64_t j = 0; j < job->size; j += LANES) {
        const int64_t at = i * job->size + j, left = job->size - j;
        const floats gate = load_some(FLOAT32, job->x, at, left);
        store(FLOAT32, job->out, at, gate * load_some(FLOAT32, job->weight, at, left) / (1.0f + exponential(-gate)), left);
    }
}

INLINE void gate_gradient(const struct layer_rows *job, int64_t i) {
    for (int64_t j = 0; j < job->size; j += LANES) {
        const int64_t at = i * job->size + j, left = job->size - j;
        const floats gate = load_some(FLOAT32, job->x, at, left), up = load_some(FLOAT32, job->weight, at, left);
        const floats grad = load_some(FLOAT32, job->grad, at, left);
        const floats share = 1.0f / (1.0f + exponential(-gate)), opened = gate * share;
        store(FLOAT32, job->out, at, opened * up, left);
        store(FLOAT32, job->second, at, grad * up * (share + opened * (1.0f - share)), left);
        store(FLOAT32, job->third, at, grad * opened, left);
    }
}

#define RUNS(name, row)                                                                                          \
    static void NAME(name)(void *at) {                                                                           \
        struct layer_rows *job = at;                                                                             \
        for (int64_t i; (i = __atomic_fetch_add(&job->next, RUN_ROWS, __ATOMIC_RELAXED)) < job->num_rows;)       \
            for (int64_t end = i + RUN_ROWS < job->num_rows ? i + RUN_ROWS : job->num_rows; i < end; i++)        \
                row(job, i);                                                                                     \
    }
RUNS(norms, norm_row)
RUNS(norm_gradients, norm_gradient)
RUNS(gates, gate_row)
RUNS(gate_gradients, gate_gradient)
#undef RUNS
