/* Vectors of the widest width the target has, and the few operations the kernels need.
 *
 * Written with the compiler's vector extensions, so that one source serves AVX-512 (16 lanes),
 * AVX2 (8 lanes) and everything else (4 lanes: SSE2, NEON). Intrinsics only where the
 * extension has no word for the instruction.
 */
#ifndef OCTAVO_SIMD_H
#define OCTAVO_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#else
#define UNROLL PRAGMA(GCC unroll 32)
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef float vf_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t vb_any __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE vf vload(const float *p) { return *(const vf_any *)p; }
INLINE vu vload_u(const void *p) { return *(const vu_any *)p; }
INLINE void vstore(float *p, vf v) { *(vf_any *)p = v; }

INLINE vf vset(float x) {
#if defined(__AVX512F__)
    return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vi m = a > b;
    return (vf)((m & (vi)a) | (~m & (vi)b));
#endif
}

INLINE vf vmin(vf a, vf b) { return -vmax(-a, -b); }

/* a where mask is set, b elsewhere. */
INLINE vf vselect(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

INLINE vf vfrom_int(vi v) { return __builtin_convertvector(v, vf); }

/* Eight-bit integers, sign-extended. */
INLINE vf vload_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return vfrom_int(__builtin_convertvector(*(const vb_any *)p, vi));
#endif
}

/* A float and its bits. */
typedef union {
    float value;
    uint32_t bits;
} float_bits;

INLINE float half_to_float(uint16_t half) {
    float_bits f = {.bits = (uint32_t)(half & 0x7fffu) << 13};
    if ((half & 0x7c00u) == 0x7c00u) f.bits |= 0x7f800000u; /* infinity or NaN */
    else f.value *= 0x1p112f; /* rebias the exponent; subnormals come out right */
    f.bits |= (uint32_t)(half & 0x8000u) << 16;
    return f.value;
}

/* Round to nearest, ties to even. */
INLINE uint16_t float_to_half(float value) {
    float_bits f = {.value = value};
    uint32_t sign = (f.bits >> 16) & 0x8000u;
    f.bits &= 0x7fffffffu;
    if (f.bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (f.bits >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    if (f.bits < 0x38800000u) { /* subnormal in half: let the adder round */
        f.value += 0.5f;
        return (uint16_t)(sign | (f.bits - 0x3f000000u));
    }
    f.bits += 0xc8000fffu + ((f.bits >> 13) & 1u);
    return (uint16_t)(sign | (f.bits >> 13));
}

INLINE float bfloat_to_float(uint16_t bfloat) {
    return ((float_bits){.bits = (uint32_t)bfloat << 16}).value;
}

INLINE uint16_t float_to_bfloat(float value) {
    float_bits f = {.value = value};
    if ((f.bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((f.bits >> 16) | 0x40u);
    return (uint16_t)((f.bits + 0x7fffu + ((f.bits >> 16) & 1u)) >> 16);
}

INLINE vf vload_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vu half = __builtin_convertvector(*(const vh_any *)p, vu);
    vu bits = (half & 0x7fffu) << 13;
    vu special = (vu)((half & 0x7c00u) == 0x7c00u);
    vf value = (vf)bits * 0x1p112f;
    bits = (special & (bits | 0x7f800000u)) | (~special & (vu)value);
    return (vf)(bits | ((half & 0x8000u) << 16));
#endif
}

/* The first `count` (< LANES) floats, zero beyond. */
INLINE vf vload_part(const float *p, int64_t count) {
    float lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)count * sizeof(float));
    return vload(lanes);
}

INLINE void vstore_part(float *p, vf v, int64_t count) {
    float lanes[LANES];
    vstore(lanes, v);
    memcpy(p, lanes, (size_t)count * sizeof(float));
}

INLINE float vsum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

INLINE float vmax_lane(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float largest = v[0];
    for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
#endif
}

INLINE int vany(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

/* e^x within 2 ulp; 0 below -87.3, the largest finite float's neighbourhood above 88.3. */
INLINE vf vexp(vf x) {
    vi is_zero = x < -87.3f;
    vf clamped = vmin(vmax(x, vset(-87.3f)), vset(88.3f));
    vf rounded = (clamped * 1.44269504088896341f + 12582912.f) - 12582912.f;
    vf r = clamped - rounded * 0.693359375f;
    r = r - rounded * -2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    vi exponent = __builtin_convertvector(rounded, vi);
    y = (vf)((vi)y + (exponent << 23));
    return (vf)(~is_zero & (vi)y);
}

/* Lane shuffles: GCC before 12 lacks clang's builtin. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* Lane i of the result is the sum of all lanes of v[i], for i in 0 .. LANES. */
INLINE vf vsum_each(const vf *v) {
#if LANES == 16
#define LOW2(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW4(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH4(a, b) SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#elif LANES == 8
#define LOW2(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW4(a, b) SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH4(a, b) SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define LOW2(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define LOW4(a, b) SHUFFLE(a, b, 0, 1, 4, 5)
#define HIGH4(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#endif
    vf quads[LANES / 4]; /* each 128-bit lane: partial sums of the same four inputs */
    UNROLL for (int q = 0; q < LANES / 4; q++) {
        const vf *in = v + 4 * q;
        vf first = LOW2(in[0], in[1]) + HIGH2(in[0], in[1]);
        vf second = LOW2(in[2], in[3]) + HIGH2(in[2], in[3]);
        quads[q] = LOW4(first, second) + HIGH4(first, second);
    }
#if LANES == 16
    vf a = SHUFFLE(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    vf b = SHUFFLE(quads[2], quads[3], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(quads[2], quads[3], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif LANES == 8
    return SHUFFLE(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
    return quads[0];
#endif
#undef LOW2
#undef HIGH2
#undef LOW4
#undef HIGH4
}

#endif
