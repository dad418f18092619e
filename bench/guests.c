/* guests.c: see guests.h. */
#define _GNU_SOURCE
#include "guests.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define RING_BYTES 1024
#define GUEST_PORT 3
#define DOM0_PORT 1
#define GUEST_GFN 65532
#define VIRQ_SENDER 0xffffffffu
#define VIRQ_DOM_EXC 3

struct ring {
    char requests[RING_BYTES], replies[RING_BYTES];
    uint32_t req_cons, req_prod, rsp_cons, rsp_prod, features, connection, error, port;
};

/* ---- the directory ---- */

static const char *xen_dir;

void xen_use(const char *directory)
{
    xen_dir = directory;
}

/* A name in the directory, in a buffer that the next call uses again; short enough for a socket's address. */
static const char *in_xen(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *in_xen(const char *format, ...)
{
    static char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    size_t used;
    va_list args;

    if (!xen_dir)
        fatal("the daemon has no simulated Xen");
    used = snprintf(path, sizeof(path), "%s/", xen_dir);
    if (used < sizeof(path)) {
        va_start(args, format);
        used += vsnprintf(path + used, sizeof(path) - used, format, args);
        va_end(args);
    }
    if (used >= sizeof(path))
        fatal("the simulated Xen's path is too long");
    return path;
}

static int new_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0)
        fatal("%s: %s", path, strerror(errno));
    return fd;
}

static void unlink_or_die(const char *path)
{
    if (unlink(path))
        fatal("%s: %s", path, strerror(errno));
}

void xen_create(int domid)
{
    int page = new_file(in_xen("dom%d.ring", domid));

    if (ftruncate(page, PAGE_BYTES))
        fatal("ftruncate: %s", strerror(errno));
    close(page);
    close(new_file(in_xen("domains/%d", domid)));
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    strcpy(address.sun_path, path);
    return address;
}

/* A datagram socket that sends to the daemon's event channel device. */
static int event_socket(void)
{
    struct sockaddr_un daemon = address_of(in_xen("evtchn.sock"));
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&daemon, sizeof(daemon)))
        fatal("%s: %s", daemon.sun_path, strerror(errno));
    return fd;
}

static void send_event(int fd, uint32_t sender, uint32_t port)
{
    uint32_t message[2] = {sender, port};

    if (send(fd, message, sizeof(message), MSG_NOSIGNAL) != sizeof(message))
        fatal("event channel: %s", strerror(errno));
}

static void tell_of_domains(void)
{
    static int fd = -1;

    if (fd < 0)
        fd = event_socket();
    send_event(fd, VIRQ_SENDER, VIRQ_DOM_EXC);
}

void xen_shut_down(int domid)
{
    static const char state[] = "shutdown";
    const char *path = in_xen("domains/%d", domid);
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

    if (fd < 0 || write(fd, state, sizeof(state) - 1) != sizeof(state) - 1)
        fatal("%s: %s", path, strerror(errno));
    close(fd);
    tell_of_domains();
}

void xen_destroy(int domid)
{
    unlink_or_die(in_xen("domains/%d", domid));
    unlink_or_die(in_xen("dom%d.ring", domid));
    tell_of_domains();
}

/* ---- a guest ---- */

struct request introduce_request(int domid)
{
    struct request request = {.type = WIRE_INTRODUCE};

    request.length = snprintf(request.payload, sizeof(request.payload), "%d%c%d%c%d%c", domid, 0, GUEST_GFN, 0,
                              GUEST_PORT, 0);
    return request;
}

static struct ring *map_ring(int domid)
{
    const char *path = in_xen("dom%d.ring", domid);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct ring *ring;

    if (fd < 0)
        fatal("%s: %s", path, strerror(errno));
    ring = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring == MAP_FAILED)
        fatal("mmap: %s", strerror(errno));
    close(fd);
    return ring;
}

/* Bound before it is connected: the daemon's events come to the guest's own address. */
static int guest_socket(int domid, uint32_t port)
{
    struct sockaddr_un own = address_of(in_xen("g%d.%u.sock", domid, port));
    struct sockaddr_un daemon = address_of(in_xen("evtchn.sock"));
    struct timeval limit = {.tv_sec = GUEST_REPLY_LIMIT};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof(own)))
        fatal("%s: %s", own.sun_path, strerror(errno));
    if (connect(fd, (struct sockaddr *)&daemon, sizeof(daemon)))
        fatal("%s: %s", daemon.sun_path, strerror(errno));
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
        fatal("setsockopt: %s", strerror(errno));
    return fd;
}

static struct guest *guest_at(int domid, uint32_t port)
{
    struct guest *guest = calloc(1, sizeof(*guest));

    if (!guest)
        fatal("out of memory");
    guest->domid = domid;
    guest->port = port;
    guest->ring = map_ring(domid);
    guest->fd = guest_socket(domid, port);
    return guest;
}

struct guest *guest_create(int domid)
{
    xen_create(domid);
    return guest_at(domid, GUEST_PORT);
}

struct guest *guest_new(struct wire *toolstack, int domid)
{
    struct guest *guest = guest_create(domid);
    struct request introduction = introduce_request(domid);

    wire_call(toolstack, 0, &introduction);
    return guest;
}

struct guest *guest_dom0(void)
{
    return guest_at(0, DOM0_PORT);
}

