/* Threads and their scratch memory. */
#ifndef THREADS_H
#define THREADS_H

#include <stdint.h>

/* Calls `run` with `argument` once in each of `threads` threads. */
void kba_parallel(void (*run)(void *), void *argument, int64_t threads);

/* This thread's scratch memory, aligned to 64 bytes, or NULL. The next call may move it; it is kept between jobs, as
 * fresh pages would cost as much as a small product. */
float *kba_scratch(int64_t floats);

#endif
