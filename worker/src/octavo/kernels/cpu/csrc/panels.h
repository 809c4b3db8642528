/* How weights lie in memory.
 *
 * The outputs of a matrix are cut into panels of PANEL = 32, and a panel is stored input by
 * input, so that a product reads memory strictly forward whatever the number of rows.
 *
 * Dense panels, per input: 32 floats; 32 halves; or 16 words that pair the bfloat16 of output i
 * (low) with that of output i + 16 (high), so that a shift and a mask widen them.
 *
 * Quantised panels, per group of inputs: the quants, then 32 scales, then (where the encoding
 * has them) 32 minimums. A weight is scale * (quant - offset) + minimum. Four-bit quants of four
 * inputs share 16 words: nibble j of word i is input j / 2 of output i + 16 * (j % 2). Eight-bit
 * quants are 32 signed bytes per input. Scales are float16 where the file's are, else float32,
 * which holds the product of a K-quant's two scales exactly.
 */
#ifndef OCTAVO_PANELS_H
#define OCTAVO_PANELS_H

#include "simd.h"

#define PANEL 32
#define HALF_PANEL 16
#define PANEL_VECTORS (PANEL / LANES)

typedef enum {
    FORMAT_F32,
    FORMAT_BF16,
    FORMAT_F16,
    FORMAT_Q4,        /* Q4_0: centred at 8 */
    FORMAT_Q4_MIN,    /* Q4_1 */
    FORMAT_Q4_K,      /* Q4_K: float32 scales and minimums */
    FORMAT_Q8,        /* Q8_0, Q5_0 */
    FORMAT_Q8_MIN,    /* Q5_1 */
    FORMAT_Q8_K,      /* Q5_K: float32 scales and minimums */
    FORMAT_Q8_GROUP16 /* Q6_K: float32 scales, groups of 16 */
} format;

typedef struct {
    int bits;       /* of a quant; 0 for dense */
    int offset;     /* subtracted from a quant */
    int group_size; /* inputs that share a scale */
    int scale_size; /* bytes: 2 or 4 */
    int has_min;
} quant_format;

/* Always inlined with a constant, so that every use folds. */
INLINE quant_format quant_format_of(format f) {
    switch (f) {
    case FORMAT_Q4: return (quant_format){4, 8, 32, 2, 0};
    case FORMAT_Q4_MIN: return (quant_format){4, 0, 32, 2, 1};
    case FORMAT_Q4_K: return (quant_format){4, 0, 32, 4, 1};
    case FORMAT_Q8: return (quant_format){8, 0, 32, 2, 0};
    case FORMAT_Q8_MIN: return (quant_format){8, 0, 32, 2, 1};
    case FORMAT_Q8_K: return (quant_format){8, 0, 32, 4, 1};
    case FORMAT_Q8_GROUP16: return (quant_format){8, 0, 16, 4, 0};
    default: return (quant_format){0, 0, 1, 0, 0};
    }
}

INLINE int64_t group_bytes(quant_format q) {
    return q.group_size * PANEL * q.bits / 8 + (int64_t)PANEL * q.scale_size * (1 + q.has_min);
}

static int64_t panel_bytes(format f, int64_t in_features) {
    if (f == FORMAT_F32) return in_features * PANEL * 4;
    if (f == FORMAT_BF16 || f == FORMAT_F16) return in_features * PANEL * 2;
    quant_format q = quant_format_of(f);
    return in_features / q.group_size * group_bytes(q);
}

/* A run of outputs in one format. Filled in by Python as int64 values: keep in step. */
typedef struct {
    int64_t format;
    int64_t first_output; /* column of y where it begins */
    int64_t num_outputs;
    int64_t num_panels;
    int64_t panel_bytes;
    const uint8_t *data;
} segment;

/* A prepared product, as Python lays it out. */
typedef struct {
    int64_t in_features;
    int64_t out_features;
    int64_t num_panels;   /* of all segments */
    const float *bias;    /* [num_panels * PANEL], or NULL */
    int64_t num_segments;
    segment segments[];
} linear_plan;

_Static_assert(sizeof(void *) == 8, "plans hold pointers as int64");

INLINE vf load_scale(const uint8_t *scales, int scale_size, int vector) {
    return scale_size == 2 ? vload_half((const uint16_t *)scales + vector * LANES)
                           : vload((const float *)scales + vector * LANES);
}

/* Sixteen nibbles' values, one per lane, from bits shift .. shift + 4 of each word. */
INLINE vf nibble_values(vu words, int shift, int offset) {
#if defined(__AVX512F__)
    /* vpermps looks at the low four bits only: a table lookup without mask or conversion. */
    __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (offset) table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return (vf)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, (unsigned)shift), table);
#else
    vi quants = (vi)((words >> shift) & 15u);
    return vfrom_int(offset ? quants - offset : quants);
#endif
}

#endif
