/* gaps.c: see gaps.h. */
#define _GNU_SOURCE
#include "gaps.h"

#include <signal.h>
#include <stdio.h>

#include "measure.h"

#define NOTICEABLE 1e-3 /* seconds */

static volatile sig_atomic_t enough;

static void end_soon(int number)
{
    (void)number;
    enough = 1;
}

void gaps_begin(void)
{
    struct sigaction action = {.sa_handler = end_soon, .sa_flags = SA_RESTART};

    sigaction(SIGUSR1, &action, NULL);
}

void measure_gaps(struct wire *client, const struct request *reading, const struct request *writing, double seconds)
{
    double start, end, begun, wait, worst = 0, lost = 0;
    long count = 0, gaps = 0;

    start = end = now();
    do {
        begun = end;
        wire_call(client, 0, count++ & 1 ? writing : reading);
        end = now();
        wait = end - begun;
        if (wait > NOTICEABLE) {
            gaps++;
            lost += wait;
        }
        if (wait > worst)
            worst = wait;
    } while (!enough && end - start < seconds);
    enough = 0;
    printf("{\"figure\": \"gaps\", \"count\": %ld, \"seconds\": %.6f, \"worst_us\": %.1f, \"gaps\": %ld, \"lost_us\": %.1f}\n",
           count, end - start, worst * 1e6, gaps, lost * 1e6);
}
