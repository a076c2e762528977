/* Threads and their scratch memory. */
#ifndef THREADS_H
#define THREADS_H

#include <stdint.h>

/* Memory aligned to 64 bytes, or NULL. */
float *kba_reserve(int64_t floats);
void kba_release(float *memory);

/* Calls `run` with `argument` once in each of `threads` threads. */
void kba_parallel(void (*run)(void *), void *argument, int64_t threads);

enum { OF_THREAD, OF_JOB, SCRATCHES }; /* what a thread uses itself, and what it shares as the one that runs a job */

/* This thread's scratch memory of a kind, aligned to 64 bytes, or NULL. The next call may move it; it is kept between
 * jobs, as fresh pages would cost as much as a small product. */
float *kba_scratch(int kind, int64_t floats);

#endif
