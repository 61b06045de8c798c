/* The two ends of a benchmark, fast enough not to be what is measured: a sender of ready-made
 * bytes and a receiver on many sockets. Built by bench.wire and called through ctypes, in
 * processes of their own. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int send_whole(int fd, const char *at, size_t left) {
    while (left) {
        ssize_t n = send(fd, at, left, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n <= 0) return -1;
        at += n;
        left -= (size_t)n;
    }
    return 0;
}

/* As many frames as the peer takes in *seconds*; returns how many. *ring* holds *frames* of them,
 * of *records* each. control[0] says stop; control[1] is how many records the slowest subscriber
 * has: at most *window* (0 for any number) are on their way, or a relay without flow control would
 * be measured by how fast it fills its memory. */
uint64_t blast(int fd, const char *ring, size_t frame_bytes, size_t frames, double seconds,
               uint64_t records, uint64_t window, const volatile uint64_t *control) {
    uint64_t sent = 0, end = now_ns() + (uint64_t)(seconds * 1e9);
    size_t at = 0, most = 131072 / frame_bytes;
    while (now_ns() < end && !control[0]) {
        if (window && sent * records > control[1] + window) {
            struct timespec t = {0, 50000};
            nanosleep(&t, 0);
            continue;
        }
        size_t n = frames - at < most ? frames - at : most;
        if (send_whole(fd, ring + at * frame_bytes, n * frame_bytes)) break;
        sent += n;
        at = (at + n) % frames;
    }
    return sent;
}

/* *count* frames at *rate* a second, *burst* in one write; stamps[i] is when frame i was sent. */
uint64_t pace(int fd, const char *ring, size_t frame_bytes, size_t frames, double rate,
              uint32_t burst, uint64_t count, volatile uint64_t *stamps) {
    uint64_t start = now_ns() + 2000000;
    prctl(PR_SET_TIMERSLACK, 1);
    for (uint64_t i = 0; i + burst <= count; i += burst) {
        uint64_t due = start + (uint64_t)((double)i / rate * 1e9);
        struct timespec t = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
        if (now_ns() < due) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
        uint64_t at = now_ns();
        for (uint32_t k = 0; k < burst; k++) stamps[i + k] = at;
        size_t first = (size_t)(i % frames);
        if (send_whole(fd, ring + first * frame_bytes, burst * frame_bytes)) return i;
    }
    return count;
}

#define CARRY 8192
typedef struct {
    int32_t fd;
    int32_t stalled; /* is never read */
    uint64_t count;  /* ticks */
    uint64_t lost;   /* LOST messages (KFP/1) */
    uint64_t kept;
    char carry[CARRY];
} peer;

size_t peer_bytes(void) { return sizeof(peer); }

static void saw(peer *p, uint64_t n, uint64_t at, const volatile uint64_t *stamps, uint32_t *late,
                uint64_t most) {
    if (stamps)
        for (uint64_t k = p->count; k < p->count + n && k < most; k++)
            late[k] = (uint32_t)(at > stamps[k] ? at - stamps[k] : 0);
    p->count += n;
}

/* Read every peer until control[0]; control[1] is what the slowest has. With *unit* all messages are that long; with 0 they are KFP/1.
 * late[i * most + k] becomes how long tick k took to peer i, where stamps are given. */
void drain(int32_t n, peer *peers, uint64_t unit, volatile uint64_t *control,
           const volatile uint64_t *stamps, uint32_t *late, uint64_t most) {
    static char data[CARRY + 262144];
    struct epoll_event event, ready[64];
    int ep = epoll_create1(0);
    for (int32_t i = 0; i < n; i++) {
        if (peers[i].stalled) continue;
        event.events = EPOLLIN;
        event.data.u32 = (uint32_t)i;
        epoll_ctl(ep, EPOLL_CTL_ADD, peers[i].fd, &event);
    }
    while (!control[0]) {
        int found = epoll_wait(ep, ready, 64, 50);
        for (int e = 0; e < found; e++) {
            uint32_t i = ready[e].data.u32;
            peer *p = &peers[i];
            uint32_t *mine = late ? late + (uint64_t)i * most : 0;
            memcpy(data, p->carry, p->kept);
            ssize_t got = recv(p->fd, data + p->kept, 262144, MSG_DONTWAIT);
            if (got < 0) continue;
            if (got == 0) {
                epoll_ctl(ep, EPOLL_CTL_DEL, p->fd, 0);
                continue;
            }
            uint64_t at = now_ns();
            size_t end = p->kept + (size_t)got, pos = 0;
            if (unit) {
                uint64_t whole = end / unit;
                saw(p, whole, at, stamps, mine, most);
                pos = whole * unit;
            } else {
                while (end - pos >= 8) {
                    const unsigned char *f = (const unsigned char *)data + pos;
                    size_t size = ((size_t)f[0] << 24) | ((size_t)f[1] << 16) |
                                  ((size_t)f[2] << 8) | f[3];
                    if (end - pos < 4 + size) break;
                    int type = f[4] == 0xdc ? f[7] : f[5];
                    if (type == 20) saw(p, 1, at, stamps, mine, most);
                    if (type == 24) p->lost++;
                    pos += 4 + size;
                }
            }
            p->kept = end - pos;
            if (p->kept > CARRY) p->kept = 0;
            memcpy(p->carry, data + pos, p->kept);
        }
        uint64_t least = UINT64_MAX;
        for (int32_t i = 0; i < n; i++)
            if (!peers[i].stalled && peers[i].count < least) least = peers[i].count;
        control[1] = least;
    }
    close(ep);
}
