/* What this machine can do at best, for benchmarks to compare with. */
#include "simd.h"
#include "threads.h"

typedef struct {
    const float *data;
    int64_t count;
    int64_t repeats;
    float *sums; /* one per thread, so that nothing is optimised away */
} ceiling;

/* Reads `count` floats `repeats` times. */
static void read_all(void *context, int64_t part, int64_t num_parts) {
    const ceiling *c = context;
    int64_t from = share(c->count / (8 * LANES), part, num_parts) * 8 * LANES;
    int64_t to = share(c->count / (8 * LANES), part + 1, num_parts) * 8 * LANES;
    vf sums[8] = {{0}};
    for (int64_t repeat = 0; repeat < c->repeats; repeat++)
        for (int64_t i = from; i < to; i += 8 * LANES)
            UNROLL for (int v = 0; v < 8; v++) {
                __builtin_prefetch(c->data + i + v * LANES + 1024);
                sums[v] += vload(c->data + i + v * LANES);
            }
    for (int v = 1; v < 8; v++) sums[0] += sums[v];
    c->sums[part] = vsum(sums[0]);
}

/* `count` rounds of twelve independent fused multiply-adds on registers. */
static void multiply_add(void *context, int64_t part, int64_t num_parts) {
    const ceiling *c = context;
    (void)num_parts;
    vf sums[12], factor = vload(c->data), shift = vload(c->data + LANES);
    for (int v = 0; v < 12; v++) sums[v] = factor * (float)v;
    for (int64_t i = 0; i < c->count; i++)
        UNROLL for (int v = 0; v < 12; v++) sums[v] = sums[v] * factor + shift;
    for (int v = 1; v < 12; v++) sums[0] += sums[v];
    c->sums[part] = vsum(sums[0]);
}
