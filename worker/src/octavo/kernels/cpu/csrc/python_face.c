/* The functions Python calls, each taking and checking only integers and floats.
 *
 * They have CPython's fast-call signature and are wrapped into callables with
 * PyCFunction_NewEx when the library is loaded: a call then costs about a tenth of a
 * microsecond, where ctypes costs one to two. Everything used here belongs to the stable ABI,
 * declared by hand so that building needs no Python headers and one file serves every Python.
 */
typedef struct python_object python_object;
extern void *PyLong_AsVoidPtr(python_object *);
extern long long PyLong_AsLongLong(python_object *);
extern double PyFloat_AsDouble(python_object *);
extern python_object *PyLong_FromLong(long);
extern python_object *PyErr_Occurred(void);
extern void PyErr_SetString(python_object *, const char *);
extern python_object *PyExc_TypeError;
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);

typedef struct {
    const char *name;
    void *function;
    int flags;
    const char *doc;
} method_definition; /* CPython's PyMethodDef */
#define FAST_CALL 0x0080 /* METH_FASTCALL */

/* Work below this many operations is over before another thread could use the interpreter. */
#define RELEASE_ABOVE 20000000

typedef union {
    int64_t i;
    float f;
    void *p;
} argument;

#define MAX_ARGUMENTS 24

/* One letter per argument: p pointer (an integer), i integer, f float. */
static int parse(python_object *const *given, int64_t num_given, const char *format,
                 argument *out) {
    if (num_given != (int64_t)strlen(format)) {
        PyErr_SetString(PyExc_TypeError, "wrong number of arguments to a CPU kernel");
        return 0;
    }
    for (int64_t n = 0; n < num_given; n++) {
        if (format[n] == 'p') out[n].p = PyLong_AsVoidPtr(given[n]);
        else if (format[n] == 'i') out[n].i = PyLong_AsLongLong(given[n]);
        else out[n].f = (float)PyFloat_AsDouble(given[n]);
    }
    return PyErr_Occurred() == NULL;
}

/* Defines python_NAME, which runs call_NAME on the parsed arguments; `operations` estimates the
 * work from them. */
#define FUNCTION(name, format, operations)                                                   \
    static python_object *python_##name(                                                     \
        python_object *self, python_object *const *given, int64_t num_given) {               \
        argument a[MAX_ARGUMENTS];                                                           \
        (void)self;                                                                          \
        if (!parse(given, num_given, format, a)) return NULL;                                \
        void *state = (operations) > RELEASE_ABOVE ? PyEval_SaveThread() : NULL;             \
        call_##name(a);                                                                      \
        if (state) PyEval_RestoreThread(state);                                              \
        return PyLong_FromLong(0);                                                           \
    }

/* plan, x, num_rows, y, threads */
static void call_linear(const argument *a) {
    linear_forward(a[0].p, a[1].p, a[2].i, a[3].p, a[4].i);
}
static int64_t linear_operations(const linear_plan *plan, int64_t num_rows) {
    return plan->in_features * plan->out_features * num_rows;
}
FUNCTION(linear, "ppipi", linear_operations(a[0].p, a[2].i))

/* plan, ids, bytes per id, num_ids, out, threads */
static void call_rows(const argument *a) {
    gathering g = {a[0].p, a[1].p, a[2].i, a[3].i, a[4].p};
    int64_t threads = g.num_ids * g.plan->in_features < 65536 ? 1 : a[5].i;
    parallel(threads, parts_for(g.num_ids, threads), gather_rows, &g);
}
FUNCTION(rows, "ppiipi", a[3].i * 10000)

/* panels, format, first_row, num_rows, in_features, source, row_bytes, kind, threads */
static void call_pack(const argument *a) {
    packing p = {a[0].p, (format)a[1].i, a[2].i, a[3].i, a[4].i, a[5].p, a[6].i,
                 (block_kind)a[7].i};
    parallel(a[8].i, parts_for(p.num_rows / PANEL, a[8].i), pack_panels, &p);
}
FUNCTION(pack, "piiiipiii", a[3].i * a[4].i * 10)

/* data, size_bytes */
static void call_advise(const argument *a) { advise_huge_pages(a[0].p, a[1].i); }
FUNCTION(advise, "pi", 0)

/* x, residual or 0, weight, out, num_rows, size, eps, threads */
static void call_rms_norm(const argument *a) {
    rms_norm(a[0].p, a[1].p, a[2].p, a[3].p, a[4].i, a[5].i, a[6].f, a[7].i);
}
FUNCTION(rms_norm, "ppppiifi", a[4].i * a[5].i)

/* gate_up, out, num_rows, size, is_gelu, threads */
static void call_gated(const argument *a) {
    gated(a[0].p, a[1].p, a[2].i, a[3].i, (int)a[4].i, a[5].i);
}
FUNCTION(gated, "ppiiii", a[2].i * a[3].i * 10)

/* qkv, cos_sin, rotary_dim, key_cache, value_cache, positions, slots, num_tokens, num_heads,
 * num_kv_heads, head_dim, block_size, block_stride, q_norm or 0, k_norm or 0, eps, q_out,
 * threads */
