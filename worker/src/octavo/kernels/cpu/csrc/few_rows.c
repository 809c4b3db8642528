/* Up to FEW_ROWS rows times a panel, weights widened in registers as they come.
 *
 * For one row this streams at memory bandwidth; up to a few dozen rows, in passes of FEW_ROWS
 * over a panel that stays in cache, it still beats widening the panel into a tile first.
 */
#include "panels.h"
#include "threads.h"

/* Rows whose sums fit the registers beside weights and a factor. */
#if LANES == 16
#define FEW_ROWS 8
#elif defined(__aarch64__) || LANES == 8
#define FEW_ROWS 3
#else
#define FEW_ROWS 1
#endif

/* Independent sums for each output, so that additions need not wait for each other. */
#define CHAINS(rows) ((rows) * PANEL_VECTORS <= (LANES == 16 ? 6 : 4) ? 2 : 1)

#define GROUP 32 /* inputs handled at once; the most that share a scale */

enum { HALF_VECTORS = PANEL_VECTORS / 2 };

typedef vf row_sums[FEW_ROWS][PANEL_VECTORS];

/* x of one pass, regrouped so that every factor is at a constant offset. */
typedef struct {
    const float *x; /* [size / GROUP, rows, GROUP], rounded up and zero-filled */
    const float *group_sums; /* [size / GROUP, rows]: sums of x, which minimums multiply */
    int64_t size;
    const uint8_t *ahead; /* what is prefetched, over this pass ... */
    int64_t ahead_step;   /* ... so many bytes a group */
} few_rows;

INLINE vu load_words(const uint8_t *p, int vector) { return vload_u(p + vector * LANES * 4); }

/* sums[step % chains][r][v] += x[r][k] * weights */
INLINE void add_products(int rows, const float *x, int k, int v, vf weights, row_sums *sums,
                         int step) {
    UNROLL for (int r = 0; r < rows; r++)
        sums[step % CHAINS(rows)][r][v] += vset(x[r * GROUP + k]) * weights;
}

INLINE void prefetch_bytes(const uint8_t *p, int64_t num_bytes) {
    for (int64_t line = 0; line < num_bytes; line += 64) __builtin_prefetch(p + line);
}

/* One input of a dense panel. */
INLINE void few_input(format f, int rows, const float *x, int k, const uint8_t *w,
                      row_sums *sums, int step) {
    const int vectors = f == FORMAT_BF16 ? HALF_VECTORS : PANEL_VECTORS;
    UNROLL for (int v = 0; v < vectors; v++) {
        if (f == FORMAT_F32) {
            add_products(rows, x, k, v, vload((const float *)w + v * LANES), sums, step);
        } else if (f == FORMAT_F16) {
            add_products(rows, x, k, v, vload_half((const uint16_t *)w + v * LANES), sums, step);
        } else {
            vu words = load_words(w, v);
            add_products(rows, x, k, v, (vf)(words << 16), sums, step);
            add_products(rows, x, k, v + HALF_VECTORS, (vf)(words & 0xffff0000u), sums, step);
        }
    }
}

INLINE void few_dense(format f, int rows, const few_rows *in, const uint8_t *panel,
                      row_sums total) {
    const int64_t stride = f == FORMAT_F32 ? PANEL * 4 : PANEL * 2;
    const float *x = in->x;
    const uint8_t *ahead = in->ahead;
    row_sums sums[2] = {0};
    int64_t left = in->size;
    for (; left >= GROUP; left -= GROUP, x += rows * GROUP, panel += GROUP * stride) {
        prefetch_bytes(ahead, in->ahead_step);
        ahead += in->ahead_step;
        for (int k = 0; k < GROUP; k += 4)
            UNROLL for (int step = 0; step < 4; step++)
                few_input(f, rows, x, k + step, panel + (k + step) * stride, sums, step);
    }
    for (int k = 0; k < left; k++) few_input(f, rows, x, k, panel + k * stride, sums, 0);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            total[r][v] = CHAINS(rows) == 2 ? sums[0][r][v] + sums[1][r][v] : sums[0][r][v];
}

/* Sums of x times quants over one four-bit group. */
INLINE void few_nibbles(int rows, const float *x, const uint8_t *quants, int offset,
                        row_sums *sums) {
    for (int t = 0; t < 8; t++)
        UNROLL for (int v = 0; v < HALF_VECTORS; v++) {
            vu words = load_words(quants + t * 64, v);
            UNROLL for (int j = 0; j < 8; j++)
                add_products(rows, x, 4 * t + j / 2, v + j % 2 * HALF_VECTORS,
                             nibble_values(words, 4 * j, offset), sums, j / 2);
        }
}

/* Sums of x times quants over `count` inputs of eight bits. */
INLINE void few_bytes(int rows, const float *x, const uint8_t *quants, int count,
                      row_sums *sums) {
    for (int k = 0; k < count; k += 2)
        UNROLL for (int step = 0; step < 2; step++)
            UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
                add_products(rows, x, k + step, v,
                             vload_int8((const int8_t *)quants + (k + step) * PANEL + v * LANES),
                             sums, step);
}

