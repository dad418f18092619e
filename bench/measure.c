/* measure.c: see measure.h. */
#define _GNU_SOURCE
#include "measure.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define WARM_UP 20
#define WARM_UP_LIMIT .05 /* seconds */
#define MAX_SAMPLES (1 << 21)
#define MAX_PIDS 64
#define CROWD_LIMIT 5. /* seconds */
#define LOST_EVENT_MS 20
#define SETTLE_STEP .02
#define SETTLED .02 /* of a core */
#define SETTLE_LIMIT 30.

/* ---- clocks ---- */

static int pids[MAX_PIDS];
static int pid_count;
static double seen[MAX_PIDS]; /* of each that may end: what it had used when it was last there */

double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

void forget_processes(void)
{
    pid_count = 0;
}

void add_process(int pid)
{
    if (pid_count == MAX_PIDS)
        fatal("too many processes");
    seen[pid_count] = 0;
    pids[pid_count++] = pid;
}

static double thread_cpu(int pid, const char *tid)
{
    unsigned long long nanoseconds = 0;
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", pid, tid);
    file = fopen(path, "r");
    if (!file)
        return 0; /* the thread ended meanwhile */
    if (fscanf(file, "%llu", &nanoseconds) != 1)
        nanoseconds = 0;
    fclose(file);
    return nanoseconds * 1e-9;
}

/* Less than 0 if the process has ended. */
static double process_cpu(int pid)
{
    struct dirent *entry;
    double seconds = 0;
    char path[64];
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    tasks = opendir(path);
    if (!tasks)
        return -1;
    while ((entry = readdir(tasks)))
        if (entry->d_name[0] != '.')
            seconds += thread_cpu(pid, entry->d_name);
    closedir(tasks);
    return seconds;
}

double daemon_cpu(void)
{
    double seconds = 0;

    for (int i = 0; i < pid_count; i++) {
        double used = process_cpu(abs(pids[i]));

        if (used < 0 && pids[i] > 0)
            fatal("process %d of the daemon is gone", pids[i]);
        if (used >= 0)
            seen[i] = used;
        seconds += seen[i];
    }
    return seconds;
}

struct spent spent_now(void)
{
    struct timespec own;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    return (struct spent){now(), daemon_cpu(), own.tv_sec + own.tv_nsec * 1e-9};
}

struct spent spent_since(struct spent start)
{
    struct spent end = spent_now();

    return (struct spent){end.wall - start.wall, end.daemon - start.daemon, end.client - start.client};
}

void settle(void)
{
    double start = now(), used, before;

    do {
        if (now() - start > SETTLE_LIMIT)
            fatal("the daemon is still busy after %g s", SETTLE_LIMIT);
        before = daemon_cpu();
        usleep(SETTLE_STEP * 1e6);
        used = daemon_cpu() - before;
    } while (used > SETTLED * SETTLE_STEP);
}

/* ---- figures ---- */

static double samples[MAX_SAMPLES];

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static double sample_us(int count, double share)
{
    return samples[(int)(count * share)] * 1e6;
}

/* Of `each` operations a sample. */
static void print_latency(const char *figure, int count, int each, struct spent spent)
{
    double operations = (double)count * each;

    for (int i = 0; i < count; i++)
        samples[i] /= each;
    qsort(samples, count, sizeof(*samples), by_size);
    printf("{\"figure\": \"%s\", \"count\": %.0f, \"us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, ", figure,
           operations, sample_us(count, .5), sample_us(count, .99), sample_us(count, .999));
    printf("\"mean_us\": %.3f, \"cpu_us\": %.3f, \"client_us\": %.3f}\n", spent.wall / operations * 1e6,
           spent.daemon / operations * 1e6, spent.client / operations * 1e6);
}

void print_total(const char *figure, long count, struct spent spent)
{
    printf("{\"figure\": \"%s\", \"count\": %ld, \"us\": %.3f, \"seconds\": %.6f, \"cpu_us\": %.3f, "
           "\"client_us\": %.3f}\n",
           figure, count, spent.wall / count * 1e6, spent.wall, spent.daemon / count * 1e6,
           spent.client / count * 1e6);
}

struct sampling {
    void (*prepare)(const void *), (*operation)(const void *);
    int each, limit;
    double seconds;
};

/* Until the time is over or the limit reached, whichever comes first; at least once. */
static void sample(const char *figure, struct sampling how, const void *context)
{
    struct spent start = spent_now(), total = {0}, before = start;
    double begun, end = start.wall;
    int count = 0;

    do {
        if (how.prepare) {
            how.prepare(context);
            before = spent_now();
            end = before.wall;
        }
        begun = end;
        how.operation(context);
        end = now();
        samples[count++] = end - begun;
        if (how.prepare) {
            struct spent one = spent_since(before);

            total = (struct spent){total.wall + end - begun, total.daemon + one.daemon, total.client + one.client};
        }
    } while (end - start.wall < how.seconds && count < how.limit);
    print_latency(figure, count, how.each, how.prepare ? total : spent_since(start));
}

