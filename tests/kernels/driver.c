/* Calls the kernels on every path that the processor can run and compares them with plain sums in double.
 *
 * For processors that this machine is not, under an emulator, where there is no Python: test_processors.py.
 * Prints the name of each path that held, and fails at the first number that does not agree.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

const char *klimb_path_name(int path);
int klimb_num_paths_here(void);
int klimb_use_path(int path);
void klimb_weighted_sum(int, int, const void *, const void *, int64_t, int64_t, int64_t, int64_t, double, int, void *);
void klimb_rms_norm(int, int64_t, int64_t, const void *, const void *, double, void *);
void klimb_gated(int, int64_t, int64_t, int64_t, const void *, void *);
void klimb_token_log_probs(int, int64_t, int64_t, int64_t, void *, const int64_t *, double, float *);
void klimb_token_log_prob_gradients(int, int64_t, int64_t, int64_t, void *, const int64_t *, double, const float *);

struct attention { /* as in decode.c */
    int64_t type, num_threads, num_rows, num_query_heads, num_key_heads, size, window, longest, capacity;
    const int64_t *slots, *prompt_of, *prompt_lengths;
    const void *prompt_keys, *prompt_values;
    void *keys, *values;
    const void *query_norm, *key_norm;
    double epsilon, scaling;
};
void klimb_attend(const struct attention *, const void *, const float *, const float *, int64_t, void *);

static const int SIZES[] = {2, 2, 4, 8};
static const char *now;

static double next_number(void) { /* in (−2, 2), of few bits, so that all but bfloat16 hold it exactly */
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)((int64_t)(state >> 54) - 512) / 256;
}

static void put(int type, void *at, int64_t index, double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    if (type == FLOAT64) ((double *)at)[index] = value;
    else if (type == FLOAT32) ((float *)at)[index] = single;
    else if (type == BFLOAT16) ((uint16_t *)at)[index] = (uint16_t)(bits >> 16);
    else { /* numbers above are 0, or normal in float16 */
        const uint32_t half = single == 0 ? 0 : ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023);
        ((uint16_t *)at)[index] = (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)half;
    }
}

static double get(int type, const void *at, int64_t index) {
    if (type == FLOAT64) return ((const double *)at)[index];
    if (type == FLOAT32) return ((const float *)at)[index];
    const uint32_t half = ((const uint16_t *)at)[index];
    if (type == FLOAT16) {
        const double sign = half >> 15 ? -1 : 1, fraction = half & 1023;
        const int exponent = half >> 10 & 31;
        return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
    }
    const uint32_t bits = half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void *numbers(int type, int64_t count) { /* a few more behind them, which loads may touch */
    void *at = calloc((size_t)count + 64, (size_t)SIZES[type]);
    for (int64_t i = 0; i < count; i++) put(type, at, i, next_number());
    return at;
}

static void require(double found, double expected, double bound, const char *what) {
    if (fabs(found - expected) <= bound) return;
    printf("%s: %s: found %.9g, expected %.9g\n", now, what, found, expected);
    exit(1);
}

static void check_sum(int type, int in_double, int64_t num_rows, int64_t num_columns, int by_column) {
    void *matrix = numbers(type, num_rows * num_columns), *weights = numbers(in_double ? FLOAT64 : FLOAT32, num_rows);
    const int64_t row_step = by_column ? 1 : num_columns, column_step = by_column ? num_rows : 1;
    double *out = malloc((size_t)num_columns * 8);
    klimb_weighted_sum(type, in_double, weights, matrix, num_rows, num_columns, row_step * SIZES[type],
                       column_step * SIZES[type], 3, 1, out);
    for (int64_t j = 0; j < num_columns; j++) {
        double sum = 0, size = 0;
        for (int64_t i = 0; i < num_rows; i++) {
            const double product = get(in_double ? FLOAT64 : FLOAT32, weights, i) *
                                   get(type, matrix, i * row_step + j * column_step);
            sum += product / 3;
            size += fabs(product);
        }
        require(out[j], sum, (in_double ? 1e-14 : 4e-7) * size, "weighted sum");
    }
    free(matrix), free(weights), free(out);
}

static void check_norm_and_gate(int type, int64_t size) {
    enum { ROWS = 3 };
    const double bound = type == FLOAT32 ? 4e-6 : 2e-2;
    void *x = numbers(type, 2 * ROWS * size), *weight = numbers(type, size), *out = numbers(type, ROWS * size);
    klimb_rms_norm(type, ROWS, size, x, weight, 1e-5, out);
    for (int64_t i = 0; i < ROWS; i++) {
        double squares = 0;
        for (int64_t j = 0; j < size; j++) squares += get(type, x, i * size + j) * get(type, x, i * size + j);
        for (int64_t j = 0; j < size; j++)
            require(get(type, out, i * size + j),
                    get(type, weight, j) * get(type, x, i * size + j) / sqrt(squares / (double)size + 1e-5), 2 * bound,
                    "norm");
    }
    klimb_gated(type, 1, ROWS, size, x, out);
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < size; j++) {
            const double gate = get(type, x, 2 * i * size + j), up = get(type, x, (2 * i + 1) * size + j);
            require(get(type, out, i * size + j), gate * up / (1 + exp(-gate)), bound, "gate");
        }
    free(x), free(weight), free(out);
}

