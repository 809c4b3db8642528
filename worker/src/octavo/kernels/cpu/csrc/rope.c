/* Head norms, rotary embedding and the write of keys and values to their slots. */
#include "simd.h"
#include "threads.h"

typedef struct {
    const float *qkv;
    const float *cos_sin;
    int64_t rotary_dim;
    float *key_cache, *value_cache;
    const int32_t *positions, *slots;
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, block_size, block_stride;
    const float *q_norm, *k_norm;
    float eps;
    float *q_out;
} rope_task;

/* out = rotated(normed(head)); angles: cosines, then sines, rotary_dim / 2 each. */
INLINE void rotate_head(const float *head, const float *norm, float eps, const float *angles,
                        int64_t rotary_dim, int64_t head_dim, float *out) {
    if (norm) {
        scale_row(head, add_and_square(head, NULL, head_dim), norm, eps, head_dim, out);
        head = out;
    }
    int64_t half = rotary_dim / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf first = vload(head + i), second = vload(head + half + i);
        vf cosine = vload(angles + i), sine = vload(angles + half + i);
        vstore(out + i, first * cosine - second * sine);
        vstore(out + half + i, second * cosine + first * sine);
    }
    for (; i < half; i++) {
        float first = head[i], second = head[half + i];
        out[i] = first * angles[i] - second * angles[half + i];
        out[half + i] = second * angles[i] + first * angles[half + i];
    }
    if (head != out && rotary_dim < head_dim)
        memcpy(out + rotary_dim, head + rotary_dim,
               (size_t)(head_dim - rotary_dim) * sizeof(float));
}

static void rope_token(const rope_task *t, int64_t token) {
    int64_t size = t->head_dim;
    const float *head = t->qkv + token * (t->num_heads + 2 * t->num_kv_heads) * size;
    const float *angles = t->cos_sin + t->positions[token] * t->rotary_dim;
    float *q = t->q_out + token * t->num_heads * size;
    for (int64_t h = 0; h < t->num_heads; h++, head += size, q += size)
        rotate_head(head, t->q_norm, t->eps, angles, t->rotary_dim, size, q);
    int64_t slot = t->slots[token];
    if (slot < 0) return;
    int64_t block = slot / t->block_size, offset = slot % t->block_size;
    for (int64_t h = 0; h < t->num_kv_heads; h++, head += size) {
        int64_t at = block * t->block_stride + (h * t->block_size + offset) * size;
        rotate_head(head, t->k_norm, t->eps, angles, t->rotary_dim, size, t->key_cache + at);
        memcpy(t->value_cache + at, head + t->num_kv_heads * size, (size_t)size * sizeof(float));
    }
}

static void rope_tokens(void *context, int64_t part, int64_t num_parts) {
    const rope_task *t = context;
    int64_t to = share(t->num_tokens, part + 1, num_parts);
    for (int64_t token = share(t->num_tokens, part, num_parts); token < to; token++)
        rope_token(t, token);
}

static void rope_and_cache(rope_task *t, int64_t num_threads) {
    int64_t elements = t->num_tokens * (t->num_heads + 2 * t->num_kv_heads) * t->head_dim;
    if (elements < MIN_PARALLEL_ELEMENTS) num_threads = 1;
    parallel(num_threads, parts_for(t->num_tokens, num_threads), rope_tokens, t);
}
