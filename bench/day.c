/* day.c: see day.h. */
#define _GNU_SOURCE
#include "day.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "guests.h"
#include "measure.h"
#include "workload.h"

#define MAX_RESTARTS 50
#define ASK_EACH 10 /* guests between two looks at the clock */
#define TOGETHER 100 /* guests whose requests are in flight at once while they are placed */

static const char *const days[] = {"boot", "run", "move", "end"};
#define DAYS (sizeof(days) / sizeof(*days))

/* One guest, from its boot to its end. */
struct day {
    int guest, domids[LIVES];
    struct guest *rings[LIVES];
    struct wire *sockets[MAX_SOCKETS];
    uint32_t transactions[MAX_LABELS];
};

static const char *path_of_socket;
static struct guest *kernel;
static struct wire *consoled, *host, *witness; /* the witness watches @releaseDomain, as whoever waits for an end does */
static int guest_count, request_count, otherwise, restarted;
static char first_otherwise[256];

/* Sockets that stay open while nobody asks anything over them. */
static struct wire **idle;
static int idle_count;

/* ---- actors ---- */

static struct wire *wire_of(struct day *day, const struct line *line)
{
    if (line->actor == 'c')
        return consoled;
    if (line->actor == 'h')
        return host;
    if (!day->sockets[line->number])
        day->sockets[line->number] = wire_connect(path_of_socket);
    return day->sockets[line->number];
}

static struct guest *ring_of(const struct day *day, const struct line *line)
{
    struct guest *ring = line->actor == 'k' ? kernel : day->rings[line->number];

    if (!ring)
        fatal("workload: guest %d speaks in life %d, which has not begun", day->guest, line->number);
    return ring;
}

/* What comes before the reply are events, which nobody looks at. */
static uint32_t ring_reply(struct guest *ring)
{
    struct wire_header header;

    for (;;) {
        while (!guest_message(ring, &header))
            guest_wait(ring);
        if (header.type == WIRE_WATCH_EVENT)
            continue;
        if (header.request != ring->last_request)
            fatal("domain %d: request %u was answered instead of %u", ring->domid, header.request,
                  ring->last_request);
        return header.type;
    }
}

struct reply {
    uint32_t type, length;
    const char *payload; /* NUL-terminated; until the next request of the same actor */
};

static struct reply reply_of(struct guest *ring)
{
    uint32_t type = ring_reply(ring);

    return (struct reply){type, ring->length, ring->payload};
}

/* Who has asked for something in a transaction asks for it there, too. */
static struct reply ask(struct day *day, const struct line *line, const struct request *request)
{
    uint32_t transaction = line->label && line->type != WIRE_TRANSACTION_START ? day->transactions[line->label] : 0;
    struct reply reply;

    request_count++;
    if (line->actor == 'k' || line->actor == 'g') {
        struct guest *ring = ring_of(day, line);

        guest_send(ring, transaction, request);
        reply = reply_of(ring);
    } else {
        struct wire *wire = wire_of(day, line);

        wire_send(wire, transaction, request);
        reply.type = wire_receive(wire);
        reply.payload = wire->payload;
        reply.length = wire->length;
    }
    return reply;
}

/* Xen's clients do this when a list is longer than a message may be, which it was not on the recorded host. */
static struct reply list_in_parts(struct day *day, const struct line *line, const char *path)
{
    size_t offset = 0;

    for (;;) {
        struct request request = part_request(path, offset);
        struct reply reply = ask(day, line, &request);
        const char *at = reply.payload + strlen(reply.payload) + 1; /* behind the generation */

        if (reply.type != WIRE_DIRECTORY_PART)
            return reply;
        while (at < reply.payload + reply.length && *at) {
            offset += strlen(at) + 1;
            at += strlen(at) + 1;
        }
        if (at < reply.payload + reply.length)
            return reply;
    }
}

static struct request request_for(const struct day *day, const struct line *line)
{
    struct request request;

    if (line->type == WIRE_INTRODUCE) /* page and port are the simulated Xen's, not those of the record */
        return introduce_request(day->domids[line->payload[1] - '0']);
    workload_request(line, day->guest, day->domids, &request);
    return request;
}

/* ---- lines ---- */

static int is_error(const struct reply *reply, const char *name)
{
    return reply->type == WIRE_ERROR && !strcmp(reply->payload, name);
}

static void judge(const struct line *line, const struct request *request, const struct reply *reply)
{
    const char *outcome = reply->type == WIRE_ERROR ? reply->payload : "ok";

    if (strcmp(outcome, line->outcome) && !otherwise++)
        snprintf(first_otherwise, sizeof(first_otherwise), "%c%d, type %u, %.99s: %.20s instead of %s", line->actor,
                 line->number, line->type, request->payload, outcome, line->outcome);
}

