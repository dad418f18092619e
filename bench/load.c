/*
 * load.c: puts load on an xenstored and measures it, command by command.
 *
 *     load SOCKET
 *
 * For: the benchmark. Reads commands from standard input, one a line, and answers each with one line of JSON on
 * standard output. What a command sets up (idle connections, watches, nodes) stays until the program ends.
 *
 *   pids PID...                 whose CPU time is counted from here on: all processes of the daemon
 *   idle TOTAL                  opens idle connections until there are TOTAL
 *   watches TOTAL PER           registers watches on unrelated paths until there are TOTAL, PER on each connection
 *   fill TOTAL                  writes 32-byte nodes until there are TOTAL
 *   read | write | session SECS round trips; a session is connect, read, close
 *   transaction WRITES SECS     start, that many writes to existing nodes, commit
 *   parallel CONNECTIONS SECS   reads, one in flight on each connection
 *   children COUNT              creates children of one node, then removes it
 *   devices COUNT absent|present   interleaved transactions that each create a virtual disk's keys
 *
 * Guarantees: times are CLOCK_MONOTONIC as the client sees them; CPU time is the scheduler's account (schedstat) of
 *   every thread of every process named by `pids`. A failure is answered by {"error": TEXT} and ends the program.
 * Does not know: which daemon it talks to, or what is a good figure.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define VALUE_BYTES 32
#define CHILD_VALUE_BYTES 8
#define WARM_UP 20
#define MAX_SAMPLES (1 << 21)
#define MAX_PIDS 64
#define MAX_TRANSACTION_WRITES 10
#define READ_PATH "/bench/r"
#define WRITE_PATH "/bench/w"

static const char *socket_path;
static struct wire *client;

/* ---- clocks ---- */

static int pids[MAX_PIDS];
static int pid_count;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static double thread_cpu(int pid, const char *tid)
{
    unsigned long long nanoseconds = 0;
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", pid, tid);
    file = fopen(path, "r");
    if (!file)
        return 0; /* the thread ended meanwhile */
    if (fscanf(file, "%llu", &nanoseconds) != 1)
        nanoseconds = 0;
    fclose(file);
    return nanoseconds * 1e-9;
}

static double process_cpu(int pid)
{
    struct dirent *entry;
    double seconds = 0;
    char path[64];
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    tasks = opendir(path);
    if (!tasks)
        fatal("process %d of the daemon is gone", pid);
    while ((entry = readdir(tasks)))
        if (entry->d_name[0] != '.')
            seconds += thread_cpu(pid, entry->d_name);
    closedir(tasks);
    return seconds;
}

static double daemon_cpu(void)
{
    double seconds = 0;

    for (int i = 0; i < pid_count; i++)
        seconds += process_cpu(pids[i]);
    return seconds;
}

/* ---- figures ---- */

static double samples[MAX_SAMPLES];

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static void print_latency(const char *figure, int count, double seconds, double cpu)
{
    qsort(samples, count, sizeof(*samples), by_size);
    printf("{\"figure\": \"%s\", \"count\": %d, \"us\": %.3f, \"p99_us\": %.3f, \"mean_us\": %.3f, \"cpu_us\": %.3f}\n",
           figure, count, samples[count / 2] * 1e6, samples[(int)(count * .99)] * 1e6, seconds / count * 1e6,
           cpu / count * 1e6);
}

static void print_total(const char *figure, long count, double seconds, double cpu)
{
    printf("{\"figure\": \"%s\", \"count\": %ld, \"us\": %.3f, \"seconds\": %.6f, \"cpu_us\": %.3f}\n", figure, count,
           seconds / count * 1e6, seconds, cpu / count * 1e6);
}

/* Repeats an operation for some seconds; its latencies become one figure. */
static void measure(const char *figure, void (*operation)(const void *), const void *context, double seconds)
{
    double cpu, start, end, begun;
    int count = 0;

    for (int i = 0; i < WARM_UP; i++)
        operation(context);
    cpu = daemon_cpu();
    start = end = now();
    while (end - start < seconds && count < MAX_SAMPLES) {
        begun = end;
        operation(context);
        end = now();
        samples[count++] = end - begun;
    }
    print_latency(figure, count, end - start, daemon_cpu() - cpu);
}

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
    usleep(200000); /* accepting them is no part of what follows */
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

