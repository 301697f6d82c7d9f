/* Preloaded, it gives a process the send buffers of an older host (wmem_max 212992, before Linux 6.18) and no right to
 * larger ones.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    static int (*real)(int, int, int, const void *, socklen_t);
    int usual = 212992;
    if (!real)
        real = (int (*)(int, int, int, const void *, socklen_t))dlsym(RTLD_NEXT, "setsockopt");
    if (level == SOL_SOCKET && name == SO_SNDBUFFORCE) {
        errno = EPERM;
        return -1;
    }
    if (level == SOL_SOCKET && name == SO_SNDBUF && *(const int *)value > usual)
        value = &usual;
    return real(fd, level, name, value, length);
}
