/* The sums in one type, COMPUTE: float or double. Included once for each by weighted_sum_steps.h, for each path. */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define TYPED(name) NAME_(JOIN(name, COMPUTE))
#define NAME_(name) NAME(name)

/* Bring `count` elements, `step` bytes apart, into a contiguous buffer. */
static void TYPED(bring)(enum stored type, const char *from, int64_t step, int64_t count, COMPUTE *to) {
    int64_t j = 0;
    if (type == FLOAT32 && step == 4) {
        for (; j < count; j++) to[j] = (COMPUTE)float32_at(from + 4 * j);
    } else if (type == BFLOAT16 && step == 2) {
        for (; j < count; j++) to[j] = (COMPUTE)bfloat16_at(from + 2 * j);
    } else {
        for (; j < count; j++) {
            const char *at = from + j * step;
            switch (type) {
                case FLOAT16: to[j] = (COMPUTE)float16_at(at); break;
                case BFLOAT16: to[j] = (COMPUTE)bfloat16_at(at); break;
                case FLOAT32: to[j] = (COMPUTE)float32_at(at); break;
                case FLOAT64: to[j] = (COMPUTE)float64_at(at); break;
            }
        }
    }
}

/* sums[j] += w[0] rows[0][j] + … for up to four rows; `ahead` bytes on, what comes next is fetched. */
static void TYPED(add_rows)(const COMPUTE *w, const COMPUTE *const *rows, int64_t num_rows, int64_t count,
                                   int64_t ahead, COMPUTE *restrict sums) {
    if (num_rows < 4) {
        for (int64_t k = 0; k < num_rows; k++)
            for (int64_t j = 0; j < count; j++) sums[j] += w[k] * rows[k][j];
        return;
    }
    const COMPUTE *restrict r0 = rows[0], *restrict r1 = rows[1], *restrict r2 = rows[2], *restrict r3 = rows[3];
    const COMPUTE w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
    const int64_t line = 64 / sizeof(COMPUTE);
    int64_t first = 0;
    for (; first + line <= count; first += line) {
        __builtin_prefetch((const char *)(r0 + first) + ahead);
        __builtin_prefetch((const char *)(r1 + first) + ahead);
        __builtin_prefetch((const char *)(r2 + first) + ahead);
        __builtin_prefetch((const char *)(r3 + first) + ahead);
        for (int64_t j = first; j < first + line; j++)
            sums[j] = (((sums[j] + w0 * r0[j]) + w1 * r1[j]) + w2 * r2[j]) + w3 * r3[j];
    }
    for (int64_t j = first; j < count; j++)
        sums[j] = (((sums[j] + w0 * r0[j]) + w1 * r1[j]) + w2 * r2[j]) + w3 * r3[j];
}

/* Contiguous rows pass by a tile of partial sums that stays in the cache. */
static void TYPED(wide)(const struct matrix *m, const COMPUTE *w, double *totals) {
    COMPUTE *const sums = JOIN(sums, COMPUTE), (*const buffer)[PIECE] = JOIN(pieces, COMPUTE);
    const int is_half = sizeof(COMPUTE) == sizeof(float) && m->column_step == 2 && AVX == 512;
    const int is_direct = m->type == JOIN(STORED, COMPUTE) && m->column_step == (int64_t)sizeof(COMPUTE);
    const int64_t piece = is_direct || is_half ? TILE : PIECE;
    /* A long row is fetched as it is read, the next four short ones while these are; a buffer is at hand. */
    const int is_long = m->num_columns * (int64_t)sizeof(COMPUTE) > 4 * ROW_AHEAD;
    const int64_t ahead = !is_direct ? 0 : is_long ? ROW_AHEAD : 4 * m->row_step;
    for (int64_t block = 0; block < m->num_rows; block += FLUSH_ROWS) {
        const int64_t end = least(block + FLUSH_ROWS, m->num_rows);
        memset(sums, 0, m->num_columns * sizeof(COMPUTE));
        for (int64_t i = block; i < end; i += 4) {
            const int64_t num_rows = least(end - i, 4);
            for (int64_t first = 0; first < m->num_columns; first += piece) {
                const int64_t count = least(m->num_columns - first, piece);
                const char *corner = m->data + i * m->row_step + first * m->column_step;
                if (is_half) {
                    add_half_rows(m->type, (const float *)w + i, corner, m->row_step, num_rows, count, (float *)sums);
                    continue;
                }
                const COMPUTE *rows[4];
                for (int64_t k = 0; k < num_rows; k++) {
                    const char *at = corner + k * m->row_step;
                    if (!is_direct) TYPED(bring)(m->type, at, m->column_step, count, buffer[k]);
                    rows[k] = is_direct ? (const COMPUTE *)at : buffer[k];
                }
                TYPED(add_rows)(w + i, rows, num_rows, count, ahead, sums + first);
            }
        }
        for (int64_t j = 0; j < m->num_columns; j++) totals[j] += sums[j];
    }
}

