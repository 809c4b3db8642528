/* y = x @ W.T + bias over panels: few rows stream them, many rows multiply them in tiles. */
#include "few_rows.c"
#include "micro.h"
#include "threads.h"

#define BLOCK_ROWS 168 /* rows of x kept in the second-level cache: 168 * 3136 bytes */

/* Passes that share a fetch of a panel. */
#define MAX_PASSES 12

/* A larger panel leaves the second-level cache between passes. */
#define MAX_PASS_PANEL_BYTES (1 << 20)

/* How far ahead of use a panel is requested: the hardware's prefetchers stop at page ends. */
#define PREFETCH_BYTES 4096

typedef struct {
    const linear_plan *plan;
    const float *x;
    int64_t num_rows;
    float *y;
    int64_t row_parts; /* parts are a grid: row_parts by num_parts / row_parts */
    uint64_t number;   /* of all products ever: whether a thread has regrouped its rows */
} product;

static const float no_bias[PANEL];

/* The panel where part `index` of `count` begins, parts of about equal bytes. */
static int64_t panel_split(const linear_plan *plan, int64_t index, int64_t count) {
    if (plan->num_segments == 1) return share(plan->num_panels, index, count);
    int64_t total = 0, before = 0;
    for (int64_t i = 0; i < plan->num_segments; i++)
        total += plan->segments[i].num_panels * plan->segments[i].panel_bytes;
    int64_t target = share(total, index, count), panels = 0;
    for (int64_t i = 0; i < plan->num_segments; i++) {
        const segment *s = plan->segments + i;
        int64_t size = s->num_panels * s->panel_bytes;
        if (target < before + size) return panels + (target - before) / s->panel_bytes;
        before += size;
        panels += s->num_panels;
    }
    return panels;
}

/* Walks panels in order over the segments. */
typedef struct {
    const segment *segment;
    int64_t panel; /* within the segment */
} cursor;

static cursor seek(const linear_plan *plan, int64_t panel) {
    const segment *s = plan->segments;
    while (panel >= s->num_panels && s + 1 < plan->segments + plan->num_segments) {
        panel -= s->num_panels;
        s++;
    }
    return (cursor){s, panel};
}

static void advance(cursor *at) {
    if (++at->panel == at->segment->num_panels) *at = (cursor){at->segment + 1, 0};
}

/* What to prefetch while a pass works on a panel: one pass, a little ahead; several, its share
 * of the next panel, which the first pass would else wait for. */
static void look_ahead(few_rows *in, const uint8_t *panel, int64_t panel_bytes, int64_t pass,
                       int64_t passes) {
    int64_t groups = (in->size + GROUP - 1) / GROUP, step = panel_bytes / groups;
    in->ahead_step = step / passes;
    in->ahead = panel + (passes == 1 ? PREFETCH_BYTES
                                     : panel_bytes + pass * in->ahead_step * groups);
}

/* One pass times one panel; `row` is the pass's first. */
static void multiply_pass(const product *p, const cursor *at, int64_t panel, const few_rows *in,
                          int64_t row, int64_t rows) {
    const segment *s = at->segment;
    const float *bias = p->plan->bias ? p->plan->bias + panel * PANEL : no_bias;
    const uint8_t *data = s->data + at->panel * s->panel_bytes;
    int64_t stride = p->plan->out_features;
    int64_t width = min_of(s->num_outputs - at->panel * PANEL, PANEL);
    float *y = p->y + row * stride + s->first_output + at->panel * PANEL;
    if (width == PANEL) {
        few_functions[rows - 1]((format)s->format, in, data, bias, y, stride);
        return;
    }
    float edge[FEW_ROWS * PANEL];
    few_functions[rows - 1]((format)s->format, in, data, bias, edge, PANEL);
    for (int64_t r = 0; r < rows; r++)
        memcpy(y + r * stride, edge + r * PANEL, (size_t)width * sizeof(float));
}

/* The rows a thread works on, regrouped for its passes. */
typedef struct {
    uint64_t product; /* its number */
    int64_t row, num_rows;
    int64_t num_passes, starts[MAX_PASSES + 1];
    few_rows inputs[MAX_PASSES];
} regrouped;

/* A thread does this once for all the parts of a product that it gets. */
static regrouped *regroup_rows(const product *p, int64_t row, int64_t num_rows) {
    static __thread regrouped kept;
    if (kept.product == p->number && kept.row == row && kept.num_rows == num_rows) return &kept;
    int64_t size = p->plan->in_features, groups = (size + GROUP - 1) / GROUP;
    int64_t passes = (num_rows + FEW_ROWS - 1) / FEW_ROWS;
    float *memory = scratch((size_t)(num_rows * groups * (GROUP + 1)) * sizeof(float));
    kept.product = p->number, kept.row = row, kept.num_rows = num_rows, kept.num_passes = passes;
    for (int64_t pass = 0; pass <= passes; pass++)
        kept.starts[pass] = share(num_rows, pass, passes);
    for (int64_t pass = 0; pass < passes; pass++) {
        int64_t rows = kept.starts[pass + 1] - kept.starts[pass];
        float *sums = memory + rows * groups * GROUP;
        regroup(p->x + (row + kept.starts[pass]) * size, rows, size, memory, sums);
        kept.inputs[pass] = (few_rows){memory, sums, size, NULL, 0};
        memory = sums + rows * groups;
    }
    return &kept;
}

