/* trips.c: see trips.h. */
#include "trips.h"

#include <stdio.h>
#include <string.h>

#define CHILDREN 10
#define DEEP_NAMES 98 /* with the two in front of them, a hundred for a toolstack */
#define PATH_BYTES 512

static const char *below(const char *home, const char *name)
{
    static char path[PATH_BYTES];

    if ((size_t)snprintf(path, sizeof(path), "%s%s", home, name) >= sizeof(path))
        fatal("%s%s is too long", home, name);
    return path;
}

static const char *deep_path(const char *home)
{
    char name[PATH_BYTES / 2] = "deep";

    for (int i = 0; i < DEEP_NAMES; i++)
        strcat(name, "/n");
    return below(home, name);
}

struct trip trip_of(const char *kind, const char *home, int owner)
{
    struct trip trip = {.count = 1};
    struct request *first = &trip.requests[0];

    if (!strcmp(kind, "read"))
        *first = path_request(WIRE_READ, below(home, "r"));
    else if (!strcmp(kind, "write"))
        *first = write_request(below(home, "w"), VALUE_BYTES);
    else if (!strcmp(kind, "get-perms"))
        *first = path_request(WIRE_GET_PERMS, below(home, "r"));
    else if (!strcmp(kind, "directory"))
        *first = path_request(WIRE_DIRECTORY, below(home, "d"));
    else if (!strcmp(kind, "set-perms"))
        *first = perms_request(below(home, "p"), owner);
    else if (!strcmp(kind, "deep-read"))
        *first = path_request(WIRE_READ, deep_path(home));
    else if (!strcmp(kind, "deep-write"))
        *first = write_request(deep_path(home), VALUE_BYTES);
    else if (!strcmp(kind, "mkdir-rm")) {
        trip.count = 2;
        trip.requests[0] = path_request(WIRE_MKDIR, below(home, "x"));
        trip.requests[1] = path_request(WIRE_RM, below(home, "x"));
    } else
        fatal("unknown kind of request: %s", kind);
    return trip;
}

/* A node that belongs to `owner`. */
static void give_node(struct wire *toolstack, const char *path, int owner, size_t value_bytes)
{
    struct request request = write_request(path, value_bytes);

    wire_call(toolstack, 0, &request);
    request = perms_request(path, owner);
    wire_call(toolstack, 0, &request);
}

void trip_nodes(struct wire *toolstack, const char *home, int owner)
{
    static const char *const names[] = {"r", "w", "p"};
    char name[PATH_BYTES];

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        give_node(toolstack, below(home, names[i]), owner, VALUE_BYTES);
    give_node(toolstack, below(home, "d"), owner, 0);
    for (int i = 0; i < CHILDREN; i++) {
        snprintf(name, sizeof(name), "d/child%d", i);
        give_node(toolstack, below(home, name), owner, 0);
    }
    give_node(toolstack, deep_path(home), owner, VALUE_BYTES);
    snprintf(name, sizeof(name), "%s", home);
    name[strlen(name) - 1] = 0;
    give_node(toolstack, name, owner, 0);
}
