/*
 * load.c: puts load on an xenstored and measures it, command by command.
 *
 *     load SOCKET [SIMULATED_XEN]
 *
 * For: the benchmark. Reads commands from standard input, one a line, and answers each with one line of JSON on
 * standard output. What a set-up command makes (idle connections, watches, nodes, domains) stays until the program ends.
 *
 *   pids PID...                 whose CPU time is counted from here on: all processes of the daemon
 *   idle TOTAL                  opens or closes idle connections until there are TOTAL
 *   watches TOTAL PER           registers watches on unrelated paths until there are TOTAL, PER on each connection
 *   fill TOTAL                  writes 32-byte nodes until there are TOTAL
 *   domains TOTAL               introduces domains that do nothing until there are TOTAL
 *   guests TOTAL                introduces domains that are guests with rings until there are TOTAL
 *
 *   read SECS | write SECS | session SECS    round trips; a session is connect, read, close
 *   transaction WRITES SECS     start, that many writes to existing nodes, commit
 *   parallel CONNECTIONS SECS   reads, one in flight on each connection
 *   fanout WATCHERS SECS        one write until the last of that many connections has its event
 *   gaps SECS                   reads and writes in turn; the longest wait.  SIGUSR1 ends it sooner
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
#include <sys/resource.h>
#include <unistd.h>

#include "domains.h"
#include "gaps.h"
#include "guests.h"
#include "measure.h"
#include "wire.h"

#define VALUE_BYTES 32
#define CHILD_VALUE_BYTES 8
#define MAX_TRANSACTION_WRITES 10
#define MAX_WORDS 100
#define MAX_IDLE 16384
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

static void measure_transaction(char **words)
{
    int writes = atoi(words[0]);
    struct transaction plan = {writes, calloc(writes, sizeof(*plan.requests))};

    if (!plan.requests || writes > MAX_TRANSACTION_WRITES)
        fatal("transaction of %d writes", writes);
    for (int i = 0; i < writes; i++)
        plan.requests[i] = transaction_write(i);
    measure("transaction", transaction, &plan, atof(words[1]));
    free(plan.requests);
}

/* ---- what stands idle in the daemon; `words` are a command's arguments ---- */

static void set_up_idle(char **words)
{
    int total = atoi(words[0]);
    static int fds[MAX_IDLE], have;

    if (total > MAX_IDLE)
        fatal("%d idle connections", total);
    for (; have < total; have++)
        fds[have] = wire_connect_fd(socket_path);
    for (; have > total; have--)
        close(fds[have - 1]);
    settle(); /* accepting and closing them is no part of what follows */
}

