/* Threads and their scratch memory.
 *
 * On Linux torch's own GNU OpenMP team if there is one, since its idle members spin and would compete with ours for the
 * cores; plain threads otherwise, and after a fork, which the team does not survive. */
#define _GNU_SOURCE /* for RTLD_DEFAULT in musl and older glibc */
#include <string.h>

#include "threads.h"

typedef struct {
    void (*run)(void *);
    void *argument;
} task;

/* What systems call differently: memory, threads, and what a thread holds until it ends. */
#ifdef _WIN32
#include <malloc.h>
#include <windows.h>

typedef HANDLE thread;
static DWORD scratch_key[SCRATCHES];

float *kba_reserve(int64_t floats) { return _aligned_malloc((size_t)floats * sizeof(float), 64); }
void kba_release(float *memory) { _aligned_free(memory); }

static void WINAPI drop(void *memory) { kba_release(memory); }
static void make_key(int kind) { scratch_key[kind] = FlsAlloc(drop); }
static void *held_by_thread(int kind) { return FlsGetValue(scratch_key[kind]); }
static void hold(int kind, void *memory) { FlsSetValue(scratch_key[kind], memory); }

static DWORD WINAPI start(void *t)
{
    ((task *)t)->run(((task *)t)->argument);
    return 0;
}

static int launch(thread *other, task *t) { return (*other = CreateThread(NULL, 0, start, t, 0, NULL)) != NULL; }

static void join(thread other)
{
    WaitForSingleObject(other, INFINITE);
    CloseHandle(other);
}
#else
#include <pthread.h>
#include <stdlib.h>

typedef pthread_t thread;
static pthread_key_t scratch_key[SCRATCHES];

float *kba_reserve(int64_t floats)
{
    void *memory;
    return posix_memalign(&memory, 64, (size_t)floats * sizeof(float)) ? NULL : memory;
}

void kba_release(float *memory) { free(memory); }

static void make_key(int kind) { pthread_key_create(&scratch_key[kind], free); }
static void *held_by_thread(int kind) { return pthread_getspecific(scratch_key[kind]); }
static void hold(int kind, void *memory) { pthread_setspecific(scratch_key[kind], memory); }

static void *start(void *t)
{
    ((task *)t)->run(((task *)t)->argument);
    return NULL;
}

static int launch(thread *other, task *t) { return !pthread_create(other, NULL, start, t); }
static void join(thread other) { pthread_join(other, NULL); }
#endif

#ifdef __linux__
#include <dlfcn.h>
#include <stdatomic.h>

typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);

static atomic_int forked;
static gomp_parallel team;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_team(void) { team = (gomp_parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel"); }
static void after_fork(void) { atomic_store(&forked, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

static int run_by_team(void (*run)(void *), void *argument, int64_t threads)
{
    pthread_once(&once, find_team);
    if (!team || atomic_load(&forked)) return 0;
    team(run, argument, (unsigned)threads, 0);
    return 1;
}
#else
static void watch_forks(void) {}

static int run_by_team(void (*run)(void *), void *argument, int64_t threads)
{
    (void)run, (void)argument, (void)threads;
    return 0;
}
#endif

/* On load, not on the first call: by then torch may have started the team, and the process may have forked. */
__attribute__((constructor)) static void initialise(void)
{
    for (int i = 0; i < SCRATCHES; i++) make_key(i);
    watch_forks();
}

void kba_parallel(void (*run)(void *), void *argument, int64_t threads)
{
    if (threads > 1 && run_by_team(run, argument, threads)) return;
    thread others[255];
    int64_t started = 0;
    task t = {run, argument};
    while (started < threads - 1 && started < 255 && launch(&others[started], &t)) started++;
    run(argument);
    while (started > 0) join(others[--started]);
}

float *kba_scratch(int kind, int64_t floats)
{
    enum { HEAD = 16, PAGE = 1024 }; /* floats; the head has the length */
    int64_t *held = held_by_thread(kind);
    if (!held || *held < floats) {
        kba_release((float *)held);
        hold(kind, NULL);
        const int64_t all = (HEAD + floats + PAGE - 1) / PAGE * PAGE;
        if (!(held = (int64_t *)kba_reserve(all))) return NULL;
        memset(held, 0, (size_t)all * sizeof(float));
        *held = all - HEAD;
        hold(kind, held);
    }
    return (float *)held + HEAD;
}
