/* Preloaded, it lets a test set the wall clock of one process. The file named in CLOCKSTEP holds two 64-bit numbers:
 * nanoseconds that are added to what CLOCK_REALTIME says, and whether the kernel calls its clock synchronised (0: what
 * it really says, 1: yes, 2: no). The second one may be missing. The kernel's own stamps on packets stay as they are, as
 * they would for packets that were stamped before the clock was set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timex.h>
#include <time.h>

static volatile int64_t *told(void)
{
    static volatile int64_t *page;
    if (!page) {
        int fd = open(getenv("CLOCKSTEP"), O_RDONLY);
        page = mmap(NULL, 2 * sizeof(*page), PROT_READ, MAP_SHARED, fd, 0);
    }
    return page;
}

int clock_gettime(clockid_t which, struct timespec *out)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, out);
    if (which == CLOCK_REALTIME) {
        int64_t at = out->tv_sec * INT64_C(1000000000) + out->tv_nsec + told()[0];
        out->tv_sec = at / 1000000000;
        out->tv_nsec = at % 1000000000;
    }
    return result;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *state)
{
    static int (*real)(struct timex *);
    if (!real)
        real = (int (*)(struct timex *))dlsym(RTLD_NEXT, "adjtimex");
    int result = real(state);
    return told()[1] == 0 ? result : told()[1] == 1 ? TIME_OK : TIME_ERROR;
}
