"""A look into the recovery box of a running daemon, from outside.

For tests that must know how far a request has got, or that play a Logic gone mad.  The file is found among State's open
files and mapped a second time, so looking costs the daemon nothing.  What is read makes sense only while Logic is stopped
(see `logic`); State may still consume records meanwhile.
Knows the layout of the box and the form of records, nothing of processes and sockets.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self
from zlib import crc32

from recovery_box.box import (
    CONTROL_SIZE,
    JOURNAL_SIZE,
    MAGIC,
    NO_REQUEST,
    PAGE,
    REGION_SIZE,
    SLOT_SIZE,
    SLOTS_AT,
    W_ACTIVE,
    W_HEAD,
    W_TAIL,
)
from recovery_box.lanes import _BYTES, _DONE, _IN_HEADER, _OUT_HEADER, _OWNER
from xenstore_state.records import BadRecord, Record, decode

M32: Final = 0xFFFFFFFF
SLOTS_LOOKED_AT: Final = 128
"""Slots that a look covers unless told otherwise."""
ENTRY: Final = struct.Struct("=IIQ")
HEADER_SIZE: Final = 16
_LONGEST_LOOK_BACK: Final = 1 << 16


class NoBox(Exception):
    """The process has no recovery box open."""


class Slot(NamedTuple):
    """Positions of one connection, all modulo 2**32."""

    number: int
    owner: int
    """Connection id."""
    received: int
    consumed: int
    made: int
    sent: int

    @property
    def unread(self) -> int:
        """Bytes received and not consumed."""
        return (self.received - self.consumed) & M32

    @property
    def unsent(self) -> int:
        """Bytes of output in the region that were not sent."""
        return (self.made - self.sent) & M32


def path_of_box(state_pid: int) -> str:
    """A path under which the box of this State can be opened.  Raises `NoBox`."""
    for name in os.listdir(f"/proc/{state_pid}/fd"):
        path = f"/proc/{state_pid}/fd/{name}"
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as f:
            if f.read(8) == MAGIC.to_bytes(8, "little"):
                return path
    raise NoBox(f"process {state_pid} has no recovery box open")


class BoxView:
    """The box of a daemon; `writable` only for tests that damage it."""

    def __init__(self, state_pid: int, *, writable: bool = False) -> None:
        with open(path_of_box(state_pid), "r+b" if writable else "rb") as f:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self.memory = mmap.mmap(f.fileno(), 0, access=access)
        self._whole = memoryview(self.memory)
        self.words = self._whole.cast("Q")

    def close(self) -> None:
        self.words.release()
        self._whole.release()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- slots

    def slot(self, number: int) -> Slot:
        words, i = self.words, (SLOTS_AT + number * SLOT_SIZE) // 8
        received, sent = words[i + _IN_HEADER + _BYTES], words[i + _OUT_HEADER + _BYTES]
        done = words[i + _DONE]
        return Slot(
            number,
            words[i + _OWNER],
            ((received >> 32) + received) & M32,
            done >> 32,
            done & M32,
            ((sent >> 32) + sent) & M32,
        )

    def slots(self, limit: int = SLOTS_LOOKED_AT) -> list[Slot]:
        """The slots ever used among the first `limit`; a slot keeps its last owner until it is reused."""
        words = self.words
        return [self.slot(n) for n in range(limit) if words[(SLOTS_AT + n * SLOT_SIZE) // 8 + _OWNER]]

    @property
    def youngest(self) -> int:
        """Id of the last connection that was made."""
        return max((slot.owner for slot in self.slots()), default=0)

    def slot_of(self, connection: int) -> Slot:
        """The slot of a connection."""
        return next(slot for slot in self.slots() if slot.owner == connection)

    def next_message(self, slot: Slot) -> int:
        """Length of the message at the front of the unread input, 0 if it is not there completely."""
        if slot.unread < HEADER_SIZE:
            return 0
        start = SLOTS_AT + slot.number * SLOT_SIZE + CONTROL_SIZE
        at = (slot.consumed + 12) % REGION_SIZE  # the length field
        field = bytes(self.memory[start + (at + k) % REGION_SIZE] for k in range(4))
        length = HEADER_SIZE + int.from_bytes(field, "little")
        return length if length <= slot.unread else 0

    def active(self) -> tuple[int, int] | None:
        """(slot, position) of the request whose handler ran last, if any ran since Logic started."""
        word = self.words[W_ACTIVE]
        return None if word == NO_REQUEST else (word >> 32, word & M32)

    # ---- the journal

    @property
    def head(self) -> int:
        return self.words[W_HEAD]

    @property
    def drained(self) -> bool:
        """Whether State has consumed everything."""
        return self.words[W_HEAD] == self.words[W_TAIL]

    def entries_back(self) -> Iterator[tuple[int, int, bytes]]:
        """(index, sequence number, body) of published entries, the last one first, as far back as they are intact."""
        head = self.words[W_HEAD]
        while head and (found := self._entry_ending_at(head)) is not None:
            yield found
            head = found[0]

    def _entry_ending_at(self, head: int) -> tuple[int, int, bytes] | None:
        end = PAGE + (head & (JOURNAL_SIZE - 1))
        if end == PAGE:
            end += JOURNAL_SIZE
        for size in range(ENTRY.size, min(_LONGEST_LOOK_BACK, end - PAGE) + 1, 8):
            kind_and_length, check, sequence = ENTRY.unpack_from(self.memory, end - size)
            n = kind_and_length & 0x0FFFFFFF
            if not sequence or (ENTRY.size + n + 7) & ~7 != size:
                continue
            body = self.memory[end - size + ENTRY.size : end - size + ENTRY.size + n]
            if crc32(body, (sequence ^ kind_and_length) & M32) == check:
                return head - size, sequence, body
        return None

    def last_record(self) -> Record | None:
        """The last record published."""
        for _, _, body in self.entries_back():
            try:
                return decode(body)
            except BadRecord:
                return None
        return None

    def last_sequence(self) -> int:
        """Sequence number of the last entry published; 0 if there is none."""
        return next((sequence for _, sequence, _ in self.entries_back()), 0)

    # ---- tampering, with Logic stopped

    def shift_output(self, number: int, by: int) -> None:
        """Moves a slot's output positions on, as if so much more had been sent; everything must have been."""
        slot, i = self.slot(number), (SLOTS_AT + number * SLOT_SIZE) // 8
        assert not slot.unsent
        position = (slot.made + by) & M32
        self.words[i + _OUT_HEADER + _BYTES] = position << 32
        self.words[i + _DONE] = slot.consumed << 32 | position

    def publish(self, body: bytes, *, sequence: int | None = None, check: int | None = None) -> None:
        """Appends an entry as Logic would."""
        if sequence is None:
            sequence = self.last_sequence() + 1
        if check is None:
            check = crc32(body, (sequence ^ len(body)) & M32)
        head = self.words[W_HEAD]
        at = PAGE + (head & (JOURNAL_SIZE - 1))
        size = (ENTRY.size + len(body) + 7) & ~7
        assert at + size <= PAGE + JOURNAL_SIZE, "too near the end of the ring"
        self.memory[at : at + ENTRY.size + len(body)] = ENTRY.pack(len(body), check, sequence) + body
        self.words[W_HEAD] = head + size
