/* Weights into panels at load, and rows of them back. */
#include "blocks.h"
#include "panels.h"
#include "threads.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

typedef struct {
    uint8_t *panels;
    format target;
    int64_t first_row; /* where this matrix begins among the segment's outputs */
    int64_t num_rows;
    int64_t in_features;
    const uint8_t *source;
    int64_t row_bytes;
    block_kind kind;
} packing;

static void read_dense_row(const packing *p, int64_t row, float *values) {
    const uint8_t *source = p->source + row * p->row_bytes;
    for (int64_t k = 0; k < p->in_features; k++) {
        if (p->kind == KIND_F32) memcpy(values + k, source + 4 * k, 4);
        else if (p->kind == KIND_F16) values[k] = half_to_float(read_u16(source + 2 * k));
        else values[k] = bfloat_to_float(read_u16(source + 2 * k));
    }
}

static void pack_dense_row(const packing *p, const float *values, uint8_t *panel, int64_t lane) {
    int64_t size = p->in_features;
    if (p->target == FORMAT_F32) {
        float *to = (float *)panel + lane;
        for (int64_t k = 0; k < size; k++) to[k * PANEL] = values[k];
    } else if (p->target == FORMAT_F16) {
        uint16_t *to = (uint16_t *)panel + lane;
        for (int64_t k = 0; k < size; k++) to[k * PANEL] = float_to_half(values[k]);
    } else {
        uint16_t *to = (uint16_t *)panel + lane % HALF_PANEL * 2 + lane / HALF_PANEL;
        for (int64_t k = 0; k < size; k++) to[k * PANEL] = float_to_bfloat(values[k]);
    }
}

static void pack_nibbles(const decoded *rows, uint8_t *quants) {
    for (int t = 0; t < 8; t++) {
        uint32_t words[HALF_PANEL] = {0};
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < HALF_PANEL; i++)
                words[i] |= (uint32_t)(rows[i + j % 2 * HALF_PANEL].quants[4 * t + j / 2] & 15)
                            << (4 * j);
        memcpy(quants + t * sizeof(words), words, sizeof(words));
    }
}

static void pack_bytes(const decoded *rows, int first, int count, uint8_t *quants) {
    for (int k = 0; k < count; k++)
        for (int i = 0; i < PANEL; i++)
            quants[k * PANEL + i] = (uint8_t)rows[i].quants[first + k];
}

static void pack_scale(uint8_t *scales, int scale_size, int lane, float value) {
    uint16_t half = float_to_half(value);
    if (scale_size == 2) memcpy(scales + 2 * lane, &half, 2);
    else memcpy(scales + 4 * lane, &value, 4);
}

/* Thirty-two inputs of one panel from their decoded rows: one group, or two of sixteen. */
static void pack_group(format target, const decoded *rows, uint8_t *group) {
    quant_format q = quant_format_of(target);
    for (int part = 0; part < 32 / q.group_size; part++) {
        if (q.bits == 4) pack_nibbles(rows, group);
        else pack_bytes(rows, part * q.group_size, q.group_size, group);
        uint8_t *scales = group + q.group_size * PANEL * q.bits / 8;
        uint8_t *minimums = scales + PANEL * q.scale_size;
        for (int lane = 0; lane < PANEL; lane++) {
            pack_scale(scales, q.scale_size, lane, rows[lane].scales[part]);
            if (q.has_min) pack_scale(minimums, q.scale_size, lane, rows[lane].minimum);
        }
        group += group_bytes(q);
    }
}

/* What is already in the panel, for the lanes that another matrix has filled. */
static void unpack_group(format target, const uint8_t *group, decoded *rows) {
    quant_format q = quant_format_of(target);
    for (int part = 0; part < 32 / q.group_size; part++) {
        const uint8_t *scales = group + q.group_size * PANEL * q.bits / 8;
        const uint8_t *minimums = scales + PANEL * q.scale_size;
        for (int lane = 0; lane < PANEL; lane++) {
            for (int k = 0; k < q.group_size; k++) {
                int word = k / 4 * 64 + lane % HALF_PANEL * 4 + k % 4;
                rows[lane].quants[part * q.group_size + k] =
                    q.bits == 4 ? (int8_t)((group[word] >> (lane / HALF_PANEL * 4)) & 15)
                                : (int8_t)group[k * PANEL + lane];
            }
            float scale = 0, minimum = 0;
            if (q.scale_size == 2) {
                scale = half_to_float(read_u16(scales + 2 * lane));
                if (q.has_min) minimum = half_to_float(read_u16(minimums + 2 * lane));
            } else {
                memcpy(&scale, scales + 4 * lane, 4);
                if (q.has_min) memcpy(&minimum, minimums + 4 * lane, 4);
            }
            if (part == 0) rows[lane].scales[0] = scale;
            rows[lane].scales[1] = scale;
            rows[lane].minimum = minimum;
        }
        group += group_bytes(q);
    }
}

