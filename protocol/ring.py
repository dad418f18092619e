"""The ring page between a domain and the daemon: layout, indices, copying.  Sans-IO: works on any writable 4096-byte buffer.

Two rings of `RING_SIZE` bytes, requests from the guest and responses to it, and eight words.  Indices run freely modulo
2**32; a byte stands at its index modulo `RING_SIZE`.  The guest can write the whole page at any time, so each index of the
guest's is read once, checked, and not looked at again; positions that matter are the caller's own, and what the page says
of them is only their published copy.  Bytes are copied before the index that announces them (or gives their room back) is
stored, with a fence between where the machine needs one; every word is loaded and stored whole.

Layout and field numbers: Xen's public header io/xs_wire.h.  Knows no messages.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Final

PAGE_SIZE: Final = 4096
RING_SIZE: Final = 1024
M32: Final = 0xFFFFFFFF
_MASK: Final = RING_SIZE - 1
_RESPONSES: Final = RING_SIZE

# Words of the page, by index.
REQ_CONS: Final = 512
REQ_PROD: Final = 513
RSP_CONS: Final = 514
RSP_PROD: Final = 515
FEATURES: Final = 516
CONNECTION: Final = 517
ERROR: Final = 518
EVTCHN_PORT: Final = 519

CONNECTED: Final = 0
RECONNECT: Final = 1
"""The guest asks for a fresh connection, and waits until the daemon has set `CONNECTED`."""

NO_ERROR: Final = 0
ERROR_COMM: Final = 1
ERROR_RING_INDEX: Final = 2
ERROR_PROTOCOL: Final = 3


class RingIndexError(Exception):
    """An index in the page cannot be true."""


def _strong_fence() -> Callable[[], object]:
    """A fence for machines that reorder stores: the release and acquire of an uncontended lock of the C library."""
    libc = ctypes.PyDLL(None)
    lock, unlock, mutex = libc.pthread_mutex_lock, libc.pthread_mutex_unlock, ctypes.create_string_buffer(64)

    def fence() -> None:
        for _ in range(2):
            lock(mutex)
            unlock(mutex)

    return fence


FENCE: Final = None if os.uname().machine in {"x86_64", "i686", "i386"} else _strong_fence()
"""None where ordinary loads and stores of different words keep their order as far as this protocol needs."""


class RingPage:
    """The daemon's view of a page."""

    __slots__ = ("_bytes", "_fence", "words")

    def __init__(self, page: memoryview, fence: Callable[[], object] | None = FENCE) -> None:
        self._bytes = page.cast("B")
        self.words = self._bytes.cast("I")
        """The page as words; for tests and for whoever sets single fields."""
        self._fence = fence

    def release(self) -> None:
        """Lets go of the buffer, so that it can be unmapped."""
        self.words.release()
        self._bytes.release()

    # ---- requests

    def unread(self, position: int) -> int:
        """Bytes of requests behind `position`, up to which they were taken.  Raises `RingIndexError`."""
        there = (self.words[REQ_PROD] - position) & M32
        if there > RING_SIZE:
            raise RingIndexError(f"{there} bytes of requests")
        return there

    def take(self, position: int, count: int) -> bytes:
        """`count` bytes of requests from `position` on; the caller knows that they are there."""
        if self._fence is not None:
            self._fence()
        at = position & _MASK
        data = self._bytes
        if at + count <= RING_SIZE:
            return bytes(data[at : at + count])
        return bytes(data[at:RING_SIZE]) + bytes(data[: at + count - RING_SIZE])

    def consumed(self, position: int) -> None:
        """Tells the guest that requests up to `position` are taken."""
        if self._fence is not None:
            self._fence()
        self.words[REQ_CONS] = position

    # ---- responses

    def room(self, position: int) -> int:
        """Bytes that fit behind `position`, up to which responses were given.  Raises `RingIndexError`."""
        used = (position - self.words[RSP_CONS]) & M32
        if used > RING_SIZE:
            raise RingIndexError(f"{used} bytes of responses")
        return RING_SIZE - used

    def give(self, position: int, data: bytes | memoryview) -> None:
        """Puts bytes that fit behind `position`.  They count once `produced` says so."""
        if self._fence is not None:
            self._fence()
        at = position & _MASK
        first = RING_SIZE - at
        if len(data) <= first:
            self._bytes[_RESPONSES + at : _RESPONSES + at + len(data)] = data
        else:
            self._bytes[_RESPONSES + at : 2 * _RESPONSES] = data[:first]
            self._bytes[_RESPONSES : _RESPONSES + len(data) - first] = data[first:]

    def produced(self, position: int) -> None:
        """Tells the guest that responses up to `position` are there."""
        if self._fence is not None:
            self._fence()
        self.words[RSP_PROD] = position

    # ---- the connection

    @property
    def wants_reconnection(self) -> bool:
        """Whether the guest asks for a fresh connection."""
        return self.words[CONNECTION] != CONNECTED

    @property
    def event_port(self) -> int:
        """The event channel's port that the page itself names (0: none); set by Xen for domains started at boot."""
        return self.words[EVTCHN_PORT]

    def reset(self, features: int) -> None:
        """A connection begins: what the daemon offers, no error, all indices 0.  `accept` must follow."""
        words = self.words
        words[FEATURES] = features
        words[ERROR] = NO_ERROR
        if self._fence is not None:
            self._fence()
        for index in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
            words[index] = 0

    def accept(self) -> None:
        """Lets a guest go on that waits for its connection."""
        if self._fence is not None:
            self._fence()
        self.words[CONNECTION] = CONNECTED

    def fail(self, error: int) -> None:
        """Tells the guest why it is not served any more."""
        self.words[ERROR] = error
