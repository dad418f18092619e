/*
 * _lanes.c: the two system calls of a lane, compiled; and what is done for all lanes at once.
 *
 * For: doing what Lane.receive, Lane.send, unfinished_slots and wait_for_all of lanes.py do, in one call. Optional: without
 * a compiler the Python versions are used, with the same guarantees.
 * Guarantees: the position word is stored whole, before the call; nothing is stored behind it but by the kernel.
 * Does not know: what a message is, or what DONE says.
 *
 * The layout is that of lanes.py: IN and OUT mmsghdr at words 0 and 8 of the slot, their iovecs at words 16 and 26 (two of
 * them), the input region behind CONTROL_SIZE bytes, the output region behind that.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define CONTROL_SIZE 256
#define REGION_SIZE 8192u
#define MASK (REGION_SIZE - 1)
#define IN_HEADER 0
#define OUT_HEADER 8
#define IN_IOV 16
#define OUT_IOV 26
#define IOV_COUNT 3
#define BYTES 7
#define HEADER_WORDS 4
#define LENGTH 3
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
    uint32_t sent, made, length, straight;
    struct mmsghdr *message;
    int fd;

    if (parse(args, count, &fd, &slot, &sent, &made))
        return NULL;
    length = made - sent;
    if (length > REGION_SIZE)
        length = REGION_SIZE;
    if (length) {
        straight = REGION_SIZE - (sent & MASK);
        slot.words[OUT_HEADER + IOV_COUNT] = length > straight ? 2 : 1;
        if (length > straight) {
            slot.words[OUT_IOV + 2] = (uint64_t)(uintptr_t)slot.output;
            slot.words[OUT_IOV + 3] = length - straight;
            length = straight;
        }
        message = arm(&slot, OUT_HEADER, OUT_IOV, slot.output + (sent & MASK), length, sent);
        if (sendmmsg(fd, message, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
            sent += message->msg_len;
    }
    return PyLong_FromUnsignedLong(sent);
}

/* Bytes of a region that is a ring. */
static void copy_out(char *to, const char *region, uint32_t from, uint32_t count)
{
    uint32_t at = from & MASK, straight = REGION_SIZE - at;

    if (count <= straight) {
        memcpy(to, region + at, count);
        return;
    }
    memcpy(to, region + at, straight);
    memcpy(to + straight, region, count - straight);
}

static void copy_in(char *region, uint32_t to, const char *from, uint32_t count)
{
    uint32_t at = to & MASK, straight = REGION_SIZE - at;

    if (count <= straight) {
        memcpy(region + at, from, count);
        return;
    }
    memcpy(region + at, from, straight);
    memcpy(region, from + straight, count - straight);
}

static char *slot_at(PyObject *address)
{
    return (char *)(uintptr_t)PyLong_AsUnsignedLongLong(address);
}

static PyObject *frame(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t head, there, limit, header[HEADER_WORDS];
    PyObject *found, *payload;
    const char *input;

    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "expected an address, two positions and a limit");
        return NULL;
    }
    input = slot_at(args[0]) + CONTROL_SIZE;
    head = (uint32_t)PyLong_AsUnsignedLongMask(args[1]);
    there = (uint32_t)PyLong_AsUnsignedLongMask(args[2]) - head;
    limit = (uint32_t)PyLong_AsUnsignedLongMask(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (there < sizeof header || there > REGION_SIZE)
        Py_RETURN_NONE;
    copy_out((char *)header, input, head, sizeof header);
    if (header[LENGTH] > limit)
        return PyLong_FromUnsignedLong(header[LENGTH]);
    if (header[LENGTH] > there - sizeof header)
        Py_RETURN_NONE;
    payload = PyBytes_FromStringAndSize(NULL, header[LENGTH]);
    if (!payload || !(found = PyTuple_New(HEADER_WORDS))) {
        Py_XDECREF(payload);
        return NULL;
    }
    copy_out(PyBytes_AS_STRING(payload), input, head + sizeof header, header[LENGTH]);
    for (int i = 0; i < LENGTH; i++) {
        PyObject *number = PyLong_FromUnsignedLong(header[i]);

        if (!number) {
            Py_DECREF(payload);
            Py_DECREF(found);
            return NULL;
        }
        PyTuple_SET_ITEM(found, i, number);
    }
    PyTuple_SET_ITEM(found, LENGTH, payload);
    return found;
}

