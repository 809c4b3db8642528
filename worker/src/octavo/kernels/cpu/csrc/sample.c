/* Greedy choice, filters and the Gumbel-max draw of one token per row.
 *
 * Filters find the lowest logit they keep through a histogram, so that no row is ever sorted.
 * The draw needs the noise of few tokens: -log(u) >= 1 - u, hence a token whose 1 - u is not
 * below exp(logit - best) cannot win and its logarithms are never taken.
 */
#include <float.h>

#include "simd.h"
#include "threads.h"

typedef struct {
    float *logits;
    int64_t num_rows, vocab_size;
    const float *temperature;
    const int32_t *top_k;
    const float *top_p, *min_p;
    const int64_t *seeds;
    const int32_t *positions;
    int64_t all_greedy, any_filter;
    const uint32_t *masks;    /* [num_masks, ceil(vocab_size / 32)]; NULL: no row has one */
    const int32_t *mask_rows; /* [num_rows]: the row's mask, or -1 */
    int64_t *out;
} sampling;

/* The lowest index of the largest value; NaN is never the largest. */
static int64_t argmax(const float *x, int64_t size) {
    vf most[4] = {vset(-INFINITY), vset(-INFINITY), vset(-INFINITY), vset(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES)
        UNROLL for (int v = 0; v < 4; v++) most[v] = vmax(vload(x + i + v * LANES), most[v]);
    float largest = vmax_lane(vmax(vmax(most[0], most[1]), vmax(most[2], most[3])));
    for (; i < size; i++) largest = x[i] > largest ? x[i] : largest;
    for (i = 0; i + LANES <= size; i += LANES)
        if (vany(vload(x + i) == vset(largest))) break;
    for (; i < size; i++)
        if (x[i] == largest) return i;
    return 0;
}

typedef uint64_t vq __attribute__((vector_size(LANES * 4)));
enum { WIDE_LANES = LANES / 2 };

/* The product of the low 32 bits of each 64-bit lane with a 32-bit constant. */
INLINE vq multiply_low(vq a, uint32_t factor) {
#if defined(__AVX512F__)
    return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
    return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#else
    return (a & 0xffffffffu) * (uint64_t)factor;
#endif
}

/* The four words [4][LANES] of Philox4x32-10 for counters (first + 0 .. LANES, position, 0, 0).
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3". */
static void philox(uint32_t first, uint32_t position, uint64_t seed, uint32_t *words) {
    for (int half = 0; half < 2; half++) {
        vq c0, c1 = {0}, c2 = {0}, c3 = {0};
        for (int i = 0; i < WIDE_LANES; i++) c0[i] = first + (uint32_t)(half * WIDE_LANES + i);
        c1 += position;
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            vq p0 = multiply_low(c0, 0xD2511F53u), p1 = multiply_low(c2, 0xCD9E8D57u);
            c0 = (p1 >> 32) ^ c1 ^ (uint64_t)k0;
            c2 = (p0 >> 32) ^ c3 ^ (uint64_t)k1;
            c1 = p1, c3 = p0; /* only the low halves count */
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        const vq word[4] = {c0, c1, c2, c3};
        for (int w = 0; w < 4; w++)
            for (int i = 0; i < WIDE_LANES; i++)
                words[w * LANES + half * WIDE_LANES + i] = (uint32_t)word[w][i];
    }
}

static double gumbel(uint32_t word) {
    double u = ((double)(word >> 8) + 0.5) * 0x1p-24;
    return -log(-log(u));
}

/* The winner so far. */
typedef struct {
    double best;
    int64_t id;
} draw;

static void consider(draw *d, float logit, uint32_t word, int64_t id) {
    double value = (double)logit + gumbel(word);
    if (value > d->best || (value == d->best && id < d->id)) *d = (draw){value, id};
}

/* Of each TOKENS_A_GROUP tokens, COUNTERS_A_GROUP counters give their first words to the first COUNTERS_A_GROUP tokens,
 * their second words to the next, and so on: see octavo.kernels.philox. */
enum { COUNTERS_A_GROUP = 16, TOKENS_A_GROUP = 4 * COUNTERS_A_GROUP };

/* The tokens of one group that share LANES counters, from counter number `first` of the group. */
static void draw_lanes(draw *d, const float *logits, int64_t size, int64_t group, int64_t first,
                       float lowest, uint64_t seed, uint32_t position) {
    vf bounds[4];
    vi kept[4];
    int any = 0;
    for (int w = 0; w < 4; w++) {
        int64_t i = group + w * COUNTERS_A_GROUP + first;
        kept[w] = (vi){0};
        if (i >= size) continue;
        vf x = i + LANES <= size ? vload(logits + i) : vload_part(logits + i, size - i);
        /* What 1 - u must stay below, with room for rounding; 1 - u is at least 2^-25. */
        bounds[w] = vexp(x - vset((float)d->best)) * 1.001f;
        kept[w] = (x >= lowest) & (bounds[w] > 0x1p-25f);
        any |= vany(kept[w]) != 0;
    }
    if (!any) return;
    uint32_t words[4 * LANES];
    philox((uint32_t)(group / 4 + first), position, seed, words);
    for (int w = 0; w < 4; w++) {
        if (!vany(kept[w])) continue;
        int64_t i = group + w * COUNTERS_A_GROUP + first;
        vu complement = 0xffffffu - (vload_u(words + w * LANES) >> 8);
        vf tail = (vfrom_int((vi)complement) + 0.5f) * 0x1p-24f;
        kept[w] &= tail < bounds[w];
        if (!vany(kept[w])) continue;
        for (int64_t lane = 0; lane < min_of(LANES, size - i); lane++)
            if (kept[w][lane]) consider(d, logits[i + lane], words[w * LANES + lane], i + lane);
    }
}

/* argmax of logit + noise over logits >= lowest; `likeliest` is the argmax of the logits. */
static int64_t draw_token(const float *logits, int64_t size, float lowest, int64_t likeliest,
                          uint64_t seed, uint32_t position) {
    uint32_t words[4 * LANES];
    draw d = {-INFINITY, likeliest};
    philox((uint32_t)(likeliest / TOKENS_A_GROUP * COUNTERS_A_GROUP + likeliest % COUNTERS_A_GROUP), position, seed, words);
    consider(&d, logits[likeliest], words[likeliest / COUNTERS_A_GROUP % 4 * LANES], likeliest);
    for (int64_t group = 0; group < size; group += TOKENS_A_GROUP)
        for (int64_t lane = 0; lane < COUNTERS_A_GROUP; lane += LANES)
            draw_lanes(&d, logits, size, group, lane, lowest, seed, position);
    return d.id;
}

#define BINS 2048
#define BIN_RANGE 32.0f /* logits further below the largest share the last bin */

typedef struct {
    const float *logits;
    int64_t size;
    float largest, bins_per_unit;
    float *values; /* [size], scratch */
    uint32_t counts[BINS];
    double masses[BINS];
} histogram;

/* Bin 0 holds the largest logit; later bins hold smaller ones. */
INLINE vi bins_of(const histogram *h, vf x) {
    vf distance = (vset(h->largest) - x) * vset(h->bins_per_unit);
    return __builtin_convertvector(vmin(distance, vset(BINS - 1)), vi);
}

/* Count logits >= lowest and sum their exp(logit - largest) per bin. */
static void fill(histogram *h, float lowest) {
    memset(h->counts, 0, sizeof(h->counts));
    memset(h->masses, 0, sizeof(h->masses));
    for (int64_t i = 0; i < h->size; i += LANES) {
        int64_t lanes = min_of(h->size - i, LANES);
        vf x = lanes == LANES ? vload(h->logits + i) : vload_part(h->logits + i, lanes);
        if (!vany(x >= lowest)) continue;
        vi bins = bins_of(h, x);
        vf masses = vexp(x - vset(h->largest));
        for (int64_t lane = 0; lane < lanes; lane++) {
            if (x[lane] < lowest) continue;
            h->counts[bins[lane]]++;
            h->masses[bins[lane]] += (double)masses[lane];
        }
    }
}

/* Logits >= lowest of one bin into h->values; returns how many. */
static int64_t gather_bin(histogram *h, int bin, float lowest) {
    int64_t count = 0;
    for (int64_t i = 0; i < h->size; i += LANES) {
        int64_t lanes = min_of(h->size - i, LANES);
        vf x = lanes == LANES ? vload(h->logits + i) : vload_part(h->logits + i, lanes);
        vi bins = bins_of(h, x);
        vi found = bins == bin;
        if (!vany(found)) continue;
        for (int64_t lane = 0; lane < lanes; lane++)
            if (found[lane] && x[lane] >= lowest) h->values[count++] = x[lane];
    }
    return count;
}

/* The rank-th largest (from 1) of the values, which are reordered. */
static float select_largest(float *values, int64_t count, int64_t rank) {
    int64_t low = 0, high = count - 1, target = rank - 1;
    while (low < high) {
        float pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                float held = values[i];
                values[i++] = values[j];
                values[j--] = held;
            }
        }
        if (target <= j) high = j;
        else if (target >= i) low = i;
        else break;
    }
    return values[target];
}

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The k-th largest logit. The histogram is filled. */
static float lowest_of_top_k(histogram *h, int64_t k) {
    int64_t above = 0;
    int bin = 0;
    while (above + h->counts[bin] < k) above += h->counts[bin++];
    int64_t count = gather_bin(h, bin, -INFINITY);
    return select_largest(h->values, count, k - above);
}

