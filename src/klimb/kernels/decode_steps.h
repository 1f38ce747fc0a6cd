/* The work of decode.c, compiled once for each path. */
#include "vector_steps.h"

#undef BLOCK
#define BLOCK (2 * LANES) /* keys whose scores are held at once */

/* --- norm and gate --- */

INLINE void rms_norm(enum stored type, int64_t size, const void *x, const void *weight, float epsilon, void *out) {
    floats squares = all(0);
    for (int64_t j = 0; j < size; j += LANES) {
        const floats value = load_some(type, x, j, size - j);
        squares += value * value;
    }
    const float root = 1.0f / sqrtf(sum_of(squares) / (float)size + epsilon);
    for (int64_t j = 0; j < size; j += LANES) {
        const floats value = load_some(type, x, j, size - j) * root * load_some(type, weight, j, size - j);
        store(type, out, j, value, size - j);
    }
}

static void NAME(norm_rows)(enum stored type, int64_t num_rows, int64_t size, const char *x, const void *weight,
                            float epsilon, char *out) {
    const int64_t step = size * (type == FLOAT32 ? 4 : 2);
    for (int64_t i = 0; i < num_rows; i++) {
        if (type == FLOAT32) rms_norm(FLOAT32, size, x + i * step, weight, epsilon, out + i * step);
        else rms_norm(BFLOAT16, size, x + i * step, weight, epsilon, out + i * step);
    }
}

INLINE void gated_row(enum stored type, int64_t size, const char *gate_up, char *out) {
    for (int64_t j = 0; j < size; j += LANES) {
        const floats gate = load_some(type, gate_up, j, size - j), up = load_some(type, gate_up, size + j, size - j);
        store(type, out, j, gate * up / (1.0f + exponential(-gate)), size - j);
    }
}

static void NAME(gated_rows)(void *at) {
    struct gate *job = at;
    const int64_t step = job->size * (job->type == FLOAT32 ? 4 : 2);
    for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->num_rows;) {
        const char *row = job->gate_up + 2 * i * step;
        if (job->type == FLOAT32) gated_row(FLOAT32, job->size, row, job->out + i * step);
        else gated_row(BFLOAT16, job->size, row, job->out + i * step);
    }
}

/* --- attention --- */

/* The rotated head, after its norm if it has one: x cos + roll(x, size/2) sin, sin already signed. */
INLINE void turned(enum stored type, const struct attention *layer, const void *x, const void *norm, const float *cos,
                   const float *sin, float *out) {
    const int64_t size = layer->size, half = size / 2;
    float head[MOST_SIZE + LANES];
    floats squares = all(0);
    for (int64_t j = 0; j < size; j += LANES) {
        const floats value = load_some(type, x, j, size - j);
        squares += value * value;
        memcpy(head + j, &value, sizeof value);
    }
    if (norm) {
        const float root = 1.0f / sqrtf(sum_of(squares) / (float)size + (float)layer->epsilon);
        for (int64_t j = 0; j < size; j += LANES) {
            floats value;
            memcpy(&value, head + j, sizeof value);
            value *= root * load_some(type, norm, j, size - j);
            memcpy(head + j, &value, sizeof value);
        }
    }
    for (int64_t j = 0; j < half; j++) {
        out[j] = head[j] * cos[j] + head[j + half] * sin[j];
        out[j + half] = head[j + half] * cos[j + half] + head[j] * sin[j + half];
    }
}