/* Asks once; whether that was the end of a transaction that met a conflict. */
static int carry_out(struct day *day, const struct line *line)
{
    struct request request = request_for(day, line);
    struct reply reply = ask(day, line, &request);

    if (line->type == WIRE_TRANSACTION_START && reply.type == WIRE_TRANSACTION_START)
        day->transactions[line->label] = strtoul(reply.payload, NULL, 10);
    if (line->type == WIRE_TRANSACTION_END && is_error(&reply, "EAGAIN"))
        return 1;
    if (line->type == WIRE_DIRECTORY && is_error(&reply, "E2BIG"))
        reply = list_in_parts(day, line, request.payload);
    judge(line, &request, &reply);
    return 0;
}

/* Does a transaction again from its start, as whoever began it would. */
static void restart(struct day *day, const struct phase *phase, int end)
{
    const struct line *last = &phase->lines[end];
    int start = end;

    while (start && !(phase->lines[start].type == WIRE_TRANSACTION_START && phase->lines[start].label == last->label))
        start--;
    for (int tries = 0; tries < MAX_RESTARTS; tries++) {
        int refused = 0;

        restarted++;
        for (int i = start; i <= end; i++)
            if (phase->lines[i].label == last->label)
                refused = carry_out(day, &phase->lines[i]);
        if (!refused)
            return;
    }
    fatal("a transaction met a conflict %d times", MAX_RESTARTS);
}

static void happen(struct day *day, const struct line *line)
{
    int life = line->number;

    switch (line->deed) {
    case DEED_CREATE:
        day->rings[life] = guest_create(day->domids[life]);
        break;
    case DEED_CLOSE:
        if (line->actor != 's' || !day->sockets[line->number])
            fatal("workload: a socket is closed that is not open");
        wire_close(day->sockets[line->number]);
        day->sockets[line->number] = NULL;
        break;
    case DEED_SHUTDOWN:
        xen_shut_down(day->domids[life]);
        wire_receive_event(witness, witness->events + 1);
        break;
    case DEED_GONE:
        guest_forget(day->rings[life]);
        day->rings[life] = NULL;
        xen_destroy(day->domids[life]);
        wire_receive_event(witness, witness->events + 1);
        break;
    case DEED_REQUEST:
        break;
    }
}

static void take_kernels_events(void)
{
    struct wire_header header;

    while (guest_message(kernel, &header))
        continue;
}

static void go_through(struct day *day, const struct phase *phase)
{
    for (int i = 0; i < phase->count; i++) {
        const struct line *line = &phase->lines[i];

        if (line->deed != DEED_REQUEST)
            happen(day, line);
        else if (carry_out(day, line))
            restart(day, phase, i);
        take_kernels_events();
    }
}

/* ---- guests ---- */

static struct day *new_guest(void)
{
    struct day *day = calloc(1, sizeof(*day));

    if (!day)
        fatal("out of memory");
    day->guest = guest_count++;
    for (int life = 0; life < LIVES; life++)
        day->domids[life] = 1 + day->guest * LIVES + life;
    return day;
}

static void keep_sockets(struct day *day)
{
    for (int i = 0; i < MAX_SOCKETS; i++)
        if (day->sockets[i]) {
            idle = realloc(idle, (idle_count + 1) * sizeof(*idle));
            if (!idle)
                fatal("out of memory");
            idle[idle_count++] = day->sockets[i];
        }
}

static void close_sockets(struct day *day)
{
    for (int i = 0; i < MAX_SOCKETS; i++)
        if (day->sockets[i])
            wire_close(day->sockets[i]);
}

/* What the processes behind idle sockets are told: they read it, and ask nothing because of it. */
static void take_idle_events(void)
{
    char nothing[65536];

    for (int i = 0; i < idle_count; i++)
        while (recv(idle[i]->fd, nothing, sizeof(nothing), MSG_DONTWAIT) == sizeof(nothing))
            continue;
}

static struct wire *watcher_of(const char *path)
{
    struct request request = watch_request(path, "day");
    struct wire *wire = wire_connect(path_of_socket);

    wire_call(wire, 0, &request);
    wire_receive_event(wire, 1);
    return wire;
}

static void begin(const char *socket_path, const char *workload)
{
    struct day *day;

    path_of_socket = socket_path;
    workload_read(workload);
    kernel = guest_dom0();
    consoled = wire_connect(socket_path);
    host = wire_connect(socket_path);
    witness = watcher_of("@releaseDomain");
    day = new_guest();
    go_through(day, workload_phase("host"));
    close_sockets(day);
    free(day);
}