/* ---- figures that are no repeated operation ---- */

static void measure_parallel(int connections, double seconds)
{
    struct request request = read_request(READ_PATH);
    struct wire **wires = calloc(connections, sizeof(*wires));
    struct epoll_event ready[64];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    double start, cpu;
    long done = 0;

    if (!wires || epoll < 0)
        fatal("parallel: %s", strerror(errno));
    for (int i = 0; i < connections; i++) {
        wires[i] = wire_connect(socket_path);
        epoll_ctl(epoll, EPOLL_CTL_ADD, wires[i]->fd, &(struct epoll_event){EPOLLIN, {.ptr = wires[i]}});
        wire_call(wires[i], 0, &request);
    }
    start = now();
    cpu = daemon_cpu();
    for (int i = 0; i < connections; i++)
        wire_send(wires[i], 0, &request);
    while (now() - start < seconds) {
        int count = epoll_wait(epoll, ready, sizeof(ready) / sizeof(*ready), 5000);

        if (count <= 0)
            fatal("parallel: no reply in 5 s");
        for (int i = 0; i < count; i++) {
            wire_expect(ready[i].data.ptr, WIRE_READ);
            wire_send(ready[i].data.ptr, 0, &request);
        }
        done += count;
    }
    print_total("parallel", done, now() - start, daemon_cpu() - cpu);
    for (int i = 0; i < connections; i++)
        wire_close(wires[i]);
    free(wires);
    close(epoll);
}

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
    struct wire **wires = calloc(count, sizeof(*wires));
    uint32_t *ids = calloc(count, sizeof(*ids));
    double start, seconds, cpu;
    int committed = 0;

    if (!wires || !ids)
        fatal("out of memory");
    prepare_devices(count, parents);
    for (int i = 0; i < count; i++)
        wires[i] = wire_connect(socket_path);
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
    for (int i = 0; i < count; i++)
        wire_close(wires[i]);
    free(wires);
    free(ids);
    wire_remove(client, "/local/domain");
}

/* ---- commands ---- */

static void set_pids(char *arguments)
{
    pid_count = 0;
    for (char *word = strtok(arguments, " "); word; word = strtok(NULL, " ")) {
        if (pid_count == MAX_PIDS)
            fatal("too many pids");
        pids[pid_count++] = atoi(word);
    }
}

static void run_set_up(void (*set_up)(int, int), int total, int extra)
{
    double start = now();

    set_up(total, extra);
    printf("{\"done\": %d, \"seconds\": %.3f}\n", total, now() - start);
}

static void idle_adapter(int total, int unused)
{
    (void)unused;
    set_up_idle(total);
}

static void nodes_adapter(int total, int unused)
{
    (void)unused;
    set_up_nodes(total);
}

static void run(char *line)
{
    struct request reading = read_request(READ_PATH), writing = write_request(WRITE_PATH, VALUE_BYTES);
    char word[16] = "";
    double seconds;
    int a, b;

    if (!strncmp(line, "pids ", 5)) {
        set_pids(line + 5);
        printf("{\"done\": %d}\n", pid_count);
    } else if (sscanf(line, "idle %d", &a) == 1)
        run_set_up(idle_adapter, a, 0);
    else if (sscanf(line, "watches %d %d", &a, &b) == 2)
        run_set_up(set_up_watches, a, b);
    else if (sscanf(line, "fill %d", &a) == 1)
        run_set_up(nodes_adapter, a, 0);
    else if (sscanf(line, "read %lf", &seconds) == 1)
        measure("read", round_trip, &reading, seconds);
    else if (sscanf(line, "write %lf", &seconds) == 1)
        measure("write", round_trip, &writing, seconds);
    else if (sscanf(line, "session %lf", &seconds) == 1)
        measure("session", session, &reading, seconds);
    else if (sscanf(line, "transaction %d %lf", &a, &seconds) == 2)
        measure_transaction(a, seconds);
    else if (sscanf(line, "parallel %d %lf", &a, &seconds) == 2)
        measure_parallel(a, seconds);
    else if (sscanf(line, "children %d", &a) == 1)
        measure_children(a);
    else if (sscanf(line, "devices %d %15s", &a, word) == 2)
        measure_devices(a, !strcmp(word, "present"));
    else
        fatal("unknown command: %s", line);
    fflush(stdout);
}

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
