/*
 * _journal.c: publishing one record, compiled.
 *
 * For: doing what Producer.publish of journal.py does for a record that fits where the last one ended: msgpack, checksum and
 * entry header straight into the ring, then the head. Optional: without a compiler the Python version does it, byte for byte.
 * Guarantees: the head is one aligned store behind everything that it speaks of; nothing is written behind `limit`, wherever
 * that stands; whatever it cannot do itself (wrap, wait, split, other types) it leaves alone and says so by None.
 * Does not know: what a record means.
 *
 * The layout is that of box.py and journal.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define PAGE 4096
#define JOURNAL_SIZE (1u << 20)
#define MASK (JOURNAL_SIZE - 1)
#define SEGMENT_MAX (JOURNAL_SIZE / 4)
#define HEAD 8 /* word of the head */
#define DEPTH_MAX 8

struct entry {
    uint32_t kind_and_length, check;
    uint64_t sequence;
};

/* ---- CRC-32 as zlib has it, eight bytes at a time */

static uint32_t table[8][256];

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
        table[0][i] = c;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int i = 0; i < 256; i++)
            table[slice][i] = table[slice - 1][i] >> 8 ^ table[0][table[slice - 1][i] & 0xFF];
}

static uint32_t checksum(uint32_t start, const unsigned char *data, size_t count)
{
    uint32_t c = ~start;

    for (; count >= 8; data += 8, count -= 8) {
        uint32_t low, high;

        memcpy(&low, data, 4);
        memcpy(&high, data + 4, 4);
        low ^= c;
        c = table[7][low & 0xFF] ^ table[6][low >> 8 & 0xFF] ^ table[5][low >> 16 & 0xFF] ^ table[4][low >> 24] ^
            table[3][high & 0xFF] ^ table[2][high >> 8 & 0xFF] ^ table[1][high >> 16 & 0xFF] ^ table[0][high >> 24];
    }
    while (count--)
        c = table[0][(c ^ *data++) & 0xFF] ^ c >> 8;
    return ~c;
}

/* ---- msgpack; each function gives where it ended, or NULL if it cannot go on */

static unsigned char *put_head(unsigned char *at, unsigned char *limit, int tag, uint64_t value, int bytes)
{
    if (limit - at < bytes + 1)
        return NULL;
    *at++ = tag;
    while (bytes--)
        *at++ = value >> 8 * bytes;
    return at;
}

static unsigned char *put_length(unsigned char *at, unsigned char *limit, size_t n, int tag8, int tag16)
{
    if (tag8 && n < 256)
        return put_head(at, limit, tag8, n, 1);
    return n < 65536 ? put_head(at, limit, tag16, n, 2) : put_head(at, limit, tag16 + 1, n, 4);
}

static unsigned char *put_bytes(unsigned char *at, unsigned char *limit, const char *data, size_t n)
{
    if (!at || (size_t)(limit - at) < n)
        return NULL;
    memcpy(at, data, n);
    return at + n;
}

static unsigned char *put_int(unsigned char *at, unsigned char *limit, PyObject *number)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);

    if (overflow)
        return NULL; /* beyond what records hold; msgpack itself decides */
    if (value >= 0) {
        if (value < 128)
            return put_head(at, limit, (int)value, 0, 0);
        if (value < 1 << 8)
            return put_head(at, limit, 0xCC, value, 1);
        if (value < 1 << 16)
            return put_head(at, limit, 0xCD, value, 2);
        return value < 1LL << 32 ? put_head(at, limit, 0xCE, value, 4) : put_head(at, limit, 0xCF, value, 8);
    }
    if (value >= -32)
        return put_head(at, limit, (int)(value & 0xFF), 0, 0);
    if (value >= -(1 << 7))
        return put_head(at, limit, 0xD0, value, 1);
    if (value >= -(1 << 15))
        return put_head(at, limit, 0xD1, value, 2);
    return value >= -(1LL << 31) ? put_head(at, limit, 0xD2, value, 4) : put_head(at, limit, 0xD3, value, 8);
}

static unsigned char *put(unsigned char *at, unsigned char *limit, PyObject *value, int depth)
{
    Py_ssize_t n;

    if (PyBool_Check(value))
        return put_head(at, limit, value == Py_True ? 0xC3 : 0xC2, 0, 0);
    if (PyLong_CheckExact(value))
        return put_int(at, limit, value);
    if (PyBytes_CheckExact(value)) {
        n = PyBytes_GET_SIZE(value);
        return put_bytes(put_length(at, limit, n, 0xC4, 0xC5), limit, PyBytes_AS_STRING(value), n);
    }
    if (PyUnicode_CheckExact(value)) {
        const char *text = PyUnicode_AsUTF8AndSize(value, &n);

        if (!text) {
            PyErr_Clear();
            return NULL;
        }
        at = n < 32 ? put_head(at, limit, 0xA0 | (int)n, 0, 0) : put_length(at, limit, n, 0xD9, 0xDA);
        return put_bytes(at, limit, text, n);
    }
    if (!PyTuple_Check(value) || depth == DEPTH_MAX)
        return NULL;
    n = PyTuple_GET_SIZE(value);
    at = n < 16 ? put_head(at, limit, 0x90 | (int)n, 0, 0) : put_length(at, limit, n, 0, 0xDC);
    for (Py_ssize_t i = 0; at && i < n; i++)
        at = put(at, limit, PyTuple_GET_ITEM(value, i), depth + 1);
    return at;
}

static PyObject *publish(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    char *box;
    uint64_t head, tail, sequence, room;
    uint32_t length, at;
    unsigned char *start, *end;
    struct entry entry;

    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "expected an address, two indices, a number and a record");
        return NULL;
    }
    box = (char *)(uintptr_t)PyLong_AsUnsignedLongLong(args[0]);
    head = PyLong_AsUnsignedLongLong(args[1]);
    tail = PyLong_AsUnsignedLongLong(args[2]);
    sequence = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    at = head & MASK;
    room = head - tail > JOURNAL_SIZE ? 0 : JOURNAL_SIZE - (head - tail);
    if (room > JOURNAL_SIZE - at)
        room = JOURNAL_SIZE - at;
    room &= ~(uint64_t)7;
    if (room > SEGMENT_MAX)
        room = SEGMENT_MAX;
    if (room <= sizeof entry)
        Py_RETURN_NONE;
    start = (unsigned char *)box + PAGE + at + sizeof entry;
    end = put(start, start + room - sizeof entry, args[4], 0);
    if (!end)
        Py_RETURN_NONE;
    length = (uint32_t)(end - start);
    entry.kind_and_length = length;
    entry.check = checksum((uint32_t)sequence ^ length, start, length);
    entry.sequence = sequence;
    memcpy(start - sizeof entry, &entry, sizeof entry);
    head += (sizeof entry + length + 7) & ~(uint64_t)7;
    __atomic_store_n((uint64_t *)box + HEAD, head, __ATOMIC_SEQ_CST);
    return PyLong_FromUnsignedLongLong(head);
}

static PyMethodDef methods[] = {
    {"publish", (PyCFunction)(void (*)(void))publish, METH_FASTCALL,
     "publish(address of the box, head, tail, sequence number, record) -> the new head, or None if that takes more"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_journal", "Publishing a record.", -1, methods};

PyMODINIT_FUNC PyInit__journal(void)
{
    make_table();
    return PyModule_Create(&definition);
}
