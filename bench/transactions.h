/*
 * transactions.h: load that consists of transactions.
 *
 * For: load.c. A toolstack is a connection that may do everything.
 * Guarantees: as measure.h; no transaction stays open.
 * Does not know: how a daemon decides whether a transaction may commit.
 */
#ifndef TRANSACTIONS_H
#define TRANSACTIONS_H

#include "wire.h"

/* The nodes that transactions overwrite: made early, so that they are old whatever is set up meanwhile. */
void transaction_nodes(struct wire *toolstack);

/* Start, that many writes to existing nodes, commit. */
void measure_transaction(struct wire *toolstack, int writes, double seconds);

/* Interleaved transactions that each create a virtual disk's keys; with `parents`, their folders stand there before. */
void measure_devices(struct wire *toolstack, const char *socket_path, int count, int parents);

/* From the start of a toolstack's transaction that reads and writes a node until it is committed, however many attempts that
 * takes, while a guest writes that node in a loop. Declines if it never is. */
void measure_storm(struct wire *toolstack, double seconds);

#endif
