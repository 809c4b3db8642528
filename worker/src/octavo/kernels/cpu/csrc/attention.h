/* What both attention kernels know of a step. */
#ifndef OCTAVO_ATTENTION_H
#define OCTAVO_ATTENTION_H

#include "simd.h"
#include "threads.h"

typedef struct {
    const float *q;
    const float *key_cache, *value_cache;
    const int32_t *query_starts, *context_lens, *block_tables;
    int64_t num_sequences, num_decodes, max_blocks;
    int64_t num_heads, num_kv_heads, head_dim, block_size;
    int64_t block_stride; /* elements from block to block, of either cache */
    float scale;
    int64_t window; /* 0: none */
    float *out;
} attention;

/* Where key `index` of a sequence begins in either cache. */
INLINE int64_t key_offset(const attention *a, const int32_t *table, int64_t kv_head,
                          int64_t index) {
    int64_t block = table[index / a->block_size];
    return block * a->block_stride +
           (kv_head * a->block_size + index % a->block_size) * a->head_dim;
}

/* Where keys [from, from + count) of a sequence begin; beyond `last`, the last one again. */
INLINE void key_offsets(const attention *a, const int32_t *table, int64_t kv_head, int64_t from,
                        int64_t count, int64_t last, int64_t *offsets) {
    int64_t block = from / a->block_size, in_block = from % a->block_size;
    int64_t at = key_offset(a, table, kv_head, from);
    for (int64_t j = 0; j < count; j++) {
        offsets[j] = at;
        if (from + j >= last) continue;
        at += a->head_dim;
        if (++in_block == a->block_size) {
            in_block = 0, block++;
            at = table[block] * a->block_stride + kv_head * a->block_size * a->head_dim;
        }
    }
}

/* The first key a query at this position sees. */
INLINE int64_t first_key(const attention *a, int64_t position) {
    return a->window ? max_of(position - a->window + 1, 0) : 0;
}

#endif