/* Panels [from, to) of those this matrix touches. */
static void pack_panels(void *context, int64_t part, int64_t num_parts) {
    const packing *p = context;
    int64_t first_panel = p->first_row / PANEL;
    int64_t count = (p->first_row + p->num_rows + PANEL - 1) / PANEL - first_panel;
    int64_t to = first_panel + share(count, part + 1, num_parts);
    int64_t size = panel_bytes(p->target, p->in_features);
    float *values = scratch((size_t)p->in_features * sizeof(float));
    for (int64_t panel = first_panel + share(count, part, num_parts); panel < to; panel++) {
        uint8_t *data = p->panels + panel * size;
        int64_t from_lane = max_of(p->first_row - panel * PANEL, 0);
        int64_t to_lane = min_of(p->first_row + p->num_rows - panel * PANEL, PANEL);
        int64_t row = panel * PANEL - p->first_row; /* of lane 0 */
        if (p->target <= FORMAT_F16) {
            for (int64_t lane = from_lane; lane < to_lane; lane++) {
                read_dense_row(p, row + lane, values);
                pack_dense_row(p, values, data, lane);
            }
            continue;
        }
        int64_t stride = size / (p->in_features / 32);
        for (int64_t index = 0; index < p->in_features / 32; index++) {
            decoded rows[PANEL];
            if (to_lane - from_lane < PANEL) unpack_group(p->target, data + index * stride, rows);
            for (int64_t lane = from_lane; lane < to_lane; lane++)
                decode_group(
                    p->source + (row + lane) * p->row_bytes, p->kind, index, &rows[lane]);
            pack_group(p->target, rows, data + index * stride);
        }
    }
}

/* Ask for huge pages before the panels are first touched: streaming them then misses no TLB. */
static void advise_huge_pages(uint8_t *data, int64_t size_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t huge = 2u << 20;
    uintptr_t from = ((uintptr_t)data + huge - 1) & ~(huge - 1);
    uintptr_t to = ((uintptr_t)data + (uintptr_t)size_bytes) & ~(huge - 1);
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE); /* a refusal costs nothing */
#else
    (void)data, (void)size_bytes;
#endif
}

typedef struct {
    const linear_plan *plan;
    const void *ids;
    int64_t id_size; /* bytes: 4 or 8 */
    int64_t num_ids;
    float *out;
} gathering;

static const segment *segment_of_output(const linear_plan *plan, int64_t output) {
    const segment *s = plan->segments;
    while (output >= s->first_output + s->num_outputs) s++;
    return s;
}

static void unpack_dense_row(const segment *s, const uint8_t *panel, int64_t lane, int64_t size,
                             float *out) {
    const float *floats = (const float *)panel + lane;
    const uint16_t *halves = (const uint16_t *)panel + lane;
    const uint16_t *pairs =
        (const uint16_t *)panel + lane % HALF_PANEL * 2 + lane / HALF_PANEL;
    if (s->format == FORMAT_F32)
        for (int64_t k = 0; k < size; k++) out[k] = floats[k * PANEL];
    else if (s->format == FORMAT_F16)
        for (int64_t k = 0; k < size; k++) out[k] = half_to_float(halves[k * PANEL]);
    else
        for (int64_t k = 0; k < size; k++) out[k] = bfloat_to_float(pairs[k * PANEL]);
}

static void unpack_quant_row(const segment *s, const uint8_t *panel, int64_t lane, int64_t size,
                             float *out) {
    quant_format q = quant_format_of((format)s->format);
    for (int64_t first = 0; first < size; first += q.group_size, panel += group_bytes(q)) {
        const uint8_t *scales = panel + q.group_size * PANEL * q.bits / 8;
        const uint8_t *minimums = scales + PANEL * q.scale_size;
        float scale = 0, minimum = 0;
        if (q.scale_size == 2) {
            scale = half_to_float(read_u16(scales + 2 * lane));
            if (q.has_min) minimum = half_to_float(read_u16(minimums + 2 * lane));
        } else {
            memcpy(&scale, scales + 4 * lane, 4);
            if (q.has_min) memcpy(&minimum, minimums + 4 * lane, 4);
        }
        for (int k = 0; k < q.group_size; k++) {
            int quant;
            if (q.bits == 4) {
                int byte = panel[k / 4 * 64 + lane % HALF_PANEL * 4 + k % 4];
                quant = ((byte >> (lane / HALF_PANEL * 4)) & 15) - q.offset;
            } else {
                quant = (int8_t)panel[k * PANEL + lane];
            }
            out[first + k] = scale * (float)quant + minimum;
        }
    }
}

static void gather_rows(void *context, int64_t part, int64_t num_parts) {
    const gathering *g = context;
    int64_t size = g->plan->in_features;
    int64_t to = share(g->num_ids, part + 1, num_parts);
    for (int64_t i = share(g->num_ids, part, num_parts); i < to; i++) {
        int64_t id = g->id_size == 4 ? ((const int32_t *)g->ids)[i] : ((const int64_t *)g->ids)[i];
        float *out = g->out + i * size;
        if (id < 0 || id >= g->plan->out_features) { /* padding: any value will do */
            memset(out, 0, (size_t)size * sizeof(float));
            continue;
        }
        const segment *s = segment_of_output(g->plan, id);
        int64_t row = id - s->first_output;
        const uint8_t *panel = s->data + row / PANEL * s->panel_bytes;
        if (s->format <= FORMAT_F16) unpack_dense_row(s, panel, row % PANEL, size, out);
        else unpack_quant_row(s, panel, row % PANEL, size, out);
    }
}
