/* STEPS, compiled once for each path; CHOSEN(name) is the function of the path in use.
 *
 * A file names its steps (#define STEPS "mine_steps.h"), includes this file, and calls CHOSEN(function)(…). In the
 * steps each function and type has a name of its own for each path, NAME(function), and AVX says what may be used:
 * 0 none, 2 AVX2 with FMA and F16C, 512 those and AVX-512 F, BW, CD, DQ and VL. Code by hand stands behind
 * `#if AVX == 2`, or `if (AVX == 2)` where it compiles anywhere, and needs no target attribute of its own: the pragma
 * here covers all that the steps include, intrinsics as well. To add a path: a value of `enum path` (paths.h), its
 * name and what the processor must have (paths.c), a block here with the same features, and its line in CHOSEN.
 */
#include "paths.h"

#if HAS_X86_PATHS
#include <immintrin.h>
#endif

#define NAME(name) name##_generic
#define AVX 0
#include STEPS
#undef AVX
#undef NAME

#if HAS_X86_PATHS

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,tune=haswell")
#endif
#define NAME(name) name##_avx2
#define AVX 2
#include STEPS
#undef AVX
#undef NAME
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,tune=skylake-avx512,prefer-vector-width=512")
#endif
#define NAME(name) name##_avx512
#define AVX 512
#include STEPS
#undef AVX
#undef NAME
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define CHOSEN(name) \
    (klimb_path_in_use == AVX512_PATH ? name##_avx512 : klimb_path_in_use == AVX2_PATH ? name##_avx2 : name##_generic)
#else
#define CHOSEN(name) name##_generic
#endif
