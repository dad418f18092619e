/* domains.c: see domains.h. */
#include "domains.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guests.h"
#include "measure.h"
#include "trips.h"

#define MAX_GUESTS 1000
#define RING_WRITES_MAX 10 /* nodes that a guest was given for it */
#define FAN_PATH TOOLSTACK_HOME "fan"
#define FIRST_IDLE_DOMID 2001
#define FIRST_PASSING_DOMID 10001

static struct guest *guests[MAX_GUESTS];
static int guest_count;

/* ---- what stands in the daemon ---- */

static void introduce(struct wire *toolstack, int domid)
{
    struct request request = introduce_request(domid);

    wire_call(toolstack, 0, &request);
}

void set_up_domains(struct wire *toolstack, int total)
{
    static int have;

    for (; have < total; have++) {
        xen_create(FIRST_IDLE_DOMID + have);
        introduce(toolstack, FIRST_IDLE_DOMID + have);
    }
    settle();
}

void set_up_guests(struct wire *toolstack, int total)
{
    if (total > MAX_GUESTS)
        fatal("%d guests", total);
    for (; guest_count < total; guest_count++) {
        int domid = guest_count + 1;
        char home[64];

        snprintf(home, sizeof(home), "/local/domain/%d/", domid);
        guests[guest_count] = guest_new(toolstack, domid);
        trip_nodes(toolstack, home, domid);
    }
    settle();
}

/* ---- guests at work ---- */

static void round_trip(const void *context)
{
    const struct trip *trip = context;

    for (int i = 0; i < trip->count; i++)
        guest_call(guests[0], 0, &trip->requests[i]);
}

static struct trip guest_trip(const char *kind, int guest)
{
    if (guest >= guest_count)
        fatal("there are %d guests", guest_count);
    return trip_of(kind, "", guests[guest]->domid);
}

void measure_ring(const char *kind, double seconds)
{
    struct trip trip = guest_trip(kind, 0);

    measure("ring", round_trip, &trip, seconds);
}

struct ring_pipeline {
    int depth;
    struct request request;
};

static void ring_pipeline(const void *context)
{
    const struct ring_pipeline *plan = context;

    guest_pipeline(guests[0], &plan->request, plan->depth);
}

void measure_ring_pipeline(int depth, const char *kind, double seconds)
{
    struct ring_pipeline plan = {depth, guest_trip(kind, 0).requests[0]};

    measure_batches("ring-pipeline", ring_pipeline, &plan, depth, seconds);
}

struct ring_transaction {
    int writes;
    struct request start, commit, requests[RING_WRITES_MAX];
};

static void ring_transaction(const void *context)
{
    const struct ring_transaction *plan = context;
    uint32_t id;

    guest_call(guests[0], 0, &plan->start);
    id = strtoul(guests[0]->payload, NULL, 10);
    for (int i = 0; i < plan->writes; i++)
        guest_call(guests[0], id, &plan->requests[i]);
    guest_call(guests[0], id, &plan->commit);
}

void measure_ring_transaction(int writes, double seconds)
{
    static struct ring_transaction plan;
    char path[32];

    if (!guest_count || writes > RING_WRITES_MAX)
        fatal("a transaction of %d writes by one of %d guests", writes, guest_count);
    plan.writes = writes;
    plan.start = path_request(WIRE_TRANSACTION_START, "");
    plan.commit = path_request(WIRE_TRANSACTION_END, "T");
    for (int i = 0; i < writes; i++) {
        snprintf(path, sizeof(path), "d/child%d", i);
        plan.requests[i] = write_request(path, VALUE_BYTES);
    }
    measure("ring-transaction", ring_transaction, &plan, seconds);
}

static struct request guest_request;

static int fd_of(void *guest)
{
    return ((struct guest *)guest)->fd;
}

static void send_request(void *guest)
{
    guest_send(guest, 0, &guest_request);
}

static int take_reply(void *guest)
{
    guest_take_events(guest);
    return guest_reply(guest, guest_request.type);
}