static void warm_up(void (*operation)(const void *), const void *context)
{
    double start = now();

    for (int i = 0; i < WARM_UP && now() - start < WARM_UP_LIMIT; i++)
        operation(context);
}

void measure(const char *figure, void (*operation)(const void *), const void *context, double seconds)
{
    measure_batches(figure, operation, context, 1, seconds);
}

void measure_batches(const char *figure, void (*operation)(const void *), const void *context, int each,
                     double seconds)
{
    warm_up(operation, context);
    sample(figure, (struct sampling){NULL, operation, each, MAX_SAMPLES, seconds}, context);
}

void measure_prepared(const char *figure, void (*prepare)(const void *), void (*operation)(const void *),
                      const void *context, double seconds)
{
    sample(figure, (struct sampling){prepare, operation, 1, MAX_SAMPLES, seconds}, context);
}

void measure_times(const char *figure, void (*operation)(const void *), const void *context, int count)
{
    if (count < 1 || count > MAX_SAMPLES)
        fatal("%s %d times", figure, count);
    sample(figure, (struct sampling){NULL, operation, 1, count, 1e9}, context);
}

/* ---- what takes too long ---- */

static int declined;

void decline(const char *format, ...)
{
    va_list args;

    declined = 1;
    printf("{\"declined\": \"");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\"}\n");
}

int has_declined(void)
{
    int result = declined;

    declined = 0;
    return result;
}

struct patience patience_of(double limit)
{
    double start = now();

    return (struct patience){limit, start, start, 0, 0};
}

int too_long(struct patience *patience, int done, int total)
{
    double time = now(), each, needed, before = patience->each;

    if (done <= patience->done || time - patience->last < (patience->limit < 4 ? patience->limit / 4 : 1))
        return 0; /* too little to judge by */
    each = (time - patience->last) / (done - patience->done);
    needed = time - patience->start + (each < before ? each : before) * (total - done);
    patience->last = time;
    patience->done = done;
    patience->each = each;
    if (needed <= patience->limit)
        return 0;
    decline("would take at least %.0f %s", needed < 120 ? needed : needed / 60, needed < 120 ? "s" : "minutes");
    return 1;
}

/* ---- crowds ---- */

static int epoll_of(const struct crowd *crowd)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    for (int i = 0; i < crowd->count; i++) {
        struct epoll_event event = {EPOLLIN, {.ptr = crowd->clients[i]}};

        if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, crowd->fd(crowd->clients[i]), &event))
            fatal("epoll: %s", strerror(errno));
    }
    return epoll;
}

static int take_one(const struct crowd *crowd, void *client, int resend)
{
    if (!crowd->take(client))
        return 0;
    if (resend)
        crowd->send(client);
    return 1;
}

static int take_those(const struct crowd *crowd, const struct epoll_event *ready, int count, int resend)
{
    int replies = 0;

    for (int i = 0; i < count; i++)
        replies += take_one(crowd, ready[i].data.ptr, resend);
    return replies;
}

/* For when nothing comes: an event may have been lost. */
static int look_at_all(const struct crowd *crowd, int resend)
{
    int replies = 0;

    for (int i = 0; i < crowd->count && crowd->may_lose_events; i++)
        replies += take_one(crowd, crowd->clients[i], resend);
    return replies;
}

/* Waits until something comes, and takes it; returns how many replies that were. */
static int take_some(const struct crowd *crowd, int epoll, int resend)
{
    struct epoll_event ready[64];

    for (double start = now(); now() - start < CROWD_LIMIT;) {
        int count = epoll_wait(epoll, ready, sizeof(ready) / sizeof(*ready), LOST_EVENT_MS), replies;

        replies = count > 0 ? take_those(crowd, ready, count, resend) : look_at_all(crowd, resend);
        if (count > 0 || replies > 0)
            return replies;
    }
    fatal("nothing came for any of %d clients in %g s", crowd->count, CROWD_LIMIT);
}

static void send_all(const struct crowd *crowd)
{
    for (int i = 0; i < crowd->count; i++)
        crowd->send(crowd->clients[i]);
}

static void take_all(const struct crowd *crowd, int epoll)
{
    for (int taken = 0; taken < crowd->count;)
        taken += take_some(crowd, epoll, 0);
}

void measure_crowd(const char *figure, const struct crowd *crowd, double wanted)
{
    int epoll = epoll_of(crowd);
    struct spent start, spent;
    long done = 0;

    send_all(crowd); /* so that the daemon has met them all */
    take_all(crowd, epoll);
    start = spent_now();
    send_all(crowd);
    while (now() - start.wall < wanted)
        done += take_some(crowd, epoll, 1);
    spent = spent_since(start);
    take_all(crowd, epoll);
    print_total(figure, done, spent);
    close(epoll);
}
