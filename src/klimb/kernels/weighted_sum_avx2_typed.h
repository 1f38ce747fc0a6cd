/* The loops of weighted_sum_avx2.h in one type, COMPUTE. Included by weighted_sum_typed.h. */

#define VECTOR JOIN(vector, COMPUTE)
#define HAND(name) JOIN(name, COMPUTE)
#define SUMMED JOIN(STORED, COMPUTE)
enum { TYPED(WIDTH) = VECTOR_BYTES / sizeof(COMPUTE) };

BY_HAND VECTOR TYPED(load_up_to)(const enum stored type, const char *at, int64_t count, int64_t num_before) {
    return count < TYPED(WIDTH) ? HAND(load_some)(type, at, count, num_before) : HAND(load)(type, at);
}

/* sums[j] += w[0] row_0[j] + w[apart] row_1[j] + …, rows `step` bytes apart. */
BY_HAND void TYPED(add_rows_at_once)(const enum stored type, const int num_rows, const COMPUTE *w, int64_t apart,
                                     const char *rows, int64_t step, int64_t count, COMPUTE *sums) {
    enum { WIDTH = TYPED(WIDTH) };
    const int64_t size = SIZES[type];
    const int line = LINE_BYTES / (int)size, num_vectors = line / WIDTH;
    VECTOR weights[STREAMS], sum[LINE_BYTES / 2 / WIDTH];
    for (int k = 0; k < num_rows; k++) weights[k] = HAND(all)(w[k * apart]);
    int64_t j = 0;
    for (; j + line <= count; j += line) {
        for (int v = 0; v < num_vectors; v++) sum[v] = HAND(load)(SUMMED, (const char *)(sums + j + v * WIDTH));
        for (int k = 0; k < num_rows; k++)
            for (int v = 0; v < num_vectors; v++)
                sum[v] = HAND(fma)(weights[k], HAND(load)(type, rows + k * step + (j + v * WIDTH) * size), sum[v]);
        for (int v = 0; v < num_vectors; v++) HAND(store)(sums + j + v * WIDTH, sum[v]);
    }
    for (; j < count; j += WIDTH) { /* the sums have room for whole vectors */
        sum[0] = HAND(load)(SUMMED, (const char *)(sums + j));
        for (int k = 0; k < num_rows; k++)
            sum[0] = HAND(fma)(weights[k], TYPED(load_up_to)(type, rows + k * step + j * size, count - j, j), sum[0]);
        HAND(store)(sums + j, sum[0]);
    }
}

/* The same for `num_steps` rows of each stream, in few columns, whose sums stay in registers. */
BY_HAND void TYPED(add_few)(const enum stored type, const int num_vectors, const COMPUTE *w, int64_t apart, const char *rows,
                            int64_t row_step, int64_t num_steps, int64_t count, COMPUTE *sums) {
    enum { WIDTH = TYPED(WIDTH) };
    VECTOR sum[FEW_VECTORS];
    const int64_t last = (num_vectors - 1) * WIDTH;
    for (int v = 0; v < num_vectors; v++) sum[v] = HAND(load)(SUMMED, (const char *)(sums + v * WIDTH));
    for (int64_t i = 0; i < num_steps; i++)
        for (int k = 0; k < STREAMS; k++) {
            const char *at = rows + (i + k * apart) * row_step;
            const VECTOR weight = HAND(all)(w[i + k * apart]);
            for (int v = 0; v + 1 < num_vectors; v++)
                sum[v] = HAND(fma)(weight, HAND(load)(type, at + v * WIDTH * SIZES[type]), sum[v]);
            sum[num_vectors - 1] = HAND(fma)(
                weight, TYPED(load_up_to)(type, at + last * SIZES[type], count - last, last), sum[num_vectors - 1]);
        }
    for (int v = 0; v < num_vectors; v++) HAND(store)(sums + v * WIDTH, sum[v]);
}

/* Sum `num_steps` rows of each stream. */
BY_HAND void TYPED(add_streams)(const enum stored type, const struct matrix *m, const COMPUTE *w, int64_t apart,
                                const char *rows, int64_t num_steps, COMPUTE *sums) {
    const int64_t count = m->num_columns, step = m->row_step;
    switch ((count + TYPED(WIDTH) - 1) / TYPED(WIDTH)) {
        case 1: TYPED(add_few)(type, 1, w, apart, rows, step, num_steps, count, sums); return;
        case 2: TYPED(add_few)(type, 2, w, apart, rows, step, num_steps, count, sums); return;
        case 3: TYPED(add_few)(type, 3, w, apart, rows, step, num_steps, count, sums); return;
        case FEW_VECTORS: TYPED(add_few)(type, FEW_VECTORS, w, apart, rows, step, num_steps, count, sums); return;
    }
    for (int64_t i = 0; i < num_steps; i++)
        TYPED(add_rows_at_once)(type, STREAMS, w + i, apart, rows + i * step, apart * step, count, sums);
}

/* Add the sums to the totals, and begin anew. */
BY_HAND void TYPED(flush)(COMPUTE *sums, int64_t count, double *totals) {
    for (int64_t j = 0; j < count; j++) totals[j] += sums[j];
    memset(sums, 0, (size_t)count * sizeof(COMPUTE));
}

