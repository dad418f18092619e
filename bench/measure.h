/*
 * measure.h: clocks, the daemon's CPU time, and figures.
 *
 * For: load.c and domains.c.
 * Guarantees: times are CLOCK_MONOTONIC as the client sees them; CPU time is the scheduler's account (schedstat) of every
 *   thread of every process named last; each figure is one line of JSON on standard output.
 * Does not know: what is measured.
 */
#ifndef MEASURE_H
#define MEASURE_H

double now(void);

/* The processes of the daemon, whose CPU time is counted. */
void forget_processes(void);
void add_process(int pid);
double daemon_cpu(void);

/* Returns when the daemon has worked off what it still had to do: it uses no CPU time worth mentioning any more. */
void settle(void);

/* Repeats an operation for some seconds, or a number of times; its latencies become one figure. */
void measure(const char *figure, void (*operation)(const void *), const void *context, double seconds);
void measure_times(const char *figure, void (*operation)(const void *), const void *context, int count);

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
void print_total(const char *figure, long count, double seconds, double cpu);

#endif
