"""The journal: records of effects in shared memory, one producer, one consumer.

Theory of operation.  A record is a 16-byte entry header and a body, padded to 8 bytes, contiguous.  The producer writes
both behind the head, where nobody looks, and then stores the new head: one aligned word, so at any instruction a record
is there completely or not at all.  Head and tail run freely; at the end of the ring a filler
(an entry without a number of its own) covers what is too short.

    | length and kind (u32) | crc32 (u32) | sequence number (u64) | body ... | padding |

The consumer believes nothing: the head must lie within the ring, the sequence numbers must follow one another, length and
CRC must fit.  Anything else is `JournalCorrupt`, at that record, and nothing of it or behind it is delivered.  Bodies
larger than a quarter of the ring go as segments and count only when the last one is there.

A full ring makes the producer wait (`on_full` is called until there is room); nothing is ever overwritten.
Knows nothing of what bodies mean.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from zlib import crc32

import msgpack

try:
    from recovery_box import _journal
except ImportError:  # no compiler when this was installed
    _journal = None  # type: ignore[assignment]  # an optional module

from recovery_box.box import JOURNAL_SIZE, PAGE, W_HEAD, W_TAIL, Box

_ENTRY: Final = struct.Struct("=IIQ")
_MASK: Final = JOURNAL_SIZE - 1
_M32: Final = 0xFFFFFFFF
SEGMENT_MAX: Final = JOURNAL_SIZE // 4
"""Longest body that travels in one piece, in bytes."""
RECORD_MAX: Final = 256 << 20
"""Longest body altogether."""
_LENGTH: Final = 0x0FFFFFFF
_KIND: Final = 0xF0000000
_WHOLE: Final = 0x00000000
_FILLER: Final = 0x10000000
_SEGMENT: Final = 0x20000000
_LAST_SEGMENT: Final = 0x30000000


pack: Final[Callable[[tuple[Any, ...]], bytes]] = msgpack.Packer(autoreset=True).pack
"""A record as the body that stands in the journal."""


class JournalCorrupt(Exception):
    """A record cannot be what the producer wrote.  It and all later ones must be discarded."""


class RecordTooLarge(Exception):
    """A body of more than `RECORD_MAX` bytes."""


class Producer:
    """The writing end.  One per box at a time; a new one continues where the last one published."""

    __slots__ = ("_address", "_head", "_memory", "_on_full", "_tail", "_words", "sequence")

    def __init__(self, box: Box, sequence: int, on_full: Callable[[], None]) -> None:
        """`sequence` is that of the last published record; `on_full` wakes the consumer and waits a moment."""
        self._address: object = box.address if _journal is not None else None
        self._memory = box.memory
        self._words = box.words.view
        self._head = self._words[W_HEAD]
        self._tail = self._words[W_TAIL]
        self.sequence = sequence
        """Of the last published record."""
        self._on_full = on_full

    @property
    def backlog(self) -> int:
        """Bytes published and not yet consumed."""
        return self._head - self._words[W_TAIL]

    def publish(self, record: tuple[Any, ...]) -> None:
        """Publishes a record: numbers, bytes, strings, and tuples of these.  Otherwise like `append`."""
        if self._address is not None:
            head = _journal.publish(self._address, self._head, self._tail, self.sequence + 1, record)
            if head is not None:
                self._head = head
                self.sequence += 1
                return
        self.append(pack(record))

    def append(self, body: bytes, kind: int = _WHOLE) -> None:
        """Publishes one record.  Waits while the ring is full.  Raises `RecordTooLarge`."""
        n = len(body)
        if n > SEGMENT_MAX:
            self._append_segments(body, n)
            return
        size = (n + 23) & ~7
        head = self._head
        at = head & _MASK
        if at + size > JOURNAL_SIZE:
            self._fill(head, JOURNAL_SIZE - at)
            head, at = self._head, 0
        if head + size - self._tail > JOURNAL_SIZE:
            self._wait(size)
        sequence = self.sequence = self.sequence + 1
        at += PAGE
        kind |= n
        check = crc32(body, (sequence ^ kind) & _M32)
        self._memory[at : at + n + 16] = _ENTRY.pack(kind, check, sequence) + body
        self._words[W_HEAD] = self._head = head + size

    def _append_segments(self, body: bytes, n: int) -> None:
        if n > RECORD_MAX:
            raise RecordTooLarge(f"a record of {n} bytes")
        for start in range(0, n, SEGMENT_MAX):
            last = start + SEGMENT_MAX >= n
            self.append(body[start : start + SEGMENT_MAX], _LAST_SEGMENT if last else _SEGMENT)

    def _fill(self, head: int, left: int) -> None:
        if head + left - self._tail > JOURNAL_SIZE:
            self._wait(left)
        if left >= _ENTRY.size:
            at = PAGE + (head & _MASK)
            check = crc32(b"", (self.sequence ^ _FILLER) & _M32)
            self._memory[at : at + _ENTRY.size] = _ENTRY.pack(_FILLER, check, self.sequence)
        self._words[W_HEAD] = self._head = head + left

    def _wait(self, size: int) -> None:
        while True:
            self._tail = self._words[W_TAIL]
            if self._head + size - self._tail <= JOURNAL_SIZE:
                return
            self._on_full()


class Consumer:
    """The reading end; it trusts neither indices nor bytes."""

    __slots__ = ("_box", "_memory", "_staged", "_tail", "_taken", "_words", "on_segment", "sequence")

    def __init__(self, box: Box) -> None:
        self._box = box
        self._memory = box.memory
        self._words = box.words.view
        self._tail = 0
        self._staged: list[bytes] = []
        self._taken: tuple[int, int] | None = None
        self.sequence = 0
        """Sequence number of the last entry read."""
        self.on_segment: Callable[[int, bytes], None] = lambda sequence, body: None
        """Told of a piece of a record that is not there completely, before its room is given back."""

    def resume(self, last: int, staged: Sequence[tuple[int, bytes]] = ()) -> None:
        """Goes on where another consumer of this journal has died, after it had read record `last`, or the one before.

        `staged` are pieces it had read of the next record, with their sequence numbers.  Raises `JournalCorrupt` if records
        are missing.
        """
        words, memory = self._words, self._memory
        self._tail, self.sequence = words[W_TAIL], last
        if self._tail == words[W_HEAD]:
            return
        at = self._tail & _MASK
        if JOURNAL_SIZE - at < _ENTRY.size:
            self._release(self._tail + JOURNAL_SIZE - at)
            at = 0
        if self._tail != words[W_HEAD]:
            kind_and_length, _, sequence = _ENTRY.unpack_from(memory, PAGE + at)
            self.sequence = sequence if kind_and_length == _FILLER else sequence - 1
        elif staged:
            self.sequence = staged[-1][0]
        self._staged = [body for number, body in staged if number <= self.sequence]
        if self.sequence > max([last, *(number for number, _ in staged)]):
            raise JournalCorrupt(f"record {last} is the last that was written down, {self.sequence + 1} follows")

    @property
    def taken(self) -> int:
        """Sequence number of the record last yielded."""
        return self._taken[1] if self._taken is not None else self.sequence

    @property
    def between_records(self) -> bool:
        """Whether no part of a record was read without the rest."""
        return not self._staged

    @property
    def empty(self) -> bool:
        """Whether nothing is published that was not read."""
        return self._words[W_HEAD] == self._tail

    def records(self) -> Iterator[bytes]:
        """Yields the body of each published record; its room is given back by `accept`, or when the next is asked for.

        Raises `JournalCorrupt`.
        """
        words, memory = self._words, self._memory
        while True:
            head, tail = words[W_HEAD], self._tail
            if head == tail:
                return
            if head & 7 or not 0 < head - tail <= JOURNAL_SIZE:
                raise JournalCorrupt(f"index {head} with {tail} consumed")
            at = tail & _MASK
            left = JOURNAL_SIZE - at
            if left < _ENTRY.size:
                self._release(tail + left)
                continue
            kind_and_length, check, sequence = _ENTRY.unpack_from(memory, PAGE + at)
            kind, n = kind_and_length & _KIND, kind_and_length & _LENGTH
            if kind_and_length == _FILLER:
                if sequence != self.sequence or crc32(b"", (sequence ^ _FILLER) & _M32) != check:
                    raise JournalCorrupt("a filler that is none")
                self._release(tail + left)
                continue
            size = (_ENTRY.size + n + 7) & ~7
            if size > left or tail + size > head or n > SEGMENT_MAX:
                raise JournalCorrupt(f"record of {n} bytes does not fit what was published")
            if sequence != self.sequence + 1:
                raise JournalCorrupt(f"record {sequence} follows {self.sequence}")
            start = PAGE + at + _ENTRY.size
            body = memory[start : start + n]
            if crc32(body, (sequence ^ kind_and_length) & _M32) != check:
                raise JournalCorrupt(f"checksum of record {sequence}")
            if kind == _WHOLE and self._staged:
                raise JournalCorrupt("a record among the segments of another")
            whole = body if kind == _WHOLE else self._stage(kind, body)
            self._taken = tail + size, sequence
            if whole is not None:
                yield whole
            else:
                self.on_segment(sequence, body)
            self.accept()

    def accept(self) -> None:
        """The record last yielded is dealt with.  (Who leaves the iteration early says so by this.)"""
        if self._taken is not None:
            tail, self.sequence = self._taken
            self._taken = None
            self._release(tail)

    def _stage(self, kind: int, body: bytes) -> bytes | None:
        if kind not in {_SEGMENT, _LAST_SEGMENT}:
            raise JournalCorrupt(f"an entry of unknown kind {kind:#x}")
        # All but the last segment are full, so there cannot be more of them than the largest record has.
        if (kind == _SEGMENT and len(body) != SEGMENT_MAX) or len(self._staged) >= RECORD_MAX // SEGMENT_MAX:
            raise JournalCorrupt("a segment that no record has")
        self._staged.append(body)
        return b"".join(self._take_staged()) if kind == _LAST_SEGMENT else None

    def _take_staged(self) -> list[bytes]:
        staged, self._staged = self._staged, []
        return staged

    def _release(self, tail: int) -> None:
        self._tail = tail
        self._words[W_TAIL] = tail

    def discard(self) -> tuple[list[bytes], bool]:
        """Gives up everything that was published and not consumed, for good: the producer is dead.

        Returns the bodies that can still be read, for whoever must know whom they concerned, and whether these are all.
        """
        words, memory, tail = self._words, self._memory, self._tail
        head = words[W_HEAD]
        self._taken = None
        self._take_staged()
        if head & 7 or not 0 <= head - tail <= JOURNAL_SIZE:
            words[W_HEAD] = tail
            self._release(tail)
            return [], False
        bodies = []
        while tail < head:
            at = tail & _MASK
            left = JOURNAL_SIZE - at
            if left < _ENTRY.size:
                tail += left
                continue
            kind_and_length, check, sequence = _ENTRY.unpack_from(memory, PAGE + at)
            n = kind_and_length & _LENGTH
            body = memory[PAGE + at + _ENTRY.size : PAGE + at + _ENTRY.size + n]
            if n + _ENTRY.size > left or crc32(body, (sequence ^ kind_and_length) & _M32) != check:
                break
            if kind_and_length == _FILLER:
                tail += left
                continue
            if kind_and_length & _KIND != _WHOLE:
                break
            bodies.append(body)
            tail += (_ENTRY.size + n + 7) & ~7
        self._release(head)
        return bodies, tail == head

    def drop_staged(self) -> None:
        """Forgets segments whose last one never came: the producer is dead."""
        self._take_staged()
