/* domains.c: see domains.h. */
#include "domains.h"

#include <stdio.h>

#include "guests.h"
#include "measure.h"

#define VALUE_BYTES 32
#define MAX_GUESTS 1000
#define FIRST_IDLE_DOMID 2001
#define FIRST_PASSING_DOMID 10001
#define READ_PATH "r"
#define WRITE_PATH "w"

static struct guest *guests[MAX_GUESTS];
static int guest_count;
static struct request guest_request;

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

/* A node at or below a guest's home that belongs to the guest. */
static void give_node(struct wire *toolstack, int domid, const char *below, size_t value_bytes)
{
    char path[64];
    struct request request;

    snprintf(path, sizeof(path), "/local/domain/%d%s", domid, below);
    request = write_request(path, value_bytes);
    wire_call(toolstack, 0, &request);
    request = perms_request(path, domid);
    wire_call(toolstack, 0, &request);
}

void set_up_guests(struct wire *toolstack, int total)
{
    if (total > MAX_GUESTS)
        fatal("%d guests", total);
    for (; guest_count < total; guest_count++) {
        int domid = guest_count + 1;

        guests[guest_count] = guest_new(toolstack, domid);
        give_node(toolstack, domid, "", 0);
        give_node(toolstack, domid, "/" READ_PATH, VALUE_BYTES);
        give_node(toolstack, domid, "/" WRITE_PATH, VALUE_BYTES);
    }
    settle();
}

/* ---- guests at work ---- */

static void choose_request(int writing)
{
    if (!guest_count)
        fatal("there is no guest");
    guest_request = writing ? write_request(WRITE_PATH, VALUE_BYTES) : read_request(READ_PATH);
}

static void round_trip(const void *context)
{
    (void)context;
    guest_call(guests[0], &guest_request);
}

void measure_ring(int writing, double seconds)
{
    choose_request(writing);
    measure("ring", round_trip, NULL, seconds);
}

static int fd_of(void *guest)
{
    return ((struct guest *)guest)->fd;
}

static void send_request(void *guest)
{
    guest_send(guest, &guest_request);
}

static int take_reply(void *guest)
{
    guest_take_events(guest);
    return guest_reply(guest, guest_request.type);
}

void measure_rings(int writing, double seconds)
{
    struct crowd crowd = {(void **)guests, guest_count, 1, fd_of, send_request, take_reply};

    choose_request(writing);
    measure_crowd("rings", &crowd, seconds);
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
