/* GGUF's quantised blocks, decoded to quants, scales and minimums.
 *
 * Source: the GGUF specification and ggml's block structures. Every encoding becomes
 * weight = scale * quant + minimum; quants keep their file's range, except that those with a
 * fixed centre (Q5_0: 16, Q6_K: 32) are moved to signed values here.
 */
#ifndef OCTAVO_BLOCKS_H
#define OCTAVO_BLOCKS_H

#include "simd.h"

typedef enum {
    KIND_F32,
    KIND_F16,
    KIND_BF16,
    KIND_Q4_0,
    KIND_Q4_1,
    KIND_Q5_0,
    KIND_Q5_1,
    KIND_Q8_0,
    KIND_Q4_K,
    KIND_Q5_K,
    KIND_Q6_K
} block_kind;

/* Thirty-two weights: one or two groups. */
typedef struct {
    int8_t quants[32];
    float scales[2]; /* of the first and the last sixteen */
    float minimum;
} decoded;

INLINE uint16_t read_u16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

INLINE uint32_t read_u32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

INLINE void split_nibbles(const uint8_t *packed, int8_t *quants) {
    for (int i = 0; i < 16; i++) {
        quants[i] = (int8_t)(packed[i] & 15);
        quants[i + 16] = (int8_t)(packed[i] >> 4);
    }
}

/* Q4_0, Q4_1, Q5_0, Q5_1: [scale][minimum][fifth bits][nibbles]; Q8_0: [scale][bytes]. */
INLINE void decode_simple(const uint8_t *block, block_kind kind, decoded *out) {
    float scale = half_to_float(read_u16(block));
    out->scales[0] = out->scales[1] = scale;
    out->minimum = 0;
    block += 2;
    if (kind == KIND_Q8_0) {
        memcpy(out->quants, block, 32);
        return;
    }
    if (kind == KIND_Q4_1 || kind == KIND_Q5_1) {
        out->minimum = half_to_float(read_u16(block));
        block += 2;
    }
    if (kind == KIND_Q4_0 || kind == KIND_Q4_1) {
        split_nibbles(block, out->quants);
        return;
    }
    uint32_t fifth = read_u32(block);
    split_nibbles(block + 4, out->quants);
    int centre = kind == KIND_Q5_0 ? 16 : 0;
    for (int i = 0; i < 32; i++)
        out->quants[i] = (int8_t)((out->quants[i] | (int)((fifth >> i) & 1u) << 4) - centre);
}

/* The 6-bit scale and minimum of group 0 .. 8 in a Q4_K or Q5_K super-block's 12 bytes. */
INLINE void k_scale(const uint8_t *packed, int group, int *scale, int *minimum) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *minimum = packed[group + 4] & 63;
    } else {
        *scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
        *minimum = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4;
    }
}

INLINE void decode_k(const uint8_t *block, block_kind kind, int group, decoded *out) {
    int scale, minimum;
    k_scale(block + 4, group, &scale, &minimum);
    out->scales[0] = out->scales[1] = half_to_float(read_u16(block)) * (float)scale;
    out->minimum = -(half_to_float(read_u16(block + 2)) * (float)minimum);
    const uint8_t *fifth = block + 16;
    const uint8_t *nibbles = block + (kind == KIND_Q5_K ? 48 : 16) + group / 2 * 32;
    for (int i = 0; i < 32; i++) {
        int quant = group % 2 ? nibbles[i] >> 4 : nibbles[i] & 15;
        if (kind == KIND_Q5_K) quant |= ((fifth[i] >> group) & 1) << 4;
        out->quants[i] = (int8_t)quant;
    }
}

INLINE void decode_q6_k(const uint8_t *block, int group, decoded *out) {
    const uint8_t *low = block + group / 4 * 64 + group % 2 * 32;
    const uint8_t *high = block + 128 + group / 4 * 32;
    const int8_t *scales = (const int8_t *)block + 192 + group * 2;
    float scale = half_to_float(read_u16(block + 208));
    int quarter = group % 4;
    for (int i = 0; i < 32; i++) {
        int quant = quarter < 2 ? low[i] & 15 : low[i] >> 4;
        quant |= ((high[i] >> (2 * quarter)) & 3) << 4;
        out->quants[i] = (int8_t)(quant - 32);
    }
    out->scales[0] = scale * (float)scales[0];
    out->scales[1] = scale * (float)scales[1];
    out->minimum = 0;
}

/* Weights 32 * index .. 32 * (index + 1) of a row. */
INLINE void decode_group(const uint8_t *row, block_kind kind, int64_t index, decoded *out) {
    switch (kind) {
    case KIND_Q4_0: decode_simple(row + index * 18, KIND_Q4_0, out); break;
    case KIND_Q4_1: decode_simple(row + index * 20, KIND_Q4_1, out); break;
    case KIND_Q5_0: decode_simple(row + index * 22, KIND_Q5_0, out); break;
    case KIND_Q5_1: decode_simple(row + index * 24, KIND_Q5_1, out); break;
    case KIND_Q8_0: decode_simple(row + index * 34, KIND_Q8_0, out); break;
    case KIND_Q4_K: decode_k(row + index / 8 * 144, KIND_Q4_K, (int)(index % 8), out); break;
    case KIND_Q5_K: decode_k(row + index / 8 * 176, KIND_Q5_K, (int)(index % 8), out); break;
    case KIND_Q6_K: decode_q6_k(row + index / 8 * 210, (int)(index % 8), out); break;
    default: break;
    }
}

#endif
