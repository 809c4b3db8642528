/* Matrices of a file into other memory: each number scaled, and rounded once to the format there. */
#include "blocks.h"
#include "simd.h"

typedef struct {
    int64_t source; /* where it begins among the file's bytes, row by row */
    int64_t kind;   /* F32, F16 or BF16 */
    int64_t num_rows, size;
    int64_t target; /* where it begins among the numbers of the target */
    int64_t stride; /* numbers from row to row there */
} matrix_copy;

typedef struct {
    const uint8_t *file;
    const matrix_copy *matrices;
    const float *scalings; /* of each matrix */
    int64_t num_matrices;
    uint8_t *target;
    block_kind kind;
    int64_t *all_finite; /* set to 0 for what is infinite or no number in the target */
} copying;

/* The kinds are constants wherever this is inlined, so the loop is one of vectors. */
INLINE int copy_numbers(const uint8_t *from, block_kind source, uint8_t *to, block_kind target,
                        float scaling, int64_t size) {
    uint32_t beyond = 0;
    for (int64_t k = 0; k < size; k++) {
        float_bits f;
        if (source == KIND_F32) memcpy(&f.value, from + 4 * k, 4);
        else if (source == KIND_F16) f.value = half_to_float(read_u16(from + 2 * k));
        else f.value = bfloat_to_float(read_u16(from + 2 * k));
        f.value *= scaling;
        if (target == KIND_F32) {
            beyond |= (f.bits & 0x7f800000u) == 0x7f800000u;
            memcpy(to + 4 * k, &f.value, 4);
        } else {
            uint16_t exponent = target == KIND_F16 ? 0x7c00u : 0x7f80u;
            uint16_t bits = target == KIND_F16 ? float_to_half(f.value) : float_to_bfloat(f.value);
            beyond |= (bits & exponent) == exponent;
            memcpy(to + 2 * k, &bits, 2);
        }
    }
    return !beyond;
}

static int copy_row(const uint8_t *from, block_kind source, uint8_t *to, block_kind target,
                    float scaling, int64_t size) {
#define CASE(a, b) \
    if (source == a && target == b) return copy_numbers(from, a, to, b, scaling, size)
    CASE(KIND_F32, KIND_F32);
    CASE(KIND_F32, KIND_F16);
    CASE(KIND_F32, KIND_BF16);
    CASE(KIND_F16, KIND_F32);
    CASE(KIND_F16, KIND_F16);
    CASE(KIND_F16, KIND_BF16);
    CASE(KIND_BF16, KIND_F32);
    CASE(KIND_BF16, KIND_F16);
    CASE(KIND_BF16, KIND_BF16);
#undef CASE
    return 0;
}

static void copy_matrices(const copying *c) {
    int64_t to_size = c->kind == KIND_F32 ? 4 : 2;
    for (int64_t i = 0; i < c->num_matrices; i++) {
        const matrix_copy *m = c->matrices + i;
        int64_t from_size = m->kind == KIND_F32 ? 4 : 2;
        int64_t num_rows = m->num_rows, size = m->size;
        if (m->stride == size) size *= num_rows, num_rows = 1;
        for (int64_t row = 0; row < num_rows; row++)
            if (!copy_row(c->file + m->source + row * size * from_size, (block_kind)m->kind,
                          c->target + (m->target + row * m->stride) * to_size, c->kind,
                          c->scalings[i], size))
                *c->all_finite = 0;
    }
}
