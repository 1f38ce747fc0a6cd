/* What a decoder in Llama's shape does between its matrix products when it reads one token of every
 * completion: norm, rotation, attention to the prompt and to the tokens before, gate.
 *
 * Everything is computed in float32, whatever it is stored in, and rounded once.
 * Keys lie numbers first, (…, size, keys), so that the scores of neighbouring keys fill a register; values lie
 * keys first, (…, keys, size). Loads may run past the last key by up to PAST numbers, which the caller
 * leaves room for and whose content has no meaning.
 */
#include "vectors.h"

enum {
    QUERIES = 4,         /* of one key head, taken together */
    MOST_SIZE = 512      /* numbers a head */
};

struct attention {
    int64_t type, num_threads, num_rows, num_query_heads, num_key_heads, size;
    int64_t window;                    /* how many tokens, its own included, one may see; 0 for all */
    int64_t longest, capacity;         /* keys that there is room for, of a prompt and of a completion */
    const int64_t *slots;              /* where each row's own keys lie */
    const int64_t *prompt_of;          /* by row */
    const int64_t *prompt_lengths;
    const void *prompt_keys, *prompt_values;
    void *keys, *values;
    const void *query_norm, *key_norm; /* weights over a head's numbers, or null */
    double epsilon, scaling;
};

struct gate {
    int64_t type, num_rows, size, next;
    const char *gate_up;
    char *out;
};

struct queries { /* of one key head: what was seen so far, softmax kept up to a common factor */
    float numbers[QUERIES][MOST_SIZE], out[QUERIES][MOST_SIZE + MOST_LANES];
    float most[QUERIES], total[QUERIES], scaling;
};

struct attending {
    const struct attention *layer;
    const char *heads;
    const float *cos, *sin;
    int64_t num_seen, next;
    char *out;
};

#define rms_norm NAME(rms_norm)
#define gated_row NAME(gated_row)
#define turned NAME(turned)
#define see_block NAME(see_block)
#define see NAME(see)
#define attend_one NAME(attend_one)
#define STEPS "decode_steps.h"
#include "processors.h"

void klimb_rms_norm(int type, int64_t num_rows, int64_t size, const void *x, const void *weight, double epsilon,
                    void *out) {
    CHOSEN(norm_rows)(type, num_rows, size, x, weight, (float)epsilon, out);
}

/* out = silu(gate) · up, of rows in which the two stand side by side. */
void klimb_gated(int type, int64_t num_threads, int64_t num_rows, int64_t size, const void *gate_up, void *out) {
    struct gate job = {type, num_rows, size, 0, gate_up, out};
    klimb_in_parallel(CHOSEN(gated_rows), &job, num_threads, num_rows * size);
}

/* Rotate queries and keys, remember keys and values, attend.
 *
 * heads   (rows, query heads, then key heads, then value heads, size), before rotation
 * cos sin (rows, size), float32, sin with the sign that its half has
 * out     (rows, query heads, size)
 */
void klimb_attend(const struct attention *layer, const void *heads, const float *cos, const float *sin,
                  int64_t num_seen, void *out) {
    struct attending job = {layer, heads, cos, sin, num_seen, 0, out};
    const int64_t work = layer->num_rows * layer->num_query_heads * layer->size * (layer->longest + num_seen);
    klimb_in_parallel(CHOSEN(attend_all), &job, layer->num_threads, work);
}
