/* Attention of single tokens: a stream over the pages, limited by memory bandwidth.
 *
 * A unit of work is one token and one KV head with the query heads that share it. Parts have
 * equal numbers of keys; a unit cut between parts leaves partial results that are merged after.
 * Online softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax".
 */
#include "attention.h"

#define GROUP_HEADS 16 /* query heads handled at once; larger groups take several passes */
#define TILE_KEYS 128
#define SPLIT_KEYS 32 /* keys are dealt out in such pieces */

/* Running softmax of up to GROUP_HEADS heads; sums: [heads, head_dim], not yet divided. */
typedef struct {
    float largest[GROUP_HEADS], total[GROUP_HEADS];
    float *sums;
} partial;

INLINE void prefetch_head(const float *head, int64_t size) {
    for (int64_t d = 0; d < size; d += 16) __builtin_prefetch(head + d);
}

/* What to fetch while LANES keys are scored: pages lie anywhere, so that no hardware prefetcher
 * follows from one to the next. */
typedef struct {
    const float *keys, *values;
    const int64_t *next_keys, *next_values; /* [LANES]: offsets */
} fetches;

/* The share of one head's scores, spread out so that the memory's queues never fill. */
INLINE void fetch(const fetches *f, int64_t head, int64_t heads, int64_t size) {
    for (int64_t j = LANES * head / heads; j < LANES * (head + 1) / heads; j++) {
        prefetch_head(f->keys + f->next_keys[j], size);
        prefetch_head(f->values + f->next_values[j], size);
    }
}

/* scores[h][j] = q_h . k_j * scale for LANES keys. */
static void score_keys(const float *q, int64_t heads, int64_t size, const int64_t *offsets,
                       const fetches *f, float scale, float *scores) {
    const float *keys[LANES];
    for (int j = 0; j < LANES; j++) keys[j] = f->keys + offsets[j];
    for (int64_t h = 0; h < heads; h++, q += size) {
        vf dots[LANES] = {{0}};
        int64_t d = 0;
        fetch(f, h, heads, size);
        for (; d + LANES <= size; d += LANES) {
            vf query = vload(q + d);
            UNROLL for (int j = 0; j < LANES; j++) dots[j] += query * vload(keys[j] + d);
        }
        if (d < size) {
            vf query = vload_part(q + d, size - d);
            for (int j = 0; j < LANES; j++) dots[j] += query * vload_part(keys[j] + d, size - d);
        }
        vstore(scores + h * TILE_KEYS, vsum_each(dots) * vset(scale));
    }
}

/* The same for keys that follow each other, `size` a constant: no addresses to look up. */
INLINE void score_run(const float *q, int64_t heads, int size, const float *keys,
                      const fetches *f, float scale, float *scores) {
    for (int64_t h = 0; h < heads; h++, q += size) {
        vf dots[LANES] = {{0}};
        fetch(f, h, heads, size);
        for (int d = 0; d < size; d += LANES) {
            vf query = vload(q + d);
            UNROLL for (int j = 0; j < LANES; j++) dots[j] += query * vload(keys + j * size + d);
        }
        vstore(scores + h * TILE_KEYS, vsum_each(dots) * vset(scale));
    }
}

static void score_tile(const attention *a, const float *q, int64_t heads, int64_t padded,
                       const int64_t *offsets, float *scores) {
    int64_t size = a->head_dim;
    for (int64_t j = 0; j < padded; j += LANES) {
        const int64_t *at = offsets + j;
        fetches f = {a->key_cache, a->value_cache, j + LANES < padded ? at + LANES : at, at};
        int is_run = at[LANES - 1] - at[0] == (LANES - 1) * size;
        const float *keys = a->key_cache + at[0];
        if (is_run && size == 64) score_run(q, heads, 64, keys, &f, a->scale, scores + j);
        else if (is_run && size == 128) score_run(q, heads, 128, keys, &f, a->scale, scores + j);
        else score_keys(q, heads, size, at, &f, a->scale, scores + j);
    }
}

/* sums[h][column ..] = sums * shrink[h] + weights[h][j] v_j for a few heads and vectors. */
INLINE void add_values(int heads, int vectors, const float *weights, const float *shrink,
                       const float *values, const int64_t *offsets, int64_t num_keys,
                       int64_t size, float *sums) {
    vf total[4][4];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int v = 0; v < vectors; v++)
            total[h][v] = vload(sums + h * size + v * LANES) * vset(shrink[h]);
    for (int64_t j = 0; j < num_keys; j++) {
        const float *value = values + offsets[j];
        UNROLL for (int v = 0; v < vectors; v++) {
            vf column = vload(value + v * LANES);
            UNROLL for (int h = 0; h < heads; h++)
                total[h][v] += vset(weights[h * TILE_KEYS + j]) * column;
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int v = 0; v < vectors; v++)
            vstore(sums + h * size + v * LANES, total[h][v]);
}

