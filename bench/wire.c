/* wire.c: see wire.h. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WIRE_PIPELINE_MAX (4 * WIRE_MESSAGE_MAX)
#define WIRE_REPLY_LIMIT (1 << 24)

static const struct request start_transaction = {WIRE_TRANSACTION_START, 1, ""};
static const struct request commit_transaction = {WIRE_TRANSACTION_END, 2, "T"};

void fatal(const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    for (char *at = text; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ')
            *at = '\'';
    printf("{\"error\": \"%s\"}\n", text);
    fflush(stdout);
    exit(1);
}

/* ---- connections ---- */

int wire_connect_fd(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fatal("socket: %s", strerror(errno));
    if (strlen(socket_path) >= sizeof(address.sun_path))
        fatal("socket path too long");
    strcpy(address.sun_path, socket_path);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
        fatal("connect: %s", strerror(errno));
    return fd;
}

static void make_room(struct wire *wire, size_t room)
{
    if (room > WIRE_REPLY_LIMIT)
        fatal("a message of %zu bytes", room);
    wire->room = room;
    wire->input = realloc(wire->input, room);
    wire->payload = realloc(wire->payload, room);
    if (!wire->input || !wire->payload)
        fatal("out of memory");
}

struct wire *wire_connect(const char *socket_path)
{
    struct wire *wire = calloc(1, sizeof(*wire));

    if (!wire)
        fatal("out of memory");
    make_room(wire, 2 * WIRE_MESSAGE_MAX);
    wire->fd = wire_connect_fd(socket_path);
    return wire;
}

void wire_close(struct wire *wire)
{
    close(wire->fd);
    free(wire->input);
    free(wire->payload);
    free(wire);
}

/* ---- requests ---- */

static struct request request_with(uint32_t type, const char *first, size_t first_bytes)
{
    struct request request = {.type = type, .length = first_bytes};

    if (first_bytes > WIRE_PAYLOAD_MAX)
        fatal("payload too long");
    memcpy(request.payload, first, first_bytes);
    return request;
}

struct request path_request(uint32_t type, const char *path)
{
    return request_with(type, path, strlen(path) + 1);
}

struct request write_request(const char *path, size_t value_bytes)
{
    struct request request = request_with(WIRE_WRITE, path, strlen(path) + 1);

    memset(request.payload + request.length, 'v', value_bytes);
    request.length += value_bytes;
    return request;
}

static struct request request_with_two(uint32_t type, const char *first, const char *second)
{
    struct request request = request_with(type, first, strlen(first) + 1);

    strcpy(request.payload + request.length, second);
    request.length += strlen(second) + 1;
    return request;
}

struct request watch_request(const char *path, const char *token)
{
    return request_with_two(WIRE_WATCH, path, token);
}

struct request part_request(const char *path, size_t offset)
{
    char text[24];

    snprintf(text, sizeof(text), "%zu", offset);
    return request_with_two(WIRE_DIRECTORY_PART, path, text);
}

struct request perms_request(const char *path, int owner)
{
    char text[16];

    snprintf(text, sizeof(text), "n%d", owner);
    return request_with_two(WIRE_SET_PERMS, path, text);
}

/* ---- messages ---- */

size_t wire_encode(char *message, uint32_t id, uint32_t transaction, const struct request *request)
{
    struct wire_header header = {request->type, id, transaction, request->length};

    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), request->payload, request->length);
    return sizeof(header) + request->length;
}

void wire_send(struct wire *wire, uint32_t transaction, const struct request *request)
{
    char message[WIRE_MESSAGE_MAX];
    ssize_t bytes = wire_encode(message, ++wire->last_request, transaction, request);

    if (send(wire->fd, message, bytes, MSG_NOSIGNAL) != bytes)
        fatal("send: %s", strerror(errno));
}

static void fill_to(struct wire *wire, size_t wanted)
{
    if (wanted > wire->room)
        make_room(wire, wanted);
    while (wire->filled < wanted) {
        ssize_t got = read(wire->fd, wire->input + wire->filled, wire->room - wire->filled);

        if (got == 0)
            fatal("the daemon closed the connection");
        if (got < 0)
            fatal("read: %s", strerror(errno));
        wire->filled += got;
    }
}

/* Takes the next message of any kind into `payload`. */
static struct wire_header receive_any(struct wire *wire)
{
    struct wire_header header;
    size_t bytes;

    fill_to(wire, sizeof(header));
    memcpy(&header, wire->input, sizeof(header));
    bytes = sizeof(header) + header.length;
    fill_to(wire, bytes);
    memcpy(wire->payload, wire->input + sizeof(header), header.length);
    wire->payload[header.length] = 0;
    wire->length = header.length;
    wire->filled -= bytes;
    if (wire->filled)
        memmove(wire->input, wire->input + bytes, wire->filled);
    if (header.type == WIRE_WATCH_EVENT)
        wire->events++;
    else if (header.request != wire->last_request)
        fatal("a reply to request %u where %u was expected", header.request, wire->last_request);
    return header;
}

uint32_t wire_receive(struct wire *wire)
{
    uint32_t type;

    do
        type = receive_any(wire).type;
    while (type == WIRE_WATCH_EVENT);
    return type;
}

void wire_receive_event(struct wire *wire, long count)
{
    while (wire->events < count)
        receive_any(wire);
}

void wire_expect(struct wire *wire, uint32_t type)
{
    uint32_t got = wire_receive(wire);

    if (got != type)
        fatal("request of type %u answered by type %u %s", type, got, got == WIRE_ERROR ? wire->payload : "");
}

void wire_call(struct wire *wire, uint32_t transaction, const struct request *request)
{
    wire_send(wire, transaction, request);
    wire_expect(wire, request->type);
}

void wire_remove(struct wire *wire, const char *path)
{
    struct request request = path_request(WIRE_RM, path);
    uint32_t type;

    wire_send(wire, 0, &request);
    type = wire_receive(wire);
    if (type != WIRE_RM && !(type == WIRE_ERROR && !strcmp(wire->payload, "ENOENT")))
        fatal("RM %s: %s", path, wire->payload);
}

void wire_pipeline(struct wire *wire, const struct request *request, int depth)
{
    uint32_t answered = wire->last_request;
    static char messages[WIRE_PIPELINE_MAX];
    size_t bytes = 0;

    for (int i = 0; i < depth; i++) {
        if (bytes + WIRE_MESSAGE_MAX > sizeof(messages))
            fatal("%d requests are too many to be sent at once", depth);
        bytes += wire_encode(messages + bytes, ++wire->last_request, 0, request);
    }
    if (send(wire->fd, messages, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        fatal("send: %s", strerror(errno));
    for (wire->last_request = answered; depth > 0; depth--) {
        wire->last_request++;
        wire_expect(wire, request->type);
    }
}

uint32_t wire_start(struct wire *wire)
{
    wire_call(wire, 0, &start_transaction);
    return strtoul(wire->payload, NULL, 10);
}

int wire_commit(struct wire *wire, uint32_t transaction)
{
    uint32_t type;

    wire_send(wire, transaction, &commit_transaction);
    type = wire_receive(wire);
    if (type == WIRE_TRANSACTION_END)
        return 1;
    if (type != WIRE_ERROR || strcmp(wire->payload, "EAGAIN"))
        fatal("commit answered by type %u %s", type, wire->payload);
    return 0;
}
