/* Attention of many tokens of a sequence: blocked products on the linear layers' micro-kernel.
 *
 * A task is a block of tokens and one KV head; its query rows are (token, head of the group), so
 * that keys and values once brought into tiles serve every row. Online softmax over key tiles:
 * Dao et al., "FlashAttention".
 */
#include "attention.h"
#include "micro.h"

#define TASK_ROWS 126 /* a multiple of the micro-kernel's 14 */
#define KEY_TILE 128
#define MAX_PREFILL_DIM 256

/* A row of scratch, ROW_STRIDE floats: the scaled query, its scores, its output so far. */
#define SCORES_AT MAX_PREFILL_DIM
#define OUTPUT_AT 512
_Static_assert(SCORES_AT + KEY_TILE <= OUTPUT_AT, "scores overlap the output");
_Static_assert(OUTPUT_AT + MAX_PREFILL_DIM <= ROW_STRIDE, "the output leaves its row");

typedef struct {
    const attention *a;
    int64_t tokens_per_task;
    int64_t num_tasks;
} prefilling;

typedef struct {
    int64_t sequence, kv_head;
    int64_t token, num_tokens; /* of the batch */
    int64_t position;          /* of the first token */
} prefill_task;

/* keys: [32 or fewer, size] at offsets -> panel [size][32]. Absent keys repeat the last. */
static void transpose_keys(const float *cache, const int64_t *offsets, int64_t size,
                           float *panel) {
    typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
    for (int64_t j = 0; j < PANEL; j += 4) {
        const float *k0 = cache + offsets[j], *k1 = cache + offsets[j + 1];
        const float *k2 = cache + offsets[j + 2], *k3 = cache + offsets[j + 3];
        int64_t d = 0;
        for (; d + 4 <= size; d += 4) {
            quad a = *(const quad *)(k0 + d), b = *(const quad *)(k1 + d);
            quad c = *(const quad *)(k2 + d), e = *(const quad *)(k3 + d);
            for (int i = 0; i < 4; i++) {
                quad column = {a[i], b[i], c[i], e[i]};
                *(quad *)(panel + (d + i) * PANEL + j) = column;
            }
        }
        for (; d < size; d++) {
            float *to = panel + d * PANEL + j;
            to[0] = k0[d], to[1] = k1[d], to[2] = k2[d], to[3] = k3[d];
        }
    }
}

/* values -> panels [ceil(size / 32)][KEY_TILE][32], zero beyond size. */
static void panel_values(const float *cache, const int64_t *offsets, int64_t count, int64_t size,
                         float *panels) {
    for (int64_t d = 0; d < size; d += PANEL, panels += KEY_TILE * PANEL) {
        int64_t width = min_of(size - d, PANEL);
        for (int64_t j = 0; j < count; j++) {
            float *to = panels + j * PANEL;
            if (width < PANEL) memset(to, 0, PANEL * sizeof(float));
            memcpy(to, cache + offsets[j] + d, (size_t)width * sizeof(float));
        }
    }
}

/* Turn a row's scores of keys [first, first + count) into weights and rescale its output. */
static void soften_row(float *row, int64_t from, int64_t to, int64_t count, int64_t padded_dim,
                       float *largest, float *total) {
    float *scores = row + SCORES_AT, *output = row + OUTPUT_AT;
    from = max_of(from, 0), to = min_of(to, count);
    if (from >= to) { /* nothing visible in this tile */
        memset(scores, 0, (size_t)count * sizeof(float));
        return;
    }
    for (int64_t j = 0; j < from; j++) scores[j] = -INFINITY;
    int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t j = to; j < padded; j++) scores[j] = -INFINITY;
    float shrink = soften(scores, padded, largest, total);
    for (int64_t d = 0; d < padded_dim; d += LANES)
        vstore(output + d, vload(output + d) * vset(shrink));
}

/* Fold keys [first, first + count) into every row of the task. */
static void fold_key_tile(const attention *a, const prefill_task *t, int64_t first, int64_t count,
                          float *rows, float *largest, float *total, float *tiles) {
    int64_t size = a->head_dim, group = a->num_heads / a->num_kv_heads;
    int64_t num_rows = t->num_tokens * group;
    const int32_t *table = a->block_tables + t->sequence * a->max_blocks;
    int64_t offsets[KEY_TILE];
    /* Keys before the first that anybody sees may be anything, NaN among it: that one is read in
     * their place, and no row gives it weight there. */
    int64_t skip = max_of(first_key(a, t->position) - first, 0);
    key_offsets(a, table, t->kv_head, first + skip, KEY_TILE - skip, first + count - 1,
                offsets + skip);
    for (int64_t j = 0; j < skip; j++) offsets[j] = offsets[skip];
    for (int64_t j = 0; j < count; j += PANEL) {
        transpose_keys(a->key_cache, offsets + j, size, tiles);
        micro_rows(num_rows, rows, tiles, size, no_bias, 0, rows + SCORES_AT + j, ROW_STRIDE);
    }
    int64_t padded_dim = (size + PANEL - 1) / PANEL * PANEL;
    for (int64_t r = 0; r < num_rows; r++) {
        int64_t position = t->position + r / group;
        soften_row(rows + r * ROW_STRIDE, first_key(a, position) - first, position + 1 - first,
                   count, padded_dim, largest + r, total + r);
    }
    panel_values(a->value_cache, offsets, count, size, tiles);
    for (int64_t d = 0; d < padded_dim; d += PANEL) {
        float *output = rows + OUTPUT_AT + d;
        micro_rows(num_rows, rows + SCORES_AT, tiles + d * KEY_TILE, count, output, ROW_STRIDE,
                   output, ROW_STRIDE);
    }
}

