/* Threads and their scratch memory.
 *
 * torch's own GNU OpenMP team if there is one, since its idle members spin and would compete with ours for the cores;
 * plain threads otherwise, and after a fork, which the team does not survive. */
#define _GNU_SOURCE /* for RTLD_DEFAULT in musl and older glibc */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef struct {
    void (*run)(void *);
    void *argument;
} task;

static atomic_int forked;
static gomp_parallel team;
static pthread_key_t scratch_key[SCRATCHES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void after_fork(void) { atomic_store(&forked, 1); }

/* On load, not on the first call: by then torch may have started the team, and the process may have forked. */
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

static void initialise(void)
{
    team = (gomp_parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    for (int i = 0; i < SCRATCHES; i++) pthread_key_create(&scratch_key[i], free);
}

static void *start(void *t)
{
    ((task *)t)->run(((task *)t)->argument);
    return NULL;
}

void kba_parallel(void (*run)(void *), void *argument, int64_t threads)
{
    pthread_once(&once, initialise);
    if (threads > 1 && team && !atomic_load(&forked)) {
        team(run, argument, (unsigned)threads, 0);
        return;
    }
    pthread_t others[255];
    int64_t started = 0;
    task t = {run, argument};
    while (started < threads - 1 && started < 255 && !pthread_create(&others[started], NULL, start, &t)) started++;
    run(argument);
    while (started > 0) pthread_join(others[--started], NULL);
}

float *kba_scratch(int kind, int64_t floats)
{
    pthread_once(&once, initialise);
    int64_t *held = pthread_getspecific(scratch_key[kind]);
    if (!held || *held < floats) {
        free(held);
        pthread_setspecific(scratch_key[kind], NULL);
        const size_t bytes = (size_t)((64 + floats * 4 + 4095) / 4096 * 4096);
        if (posix_memalign((void **)&held, 64, bytes)) return NULL;
        memset(held, 0, bytes);
        *held = (int64_t)(bytes - 64) / 4;
        pthread_setspecific(scratch_key[kind], held);
    }
    return (float *)held + 16;
}
