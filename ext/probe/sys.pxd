# C declarations: system calls, their structures and constants. Nothing of our own but the three lines of C that
# Cython cannot write.

from libc.errno cimport (
    EADDRNOTAVAIL,
    EAGAIN,
    EALREADY,
    EBUSY,
    EINPROGRESS,
    EINTR,
    EINVAL,
    EISCONN,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOENT,
    ENOMEM,
    EPERM,
    errno,
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

cdef extern from "errno.h" nogil:
    enum:
        EACCES
        EAFNOSUPPORT
        ECONNABORTED
        ECONNREFUSED
        ECONNRESET
        EHOSTDOWN
        EHOSTUNREACH
        EMSGSIZE
        ENETDOWN
        ENETUNREACH
        ENOPROTOOPT
        ENODEV
        ENOTSUP
        EPIPE
        EPROTO
        ETIMEDOUT

cdef extern from "stdlib.h" nogil:
    char* getenv(const char*)
    void* aligned_alloc(size_t, size_t)

cdef extern from "time.h" nogil:
    ctypedef int clockid_t
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_BOOTTIME
        CLOCK_MONOTONIC
        CLOCK_REALTIME
        TIMER_ABSTIME
    int clock_gettime(clockid_t, timespec*)
    int clock_nanosleep(clockid_t, int, const timespec*, timespec*)

cdef extern from "sys/timex.h" nogil:
    ctypedef struct timex "struct timex":
        pass
    enum:
        TIME_ERROR
    int adjtimex(timex*)

cdef extern from "unistd.h" nogil:
    int close(int)
    ssize_t read(int, void*, size_t)
    ssize_t write(int, const void*, size_t)

cdef extern from "fcntl.h" nogil:
    enum:
        O_RDONLY
        O_CLOEXEC
    int open_fd "open"(const char*, int)

cdef extern from "sys/mman.h" nogil:
    enum:
        MADV_HUGEPAGE
        MAP_ANONYMOUS
        MAP_PRIVATE
        PROT_READ
        PROT_WRITE
    void* MAP_FAILED
    void* mmap(void*, size_t, int, int, int, long)
    int madvise(void*, size_t, int)
    int munmap(void*, size_t)

cdef extern from "sys/stat.h" nogil:
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        int64_t st_size
        timespec st_mtim
    bint S_ISREG(uint32_t)
    int stat(const char*, stat_t*)
    int fstat(int, stat_t*)

cdef extern from "sched.h" nogil:
    enum:
        CLONE_NEWNET
    int sched_yield()
    int setns(int, int)

cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    enum:
        SIG_SETMASK
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    pthread_t pthread_self()
    int pthread_setname_np(pthread_t, const char*)

cdef extern from "sys/resource.h" nogil:
    ctypedef unsigned long rlim_t
    struct rlimit:
        rlim_t rlim_cur
        rlim_t rlim_max
    enum:
        RLIMIT_NOFILE
        PRIO_PROCESS
    int getrlimit(int, rlimit*)
    int setpriority(int, unsigned int, int)
    int setrlimit(int, const rlimit*)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int, int)

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
        EPOLLONESHOT
        EPOLLRDHUP
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int ppoll(pollfd*, unsigned long, const timespec*, const sigset_t*)

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    struct sockaddr:
        sa_family_t sa_family
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct linger:
        int l_onoff
        int l_linger
    enum:
        AF_INET
        AF_INET6
        AF_NETLINK
        AF_UNSPEC
        SOCK_STREAM
        SOCK_DGRAM
        SOCK_RAW
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ATTACH_FILTER
        SO_ERROR
        SO_LINGER
        SO_MEMINFO
        SO_RCVBUF
        SO_RCVBUFFORCE
        SO_SNDBUF
        SO_SNDBUFFORCE
        SO_TIMESTAMPING
        SO_TIMESTAMPNS
        MSG_CONFIRM
        MSG_DONTWAIT
        MSG_ERRQUEUE
        MSG_NOSIGNAL
    int socket(int, int, int)
    int bind(int, const sockaddr*, socklen_t)
    int connect(int, const sockaddr*, socklen_t)
    int getsockname(int, sockaddr*, socklen_t*)
    int setsockopt(int, int, int, const void*, socklen_t)
    int getsockopt(int, int, int, void*, socklen_t*)
    ssize_t send(int, const void*, size_t, int)
    ssize_t recv(int, void*, size_t, int)
    ssize_t recvmsg(int, msghdr*, int)
    int sendmmsg(int, mmsghdr*, unsigned int, int)
    int recvmmsg(int, mmsghdr*, unsigned int, int, timespec*)
    ssize_t sendmsg(int, const msghdr*, int)
    size_t CMSG_LEN(size_t)
    size_t CMSG_SPACE(size_t)
    cmsghdr* CMSG_FIRSTHDR(msghdr*)
    cmsghdr* CMSG_NXTHDR(msghdr*, cmsghdr*)
    unsigned char* CMSG_DATA(cmsghdr*)