void measure_rings(const char *kind, double seconds)
{
    struct crowd crowd = {(void **)guests, guest_count, 1, fd_of, send_request, take_reply};

    guest_request = guest_trip(kind, 0).requests[0];
    measure_crowd("rings", &crowd, seconds);
}

struct ring_fan {
    struct wire *toolstack;
    struct request request;
};

static void ring_fan_out(const void *context)
{
    const struct ring_fan *fan = context;

    wire_call(fan->toolstack, 0, &fan->request);
    for (int i = 0; i < guest_count; i++)
        guest_receive_event(guests[i]);
}

/* The toolstack's, and every guest may read it. */
static void make_fan_node(struct wire *toolstack, const struct request *writing)
{
    struct request perms = {.type = WIRE_SET_PERMS, .length = sizeof(FAN_PATH "\0r0")};

    memcpy(perms.payload, FAN_PATH "\0r0", perms.length);
    wire_call(toolstack, 0, writing);
    wire_call(toolstack, 0, &perms);
}

void measure_ring_fan_out(struct wire *toolstack, double seconds)
{
    struct ring_fan fan = {toolstack, write_request(FAN_PATH, VALUE_BYTES)};
    struct request watch = watch_request(FAN_PATH, "fan"), unwatch = watch;

    unwatch.type = WIRE_UNWATCH;
    make_fan_node(toolstack, &fan.request);
    for (int i = 0; i < guest_count; i++)
        guest_watch(guests[i], &watch);
    measure("ring-fanout", ring_fan_out, &fan, seconds);
    for (int i = 0; i < guest_count; i++) {
        guest_take_events(guests[i]);
        guest_call(guests[i], 0, &unwatch);
    }
    settle();
}

/* ---- domains that come and go ---- */

struct lives {
    struct wire *toolstack, *witness; /* the witness watches @releaseDomain */
    int count, *next;
};

static void introduce_next(const void *context)
{
    const struct lives *lives = context;

    introduce(lives->toolstack, (*lives->next)++);
}

static void destroy_next(const void *context)
{
    const struct lives *lives = context;

    xen_destroy((*lives->next)++);
    wire_receive_event(lives->witness, lives->witness->events + 1);
}

static struct wire *witness_at(const char *socket_path)
{
    struct request request = watch_request("@releaseDomain", "release");
    struct wire *witness = wire_connect(socket_path);

    wire_call(witness, 0, &request);
    wire_receive_event(witness, 1);
    return witness;
}

/* An end that is told twice would be taken for the next domain's. */
static void check_ends(const struct lives *lives)
{
    wire_remove(lives->witness, "/no/such/node");
    if (lives->witness->events != lives->count + 1)
        fatal("%ld events of @releaseDomain for %d ends", lives->witness->events - 1, lives->count);
}

static void do_all(const char *figure, void (*operation)(const void *), const struct lives *lives)
{
    if (figure)
        measure_times(figure, operation, lives, lives->count);
    else
        for (int i = 0; i < lives->count; i++)
            operation(lives);
    settle();
}

/* Some domains begin and end; either their introductions or their ends may have a figure. */
static void live_and_end(struct wire *toolstack, const char *socket_path, int count, const char *introductions,
                         const char *ends)
{
    static int domid = FIRST_PASSING_DOMID;
    int first = domid;
    struct lives lives = {toolstack, witness_at(socket_path), count, &domid};

    for (int i = 0; i < count; i++)
        xen_create(first + i);
    do_all(introductions, introduce_next, &lives);
    domid = first;
    do_all(ends, destroy_next, &lives);
    check_ends(&lives);
    wire_close(lives.witness);
    settle();
}

void measure_introductions(struct wire *toolstack, const char *socket_path, int count)
{
    live_and_end(toolstack, socket_path, count, "introduce", NULL);
}

void measure_ends(struct wire *toolstack, const char *socket_path, int count)
{
    live_and_end(toolstack, socket_path, count, NULL, "destroy");
}