/* The smallest logit above which less than top_p of the mass lies. The histogram is filled
 * with the logits >= lowest. */
static float lowest_of_top_p(histogram *h, double top_p, float lowest) {
    double total = 0, above = 0;
    for (int bin = 0; bin < BINS; bin++) total += h->masses[bin];
    double target = top_p * total;
    int bin = 0;
    while (bin < BINS && above + h->masses[bin] < target) above += h->masses[bin++];
    if (bin == BINS) return lowest;
    int64_t count = gather_bin(h, bin, lowest);
    qsort(h->values, (size_t)count, sizeof(float), descending);
    float last = bin == 0 ? h->largest : INFINITY;
    for (int64_t i = 0; i < count;) {
        float value = h->values[i];
        if (above >= target && value < h->largest) break;
        last = value;
        for (; i < count && h->values[i] == value; i++) above += exp((double)value - h->largest);
    }
    return last;
}

/* The smallest float that is not below max + log(min_p). */
static float lowest_of_min_p(float largest, float min_p) {
    double bound = (double)largest + log((double)min_p);
    float lowest = (float)bound;
    return (double)lowest < bound ? nextafterf(lowest, INFINITY) : lowest;
}

static float smallest_finite(const float *x, int64_t size, float largest) {
    vf least = vset(largest);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vf values = vload(x + i);
        least = vmin(least, vselect(values < -FLT_MAX, vset(largest), values));
    }
    float smallest = -vmax_lane(-least);
    for (; i < size; i++)
        if (x[i] >= -FLT_MAX && x[i] < smallest) smallest = x[i];
    return smallest;
}

