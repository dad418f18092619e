/*
 * load.c: puts load on an xenstored and measures it, command by command.
 *
 *     load SOCKET [SIMULATED_XEN]
 *
 * For: the benchmark. Reads commands from standard input, one a line, and answers each with one line of JSON on
 * standard output. What a set-up command makes (idle connections, watches, nodes, domains) stays until the program ends.
 *
 *   pids PID...                 whose CPU time is counted from here on: all processes of the daemon
 *   idle TOTAL                  opens idle connections until there are TOTAL
 *   watches TOTAL PER           registers watches on unrelated paths until there are TOTAL, PER on each connection
 *   fill TOTAL                  writes 32-byte nodes until there are TOTAL
 *   domains TOTAL               introduces domains that do nothing until there are TOTAL
 *   guests TOTAL                introduces domains that are guests with rings until there are TOTAL
 *
 *   read SECS | write SECS | session SECS    round trips; a session is connect, read, close
 *   transaction WRITES SECS     start, that many writes to existing nodes, commit
 *   parallel CONNECTIONS SECS   reads, one in flight on each connection
 *   fanout WATCHERS SECS        one write until the last of that many connections has its event
 *   children COUNT              creates children of one node, then removes it
 *   devices COUNT absent|present   interleaved transactions that each create a virtual disk's keys
 *   ring read|write SECS        round trips of the first guest
 *   rings read|write SECS       requests of all guests, one in flight on each ring
 *   introduce COUNT             introductions of domains, one by one
 *   destroy COUNT               ends of domains, one by one, until a watcher of @releaseDomain has its event
 *
 * Guarantees: see measure.h for the figures. A failure is answered by {"error": TEXT} and ends the program.
 * Does not know: which daemon it talks to, or what is a good figure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "guests.h"
#include "measure.h"
#include "wire.h"

#define VALUE_BYTES 32
#define CHILD_VALUE_BYTES 8
#define MAX_TRANSACTION_WRITES 10
#define MAX_GUESTS 1000
#define FIRST_IDLE_DOMID 2001
#define FIRST_PASSING_DOMID 10001
#define READ_PATH "/bench/r"
#define WRITE_PATH "/bench/w"

static const char *socket_path;
static struct wire *client;

/* ---- operations ---- */

static void round_trip(const void *request)
{
    wire_call(client, 0, request);
}

static void session(const void *request)
{
    struct wire *wire = wire_connect(socket_path);

    wire_call(wire, 0, request);
    wire_close(wire);
}

struct transaction {
    int writes;
    struct request *requests;
};

static void transaction(const void *context)
{
    const struct transaction *plan = context;
    uint32_t id = wire_start(client);

    for (int i = 0; i < plan->writes; i++)
        wire_call(client, id, &plan->requests[i]);
    if (!wire_commit(client, id))
        fatal("EAGAIN without a competitor");
}

static struct request transaction_write(int number)
{
    char path[64];

    snprintf(path, sizeof(path), "/bench/t/%d", number);
    return write_request(path, VALUE_BYTES);
}

static void measure_transaction(int writes, double seconds)
{
    struct transaction plan = {writes, calloc(writes, sizeof(*plan.requests))};

    if (!plan.requests || writes > MAX_TRANSACTION_WRITES)
        fatal("transaction of %d writes", writes);
    for (int i = 0; i < writes; i++)
        plan.requests[i] = transaction_write(i);
    measure("transaction", transaction, &plan, seconds);
    free(plan.requests);
}

/* ---- what stands idle in the daemon ---- */

static void set_up_idle(int total)
{
    static int have;

    for (; have < total; have++)
        wire_connect_fd(socket_path);
    settle(); /* accepting them is no part of what follows */
}

static void set_up_watches(int total, int per_connection)
{
    static struct wire *watcher;
    static int have, used;
    char path[64], token[32];

    for (; have < total; have++, used++) {
        struct request request;

        if (!watcher || used == per_connection) {
            watcher = wire_connect(socket_path);
            used = 0;
        }
        snprintf(path, sizeof(path), "/other/%d", have);
        snprintf(token, sizeof(token), "t%d", have);
        request = watch_request(path, token);
        wire_call(watcher, 0, &request);
        wire_receive_event(watcher, used + 1);
    }
}

static void set_up_nodes(int total)
{
    static int have;
    char path[64];

    for (; have < total; have++) {
        struct request request;

        snprintf(path, sizeof(path), "/bench/m/%d/%d", have / 100, have % 100);
        request = write_request(path, VALUE_BYTES);
        wire_call(client, 0, &request);
    }
}

/* Domains that exist and are introduced, and of which nothing more is heard. */
static void set_up_domains(int total)
{
    static int have;

    for (; have < total; have++) {
        struct request request = introduce_request(FIRST_IDLE_DOMID + have);

        xen_create(FIRST_IDLE_DOMID + have);
        wire_call(client, 0, &request);
    }
    settle();
}

static struct guest *guests[MAX_GUESTS];
static int guest_count;

