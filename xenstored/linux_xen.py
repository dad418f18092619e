"""Xen as a Linux kernel gives it to its user space: the `Hypervisor` over /dev/xen/*, without Xen's libraries.

For: the daemon on a Xen host.  Guarantees: no descriptor outlives an exec; Logic holds no means of making hypercalls; what a
Logic has mapped is let go of when it dies, because it alone holds the device through which that was mapped.
Knows the kernel's ioctls and two hypercalls, nothing of what a ring or a domain is used for.

Devices: /dev/xen/evtchn is opened once; its bound ports belong to the open file, which State and every Logic share.
/dev/xen/gntdev is opened anew by each Logic: a mapping of it is not inherited over a fork, it can be mapped only once, and
kernels before 5.5 map for none but the process that opened it.  The page of dom0's own kernel is the one of
/dev/xen/xenbus_backend, or of /proc/xen/xsd_kva where that is missing.

Domains: a query lists them (XEN_SYSCTL_getdomaininfolist).  Its interface version and the size of its entries change from
release to release, so both are found out.  A hypervisor that has it (4.21) is also asked XEN_DOMCTL_get_domain_state, the
stable operation; others tell no unique ids, and the domain's handle, which is its UUID, stands in for it.
"""

import ctypes
import errno
import fcntl
import os
import struct
import time
from array import array
from typing import Final, NamedTuple, Protocol

from xenstore_state.hypervisor import PAGE_SIZE, DomainFacts
from xenstored.mapping import Mapping, libc, libc_error

EVTCHN: Final = "/dev/xen/evtchn"
GNTDEV: Final = "/dev/xen/gntdev"
PRIVCMD: Final = "/dev/xen/privcmd"
HYPERCALL_BUFFERS: Final = "/dev/xen/hypercall"
XENBUS_BACKEND: Final = "/dev/xen/xenbus_backend"
XSD_KVA: Final = "/proc/xen/xsd_kva"
XSD_PORT: Final = "/proc/xen/xsd_port"

# ioctls: size of the argument << 16 | type << 8 | number
BIND_VIRQ: Final = 0x44500
BIND_INTERDOMAIN: Final = 0x84501
UNBIND: Final = 0x44503
NOTIFY: Final = 0x44504
RESET: Final = 0x4505
MAP_GRANT_REF: Final = 0x184700
UNMAP_GRANT_REF: Final = 0x104701
PRIVCMD_HYPERCALL: Final = 0x305000
XENBUS_BACKEND_EVTCHN: Final = 0x4200

U32: Final = struct.Struct("=I")
INTERDOMAIN: Final = struct.Struct("=II")
"""remote domid, remote port"""
MAP_GRANT: Final = struct.Struct("=IIQII")
"""count, padding, index (out), domid, grant reference"""
UNMAP_GRANT: Final = struct.Struct("=QII")
"""index, count, padding"""
HYPERCALL: Final = struct.Struct("=6Q")
"""operation, five arguments"""

VIRQ_DOM_EXC: Final = 3
XENSTORE_GRANT: Final = 1
"""The grant reference under which the toolstack grants a guest's ring."""
PORTS_AT_ONCE: Final = PAGE_SIZE // 4
"""The event channel device takes no more in a write."""
MAP_TRIES: Final = 10
MAP_AGAIN: Final = 0.001
"""Seconds until the kernel may have let go of what a dead process had mapped."""

SYSCTL: Final = 35
DOMCTL: Final = 36
GETDOMAININFOLIST: Final = 6
GET_DOMAIN_STATE: Final = 90
SYSCTL_VERSIONS: Final = range(0x20, 0x10, -1)
"""Interface versions to try, newest first: 0x15 is that of Xen 4.17, and what is looked at here is the same since 4.11."""

DOMCTL_REQUEST: Final = struct.Struct("=IIH6xHHIQ")
"""XEN_DOMCTL_get_domain_state: cmd, interface version, domid; state, capabilities, padding, unique id (all out)"""
DOMCTL_SIZE: Final = 144
STATE_EXISTS: Final = 1
STATE_SHUTDOWN: Final = 2
STATE_DEAD: Final = 8

LIST_REQUEST: Final = struct.Struct("=IIHxxIQI4x")
"""XEN_SYSCTL_getdomaininfolist: cmd, interface version, first domid, room in entries, address of the entries, entries (out)"""
SYSCTL_SIZE: Final = 136
LIST_AT: Final = 256
"""Where the entries begin in the hypercall buffer, behind the request."""
ENTRY: Final = struct.Struct("=HxxI68x16s")
"""The part of an entry that all versions have in common: domid, flags, ..., handle."""
INFO_DYING: Final = 1
INFO_SHUTDOWN: Final = 4

