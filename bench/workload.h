/*
 * workload.h: a recorded workload, read from its file.
 *
 * For: day.c. The format stands in workloads/README.md.
 * Guarantees: a file that cannot be understood ends the program, as in wire.h.
 * Does not know: how a line is carried out.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include "wire.h"

#define MAX_SOCKETS 64
#define MAX_LABELS 512
#define LIVES 2

enum deed { DEED_REQUEST, DEED_CREATE, DEED_SHUTDOWN, DEED_GONE, DEED_CLOSE };

/* `number` is the actor's, or for what happens to a domain which life of the guest's that is. */
struct line {
    enum deed deed;
    char actor;
    int number, label; /* of the transaction; 0: none */
    uint32_t type;
    char outcome[24];
    const char *payload; /* with words to be filled in */
    size_t length;
};

struct phase {
    const char *name;
    struct line *lines;
    int count;
};

void workload_read(const char *path);
const struct phase *workload_phase(const char *name);

/* The request of a line, for one guest whose lives have these domids. */
void workload_request(const struct line *line, int guest, const int *domids, struct request *request);

#endif
