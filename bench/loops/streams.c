/* The least that checks over TCP can cost, by direct system calls and by io_uring: sockets are used again, what is in
 * flight is looked at each tick, or its completions are; nothing is decided. The counters are as those of bare.c.
 *
 * streams connect|http direct|uring COUNTERS TARGETS TICK_NS PORT       every target once a second, as bare.c
 */
#include "loop.h"

#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { MOST = 4096, BYTES = 512, ENTRIES = 4096, CONNECT = 0, SEND = 1, RECEIVE = 2 };

struct stream {
    int fd, stage;
    struct sockaddr_in name;
    char data[BYTES];
};

static struct stream streams[MOST];
static int idle[MOST], idle_count, flying[MOST], flying_count, sockets[MOST], socket_count;
static int http, uring;
static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

static int take_socket(void)
{
    struct linger hard = { 1, 0 };
    int one = 1;
    if (socket_count)
        return sockets[--socket_count];
    int fd = socket(AF_INET, SOCK_STREAM | (uring ? 0 : SOCK_NONBLOCK), 0);    /* the ring waits for those that block */
    must(fd, "socket");
    must(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)), "SO_LINGER");
    must(setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof(one)), "TCP_DEFER_ACCEPT");
    return fd;
}

static void end(int at, int good)
{
    struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    if (connect(streams[at].fd, &nowhere, sizeof(nowhere)) == 0)
        sockets[socket_count++] = streams[at].fd;
    else
        close(streams[at].fd);
    idle[idle_count++] = at;
    counters->received += (uint64_t)good;
}

static int good_response(const struct stream *stream, int got)
{
    return got > 12 && !memcmp(stream->data + 9, "200", 3);
}

/* ---- direct system calls. look() is true while a stream is under way. */

