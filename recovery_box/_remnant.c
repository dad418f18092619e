/*
 * _remnant.c: what is left of a process for a moment after its death.
 *
 * For: having a death known at once. A process that dies first gives up its memory and its descriptors, and only then is it
 *   seen to be dead: milliseconds, for a large one. Another process that shares both has them given up by itself, later.
 * Guarantees: the remnant executes nothing of the program, handles no signal, and ends when the thread that made it does.
 * Does not know: whose remnant it is.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NICE 10 /* whoever comes next has work to do; but what is left of many must not pile up */

static char stack[16384] __attribute__((aligned(16)));

/* It shares the maker's memory, errno included: no call here may fail, or return early. */
static int remain(void *maker)
{
    syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    syscall(SYS_setpriority, PRIO_PROCESS, 0, NICE);
    while (syscall(SYS_getppid) == (long)maker)
        syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
    return 0;
}

static PyObject *make(PyObject *self, PyObject *nothing)
{
    static int made; /* there is one stack */
    sigset_t all, before;
    int pid, problem;

    if (made) {
        PyErr_SetString(PyExc_RuntimeError, "there is a remnant already");
        return NULL;
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* the remnant begins with what is blocked here */
    pid = clone(remain, stack + sizeof(stack), CLONE_VM | CLONE_FILES, (void *)(long)getpid());
    problem = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    made = 1;
    return PyLong_FromLong(pid);
}

static PyMethodDef functions[] = {
    {"make", make, METH_NOARGS, "Makes a remnant of this process, once; its pid. Raises OSError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_remnant", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__remnant(void)
{
    return PyModule_Create(&module);
}