cdef extern from "netinet/in.h" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    enum:
        IPPROTO_IP
        IPPROTO_ICMP
        IPPROTO_TCP
        IPPROTO_IPV6
        IPPROTO_ICMPV6
        IPPROTO_RAW
        IP_HDRINCL
        IP_MTU_DISCOVER
        IP_PMTUDISC_DO
        IP_PKTINFO
        IP_RECVERR
        IPV6_PKTINFO
        IPV6_RECVERR
        IPV6_RECVPKTINFO
        IPV6_V6ONLY
        IPV6_CHECKSUM
        IPV6_HDRINCL
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    uint16_t htons(uint16_t)
    uint32_t htonl(uint32_t)
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)

cdef extern from "linux/tcp.h" nogil:
    struct tcp_info:
        uint8_t tcpi_state
        uint8_t tcpi_ca_state
        uint32_t tcpi_unacked
        uint32_t tcpi_rtt
        uint32_t tcpi_total_retrans
    enum:
        TCP_DEFER_ACCEPT
        TCP_INFO
        TCP_NODELAY

cdef extern from "arpa/inet.h" nogil:
    const char* inet_ntop(int, const void*, char*, socklen_t)

cdef extern from "linux/sock_diag.h" nogil:
    enum:
        SK_MEMINFO_RMEM_ALLOC
        SK_MEMINFO_RCVBUF
        SK_MEMINFO_WMEM_ALLOC
        SK_MEMINFO_SNDBUF
        SK_MEMINFO_DROPS
        SK_MEMINFO_VARS

cdef extern from "linux/errqueue.h" nogil:
    struct sock_extended_err:
        uint32_t ee_errno
        uint8_t ee_origin
        uint32_t ee_info
        uint32_t ee_data
    enum:
        SO_EE_ORIGIN_TIMESTAMPING
        SCM_TSTAMP_SND
        SCM_TSTAMP_SCHED

cdef extern from "linux/net_tstamp.h" nogil:
    enum:
        SOF_TIMESTAMPING_OPT_CMSG
        SOF_TIMESTAMPING_SOFTWARE
        SOF_TIMESTAMPING_TX_SCHED
        SOF_TIMESTAMPING_TX_SOFTWARE

cdef extern from "linux/netlink.h" nogil:
    struct sockaddr_nl:
        sa_family_t nl_family
        uint32_t nl_pid
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
    struct nlmsgerr:
        int error
    enum:
        NETLINK_ROUTE
        NETLINK_GET_STRICT_CHK
        NETLINK_CAP_ACK
        SOL_NETLINK
        NLM_F_REQUEST
        NLMSG_ERROR

cdef extern from "linux/rtnetlink.h" nogil:
    struct rtmsg:
        uint8_t rtm_family
        uint8_t rtm_dst_len
        uint8_t rtm_src_len
        uint8_t rtm_type
        uint32_t rtm_flags
    struct rtattr:
        uint16_t rta_len
        uint16_t rta_type
    struct ifinfomsg:
        uint8_t ifi_family
        uint16_t ifi_type
        int ifi_index
        uint32_t ifi_flags
    enum:
        RTM_GETLINK
        RTM_GETNEIGH
        RTM_GETROUTE
        RTM_NEWLINK
        RTM_NEWNEIGH
        RTM_NEWROUTE
        RTA_DST
        RTA_GATEWAY
        RTA_IP_PROTO
        RTA_OIF
        RTA_SRC
        RTA_VIA
        RTN_LOCAL
        RTEXT_FILTER_SKIP_STATS

