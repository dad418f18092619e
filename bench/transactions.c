/* transactions.c: see transactions.h. */
#define _GNU_SOURCE
#include "transactions.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guests.h"
#include "measure.h"
#include "trips.h"

#define MAX_WRITES 100
#define KEY_BYTES 8

/* ---- one after the other ---- */

struct transaction {
    struct wire *toolstack;
    int writes;
    struct request *requests;
};

static void transaction(const void *context)
{
    const struct transaction *plan = context;
    uint32_t id = wire_start(plan->toolstack);

    for (int i = 0; i < plan->writes; i++)
        wire_call(plan->toolstack, id, &plan->requests[i]);
    if (!wire_commit(plan->toolstack, id))
        fatal("EAGAIN without a competitor");
}

static struct request numbered_write(int number)
{
    char path[64];

    snprintf(path, sizeof(path), TOOLSTACK_HOME "t/%d", number);
    return write_request(path, VALUE_BYTES);
}

void transaction_nodes(struct wire *toolstack)
{
    for (int i = 0; i < MAX_WRITES; i++) {
        struct request request = numbered_write(i);

        wire_call(toolstack, 0, &request);
    }
}

static void *allocate(int count, size_t size)
{
    void *memory = calloc(count + 1, size);

    if (!memory)
        fatal("out of memory");
    return memory;
}

static struct request *numbered_writes(int count)
{
    struct request *requests = allocate(count, sizeof(*requests));

    if (count > MAX_WRITES)
        fatal("a transaction of %d writes", count);
    for (int i = 0; i < count; i++)
        requests[i] = numbered_write(i);
    return requests;
}

void measure_transaction(struct wire *toolstack, int writes, double seconds)
{
    struct transaction plan = {toolstack, writes, numbered_writes(writes)};

    measure("transaction", transaction, &plan, seconds);
    free(plan.requests);
}

/* ---- interleaved ---- */

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
    return write_request(path, KEY_BYTES);
}

/* What a host has before the transactions: with `parents`, a front-end folder per domain and the back-ends' folder. */
static void prepare_devices(struct wire *toolstack, int count, int parents)
{
    struct request request;
    char path[64];

    wire_remove(toolstack, "/local/domain");
    if (!parents)
        return;
    request = write_request("/local/domain/0/backend/vbd", 0);
    wire_call(toolstack, 0, &request);
    for (int domid = 1; domid <= count; domid++) {
        snprintf(path, sizeof(path), "/local/domain/%d/device/vbd", domid);
        request = write_request(path, 0);
        wire_call(toolstack, 0, &request);
    }
}

/* All start, then all write their first key, their second, ..., then all commit: how many commit at the first try? */
static int create_devices(struct wire **wires, uint32_t *ids, int count)
{
    int committed = 0;

    for (int i = 0; i < count; i++)
        ids[i] = wire_start(wires[i]);
    for (size_t key = 0; key < 2 * KEY_COUNT; key++)
        for (int i = 0; i < count; i++) {
            struct request request = device_write(i + 1, key);

            wire_call(wires[i], ids[i], &request);
        }
    for (int i = 0; i < count; i++)
        committed += wire_commit(wires[i], ids[i]);
    return committed;
}

void measure_devices(struct wire *toolstack, const char *socket_path, int count, int parents)
{
    struct wire **wires = allocate(count, sizeof(*wires));
    uint32_t *ids = allocate(count, sizeof(*ids));
    struct spent spent;
    int committed;

    prepare_devices(toolstack, count, parents);
    for (int i = 0; i < count; i++)
        wires[i] = wire_connect(socket_path);
    spent = spent_now();
    committed = create_devices(wires, ids, count);
    spent = spent_since(spent);
    printf("{\"figure\": \"devices\", \"count\": %d, \"committed\": %d, \"us\": %.3f, \"cpu_us\": %.3f, "
           "\"client_us\": %.3f}\n",
           count, committed, spent.wall / count * 1e6, spent.daemon / count * 1e6, spent.client / count * 1e6);
    for (int i = 0; i < count; i++)
        wire_close(wires[i]);
    free(ids);
    free(wires);
    wire_remove(toolstack, "/local/domain");
}

/* ---- against a guest that writes in a loop ---- */

#define STORM_DOMID 3001
#define STORM_WRITES 10
#define STORM_BEFORE 5   /* writes of the guest before a figure begins */
#define STORM_LIMIT 5.   /* seconds until a transaction is given up */
#define MAX_SAMPLES 100000

/* Shared with the process that is the guest. */
struct storm {
    int stop;
    long writes;
    struct guest guest;
};

static struct storm *storm;