/* Up to MAX_PASSES * FEW_ROWS rows from `row` on times panels [from, to). */
static void multiply_few(const product *p, int64_t from, int64_t to, int64_t row,
                         int64_t num_rows) {
    regrouped *x = regroup_rows(p, row, num_rows);
    cursor at = seek(p->plan, from);
    for (int64_t panel = from; panel < to; panel++, advance(&at)) {
        const uint8_t *data = at.segment->data + at.panel * at.segment->panel_bytes;
        for (int64_t pass = 0; pass < x->num_passes; pass++) {
            look_ahead(&x->inputs[pass], data, at.segment->panel_bytes, pass, x->num_passes);
            multiply_pass(p, &at, panel, &x->inputs[pass], row + x->starts[pass],
                          x->starts[pass + 1] - x->starts[pass]);
        }
    }
}

INLINE void widen_quants(format f, const uint8_t *panel, int64_t depth, float *tile) {
    enum { HALF = PANEL_VECTORS / 2 };
    const quant_format q = quant_format_of(f);
    for (int64_t k = 0; k < depth; k += q.group_size, panel += group_bytes(q)) {
        const uint8_t *scales = panel + q.group_size * PANEL * q.bits / 8;
        vf scale[PANEL_VECTORS], minimum[PANEL_VECTORS];
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
            scale[v] = load_scale(scales, q.scale_size, v);
            minimum[v] = q.has_min
                             ? load_scale(scales + PANEL * q.scale_size, q.scale_size, v)
                             : vset(0);
        }
        if (q.bits == 4) {
            for (int t = 0; t < 8; t++, tile += 4 * PANEL)
                UNROLL for (int v = 0; v < HALF; v++) {
                    vu words = vload_u(panel + t * 64 + v * LANES * 4);
                    UNROLL for (int j = 0; j < 8; j++) {
                        int at = v + j % 2 * HALF;
                        vf weight = nibble_values(words, 4 * j, q.offset) * scale[at];
                        if (q.has_min) weight += minimum[at];
                        vstore(tile + j / 2 * PANEL + at * LANES, weight);
                    }
                }
        } else {
            for (int i = 0; i < q.group_size; i++, tile += PANEL)
                UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
                    vf weight = vload_int8((const int8_t *)panel + i * PANEL + v * LANES);
                    weight *= scale[v];
                    if (q.has_min) weight += minimum[v];
                    vstore(tile + v * LANES, weight);
                }
        }
    }
}

static void widen_halves(format f, const uint16_t *panel, int64_t depth, float *tile) {
    enum { HALF = PANEL_VECTORS / 2 };
    for (int64_t k = 0; k < depth; k++, panel += PANEL, tile += PANEL)
        for (int v = 0; v < HALF; v++) {
            if (f == FORMAT_F16) {
                vstore(tile + v * LANES, vload_half(panel + v * LANES));
                vstore(tile + (v + HALF) * LANES, vload_half(panel + (v + HALF) * LANES));
            } else {
                vu words = vload_u(panel + v * LANES * 2);
                vstore(tile + v * LANES, (vf)(words << 16));
                vstore(tile + (v + HALF) * LANES, (vf)(words & 0xffff0000u));
            }
        }
}

/* Inputs [first, first + depth) of a panel as floats: where they lie, or widened into tile. */
static const float *float_tile(format f, const uint8_t *panel, int64_t first, int64_t depth,
                               float *tile) {
    if (f == FORMAT_F32) return (const float *)panel + first * PANEL;
    if (f <= FORMAT_F16) {
        widen_halves(f, (const uint16_t *)panel + first * PANEL, depth, tile);
        return tile;
    }
#define WIDEN(name)                                                                          \
    case name:                                                                               \
        widen_quants(name, panel + first / quant_format_of(name).group_size *                \
                                       group_bytes(quant_format_of(name)),                   \
                     depth, tile);                                                           \
        break;
    switch (f) {
        WIDEN(FORMAT_Q4)
        WIDEN(FORMAT_Q4_MIN)
        WIDEN(FORMAT_Q4_K)
        WIDEN(FORMAT_Q8)
        WIDEN(FORMAT_Q8_MIN)
        WIDEN(FORMAT_Q8_K)
        WIDEN(FORMAT_Q8_GROUP16)
    default: break;
    }
    return tile;
}

