/*
 * load.c: puts load on an xenstored and measures it, command by command.
 *
 *     load SOCKET [SIMULATED_XEN]
 *
 * For: the benchmark. Reads commands from standard input, one a line, and answers each with one line of JSON on
 * standard output. What a set-up command makes (idle connections, watches, nodes, domains) stays until the program ends.
 *
 *   pids PID...                 whose CPU time is counted from here on: all processes of the daemon; with a minus in
 *                               front, one that may end meanwhile
 *   cpu                         the CPU time they have used so far
 *   idle TOTAL                  opens or closes idle connections until there are TOTAL
 *   watches TOTAL PER LIMIT     registers watches on unrelated paths until there are TOTAL, PER on each connection
 *   fill TOTAL LIMIT            writes 32-byte nodes until there are TOTAL
 *   domains TOTAL               introduces domains that do nothing until there are TOTAL
 *   guests TOTAL                introduces domains that are guests with rings until there are TOTAL
 *   hosts TOTAL LIMIT WORKLOAD  places guests as they stand on a real host until there are TOTAL (day.h)
 *
 *   socket KIND SECS            round trips (kinds: trips.h)
 *   pipeline DEPTH KIND SECS    that many requests sent at once, until the last reply
 *   session SECS                connect, read, close
 *   transaction WRITES SECS     start, that many writes to existing nodes, commit
 *   parallel CONNECTIONS SECS   reads, one in flight on each connection
 *   fanout WATCHERS SECS        one write until the last of that many connections has its event
 *   watched-removal COUNT SECS  removal of a node with that many watched children until the last event
 *   gaps SECS                   reads and writes in turn; the longest wait.  SIGUSR1 ends it sooner
 *   new COUNT                   creates nodes, then removes them
 *   children COUNT              creates children of one node, lists them, removes some one by one, then all
 *   transacted-children COUNT LIMIT   creates children of one node, each in a transaction of its own
 *   devices COUNT absent|present   interleaved transactions that each create a virtual disk's keys
 *   storm SECS                  transactions while a guest writes what they read
 *   ring KIND SECS              round trips of the first guest
 *   ring-pipeline DEPTH KIND SECS  that many requests of it in the ring at once, until the last reply
 *   ring-transaction WRITES SECS   the first guest starts, writes existing nodes, commits
 *   rings KIND SECS             requests of all guests, one in flight on each ring
 *   ring-fanout SECS            one write until all guests have its event
 *   introduce COUNT             introductions of domains, one by one
 *   day SECS                    days of guests on that host, one after another
 *   destroy COUNT               ends of domains, one by one, until a watcher of @releaseDomain has its event
 *
 * Guarantees: see measure.h for the figures. A failure is answered by {"error": TEXT} and ends the program; what would take
 *   longer than its limit in seconds, or cannot be done, by {"declined": TEXT}, and it goes on.
 * Does not know: which daemon it talks to, or what is a good figure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "crowds.h"
#include "day.h"
#include "domains.h"
#include "gaps.h"
#include "guests.h"
#include "measure.h"
#include "nodes.h"
#include "transactions.h"
#include "trips.h"
#include "wire.h"

#define MAX_WORDS 100
#define MAX_IDLE 16384
#define ASK_EACH 500 /* watches between two looks at the clock */

static const char *socket_path;
static struct wire *client;

/* ---- round trips; `words` are a command's arguments ---- */

static void round_trip(const void *context)
{
    const struct trip *trip = context;

    for (int i = 0; i < trip->count; i++)
        wire_call(client, 0, &trip->requests[i]);
}

static void run_socket(char **words)
{
    struct trip trip = trip_of(words[0], TOOLSTACK_HOME, 0);

    measure("socket", round_trip, &trip, atof(words[1]));
}

struct pipeline {
    int depth;
    struct request request;
};

static void pipeline(const void *context)
{
    const struct pipeline *plan = context;

    wire_pipeline(client, &plan->request, plan->depth);
}

static void run_pipeline(char **words)
{
    struct pipeline plan = {atoi(words[0]), trip_of(words[1], TOOLSTACK_HOME, 0).requests[0]};

    measure_batches("pipeline", pipeline, &plan, plan.depth, atof(words[2]));
}

static void session(const void *request)
{
    struct wire *wire = wire_connect(socket_path);

    wire_call(wire, 0, request);
    wire_close(wire);
}

static void run_session(char **words)
{
    struct request request = path_request(WIRE_READ, READ_PATH);

    measure("session", session, &request, atof(words[0]));
}

/* ---- what stands idle in the daemon ---- */

static void run_idle(char **words)
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