/* A line of all of them: over their own rings they ask at once. */
static void carry_out_together(struct day **guests, int count, const struct line *line)
{
    for (int i = 0; i < count; i++)
        if (line->actor == 'g') {
            struct request request = request_for(guests[i], line);

            guest_send(ring_of(guests[i], line), 0, &request); /* no transaction is in the standing phases */
        } else {
            carry_out(guests[i], line);
        }
    for (int i = 0; line->actor == 'g' && i < count; i++) {
        struct request request = request_for(guests[i], line);
        struct reply reply = reply_of(ring_of(guests[i], line));

        judge(line, &request, &reply);
    }
}

/* What nobody waits for any more: a daemon can send no more than 2,700 events that are not taken. */
static void take_rings_events(struct day **guests, int count)
{
    guest_take_events(kernel);
    for (int i = 0; i < count; i++)
        if (guests[i]->rings[0])
            guest_take_events(guests[i]->rings[0]);
}

/* Not one guest after the other: who looks at every ring for each request would take many minutes to place a thousand, and
 * nobody measures setting up. */
static void go_through_together(struct day **guests, int count, const struct phase *phase)
{
    for (int i = 0; i < phase->count; i++) {
        carry_out_together(guests, count, &phase->lines[i]);
        take_kernels_events();
        take_rings_events(guests, count);
    }
}

/* Whether all went through the phase before that took too long; `together` at a time. Counts the lines. */
static int place(struct day **guests, int count, const char *name, int together, struct patience *patience, int *done,
                 int all)
{
    const struct phase *phase = workload_phase(name);

    for (int i = 0; i < count; i += together) {
        int some = count - i < together ? count - i : together;

        if (i % ASK_EACH == 0 && too_long(patience, *done, all))
            return 0;
        if (together > 1)
            go_through_together(guests + i, some, phase);
        else
            go_through(guests[i], phase);
        *done += some * phase->count;
        if (together > 1)
            take_rings_events(guests, i);
    }
    return 1;
}

void set_up_hosts(const char *socket_path, int total, double limit, const char *workload)
{
    static const struct {
        const char *phase;
        int together;
    } steps[] = {{"standing-nodes", 1}, {"standing-kernel", 1}, {"standing-rings", TOGETHER}, {"standing-sockets", 1}};
    const int step_count = sizeof(steps) / sizeof(*steps);
    struct patience patience = patience_of(limit);
    static int standing;
    int count = total - standing, done = 0, all = 0;
    struct day **guests = calloc(count > 0 ? count : 1, sizeof(*guests));

    if (!kernel)
        begin(socket_path, workload);
    if (!guests)
        fatal("out of memory");
    for (int i = 0; i < count; i++)
        guests[i] = new_guest();
    for (int i = 0; i < step_count; i++)
        all += count * workload_phase(steps[i].phase)->count;
    for (int i = 0; i < step_count; i++)
        if (!place(guests, count, steps[i].phase, steps[i].together, &patience, &done, all))
            break;
    for (int i = 0; i < count; i++)
        keep_sockets(guests[i]);
    if (otherwise)
        fatal("%d requests were answered otherwise than recorded, the first: %s", otherwise, first_otherwise);
    standing = total;
    take_idle_events();
    settle();
    take_rings_events(guests, count);
    free(guests);
}

/* ---- days ---- */

static void add(struct spent *sum, struct spent part)
{
    sum->wall += part.wall;
    sum->daemon += part.daemon;
    sum->client += part.client;
}

void measure_days(double seconds)
{
    struct spent total = {0}, phases[DAYS] = {{0}};
    int count = 0;

    if (!kernel)
        fatal("no host was set up");
    request_count = otherwise = restarted = 0;
    *first_otherwise = 0;
    do {
        struct day *day = new_guest();

        for (size_t i = 0; i < DAYS; i++) {
            struct spent spent = spent_now();

            go_through(day, workload_phase(days[i]));
            wire_remove(witness, "/no/such/node"); /* so that what others are told is part of it */
            spent = spent_since(spent);
            add(&phases[i], spent);
            add(&total, spent);
        }
        count++;
        close_sockets(day);
        free(day);
        take_idle_events();
        settle();
    } while (total.wall < seconds);
    printf("{");
    for (size_t i = 0; i < DAYS; i++)
        printf("\"%s_ms\": %.3f, \"%s_cpu_us\": %.1f, ", days[i], phases[i].wall / count * 1e3, days[i],
               phases[i].daemon / count * 1e6);
    printf("\"figure\": \"day\", \"count\": %d, \"ms\": %.3f, \"us\": %.3f, \"cpu_us\": %.1f, \"client_us\": %.1f, "
           "\"requests\": %d, \"otherwise\": %d, \"restarted\": %d, \"first_otherwise\": \"%s\"}\n",
           count, total.wall / count * 1e3, total.wall / count * 1e6, total.daemon / count * 1e6,
           total.client / count * 1e6, request_count / count, otherwise, restarted, first_otherwise);
}
