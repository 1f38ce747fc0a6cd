/* out[j] = Σ_i weights[i] · matrix[i][j] / divisor: the matrix is read once, at the memory's speed.
 *
 * float32 and the half types are multiplied and summed in float32 over FLUSH_ROWS rows at a time, or
 * over the lanes of a dot product, and those sums are added in float64; float64 is summed in float64.
 * The order of every addition depends on the path, on the number of rows and on their layout, so the caller may
 * split the columns over threads as it likes without changing a bit.
 *
 * Three ways through memory, by layout:
 *   wide    contiguous rows pass, four at a time, by a tile of sums in the cache
 *   narrow  the same with few columns, whose sums stay in registers
 *   tall    contiguous columns: a dot product for each
 * Elements that are not contiguous, or stored in another type than they are summed in, are first
 * brought into a small buffer, a piece at a time. The AVX2 path has loops of its own for contiguous rows and columns
 * of any type: weighted_sum_avx2.h.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "paths.h"

#if HAS_X86_PATHS
#include <immintrin.h>
#endif

enum {
    FLUSH_ROWS = 256,     /* rows summed in float32 before they are added in float64 */
    TILE = 32768,         /* columns whose sums stay in the second-level cache beside the rows that pass */
    PIECE = 1024,         /* elements brought into the buffer at a time */
    NARROW = 512,         /* columns up to which sums go through registers */
    STRIPE_BYTES = 512,   /* of a row, summed in eight 512-bit registers */
    DOT_ROWS = 16384,     /* rows whose weights stay in the cache while column after column is summed */
    SHORT_ROWS = 1024,    /* rows up to which the columns' dot products are taken sixteen at a time */
    FETCH_AHEAD = 4096,   /* bytes of a column */
    ROW_AHEAD = 2048,     /* bytes of a row */
    ROWS_AHEAD = 8,       /* of a stripe */
};

enum stored { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };
static const int64_t SIZES[] = {2, 2, 4, 8};

