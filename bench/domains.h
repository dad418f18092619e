/*
 * domains.h: load that comes from domains: guests with rings, domains that do nothing, domains that come and go.
 *
 * For: load.c. A toolstack is a connection that may do everything.
 * Guarantees: as measure.h. What is set up stays; domains that come and go have gone when their figure is printed.
 * Does not know: how a ring works (guests.h).
 */
#ifndef DOMAINS_H
#define DOMAINS_H

#include "wire.h"

void set_up_domains(struct wire *toolstack, int total);
void set_up_guests(struct wire *toolstack, int total);

void measure_ring(const char *kind, double seconds);  /* round trips of the first guest */
void measure_ring_pipeline(int depth, const char *kind, double seconds); /* so many of its requests in the ring at once */
void measure_ring_transaction(int writes, double seconds); /* start, writes to existing nodes, commit; first guest */
void measure_rings(const char *kind, double seconds); /* all guests, one request in flight on each ring */
void measure_ring_fan_out(struct wire *toolstack, double seconds); /* a write until all guests have its event */

/* One by one. An end takes until a watcher of @releaseDomain has its event. */
void measure_introductions(struct wire *toolstack, const char *socket_path, int count);
void measure_ends(struct wire *toolstack, const char *socket_path, int count);

#endif
