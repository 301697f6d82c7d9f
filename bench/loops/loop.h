/* What the loops share: the clock, a pace, and counters in a file that the benchmark maps. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 2000, SECOND = 1000000000 };

static struct counters {
    uint64_t sent, received, late[STEPS + 1];
} *counters;

static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)SECOND + now.tv_nsec;
}

static inline void sleep_until(int64_t at)
{
    struct timespec until = { at / SECOND, at % SECOND };
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static inline void must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static inline void map_counters(const char *path)
{
    int file = open(path, O_RDWR);
    must(file, path);
    counters = mmap(NULL, sizeof(*counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(counters == MAP_FAILED ? -1 : 0, path);
}