/* A node that a guest may read and write; named with its domid, or what is read and written, relative to its home. */
static void give_node(int domid, const char *below)
{
    char path[64];
    struct request request;

    snprintf(path, sizeof(path), "/local/domain/%d%s", domid, below);
    request = write_request(path, *below ? VALUE_BYTES : 0);
    wire_call(client, 0, &request);
    request = perms_request(path, domid);
    wire_call(client, 0, &request);
}

static void set_up_guests(int total)
{
    if (total > MAX_GUESTS)
        fatal("%d guests", total);
    for (; guest_count < total; guest_count++) {
        int domid = guest_count + 1;

        guests[guest_count] = guest_new(client, domid);
        give_node(domid, "");
        give_node(domid, "/r");
        give_node(domid, "/w");
    }
    settle();
}

/* ---- many clients at once ---- */

static struct wire **connect_many(int count)
{
    struct wire **wires = calloc(count, sizeof(*wires));

    if (!wires)
        fatal("out of memory");
    for (int i = 0; i < count; i++)
        wires[i] = wire_connect(socket_path);
    return wires;
}

static void close_many(struct wire **wires, int count)
{
    for (int i = 0; i < count; i++)
        wire_close(wires[i]);
    free(wires);
    settle(); /* closing them is no part of what follows */
}

static struct request crowd_request;

/* Until the time is over, `turn` takes what has come for one client, and sends the next request if that was a reply. */
static long keep_busy(int epoll, int (*turn)(void *), double seconds)
{
    struct epoll_event ready[64];
    double start = now();
    long done = 0;

    while (now() - start < seconds) {
        int count = epoll_wait(epoll, ready, sizeof(ready) / sizeof(*ready), 5000);

        if (count <= 0)
            fatal("nothing came for any client in 5 s");
        for (int i = 0; i < count; i++)
            done += turn(ready[i].data.ptr);
    }
    return done;
}

static void add_member(int epoll, int fd, void *member)
{
    struct epoll_event event = {EPOLLIN, {.ptr = member}};

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        fatal("epoll: %s", strerror(errno));
}

static int wire_turn(void *wire)
{
    wire_expect(wire, crowd_request.type);
    wire_send(wire, 0, &crowd_request);
    return 1;
}

static void measure_parallel(int connections, double seconds)
{
    struct wire **wires = connect_many(connections);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    double start, cpu;
    long done;

    crowd_request = read_request(READ_PATH);
    for (int i = 0; i < connections; i++) {
        add_member(epoll, wires[i]->fd, wires[i]);
        wire_call(wires[i], 0, &crowd_request);
    }
    start = now();
    cpu = daemon_cpu();
    for (int i = 0; i < connections; i++)
        wire_send(wires[i], 0, &crowd_request);
    done = keep_busy(epoll, wire_turn, seconds);
    print_total("parallel", done, now() - start, daemon_cpu() - cpu);
    close(epoll);
    close_many(wires, connections);
}

static int guest_turn(void *guest)
{
    guest_wait(guest);
    if (!guest_reply(guest, crowd_request.type))
        return 0;
    guest_send(guest, &crowd_request);
    return 1;
}

static void measure_rings(const struct request *request, double seconds)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    double start, cpu;
    long done;

    crowd_request = *request;
    for (int i = 0; i < guest_count; i++) {
        add_member(epoll, guests[i]->fd, guests[i]);
        guest_call(guests[i], request);
    }
    start = now();
    cpu = daemon_cpu();
    for (int i = 0; i < guest_count; i++)
        guest_send(guests[i], request);
    done = keep_busy(epoll, guest_turn, seconds);
    print_total("rings", done, now() - start, daemon_cpu() - cpu);
    close(epoll);
    for (int i = 0; i < guest_count; i++)
        while (!guest_reply(guests[i], request->type))
            guest_wait(guests[i]);
}

struct fan {
    int count;
    struct wire **wires;
    struct request request;
};

static void fan_out(const void *context)
{
    const struct fan *fan = context;

    wire_call(client, 0, &fan->request);
    for (int i = 0; i < fan->count; i++)
        wire_receive_event(fan->wires[i], fan->wires[i]->events + 1);
}

static void measure_fan_out(int watchers, double seconds)
{
    struct fan fan = {watchers, connect_many(watchers), write_request(WRITE_PATH, VALUE_BYTES)};
    struct request watch = watch_request(WRITE_PATH, "fan");

    for (int i = 0; i < watchers; i++) {
        wire_call(fan.wires[i], 0, &watch);
        wire_receive_event(fan.wires[i], 1);
    }
    measure("fanout", fan_out, &fan, seconds);
    close_many(fan.wires, watchers);
}

/* ---- domains that come and go ---- */

static struct wire *release_watcher;

static int first_of_new_domains(int count)
{
    static int next = FIRST_PASSING_DOMID;
    int first = next;

    for (; next < first + count; next++)
        xen_create(next);
    return first;
}

/* Both take the domid from where `context` points to, and leave the next one there. */
static void introduce_next(const void *context)
{
    int *domid = *(int *const *)context;
    struct request request = introduce_request((*domid)++);

    wire_call(client, 0, &request);
}

static void destroy_next(const void *context)
{
    int *domid = *(int *const *)context;

    xen_destroy((*domid)++);
    wire_receive_event(release_watcher, release_watcher->events + 1);
}

