/* Vectors of LANES numbers, compiled once for each path: as many as one of its registers holds.
 *
 * GCC keeps an array of vectors in registers where each fits one, and in memory where it has to be broken up.
 */
#undef LANES
#if AVX == 512
#define LANES 16
#elif AVX == 2
#define LANES 8
#else
#define LANES 4
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE floats all(float value) { return (floats){0} + value; }

INLINE floats load(enum stored type, const void *from, int64_t index) {
    if (type == FLOAT32) {
        floats value;
        memcpy(&value, (const float *)from + index, sizeof value);
        return value;
    }
    halves value;
    memcpy(&value, (const uint16_t *)from + index, sizeof value);
    words wide;
    convert(value, wide);
    return (floats)(wide << 16);
}

INLINE halves rounded(floats value) { /* to nearest, ties to even; what is not a number stays so */
    const words bits = (words)value;
    const words near = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const words is_none = (words)(value != value);
    const words bits_kept = (near & ~is_none) | (is_none & 0x7fc0);
    halves half;
    convert(bits_kept, half);
    return half;
}

INLINE void store(enum stored type, void *to, int64_t index, floats value, int64_t count) {
    const size_t numbers = (size_t)(count < LANES ? count : LANES);
    if (type == FLOAT32) {
        if (numbers == LANES) memcpy((float *)to + index, &value, sizeof value);
        else memcpy((float *)to + index, &value, 4 * numbers);
        return;
    }
    const halves half = rounded(value);
    if (numbers == LANES) memcpy((uint16_t *)to + index, &half, sizeof half);
    else memcpy((uint16_t *)to + index, &half, 2 * numbers);
}

INLINE floats load_some(enum stored type, const void *from, int64_t index, int64_t count) {
    if (count >= LANES) return load(type, from, index);
    char rest[4 * LANES] = {0};
    const size_t item = type == FLOAT32 ? 4 : 2;
    memcpy(rest, (const char *)from + index * (int64_t)item, item * (size_t)count);
    return load(type, rest, 0);
}

INLINE float sum_of(floats value) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += value[i];
    return total;
}

INLINE floats exponential(floats x) { /* Cephes's expf: 1e-7 relative; 0 below −87, ∞ above 89, none for none */
    const floats low = all(-87.0f), high = all(89.0f), magic = all(12582912.0f);
    const ints is_low = x < low, is_high = x > high;
    const floats held = (floats)(((ints)x & ~(is_low | is_high)) | ((ints)low & is_low) | ((ints)high & is_high));
    const floats turns = (held * 1.44269504f + magic) - magic;
    const floats r = (held - turns * 0.693359375f) + turns * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ints exponent;
    convert(turns, exponent);
    exponent = (exponent + 127) << 23;
    return (floats)((ints)(p * (floats)exponent) & ~is_low);
}