BUFFER_SIZE: Final = 16 * PAGE_SIZE
FIRST_RESERVED_DOMID: Final = 0x7FF0

libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MADV_DONTFORK: Final = 10


def _open(path: str, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)


def _ioctl(fd: int, request: int, argument: bytearray) -> int:
    """The result of an ioctl, which may change its argument.  (A mutable argument is also what costs Python least.)"""
    result: int = fcntl.ioctl(fd, request, argument)
    return result


# ---- hypercalls


class Caller(Protocol):
    """Makes hypercalls that take the address of a request."""

    memory: memoryview
    """`BUFFER_SIZE` bytes that the hypervisor can reach at `address`; a request stands at their beginning."""
    address: int

    def call(self, operation: int) -> int:
        """Makes the call with what stands in `memory`.  Raises OSError."""


class Privcmd:
    """`Caller` by /dev/xen/privcmd."""

    def __init__(self) -> None:
        self._fd = _open(PRIVCMD)
        try:
            self._buffer = _resident_memory()
        except OSError:
            os.close(self._fd)
            raise
        self.memory, self.address = self._buffer.view, self._buffer.address

    def call(self, operation: int) -> int:
        """See `Caller`."""
        return _ioctl(self._fd, PRIVCMD_HYPERCALL, bytearray(HYPERCALL.pack(operation, self.address, 0, 0, 0, 0)))

    def close(self) -> None:
        """Gives up the right to make hypercalls."""
        os.close(self._fd)
        self._fd = -1
        self._buffer.close()


def _resident_memory() -> Mapping:
    """Memory that never faults: the kernel's hypercall buffers, else locked memory that forks do not share."""
    try:
        fd = _open(HYPERCALL_BUFFERS)
    except OSError:
        buffer = Mapping(BUFFER_SIZE)
        if libc.mlock(buffer.address, BUFFER_SIZE) or libc.madvise(buffer.address, BUFFER_SIZE, _MADV_DONTFORK):
            error = libc_error("mlock")
            buffer.close()
            raise error from None
        return buffer
    try:
        return Mapping(BUFFER_SIZE, fd)
    finally:
        os.close(fd)


class _Entry(NamedTuple):
    domid: int
    flags: int
    handle: bytes


