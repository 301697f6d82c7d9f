/* Preloaded, it lets a process send its batches as on a host that is short of buffers: of three calls of sendmmsg() the
 * first is carried out, the second sends half of what it is given, and the third nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    static unsigned int calls;
    if (!real)
        real = (int (*)(int, struct mmsghdr *, unsigned int, int))dlsym(RTLD_NEXT, "sendmmsg");
    switch (calls++ % 3) {
    case 0:
        return real(fd, messages, count, flags);
    case 1:
        return real(fd, messages, (count + 1) / 2, flags);
    default:
        errno = ENOBUFS;
        return -1;
    }
}