struct matrix {
    enum stored type;
    const char *data;
    int64_t num_rows, num_columns, row_step, column_step; /* steps in bytes */
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline double float64_at(const char *at) {
    double value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float float32_at(const char *at) {
    float value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float bfloat16_at(const char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    return float32_at((const char *)&bits);
}

static inline float float16_at(const char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * (float)fraction;
    const uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    return float32_at((const char *)&bits);
}

/* By hand for AVX-512, where compilers do not find the way: half types converted as they pass, and
 * the dot products of many short columns. */
#if HAS_X86_PATHS
#define AVX512 __attribute__((target("avx512f")))

AVX512 static inline __m512 sixteen_halves(enum stored type, const char *at, __mmask16 mask) {
    /* A masked load of 32-bit pairs would read beyond the end: the rest of a row comes through a buffer. */
    __m256i halves;
    if (mask == 0xffff) {
        halves = _mm256_loadu_si256((const __m256i *)at);
    } else {
        uint16_t rest[16] = {0};
        memcpy(rest, at, 2 * (size_t)__builtin_popcount(mask));
        halves = _mm256_loadu_si256((const __m256i *)rest);
    }
    if (type == FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* sums[j] += Σ_k w[k] row_k[j] for up to four rows of halves, `step` bytes apart. */
AVX512 static void add_half_rows(enum stored type, const float *w, const char *rows, int64_t step, int64_t num_rows,
                                 int64_t count, float *sums) {
    for (int64_t j = 0; j < count; j += 16) {
        const __mmask16 mask = count - j < 16 ? (__mmask16)((1 << (count - j)) - 1) : 0xffff;
        __m512 sum = _mm512_maskz_loadu_ps(mask, sums + j);
        for (int64_t k = 0; k < num_rows; k++) {
            const char *at = rows + k * step + 2 * j;
            if ((j & 16) == 0) __builtin_prefetch(at + ROW_AHEAD);
            sum = _mm512_fmadd_ps(_mm512_set1_ps(w[k]), sixteen_halves(type, at, mask), sum);
        }
        _mm512_mask_storeu_ps(sums + j, mask, sum);
    }
}

AVX512 static double dot_halves(enum stored type, const float *w, const char *column, int64_t count) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __builtin_prefetch(column + 2 * i + FETCH_AHEAD);
        even = _mm512_fmadd_ps(_mm512_loadu_ps(w + i), sixteen_halves(type, column + 2 * i, 0xffff), even);
        odd = _mm512_fmadd_ps(_mm512_loadu_ps(w + i + 16), sixteen_halves(type, column + 2 * i + 32, 0xffff), odd);
    }
    for (; i < count; i += 16) {
        const __mmask16 mask = count - i < 16 ? (__mmask16)((1 << (count - i)) - 1) : 0xffff;
        even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, w + i), sixteen_halves(type, column + 2 * i, mask), even);
    }
    return (double)_mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

/* Sixteen short columns of float32: their sixteen sums are turned on their side and added at once. */
AVX512 static void dot_short_columns(const char *columns, int64_t step, int64_t count, const float *w, double *totals) {
    __m512 sums[16];
    for (int c = 0; c < 16; c++) {
        const float *column = (const float *)(columns + c * step);
        sums[c] = _mm512_setzero_ps();
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 mask = count - i < 16 ? (__mmask16)((1 << (count - i)) - 1) : 0xffff;
            __builtin_prefetch((const char *)(column + i) + FETCH_AHEAD);
            sums[c] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, w + i), _mm512_maskz_loadu_ps(mask, column + i), sums[c]);
        }
    }
    /* Each round adds neighbours and halves the number of registers: 16, 8, 4, 2, 1. */
    for (int c = 0; c < 8; c++) {
        const __m512 a = sums[c], b = sums[c + 8];
        sums[c] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int c = 0; c < 4; c++) {
        const __m512 a = sums[c], b = sums[c + 4];
        sums[c] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    for (int c = 0; c < 2; c++) {
        const __m512 a = sums[c], b = sums[c + 2];
        sums[c] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(sums[0], sums[1], 0x88), _mm512_shuffle_ps(sums[0], sums[1], 0xdd));
    const __m512i lane_of = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    const __m512 ordered = _mm512_permutexvar_ps(lane_of, all);
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(ordered));
    const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(ordered), 1)));
    _mm512_storeu_pd(totals, _mm512_add_pd(_mm512_loadu_pd(totals), low));
    _mm512_storeu_pd(totals + 8, _mm512_add_pd(_mm512_loadu_pd(totals + 8), high));
}
#else
static void add_half_rows(enum stored type, const float *w, const char *rows, int64_t step, int64_t num_rows,
                          int64_t count, float *sums) {
    (void)type, (void)w, (void)rows, (void)step, (void)num_rows, (void)count, (void)sums;
}
static double dot_halves(enum stored type, const float *w, const char *column, int64_t count) {
    (void)type, (void)w, (void)column, (void)count;
    return 0;
}
static void dot_short_columns(const char *columns, int64_t step, int64_t count, const float *w, double *totals) {
    (void)columns, (void)step, (void)count, (void)w, (void)totals;
}
#endif

/* Room for a tile's sums and for rows in the type that they are summed in; one of each, whatever the path. */
static _Thread_local float sums_float[TILE], pieces_float[4][PIECE];
static _Thread_local double sums_double[TILE], pieces_double[4][PIECE];

#define STEPS "weighted_sum_steps.h"
#include "processors.h"

/* Sum a matrix of `type`.
 *
 * `in_double` says what the weights are, contiguous, and the products are formed in: float32 or
 * float64. The sums are divided in float64; `out` is contiguous float64 where `out_double`, else
 * float32.
 */
void klimb_weighted_sum(int type, int in_double, const void *weights, const void *data, int64_t num_rows,
                        int64_t num_columns, int64_t row_step, int64_t column_step, double divisor, int out_double,
                        void *out) {
    static _Thread_local double totals[TILE];
    for (int64_t first = 0; first < num_columns; first += TILE) {
        const int64_t width = least(num_columns - first, TILE);
        const char *corner = (const char *)data + first * column_step;
        const struct matrix tile = {(enum stored)type, corner, num_rows, width, row_step, column_step};
        memset(totals, 0, width * sizeof(double));
        if (in_double)
            CHOSEN(add_tile_double)(&tile, weights, totals);
        else
            CHOSEN(add_tile_float)(&tile, weights, totals);
        if (out_double)
            for (int64_t j = 0; j < width; j++) ((double *)out)[first + j] = totals[j] / divisor;
        else
            for (int64_t j = 0; j < width; j++) ((float *)out)[first + j] = (float)(totals[j] / divisor);
    }
}