static void run_watches(char **words)
{
    int total = atoi(words[0]), per_connection = atoi(words[1]);
    struct patience patience = patience_of(atof(words[2]));
    static struct wire *watcher;
    static int have, used;
    char path[64], token[32];
    int before = have;

    for (; have < total; have++, used++) {
        struct request request;

        if (have % ASK_EACH == 0 && too_long(&patience, have - before, total - before))
            return;
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

static void run_fill(char **words)
{
    set_up_nodes(client, atoi(words[0]), atof(words[1]));
}

static void run_domains(char **words)
{
    set_up_domains(client, atoi(words[0]));
}

static void run_guests(char **words)
{
    set_up_guests(client, atoi(words[0]));
}

/* ---- figures from elsewhere ---- */

static void run_transaction(char **words)
{
    measure_transaction(client, atoi(words[0]), atof(words[1]));
}

static void run_parallel(char **words)
{
    measure_parallel(socket_path, atoi(words[0]), atof(words[1]));
}

static void run_fanout(char **words)
{
    measure_fan_out(client, socket_path, atoi(words[0]), atof(words[1]));
}

static void run_watched_removal(char **words)
{
    measure_watched_removal(client, socket_path, atoi(words[0]), atof(words[1]));
}

static void run_new(char **words)
{
    measure_new_nodes(client, atoi(words[0]));
}

static void run_children(char **words)
{
    measure_children(client, atoi(words[0]));
}

static void run_transacted_children(char **words)
{
    measure_transacted_children(client, atoi(words[0]), atof(words[1]));
}

static void run_devices(char **words)
{
    measure_devices(client, socket_path, atoi(words[0]), !strcmp(words[1], "present"));
}

static void run_storm(char **words)
{
    measure_storm(client, atof(words[0]));
}

static void run_gaps(char **words)
{
    struct request reading = path_request(WIRE_READ, READ_PATH), writing = write_request(WRITE_PATH, VALUE_BYTES);

    measure_gaps(client, &reading, &writing, atof(words[0]));
}

static void run_ring(char **words)
{
    measure_ring(words[0], atof(words[1]));
}

static void run_hosts(char **words)
{
    set_up_hosts(socket_path, atoi(words[0]), atof(words[1]), words[2]);
}

static void run_day(char **words)
{
    measure_days(atof(words[0]));
}

static void run_ring_transaction(char **words)
{
    measure_ring_transaction(atoi(words[0]), atof(words[1]));
}

static void run_rings(char **words)
{
    measure_rings(words[0], atof(words[1]));
}

static void run_ring_pipeline(char **words)
{
    measure_ring_pipeline(atoi(words[0]), words[1], atof(words[2]));
}

static void run_ring_fanout(char **words)
{
    measure_ring_fan_out(client, atof(words[0]));
}

static void run_introduce(char **words)
{
    measure_introductions(client, socket_path, atoi(words[0]));
}

static void run_destroy(char **words)
{
    measure_ends(client, socket_path, atoi(words[0]));
}

/* ---- commands ---- */

static void run_pids(char **words)
{
    forget_processes();
    for (; *words; words++)
        add_process(atoi(*words));
    printf("{\"done\": 1}\n");
}

static void run_cpu(char **words)
{
    (void)words;
    printf("{\"cpu_s\": %.6f}\n", daemon_cpu());
}

#define ANY_NUMBER -1

static const struct command {
    const char *name;
    int words, sets_up;
    void (*run)(char **words);
} commands[] = {
    {"pids", ANY_NUMBER, 0, run_pids},
    {"cpu", 0, 0, run_cpu},
    {"idle", 1, 1, run_idle},
    {"watches", 3, 1, run_watches},
    {"fill", 2, 1, run_fill},
    {"domains", 1, 1, run_domains},
    {"guests", 1, 1, run_guests},
    {"socket", 2, 0, run_socket},
    {"pipeline", 3, 0, run_pipeline},
    {"session", 1, 0, run_session},
    {"transaction", 2, 0, run_transaction},
    {"parallel", 2, 0, run_parallel},
    {"fanout", 2, 0, run_fanout},
    {"watched-removal", 2, 0, run_watched_removal},
    {"new", 1, 0, run_new},
    {"children", 1, 0, run_children},
    {"transacted-children", 2, 0, run_transacted_children},
    {"devices", 2, 0, run_devices},
    {"gaps", 1, 0, run_gaps},
    {"storm", 1, 0, run_storm},
    {"hosts", 3, 1, run_hosts},
    {"day", 1, 0, run_day},
    {"ring", 2, 0, run_ring},
    {"ring-pipeline", 3, 0, run_ring_pipeline},
    {"ring-fanout", 1, 0, run_ring_fanout},
    {"ring-transaction", 2, 0, run_ring_transaction},
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

static void print_set_up(struct spent spent)
{
    printf("{\"done\": 1, \"seconds\": %.6f, \"cpu_s\": %.6f}\n", spent.wall, spent.daemon);
}

static void run(char *line)
{
    char *words[MAX_WORDS + 1] = {strtok(line, " ")};
    const struct command *command;
    struct spent spent = {0};
    int count = 0;

    if (!words[0])
        fatal("an empty line");
    while ((words[++count] = strtok(NULL, " ")))
        if (count == MAX_WORDS - 1)
            fatal("too many words");
    command = find_command(words[0], count - 1);
    if (command->sets_up) /* else the processes may be gone: perhaps the command names those that took their place */
        spent = spent_now();
    command->run(words + 1);
    if (!has_declined() && command->sets_up)
        print_set_up(spent_since(spent));
    fflush(stdout);
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
    trip_nodes(client, TOOLSTACK_HOME, 0);
    transaction_nodes(client);
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        run(line);
    }
    return 0;
}
