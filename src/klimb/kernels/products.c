/* Matrix products in float32 for processors with AVX2: C = A B, C = A B + D, of matrices of any strides.
 *
 * A is read six rows at a time, as it lies where its rows lie along k, and packed otherwise; B is packed in panels
 * of sixteen columns, a strip of it by each thread. Nothing is compiled for a shape and nothing need be laid out
 * beforehand. Every element is summed in the same order whatever the number of threads, rows and columns.
 */
#include "vectors.h"

struct product {
    int64_t num_rows, num_columns, depth;
    const float *a, *b, *plus; /* plus: D, or null */
    float *out;
    int64_t a_row, a_step, b_step, b_column, out_row, out_column, plus_row, plus_column; /* strides, in numbers */
    int64_t tile_rows, tile_columns, next;
};

#include "paths.h"

#if HAS_X86_PATHS
#include <immintrin.h>
#include <stdlib.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE static inline __attribute__((always_inline, target("avx2,fma")))

enum {
    ROWS = 6, PANEL = 16,     /* of C, held in twelve registers */
    DEPTH = 632,              /* of a run along k, at most, but for a rounding up to a multiple of 8 */
    BLOCK_ROWS = 96,          /* of A, kept in the second-level cache */
    STRIP = 512               /* columns of B that a thread packs at once, at most */
};

AVX2_INLINE void transpose(__m256 r[8]) {
    __m256 t[8], s[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
    }
}

/* One panel of B, columns from `first`, k from `from` to `end`; columns that there are not become 0. */
AVX2 static void pack_panel(const struct product *job, int64_t first, int64_t from, int64_t end, float *to) {
    const int64_t count = job->num_columns - first < PANEL ? job->num_columns - first : PANEL;
    const float *b = job->b + first * job->b_column;
    int64_t k = from;
    if (count == PANEL && job->b_column == 1) {
        for (; k < end; k++, to += PANEL) {
            const float *row = b + k * job->b_step;
            _mm256_store_ps(to, _mm256_loadu_ps(row));
            _mm256_store_ps(to + 8, _mm256_loadu_ps(row + 8));
        }
    } else if (count == PANEL && job->b_step == 1) {
        for (; k + 8 <= end; k += 8, to += 8 * PANEL)
            for (int half = 0; half < 2; half++) {
                __m256 r[8];
                for (int j = 0; j < 8; j++) r[j] = _mm256_loadu_ps(b + (8 * half + j) * job->b_column + k);
                transpose(r);
                for (int j = 0; j < 8; j++) _mm256_store_ps(to + j * PANEL + 8 * half, r[j]);
            }
    }
    for (; k < end; k++, to += PANEL)
        for (int64_t j = 0; j < PANEL; j++) to[j] = j < count ? b[j * job->b_column + k * job->b_step] : 0;
}

/* Rows of A whose numbers lie along its columns, six by six, k from `from` to `end`. */
AVX2 static void pack_rows(const struct product *job, int64_t first, int64_t last, int64_t from, int64_t end, float *to) {
    for (int64_t k = from; k < end; k++) {
        const float *a = job->a + k * job->a_step;
        float *at = to + (k - from) * ROWS;
        for (int64_t i = first; i < last; i += ROWS, at += ROWS * (end - from)) {
            const int64_t count = last - i < ROWS ? last - i : ROWS;
            if (count == ROWS && job->a_row == 1) memcpy(at, a + i, ROWS * sizeof(float));
            else for (int64_t r = 0; r < count; r++) at[r] = a[(i + r) * job->a_row];
        }
    }
}

/* Six rows, or fewer, of one panel of C over one run of k. */
AVX2_INLINE void small(int rows, const struct product *job, const float *a, int64_t a_row, int64_t a_step,
                       const float *b, int64_t depth, int64_t row, int64_t column, int is_first) {
    /* One name for each register: an array of them would be kept in memory. */
#define EACH(of) of(0) of(1) of(2) of(3) of(4) of(5)
#define START(i) __m256 low##i = _mm256_setzero_ps(), high##i = low##i;
#define ADD(i)                                                                      \
    if (i < rows) {                                                                 \
        const __m256 value = _mm256_broadcast_ss(a + i * a_row + k * a_step);       \
        low##i = _mm256_fmadd_ps(value, low, low##i);                               \
        high##i = _mm256_fmadd_ps(value, high, high##i);                            \
    }
#define KEEP(i) sum[i][0] = low##i, sum[i][1] = high##i;
    EACH(START)
    for (int64_t k = 0; k < depth; k++, b += PANEL) {
        const __m256 low = _mm256_load_ps(b), high = _mm256_load_ps(b + 8);
        EACH(ADD)
    }
    __m256 sum[ROWS][2];
    EACH(KEEP)
    const int64_t count = job->num_columns - column < PANEL ? job->num_columns - column : PANEL;
    float *out = job->out + row * job->out_row + column * job->out_column;
    const float *plus = is_first ? job->plus : out;
    const int64_t plus_row = is_first ? job->plus_row : job->out_row;
    const int64_t plus_column = is_first ? job->plus_column : job->out_column;
    if (is_first && plus) plus += row * plus_row + column * plus_column;
    if (job->out_column == 1 && count == PANEL && (!plus || plus_column == 1)) {
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++) {
                __m256 value = sum[i][half];
                if (plus) value = _mm256_add_ps(value, _mm256_loadu_ps(plus + i * plus_row + 8 * half));
                _mm256_storeu_ps(out + i * job->out_row + 8 * half, value);
            }
        return;
    }
    if (job->out_row == 1 && rows == ROWS && count == PANEL && (!plus || plus_row == 1)) {
        for (int half = 0; half < 2; half++) {
            __m256 r[8];
            for (int i = 0; i < ROWS; i++) r[i] = sum[i][half];
            r[6] = r[7] = _mm256_setzero_ps();
            transpose(r);
            for (int j = 0; j < 8; j++) {
                __m128 four = _mm256_castps256_ps128(r[j]), two = _mm256_extractf128_ps(r[j], 1);
                if (plus) {
                    const float *from = plus + (8 * half + j) * plus_column;
                    four = _mm_add_ps(four, _mm_loadu_ps(from));
                    two = _mm_add_ps(two, _mm_castpd_ps(_mm_load_sd((const double *)(const void *)(from + 4))));
                }
                float *to = out + (8 * half + j) * job->out_column;
                _mm_storeu_ps(to, four);
                _mm_storel_pi((__m64 *)(void *)(to + 4), two);
            }
        }
        return;
    }
    float all_of[ROWS][PANEL];
    for (int i = 0; i < rows; i++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(all_of[i] + 8 * half, sum[i][half]);
    for (int64_t j = 0; j < count; j++)
        for (int i = 0; i < rows; i++)
            out[i * job->out_row + j * job->out_column] =
                all_of[i][j] + (plus ? plus[i * plus_row + j * plus_column] : 0);
}

