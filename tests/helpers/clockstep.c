/* Preloaded, it lets a test set the wall clock of one process: the file named in CLOCKSTEP holds nanoseconds that are
 * added to what CLOCK_REALTIME says. The kernel's own stamps on packets stay as they are, as they would for packets that
 * were stamped before the clock was set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

int clock_gettime(clockid_t which, struct timespec *out)
{
    static int (*real)(clockid_t, struct timespec *);
    static volatile int64_t *step;
    if (!real) {
        int fd = open(getenv("CLOCKSTEP"), O_RDONLY);
        step = mmap(NULL, sizeof(*step), PROT_READ, MAP_SHARED, fd, 0);
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real(which, out);
    if (which == CLOCK_REALTIME) {
        int64_t at = out->tv_sec * INT64_C(1000000000) + out->tv_nsec + *step;
        out->tv_sec = at / 1000000000;
        out->tv_nsec = at % 1000000000;
    }
    return result;
}
