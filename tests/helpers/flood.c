/* flood PACKETS A_SECOND: packets of strangers to 127.0.0.1, paced, then one line with how many were sent. Half of them
 * are echo replies, half are SYN-ACKs to any port of the range that clients use; all are well-formed, none was asked for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, LENGTH = 44 };

static uint8_t packets[BATCH][LENGTH];
static uint64_t state = 88172645463325252u;

static uint32_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static uint16_t checksum(const uint8_t *data, int length, uint32_t sum)
{
    for (int i = 0; i < length; i += 2)
        sum += (uint32_t)data[i] << 8 | data[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}

static void build(uint8_t *p, int tcp)
{
    uint8_t *body = p + 20;
    uint32_t words[4] = { draw(), draw(), draw(), draw() };
    memset(p, 0, LENGTH);
    p[0] = 0x45;
    put16(p + 2, LENGTH);
    p[6] = 0x40;
    p[8] = 64;
    p[9] = tcp ? IPPROTO_TCP : IPPROTO_ICMP;
    memcpy(p + 12, (uint8_t[]){ 127, 1, (uint8_t)draw(), (uint8_t)draw(), 127, 0, 0, 1 }, 8);
    if (!tcp) {
        memcpy(body + 4, words, sizeof(words));
        put16(body + 2, checksum(body, 24, 0));
        return;
    }
    put16(body, 80);
    put16(body + 2, 32768 + draw() % 28232);
    memcpy(body + 4, words, 8);
    memcpy(body + 12, "\x60\x12\xfa\xf0\0\0\0\0\x02\x04\x05\xb4", 12);
    put16(body + 16, checksum(p + 12, 32, IPPROTO_TCP + 24));
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    long total = atol(argv[1]), rate = atol(argv[2]), sent = 0;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    struct timespec begin;
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (fd < 0) {
        perror("socket");
        return 1;
    }
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){ packets[i], LENGTH };
        messages[i].msg_hdr = (struct msghdr){ &to, sizeof(to), &parts[i], 1, NULL, 0, 0 };
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (sent < total) {
        for (int i = 0; i < BATCH; i++)
            build(packets[i], i & 1);
        int done = sendmmsg(fd, messages, BATCH, 0);
        if (done < 0) {
            perror("sendmmsg");
            return 1;
        }
        sent += done;
        long long at = begin.tv_sec * 1000000000LL + begin.tv_nsec + sent * 1000000000LL / rate;
        struct timespec until = { at / 1000000000, at % 1000000000 };
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    printf("%ld\n", sent);
    return 0;
}
