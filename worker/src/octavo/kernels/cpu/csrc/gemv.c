/* One row times a panel: every weight is read once, so memory bandwidth is the limit. */
#include "panels.h"

INLINE vu load_words(const uint8_t *p, int vector) { return vload_u(p + vector * LANES * 4); }

INLINE void finish_row(vf *sums, const float *bias, float *out) {
    UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
        if (bias) sums[v] += vload(bias + v * LANES);
        vstore(out + v * LANES, sums[v]);
    }
}

/* How far ahead of use a panel is requested: the hardware's prefetchers stop at page ends. */
#define PREFETCH_BYTES 4096

static void gemv_f32(const float *x, int64_t size, const uint8_t *panel, vf *sums) {
    const float *w = (const float *)panel;
    vf even[PANEL_VECTORS] = {0}, odd[PANEL_VECTORS] = {0};
    int64_t k = 0;
    for (; k + 4 <= size; k += 4, w += 4 * PANEL) {
        UNROLL for (int step = 0; step < 4; step++) {
            vf factor = vset(x[k + step]);
            __builtin_prefetch((const uint8_t *)(w + step * PANEL) + PREFETCH_BYTES);
            __builtin_prefetch((const uint8_t *)(w + step * PANEL) + PREFETCH_BYTES + 64);
            UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
                if (step % 2) odd[v] += factor * vload(w + step * PANEL + v * LANES);
                else even[v] += factor * vload(w + step * PANEL + v * LANES);
            }
        }
    }
    for (; k < size; k++, w += PANEL)
        for (int v = 0; v < PANEL_VECTORS; v++) even[v] += vset(x[k]) * vload(w + v * LANES);
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = even[v] + odd[v];
}

static void gemv_f16(const float *x, int64_t size, const uint8_t *panel, vf *sums) {
    const uint16_t *w = (const uint16_t *)panel;
    vf even[PANEL_VECTORS] = {0}, odd[PANEL_VECTORS] = {0};
    int64_t k = 0;
    for (; k + 2 <= size; k += 2, w += 2 * PANEL) {
        __builtin_prefetch((const uint8_t *)w + PREFETCH_BYTES);
        __builtin_prefetch((const uint8_t *)w + PREFETCH_BYTES + 64);
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
            even[v] += vset(x[k]) * vload_half(w + v * LANES);
            odd[v] += vset(x[k + 1]) * vload_half(w + PANEL + v * LANES);
        }
    }
    if (k < size)
        for (int v = 0; v < PANEL_VECTORS; v++) even[v] += vset(x[k]) * vload_half(w + v * LANES);
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = even[v] + odd[v];
}

/* Words pair outputs i and i + 16: the first half of the vectors, then the second. */
static void gemv_bf16(const float *x, int64_t size, const uint8_t *panel, vf *sums) {
    enum { HALF = PANEL_VECTORS / 2 };
    vf even[PANEL_VECTORS] = {0}, odd[PANEL_VECTORS] = {0};
    int64_t k = 0;
    for (; k + 2 <= size; k += 2, panel += 128) {
        __builtin_prefetch(panel + PREFETCH_BYTES);
        __builtin_prefetch(panel + PREFETCH_BYTES + 64);
        UNROLL for (int v = 0; v < HALF; v++) {
            vu first = load_words(panel, v), second = load_words(panel + 64, v);
            even[v] += vset(x[k]) * (vf)(first << 16);
            even[v + HALF] += vset(x[k]) * (vf)(first & 0xffff0000u);
            odd[v] += vset(x[k + 1]) * (vf)(second << 16);
            odd[v + HALF] += vset(x[k + 1]) * (vf)(second & 0xffff0000u);
        }
    }
    if (k < size)
        for (int v = 0; v < HALF; v++) {
            vu words = load_words(panel, v);
            even[v] += vset(x[k]) * (vf)(words << 16);
            even[v + HALF] += vset(x[k]) * (vf)(words & 0xffff0000u);
        }
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = even[v] + odd[v];
}