static void set_up_watches(char **words)
{
    int total = atoi(words[0]), per_connection = atoi(words[1]);
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

static void set_up_nodes(char **words)
{
    int total = atoi(words[0]);
    static int have;
    char path[64];

    for (; have < total; have++) {
        struct request request;

        snprintf(path, sizeof(path), "/bench/m/%d/%d", have / 100, have % 100);
        request = write_request(path, VALUE_BYTES);
        wire_call(client, 0, &request);
    }
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

static int fd_of(void *wire)
{
    return ((struct wire *)wire)->fd;
}

static void send_reading(void *wire)
{
    static struct request reading;

    if (!reading.length)
        reading = read_request(READ_PATH);
    wire_send(wire, 0, &reading);
}

static int take_reply(void *wire)
{
    wire_expect(wire, WIRE_READ);
    return 1;
}

static void measure_parallel(char **words)
{
    int connections = atoi(words[0]);
    struct wire **wires = connect_many(connections);
    struct crowd crowd = {(void **)wires, connections, 0, fd_of, send_reading, take_reply};

    measure_crowd("parallel", &crowd, atof(words[1]));
    close_many(wires, connections);
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

static void measure_fan_out(char **words)
{
    int watchers = atoi(words[0]);
    struct fan fan = {watchers, connect_many(watchers), write_request(WRITE_PATH, VALUE_BYTES)};
    struct request watch = watch_request(WRITE_PATH, "fan");

    for (int i = 0; i < watchers; i++) {
        wire_call(fan.wires[i], 0, &watch);
        wire_receive_event(fan.wires[i], 1);
    }
    measure("fanout", fan_out, &fan, atof(words[1]));
    close_many(fan.wires, watchers);
}

/* ---- figures that are no repeated operation ---- */

static void measure_children(char **words)
{
    int count = atoi(words[0]);
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
static void measure_devices(char **words)
{
    int count = atoi(words[0]);
    uint32_t *ids = calloc(count, sizeof(*ids));
    double start, seconds, cpu;
    struct wire **wires;
    int committed = 0;

    if (!ids)
        fatal("out of memory");
    prepare_devices(count, !strcmp(words[1], "present"));
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

/* ---- commands ---- */

static void set_pids(char **words)
{
    forget_processes();
    for (; *words; words++)
        add_process(atoi(*words));
    printf("{\"done\": 1}\n");
}

static void run_domains(char **words)
{
    set_up_domains(client, atoi(words[0]));
}

static void run_guests(char **words)
{
    set_up_guests(client, atoi(words[0]));
}

static void run_read(char **words)
{
    struct request request = read_request(READ_PATH);

    measure("read", round_trip, &request, atof(words[0]));
}

static void run_write(char **words)
{
    struct request request = write_request(WRITE_PATH, VALUE_BYTES);

    measure("write", round_trip, &request, atof(words[0]));
}

static void run_session(char **words)
{
    struct request request = read_request(READ_PATH);

    measure("session", session, &request, atof(words[0]));
}

static void run_gaps(char **words)
{
    struct request reading = read_request(READ_PATH), writing = write_request(WRITE_PATH, VALUE_BYTES);

    measure_gaps(client, &reading, &writing, atof(words[0]));
}

static void run_ring(char **words)
{
    measure_ring(!strcmp(words[0], "write"), atof(words[1]));
}

static void run_rings(char **words)
{
    measure_rings(!strcmp(words[0], "write"), atof(words[1]));
}

static void run_introduce(char **words)
{
    measure_introductions(client, socket_path, atoi(words[0]));
}

static void run_destroy(char **words)
{
    measure_ends(client, socket_path, atoi(words[0]));
}

#define ANY_NUMBER -1

static const struct command {
    const char *name;
    int words, sets_up;
    void (*run)(char **words);
} commands[] = {
    {"pids", ANY_NUMBER, 0, set_pids},
    {"idle", 1, 1, set_up_idle},
    {"watches", 2, 1, set_up_watches},
    {"fill", 1, 1, set_up_nodes},
    {"domains", 1, 1, run_domains},
    {"guests", 1, 1, run_guests},
    {"read", 1, 0, run_read},
    {"write", 1, 0, run_write},
    {"session", 1, 0, run_session},
    {"transaction", 2, 0, measure_transaction},
    {"parallel", 2, 0, measure_parallel},
    {"fanout", 2, 0, measure_fan_out},
    {"children", 1, 0, measure_children},
    {"devices", 2, 0, measure_devices},
    {"gaps", 1, 0, run_gaps},
    {"ring", 2, 0, run_ring},
    {"rings", 2, 0, run_rings},
    {"introduce", 1, 0, run_introduce},
    {"destroy", 1, 0, run_destroy},
};

static const struct command *find_command(const char *name, int words)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        if (!strcmp(commands[i].name, name) && (commands[i].words == words || commands[i].words == ANY_NUMBER))
            return &commands[i];
    fatal("unknown command: %s with %d words", name, words);
}

static void run(char *line)
{
    char *words[MAX_WORDS + 1] = {strtok(line, " ")};
    const struct command *command;
    double start = now();
    int count = 0;

    if (!words[0])
        fatal("an empty line");
    while ((words[++count] = strtok(NULL, " ")))
        if (count == MAX_WORDS - 1)
            fatal("too many words");
    command = find_command(words[0], count - 1);
    command->run(words + 1);
    if (command->sets_up)
        printf("{\"done\": 1, \"seconds\": %.3f}\n", now() - start);
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

    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: load SOCKET [SIMULATED_XEN]\n");
        return 2;
    }
    socket_path = argv[1];
    xen_use(argv[2]);
    raise_descriptor_limit();
    gaps_begin();
    client = wire_connect(socket_path);
    make_nodes();
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        run(line);
    }
    return 0;
}