/* The lowest logit that top-k, then top-p, then min-p keep. */
static float lowest_kept(const float *logits, int64_t size, float largest, int32_t top_k,
                         float top_p, float min_p, float *values, histogram *h) {
    float lowest = -INFINITY;
    int has_top_k = top_k > 0 && top_k < size, has_top_p = top_p < 1;
    float range = largest - smallest_finite(logits, size, largest);
    if ((has_top_k || has_top_p) && range > 0) {
        float shown = range < BIN_RANGE ? range : BIN_RANGE;
        h->logits = logits, h->size = size, h->largest = largest, h->values = values;
        h->bins_per_unit = (BINS - 2) / shown;
        fill(h, lowest);
        if (has_top_k) {
            lowest = lowest_of_top_k(h, top_k);
            if (has_top_p) fill(h, lowest);
        }
        if (has_top_p) lowest = lowest_of_top_p(h, (double)top_p, lowest);
    } else if (has_top_k || has_top_p) {
        lowest = largest; /* all that is not masked is equal */
    }
    if (min_p > 0) {
        float least = lowest_of_min_p(largest, min_p);
        lowest = least > lowest ? least : lowest;
    }
    return lowest;
}

/* Minus infinity wherever a mask leaves a token out, in place: a mask that a grammar makes keeps
 * few tokens or nearly all, so most words need no look at their bits. */
static void apply_mask(float *logits, int64_t size, const uint32_t *mask) {
    for (int64_t first = 0; first < size; first += 32) {
        uint32_t kept = mask[first / 32];
        if (kept == 0xffffffffu) continue;
        int64_t count = min_of(32, size - first);
        for (int64_t i = 0; i < count; i++)
            if (!(kept >> i & 1)) logits[first + i] = -INFINITY;
    }
}

static int64_t sample_row(const sampling *s, int64_t row) {
    int64_t size = s->vocab_size;
    float *logits = s->logits + row * size;
    if (s->masks && s->mask_rows[row] >= 0)
        apply_mask(logits, size, s->masks + s->mask_rows[row] * ((size + 31) / 32));
    int64_t likeliest = argmax(logits, size);
    if (s->all_greedy || s->temperature[row] == 0) return likeliest;
    size_t rounded = ((size_t)size + 15) / 16 * 16 * sizeof(float);
    float *scaled = scratch(2 * rounded + sizeof(histogram));
    float *values = scaled + rounded / sizeof(float);
    histogram *h = (histogram *)(values + rounded / sizeof(float));
    vf temperature = vset(s->temperature[row]);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) vstore(scaled + i, vload(logits + i) / temperature);
    for (; i < size; i++) scaled[i] = logits[i] / s->temperature[row];
    float largest = scaled[likeliest];
    if (!(largest > -INFINITY)) return likeliest; /* everything is masked */
    float lowest = -FLT_MAX; /* never draw what is masked */
    if (s->any_filter) {
        float kept = lowest_kept(scaled, size, largest, s->top_k[row], s->top_p[row],
                                 s->min_p[row], values, h);
        lowest = kept > lowest ? kept : lowest;
    }
    return draw_token(scaled, size, lowest, likeliest, (uint64_t)s->seeds[row],
                      (uint32_t)s->positions[row]);
}

static void sample_part(void *context, int64_t part, int64_t num_parts) {
    const sampling *s = context;
    (void)num_parts;
    s->out[part] = sample_row(s, part);
}

static void sample(sampling *s, int64_t num_threads) {
    if (s->num_rows * s->vocab_size < 32768) num_threads = 1;
    parallel(num_threads, s->num_rows, sample_part, s);
}
