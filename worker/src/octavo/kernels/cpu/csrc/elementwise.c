/* Norms and gated activations: one pass over rows that mostly lie in cache already. */
#include "simd.h"
#include "threads.h"

/* Below this many elements a parallel region costs more than it saves. */
#define MIN_PARALLEL_ELEMENTS 32768

typedef struct {
    const float *x;
    float *residual; /* x is added to it first; NULL: norm x itself */
    const float *weight;
    float *out;
    int64_t num_rows, size;
    float eps;
} norm_task;

/* residual += x where given; the sum of squares of what is normed. */
INLINE float add_and_square(const float *x, float *residual, int64_t size) {
    vf even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        vf a = vload(x + i), b = vload(x + i + LANES);
        if (residual) {
            a += vload(residual + i);
            b += vload(residual + i + LANES);
            vstore(residual + i, a);
            vstore(residual + i + LANES, b);
        }
        even += a * a;
        odd += b * b;
    }
    float sum = vsum(even + odd);
    for (; i < size; i++) {
        float value = x[i];
        if (residual) residual[i] = value += residual[i];
        sum += value * value;
    }
    return sum;
}

/* out = x / sqrt(mean(x^2) + eps) * weight, given the sum of squares. */
INLINE void scale_row(const float *x, float sum, const float *weight, float eps, int64_t size,
                      float *out) {
    float scale = 1.0f / sqrtf(sum / (float)size + eps);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        vstore(out + i, vload(x + i) * vset(scale) * vload(weight + i));
    for (; i < size; i++) out[i] = x[i] * scale * weight[i];
}

static void norm_rows(void *context, int64_t part, int64_t num_parts) {
    const norm_task *t = context;
    int64_t to = share(t->num_rows, part + 1, num_parts);
    for (int64_t row = share(t->num_rows, part, num_parts); row < to; row++) {
        const float *x = t->x + row * t->size;
        float *residual = t->residual ? t->residual + row * t->size : NULL;
        float sum = residual ? add_and_square(x, residual, t->size)
                             : add_and_square(x, NULL, t->size);
        scale_row(residual ? residual : x, sum, t->weight, t->eps, t->size,
                  t->out + row * t->size);
    }
}

static void rms_norm(const float *x, float *residual, const float *weight, float *out,
                     int64_t num_rows, int64_t size, float eps, int64_t num_threads) {
    norm_task t = {x, residual, weight, out, num_rows, size, eps};
    if (num_rows * size < MIN_PARALLEL_ELEMENTS) num_threads = 1;
    parallel(num_threads, parts_for(num_rows, num_threads), norm_rows, &t);
}

typedef struct {
    const float *gate_up;
    float *out;
    int64_t num_rows, size;
    int is_gelu;
} gate_task;

/* x * sigmoid(x). */
INLINE vf silu(vf x) { return x / (1.0f + vexp(-x)); }

/* 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE vf gelu_tanh(vf x) {
    vf twice = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x / (1.0f + vexp(-twice));
}

INLINE void gate_row(const float *gate, int64_t size, int is_gelu, float *out) {
    const float *up = gate + size;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vf x = vload(gate + i);
        vstore(out + i, (is_gelu ? gelu_tanh(x) : silu(x)) * vload(up + i));
    }
    if (i < size) {
        vf x = vload_part(gate + i, size - i);
        vf y = (is_gelu ? gelu_tanh(x) : silu(x)) * vload_part(up + i, size - i);
        vstore_part(out + i, y, size - i);
    }
}

static void gate_rows(void *context, int64_t part, int64_t num_parts) {
    const gate_task *t = context;
    int64_t to = share(t->num_rows, part + 1, num_parts);
    for (int64_t row = share(t->num_rows, part, num_parts); row < to; row++) {
        const float *gate = t->gate_up + row * 2 * t->size;
        if (t->is_gelu) gate_row(gate, t->size, 1, t->out + row * t->size);
        else gate_row(gate, t->size, 0, t->out + row * t->size);
    }
}

static void gated(const float *gate_up, float *out, int64_t num_rows, int64_t size, int is_gelu,
                  int64_t num_threads) {
    gate_task t = {gate_up, out, num_rows, size, is_gelu};
    if (num_rows * size < MIN_PARALLEL_ELEMENTS) num_threads = 1;
    parallel(num_threads, parts_for(num_rows, num_threads), gate_rows, &t);
}