static void check_log_probs(int type, int64_t size, double temperature) {
    enum { ROWS = 2 };
    void *logits = numbers(type, ROWS * size), *left = calloc((size_t)(ROWS * size + 64), (size_t)SIZES[type]);
    const int64_t ids[ROWS] = {0, size - 1};
    const float grad[ROWS] = {0.5f, -2};
    float found[ROWS];
    memcpy(left, logits, (size_t)(ROWS * size * SIZES[type]));
    klimb_token_log_probs(type, 1, ROWS, size, logits, ids, temperature, found);
    klimb_token_log_prob_gradients(type, 1, ROWS, size, left, ids, temperature, grad);
    for (int64_t i = 0; i < ROWS; i++) {
        double total = 0;
        for (int64_t j = 0; j < size; j++) total += exp(get(type, logits, i * size + j) / temperature);
        require(found[i], get(type, logits, i * size + ids[i]) / temperature - log(total), 2e-6, "log-prob");
        for (int64_t j = 0; j < size; j++) {
            const double share = exp(get(type, logits, i * size + j) / temperature) / total;
            require(get(type, left, i * size + j), grad[i] * ((j == ids[i]) - share) / temperature,
                    type == FLOAT32 ? 4e-6 : 2e-2, "gradient");
        }
    }
    free(logits), free(left);
}

/* One completion of one prompt, two query heads of one key head; no rotation, no norm. */
static void check_attention(int type, int64_t size, int64_t length) {
    enum { STEPS = 3, QUERY_HEADS = 2 };
    const int64_t slot = 0, prompt = 0;
    void *prompt_keys = numbers(type, size * length), *prompt_values = numbers(type, size * length);
    void *keys = numbers(type, size * STEPS), *values = numbers(type, size * STEPS);
    void *heads = numbers(type, STEPS * 4 * size), *out = numbers(type, QUERY_HEADS * size);
    float *cos = calloc((size_t)size, 4), *sin = calloc((size_t)size, 4);
    for (int64_t d = 0; d < size; d++) cos[d] = 1;
    const struct attention layer = {type, 1, 1, QUERY_HEADS, 1, size, 0, length, STEPS, &slot, &prompt, &length,
                                    prompt_keys, prompt_values, keys, values, 0, 0, 0, 0.3};
    for (int64_t step = 0; step < STEPS; step++) {
        klimb_attend(&layer, (char *)heads + step * 4 * size * SIZES[type], cos, sin, step, out);
        for (int64_t h = 0; h < QUERY_HEADS; h++) {
            double total = 0, *sums = calloc((size_t)size, 8);
            for (int64_t k = 0; k <= length + step; k++) {
                const int64_t own = (k - length) * 4 * size; /* where its heads are, if it is the completion's */
                double score = 0;
                for (int64_t d = 0; d < size; d++)
                    score += 0.3 * get(type, heads, (step * 4 + h) * size + d) *
                             (k < length ? get(type, prompt_keys, d * length + k) : get(type, heads, own + 2 * size + d));
                total += exp(score);
                for (int64_t d = 0; d < size; d++)
                    sums[d] += exp(score) * (k < length ? get(type, prompt_values, k * size + d)
                                                        : get(type, heads, own + 3 * size + d));
            }
            for (int64_t d = 0; d < size; d++)
                require(get(type, out, h * size + d), sums[d] / total, type == FLOAT32 ? 2e-5 : 2e-2, "attention");
            free(sums);
        }
    }
    free(prompt_keys), free(prompt_values), free(keys), free(values), free(heads), free(out), free(cos), free(sin);
}

int main(void) {
    for (int path = 0; path < klimb_num_paths_here(); path++) {
        now = klimb_path_name(path);
        if (!klimb_use_path(path)) return 2;
        for (int type = FLOAT16; type <= FLOAT64; type++)
            for (int in_double = type == FLOAT64; in_double < 2; in_double++)
                for (int by_column = 0; by_column < 2; by_column++) {
                    check_sum(type, in_double, 1, 1, by_column);
                    check_sum(type, in_double, 300, 131, by_column);
                    check_sum(type, in_double, 37, 1500, by_column);
                    check_sum(type, in_double, 1100, 7, by_column);
                    check_sum(type, in_double, 20000, 5, by_column);
                    check_sum(type, in_double, 5, 33000, by_column);
                }
        for (int type = BFLOAT16; type <= FLOAT32; type++) {
            check_norm_and_gate(type, 1), check_norm_and_gate(type, 16), check_norm_and_gate(type, 75);
            check_log_probs(type, 5, 1), check_log_probs(type, 1040, 1), check_log_probs(type, 1055, 0.7);
            check_attention(type, 8, 5), check_attention(type, 80, 70);
        }
        printf("%s\n", now);
    }
    if (klimb_use_path(klimb_num_paths_here()) || klimb_use_path(-1)) return 3; /* what the processor cannot run */
    return 0;
}
