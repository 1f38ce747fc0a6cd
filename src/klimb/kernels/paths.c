/* Which paths this machine can run, and which of them is in use: the generic one until another is asked for. */
#include "paths.h"
#include <string.h>

#if HAS_X86_PATHS
#include <cpuid.h>
#endif

#ifdef __aarch64__
#define PLAIN_NAME "neon" /* which every 64-bit ARM processor has, and the compiler uses */
#else
#define PLAIN_NAME "generic"
#endif

enum path klimb_path_in_use = GENERIC_PATH;

static const char *const NAMES[] = {PLAIN_NAME, "avx2", "avx512"};

enum { NUM_PATHS = HAS_X86_PATHS ? 3 : 1 };

#if HAS_X86_PATHS
static int has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

/* Asked of the processor and of the system, which must keep the registers: names of features differ by compiler. */
static enum path best_path(void) {
    enum { FMA = 1 << 12, XSAVE_IN_USE = 1 << 27, AVX_ITSELF = 1 << 28, F16C = 1 << 29 };        /* leaf 1, ecx */
    enum { AVX2_ITSELF = 1 << 5, F = 1 << 16, DQ = 1 << 17, CD = 1 << 28, BW = 1 << 30 };        /* leaf 7, ebx */
    const unsigned VL = 1u << 31, YMM_KEPT = 0x06, ZMM_KEPT = 0xe6;
    unsigned eax, ebx, ecx, edx, kept, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, FMA | XSAVE_IN_USE | AVX_ITSELF | F16C)) return GENERIC_PATH;
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if (!has(kept, YMM_KEPT) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !has(ebx, AVX2_ITSELF))
        return GENERIC_PATH;
    return has(kept, ZMM_KEPT) && has(ebx, F | DQ | CD | BW | VL) ? AVX512_PATH : AVX2_PATH;
}
#else
static enum path best_path(void) { return GENERIC_PATH; }
#endif

/* The name of a path that was compiled, from the generic one on, or null where there are no more. */
const char *klimb_path_name(int path) { return path >= 0 && path < NUM_PATHS ? NAMES[path] : 0; }

/* How many of them this machine can run: the first ones. */
int klimb_num_paths_here(void) { return (int)best_path() + 1; }

/* Use a path that this machine can run; returns whether it can. */
int klimb_use_path(int path) {
    if (path < 0 || path > (int)best_path()) return 0;
    klimb_path_in_use = (enum path)path;
    return 1;
}
