/*
 * crowds.h: load of many connections at once: parallel requests, and events for many watchers.
 *
 * For: load.c. A toolstack is a connection that may do everything.
 * Guarantees: as measure.h; the connections are closed, and the daemon has seen that, when the figure is printed.
 * Does not know: what stands idle in the daemon meanwhile.
 */
#ifndef CROWDS_H
#define CROWDS_H

#include "wire.h"

/* Reads, one in flight on each connection. */
void measure_parallel(const char *socket_path, int connections, double seconds);

/* One write until the last of that many connections, which watch the node, has its event. */
void measure_fan_out(struct wire *toolstack, const char *socket_path, int watchers, double seconds);

/* Removal of a node with that many children, each watched by the same connection, until it has the last event. */
void measure_watched_removal(struct wire *toolstack, const char *socket_path, int watches, double seconds);

#endif