class DomainQueries:
    """What the hypervisor says of domains.  Raises OSError when it speaks no version that is known here."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._version = 0
        self._find_version()
        self._entry_size = self._find_entry_size()
        self._stable = self._has_stable_operation()

    def domains(self) -> dict[int, DomainFacts]:
        """All domains, by domid."""
        room = (BUFFER_SIZE - LIST_AT) // self._entry_size
        found: dict[int, DomainFacts] = {}
        first, count = 0, room
        while count == room and first < FIRST_RESERVED_DOMID:
            count = self._list(first, room)
            entries = [self._entry(i) for i in range(count)]
            for entry in entries:
                facts = self._facts(entry)
                if facts is not None:
                    found[entry.domid] = facts
            first = entries[-1].domid + 1 if entries else first
        return found

    def domain(self, domid: int) -> DomainFacts | None:
        """One domain, if it exists."""
        if domid >= FIRST_RESERVED_DOMID:
            return None
        if self._stable:
            return self._state(domid)
        if not self._list(domid, 1):
            return None
        entry = self._entry(0)
        return self._facts(entry) if entry.domid == domid else None

    def _facts(self, entry: _Entry) -> DomainFacts | None:
        if self._stable:
            return self._state(entry.domid)
        return DomainFacts(
            entry.domid,
            unique_id_of(entry.handle),
            shutdown=bool(entry.flags & INFO_SHUTDOWN),
            gone=bool(entry.flags & INFO_DYING),
        )

    # ---- XEN_SYSCTL_getdomaininfolist

    def _list(self, first: int, room: int) -> int:
        """Has up to `room` entries written, of domains from `first` on; how many there are."""
        memory, entries = self._caller.memory, self._caller.address + LIST_AT
        memory[:SYSCTL_SIZE] = bytes(SYSCTL_SIZE)
        LIST_REQUEST.pack_into(memory, 0, GETDOMAININFOLIST, self._version, first, room, entries, 0)
        self._caller.call(SYSCTL)
        count: int = LIST_REQUEST.unpack_from(memory)[5]
        return count

    def _entry(self, index: int) -> _Entry:
        return _Entry(*ENTRY.unpack_from(self._caller.memory, LIST_AT + index * self._entry_size))

    def _find_version(self) -> None:
        refusal = OSError()
        for self._version in SYSCTL_VERSIONS:
            try:
                self._list(0, 1)
            except OSError as e:
                refusal = e
            else:
                return
        newest, oldest = SYSCTL_VERSIONS[0], SYSCTL_VERSIONS[-1]
        why = f"the hypervisor lists no domains by any interface version from {oldest:#x} to {newest:#x}"
        raise OSError(refusal.errno, f"{why}: {refusal.strerror}")

    def _find_entry_size(self) -> int:
        """How much the hypervisor writes for one domain: what it overwrites, whatever stood there before."""
        area = self._caller.memory[LIST_AT : LIST_AT + PAGE_SIZE]
        size = 0
        for filling in (0x55, 0xAA):
            area[:] = bytes([filling]) * PAGE_SIZE
            self._list(0, 1)
            size = max(size, len(bytes(area).rstrip(bytes([filling]))))
        area.release()
        if size < ENTRY.size:
            raise OSError(
                errno.EPROTO, f"the hypervisor describes a domain in {size} bytes, at least {ENTRY.size} are needed"
            )
        return size

    # ---- XEN_DOMCTL_get_domain_state

    def _state(self, domid: int) -> DomainFacts | None:
        memory = self._caller.memory
        memory[:DOMCTL_SIZE] = bytes(DOMCTL_SIZE)
        DOMCTL_REQUEST.pack_into(memory, 0, GET_DOMAIN_STATE, 0, domid, 0, 0, 0, 0)
        try:
            self._caller.call(DOMCTL)
        except OSError as e:
            if e.errno in {errno.ESRCH, errno.ENOENT}:
                return None
            raise
        state, _, _, unique_id = DOMCTL_REQUEST.unpack_from(memory)[3:]
        if not state & STATE_EXISTS or not unique_id:
            return None
        return DomainFacts(domid, unique_id, shutdown=bool(state & STATE_SHUTDOWN), gone=bool(state & STATE_DEAD))

    def _has_stable_operation(self) -> bool:
        try:
            return self._state(0) is not None
        except OSError:
            return False


def unique_id_of(handle: bytes) -> int:
    """A number of at most 64 bits for a domain's 16-byte handle; never 0 (dom0's handle is)."""
    low, high = struct.unpack("=QQ", handle)
    return int(low ^ high) or 1


# ---- the whole


class _Ring(NamedTuple):
    mapping: Mapping
    grant: int
    """gntdev's name for the grant; -1 for dom0's page, which is no grant."""


class LinuxXen:
    """`Hypervisor` on a Xen host.  Opens everything at once; raises OSError, with the file's name, if something is missing."""

    def __init__(self, kept: int | None = None, domain_port: int = 0) -> None:
        """`kept` is the event channel device of a State that died, `domain_port` what it had bound there."""
        os.close(_open(GNTDEV))  # must be there when a Logic needs it
        self._gntdev = -1
        self._rings: dict[int, _Ring] = {}
        self._notifications: dict[int, bytearray] = {}
        self._privcmd: Privcmd | None = Privcmd()
        self._queries = DomainQueries(self._privcmd)
        self._backend = _open_backend()
        self.event_fd = _open(EVTCHN, os.O_NONBLOCK) if kept is None else kept
        self.domain_port = self._bind_virq() if kept is None else domain_port

    def _bind_virq(self) -> int:
        try:
            return _ioctl(self.event_fd, BIND_VIRQ, bytearray(U32.pack(VIRQ_DOM_EXC)))
        except OSError as e:
            why = "another xenstored runs" if e.errno == errno.EEXIST else e.strerror
            raise OSError(e.errno, f"VIRQ_DOM_EXC cannot be bound: {why}", EVTCHN) from None

    # ---- State's half

    def begin_anew(self) -> None:
        """Gives up every port that a State which died had bound."""
        _ioctl(self.event_fd, RESET, bytearray())
        self.domain_port = self._bind_virq()

    def domains(self) -> dict[int, DomainFacts]:
        """All domains that exist, by domid."""
        return self._queries.domains()

    def domain(self, domid: int) -> DomainFacts | None:
        """One domain, if it exists."""
        return self._queries.domain(domid)

    def xenbus_port(self) -> int:
        """The remote port of domain 0's own ring; 0 if its kernel has none."""
        try:
            return _ioctl(self._backend, XENBUS_BACKEND_EVTCHN, bytearray())
        except OSError as e:
            if e.errno == errno.ENODEV:
                return 0
        with open(XSD_PORT, encoding="ascii") as f:
            return int(f.read(), 0)

    def bind(self, domid: int, remote_port: int) -> int:
        """Binds a domain's event channel; the local port, never 0."""
        return _ioctl(self.event_fd, BIND_INTERDOMAIN, bytearray(INTERDOMAIN.pack(domid, remote_port)))

    def unbind(self, port: int) -> None:
        """Gives a local port up.  One that is not bound does not matter."""
        self._notifications.pop(port, None)
        try:
            _ioctl(self.event_fd, UNBIND, bytearray(U32.pack(port)))
        except OSError as e:
            if e.errno not in {errno.ENOTCONN, errno.EINVAL}:
                raise

    def before_fork(self) -> None:
        """Nothing: what a Logic had mapped went with its own descriptor of the device."""

    # ---- Logic's half

    def in_logic(self) -> None:
        """To be called in each new Logic, while it may still open devices: it can map rings, and make no hypercalls."""
        if self._privcmd is not None:
            self._privcmd.close()
            self._privcmd = None
        self._gntdev = _open(GNTDEV)

    def know_port(self, port: int, domid: int, remote_port: int) -> None:
        """Nothing: the kernel knows it."""

    def map_ring(self, domid: int) -> memoryview:
        """A domain's ring page, writable.  Domain 0's is the one of its kernel."""
        if domid in self._rings:
            raise OSError(errno.EEXIST, f"the ring of domain {domid} is mapped already")
        ring = self._map_grant(domid) if domid else _Ring(Mapping(PAGE_SIZE, self._backend), -1)
        self._rings[domid] = ring
        return ring.mapping.view

    def _map_grant(self, domid: int) -> _Ring:
        argument = bytearray(MAP_GRANT.pack(1, 0, 0, domid, XENSTORE_GRANT))
        _ioctl(self._gntdev, MAP_GRANT_REF, argument)
        index = MAP_GRANT.unpack(argument)[2]
        tries = MAP_TRIES
        while True:
            try:
                return _Ring(Mapping(PAGE_SIZE, self._gntdev, index), index)
            except OSError as e:
                tries -= 1
                if e.errno != errno.EAGAIN or not tries:
                    self._forget_grant(index)
                    raise
            time.sleep(MAP_AGAIN)

    def _forget_grant(self, index: int) -> None:
        _ioctl(self._gntdev, UNMAP_GRANT_REF, bytearray(UNMAP_GRANT.pack(index, 1, 0)))

    def unmap_ring(self, domid: int) -> None:
        """Lets go of a mapped page, if it is mapped; all views of it must have been released."""
        ring = self._rings.pop(domid, None)
        if ring is None:
            return
        ring.mapping.close()
        if ring.grant >= 0:
            self._forget_grant(ring.grant)

    def receive(self, into: memoryview) -> None:
        """Takes pending events into a zeroed buffer; nothing is there again once it returns."""
        try:
            os.readv(self.event_fd, [into])
        except BlockingIOError:
            pass

    def ports(self, received: memoryview) -> list[int]:
        """The local ports among what `receive` took."""
        with received.cast("B") as octets, octets.cast("I") as words:
            return [port for port in words if port]

    def forget(self, received: memoryview, port: int) -> None:
        """Takes one port out of what `receive` took, and leaves the others."""
        words = received.cast("I")
        for index, word in enumerate(words):
            if word == port:
                words[index] = 0

    def unmask(self, ports: list[int]) -> None:
        """These ports may become pending again."""
        for start in range(0, len(ports), PORTS_AT_ONCE):
            os.write(self.event_fd, array("I", ports[start : start + PORTS_AT_ONCE]))

    def notify(self, port: int) -> None:
        """Sends an event to the domain at the other end."""
        argument = self._notifications.get(port)
        if argument is None:
            argument = self._notifications[port] = bytearray(U32.pack(port))
        fcntl.ioctl(self.event_fd, NOTIFY, argument)


def _open_backend() -> int:
    """The device that has the page of dom0's kernel."""
    try:
        return _open(XENBUS_BACKEND)
    except FileNotFoundError:
        return _open(XSD_KVA)