#define ADD_VALUES(heads)                                                                    \
    static void add_values_##heads(const float *weights, const float *shrink,                \
                                   const float *values, const int64_t *offsets,              \
                                   int64_t num_keys, int64_t size, float *sums) {            \
        int64_t d = 0;                                                                       \
        for (; d + 4 * LANES <= size; d += 4 * LANES)                                        \
            add_values(heads, 4, weights, shrink, values + d, offsets, num_keys, size,       \
                       sums + d);                                                            \
        for (; d + LANES <= size; d += LANES)                                                \
            add_values(heads, 1, weights, shrink, values + d, offsets, num_keys, size,       \
                       sums + d);                                                            \
        for (; d < size; d++)                                                                \
            for (int h = 0; h < heads; h++) {                                                \
                float total = sums[h * size + d] * shrink[h];                                \
                for (int64_t j = 0; j < num_keys; j++)                                       \
                    total += weights[h * TILE_KEYS + j] * values[offsets[j] + d];            \
                sums[h * size + d] = total;                                                  \
            }                                                                                \
    }
ADD_VALUES(1)
ADD_VALUES(2)
ADD_VALUES(3)
ADD_VALUES(4)

/* Scores become weights exp(score - largest); returns how much earlier sums shrink. */
INLINE float soften(float *scores, int64_t padded, float *largest, float *total) {
    vf most = vset(*largest);
    for (int64_t j = 0; j < padded; j += LANES) most = vmax(most, vload(scores + j));
    float top = vmax_lane(most);
    vf sum = {0};
    for (int64_t j = 0; j < padded; j += LANES) {
        vf weight = vexp(vload(scores + j) - vset(top));
        vstore(scores + j, weight);
        sum += weight;
    }
    float shrink = expf(*largest - top);
    *total = *total * shrink + vsum(sum);
    *largest = top;
    return shrink;
}

/* Fold keys [from, to) (at most TILE_KEYS) of one unit into the running softmax. */
static void fold_tile(const attention *a, const float *q, int64_t heads, const int32_t *table,
                      int64_t kv_head, int64_t from, int64_t to, partial *state) {
    float scores[GROUP_HEADS * TILE_KEYS], shrink[GROUP_HEADS];
    int64_t offsets[TILE_KEYS];
    int64_t count = to - from, padded = (count + LANES - 1) / LANES * LANES;
    int64_t size = a->head_dim;
    key_offsets(a, table, kv_head, from, padded, to - 1, offsets);
    score_tile(a, q, heads, padded, offsets, scores);
    for (int64_t h = 0; h < heads; h++) {
        float *row = scores + h * TILE_KEYS;
        for (int64_t j = count; j < padded; j++) row[j] = -INFINITY;
        shrink[h] = soften(row, padded, &state->largest[h], &state->total[h]);
    }
    for (int64_t h = 0; h < heads; h += 4) {
        const float *w = scores + h * TILE_KEYS, *values = a->value_cache;
        float *sums = state->sums + h * size;
        switch (min_of(heads - h, 4)) {
        case 1: add_values_1(w, shrink + h, values, offsets, count, size, sums); break;
        case 2: add_values_2(w, shrink + h, values, offsets, count, size, sums); break;
        case 3: add_values_3(w, shrink + h, values, offsets, count, size, sums); break;
        default: add_values_4(w, shrink + h, values, offsets, count, size, sums); break;
        }
    }
}

static void start_partial(partial *state, int64_t heads, int64_t size) {
    for (int64_t h = 0; h < heads; h++) state->largest[h] = -INFINITY, state->total[h] = 0;
    memset(state->sums, 0, (size_t)(heads * size) * sizeof(float));
}

/* Attention of one group of heads over keys [from, to). */
static void fold_keys(const attention *a, const float *q, int64_t heads, const int32_t *table,
                      int64_t kv_head, int64_t from, int64_t to, partial *state) {
    start_partial(state, heads, a->head_dim);
    for (; from < to; from += TILE_KEYS)
        fold_tile(a, q, heads, table, kv_head, from, min_of(from + TILE_KEYS, to), state);
}

static void write_result(const partial *state, int64_t heads, int64_t size, float *out) {
    for (int64_t h = 0; h < heads; h++) {
        float scale = 1.0f / state->total[h];
        for (int64_t d = 0; d < size; d++) out[h * size + d] = state->sums[h * size + d] * scale;
    }
}

/* One unit: a token, a KV head and a pass of its query heads. */
typedef struct {
    const float *q;
    float *out;
    const int32_t *table;
    int64_t kv_head, heads, first, last; /* keys [first, last) */
} unit;

typedef struct {
    const attention *a;
    int64_t passes;     /* per KV head */
    int64_t num_units;  /* sequences x KV heads x passes */
    int64_t num_pieces; /* of SPLIT_KEYS keys, over all units */
    partial *ends;      /* [num_parts, 2]: a part's first and last unit, if cut */
    int64_t *end_units; /* [num_parts, 2]: which unit, or -1 */
} decoding;