/* A guest has a processor of its own, where there is one. */
static void move_to_other_core(void)
{
    int cores = sysconf(_SC_NPROCESSORS_ONLN), here = sched_getcpu();
    cpu_set_t others;

    CPU_ZERO(&others);
    for (int core = 0; core < cores; core++)
        if (core != here)
            CPU_SET(core, &others);
    if (CPU_COUNT(&others) && sched_setaffinity(0, sizeof(others), &others) && errno != EINVAL)
        fatal("sched_setaffinity: %s", strerror(errno));
}

static void be_guest(void)
{
    struct trip trip = trip_of("write", "", STORM_DOMID);

    move_to_other_core();
    while (!__atomic_load_n(&storm->stop, __ATOMIC_ACQUIRE)) {
        guest_call(&storm->guest, 0, &trip.requests[0]);
        __atomic_add_fetch(&storm->writes, 1, __ATOMIC_RELEASE);
    }
    _exit(0);
}

static void set_up_storm(struct wire *toolstack)
{
    char home[64];

    if (!storm) {
        storm = mmap(NULL, sizeof(*storm), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (storm == MAP_FAILED)
            fatal("mmap: %s", strerror(errno));
        storm->guest = *guest_new(toolstack, STORM_DOMID);
    }
    snprintf(home, sizeof(home), "/local/domain/%d/", STORM_DOMID);
    trip_nodes(toolstack, home, STORM_DOMID);
    settle();
}

static pid_t begin_storm(void)
{
    pid_t guest;

    storm->stop = 0;
    storm->writes = 0;
    fflush(stdout);
    guest = fork();
    if (guest < 0)
        fatal("fork: %s", strerror(errno));
    if (!guest)
        be_guest();
    while (__atomic_load_n(&storm->writes, __ATOMIC_ACQUIRE) < STORM_BEFORE)
        if (waitpid(guest, NULL, WNOHANG) == guest)
            fatal("the guest that writes has ended");
    return guest;
}

static void end_storm(pid_t guest)
{
    int status;

    __atomic_store_n(&storm->stop, 1, __ATOMIC_RELEASE);
    if (waitpid(guest, &status, 0) != guest || status)
        fatal("the guest that writes ended with status %d", status);
}

struct attempt {
    struct wire *toolstack;
    struct request reading, writing, *others;
};

static int try_to_commit(const struct attempt *plan)
{
    uint32_t id = wire_start(plan->toolstack);

    wire_call(plan->toolstack, id, &plan->reading);
    for (int i = 0; i < STORM_WRITES; i++)
        wire_call(plan->toolstack, id, &plan->others[i]);
    wire_call(plan->toolstack, id, &plan->writing);
    return wire_commit(plan->toolstack, id);
}

/* Seconds until a commit, or -1 if there was none in time; counts the attempts. */
static double time_to_commit(const struct attempt *plan, long *attempts)
{
    double start = now();

    do {
        ++*attempts;
        if (try_to_commit(plan))
            return now() - start;
    } while (now() - start < STORM_LIMIT);
    return -1;
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

void measure_storm(struct wire *toolstack, double seconds)
{
    static double samples[MAX_SAMPLES];
    struct attempt plan = {toolstack, {0}, {0}, numbered_writes(STORM_WRITES)};
    struct spent start, spent;
    long attempts = 0;
    int count = 0;
    char path[64];
    pid_t guest;

    set_up_storm(toolstack);
    snprintf(path, sizeof(path), "/local/domain/%d/w", STORM_DOMID);
    plan.reading = path_request(WIRE_READ, path);
    plan.writing = write_request(path, VALUE_BYTES);
    guest = begin_storm();
    start = spent_now();
    do
        samples[count] = time_to_commit(&plan, &attempts);
    while (samples[count++] >= 0 && now() - start.wall < seconds && count < MAX_SAMPLES);
    spent = spent_since(start);
    end_storm(guest);
    free(plan.others);
    if (samples[count - 1] < 0) {
        decline("no commit in %g s and %ld attempts", STORM_LIMIT, attempts);
        return;
    }
    qsort(samples, count, sizeof(*samples), by_size);
    printf("{\"figure\": \"storm\", \"count\": %d, \"us\": %.3f, \"p99_us\": %.3f, \"cpu_us\": %.3f, ", count,
           samples[count / 2] * 1e6, samples[(int)(count * .99)] * 1e6, spent.daemon / count * 1e6);
    printf("\"client_us\": %.3f, \"attempts\": %.3f, \"guest_writes\": %.3f}\n", spent.client / count * 1e6,
           (double)attempts / count, (double)storm->writes / count);
}
