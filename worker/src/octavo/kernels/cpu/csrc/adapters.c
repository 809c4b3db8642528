/* LoRA: what each token's adapter adds to a product of merged matrices, B (A x), in place.
 *
 * Token by token, so that no bit depends on the company; in the order of the adapters, whose
 * matrices then still lie in cache. Ranks are multiples of 16, and so of a vector.
 */
#include "simd.h"
#include "threads.h"

#define MAX_RANK 256
/* Below this many products a parallel region costs more than it saves. */
#define MIN_PARALLEL_PRODUCTS 262144

typedef struct {
    const float *x; /* [tokens, in_features], rows x_stride apart */
    int64_t x_stride, in_features;
    const float *a; /* [slots, parts, max_rank, in_features] */
    int64_t a_slot_stride, a_part_stride;
    const float *b; /* of each slot: where the table says, [sum of out_features, rank] */
    int64_t b_slot_stride;
    const int64_t *table; /* [slots, num_projections, 2]: where B begins, and the rank */
    int64_t index, num_projections;
    const int64_t *order; /* tokens that have an adapter, by adapter */
    int64_t num_ordered;
    const int32_t *slots; /* of all tokens */
    const int64_t *out_features;
    int64_t num_parts;
    float *y; /* [tokens, sum of out_features] */
    int64_t y_stride;
} adapters_task;

/* inner = A x for LANES of the ranks. */
static void shrink_ranks(const float *x, const float *a, int64_t size, float *inner) {
    vf sums[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= size; k += LANES) {
        vf values = vload(x + k);
        UNROLL for (int r = 0; r < LANES; r++) sums[r] += values * vload(a + r * size + k);
    }
    if (k < size) {
        vf values = vload_part(x + k, size - k);
        for (int r = 0; r < LANES; r++) sums[r] += values * vload_part(a + r * size + k, size - k);
    }
    vstore(inner, vsum_each(sums));
}

/* y += B inner */
static void expand_rows(const float *inner, const float *b, int64_t rank, int64_t num_rows,
                        float *y) {
    int64_t n = 0;
    for (; n + LANES <= num_rows; n += LANES) {
        vf sums[LANES] = {0};
        for (int64_t r = 0; r < rank; r += LANES) {
            vf values = vload(inner + r);
            UNROLL for (int j = 0; j < LANES; j++)
                sums[j] += values * vload(b + (n + j) * rank + r);
        }
        vstore(y + n, vload(y + n) + vsum_each(sums));
    }
    for (; n < num_rows; n++) {
        vf sum = {0};
        for (int64_t r = 0; r < rank; r += LANES) sum += vload(inner + r) * vload(b + n * rank + r);
        y[n] += vsum(sum);
    }
}

static void adapt_tokens(void *context, int64_t part, int64_t num_parts) {
    const adapters_task *t = context;
    float inner[MAX_RANK];
    int64_t to = share(t->num_ordered, part + 1, num_parts);
    for (int64_t i = share(t->num_ordered, part, num_parts); i < to; i++) {
        int64_t token = t->order[i], slot = t->slots[token];
        const int64_t *entry = t->table + (slot * t->num_projections + t->index) * 2;
        const float *a = t->a + slot * t->a_slot_stride, *b = t->b + slot * t->b_slot_stride;
        float *y = t->y + token * t->y_stride;
        int64_t rank = entry[1];
        b += entry[0];
        if (rank == 0) continue;
        for (int64_t p = 0; p < t->num_parts; p++, a += t->a_part_stride) {
            for (int64_t r = 0; r < rank; r += LANES)
                shrink_ranks(t->x + token * t->x_stride, a + r * t->in_features, t->in_features,
                             inner + r);
            expand_rows(inner, b, rank, t->out_features[p], y);
            b += t->out_features[p] * rank;
            y += t->out_features[p];
        }
    }
}

/* As if all had rank 16. */
static int64_t adapters_products(const adapters_task *t) {
    return t->num_ordered * (t->num_parts * t->in_features + t->y_stride) * 16;
}

static void add_adapters(adapters_task *t, int64_t num_threads) {
    if (adapters_products(t) < MIN_PARALLEL_PRODUCTS) num_threads = 1;
    parallel(num_threads, parts_for(t->num_ordered, num_threads), adapt_tokens, t);
}