/* Puts pieces of output behind what is made, and says that the input up to `head` is consumed by them: one store. */
static PyObject *make(PyObject *const *args, const char *first, size_t first_size, PyObject *rest)
{
    char *words = slot_at(args[0]), *output = words + CONTROL_SIZE + REGION_SIZE;
    uint32_t made = (uint32_t)PyLong_AsUnsignedLongMask(args[1]), head = (uint32_t)PyLong_AsUnsignedLongMask(args[2]);

    if (PyErr_Occurred())
        return NULL;
    if (!PyBytes_Check(rest) || (size_t)PyBytes_GET_SIZE(rest) > REGION_SIZE - first_size) {
        PyErr_SetString(PyExc_ValueError, "output that no region holds");
        return NULL;
    }
    copy_in(output, made, first, first_size);
    copy_in(output, made + first_size, PyBytes_AS_STRING(rest), PyBytes_GET_SIZE(rest));
    made += first_size + PyBytes_GET_SIZE(rest);
    __atomic_store_n((uint64_t *)words + DONE, (uint64_t)head << 32 | made, __ATOMIC_SEQ_CST);
    return PyLong_FromUnsignedLong(made);
}

static PyObject *answer(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "expected an address, two positions and bytes");
        return NULL;
    }
    return make(args, NULL, 0, args[3]);
}

static PyObject *reply(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t header[HEADER_WORDS];

    if (count != 7 || !PyBytes_Check(args[6])) {
        PyErr_SetString(PyExc_TypeError, "expected an address, two positions, three numbers and bytes");
        return NULL;
    }
    for (int i = 0; i < LENGTH; i++)
        header[i] = (uint32_t)PyLong_AsUnsignedLongMask(args[3 + i]);
    header[LENGTH] = (uint32_t)PyBytes_GET_SIZE(args[6]);
    return make(args, (const char *)header, sizeof header, args[6]);
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
    unsigned long events;
    int epoll;

    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "expected a descriptor, an array of descriptors and events");
        return NULL;
    }
    epoll = (int)PyLong_AsLong(args[0]);
    events = PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &fds, PyBUF_SIMPLE))
        return NULL;
    for (size_t i = 0; i < fds.len / sizeof(int); i++) {
        int fd = ((const int *)fds.buf)[i];
        struct epoll_event event = {(uint32_t)events, {.fd = fd}};

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
    {"frame", (PyCFunction)(void (*)(void))frame, METH_FASTCALL,
     "frame(address of the slot, head, fill, limit) -> (three numbers, payload), None if there is no whole one, or a length beyond"},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL,
     "answer(address of the slot, made, head, bytes) -> position made up to"},
    {"reply", (PyCFunction)(void (*)(void))reply, METH_FASTCALL,
     "reply(address of the slot, made, head, three numbers, payload) -> position made up to"},
    {"unfinished", (PyCFunction)(void (*)(void))unfinished, METH_FASTCALL,
     "unfinished(address of the first slot, bytes of a slot, slots) -> those with something left to do"},
    {"wait_for_all", (PyCFunction)(void (*)(void))wait_for_all, METH_FASTCALL,
     "wait_for_all(epoll descriptor, array of descriptors, events) -> for how many of them the kernel refused"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_lanes", "A lane's system calls.", -1, methods};

PyMODINIT_FUNC PyInit__lanes(void)
{
    return PyModule_Create(&definition);
}