static void run_task(const attention *a, const prefill_task *t) {
    int64_t size = a->head_dim, group = a->num_heads / a->num_kv_heads;
    int64_t num_rows = t->num_tokens * group;
    int64_t capacity = max_of(TASK_ROWS, group);
    float *rows = scratch((size_t)(capacity * (ROW_STRIDE + 2) + MAX_PREFILL_DIM * KEY_TILE) *
                          sizeof(float));
    float *tiles = rows + capacity * ROW_STRIDE;
    float *largest = tiles + MAX_PREFILL_DIM * KEY_TILE, *total = largest + capacity;
    for (int64_t r = 0; r < num_rows; r++) {
        int64_t head = t->kv_head * group + r % group;
        const float *q = a->q + ((t->token + r / group) * a->num_heads + head) * size;
        float *row = rows + r * ROW_STRIDE;
        for (int64_t d = 0; d < size; d++) row[d] = q[d] * a->scale;
        memset(row + OUTPUT_AT, 0, MAX_PREFILL_DIM * sizeof(float));
        largest[r] = -INFINITY, total[r] = 0;
    }
    int64_t end = t->position + t->num_tokens;
    /* Whole tiles, wherever a window begins: a row's sums must not depend on its task. */
    int64_t first = first_key(a, t->position) / KEY_TILE * KEY_TILE;
    for (; first < end; first += KEY_TILE)
        fold_key_tile(a, t, first, min_of(end - first, KEY_TILE), rows, largest, total, tiles);
    for (int64_t r = 0; r < num_rows; r++) {
        int64_t head = t->kv_head * group + r % group;
        float *out = a->out + ((t->token + r / group) * a->num_heads + head) * size;
        const float *output = rows + r * ROW_STRIDE + OUTPUT_AT;
        float scale = total[r] > 0 ? 1.0f / total[r] : 0; /* an empty context gives zeros */
        for (int64_t d = 0; d < size; d++) out[d] = output[d] * scale;
    }
}

/* Task `index`, counted from the end of the last sequence, where the most keys are seen: the
 * longest tasks are handed out first. */
static prefill_task prefill_task_at(const prefilling *p, int64_t index) {
    const attention *a = p->a;
    prefill_task t = {.kv_head = index % a->num_kv_heads};
    int64_t block = index / a->num_kv_heads;
    for (t.sequence = a->num_sequences - 1; ; t.sequence--) {
        int64_t start = a->query_starts[t.sequence];
        int64_t length = a->query_starts[t.sequence + 1] - start;
        int64_t blocks = (length + p->tokens_per_task - 1) / p->tokens_per_task;
        if (block >= blocks) {
            block -= blocks;
            continue;
        }
        int64_t from = (blocks - 1 - block) * p->tokens_per_task;
        t.token = start + from;
        t.num_tokens = min_of(length - from, p->tokens_per_task);
        t.position = a->context_lens[t.sequence] - length + from;
        return t;
    }
}

static void prefill_part(void *context, int64_t part, int64_t num_parts) {
    const prefilling *p = context;
    (void)num_parts;
    prefill_task t = prefill_task_at(p, part);
    run_task(p->a, &t);
}

/* Sequences [num_decodes, num_sequences), blocked over tokens. */
static void attend_prefills(const attention *a, int64_t num_threads) {
    int64_t group = a->num_heads / a->num_kv_heads;
    prefilling p = {.a = a, .tokens_per_task = max_of(TASK_ROWS / group, 1)};
    for (int64_t s = a->num_decodes; s < a->num_sequences; s++) {
        int64_t length = a->query_starts[s + 1] - a->query_starts[s];
        p.num_tasks += (length + p.tokens_per_task - 1) / p.tokens_per_task;
    }
    p.num_tasks *= a->num_kv_heads;
    parallel(num_threads, p.num_tasks, prefill_part, &p);
}

/* Heads too wide for the tiles: every token as if it were a decode of its own. */
static void attend_wide_prefills(const attention *a, int64_t num_threads) {
    for (int64_t s = a->num_decodes; s < a->num_sequences; s++) {
        int64_t length = a->query_starts[s + 1] - a->query_starts[s];
        for (int64_t i = 0; i < length; i++) {
            int32_t start = a->query_starts[s] + (int32_t)i;
            int32_t context_len = (int32_t)(a->context_lens[s] - length + i + 1);
            attention one = *a;
            one.query_starts = &start, one.context_lens = &context_len;
            one.block_tables = a->block_tables + s * a->max_blocks;
            one.num_decodes = one.num_sequences = 1;
            attend_decodes(&one, num_threads);
        }
    }
}

static void paged_attention(const attention *a, int64_t num_tokens, int64_t num_threads) {
    int64_t used = a->query_starts[a->num_sequences], width = a->num_heads * a->head_dim;
    if (used < num_tokens) /* padding */
        memset(a->out + used * width, 0, (size_t)((num_tokens - used) * width) * sizeof(float));
    if (a->num_decodes > 0) attend_decodes(a, num_threads);
    if (a->num_sequences == a->num_decodes) return;
    if (a->head_dim > MAX_PREFILL_DIM) attend_wide_prefills(a, num_threads);
    else attend_prefills(a, num_threads);
}