/* A few columns of a block of rows, their sums in registers. */
#define STRIPE(NAME, WIDTH)                                                                                  \
    static void TYPED(NAME)(const COMPUTE *w, const char *at, int64_t row_step, int64_t num_rows,     \
                                   double *totals) {                                                         \
        COMPUTE sums[WIDTH] = {0};                                                                           \
        for (int64_t i = 0; i < num_rows; i++, at += row_step) {                                             \
            const COMPUTE *row = (const COMPUTE *)at, weight = w[i];                                         \
            for (int j = 0; j < (WIDTH); j += 64 / (int)sizeof(COMPUTE))                                       \
                __builtin_prefetch((const char *)(row + j) + ROWS_AHEAD * row_step);                                   \
            for (int j = 0; j < WIDTH; j++) sums[j] += weight * row[j];                                      \
        }                                                                                                    \
        for (int j = 0; j < WIDTH; j++) totals[j] += sums[j];                                                \
    }
STRIPE(stripe_wide, (int)(STRIPE_BYTES / sizeof(COMPUTE)))
STRIPE(stripe_16, 16)
STRIPE(stripe_1, 1)

/* Few columns: a block of rows is in the cache while stripe after stripe of it is summed. */
static void TYPED(narrow)(const struct matrix *m, const COMPUTE *w, double *totals) {
    enum { STRIPE_COLUMNS = STRIPE_BYTES / sizeof(COMPUTE) };
    for (int64_t block = 0; block < m->num_rows; block += FLUSH_ROWS) {
        const int64_t num_rows = least(m->num_rows - block, FLUSH_ROWS);
        const char *at = m->data + block * m->row_step;
        int64_t j = 0;
        for (; j + STRIPE_COLUMNS <= m->num_columns; j += STRIPE_COLUMNS, at += STRIPE_BYTES)
            TYPED(stripe_wide)(w + block, at, m->row_step, num_rows, totals + j);
        for (; j + 16 <= m->num_columns; j += 16, at += 16 * sizeof(COMPUTE))
            TYPED(stripe_16)(w + block, at, m->row_step, num_rows, totals + j);
        for (; j < m->num_columns; j++, at += sizeof(COMPUTE))
            TYPED(stripe_1)(w + block, at, m->row_step, num_rows, totals + j);
    }
}

/* Four contiguous columns at once, so that the weights are loaded once for the four. */
static void TYPED(dot_four)(const COMPUTE *restrict w, const char *columns, int64_t step, int64_t count,
                                   double *totals) {
    enum { LANES = 128 / sizeof(COMPUTE) };
    const COMPUTE *restrict c0 = (const COMPUTE *)columns, *restrict c1 = (const COMPUTE *)(columns + step);
    const COMPUTE *restrict c2 = (const COMPUTE *)(columns + 2 * step), *restrict c3 = (const COMPUTE *)(columns + 3 * step);
    COMPUTE s0[LANES] = {0}, s1[LANES] = {0}, s2[LANES] = {0}, s3[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int64_t j = 0; j < LANES; j += 64 / (int64_t)sizeof(COMPUTE)) {
            __builtin_prefetch((const char *)(c0 + i + j) + FETCH_AHEAD);
            __builtin_prefetch((const char *)(c1 + i + j) + FETCH_AHEAD);
            __builtin_prefetch((const char *)(c2 + i + j) + FETCH_AHEAD);
            __builtin_prefetch((const char *)(c3 + i + j) + FETCH_AHEAD);
        }
        for (int64_t j = 0; j < LANES; j++) s0[j] += w[i + j] * c0[i + j];
        for (int64_t j = 0; j < LANES; j++) s1[j] += w[i + j] * c1[i + j];
        for (int64_t j = 0; j < LANES; j++) s2[j] += w[i + j] * c2[i + j];
        for (int64_t j = 0; j < LANES; j++) s3[j] += w[i + j] * c3[i + j];
    }
    for (; i < count; i++) s0[0] += w[i] * c0[i], s1[0] += w[i] * c1[i], s2[0] += w[i] * c2[i], s3[0] += w[i] * c3[i];
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; j++)
            s0[j] += s0[j + half], s1[j] += s1[j + half], s2[j] += s2[j + half], s3[j] += s3[j + half];
    totals[0] += s0[0], totals[1] += s1[0], totals[2] += s2[0], totals[3] += s3[0];
}

