"""The ledger: a file on tmpfs to which the keeper adds what it has done since its last checkpoint.

Theory of operation.  Entries are copied into a mapped file; an entry counts once the word in front, which says how far the
file is valid, has been stored (whole, as all shared words).  So an entry is there or not, at whatever instruction the
keeper dies, and adding one costs no system call.  Each has a checksum of its own: a damaged file ends at the damage.
A ledger belongs to one checkpoint, by number; the one after it begins a new one.  Knows nothing of what entries say.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final
from zlib import crc32

from recovery_box.box import SharedWords

MAGIC: Final = int.from_bytes(b"XOARLED\1", "little")
_FRONT: Final = 64
_W_MAGIC: Final = 0
_W_END: Final = 1
_ENTRY: Final = struct.Struct("=II")
"""Length of the entry, CRC-32 of it."""
_GROW: Final = 1 << 20


class LedgerError(Exception):
    """The file is none, or is damaged; what was read before the damage is good."""


class Ledger:
    """The file being written."""

    def __init__(self, path: str) -> None:
        """Makes a fresh one.  Raises OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._room = _GROW
        try:
            os.posix_fallocate(self._fd, 0, self._room)
            self._memory = mmap.mmap(self._fd, self._room)
        except OSError:
            os.close(self._fd)
            raise
        self._memory.madvise(mmap.MADV_DONTFORK)  # a worker, which may be hijacked, shall not write here
        self._words = SharedWords(self._memory)
        self.end = _FRONT
        """Bytes of the file that are valid."""
        self._words[_W_END] = self.end
        self._words[_W_MAGIC] = MAGIC

    def add(self, entry: bytes) -> None:
        """Adds an entry.  Raises OSError when there is no room on the file system."""
        at = self.end
        end = at + (_ENTRY.size + len(entry) + 7) & ~7
        if end > self._room:
            self._enlarge(end)
        self._memory[at : at + _ENTRY.size + len(entry)] = _ENTRY.pack(len(entry), crc32(entry)) + entry
        self._words[_W_END] = self.end = end

    def _enlarge(self, end: int) -> None:
        room = (end + _GROW - 1) // _GROW * _GROW
        os.posix_fallocate(self._fd, self._room, room - self._room)
        self._words.view.release()
        self._memory.resize(room)
        self._words = SharedWords(self._memory)
        self._room = room

    def close(self) -> None:
        """Stops writing; the file stays."""
        self._words.view.release()
        self._memory.close()
        os.close(self._fd)


class Reader:
    """A ledger being read, from some entry on, while its keeper may be adding to it."""

    def __init__(self, path: str, at: int = _FRONT) -> None:
        """`at` is an `end` that the ledger once had.  Raises `LedgerError`, OSError if there is no such file."""
        self.path = path
        self.at = at
        """Bytes of the file that have been read."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        self._words = SharedWords(memoryview(self._memory)[:_FRONT])

    def new(self, until: int | None = None) -> Iterator[bytes]:
        """The entries that are there and were not read, or those before an `end` that the ledger once had.

        Raises `LedgerError` at the first damage.
        """
        valid = self._words[_W_END]
        if self._words[_W_MAGIC] != MAGIC or valid < max(self.at, until or 0):
            raise LedgerError("not a ledger")
        valid = valid if until is None else until
        if valid > len(self._memory):
            self._follow_growth()
            if valid > len(self._memory):
                raise LedgerError("not a ledger")
        while self.at < valid:
            begin = self.at + _ENTRY.size
            length, check = _ENTRY.unpack_from(self._memory, self.at) if begin <= valid else (valid, 0)
            entry = self._memory[begin : begin + length]
            if len(entry) < length or crc32(entry) != check:
                raise LedgerError(f"the entry at byte {self.at} is damaged")
            self.at += (_ENTRY.size + length + 7) & ~7
            yield entry

    def _follow_growth(self) -> None:
        self._release()
        self._memory = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        self._words = SharedWords(memoryview(self._memory)[:_FRONT])

    def _release(self) -> None:
        self._words.view.release()
        self._memory.close()

    def close(self) -> None:
        """Reads no more."""
        self._release()
        os.close(self._fd)


def entries(path: str) -> Iterator[bytes]:
    """The entries of a ledger in order.  Raises `LedgerError` at the first damage, OSError if there is no such file."""
    with open(path, "rb") as f:
        front = f.read(_FRONT)
        if front[:8] in {b"", bytes(8)} and not f.read().strip(b"\0"):
            return  # its keeper died before it had begun it
    if len(front) < _FRONT:
        raise LedgerError("too short")
    reader = Reader(path)
    try:
        yield from reader.new()
    finally:
        reader.close()