/* Contiguous rows pass by a tile of partial sums, one from each quarter of a block at once. */
BY_HAND void TYPED(pass_rows)(const enum stored type, const struct matrix *m, const COMPUTE *w, double *totals) {
    enum { FLUSH_STEPS = FLUSH_ROWS / STREAMS };
    COMPUTE *const sums = JOIN(sums, COMPUTE);
    const int64_t count = m->num_columns, block_rows = STREAMS * rows_apart(m->row_step);
    int64_t num_steps_summed = 0;
    memset(sums, 0, (size_t)count * sizeof(COMPUTE));
    for (int64_t block = 0; block < m->num_rows; block += block_rows) {
        const int64_t num_rows = least(block_rows, m->num_rows - block), quarter = num_rows / STREAMS;
        for (int64_t i = 0; i < quarter; i += FLUSH_STEPS) {
            const int64_t num_steps = least(FLUSH_STEPS, quarter - i);
            if (num_steps_summed + num_steps > FLUSH_STEPS) {
                TYPED(flush)(sums, count, totals);
                num_steps_summed = 0;
            }
            TYPED(add_streams)(type, m, w + block + i, quarter, m->data + (block + i) * m->row_step, num_steps, sums);
            num_steps_summed += num_steps;
        }
        for (int64_t i = block + STREAMS * quarter; i < block + num_rows; i++) /* of the last block, up to three */
            TYPED(add_rows_at_once)(type, 1, w + i, 0, m->data + i * m->row_step, 0, count, sums);
    }
    TYPED(flush)(sums, count, totals);
}

/* Dot products of columns `step` bytes apart, each in two vectors of sums. */
BY_HAND void TYPED(dot_at_once)(const enum stored type, const int num_columns, const COMPUTE *w, const char *columns,
                                int64_t step, int64_t count, double *totals, int64_t apart) {
    enum { WIDTH = TYPED(WIDTH) };
    const int64_t size = SIZES[type];
    VECTOR sums[STREAMS][2];
    for (int k = 0; k < num_columns; k++) sums[k][0] = sums[k][1] = HAND(zero)();
    int64_t i = 0;
    for (; i + 2 * WIDTH <= count; i += 2 * WIDTH)
        for (int k = 0; k < num_columns; k++)
            for (int v = 0; v < 2; v++)
                sums[k][v] = HAND(fma)(HAND(load)(SUMMED, (const char *)(w + i + v * WIDTH)),
                                       HAND(load)(type, columns + k * step + (i + v * WIDTH) * size), sums[k][v]);
    for (int v = 0; v < 2 && i < count; v++, i += WIDTH)
        for (int k = 0; k < num_columns; k++)
            sums[k][v] = HAND(fma)(TYPED(load_up_to)(SUMMED, (const char *)(w + i), count - i, i),
                                   TYPED(load_up_to)(type, columns + k * step + i * size, count - i, i), sums[k][v]);
    for (int k = 0; k < num_columns; k++) totals[k * apart] += HAND(sum)(HAND(add)(sums[k][0], sums[k][1]));
}

/* Contiguous columns, one from each quarter of the tile at once, over a block of weights that stays in the cache. */
BY_HAND void TYPED(pass_columns)(const enum stored type, const struct matrix *m, const COMPUTE *w, double *totals) {
    const int64_t quarter = m->num_columns / STREAMS, far = quarter * m->column_step, size = SIZES[type];
    for (int64_t block = 0; block < m->num_rows; block += DOT_ROWS) {
        const int64_t end = least(block + DOT_ROWS, m->num_rows);
        for (int64_t j = 0; j < quarter; j++)
            for (int64_t i = block; i < end; i += FLUSH_LANES)
                TYPED(dot_at_once)(type, STREAMS, w + i, m->data + j * m->column_step + i * size, far,
                                   least(FLUSH_LANES, end - i), totals + j, quarter);
        for (int64_t j = STREAMS * quarter; j < m->num_columns; j++)
            for (int64_t i = block; i < end; i += FLUSH_LANES)
                TYPED(dot_at_once)(type, 1, w + i, m->data + j * m->column_step + i * size, 0,
                                   least(FLUSH_LANES, end - i), totals + j, 0);
    }
}

/* Sum a tile whose rows or columns are contiguous; returns whether they are. */
static int TYPED(pass_contiguous)(const struct matrix *m, const COMPUTE *w, double *totals) {
    const int64_t size = SIZES[m->type];
    const int in_columns = m->row_step == size && m->column_step != size;
    if (!in_columns && m->column_step != size) return 0;
#define PASS(TYPE)                                   \
    case TYPE:                                       \
        if (in_columns)                              \
            TYPED(pass_columns)(TYPE, m, w, totals); \
        else                                         \
            TYPED(pass_rows)(TYPE, m, w, totals);    \
        break;
    switch (m->type) { PASS(FLOAT16) PASS(BFLOAT16) PASS(FLOAT32) PASS(FLOAT64) }
#undef PASS
    return 1;
}

#undef VECTOR
#undef HAND
#undef SUMMED
