/*
 * day.h: a host with guests, and guests that boot, run, move and end on it, as recorded from a real host.
 *
 * For: load.c. What a workload is, and what its words mean, stands in workloads/README.md.
 * Guarantees: one request is in flight at a time, in the recorded order, each over the connection (socket or ring) that it was
 *   recorded on; what nobody asked for (events) is taken out as it comes. Requests answered otherwise than recorded are counted.
 * Does not know: what the requests are for.
 */
#ifndef DAY_H
#define DAY_H

/* Places guests that stay, until there are so many: rings, watches, nodes and sockets of each, by the phases "standing-...". */
void set_up_hosts(const char *socket_path, int total, double limit, const char *workload);

/* Whole days of further guests, one guest after another, for some seconds and at least one. */
void measure_days(double seconds);

#endif
