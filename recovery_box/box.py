"""The recovery box's file: one tmpfs file that keeper and worker map, and the accessor for its shared words.

Guarantees: the file is locked by one keeper at a time; every byte that is ever touched was allocated before (a full tmpfs
shows up as `BoxFull`, never as SIGBUS); a word is loaded and stored as one aligned native access, never byte by byte.
Knows the layout of the file, nothing of what the parts mean.

Layout: one page of shared words, the journal, then one slot a connection (control words, input region, output region).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from typing import Final

MAGIC: Final = int.from_bytes(b"XOARBOX\0", "little")
VERSION: Final = 2
PAGE: Final = 4096
JOURNAL_SIZE: Final = 1 << 20
"""Bytes of journal; a power of two.  State lags behind by milliseconds, so some thousand records are room enough."""
REGION_SIZE: Final = 8192
"""Bytes of one connection's input region, and of its output region; a power of two, at least one whole message."""
CONTROL_SIZE: Final = 256
SLOT_SIZE: Final = CONTROL_SIZE + 2 * REGION_SIZE
SLOTS_AT: Final = PAGE + JOURNAL_SIZE
_GROW_SLOTS: Final = 32

# Shared words, by index.  Words written by different processes lie in different cache lines.
W_MAGIC: Final = 0
W_VERSION: Final = 1
_FRONT: Final = struct.Struct("=QQ")
"""These two."""
W_HEAD: Final = 8
"""Producer's index of the journal, free running, in bytes."""
W_ACTIVE: Final = 9
"""The request being handled: `slot << 32 | position of its first byte`, `NO_REQUEST` between requests."""
W_SERVED: Final = 10
"""Requests handled since the file was made."""
W_RING: Final = 11
"""Slot + 1 of the ring whose page is being changed, 0 between changes: the next worker publishes it anew."""
W_BEAT: Final = 12
"""Counts the worker's turns: a worker that does not move any more stands still."""
W_PINNED: Final = 13
"""Id of the connection that was last served alone: others come before it."""
W_FOLLOWED: Final = 14
"""Sequence number of the last record that whoever stands by has followed."""
W_LAST: Final = 15
"""Id of the connection that was the last in its turn when more were ready than one turn serves: others come before it."""
W_TAIL: Final = 16
"""Consumer's index of the journal."""
W_ASLEEP: Final = 24
"""1 while the consumer sleeps until it is woken."""
W_NEWS: Final = 25
"""1 if the keeper has something to tell that is to be heard before the first request, when a worker begins to serve."""
EVENTS_AT: Final = 1024
"""Offset of the buffer for events taken and not dealt with yet, on the page of the words; zeros when there are none."""
EVENTS_SIZE: Final = 2048
NO_REQUEST: Final = 0xFFFFFFFFFFFFFFFF


class BoxError(Exception):
    """The file cannot be used: locked by another daemon, of another version, or damaged."""


class BoxFull(BoxError):
    """There is no room on the file system for another connection."""


class SharedWords:
    """The only way to shared counters: aligned 64-bit words, each loaded and stored whole.

    `struct.pack_into` must not be used for these: it clears its target before it writes, and a process that reads, or a
    death, in between sees a position that never was.
    """

    __slots__ = ("_words",)

    def __init__(self, buffer: mmap.mmap | memoryview | bytearray) -> None:
        self._words = memoryview(buffer).cast("B").cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    @property
    def view(self) -> "memoryview[int]":
        """The words as a memoryview: the same whole-word access without a Python call, for hot loops."""
        return self._words


class Box:
    """The mapped file.  `path` is removed by `unlink`; the mapping lives as long as the process."""

    def __init__(self, path: str, max_connections: int = 16384, *, kept: int | None = None) -> None:
        """Makes the file; or, given a descriptor that was kept of one, goes on with what is in it."""
        if sys.byteorder != "little":
            raise BoxError("the recovery box is laid out for little-endian machines")
        self.path = path
        self.max_connections = max_connections
        size = (SLOTS_AT + max_connections * SLOT_SIZE + PAGE - 1) // PAGE * PAGE
        made = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(path, made, 0o600) if kept is None else kept
        try:
            found = os.fstat(self.fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise BoxError(f"{path} is not ours alone: somebody else made it, or may open it")
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BoxError(f"{path} is in use by another daemon") from None
            if kept is None:
                os.ftruncate(self.fd, 0)
                os.ftruncate(self.fd, size)
            elif found.st_size != size or _FRONT.unpack(os.pread(self.fd, _FRONT.size, 0)) != (MAGIC, VERSION):
                raise BoxError(f"{path} was made by another version")
            # what it has, it has from the start on: there may be no room to ask for it again
            self._allocated = min(size, found.st_blocks * 512 // PAGE * PAGE) if kept is not None else 0
            self._allocate(SLOTS_AT)
            self.memory = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.words = SharedWords(self.memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        if kept is None:
            self._begin()

    def _begin(self) -> None:
        self.words[W_VERSION] = VERSION
        self.words[W_ACTIVE] = NO_REQUEST
        self.words[W_MAGIC] = MAGIC

    def clear(self) -> None:
        """Forgets everything: nobody may have a connection, and no worker may live.  Raises `BoxFull`."""
        size = os.fstat(self.fd).st_size
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, size)
        self._allocated = 0
        self._allocate(SLOTS_AT)
        self._begin()

    def _allocate(self, end: int) -> None:
        if end > self._allocated:
            try:
                os.posix_fallocate(self.fd, self._allocated, end - self._allocated)
            except OSError as e:
                if e.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise BoxFull(f"no room to make {self.path} larger") from None
                raise
            self._allocated = end

    def ensure_slot(self, slot: int) -> int:
        """Offset of a slot, allocated.  Raises `BoxFull`."""
        if not 0 <= slot < self.max_connections:
            raise BoxFull(f"all {self.max_connections} connections are in use")
        offset = SLOTS_AT + slot * SLOT_SIZE
        if offset + SLOT_SIZE > self._allocated:
            last = min(slot + _GROW_SLOTS, self.max_connections)
            self._allocate(SLOTS_AT + last * SLOT_SIZE)
        return offset

    def slot_word(self, slot: int) -> int:
        """Index of the first word of an allocated slot."""
        return (SLOTS_AT + slot * SLOT_SIZE) // 8

    def unlink(self) -> None:
        """Removes the file's name.  Whoever has it mapped goes on."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def shared_memory_directory(preferred: str) -> str:
    """`preferred` when it is on tmpfs, else /dev/shm: pages on a disk's file system would be written back all the time."""
    return preferred if _is_tmpfs(preferred) or not _is_tmpfs("/dev/shm") else "/dev/shm"


def _is_tmpfs(path: str) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        mounts = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in f}
    path = os.path.realpath(path)
    while path not in mounts and path != "/":
        path = os.path.dirname(path)
    return mounts.get(path) == "tmpfs"