static void call_rope_and_cache(const argument *a) {
    rope_task t = {a[0].p, a[1].p, a[2].i, a[3].p, a[4].p, a[5].p, a[6].p, a[7].i,
                   a[8].i, a[9].i, a[10].i, a[11].i, a[12].i, a[13].p, a[14].p, a[15].f, a[16].p};
    rope_and_cache(&t, a[17].i);
}
FUNCTION(rope_and_cache, "ppippppiiiiiippfpi", a[7].i * a[8].i * a[10].i)

/* q, key_cache, value_cache, query_starts, context_lens, block_tables, num_tokens,
 * num_sequences, num_decodes, max_blocks, num_heads, num_kv_heads, head_dim, block_size,
 * block_stride, scale, window or 0, max_context_len, out, threads */
static void call_paged_attention(const argument *a) {
    attention task = {a[0].p, a[1].p, a[2].p, a[3].p, a[4].p, a[5].p, a[7].i, a[8].i,
                      a[9].i, a[10].i, a[11].i, a[12].i, a[13].i, a[14].i, a[15].f, a[16].i,
                      a[18].p};
    paged_attention(&task, a[6].i, a[19].i);
}
FUNCTION(paged_attention, "ppppppiiiiiiiiifiipi",
         a[6].i * a[10].i * a[12].i * a[17].i)

/* logits, num_rows, vocab_size, temperature, top_k, top_p, min_p, seeds, positions, all_greedy,
 * any_filter, masks or 0, mask_rows or 0, out, threads */
static void call_sample(const argument *a) {
    sampling s = {a[0].p, a[1].i, a[2].i, a[3].p, a[4].p, a[5].p, a[6].p,
                  a[7].p, a[8].p, a[9].i, a[10].i, a[11].p, a[12].p, a[13].p};
    sample(&s, a[14].i);
}
FUNCTION(sample, "piippppppiipppi", a[1].i * a[2].i * 20)

/* x, x_stride, in_features, a, a_slot_stride, a_part_stride, b, b_slot_stride, table, index,
 * num_projections, order, num_ordered, slots, out_features, num_parts, y, y_stride, threads */
static adapters_task adapters_of(const argument *a) {
    return (adapters_task){a[0].p, a[1].i, a[2].i, a[3].p, a[4].i, a[5].i, a[6].p, a[7].i, a[8].p,
                           a[9].i, a[10].i, a[11].p, a[12].i, a[13].p, a[14].p, a[15].i, a[16].p,
                           a[17].i};
}
static void call_adapters(const argument *a) {
    adapters_task t = adapters_of(a);
    add_adapters(&t, a[18].i);
}
static int64_t adapters_operations(const argument *a) {
    adapters_task t = adapters_of(a);
    return adapters_products(&t);
}
FUNCTION(adapters, "piipiipipiipippipii", adapters_operations(a))

/* file, matrices: [n, 6] 64-bit integers as in copies.c, scalings, n, target, its kind, set to 0
 * for what is not finite there */
static void call_copy_matrices(const argument *a) {
    copying c = {a[0].p, a[1].p, a[2].p, a[3].i, a[4].p, (block_kind)a[5].i, a[6].p};
    copy_matrices(&c);
}
FUNCTION(copy_matrices, "pppipip", INT64_MAX)

/* For tests: first counter, position, seed, out: [4][LANES] words. */
static void call_philox(const argument *a) {
    philox((uint32_t)a[0].i, (uint32_t)a[1].i, (uint64_t)a[2].i, a[3].p);
}
FUNCTION(philox, "iiip", 0)

/* For benchmarks: data, count, repeats, sums, threads */
static void call_read_all(const argument *a) {
    ceiling c = {a[0].p, a[1].i, a[2].i, a[3].p};
    parallel(a[4].i, a[4].i, read_all, &c);
}
FUNCTION(read_all, "piipi", 0)

/* For benchmarks: two vectors, rounds of twelve, sums, threads */
static void call_multiply_add(const argument *a) {
    ceiling c = {a[0].p, a[1].i, 1, a[2].p};
    parallel(a[3].i, a[3].i, multiply_add, &c);
}
FUNCTION(multiply_add, "pipi", 0)

#define ENTRY(name) {#name, (void *)python_##name, FAST_CALL, 0}

/* Ends at an entry without a name. */
__attribute__((visibility("default"))) method_definition octavo_cpu_functions[] = {
    ENTRY(linear), ENTRY(rows), ENTRY(pack), ENTRY(advise), ENTRY(rms_norm), ENTRY(gated),
    ENTRY(rope_and_cache), ENTRY(paged_attention), ENTRY(sample), ENTRY(adapters),
    ENTRY(copy_matrices), ENTRY(philox), ENTRY(read_all), ENTRY(multiply_add), {0, 0, 0, 0},
};

/* Sixteen, eight or four: of the vectors this library was compiled for. */
__attribute__((visibility("default"))) const int octavo_cpu_lanes = LANES;

/* The best variant this machine can run: 4 and 3 for x86-64-v4 and -v3, else 0. */
__attribute__((visibility("default"))) int octavo_cpu_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c") || !__builtin_cpu_supports("bmi2"))
        return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 4;
    return 3;
#else
    return 0;
#endif
}