/* One panel's columns of a block of rows; inputs [first, first + depth). */
static void multiply_tile(const product *p, const cursor *at, int64_t panel, const float *a,
                          const float *b, int64_t first, int64_t depth, int64_t row,
                          int64_t num_rows) {
    const linear_plan *plan = p->plan;
    const segment *s = at->segment;
    const float *bias = plan->bias ? plan->bias + panel * PANEL : no_bias;
    int64_t stride = plan->out_features;
    int64_t width = min_of(s->num_outputs - at->panel * PANEL, PANEL);
    float *c = p->y + row * stride + s->first_output + at->panel * PANEL;
    if (width == PANEL) {
        if (first == 0) micro_rows(num_rows, a, b, depth, bias, 0, c, stride);
        else micro_rows(num_rows, a, b, depth, c, stride, c, stride);
        return;
    }
    for (int64_t r = 0; r < num_rows; r++, c += stride) { /* the last columns of a segment */
        float edge[PANEL];
        memcpy(edge, bias, sizeof(edge));
        if (first > 0) memcpy(edge, c, (size_t)width * sizeof(float));
        micro_rows(1, a + r * ROW_STRIDE, b, depth, edge, 0, edge, 0);
        memcpy(c, edge, (size_t)width * sizeof(float));
    }
}

static void multiply_block(const product *p, int64_t from_panel, int64_t to_panel,
                           int64_t row, int64_t num_rows, int64_t first, int64_t depth,
                           float *a, float *tile) {
    int64_t size = p->plan->in_features;
    for (int64_t r = 0; r < num_rows; r++)
        memcpy(a + r * ROW_STRIDE, p->x + (row + r) * size + first,
               (size_t)depth * sizeof(float));
    cursor at = seek(p->plan, from_panel);
    for (int64_t panel = from_panel; panel < to_panel; panel++, advance(&at)) {
        const float *b = float_tile((format)at.segment->format,
                                    at.segment->data + at.panel * at.segment->panel_bytes, first,
                                    depth, tile);
        multiply_tile(p, &at, panel, a, b, first, depth, row, num_rows);
    }
}

/* Rows from `row` on times panels [from, to), through tiles of floats. */
static void multiply_tiles(const product *p, int64_t from, int64_t to, int64_t row,
                           int64_t num_rows) {
    int64_t size = p->plan->in_features;
    int64_t blocks = (size + MAX_DEPTH - 1) / MAX_DEPTH;
    int64_t depth = ((size + blocks - 1) / blocks + 31) / 32 * 32;
    float *a = scratch((BLOCK_ROWS * ROW_STRIDE + MAX_DEPTH * PANEL) * sizeof(float));
    float *tile = a + BLOCK_ROWS * ROW_STRIDE;
    for (int64_t first = 0; first < size; first += depth)
        multiply_block(p, from, to, row, num_rows, first, min_of(size - first, depth), a, tile);
}

/* Whether to work in passes of few rows instead of through tiles. Measured: with 32 vector
 * registers passes reach 93 % of the multipliers' peak and tiles 85 %; with 16, widening the
 * weights again for every three rows costs more than a tile does. */
static int is_for_passes(const product *p) {
    if (p->num_rows <= FEW_ROWS) return 1;
    if (LANES < 16) return p->num_rows <= 2 * FEW_ROWS;
    for (int64_t i = 0; i < p->plan->num_segments; i++)
        if (p->plan->segments[i].panel_bytes > MAX_PASS_PANEL_BYTES) return 0;
    return 1;
}

static void multiply_part(void *context, int64_t part, int64_t num_parts) {
    const product *p = context;
    int64_t panel_parts = num_parts / p->row_parts;
    int64_t from = panel_split(p->plan, part % panel_parts, panel_parts);
    int64_t to = panel_split(p->plan, part % panel_parts + 1, panel_parts);
    int64_t row = share(p->num_rows, part / panel_parts, p->row_parts);
    int64_t to_row = share(p->num_rows, part / panel_parts + 1, p->row_parts);
    if (from == to) return;
    int use_passes = is_for_passes(p);
    int64_t block = use_passes ? MAX_PASSES * FEW_ROWS : BLOCK_ROWS;
    for (; row < to_row; row += block) {
        int64_t num_rows = min_of(to_row - row, block);
        if (use_passes) multiply_few(p, from, to, row, num_rows);
        else multiply_tiles(p, from, to, row, num_rows);
    }
}

/* A region costs a microsecond or two: below this many multiplications one thread is faster. */
#define MIN_PARALLEL_PRODUCT 65536

/* Rows are cut where panels alone are too few to keep every thread busy. */
#define MIN_ROWS_PER_PART 32

static void linear_forward(const linear_plan *plan, const float *x, int64_t num_rows, float *y,
                           int64_t num_threads) {
    if (num_rows < 1) return;
    int64_t work = plan->num_panels * PANEL * plan->in_features * num_rows;
    if (work < MIN_PARALLEL_PRODUCT) num_threads = 1;
    int64_t panel_parts = parts_for(plan->num_panels, num_threads);
    int64_t wanted = num_threads > 1 ? 4 * num_threads : 1;
    int64_t row_parts = min_of((wanted + panel_parts - 1) / panel_parts,
                               max_of(num_rows / MIN_ROWS_PER_PART, 1));
    static atomic_uint_least64_t num_products;
    uint64_t number = atomic_fetch_add(&num_products, 1) + 1;
    product p = {plan, x, num_rows, y, row_parts, number};
    parallel(num_threads, panel_parts * row_parts, multiply_part, &p);
}
