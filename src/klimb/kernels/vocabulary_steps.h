/* The work of vocabulary.c, compiled once for each path. */
#include "vector_steps.h"

INLINE floats scaled(enum stored type, const void *row, int64_t at, float temperature) {
    const floats logits = load(type, row, at);
    return temperature == 1 ? logits : logits / temperature;
}

INLINE float number(enum stored type, const char *row, int64_t at, float temperature) {
    const int64_t item = type == FLOAT32 ? 4 : 2;
    const floats logit = load_some(type, row + at * item, 0, 1);
    return temperature == 1 ? logit[0] : logit[0] / temperature;
}

/* The largest logit; one that is not a number is passed over, and found in the sum. */
INLINE float most_of(enum stored type, int64_t size, const char *row, float temperature) {
    floats most = all(-INFINITY);
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES) {
        const floats logits = scaled(type, row, j, temperature);
        const ints is_more = logits > most;
        most = (floats)(((ints)logits & is_more) | ((ints)most & ~is_more));
    }
    float value = most[0];
    for (int i = 1; i < LANES; i++) value = most[i] > value ? most[i] : value;
    for (; j < size; j++) {
        const float logit = number(type, row, j, temperature);
        value = logit > value ? logit : value;
    }
    return value;
}

INLINE double total_of(enum stored type, int64_t size, const char *row, float temperature, float most) {
    double total = 0;
    int64_t j = 0;
    while (j + LANES <= size) {
        const int64_t end = j + RUN < size ? j + RUN : size;
        floats sum = all(0);
        for (; j + LANES <= end; j += LANES) sum += exponential(scaled(type, row, j, temperature) - most);
        for (int i = 0; i < LANES; i++) total += sum[i];
    }
    for (; j < size; j++) total += exponential(all(number(type, row, j, temperature) - most))[0];
    return total;
}

INLINE void row_log_prob(enum stored type, const struct rows *job, int64_t i) {
    const char *row = job->logits + i * job->size * (type == FLOAT32 ? 4 : 2);
    const float most = most_of(type, job->size, row, job->temperature);
    const double total = total_of(type, job->size, row, job->temperature, most);
    const double chosen = number(type, row, job->ids[i], job->temperature);
    job->log_probs[i] = (float)(chosen - most - log(total));
}

INLINE void row_gradient(enum stored type, const struct rows *job, int64_t i) {
    char *row = job->logits + i * job->size * (type == FLOAT32 ? 4 : 2);
    const float most = most_of(type, job->size, row, job->temperature);
    const double total = total_of(type, job->size, row, job->temperature, most);
    const float scale = job->grad[i] / job->temperature, share = (float)(-scale / total);
    const int64_t id = job->ids[i];
    const float chosen = scale + share * exponential(all(number(type, row, id, job->temperature) - most))[0];
    int64_t j = 0;
    for (; j + LANES <= job->size; j += LANES)
        store(type, row, j, share * exponential(scaled(type, row, j, job->temperature) - most), LANES);
    for (; j < job->size; j++)
        store(type, row, j, share * exponential(all(number(type, row, j, job->temperature) - most)), 1);
    store(type, row, id, all(chosen), 1);
}

static void NAME(vocabulary_rows)(void *at) {
    struct rows *job = at;
    for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->num_rows;) {
        if (job->grad) {
            if (job->type == FLOAT32) row_gradient(FLOAT32, job, i);
            else row_gradient(BFLOAT16, job, i);
        } else {
            if (job->type == FLOAT32) row_log_prob(FLOAT32, job, i);
            else row_log_prob(BFLOAT16, job, i);
        }
    }
}
