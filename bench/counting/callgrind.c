/*
 * callgrind.c: lets a Python program tell callgrind what to count. It does nothing when the program does not run under it.
 *
 * For: instructions.py, which loads it with ctypes.
 */
#include <valgrind/callgrind.h>

void counting_begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

/* Writes down what was executed since the beginning or the last time, under that name. */
void counting_note(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}