static void watch_releases(void)
{
    struct request request = watch_request("@releaseDomain", "release");

    if (release_watcher)
        return;
    release_watcher = wire_connect(socket_path);
    wire_call(release_watcher, 0, &request);
    wire_receive_event(release_watcher, 1);
}

/* An end that is told twice would be taken for the next domain's. */
static void check_releases(long expected)
{
    struct request request = read_request(READ_PATH);

    settle();
    wire_call(release_watcher, 0, &request);
    if (release_watcher->events != expected)
        fatal("%ld events of @releaseDomain where %ld domains ended", release_watcher->events - 1, expected - 1);
}

static void measure_domains(int count, int ends)
{
    int first = first_of_new_domains(count), domid = first, *next = &domid;
    long events;

    watch_releases();
    events = release_watcher->events;
    if (!ends)
        measure_times("introduce", introduce_next, &next, count);
    else
        for (int i = 0; i < count; i++)
            introduce_next(&next);
    settle();
    domid = first;
    if (ends)
        measure_times("destroy", destroy_next, &next, count);
    else
        for (int i = 0; i < count; i++)
            destroy_next(&next);
    check_releases(events + count);
}

/* ---- figures that are no repeated operation ---- */

static void measure_children(int count)
{
    double start = now(), cpu = daemon_cpu();
    char path[64];

    for (int i = 0; i < count; i++) {
        struct request request;

        snprintf(path, sizeof(path), "/bench/kids/c%05d", i);
        request = write_request(path, CHILD_VALUE_BYTES);
        wire_call(client, 0, &request);
    }
    print_total("children", count, now() - start, daemon_cpu() - cpu);
    wire_remove(client, "/bench/kids");
}

static const char *const device_keys[] = {
    "backend", "backend-id", "state", "virtual-device", "device-type", "event-channel",
};
#define KEY_COUNT (sizeof(device_keys) / sizeof(*device_keys))

static struct request device_write(int domid, size_t key)
{
    char path[128];

    if (key < KEY_COUNT)
        snprintf(path, sizeof(path), "/local/domain/%d/device/vbd/51712/%s", domid, device_keys[key]);
    else
        snprintf(path, sizeof(path), "/local/domain/0/backend/vbd/%d/51712/%s", domid, device_keys[key - KEY_COUNT]);
    return write_request(path, CHILD_VALUE_BYTES);
}

/* What a host has before the transactions: with `parents`, a front-end folder per domain and the back-ends' folder. */
static void prepare_devices(int count, int parents)
{
    struct request request;
    char path[64];

    wire_remove(client, "/local/domain");
    if (!parents)
        return;
    request = write_request("/local/domain/0/backend/vbd", 0);
    wire_call(client, 0, &request);
    for (int domid = 1; domid <= count; domid++) {
        snprintf(path, sizeof(path), "/local/domain/%d/device/vbd", domid);
        request = write_request(path, 0);
        wire_call(client, 0, &request);
    }
}

/* All start, then all write their first key, their second, ..., then all commit: how many commit at the first try? */
static void measure_devices(int count, int parents)
{
    uint32_t *ids = calloc(count, sizeof(*ids));
    double start, seconds, cpu;
    struct wire **wires;
    int committed = 0;

    if (!ids)
        fatal("out of memory");
    prepare_devices(count, parents);
    wires = connect_many(count);
    start = now();
    cpu = daemon_cpu();
    for (int i = 0; i < count; i++)
        ids[i] = wire_start(wires[i]);
    for (size_t key = 0; key < 2 * KEY_COUNT; key++)
        for (int i = 0; i < count; i++) {
            struct request request = device_write(i + 1, key);

            wire_call(wires[i], ids[i], &request);
        }
    for (int i = 0; i < count; i++)
        committed += wire_commit(wires[i], ids[i]);
    seconds = now() - start;
    printf("{\"figure\": \"devices\", \"count\": %d, \"committed\": %d, \"us\": %.3f, \"cpu_us\": %.3f}\n", count,
           committed, seconds / count * 1e6, (daemon_cpu() - cpu) / count * 1e6);
    close_many(wires, count);
    free(ids);
    wire_remove(client, "/local/domain");
}

@@COMMANDS@@
/* The nodes that are read and overwritten later: made first, so that they are old whatever is set up meanwhile. */
static void make_nodes(void)
{
    struct request request = write_request(READ_PATH, VALUE_BYTES);

    wire_call(client, 0, &request);
    request = write_request(WRITE_PATH, VALUE_BYTES);
    wire_call(client, 0, &request);
    for (int i = 0; i < MAX_TRANSACTION_WRITES; i++) {
        request = transaction_write(i);
        wire_call(client, 0, &request);
    }
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        fatal("getrlimit: %s", strerror(errno));
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        fatal("setrlimit: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    char line[4096];

    if (argc != 2) {
        fprintf(stderr, "usage: load SOCKET\n");
        return 2;
    }
    socket_path = argv[1];
    raise_descriptor_limit();
    client = wire_connect(socket_path);
    make_nodes();
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        run(line);
    }
    return 0;
}
