/* crowds.c: see crowds.h. */
#include "crowds.h"

#include <stdio.h>
#include <stdlib.h>

#include "measure.h"
#include "trips.h"

#define WATCHED_HOME TOOLSTACK_HOME "watched"

static struct wire **connect_many(const char *socket_path, int count)
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

/* ---- requests ---- */

static int fd_of(void *wire)
{
    return ((struct wire *)wire)->fd;
}

static void send_reading(void *wire)
{
    static struct request reading;

    if (!reading.length)
        reading = path_request(WIRE_READ, READ_PATH);
    wire_send(wire, 0, &reading);
}

static int take_reply(void *wire)
{
    wire_expect(wire, WIRE_READ);
    return 1;
}

void measure_parallel(const char *socket_path, int connections, double seconds)
{
    struct wire **wires = connect_many(socket_path, connections);
    struct crowd crowd = {(void **)wires, connections, 0, fd_of, send_reading, take_reply};

    measure_crowd("parallel", &crowd, seconds);
    close_many(wires, connections);
}

/* ---- events ---- */

struct fan {
    struct wire *toolstack;
    int count;
    struct wire **wires;
    struct request request;
};

static void fan_out(const void *context)
{
    const struct fan *fan = context;

    wire_call(fan->toolstack, 0, &fan->request);
    for (int i = 0; i < fan->count; i++)
        wire_receive_event(fan->wires[i], fan->wires[i]->events + 1);
}

void measure_fan_out(struct wire *toolstack, const char *socket_path, int watchers, double seconds)
{
    struct fan fan = {toolstack, watchers, connect_many(socket_path, watchers),
                      write_request(WRITE_PATH, VALUE_BYTES)};
    struct request watch = watch_request(WRITE_PATH, "fan");

    for (int i = 0; i < watchers; i++) {
        wire_call(fan.wires[i], 0, &watch);
        wire_receive_event(fan.wires[i], 1);
    }
    measure("fanout", fan_out, &fan, seconds);
    close_many(fan.wires, watchers);
}

struct watched {
    struct wire *toolstack, *watcher;
    int count;
};

static const char *watched_path(int number)
{
    static char path[64];

    snprintf(path, sizeof(path), WATCHED_HOME "/%d", number);
    return path;
}

static void make_watched(const void *context)
{
    const struct watched *watched = context;

    for (int i = 0; i < watched->count; i++) {
        struct request request = write_request(watched_path(i), 0);

        wire_call(watched->toolstack, 0, &request);
        wire_receive_event(watched->watcher, watched->watcher->events + 1);
    }
}

static void remove_watched(const void *context)
{
    const struct watched *watched = context;

    wire_remove(watched->toolstack, WATCHED_HOME);
    wire_receive_event(watched->watcher, watched->watcher->events + watched->count);
}

void measure_watched_removal(struct wire *toolstack, const char *socket_path, int watches, double seconds)
{
    struct watched watched = {toolstack, wire_connect(socket_path), watches};

    for (int i = 0; i < watches; i++) {
        struct request watch = watch_request(watched_path(i), "removal");

        wire_call(watched.watcher, 0, &watch);
        wire_receive_event(watched.watcher, i + 1);
    }
    measure_prepared("watched-removal", make_watched, remove_watched, &watched, seconds);
    wire_close(watched.watcher);
    settle();
}