static unit unit_at(const decoding *task, int64_t index) {
    const attention *a = task->a;
    int64_t group = a->num_heads / a->num_kv_heads, pass = index % task->passes;
    int64_t kv_head = index / task->passes % a->num_kv_heads;
    int64_t sequence = index / task->passes / a->num_kv_heads;
    int64_t head = kv_head * group + pass * GROUP_HEADS;
    int64_t at = (a->query_starts[sequence] * a->num_heads + head) * a->head_dim;
    int64_t last = a->context_lens[sequence];
    return (unit){a->q + at, a->out + at, a->block_tables + sequence * a->max_blocks, kv_head,
                  min_of(group - pass * GROUP_HEADS, GROUP_HEADS), first_key(a, last - 1), last};
}

static int64_t pieces_of(const unit *u) {
    return (u->last - u->first + SPLIT_KEYS - 1) / SPLIT_KEYS;
}

static void decode_range(void *context, int64_t part, int64_t num_parts) {
    const decoding *task = context;
    const attention *a = task->a;
    int64_t from = share(task->num_pieces, part, num_parts);
    int64_t to = share(task->num_pieces, part + 1, num_parts);
    int64_t *end_units = task->end_units + 2 * part;
    end_units[0] = end_units[1] = -1;
    partial whole = {.sums = scratch((size_t)(GROUP_HEADS * a->head_dim) * sizeof(float))};
    int64_t before = 0;
    for (int64_t index = 0; index < task->num_units && before < to; index++) {
        unit u = unit_at(task, index);
        int64_t pieces = pieces_of(&u);
        int64_t first = max_of(from - before, 0), last = min_of(to - before, pieces);
        before += pieces;
        if (first >= last) continue;
        int is_cut = first > 0 || last < pieces;
        int end = first > 0 ? 0 : 1; /* begun by an earlier part, or left to a later one */
        partial *state = is_cut ? &task->ends[2 * part + end] : &whole;
        fold_keys(a, u.q, u.heads, u.table, u.kv_head, u.first + first * SPLIT_KEYS,
                  min_of(u.first + last * SPLIT_KEYS, u.last), state);
        if (is_cut) end_units[end] = index;
        else write_result(state, u.heads, a->head_dim, u.out);
    }
}

static void merge(partial *into, const partial *from, int64_t heads, int64_t size) {
    for (int64_t h = 0; h < heads; h++) {
        float top = into->largest[h] > from->largest[h] ? into->largest[h] : from->largest[h];
        float keep = expf(into->largest[h] - top), add = expf(from->largest[h] - top);
        into->largest[h] = top;
        into->total[h] = into->total[h] * keep + from->total[h] * add;
        for (int64_t d = h * size; d < (h + 1) * size; d++)
            into->sums[d] = into->sums[d] * keep + from->sums[d] * add;
    }
}

/* Pieces of one unit lie in consecutive parts: fold each into the first of them. */
static void merge_ends(const decoding *task, int64_t num_parts) {
    partial *into = NULL;
    int64_t current = -1;
    unit u = {0};
    for (int64_t i = 0; i < 2 * num_parts; i++) {
        if (task->end_units[i] < 0) continue;
        if (task->end_units[i] == current) {
            merge(into, &task->ends[i], u.heads, task->a->head_dim);
            continue;
        }
        if (into) write_result(into, u.heads, task->a->head_dim, u.out);
        into = &task->ends[i];
        current = task->end_units[i];
        u = unit_at(task, current);
    }
    if (into) write_result(into, u.heads, task->a->head_dim, u.out);
}

#define MIN_PARALLEL_ATTENTION 65536 /* multiplications */

static void attend_decodes(const attention *a, int64_t num_threads) {
    int64_t group = a->num_heads / a->num_kv_heads;
    decoding task = {.a = a, .passes = (group + GROUP_HEADS - 1) / GROUP_HEADS};
    task.num_units = a->num_decodes * a->num_kv_heads * task.passes;
    for (int64_t index = 0; index < task.num_units; index++) {
        unit u = unit_at(&task, index);
        task.num_pieces += pieces_of(&u);
        if (u.last == 0) memset(u.out, 0, (size_t)(u.heads * a->head_dim) * sizeof(float));
    }
    if (task.num_pieces * SPLIT_KEYS * 2 * min_of(group, GROUP_HEADS) * a->head_dim <
        MIN_PARALLEL_ATTENTION)
        num_threads = 1;
    int64_t num_parts = parts_for(task.num_pieces, num_threads);
    size_t sums = (size_t)(GROUP_HEADS * a->head_dim) * sizeof(float);
    size_t header = sizeof(partial) + sizeof(int64_t);
    uint8_t *memory = malloc((size_t)num_parts * 2 * (header + sums));
    task.ends = (partial *)memory;
    task.end_units = (int64_t *)(task.ends + 2 * num_parts);
    float *ends_sums = (float *)(task.end_units + 2 * num_parts);
    for (int64_t i = 0; i < 2 * num_parts; i++) {
        task.end_units[i] = -1;
        task.ends[i].sums = ends_sums + i * GROUP_HEADS * a->head_dim;
    }
    parallel(num_threads, num_parts, decode_range, &task);
    merge_ends(&task, num_parts);
    free(memory);
}
