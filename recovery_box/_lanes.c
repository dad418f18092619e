/*
 * _lanes.c: the two system calls of a lane, compiled; and what is done for all lanes at once.
 *
 * For: doing what Lane.receive, Lane.send, unfinished_slots and wait_for_all of lanes.py do, in one call. Optional: without
 * a compiler the Python versions are used, with the same guarantees.
 * Guarantees: the position word is stored whole, before the call; nothing is stored behind it but by the kernel.
 * Does not know: what a message is, or what DONE says.
 *
 * The layout is that of lanes.py: IN and OUT mmsghdr at words 0 and 8 of the slot, their iovecs at words 16 and 18, the
 * input region behind CONTROL_SIZE bytes, the output region behind that.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define CONTROL_SIZE 256
#define REGION_SIZE 8192u
#define MASK (REGION_SIZE - 1)
#define IN_HEADER 0
#define OUT_HEADER 8
#define IN_IOV 16
#define OUT_IOV 18
#define BYTES 7
#define DONE 20

struct slot {
    uint64_t *words;
    char *input;
    char *output;
};

static int parse(PyObject *const *args, Py_ssize_t count, int *fd, struct slot *slot, uint32_t *from, uint32_t *to)
{
    unsigned long long address;

    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "expected a descriptor, an address and two positions");
        return -1;
    }
    *fd = (int)PyLong_AsLong(args[0]);
    address = PyLong_AsUnsignedLongLong(args[1]);
    *from = (uint32_t)PyLong_AsUnsignedLongMask(args[2]);
    *to = (uint32_t)PyLong_AsUnsignedLongMask(args[3]);
    if (PyErr_Occurred())
        return -1;
    slot->words = (uint64_t *)(uintptr_t)address;
    slot->input = (char *)slot->words + CONTROL_SIZE;
    slot->output = slot->input + REGION_SIZE;
    return 0;
}

/* Stores a position with a count of zero; from here on the kernel counts. */
static struct mmsghdr *arm(struct slot *slot, int header, int iov, char *start, uint32_t length, uint32_t position)
{
    slot->words[iov] = (uint64_t)(uintptr_t)start;
    slot->words[iov + 1] = length;
    __atomic_store_n(&slot->words[header + BYTES], (uint64_t)position << 32, __ATOMIC_SEQ_CST);
    return (struct mmsghdr *)&slot->words[header];
}

static PyObject *receive(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct slot slot;
    uint32_t fill, head, room, straight, want, total = 0;
    struct mmsghdr *message;
    int fd;

    if (parse(args, count, &fd, &slot, &fill, &head))
        return NULL;
    while ((room = REGION_SIZE - (fill - head)) > 0 && room <= REGION_SIZE) {
        straight = REGION_SIZE - (fill & MASK);
        want = straight < room ? straight : room;
        message = arm(&slot, IN_HEADER, IN_IOV, slot.input + (fill & MASK), want, fill);
        if (recvmmsg(fd, message, 1, MSG_DONTWAIT, NULL) != 1)
            break;
        if (message->msg_len == 0)
            return PyLong_FromUnsignedLong(total);
        total += message->msg_len;
        fill += message->msg_len;
        if (message->msg_len < straight)
            return PyLong_FromUnsignedLong(total);
    }
    return PyLong_FromLong(total ? (long)total : -1);
}

static PyObject *send_all(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct slot slot;
    uint32_t sent, made, length;
    struct mmsghdr *message;
    int fd;

    if (parse(args, count, &fd, &slot, &sent, &made))
        return NULL;
    while (sent != made) {
        length = made - sent;
        if ((sent & MASK) + length > REGION_SIZE)
            length = REGION_SIZE - (sent & MASK);
        message = arm(&slot, OUT_HEADER, OUT_IOV, slot.output + (sent & MASK), length, sent);
        if (sendmmsg(fd, message, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
            break;
        sent += message->msg_len;
        if (message->msg_len < length)
            break;
    }
    return PyLong_FromUnsignedLong(sent);
}

static uint32_t position(uint64_t word)
{
    return (uint32_t)(word >> 32) + (uint32_t)word;
}

static int is_idle(const uint64_t *words)
{
    uint64_t done = words[DONE];

    return position(words[IN_HEADER + BYTES]) == (uint32_t)(done >> 32) &&
           position(words[OUT_HEADER + BYTES]) == (uint32_t)done;
}

static PyObject *unfinished(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    unsigned long long address;
    Py_ssize_t stride, slots;
    PyObject *found;

    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "expected an address, a size and a number");
        return NULL;
    }
    address = PyLong_AsUnsignedLongLong(args[0]);
    stride = PyLong_AsSsize_t(args[1]);
    slots = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred() || !(found = PyList_New(0)))
        return NULL;
    for (Py_ssize_t slot = 0; slot < slots; slot++, address += stride) {
        PyObject *number;

        if (is_idle((const uint64_t *)(uintptr_t)address))
            continue;
        number = PyLong_FromSsize_t(slot);
        if (!number || PyList_Append(found, number)) {
            Py_XDECREF(number);
            Py_DECREF(found);
            return NULL;
        }
        Py_DECREF(number);
    }
    return found;
}

static PyObject *wait_for_all(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    long refused = 0;
    Py_buffer fds;
    int epoll;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "expected a descriptor and an array of descriptors");
        return NULL;
    }
    epoll = (int)PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &fds, PyBUF_SIMPLE))
        return NULL;
    for (size_t i = 0; i < fds.len / sizeof(int); i++) {
        int fd = ((const int *)fds.buf)[i];
        struct epoll_event event = {EPOLLIN, {.fd = fd}};

        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) && errno != EEXIST)
            refused++;
    }
    PyBuffer_Release(&fds);
    return PyLong_FromLong(refused);
}

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL,
     "receive(fd, address of the slot, fill, head) -> bytes received, 0 at the end, -1 if there is nothing"},
    {"send", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL,
     "send(fd, address of the slot, sent, made) -> position sent up to"},
    {"unfinished", (PyCFunction)(void (*)(void))unfinished, METH_FASTCALL,
     "unfinished(address of the first slot, bytes of a slot, slots) -> those with something left to do"},
    {"wait_for_all", (PyCFunction)(void (*)(void))wait_for_all, METH_FASTCALL,
     "wait_for_all(epoll descriptor, array of descriptors) -> for how many of them the kernel refused"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_lanes", "A lane's system calls.", -1, methods};

PyMODINIT_FUNC PyInit__lanes(void)
{
    return PyModule_Create(&definition);
}