/* Sum of x times quants over one four-bit group of 32 inputs. */
INLINE void dot_nibbles(const float *x, const uint8_t *quants, int offset, vf *sums) {
    enum { HALF = PANEL_VECTORS / 2 };
    vf even[PANEL_VECTORS] = {0}, odd[PANEL_VECTORS] = {0};
    UNROLL for (int t = 0; t < 8; t++) {
        UNROLL for (int v = 0; v < HALF; v++) {
            vu words = load_words(quants + t * 64, v);
            const float *factor = x + 4 * t;
            even[v] += vset(factor[0]) * nibble_values(words, 0, offset);
            even[v + HALF] += vset(factor[0]) * nibble_values(words, 4, offset);
            odd[v] += vset(factor[1]) * nibble_values(words, 8, offset);
            odd[v + HALF] += vset(factor[1]) * nibble_values(words, 12, offset);
            even[v] += vset(factor[2]) * nibble_values(words, 16, offset);
            even[v + HALF] += vset(factor[2]) * nibble_values(words, 20, offset);
            odd[v] += vset(factor[3]) * nibble_values(words, 24, offset);
            odd[v + HALF] += vset(factor[3]) * nibble_values(words, 28, offset);
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = even[v] + odd[v];
}

/* Sum of x times quants over one eight-bit group. */
INLINE void dot_bytes(const float *x, const uint8_t *quants, int count, vf *sums) {
    vf even[PANEL_VECTORS] = {0}, odd[PANEL_VECTORS] = {0};
    for (int k = 0; k < count; k += 2) {
        const int8_t *w = (const int8_t *)quants + k * PANEL;
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
            even[v] += vset(x[k]) * vload_int8(w + v * LANES);
            odd[v] += vset(x[k + 1]) * vload_int8(w + PANEL + v * LANES);
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = even[v] + odd[v];
}

/* group_sums: sums of x over each group, which the minimums multiply. */
INLINE void gemv_quant(format f, const float *x, const float *group_sums, int64_t size,
                       const uint8_t *panel, vf *sums) {
    const quant_format q = quant_format_of(f);
    const int64_t stride = group_bytes(q);
    vf total[PANEL_VECTORS] = {0};
    for (int64_t k = 0; k < size; k += q.group_size, panel += stride, group_sums++) {
        vf dots[PANEL_VECTORS];
        UNROLL for (int line = 0; line < (int)(stride / 64); line++)
            __builtin_prefetch(panel + stride + PREFETCH_BYTES / 2 + line * 64);
        if (q.bits == 4) dot_nibbles(x + k, panel, q.offset, dots);
        else dot_bytes(x + k, panel, q.group_size, dots);
        const uint8_t *scales = panel + q.group_size * PANEL * q.bits / 8;
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
            total[v] += load_scale(scales, q.scale_size, v) * dots[v];
            if (q.has_min)
                total[v] += vset(*group_sums) *
                            load_scale(scales + PANEL * q.scale_size, q.scale_size, v);
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) sums[v] = total[v];
}

/* Sums of x over groups of 32, the only size whose encodings have minimums. */
static void sum_groups(const float *x, int64_t size, float *group_sums) {
    for (int64_t k = 0; k + 32 <= size; k += 32) {
        vf sum = vload(x + k);
        for (int i = LANES; i < 32; i += LANES) sum += vload(x + k + i);
        group_sums[k / 32] = vsum(sum);
    }
}

static void gemv_panel(format f, const float *x, const float *group_sums, int64_t size,
                       const uint8_t *panel, const float *bias, float *out) {
    vf sums[PANEL_VECTORS];
    switch (f) {
    case FORMAT_F32: gemv_f32(x, size, panel, sums); break;
    case FORMAT_BF16: gemv_bf16(x, size, panel, sums); break;
    case FORMAT_F16: gemv_f16(x, size, panel, sums); break;
    case FORMAT_Q4: gemv_quant(FORMAT_Q4, x, group_sums, size, panel, sums); break;
    case FORMAT_Q4_MIN: gemv_quant(FORMAT_Q4_MIN, x, group_sums, size, panel, sums); break;
    case FORMAT_Q4_K: gemv_quant(FORMAT_Q4_K, x, group_sums, size, panel, sums); break;
    case FORMAT_Q8: gemv_quant(FORMAT_Q8, x, group_sums, size, panel, sums); break;
    case FORMAT_Q8_MIN: gemv_quant(FORMAT_Q8_MIN, x, group_sums, size, panel, sums); break;
    case FORMAT_Q8_K: gemv_quant(FORMAT_Q8_K, x, group_sums, size, panel, sums); break;
    case FORMAT_Q8_GROUP16:
        gemv_quant(FORMAT_Q8_GROUP16, x, group_sums, size, panel, sums);
        break;
    }
    finish_row(sums, bias, out);
}