void guest_forget(struct guest *guest)
{
    unlink_or_die(in_xen("g%d.%u.sock", guest->domid, guest->port));
    munmap(guest->ring, PAGE_BYTES);
    close(guest->fd);
    free(guest);
}

static uint32_t load(uint32_t *index)
{
    return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *index, uint32_t value)
{
    __atomic_store_n(index, value, __ATOMIC_RELEASE);
}

void guest_send(struct guest *guest, uint32_t transaction, const struct request *request)
{
    char message[WIRE_MESSAGE_MAX];
    size_t bytes = wire_encode(message, ++guest->last_request, transaction, request), first;
    struct ring *ring = guest->ring;
    uint32_t producer = ring->req_prod, at = producer % RING_BYTES;

    if (bytes > RING_BYTES - (producer - load(&ring->req_cons)))
        fatal("a request of %zu bytes does not fit in the ring of domain %d", bytes, guest->domid);
    first = bytes < RING_BYTES - at ? bytes : RING_BYTES - at;
    memcpy(ring->requests + at, message, first);
    memcpy(ring->requests, message + first, bytes - first);
    store(&ring->req_prod, producer + bytes);
    send_event(guest->fd, guest->domid, guest->port);
}

void guest_wait(struct guest *guest)
{
    uint32_t message[2];

    if (recv(guest->fd, message, sizeof(message), 0) != sizeof(message))
        fatal("domain %d got no event in %d s", guest->domid, GUEST_REPLY_LIMIT);
}

void guest_take_events(struct guest *guest)
{
    uint32_t message[2];

    while (recv(guest->fd, message, sizeof(message), MSG_DONTWAIT) == sizeof(message))
        continue;
    if (errno != EAGAIN)
        fatal("event channel: %s", strerror(errno));
}

/* Takes what is in the ring; a daemon that met a full ring is told that there is room. */
static void take(struct guest *guest)
{
    struct ring *ring = guest->ring;
    uint32_t consumer = ring->rsp_cons, bytes = load(&ring->rsp_prod) - consumer, at = consumer % RING_BYTES;
    size_t first = bytes < RING_BYTES - at ? bytes : RING_BYTES - at;

    if (bytes > RING_BYTES || guest->filled + bytes > sizeof(guest->input))
        fatal("domain %d has %u bytes in its ring", guest->domid, bytes);
    memcpy(guest->input + guest->filled, ring->replies + at, first);
    memcpy(guest->input + guest->filled + first, ring->replies, bytes - first);
    guest->filled += bytes;
    store(&ring->rsp_cons, consumer + bytes);
    if (bytes == RING_BYTES)
        send_event(guest->fd, guest->domid, guest->port);
}

int guest_message(struct guest *guest, struct wire_header *header)
{
    size_t bytes;

    take(guest);
    if (guest->filled < sizeof(*header))
        return 0;
    memcpy(header, guest->input, sizeof(*header));
    if (header->length > WIRE_PAYLOAD_MAX)
        fatal("domain %d: a message of %u bytes", guest->domid, header->length);
    bytes = sizeof(*header) + header->length;
    if (guest->filled < bytes)
        return 0;
    memcpy(guest->payload, guest->input + sizeof(*header), header->length);
    guest->payload[header->length] = 0;
    guest->length = header->length;
    guest->filled -= bytes;
    memmove(guest->input, guest->input + bytes, guest->filled);
    return 1;
}

int guest_reply(struct guest *guest, uint32_t type)
{
    struct wire_header header;

    if (!guest_message(guest, &header))
        return 0;
    if (header.type != type || header.request != guest->last_request || guest->filled)
        fatal("domain %d: request %u of type %u answered by type %u to request %u: %s", guest->domid,
              guest->last_request, type, header.type, header.request, guest->payload);
    return 1;
}

void guest_call(struct guest *guest, uint32_t transaction, const struct request *request)
{
    guest_send(guest, transaction, request);
    while (!guest_reply(guest, request->type))
        guest_wait(guest);
}

static struct wire_header next_message(struct guest *guest)
{
    struct wire_header header;

    while (!guest_message(guest, &header))
        guest_wait(guest);
    return header;
}

void guest_pipeline(struct guest *guest, const struct request *request, int depth)
{
    uint32_t first = guest->last_request + 1;

    for (int i = 0; i < depth; i++)
        guest_send(guest, 0, request);
    for (int i = 0; i < depth; i++) {
        struct wire_header header = next_message(guest);

        if (header.type != request->type || header.request != first + i)
            fatal("domain %d: request %u of type %u answered by type %u to request %u: %s", guest->domid, first + i,
                  request->type, header.type, header.request, guest->payload);
    }
    guest_take_events(guest); /* one came for each reply perhaps */
}

void guest_receive_event(struct guest *guest)
{
    struct wire_header header;

    guest_take_events(guest); /* who finds the message before its event must not leave that behind */
    header = next_message(guest);
    if (header.type != WIRE_WATCH_EVENT)
        fatal("domain %d: type %u in place of an event: %s", guest->domid, header.type, guest->payload);
}

void guest_watch(struct guest *guest, const struct request *request)
{
    int replies = 0, events = 0;

    guest_send(guest, 0, request);
    while (!replies || !events) {
        uint32_t type = next_message(guest).type;

        if (type != WIRE_WATCH && type != WIRE_WATCH_EVENT)
            fatal("domain %d: a watch answered by type %u: %s", guest->domid, type, guest->payload);
        *(type == WIRE_WATCH ? &replies : &events) += 1;
    }
}
