/* Parallel regions on the OpenMP runtime that torch has already loaded.
 *
 * libgomp's entry points are called by name instead of through pragmas, so that the library
 * needs no -fopenmp, links to no runtime of its own (a second one would spin against torch's),
 * and works whichever compiler built it: GCC's libgomp and LLVM's libomp both export them.
 */
#ifndef OCTAVO_THREADS_H
#define OCTAVO_THREADS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern void GOMP_parallel(void (*body)(void *), void *data, unsigned num_threads, unsigned flags);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

typedef struct {
    void (*body)(void *context, int64_t thread, int64_t num_threads);
    void *context;
} region;

static void region_body(void *data) {
    const region *r = data;
    r->body(r->context, omp_get_thread_num(), omp_get_num_threads());
}

/* Run body(context, thread, n) for thread in 0 .. n, where n may be less than asked for. */
static void parallel(
    int64_t num_threads, void (*body)(void *, int64_t, int64_t), void *context) {
    if (num_threads <= 1) {
        body(context, 0, 1);
        return;
    }
    region r = {body, context};
    GOMP_parallel(region_body, &r, (unsigned)num_threads, 0);
}

/* The part of 0 .. count that a thread works on. */
static inline int64_t share(int64_t count, int64_t thread, int64_t num_threads) {
    return count * thread / num_threads;
}

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scratch memory of the calling thread, kept between calls; 64-byte aligned, contents undefined.
 * Under a megabyte in practice: without that much, the process cannot go on. */
static void *scratch(size_t size_bytes) {
    static __thread void *memory;
    static __thread size_t capacity;
    if (size_bytes > capacity) {
        free(memory);
        capacity = 0;
        size_t rounded = (size_bytes + 65535) & ~(size_t)65535;
        memory = aligned_alloc(64, rounded);
        if (!memory) {
            fprintf(stderr, "octavo: no memory for %zu bytes of scratch space\n", rounded);
            abort();
        }
        capacity = rounded;
    }
    return memory;
}

#endif
