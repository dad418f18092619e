/*
 * trips.h: the round trips that are measured, each by a name, for a socket as well as for a ring.
 *
 * For: load.c and domains.c. Kinds: read, write, get-perms, directory (of 10 children), set-perms, mkdir-rm (two requests),
 *   deep-read and deep-write (a path of a hundred names).
 * Guarantees: the nodes that are read and overwritten stand below `home` once they were given; an unknown kind ends the
 *   program.
 * Does not know: how a request gets to the daemon.
 */
#ifndef TRIPS_H
#define TRIPS_H

#include "wire.h"

#define TRIP_REQUESTS_MAX 2
#define VALUE_BYTES 32
#define TOOLSTACK_HOME "/bench/"
#define READ_PATH TOOLSTACK_HOME "r"
#define WRITE_PATH TOOLSTACK_HOME "w"

struct trip {
    int count;
    struct request requests[TRIP_REQUESTS_MAX];
};

/* `home` ends with a slash, or is empty for paths relative to a guest's home; `owner` is whose the nodes are. */
struct trip trip_of(const char *kind, const char *home, int owner);

/* Makes the nodes below `home`, an absolute path that ends with a slash, and gives them to `owner`. */
void trip_nodes(struct wire *toolstack, const char *home, int owner);

#endif