static int look(int at)
{
    struct stream *stream = &streams[at];
    int got;
    if (!http) {
        got = connect(stream->fd, (struct sockaddr *)&stream->name, sizeof(stream->name));
        if (got < 0 && errno == EALREADY)
            return 1;
        end(at, got == 0 || errno == EISCONN);
        return 0;
    }
    if (stream->stage == CONNECT) {
        got = (int)send(stream->fd, request, sizeof(request) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (got < 0 && errno == EAGAIN)
            return 1;
        stream->stage = RECEIVE;
        return 1;
    }
    got = (int)recv(stream->fd, stream->data, BYTES, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return 1;
    end(at, good_response(stream, got));
    return 0;
}

/* ---- io_uring, by its system calls alone */

static unsigned *queue_tail, *queue_mask, *queue_array, *queue_flags, *done_head, *done_tail, *done_mask, queued;
static struct io_uring_sqe *entries;
static struct io_uring_cqe *done;
static int ring;

static void *map_ring(size_t bytes, long offset)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    return at;
}

static void open_ring(void)
{
    struct io_uring_params p = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    };
    ring = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
    must(ring, "io_uring_setup");
    char *queue = map_ring(p.sq_off.array + p.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
    char *completed = map_ring(p.cq_off.cqes + p.cq_entries * sizeof(*done), IORING_OFF_CQ_RING);
    entries = map_ring(p.sq_entries * sizeof(*entries), IORING_OFF_SQES);
    queue_tail = (unsigned *)(queue + p.sq_off.tail);
    queue_mask = (unsigned *)(queue + p.sq_off.ring_mask);
    queue_array = (unsigned *)(queue + p.sq_off.array);
    queue_flags = (unsigned *)(queue + p.sq_off.flags);
    done_head = (unsigned *)(completed + p.cq_off.head);
    done_tail = (unsigned *)(completed + p.cq_off.tail);
    done_mask = (unsigned *)(completed + p.cq_off.ring_mask);
    done = (struct io_uring_cqe *)(completed + p.cq_off.cqes);
}

static void enter(void)
{
    __atomic_store_n(queue_tail, *queue_tail + queued, __ATOMIC_RELEASE);
    int taken = (int)syscall(SYS_io_uring_enter, ring, queued, 0, IORING_ENTER_GETEVENTS, NULL, 0);
    must(taken < 0 || (unsigned)taken == queued ? taken : -1, "io_uring_enter");
    queued = 0;
}

static void queue_up(int at, int stage)
{
    if (queued == ENTRIES)
        enter();
    unsigned slot = (*queue_tail + queued++) & *queue_mask;
    struct io_uring_sqe *entry = &entries[slot];
    struct stream *stream = &streams[at];
    queue_array[slot] = slot;
    memset(entry, 0, sizeof(*entry));
    entry->fd = stream->fd;
    entry->user_data = (uint64_t)at << 2 | (unsigned)stage;
    if (stage == CONNECT) {
        entry->opcode = IORING_OP_CONNECT;
        entry->addr = (uint64_t)(uintptr_t)&stream->name;
        entry->off = sizeof(stream->name);
    } else if (stage == SEND) {
        entry->opcode = IORING_OP_SEND;
        entry->addr = (uint64_t)(uintptr_t)request;
        entry->len = sizeof(request) - 1;
        entry->msg_flags = MSG_NOSIGNAL;
        entry->flags = IOSQE_CQE_SKIP_SUCCESS;
    } else {
        entry->opcode = IORING_OP_RECV;
        entry->addr = (uint64_t)(uintptr_t)stream->data;
        entry->len = BYTES;
    }
}

static void take_completed(void)
{
    unsigned head = *done_head;
    do      /* a call completes so many, and says when there are more */
        enter();
    while (__atomic_load_n(queue_flags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN);
    for (unsigned tail = __atomic_load_n(done_tail, __ATOMIC_ACQUIRE); head != tail; head++) {
        struct io_uring_cqe *one = &done[head & *done_mask];
        int at = (int)(one->user_data >> 2), stage = (int)(one->user_data & 3);
        if (stage == CONNECT && http && one->res == 0) {
            queue_up(at, SEND);
            queue_up(at, RECEIVE);
        } else if (stage == CONNECT) {
            end(at, one->res == 0);
        } else if (stage == RECEIVE) {
            end(at, good_response(&streams[at], one->res));
        } else {
            must(one->res, "send");
        }
    }
    __atomic_store_n(done_head, head, __ATOMIC_RELEASE);
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return 2;
    http = !strcmp(argv[1], "http");
    uring = !strcmp(argv[2], "uring");
    map_counters(argv[3]);
    uint32_t targets = (uint32_t)atol(argv[4]);
    int64_t tick = atoll(argv[5]);
    uint16_t port = (uint16_t)atoi(argv[6]);
    if (uring)
        open_ring();
    while (idle_count < MOST) {
        idle[idle_count] = idle_count;
        idle_count++;
    }
    int64_t begin = now_ns(), at = begin;
    for (;;) {
        at += tick;
        sleep_until(at);
        if (uring) {
            take_completed();
        } else {
            int left = 0;
            for (int i = 0; i < flying_count; i++)
                if (look(flying[i]))
                    flying[left++] = flying[i];
            flying_count = left;
        }
        uint64_t due = (uint64_t)((__int128)(now_ns() - begin) * targets / SECOND);
        for (; counters->sent < due && idle_count; counters->sent++) {
            int one = idle[--idle_count];
            struct stream *stream = &streams[one];
            stream->fd = take_socket();
            stream->stage = CONNECT;
            stream->name.sin_family = AF_INET;
            stream->name.sin_port = htons(port);
            stream->name.sin_addr.s_addr = htonl(0x7f010000 + (uint32_t)(counters->sent % targets));
            if (uring) {
                queue_up(one, CONNECT);
            } else {
                connect(stream->fd, (struct sockaddr *)&stream->name, sizeof(stream->name));
                flying[flying_count++] = one;
            }
        }
        if (uring)
            enter();
    }
}
