/*
 * wire.h: a minimal client of the xenstore wire protocol for load generation.
 *
 * For: whatever puts load on a socket, and guests.c for the form of messages. One system call to send a request, usually one to receive its reply.
 * Guarantees: anything unexpected (an error reply, a closed connection, a failing system call) ends the program after
 *   a line {"error": ...} on standard output, unless the caller asked for the reply's type.
 * Does not know: what is measured.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>

enum wire_type {
    WIRE_DIRECTORY = 1,
    WIRE_READ = 2,
    WIRE_GET_PERMS = 3,
    WIRE_WATCH = 4,
    WIRE_UNWATCH = 5,
    WIRE_TRANSACTION_START = 6,
    WIRE_TRANSACTION_END = 7,
    WIRE_INTRODUCE = 8,
    WIRE_WRITE = 11,
    WIRE_MKDIR = 12,
    WIRE_RM = 13,
    WIRE_SET_PERMS = 14,
    WIRE_WATCH_EVENT = 15,
    WIRE_ERROR = 16,
    WIRE_DIRECTORY_PART = 22,
};

struct wire_header {
    uint32_t type, request, transaction, length;
};

#define WIRE_PAYLOAD_MAX 4096
#define WIRE_MESSAGE_MAX (sizeof(struct wire_header) + WIRE_PAYLOAD_MAX)

/* `payload` holds the last reply, NUL-terminated; `events` counts the watch events received so far. The room grows for
 * replies longer than the protocol allows: oxenstored sends such. */
struct wire {
    int fd;
    uint32_t last_request;
    long events;
    size_t filled, room;
    uint32_t length;
    char *payload, *input;
};

/* A request that is sent many times, prepared once. */
struct request {
    uint32_t type, length;
    char payload[WIRE_PAYLOAD_MAX];
};

_Noreturn void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

int wire_connect_fd(const char *socket_path);
struct wire *wire_connect(const char *socket_path);
void wire_close(struct wire *wire);

struct request path_request(uint32_t type, const char *path); /* for whatever takes a path and nothing else */
struct request write_request(const char *path, size_t value_bytes);
struct request part_request(const char *path, size_t offset);
struct request watch_request(const char *path, const char *token);
struct request perms_request(const char *path, int owner); /* nobody else may do anything */

size_t wire_encode(char *message, uint32_t id, uint32_t transaction, const struct request *request);
void wire_send(struct wire *wire, uint32_t transaction, const struct request *request);
void wire_pipeline(struct wire *wire, const struct request *request, int depth); /* sent at once; every reply expected */
uint32_t wire_receive(struct wire *wire); /* the type of the next reply */
void wire_receive_event(struct wire *wire, long count);
void wire_expect(struct wire *wire, uint32_t type);
void wire_call(struct wire *wire, uint32_t transaction, const struct request *request);
void wire_remove(struct wire *wire, const char *path); /* it may be absent */
uint32_t wire_start(struct wire *wire);
int wire_commit(struct wire *wire, uint32_t transaction); /* 0 on EAGAIN */

#endif
