/*
 * measure.h: clocks, the daemon's CPU time, and figures.
 *
 * For: whatever puts load on the daemon.
 * Guarantees: times are CLOCK_MONOTONIC as the client sees them; CPU time is the scheduler's account (schedstat) of every
 *   thread of every process named last; each figure is one line of JSON on standard output. The client's own CPU time
 *   stands in each figure, so that nobody takes the client's speed for the daemon's.
 * Does not know: what is measured.
 */
#ifndef MEASURE_H
#define MEASURE_H

double now(void);

/* The processes of the daemon, whose CPU time is counted; a negative number is that of one that may end. */
void forget_processes(void);
void add_process(int pid);
double daemon_cpu(void);

/* Seconds that have gone by: on the wall, of the daemon's CPU time, of the client's. */
struct spent {
    double wall, daemon, client;
};

struct spent spent_now(void);
struct spent spent_since(struct spent start);

/* Returns when the daemon has worked off what it still had to do: it uses no CPU time worth mentioning any more. */
void settle(void);

/* Repeats an operation for some seconds, or a number of times; its latencies become one figure. What comes before each
 * operation (NULL: nothing) is in no figure but takes part of the seconds. */
void measure(const char *figure, void (*operation)(const void *), const void *context, double seconds);
void measure_prepared(const char *figure, void (*prepare)(const void *), void (*operation)(const void *),
                      const void *context, double seconds);
void measure_times(const char *figure, void (*operation)(const void *), const void *context, int count);

/* The same for an operation that is `each` operations. */
void measure_batches(const char *figure, void (*operation)(const void *), const void *context, int each,
                     double seconds);

/* Many clients, each with one request in flight. */
struct crowd {
    void **clients;
    int count, may_lose_events; /* if so, a reply may stand there though `fd` is not readable */
    int (*fd)(void *client);    /* readable when something has come for the client */
    void (*send)(void *client); /* puts a request in flight */
    int (*take)(void *client);  /* takes what has come; whether that was the reply */
};

/* Keeps them all busy for so many seconds; the time that one request takes, of all together, becomes a figure. */
void measure_crowd(const char *figure, const struct crowd *crowd, double wanted);

/* A figure of many operations that were not timed one by one. */
void print_total(const char *figure, long count, struct spent spent);

/* Says that there will be no figure, and why. What was set up so far stays. */
void decline(const char *format, ...) __attribute__((format(printf, 1, 2)));
int has_declined(void); /* since the last time this was asked */

/* For what may take too long: whether the rest would exceed the limit (seconds), if nothing becomes faster. Judged by the
 * better of the last two stretches: one may have met a disturbance. */
struct patience {
    double limit, start, last, each;
    int done;
};

struct patience patience_of(double limit);
int too_long(struct patience *patience, int done, int total); /* declines if so; to be asked now and then */

#endif