/* Contiguous columns: a dot product for each, over a block of weights that stays in the cache. */
static double TYPED(dot)(const COMPUTE *restrict w, const COMPUTE *restrict column, int64_t count) {
    enum { LANES = 256 / sizeof(COMPUTE) };
    COMPUTE sums[LANES] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int64_t j = 0; j < LANES; j += 64 / (int64_t)sizeof(COMPUTE))
            __builtin_prefetch((const char *)(column + i + j) + FETCH_AHEAD);
        for (int64_t j = 0; j < LANES; j++) sums[j] += w[i + j] * column[i + j];
    }
    for (; i < count; i++) rest += w[i] * column[i];
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; j++) sums[j] += sums[j + half];
    return (double)sums[0] + (double)rest;
}

static void TYPED(tall)(const struct matrix *m, const COMPUTE *w, double *totals) {
    COMPUTE *const buffer = JOIN(pieces, COMPUTE)[0];
    const int is_half = sizeof(COMPUTE) == sizeof(float) && SIZES[m->type] == 2 && AVX == 512;
    const int is_direct = m->type == JOIN(STORED, COMPUTE);
    const int64_t piece = is_direct || is_half ? DOT_ROWS : PIECE;
    int64_t j = 0;
    if (is_direct && sizeof(COMPUTE) == sizeof(float) && m->num_rows <= SHORT_ROWS && AVX == 512)
        for (; j + 16 <= m->num_columns; j += 16)
            dot_short_columns(m->data + j * m->column_step, m->column_step, m->num_rows, (const float *)w, totals + j);
    for (int64_t block = 0; block < m->num_rows; block += DOT_ROWS) {
        int64_t column = j;
        if (is_direct && m->num_rows > DOT_ROWS) /* shorter ones are one stretch of memory, best read in order */
            for (; column + 4 <= m->num_columns; column += 4)
                TYPED(dot_four)(w + block, m->data + column * m->column_step + block * m->row_step, m->column_step,
                                least(DOT_ROWS, m->num_rows - block), totals + column);
        for (; column < m->num_columns; column++)
            for (int64_t i = block; i < least(block + DOT_ROWS, m->num_rows); i += piece) {
                const int64_t count = least(least(block + DOT_ROWS, m->num_rows) - i, piece);
                const char *at = m->data + column * m->column_step + i * m->row_step;
                if (is_half) {
                    totals[column] += dot_halves(m->type, (const float *)w + i, at, count);
                    continue;
                }
                if (!is_direct) TYPED(bring)(m->type, at, m->row_step, count, buffer);
                totals[column] += TYPED(dot)(w + i, is_direct ? (const COMPUTE *)at : buffer, count);
            }
    }
}

#if AVX == 2
#include "weighted_sum_avx2_typed.h"
#endif

/* Add the weighted sum of at most TILE columns to their totals. */
static void TYPED(add_tile)(const struct matrix *m, const COMPUTE *w, double *totals) {
#if AVX == 2
    if (TYPED(pass_contiguous)(m, w, totals)) return;
#endif
    const int64_t size = SIZES[m->type];
    if (m->row_step == size && m->column_step != size)
        TYPED(tall)(m, w, totals);
    else if (m->type == JOIN(STORED, COMPUTE) && m->column_step == size && m->num_columns <= NARROW && m->row_step == size * m->num_columns)
        TYPED(narrow)(m, w, totals);
    else
        TYPED(wide)(m, w, totals);
}

#undef STRIPE
#undef TYPED
#undef JOIN
#undef JOIN_
#undef NAME_