/* One group of inputs that share a scale. */
INLINE void few_group(format f, int rows, const float *x, const float *group_sums,
                      const uint8_t *group, row_sums total) {
    const quant_format q = quant_format_of(f);
    row_sums sums[2] = {0};
    if (q.bits == 4) few_nibbles(rows, x, group, q.offset, sums);
    else few_bytes(rows, x, group, q.group_size, sums);
    const uint8_t *scales = group + q.group_size * PANEL * q.bits / 8;
    const uint8_t *minimums = scales + PANEL * q.scale_size;
    UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
        vf scale = load_scale(scales, q.scale_size, v);
        vf minimum = q.has_min ? load_scale(minimums, q.scale_size, v) : vset(0);
        UNROLL for (int r = 0; r < rows; r++) {
            vf dots = CHAINS(rows) == 2 ? sums[0][r][v] + sums[1][r][v] : sums[0][r][v];
            total[r][v] += scale * dots;
            if (q.has_min) total[r][v] += minimum * vset(group_sums[r]);
        }
    }
}

INLINE void few_quant(format f, int rows, const few_rows *in, const uint8_t *panel,
                      row_sums total) {
    const quant_format q = quant_format_of(f);
    const int64_t stride = group_bytes(q);
    const float *x = in->x, *group_sums = in->group_sums;
    const uint8_t *ahead = in->ahead;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) total[r][v] = vset(0);
    for (int64_t k = 0; k < in->size; k += GROUP, x += rows * GROUP, group_sums += rows) {
        prefetch_bytes(ahead, in->ahead_step);
        ahead += in->ahead_step;
        for (int part = 0; part < GROUP; part += q.group_size, panel += stride)
            few_group(f, rows, x + part, group_sums, panel, total);
    }
}

/* y[r][0 .. 32] for each row, r * stride apart. */
INLINE void few_panel(format f, int rows, const few_rows *in, const uint8_t *panel,
                      const float *bias, float *y, int64_t stride) {
    row_sums total;
    if (f <= FORMAT_F16) few_dense(f, rows, in, panel, total);
    else few_quant(f, rows, in, panel, total);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            vstore(y + r * stride + v * LANES, total[r][v] + vload(bias + v * LANES));
}

#define FEW_CASE(f)                                                                          \
    case f: few_panel(f, rows, in, panel, bias, y, stride); break;

/* One function for each number of rows, so that compilers keep each one's sums in registers. */
#define FEW_FUNCTION(rows_)                                                                  \
    static void few_panel_##rows_(format f, const few_rows *in, const uint8_t *panel,        \
                                  const float *bias, float *y, int64_t stride) {             \
        enum { rows = rows_ };                                                               \
        switch (f) {                                                                         \
            FEW_CASE(FORMAT_F32)                                                             \
            FEW_CASE(FORMAT_BF16)                                                            \
            FEW_CASE(FORMAT_F16)                                                             \
            FEW_CASE(FORMAT_Q4)                                                              \
            FEW_CASE(FORMAT_Q4_MIN)                                                          \
            FEW_CASE(FORMAT_Q4_K)                                                            \
            FEW_CASE(FORMAT_Q8)                                                              \
            FEW_CASE(FORMAT_Q8_MIN)                                                          \
            FEW_CASE(FORMAT_Q8_K)                                                            \
            FEW_CASE(FORMAT_Q8_GROUP16)                                                      \
        }                                                                                    \
    }

typedef void few_function(format, const few_rows *, const uint8_t *, const float *, float *,
                          int64_t);

FEW_FUNCTION(1)
#if FEW_ROWS >= 3
FEW_FUNCTION(2)
FEW_FUNCTION(3)
#endif
#if FEW_ROWS >= 8
FEW_FUNCTION(4)
FEW_FUNCTION(5)
FEW_FUNCTION(6)
FEW_FUNCTION(7)
FEW_FUNCTION(8)
#endif

static few_function *const few_functions[FEW_ROWS] = {
    few_panel_1,
#if FEW_ROWS >= 3
    few_panel_2, few_panel_3,
#endif
#if FEW_ROWS >= 8
    few_panel_4, few_panel_5, few_panel_6, few_panel_7, few_panel_8,
#endif
};

/* Rows of x, regrouped, and the sums of each group. */
static void regroup(const float *x, int64_t rows, int64_t size, float *grouped, float *sums) {
    int64_t groups = (size + GROUP - 1) / GROUP;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            const float *from = x + r * size + g * GROUP;
            float *to = grouped + (g * rows + r) * GROUP;
            int64_t count = min_of(size - g * GROUP, GROUP);
            if (count < GROUP) memset(to, 0, GROUP * sizeof(float));
            memcpy(to, from, (size_t)count * sizeof(float));
            vf sum = vload(to);
            for (int i = LANES; i < GROUP; i += LANES) sum += vload(to + i);
            sums[g * rows + r] = vsum(sum);
        }
}
