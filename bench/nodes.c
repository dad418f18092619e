/* nodes.c: see nodes.h. */
#include "nodes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "measure.h"
#include "trips.h"

#define FOLDER 100
#define ASK_EACH 1000 /* nodes between two looks at the clock */
#define CHILD_VALUE_BYTES 8
#define REMOVED_ONE_BY_ONE 20
#define LISTS 50
#define REMOVALS 3 /* of all children, for one figure */
#define REMOVALS_LIMIT 1. /* seconds: after so long there is no other one */
#define CHILDREN_HOME TOOLSTACK_HOME "kids"

void set_up_nodes(struct wire *toolstack, int total, double limit)
{
    struct patience patience = patience_of(limit);
    static int have;
    char path[64];
    int before = have;

    for (; have < total; have++) {
        struct request request;

        if (have % ASK_EACH == 0 && too_long(&patience, have - before, total - before))
            return;
        snprintf(path, sizeof(path), TOOLSTACK_HOME "m/%d/%d/%d", have / (FOLDER * FOLDER), have / FOLDER % FOLDER,
                 have % FOLDER);
        request = write_request(path, VALUE_BYTES);
        wire_call(toolstack, 0, &request);
    }
}

struct new_nodes {
    struct wire *toolstack;
    int *number;
};

static void make_next(const void *context)
{
    const struct new_nodes *nodes = context;
    struct request request;
    char path[64];

    snprintf(path, sizeof(path), TOOLSTACK_HOME "new/%d/%d", *nodes->number / FOLDER, *nodes->number % FOLDER);
    ++*nodes->number;
    request = write_request(path, VALUE_BYTES);
    wire_call(nodes->toolstack, 0, &request);
}

void measure_new_nodes(struct wire *toolstack, int count)
{
    int number = 0;
    struct new_nodes nodes = {toolstack, &number};

    measure_times("new", make_next, &nodes, count);
    wire_remove(toolstack, TOOLSTACK_HOME "new");
    settle();
}

/* ---- many children of one node ---- */

static const char *child_path(int number)
{
    static char path[64];

    snprintf(path, sizeof(path), CHILDREN_HOME "/c%05d", number);
    return path;
}

static void create_children(struct wire *toolstack, int count)
{
    for (int i = 0; i < count; i++) {
        struct request request = write_request(child_path(i), CHILD_VALUE_BYTES);

        wire_call(toolstack, 0, &request);
    }
}

/* Reads a list of any length, part by part; returns how many names it has, or -1 if the daemon does not do that. */
static long list_in_parts(struct wire *toolstack, const char *path)
{
    long names = 0;
    size_t offset = 0;

    for (;;) {
        struct request request = part_request(path, offset);
        const char *at, *end;

        wire_send(toolstack, 0, &request);
        if (wire_receive(toolstack) != WIRE_DIRECTORY_PART)
            return -1;
        at = toolstack->payload + strlen(toolstack->payload) + 1; /* behind the generation */
        end = toolstack->payload + toolstack->length;
        for (; at < end && *at; at += strlen(at) + 1) {
            names++;
            offset += strlen(at) + 1;
        }
        if (at < end)
            return names;
    }
}

static long list_children(struct wire *toolstack)
{
    struct request request = path_request(WIRE_DIRECTORY, CHILDREN_HOME);
    long names = 0;

    wire_send(toolstack, 0, &request);
    if (wire_receive(toolstack) == WIRE_ERROR)
        return list_in_parts(toolstack, CHILDREN_HOME);
    for (uint32_t i = 0; i < toolstack->length; i++)
        names += !toolstack->payload[i];
    return names;
}

/* Without a figure (wall 0) if the daemon refuses. */
static struct spent list_some(struct wire *toolstack, int count)
{
    struct spent start = spent_now();

    for (int i = 0; i < LISTS; i++) {
        long names = list_children(toolstack);

        if (names < 0)
            return (struct spent){0};
        if (names != count)
            fatal("%ld names of %d children", names, count);
    }
    return spent_since(start);
}

static void remove_some(struct wire *toolstack, int count)
{
    for (int i = 0; i < REMOVED_ONE_BY_ONE; i++) {
        struct request request = path_request(WIRE_RM, child_path((int)((i + .5) * count / REMOVED_ONE_BY_ONE)));

        wire_call(toolstack, 0, &request);
    }
}

static void print_part(const char *part, const char *unit, double wall, double cpu, int count)
{
    printf("\"%s_%s\": %.6f, \"%s_cpu_us\": %.3f, ", part, unit, wall, part, cpu / count * 1e6);
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

/* Removes them all, and some times more what is made anew: one removal may meet any disturbance. The median of the times to
 * the reply; the daemon's CPU time, with what it puts off, is the mean. */
static struct spent remove_all(struct wire *toolstack, int count)
{
    double walls[REMOVALS], wall = 0, cpu = 0;
    int times = 0;

    do {
        struct spent one;

        if (times) {
            create_children(toolstack, count);
            settle();
        }
        one = spent_now();
        wire_remove(toolstack, CHILDREN_HOME);
        walls[times++] = spent_since(one).wall;
        settle();
        cpu += spent_since(one).daemon;
        wall += walls[times - 1];
    } while (times < REMOVALS && wall < REMOVALS_LIMIT);
    qsort(walls, times, sizeof(*walls), by_size);
    return (struct spent){walls[times / 2], cpu / times, 0};
}

void measure_children(struct wire *toolstack, int count)
{
    struct spent created = spent_now(), listed, one, all;
    double seconds;

    create_children(toolstack, count);
    seconds = spent_since(created).wall;
    settle(); /* what the daemon puts off is part of its CPU time, and not of the lists' */
    created = spent_since(created);
    created.wall = seconds;
    listed = list_some(toolstack, count);
    one = spent_now();
    remove_some(toolstack, count);
    one = spent_since(one);
    all = remove_all(toolstack, count);
    printf("{");
    print_part("create", "ms", created.wall * 1e3, created.daemon, count);
    if (listed.wall > 0)
        print_part("list", "us", listed.wall / LISTS * 1e6, listed.daemon, LISTS);
    else
        printf("\"list_declined\": \"refuses a list longer than a message\", ");
    print_part("remove_one", "us", one.wall / REMOVED_ONE_BY_ONE * 1e6, one.daemon, REMOVED_ONE_BY_ONE);
    print_part("remove_all", "ms", all.wall * 1e3, all.daemon, 1);
    printf("\"figure\": \"children\", \"count\": %d}\n", count);
}

void measure_transacted_children(struct wire *toolstack, int count, double limit)
{
    struct patience patience = patience_of(limit);
    struct spent spent = spent_now();
    int done = 0;

    for (; done < count; done++) {
        struct request request = write_request(child_path(done), CHILD_VALUE_BYTES);
        uint32_t id;

        if (done % (ASK_EACH / 4) == 0 && too_long(&patience, done, count))
            break;
        id = wire_start(toolstack);
        wire_call(toolstack, id, &request);
        if (!wire_commit(toolstack, id))
            fatal("EAGAIN without a competitor");
    }
    spent = spent_since(spent);
    wire_remove(toolstack, CHILDREN_HOME);
    settle();
    if (done == count)
        print_total("transacted-children", count, spent);
}