cdef extern from "linux/neighbour.h" nogil:
    struct ndmsg:
        uint8_t ndm_family
        int ndm_ifindex
        uint16_t ndm_state
    enum:
        NDA_CACHEINFO
        NDA_DST
        NUD_FAILED
        NUD_INCOMPLETE
        NUD_NOARP

cdef extern from "linux/if.h" nogil:
    enum:
        IFF_LOOPBACK
        IFF_NOARP
        IFF_UP

cdef extern from "linux/if_link.h" nogil:
    enum:
        IFLA_CARRIER
        IFLA_CARRIER_CHANGES
        IFLA_EXT_MASK

cdef extern from "linux/filter.h" nogil:
    struct sock_filter:
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k
    struct sock_fprog:
        unsigned short len
        sock_filter* filter

cdef extern from *:
    """
    /* Numbers whose headers (linux/icmp.h, linux/in.h) clash with those of the C library. */
    #define MGL_SOL_RAW 255
    #define MGL_ICMP_FILTER 1
    #define MGL_ICMPV6_FILTER 1
    #define MGL_IP_BIND_ADDRESS_NO_PORT 24
    #ifndef MSG_PROBE
    #define MSG_PROBE 0x10      /* the kernel's; the C library does not name it */
    #endif

    #include <stdint.h>
    #include <sys/syscall.h>
    /* The C library has neither the call nor, in older versions, the structure. */
    struct mgl_sched_attr {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    };
    static int mgl_sched_slice(uint64_t ns)
    {
        struct mgl_sched_attr attr;
        if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0)
            return -1;
        if (attr.policy != 0)
            return 0;
        attr.runtime = ns;
        return (int)syscall(SYS_sched_setattr, 0, &attr, 0);
    }

    #define mgl_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define mgl_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define mgl_fence_write() __atomic_thread_fence(__ATOMIC_RELEASE)
    #define mgl_fence_read() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define mgl_ctz(v) __builtin_ctzll(v)
    #define mgl_prefetch(p) (__builtin_prefetch((const char *)(p)), __builtin_prefetch((const char *)(p) + 64))
    #define mgl_errno_set(v) (errno = (v))
    """
    enum:
        MGL_SOL_RAW
        MGL_ICMP_FILTER
        MGL_ICMPV6_FILTER
        MGL_IP_BIND_ADDRESS_NO_PORT
        MSG_PROBE
    int sched_slice "mgl_sched_slice"(uint64_t) noexcept nogil
    uint32_t load32 "mgl_load"(const uint32_t*) noexcept nogil
    void store32 "mgl_store"(uint32_t*, uint32_t) noexcept nogil
    int64_t load64 "mgl_load"(const int64_t*) noexcept nogil
    void store64 "mgl_store"(int64_t*, int64_t) noexcept nogil
    void fence_write "mgl_fence_write"() noexcept nogil
    void fence_read "mgl_fence_read"() noexcept nogil
    void errno_set "mgl_errno_set"(int) noexcept nogil
    int ctz64 "mgl_ctz"(uint64_t) noexcept nogil
    void prefetch "mgl_prefetch"(const void*) noexcept nogil        # two cache lines


# The name of the calling thread, as gdb and top show it; 15 bytes at most.
cdef inline void thread_name(const char* name) noexcept nogil:
    pthread_setname_np(pthread_self(), name)


# The first call of a native thread. Signals are for Python's main thread: the kernel gives a signal to any thread that
# does not block it, and interrupts the system call that the thread is in.
cdef inline void thread_begin(const char* name) noexcept nogil:
    cdef sigset_t every
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, NULL)
    thread_name(name)

cdef extern from "linux/if.h" nogil:
    struct ifreq:
        char ifr_name[16]
        int ifr_ifindex
        void* ifr_data

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "linux/sockios.h" nogil:
    enum:
        SIOCGIFNAME
        SIOCETHTOOL

cdef extern from "linux/ethtool.h" nogil:
    enum:
        ETHTOOL_GET_TS_INFO
    struct ethtool_ts_info:
        uint32_t cmd
        uint32_t so_timestamping