/* Take up to BLOCK keys from the first on into account. */
INLINE void see_block(enum stored type, int num_queries, int64_t size, const void *keys, int64_t key_step,
                      const void *values, int64_t first, int64_t count, struct queries *q) {
    floats scores[QUERIES][2];
    for (int r = 0; r < num_queries; r++) scores[r][0] = scores[r][1] = all(0);
    for (int64_t d = 0; d < size; d++) {
        const floats low = load(type, keys, d * key_step + first), high = load(type, keys, d * key_step + first + LANES);
        for (int r = 0; r < num_queries; r++) {
            scores[r][0] += q->numbers[r][d] * low;
            scores[r][1] += q->numbers[r][d] * high;
        }
    }
    float shares[QUERIES][BLOCK], kept[QUERIES];
    for (int r = 0; r < num_queries; r++) {
        scores[r][0] *= q->scaling;
        scores[r][1] *= q->scaling;
        memcpy(shares[r], scores[r], sizeof shares[r]);
        float most = q->most[r];
        for (int64_t k = 0; k < BLOCK; k++) {
            if (k >= count) shares[r][k] = -INFINITY;
            if (!(shares[r][k] <= most)) most = shares[r][k];
        }
        kept[r] = exponential(all(q->most[r] - most))[0];
        floats sum = all(0);
        for (int64_t k = 0; k < BLOCK; k += LANES) {
            floats share;
            memcpy(&share, shares[r] + k, sizeof share);
            share = exponential(share - most);
            sum += share;
            memcpy(shares[r] + k, &share, sizeof share);
        }
        q->total[r] = q->total[r] * kept[r] + sum_of(sum);
        q->most[r] = most;
    }
    for (int64_t j = 0; j < size; j += 4 * LANES) {
        const int64_t parts = size - j > 3 * LANES ? 4 : 1; /* four registers at a time, or one after the other */
        for (int64_t part = 0; part < 4 && j + part * LANES < size; part += parts) {
            floats out[QUERIES][4];
            const int64_t at = j + part * LANES;
            if (parts == 4) {
                for (int r = 0; r < num_queries; r++)
                    for (int p = 0; p < 4; p++) {
                        memcpy(&out[r][p], q->out[r] + at + p * LANES, sizeof(floats));
                        out[r][p] *= kept[r];
                    }
                for (int64_t k = 0; k < count; k++)
                    for (int p = 0; p < 4; p++) {
                        const floats value = load(type, values, (first + k) * size + at + p * LANES);
                        for (int r = 0; r < num_queries; r++) out[r][p] += shares[r][k] * value;
                    }
                for (int r = 0; r < num_queries; r++)
                    for (int p = 0; p < 4; p++) memcpy(q->out[r] + at + p * LANES, &out[r][p], sizeof(floats));
            } else {
                for (int r = 0; r < num_queries; r++) {
                    memcpy(&out[r][0], q->out[r] + at, sizeof(floats));
                    out[r][0] *= kept[r];
                }
                for (int64_t k = 0; k < count; k++) {
                    const floats value = load(type, values, (first + k) * size + at);
                    for (int r = 0; r < num_queries; r++) out[r][0] += shares[r][k] * value;
                }
                for (int r = 0; r < num_queries; r++) memcpy(q->out[r] + at, &out[r][0], sizeof(floats));
            }
        }
    }
}

INLINE void see(enum stored type, int64_t num_queries, int64_t size, const void *keys, int64_t key_step,
                const void *values, int64_t first, int64_t end, struct queries *q) {
    for (; first < end; first += BLOCK) {
        const int64_t count = end - first < BLOCK ? end - first : BLOCK;
        switch (num_queries) {
        case 1: see_block(type, 1, size, keys, key_step, values, first, count, q); break;
        case 2: see_block(type, 2, size, keys, key_step, values, first, count, q); break;
        case 3: see_block(type, 3, size, keys, key_step, values, first, count, q); break;
        default: see_block(type, 4, size, keys, key_step, values, first, count, q);
        }
    }
}

/* Of each type one copy for all callers: see_block is most of what there is to compile. */
#define SEE_STORED(name, type)                                                                                        \
    static __attribute__((noinline)) void NAME(name)(int64_t num_queries, int64_t size, const void *keys,             \
                                                     int64_t key_step, const void *values, int64_t first,             \
                                                     int64_t end, struct queries *q) {                                \
        see(type, num_queries, size, keys, key_step, values, first, end, q);                                          \
    }
