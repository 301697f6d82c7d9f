/* The least that probing can cost: paced batches out, batches in, nothing matched and nothing decided. Also a timer that
 * does nothing but wake up. The counters are in a file that the benchmark maps: sent, received, then a histogram of how
 * late each tick was seen, in steps of 50 microseconds; a wake-up that comes late sees several.
 *
 * bare icmp|icmp-df|syn|timer COUNTERS TARGETS TICK_NS [PORT]     every target once a second; target n is 127.(1 + n / 65536)...
 */
#include "loop.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { BATCH = 128, BYTES = 192, LOW_PORT = 20000, PORTS = 512, ECHO_BYTES = 64 };

static struct mmsghdr out[BATCH], in[BATCH];
static struct iovec out_parts[BATCH], in_parts[BATCH];
static struct sockaddr_in names[BATCH];
static uint8_t packets[BATCH][64], space[BATCH][BYTES];

static uint16_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}

static uint32_t sum_of(const uint8_t *data, int length)
{
    uint32_t sum = 0;
    for (int i = 0; i < length; i += 2)
        sum += (uint32_t)data[i] << 8 | data[i + 1];
    return sum;
}

static int open_socket(int syn, int whole)
{
    int one = 1, bytes = 4 << 20;
    int fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, syn ? IPPROTO_TCP : IPPROTO_ICMP);
    must(fd, "socket");
    if (whole)
        must(setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &whole, sizeof(whole)), "IP_MTU_DISCOVER");
    if (syn) {
        struct sock_filter lines[] = {
            BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0),
            BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),
            BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, LOW_PORT, 0, 5),
            BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, LOW_PORT + PORTS, 4, 0),
            BPF_STMT(BPF_LD | BPF_B | BPF_IND, 13),
            BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0x12),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x12, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, BYTES),
            BPF_STMT(BPF_RET | BPF_K, 0),
        };
        struct sock_fprog filter = { sizeof(lines) / sizeof(lines[0]), lines };
        must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)), "filter");
        must(setsockopt(fd, IPPROTO_IP, IP_HDRINCL, &one, sizeof(one)), "IP_HDRINCL");
    } else {
        uint32_t all_but_replies = ~1u;
        must(setsockopt(fd, 255, 1, &all_but_replies, sizeof(all_but_replies)), "ICMP_FILTER");
    }
    must(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)), "SO_RCVBUFFORCE");
    must(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)), "SO_SNDBUFFORCE");
    return fd;
}

static int build_echo(uint8_t *p, uint32_t target)
{
    memset(p, 0, ECHO_BYTES);
    p[0] = 8;
    memcpy(p + 4, &target, 4);
    uint16_t check = htons(fold(sum_of(p, ECHO_BYTES)));
    memcpy(p + 2, &check, 2);
    return ECHO_BYTES;
}

static int build_syn(uint8_t *p, uint32_t target, uint32_t address, uint16_t port, uint32_t turn)
{
    static const uint8_t source[4] = { 127, 0, 0, 1 };
    uint16_t own = htons((uint16_t)(LOW_PORT + (target + turn) % PORTS));
    uint8_t *tcp = p + 20;
    memset(p, 0, 44);
    p[0] = 0x45;
    p[3] = 44;
    p[6] = 0x40;
    p[8] = 64;
    p[9] = IPPROTO_TCP;
    memcpy(p + 12, source, 4);
    memcpy(p + 16, &address, 4);
    port = htons(port);
    memcpy(tcp, &own, 2);
    memcpy(tcp + 2, &port, 2);
    target += turn << 20;
    memcpy(tcp + 4, &target, 4);
    memcpy(tcp + 12, "\x60\x02\xfa\xf0\0\0\0\0\x02\x04\x05\xb4", 12);
    uint16_t check = htons(fold(sum_of(p + 12, 32) + IPPROTO_TCP + 24));
    memcpy(tcp + 16, &check, 2);
    return 44;
}

static void receive(int fd)
{
    for (;;) {
        int count = recvmmsg(fd, in, BATCH, MSG_DONTWAIT, NULL);
        if (count > 0)
            counters->received += (uint64_t)count;
        if (count < BATCH)
            return;
    }
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    int syn = !strcmp(argv[1], "syn"), timer = !strcmp(argv[1], "timer");
    map_counters(argv[2]);
    uint32_t targets = (uint32_t)atol(argv[3]);
    int64_t tick = atoll(argv[4]);
    uint16_t port = argc > 5 ? (uint16_t)atoi(argv[5]) : 0;
    int fd = timer ? -1 : open_socket(syn, strcmp(argv[1], "icmp-df") ? 0 : IP_PMTUDISC_DO);
    for (int i = 0; i < BATCH; i++) {
        out[i].msg_hdr = (struct msghdr){ &names[i], sizeof(names[i]), &out_parts[i], 1, NULL, 0, 0 };
        in[i].msg_hdr = (struct msghdr){ NULL, 0, &in_parts[i], 1, NULL, 0, 0 };
        in_parts[i] = (struct iovec){ space[i], BYTES };
        names[i].sin_family = AF_INET;
    }
    int64_t begin = now_ns(), at = begin;
    uint64_t sent = 0;
    for (;;) {
        at += tick;
        sleep_until(at);
        int64_t now = now_ns();
        for (;; at += tick) {
            int64_t late = (now - at) / 50000;
            counters->late[late < STEPS ? late : STEPS]++;
            if (at + tick > now)
                break;
        }
        if (timer)
            continue;
        receive(fd);
        uint64_t due = (uint64_t)((__int128)(now - begin) * targets / SECOND);
        while (sent < due) {
            int count = due - sent < BATCH ? (int)(due - sent) : BATCH;
            for (int i = 0; i < count; i++) {
                uint32_t target = (uint32_t)((sent + i) % targets);
                uint32_t address = htonl(0x7f010000 + target);
                names[i].sin_addr.s_addr = address;
                out_parts[i].iov_base = packets[i];
                out_parts[i].iov_len = syn ? build_syn(packets[i], target, address, port, (uint32_t)((sent + i) / targets))
                                           : build_echo(packets[i], target);
            }
            int done = sendmmsg(fd, out, count, MSG_DONTWAIT);
            if (done < 0) {
                if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
                    must(done, "sendmmsg");
                break;
            }
            sent += (uint64_t)done;
            counters->sent = sent;
            receive(fd);
        }
    }
}
