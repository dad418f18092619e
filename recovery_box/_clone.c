/*
 * _clone.c: processes that os.fork() does not make.
 *
 * For: having a death known at once (a remnant), and forking for somebody else (a sibling).
 *   A process that dies first gives up its memory and its descriptors, and only then is it seen to be dead: milliseconds, for a
 *   large one. Another process that shares both, its remnant, has them given up by itself, later.
 * Guarantees: the remnant executes nothing of the program, handles no signal, and ends a moment after the thread that made it.
 *   A sibling is the child of its maker's parent, which waits for it as for any other child of its own.
 * Does not know: whose remnant it is, or what a sibling is for.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Whoever comes next has work to do, and is to come first; but what is left of many must not pile up. Who asks for a short slice
 * is preferred, by its length and its weight: with this one, a nicer process than 15 comes after one that has just woken up.
 */
#define NICE 17
#define SLICE 100000 /* nanoseconds that it may keep a processor from who wakes up meanwhile; usual are three milliseconds */
#define LOCALS 16384
#define ORDER_MAX 64 /* bytes */
#define ENDS_MAX 8 /* descriptors that come with an order */

/* What sched_setattr takes. Of a process of the usual kind, runtime is the slice, since Linux 6.12. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static char stack[16384] __attribute__((aligned(16)));
static char locals[2 * LOCALS] __attribute__((aligned(64))); /* thread-local variables, errno among them, on both sides of the middle */
static int made; /* there is one of each */
static long maker;
static struct timespec rest; /* for those who wake up at the same death, and have work to do */

static int remain(void *nothing)
{
    uint64_t death = 1ull << (SIGUSR1 - 1); /* blocked, as all are */

    syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0);
    while (syscall(SYS_getppid) == maker)
        syscall(SYS_rt_sigtimedwait, &death, NULL, NULL, sizeof(death));
    if (rest.tv_nsec)
        syscall(SYS_nanosleep, &rest, NULL);
    return 0;
}

static PyObject *called(PyObject *self, PyObject *name)
{
    if (!PyBytes_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "bytes expected");
        return NULL;
    }
    prctl(PR_SET_NAME, PyBytes_AS_STRING(name), 0, 0, 0);
    Py_RETURN_NONE;
}

static PyObject *remnant(PyObject *self, PyObject *arguments)
{
    struct attributes attributes = {.size = sizeof(attributes), .nice = NICE, .runtime = SLICE};
    sigset_t all, before;
    int pid, problem;
    const char *its, *own;
    long pause;

    if (!PyArg_ParseTuple(arguments, "yyl", &its, &own, &pause))
        return NULL;
    if (pause < 0 || pause >= 1000000000) {
        PyErr_SetString(PyExc_ValueError, "a pause of less than a second is expected, in nanoseconds");
        return NULL;
    }
    if (made) {
        PyErr_SetString(PyExc_RuntimeError, "there is a remnant already");
        return NULL;
    }
    maker = getpid();
    rest.tv_nsec = pause;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* the remnant begins with what is blocked here */
    prctl(PR_SET_NAME, its, 0, 0, 0); /* and with this name, so that it never goes by another */
    pid = clone(remain, stack + sizeof(stack), CLONE_VM | CLONE_FILES | CLONE_SETTLS, NULL, NULL, locals + LOCALS);
    problem = errno;
    if (pid > 0)
        syscall(SYS_sched_setattr, pid, &attributes, 0);
    prctl(PR_SET_NAME, own, 0, 0, 0);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    made = 1;
    return PyLong_FromLong(pid);
}

#ifdef __x86_64__
#define CLONE(flags, tid) syscall(SYS_clone, flags, NULL, NULL, tid, 0L)
#else
#define CLONE(flags, tid) syscall(SYS_clone, flags, NULL, NULL, 0L, tid)
#endif

/*
 * Forks a child of the parent's, which ends with that: its pid, or 0 in the child.
 * As the C library forks for one thread, but that neither it nor Python does anything at it: no lock is held by anybody else.
 */
static long sibling(void)
{
    int *tid = NULL; /* where the C library keeps the thread's id, if the kernel says where that is */
    long pid;

    syscall(SYS_prctl, PR_GET_TID_ADDRESS, &tid, 0, 0, 0);
    pid = CLONE(CLONE_PARENT | (tid ? CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID : 0), tid);
    if (pid == 0) {
        made = 0;
        syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    }
    return pid;
}

/* An order, with the descriptors that came with it: its length, 0 if whoever orders is gone, -1 with an exception. */
static ssize_t receive(int fd, char *order, size_t size, int *fds, int *count)
{
    union {
        char bytes[CMSG_SPACE(ENDS_MAX * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec into = {order, size};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};
    struct pollfd waiting = {fd, POLLIN, 0};
    struct cmsghdr *c;
    ssize_t length;

    *count = 0;
    while ((length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0) {
        if (errno == EAGAIN)
            poll(&waiting, 1, -1);
        else if (errno == ECONNRESET)
            return 0;
        else if (errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (PyErr_CheckSignals())
            return -1;
    }
    c = CMSG_FIRSTHDR(&message);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        *count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
    }
    return length;
}

/*
 * Does orders that begin with a given byte and come with enough descriptors: forks a sibling for each, closes the descriptors, says
 * the sibling's pid. In C, since each object of Python's that is looked at after a fork is a page to copy. Returns in each child, with
 * an order of another kind, and when nobody is there any more to order anything.
 */
static PyObject *breed(PyObject *self, PyObject *arguments)
{
    char order[ORDER_MAX];
    int fds[ENDS_MAX];
    int hears, says, ends, count, pid, i;
    char kind;
    ssize_t length;
    PyObject *result;

    if (!PyArg_ParseTuple(arguments, "iici", &hears, &says, &kind, &ends))
        return NULL;
    if (ends < 0 || ends > ENDS_MAX) {
        PyErr_SetString(PyExc_ValueError, "so many descriptors never come");
        return NULL;
    }
    for (;;) {
        length = receive(hears, order, sizeof(order), fds, &count);
        if (length < 0)
            return NULL;
        pid = -1;
        if (length > 0 && order[0] == kind && count == ends) {
            pid = (int)sibling();
            if (pid < 0)
                return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (pid <= 0)
            break;
        for (i = 0; i < count; i++)
            close(fds[i]);
        while (send(says, &pid, sizeof(pid), MSG_NOSIGNAL) < 0 && errno == EINTR)
            ; /* whoever is gone orders nothing more either */
    }
    result = Py_BuildValue("y#[]O", order, (Py_ssize_t)length, pid == 0 ? Py_True : Py_False);
    for (i = 0; result && i < count; i++) {
        PyObject *fd = PyLong_FromLong(fds[i]);

        if (!fd || PyList_Append(PyTuple_GET_ITEM(result, 1), fd))
            Py_CLEAR(result);
        Py_XDECREF(fd);
    }
    return result;
}

static PyMethodDef functions[] = {
    {"called", called, METH_O, "Names the calling thread."},
    {"remnant", remnant, METH_VARARGS, "Makes a remnant of this process, once, by the first name; the process has the second. It outlives that by so many nanoseconds. Its pid. Raises OSError."},
    {"breed", breed, METH_VARARGS, "Forks a sibling for each order that comes by the first descriptor, begins with the given byte and comes with so many descriptors; says its pid by the second descriptor. The sibling ends with its parent. Returns (order, descriptors, whether this is a child) in each child, and for any other order; that is empty when nobody can order any more. Raises OSError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_clone", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__clone(void)
{
    return PyModule_Create(&module);
}
