"""Custody of descriptors: the keeper holds a duplicate of each and hands it to a running worker under the same number.

Order of closing, so that a number never means two connections: the worker takes it out of the epoll set, shuts it down
(the peer sees the end now, whoever still holds a copy), publishes the closing, closes its own copy; the keeper closes its
duplicate when it applies that record, and only then can the number come up again.
Numbers of handed-over descriptors lie at `first_number` and above; whatever a worker opens for itself lies below.
"""

import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
from _socket import socketpair  # the kernel's and no more, which `socket`'s own wraps twice
from typing import Final

_NOTE: Final = struct.Struct("=QIIi")
"""Connection id, slot, descriptor number, domid."""
_DESCRIPTOR: Final = struct.Struct("=i")
_FAMILY: Final = int(socket.AF_UNIX)
_SOCKETS: Final = int(socket.SOL_SOCKET)
_RIGHTS: Final = int(socket.SCM_RIGHTS)
_KIND: Final = int(socket.SOCK_SEQPACKET)
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


OTHERS: Final = 512
EACH: Final = 4
"""No more descriptors than these are open for the keeper itself and for each connection (a domain's event channel, ...)."""

_libc: Final = ctypes.PyDLL(None, use_errno=True)


class OutOfDescriptors(Exception):
    """No number is left for another connection."""


def raise_limit() -> int:
    """Raises the limit of open files to what is allowed and returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def first_number(limit: int) -> int:
    """Lowest number used for connections when `limit` files may be open: the rest is for the processes themselves.

    Those need nearly as many whether or not there are more.
    """
    return min(64, limit * 7 // 8)


def plenty(first: int) -> int:
    """With fewer connections than this, a number of `first` or above is free for another, whatever else is open.

    So one that comes under a lower number can be moved, and none need be reserved before.
    """
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - first - OTHERS) // EACH


def reserve_low_numbers(first: int) -> int:
    """In the keeper: takes every free number below `first`, so that accepted connections get `first` and above.

    Accepting then gives a connection its final number, and fails without taking one when none is left.  Returns the lowest
    number from which on all are only reserved: whatever the keeper opens later does not come to lie there.
    """
    lowest, before = first, -1
    try:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        while null < first:
            if null != before + 1 or lowest == first:
                lowest = null
            before = null
            null = os.dup(null)
        os.close(null)
    except OSError as e:
        if not is_exhaustion(e):  # else all are taken, also those behind
            raise
    return lowest if before == first - 1 else first


def make_room(lowest: int, end: int, spare: int) -> None:
    """In the keeper, before it makes a worker: frees those numbers from `lowest` up to `end` that it keeps occupied.

    Connections may have every other one.  `spare` stays.  `reserve_low_numbers` takes back what is left.
    """
    null = os.stat(os.devnull).st_rdev
    for number in range(lowest, end):
        try:
            if number != spare and os.fstat(number).st_rdev == null:
                os.close(number)
        except OSError:
            pass


def settle(fd: int, first: int) -> int:
    """Moves a connection that came under a lower number after all.  Raises OSError, and closes it, if no other is free."""
    if fd >= first:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
    finally:
        os.close(fd)


def release_low_numbers(lowest: int, first: int) -> None:
    """In a fresh worker: frees the numbers from `lowest` on that the keeper only kept occupied, for the worker's own use."""
    os.closerange(lowest, first)


def shut_down(fd: int) -> None:
    """The peer sees the end of the stream now, whoever else still holds the descriptor."""
    _libc.shutdown(fd, socket.SHUT_RDWR)


def reads_no_more(fd: int) -> bool:
    """Whether the peer has said that it will not read: what is sent cannot arrive, and there would always be room for it."""
    return bool(
        _libc.send(fd, b"", 0, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) < 0 and ctypes.get_errno() == errno.EPIPE
    )


def is_exhaustion(error: OSError) -> bool:
    """Whether an accept failed for want of descriptors or memory, not because of the peer."""
    return error.errno in _FULL


def lowered(end: socket.SocketType) -> socket.SocketType:
    """The same socket under the lowest free number: connections must not find one, nor meet this one's."""
    low = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    end.close()
    return pair_end(low)


def pair() -> tuple[socket.SocketType, socket.SocketType]:
    """Two ends of a line between processes here."""
    return socketpair(_FAMILY, _KIND)


def pair_end(fd: int) -> socket.SocketType:
    """One end of a pair as processes here have them between each other, by its descriptor: no more than the kernel's."""
    return socket.SocketType(_FAMILY, _KIND, 0, fd)


def enclosing(*descriptors: int) -> list[tuple[int, int, bytes]]:
    """Ancillary data with duplicates of descriptors, for `sendmsg`."""
    return [(_SOCKETS, _RIGHTS, struct.pack(f"={len(descriptors)}i", *descriptors))] if descriptors else []


def room_for(descriptors: int) -> int:
    """Bytes of ancillary data with so many descriptors, for `recvmsg`."""
    return socket.CMSG_SPACE(_DESCRIPTOR.size * descriptors)


def enclosed(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in ancillary data that `recvmsg` has returned."""
    return [fd for _, _, data in ancillary for (fd,) in _DESCRIPTOR.iter_unpack(data)]


class Handover:
    """A pair of sockets between the keeper and one worker.  Make it before the fork; a new one for each worker."""

    def __init__(self, end: int | None = None) -> None:
        """With `end`, the end of a worker that it was sent (`worker_fd`): there is no other then."""
        if end is not None:
            self._worker = self._keeper = pair_end(end)
            return
        self._keeper, self._worker = pair()
        self._keeper.setblocking(False)
        self._worker.setblocking(False)

    @property
    def worker_fd(self) -> int:
        """Readable in the worker when a descriptor waits."""
        return self._worker.fileno()

    @property
    def keeper_fd(self) -> int:
        """Writable in the keeper when another descriptor can be handed over."""
        return self._keeper.fileno()

    def in_keeper(self) -> None:
        """To be called in the keeper after the fork."""
        self._worker.close()
        self._keeper = lowered(self._keeper)

    def in_worker(self) -> None:
        """To be called in the worker after the fork.

        The worker's end moves to a low number: in the keeper its old one is free from now on, for a connection.
        """
        self._keeper.close()
        self._worker = lowered(self._worker)

    def close(self) -> None:
        """Closes both ends, as far as they are open here."""
        self._keeper.close()
        self._worker.close()

    def give(self, connection: int, slot: int, fd: int, domid: int) -> bool:
        """Hands a descriptor over.  False when the worker must take others first (or is dead: its successor inherits).

        Also when the kernel is short of memory, or has too many descriptors under way: `keeper_fd` may be writable all the same.
        """
        try:
            self._keeper.sendmsg([_NOTE.pack(connection, slot, fd, domid)], enclosing(fd), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def take(self) -> tuple[int, int, int, int] | None:
        """Takes one: (connection id, slot, descriptor, domid), the descriptor under the keeper's number.  None if none waits.

        Raises `EOFError` when the keeper is gone, `OutOfDescriptors` when there is no room for it here.
        """
        try:
            note, ancillary, _, _ = self._worker.recvmsg(_NOTE.size, room_for(1), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        if not note:
            raise EOFError("the keeper is gone")
        connection, slot, number, domid = _NOTE.unpack(note)
        if not ancillary:
            raise OutOfDescriptors
        here = enclosed(ancillary)[0]
        if here != number:
            os.dup2(here, number, inheritable=False)
            os.close(here)
        return connection, slot, number, domid