SEE_STORED(see_float32, FLOAT32)
SEE_STORED(see_bfloat16, BFLOAT16)
#undef SEE_STORED

/* One completion's queries of one key head. */
INLINE void attend_one(enum stored type, const struct attending *job, int64_t row, int64_t key_head) {
    const struct attention *layer = job->layer;
    void (*const see_stored)(int64_t, int64_t, const void *, int64_t, const void *, int64_t, int64_t,
                             struct queries *) = type == FLOAT32 ? NAME(see_float32) : NAME(see_bfloat16);
    const int64_t size = layer->size, item = type == FLOAT32 ? 4 : 2;
    const int64_t num_heads = layer->num_query_heads + 2 * layer->num_key_heads;
    const int64_t group = layer->num_query_heads / layer->num_key_heads;
    const float *cos = job->cos + row * size, *sin = job->sin + row * size;
    const char *heads = job->heads + row * num_heads * size * item;
    const char *own_key = heads + (layer->num_query_heads + key_head) * size * item;
    const char *own_value = own_key + layer->num_key_heads * size * item;

    const int64_t own = layer->slots[row] * layer->num_key_heads + key_head;
    char *keys = (char *)layer->keys + own * size * layer->capacity * item;
    char *values = (char *)layer->values + own * layer->capacity * size * item;
    float key[MOST_SIZE];
    turned(type, layer, own_key, layer->key_norm, cos, sin, key);
    for (int64_t d = 0; d < size; d++) {
        const int64_t at = d * layer->capacity + job->num_seen;
        if (type == FLOAT32) ((float *)keys)[at] = key[d];
        else ((uint16_t *)keys)[at] = rounded(all(key[d]))[0];
    }
    memcpy(values + job->num_seen * size * item, own_value, (size_t)(size * item));

    const int64_t prompt = layer->prompt_of[row], length = layer->prompt_lengths[prompt];
    const int64_t place = prompt * layer->num_key_heads + key_head;
    const char *prompt_keys = (const char *)layer->prompt_keys + place * size * layer->longest * item;
    const char *prompt_values = (const char *)layer->prompt_values + place * layer->longest * size * item;
    int64_t first = 0; /* token, counted from the prompt's start, that is seen */
    if (layer->window > 0 && length + job->num_seen >= layer->window) first = length + job->num_seen + 1 - layer->window;

    for (int64_t head = 0; head < group; head += QUERIES) {
        const int64_t num_queries = group - head < QUERIES ? group - head : QUERIES;
        const int64_t place_out = row * layer->num_query_heads + key_head * group + head;
        struct queries q;
        q.scaling = (float)layer->scaling;
        for (int64_t r = 0; r < num_queries; r++) {
            const char *query = heads + (key_head * group + head + r) * size * item;
            turned(type, layer, query, layer->query_norm, cos, sin, q.numbers[r]);
            memset(q.out[r], 0, (size_t)(size + LANES) * sizeof(float));
            q.most[r] = -INFINITY;
            q.total[r] = 0;
        }
        see_stored(num_queries, size, prompt_keys, layer->longest, prompt_values, first, length, &q);
        see_stored(num_queries, size, keys, layer->capacity, values, first > length ? first - length : 0,
                   job->num_seen + 1, &q);
        for (int64_t r = 0; r < num_queries; r++) {
            char *out = job->out + (place_out + r) * size * item;
            for (int64_t j = 0; j < size; j += LANES) {
                floats value;
                memcpy(&value, q.out[r] + j, sizeof value);
                store(type, out, j, value / q.total[r], size - j);
            }
        }
    }
}

static void NAME(attend_all)(void *at) {
    struct attending *job = at;
    const int64_t num_key_heads = job->layer->num_key_heads, count = job->layer->num_rows * num_key_heads;
    for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < count;) {
        if (job->layer->type == FLOAT32) attend_one(FLOAT32, job, i / num_key_heads, i % num_key_heads);
        else attend_one(BFLOAT16, job, i / num_key_heads, i % num_key_heads);
    }
}
