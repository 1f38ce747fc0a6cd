/* STEPS, compiled for each kind of processor; CHOSEN(name) is the one for the processor at hand. */
#define NAME(name) name##_anywhere
#include "vector_steps.h"
#include STEPS
#undef NAME

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=haswell")
#define NAME(name) name##_avx2
#include "vector_steps.h"
#include STEPS
#undef NAME
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=skylake-avx512,prefer-vector-width=512")
#define NAME(name) name##_avx512
#include "vector_steps.h"
#include STEPS
#undef NAME
#pragma GCC pop_options
#define CHOSEN(name) \
    (__builtin_cpu_supports("avx512bw") ? name##_avx512 : __builtin_cpu_supports("avx2") ? name##_avx2 : name##_anywhere)
#else
#define CHOSEN(name) name##_anywhere
#endif