AVX2 static void some_rows(int64_t rows, const struct product *job, const float *a, int64_t a_row, int64_t a_step,
                           const float *b, int64_t depth, int64_t row, int64_t column, int is_first) {
    switch (rows) {
    case 1: small(1, job, a, a_row, a_step, b, depth, row, column, is_first); break;
    case 2: small(2, job, a, a_row, a_step, b, depth, row, column, is_first); break;
    case 3: small(3, job, a, a_row, a_step, b, depth, row, column, is_first); break;
    case 4: small(4, job, a, a_row, a_step, b, depth, row, column, is_first); break;
    case 5: small(5, job, a, a_row, a_step, b, depth, row, column, is_first); break;
    default: /* what products are made of: strides that the compiler knows */
        if (a_step == 1) small(6, job, a, a_row, 1, b, depth, row, column, is_first);
        else small(6, job, a, 1, ROWS, b, depth, row, column, is_first);
    }
}

AVX2 static void one_tile(const struct product *job, int64_t top, int64_t left, float *strip, float *block) {
    const int64_t bottom = top + job->tile_rows < job->num_rows ? top + job->tile_rows : job->num_rows;
    const int64_t right = left + job->tile_columns < job->num_columns ? left + job->tile_columns : job->num_columns;
    const int64_t runs = job->depth ? (job->depth + DEPTH - 1) / DEPTH : 1;
    const int64_t run = (job->depth + runs - 1) / runs / 8 * 8 + 8;
    const int is_packed = job->a_step != 1;
    for (int64_t from = 0; from == 0 || from < job->depth; from += run) {
        const int64_t end = from + run < job->depth ? from + run : job->depth, depth = end - from;
        for (int64_t column = left; column < right; column += PANEL)
            pack_panel(job, column, from, end, strip + (column - left) * run);
        for (int64_t first = top; first < bottom; first += BLOCK_ROWS) {
            const int64_t last = first + BLOCK_ROWS < bottom ? first + BLOCK_ROWS : bottom;
            if (is_packed) pack_rows(job, first, last, from, end, block);
            for (int64_t column = left; column < right; column += PANEL)
                for (int64_t row = first; row < last; row += ROWS) {
                    const int64_t rows = last - row < ROWS ? last - row : ROWS;
                    const float *a = is_packed ? block + (row - first) * depth : job->a + row * job->a_row + from;
                    some_rows(rows, job, a, is_packed ? 1 : job->a_row, is_packed ? ROWS : 1,
                              strip + (column - left) * run, depth, row, column, from == 0);
                }
        }
    }
}

static void tiles(void *at) {
    struct product *job = at;
    static __thread float *room; /* kept for the thread's next product */
    const size_t strip = (size_t)(DEPTH + 8) * STRIP, block = (size_t)(BLOCK_ROWS + ROWS) * (DEPTH + 8);
    if (!room) room = aligned_alloc(64, (strip + block) * sizeof(float) / 64 * 64 + 64);
    const int64_t across = (job->num_columns + job->tile_columns - 1) / job->tile_columns;
    const int64_t count = across * ((job->num_rows + job->tile_rows - 1) / job->tile_rows);
    for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < count;)
        one_tile(job, i / across * job->tile_rows, i % across * job->tile_columns, room, room + strip);
}

static int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int klimb_can_multiply(void) { return klimb_num_paths_here() > AVX2_PATH; }

/* sizes and strides in the order of `struct product`. */
void klimb_multiply(const int64_t *sizes, const float *a, const float *b, const float *plus, float *out,
                    int64_t num_threads) {
    struct product job = {sizes[0], sizes[1], sizes[2], a, b, plus, out, sizes[3], sizes[4], sizes[5], sizes[6],
                          sizes[7], sizes[8], sizes[9], sizes[10], 0, 0, 0};
    if (!job.num_rows || !job.num_columns) return;
    const int64_t strips = (job.num_columns + STRIP - 1) / STRIP;
    job.tile_columns = up_to((job.num_columns + strips - 1) / strips, PANEL);
    job.tile_rows = up_to((job.num_rows + num_threads - 1) / num_threads, ROWS);
    klimb_in_parallel(tiles, &job, num_threads, job.num_rows * job.num_columns * job.depth / 8);
}
#else
int klimb_can_multiply(void) { return 0; }
void klimb_multiply(const int64_t *sizes, const float *a, const float *b, const float *plus, float *out,
                    int64_t num_threads) {
    (void)sizes, (void)a, (void)b, (void)plus, (void)out, (void)num_threads;
}
#endif
