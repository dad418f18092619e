/*
 * nodes.h: load that makes many nodes.
 *
 * For: load.c. A toolstack is a connection that may do everything.
 * Guarantees: as measure.h. What is set up stays; whatever else is made has gone when the figure is printed.
 * Does not know: how a daemon keeps nodes.
 */
#ifndef NODES_H
#define NODES_H

#include "wire.h"

/* 32-byte nodes until there are `total`, a hundred in each folder; declines if that would take more than `limit` seconds. */
void set_up_nodes(struct wire *toolstack, int total, double limit);

/* Writes that create a node. */
void measure_new_nodes(struct wire *toolstack, int count);

/* Children of one node: four figures in one line. Without a list where the daemon refuses to give one so long. */
void measure_children(struct wire *toolstack, int count);

/* Children of one node, each created by a transaction of its own; declines as above. */
void measure_transacted_children(struct wire *toolstack, int count, double limit);

#endif
