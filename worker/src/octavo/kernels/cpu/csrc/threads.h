/* A pool of threads that share out a region's parts as they get to them.
 *
 * Not OpenMP: its regions end when every thread of the team has arrived, so one thread that the
 * system has put aside (an API server's turn, a neighbour, a CPU quota) stalls all the others,
 * once a region and a hundred regions a token. Here a region ends when its parts are done: a
 * thread that is late finds none left, and nobody has waited for it.
 *
 * The calling thread works too. One region runs at a time; a caller that finds the pool taken
 * (another Python thread, or a region within a region) does all its parts itself.
 */
#ifndef OCTAVO_THREADS_H
#define OCTAVO_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* Where part `index` of `count` things cut into `parts` begins. */
static inline int64_t share(int64_t count, int64_t index, int64_t parts) {
    return count * index / parts;
}

typedef void part_body(void *context, int64_t part, int64_t num_parts);

#define MAX_WORKERS 255
#define JOB_SLOTS 8

/* How long a thread looks for work before it sleeps: longer than what lies between two regions
 * of a step, shorter than what a neighbour on a shared core would notice. */
#define WORKER_SPIN_NS 100000
#define CALLER_SPIN_NS 20000

typedef struct {
    _Atomic(part_body *) body;
    _Atomic(void *) context;
    atomic_uint_least32_t num_parts, num_workers;
} job;

static struct {
    pthread_mutex_t owner; /* held by the thread whose region runs */
    /* Region number << 32 | next part. A part is claimed by incrementing it, which fails if the
     * region is no longer the one whose job was read: slots are not reused before that. */
    _Alignas(64) atomic_uint_least64_t ticket;
    _Alignas(64) atomic_uint_least32_t num_done;
    job jobs[JOB_SLOTS];
    int num_workers;
    atomic_int num_sleeping;
    pthread_mutex_t sleep_lock;
    pthread_cond_t work_there;
} pool = {
    .owner = PTHREAD_MUTEX_INITIALIZER,
    .sleep_lock = PTHREAD_MUTEX_INITIALIZER,
    .work_there = PTHREAD_COND_INITIALIZER,
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Do parts of the current region until none is left; returns the region's number. */
static uint32_t work(uint32_t worker) {
    for (;;) {
        uint64_t ticket = atomic_load(&pool.ticket);
        uint32_t region = (uint32_t)(ticket >> 32), part = (uint32_t)ticket;
        job *j = &pool.jobs[region % JOB_SLOTS];
        part_body *body = atomic_load(&j->body);
        void *context = atomic_load(&j->context);
        uint32_t num_parts = atomic_load(&j->num_parts);
        if (part >= num_parts || worker >= atomic_load(&j->num_workers)) return region;
        if (!atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket + 1)) continue;
        body(context, part, num_parts);
        atomic_fetch_add(&pool.num_done, 1);
    }
}

static int is_over(uint32_t region) {
    return (uint32_t)(atomic_load_explicit(&pool.ticket, memory_order_acquire) >> 32) != region;
}

static void wait_for_region_after(uint32_t region) {
    int64_t deadline = now_ns() + WORKER_SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (is_over(region)) return;
            relax();
        }
    } while (now_ns() < deadline);
    pthread_mutex_lock(&pool.sleep_lock);
    atomic_fetch_add(&pool.num_sleeping, 1);
    while (!is_over(region)) pthread_cond_wait(&pool.work_there, &pool.sleep_lock);
    atomic_fetch_sub(&pool.num_sleeping, 1);
    pthread_mutex_unlock(&pool.sleep_lock);
}

static void *worker_main(void *argument) {
    uint32_t worker = (uint32_t)(uintptr_t)argument;
    for (;;) wait_for_region_after(work(worker));
    return NULL;
}

/* Threads do not survive a fork: the child starts its own. */
static void forget_workers(void) {
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.sleep_lock, NULL);
    pthread_cond_init(&pool.work_there, NULL);
    pool.num_workers = 0;
    atomic_store(&pool.num_sleeping, 0);
}

static void start_workers(int64_t num_workers) {
    static int is_fork_handled;
    if (!is_fork_handled) is_fork_handled = !pthread_atfork(NULL, NULL, forget_workers);
    sigset_t all, before; /* signals are Python's main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.num_workers < min_of(num_workers, MAX_WORKERS)) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker_main, (void *)(uintptr_t)pool.num_workers)) break;
        pthread_detach(thread);
        pool.num_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void publish(part_body *body, void *context, int64_t num_parts, int64_t num_workers) {
    uint32_t region = (uint32_t)(atomic_load(&pool.ticket) >> 32) + 1;
    job *j = &pool.jobs[region % JOB_SLOTS];
    atomic_store(&j->body, body);
    atomic_store(&j->context, context);
    atomic_store(&j->num_parts, (uint32_t)num_parts);
    atomic_store(&j->num_workers, (uint32_t)num_workers);
    atomic_store(&pool.num_done, 0);
    atomic_store(&pool.ticket, (uint64_t)region << 32);
    if (atomic_load(&pool.num_sleeping) > 0) {
        pthread_mutex_lock(&pool.sleep_lock);
        pthread_cond_broadcast(&pool.work_there);
        pthread_mutex_unlock(&pool.sleep_lock);
    }
}

/* Until parts that workers have begun are done. Whoever holds one up may need this core. */
static void wait_for_parts(int64_t num_parts) {
    int64_t deadline = 0;
    for (int64_t tries = 0; atomic_load(&pool.num_done) != (uint32_t)num_parts; tries++) {
        relax();
        if (tries % 32 != 31) continue;
        int64_t now = now_ns();
        if (!deadline) deadline = now + CALLER_SPIN_NS;
        if (now > deadline) sched_yield();
    }
}

/* Run body(context, part, num_parts) for every part, on up to num_threads threads. */
static void parallel(int64_t num_threads, int64_t num_parts, part_body *body, void *context) {
    num_threads = min_of(num_threads, num_parts);
    if (num_threads <= 1 || pthread_mutex_trylock(&pool.owner)) {
        for (int64_t part = 0; part < num_parts; part++) body(context, part, num_parts);
        return;
    }
    if (pool.num_workers < num_threads - 1) start_workers(num_threads - 1);
    publish(body, context, num_parts, num_threads - 1);
    work(0);
    wait_for_parts(num_parts);
    pthread_mutex_unlock(&pool.owner);
}

/* Parts for `count` things of which a thread can do any: few enough to be cheap to hand out,
 * enough that threads finish together. */
static inline int64_t parts_for(int64_t count, int64_t num_threads) {
    return num_threads <= 1 ? 1 : max_of(min_of(count, 4 * num_threads), 1);
}

/* Scratch memory of the calling thread, kept between calls; 64-byte aligned, contents undefined.
 * Under a few megabytes in practice: without that much, the process cannot go on. */
static void *scratch(size_t size_bytes) {
    static __thread void *memory;
    static __thread size_t capacity;
    if (size_bytes > capacity) {
        free(memory);
        capacity = 0;
        size_t rounded = (size_bytes + 65535) & ~(size_t)65535;
        memory = aligned_alloc(64, rounded);
        if (!memory) {
            fprintf(stderr, "octavo: no memory for %zu bytes of scratch space\n", rounded);
            abort();
        }
        capacity = rounded;
    }
    return memory;
}

#endif
