/* The register-blocked product all many-row work is made of: linear layers and prefill attention.
 *
 * C[rows x 32] = init + A[rows x depth] @ B[depth x 32]. A's rows are ROW_STRIDE floats apart (a
 * constant, so that a row is an immediate offset and no power of two makes rows share cache
 * sets); B's are 32.
 */
#ifndef OCTAVO_MICRO_H
#define OCTAVO_MICRO_H

#include "panels.h"

#define MAX_DEPTH 768
#define ROW_STRIDE (MAX_DEPTH + 16)

/* Rows whose sums fit the registers beside one row of B and a broadcast. */
#if LANES == 16
#define MICRO_ROWS 14
#elif defined(__aarch64__) || LANES == 8
#define MICRO_ROWS 3
#else
#define MICRO_ROWS 1
#endif

INLINE void micro_kernel(int rows, const float *a, const float *b, int64_t depth,
                         const float *init, int64_t init_stride, float *c, int64_t c_stride) {
    vf sums[MICRO_ROWS][PANEL_VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            sums[r][v] = vload(init + r * init_stride + v * LANES);
    for (int64_t k = 0; k < depth; k++, b += PANEL, a++) {
        vf columns[PANEL_VECTORS];
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) columns[v] = vload(b + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            vf factor = vset(a[r * ROW_STRIDE]);
            UNROLL for (int v = 0; v < PANEL_VECTORS; v++) sums[r][v] += factor * columns[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            vstore(c + r * c_stride + v * LANES, sums[r][v]);
}

#define MICRO_CASE(rows)                                                                     \
    case rows:                                                                               \
        micro_kernel(rows, a, b, depth, init, init_stride, c, c_stride);                     \
        break;

static __attribute__((noinline)) void micro(
    int64_t rows, const float *a, const float *b, int64_t depth, const float *init,
    int64_t init_stride, float *c, int64_t c_stride) {
    switch (rows) {
        MICRO_CASE(1)
#if MICRO_ROWS > 1
        MICRO_CASE(2)
        MICRO_CASE(3)
#endif
#if MICRO_ROWS > 3
        MICRO_CASE(4)
        MICRO_CASE(5)
        MICRO_CASE(6)
        MICRO_CASE(7)
        MICRO_CASE(8)
        MICRO_CASE(9)
        MICRO_CASE(10)
        MICRO_CASE(11)
        MICRO_CASE(12)
        MICRO_CASE(13)
        MICRO_CASE(14)
#endif
    default: break;
    }
}

/* Any number of rows, cut into near-equal runs (32 = 11 + 11 + 10, not 14 + 14 + 4). */
static void micro_rows(int64_t rows, const float *a, const float *b, int64_t depth,
                       const float *init, int64_t init_stride, float *c, int64_t c_stride) {
    int64_t runs = (rows + MICRO_ROWS - 1) / MICRO_ROWS;
    for (int64_t run = 0; run < runs; run++) {
        int64_t from = rows * run / runs, to = rows * (run + 1) / runs;
        micro(to - from, a + from * ROW_STRIDE, b, depth, init + from * init_stride, init_stride,
              c + from * c_stride, c_stride);
    }
}

#endif
