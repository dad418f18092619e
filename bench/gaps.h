/*
 * gaps.h: how long a client that never pauses has to wait while something happens to the daemon.
 *
 * For: load.c.
 * Guarantees: one request is in flight at any time, reads and writes in turn; every reply is checked to be one; the longest
 *   wait is counted from sending a request to its reply.  Ends by itself, or sooner by SIGUSR1.
 * Does not know: what happens to the daemon, or when.
 */
#ifndef GAPS_H
#define GAPS_H

#include "wire.h"

void gaps_begin(void); /* to be called first, lest the signal end the program */
void measure_gaps(struct wire *client, const struct request *reading, const struct request *writing, double seconds);

#endif
