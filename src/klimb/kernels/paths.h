/* The paths: the same functions compiled for several kinds of processor, of which one is in use. */
#ifndef KLIMB_PATHS_H
#define KLIMB_PATHS_H

/* KLIMB_PLAIN builds the generic path alone, for compilers that fail at the others. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(KLIMB_PLAIN)
#define HAS_X86_PATHS 1
#else
#define HAS_X86_PATHS 0
#endif

enum path { GENERIC_PATH, AVX2_PATH, AVX512_PATH }; /* the better the later */

extern __attribute__((visibility("hidden"))) enum path klimb_path_in_use;

/* How many paths, from the generic one on, this machine can run. */
int klimb_num_paths_here(void);

#endif
