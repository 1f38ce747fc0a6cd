/* The sums by hand for AVX2, FMA and F16C, where compilers do not find the way; weighted_sum_steps.h includes it for
 * that path alone, with the instructions turned on.
 *
 * Elements are converted to the type that they are summed in as they pass. Memory is read fastest in STREAMS places
 * at once that are far apart, each in order, without prefetch instructions: the processor's own prefetchers follow four streams
 * well, rows of a few hundred bytes side by side badly. So a block of rows, or a tile of columns, is cut in quarters.
 */
#define BY_HAND static inline __attribute__((always_inline))

typedef __m256 vector_float;
typedef __m256d vector_double;

enum {
    VECTOR_BYTES = 32,
    LINE_BYTES = 64,
    STREAMS = 4,
    APART_BYTES = 1 << 18,  /* between the streams, where rows are short: long stretches of memory all the same */
    APART_ROWS = 4096,      /* and at most so many rows, whose weights stay in the cache */
    FLUSH_LANES = 4096,     /* rows of a column summed in sixteen lanes of float32 before they are added in float64 */
    FEW_VECTORS = 4,        /* of sums that stay in registers */
};

BY_HAND __m256 floats_of(enum stored type, __m128i halves) {
    if (type == FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* Fewer halves than the `lanes`, eight or four, into the first of them. Not a byte from beyond them is read: where as many
 * as there are lanes end with them, these are loaded and moved down. */
BY_HAND __m128i some_halves(const char *at, int64_t count, const int lanes, int64_t num_before) {
    static const uint8_t moves[32] = {0,    1,    2,    3,    4,    5,    6,    7,    8,    9,    10,
                                      11,   12,   13,   14,   15,   0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                                      0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};
    const __m128i *const from = (const __m128i *)(at + 2 * (count - lanes));
    if (num_before + count >= lanes)
        return _mm_shuffle_epi8(lanes == 8 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from),
                                _mm_loadu_si128((const __m128i *)(moves + 2 * (lanes - count))));
    uint16_t some[8] = {0};
    for (int64_t i = 0; i < count; i++) memcpy(some + i, at + 2 * i, 2);
    return _mm_loadu_si128((const __m128i *)some);
}

BY_HAND __m256i first_lanes(int64_t count, const int is_double) {
    return is_double ? _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3))
                     : _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* How many rows lie between two streams: a power of two, so that whole blocks of four streams fill FLUSH_ROWS. */
static inline int64_t rows_apart(int64_t row_step) {
    int64_t apart = APART_ROWS;
    while (apart > 1 && apart * llabs(row_step) > APART_BYTES) apart /= 2;
    return apart;
}

/* --- eight in float32 --- */

BY_HAND __m256 zero_float(void) { return _mm256_setzero_ps(); }
BY_HAND __m256 all_float(float value) { return _mm256_set1_ps(value); }
BY_HAND __m256 add_float(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
BY_HAND __m256 fma_float(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
BY_HAND void store_float(float *at, __m256 value) { _mm256_storeu_ps(at, value); }

BY_HAND __m256 load_float(enum stored type, const char *at) {
    if (type == FLOAT32) return _mm256_loadu_ps((const float *)at);
    return floats_of(type, _mm_loadu_si128((const __m128i *)at));
}

/* Fewer than eight, the other lanes 0. */
BY_HAND __m256 load_some_float(enum stored type, const char *at, int64_t count, int64_t num_before) {
    if (type == FLOAT32) return _mm256_maskload_ps((const float *)at, first_lanes(count, 0));
    return floats_of(type, some_halves(at, count, 8, num_before));
}

BY_HAND double sum_float(__m256 a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return (double)_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* --- four in float64 --- */

BY_HAND __m256d zero_double(void) { return _mm256_setzero_pd(); }
BY_HAND __m256d all_double(double value) { return _mm256_set1_pd(value); }
BY_HAND __m256d add_double(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
BY_HAND __m256d fma_double(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
BY_HAND void store_double(double *at, __m256d value) { _mm256_storeu_pd(at, value); }

BY_HAND __m256d load_double(enum stored type, const char *at) {
    if (type == FLOAT64) return _mm256_loadu_pd((const double *)at);
    if (type == FLOAT32) return _mm256_cvtps_pd(_mm_loadu_ps((const float *)at));
    return _mm256_cvtps_pd(_mm256_castps256_ps128(floats_of(type, _mm_loadl_epi64((const __m128i *)at))));
}

/* Fewer than four, the other lanes 0. */
BY_HAND __m256d load_some_double(enum stored type, const char *at, int64_t count, int64_t num_before) {
    if (type == FLOAT64) return _mm256_maskload_pd((const double *)at, first_lanes(count, 1));
    if (type == FLOAT32)
        return _mm256_cvtps_pd(_mm_maskload_ps((const float *)at, _mm256_castsi256_si128(first_lanes(count, 0))));
    return _mm256_cvtps_pd(_mm256_castps256_ps128(floats_of(type, some_halves(at, count, 4, num_before))));
}

BY_HAND double sum_double(__m256d a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
