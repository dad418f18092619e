"""The ring page: bytes and indices over every wrap, indices that cannot be true, the order of stores, and their wholeness.

The page is a buffer of this test; what a guest does to it is done with plain stores.
"""

import ctypes
import mmap
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NoReturn, Self, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import ring
from protocol.ring import (
    CONNECTED,
    CONNECTION,
    ERROR,
    ERROR_COMM,
    ERROR_RING_INDEX,
    EVTCHN_PORT,
    FEATURES,
    M32,
    PAGE_SIZE,
    RECONNECT,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP_CONS,
    RSP_PROD,
    RingIndexError,
    RingPage,
)
from tests.model.support import examples

INDICES = (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD)
POSITIONS = st.one_of(st.sampled_from([0, 1, M32, M32 - 1, M32 - RING_SIZE, RING_SIZE - 1]), st.integers(0, M32))
LOOKS = 0.5
PATIENCE = 30.0
"""Seconds."""
OFTEN = 1000
LENGTHS = st.one_of(st.sampled_from([0, 1, RING_SIZE - 1, RING_SIZE]), st.integers(0, RING_SIZE))


def fresh(fence: Callable[[], object] | None = None) -> tuple[RingPage, bytearray]:
    """A page of zeros, and its bytes."""
    buffer = bytearray(PAGE_SIZE)
    return RingPage(memoryview(buffer), fence), buffer


def pattern(start: int, count: int) -> bytes:
    """Bytes of a stream whose every byte tells its position."""
    return bytes((i * 7 + (i >> 8) * 13) & 0xFF for i in range(start, start + count))


def at(start: int, position: int, count: int) -> list[int]:
    """Where a data area that begins at `start` has these bytes of a stream."""
    return [start + ((position + k) & M32) % RING_SIZE for k in range(count)]


# ---- layout


def test_the_layout_is_that_of_the_public_header() -> None:
    """Two data areas, four indices, then features, connection state, error and event channel port."""
    page, buffer = fresh()
    words = (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, CONNECTION, ERROR, EVTCHN_PORT)
    for number, word in enumerate(words):
        page.words[word] = 0x01020304 + number
    assert buffer == bytes(2 * RING_SIZE) + struct.pack("=8I", *(0x01020304 + n for n in range(8))) + bytes(
        PAGE_SIZE - 2 * RING_SIZE - 32
    )


def test_a_released_page_can_be_unmapped() -> None:
    with mmap.mmap(-1, PAGE_SIZE) as mapped, memoryview(mapped) as view:
        RingPage(view).release()


# ---- bytes


@given(POSITIONS, LENGTHS)
@examples(200)
def test_requests_are_taken_from_where_their_index_says(position: int, count: int) -> None:
    page, buffer = fresh()
    data = pattern(position, count)
    for where, byte in zip(at(0, position, count), data, strict=True):
        buffer[where] = byte
    assert page.take(position, count) == data


@given(POSITIONS, LENGTHS, st.booleans())
@examples(200)
def test_responses_are_put_where_their_index_says_and_nowhere_else(position: int, count: int, view: bool) -> None:
    page, buffer = fresh()
    buffer[:] = b"\xee" * PAGE_SIZE
    expected = bytearray(buffer)
    data = pattern(position, count)
    for where, byte in zip(at(RING_SIZE, position, count), data, strict=True):
        expected[where] = byte
    page.give(position, memoryview(data) if view else data)
    assert buffer == expected


@given(POSITIONS)
@examples(50)
def test_publishing_an_index_changes_that_word_and_no_other(position: int) -> None:
    page, buffer = fresh()
    page.consumed(position)
    page.produced((position + 5) & M32)
    assert [page.words[i] for i in INDICES] == [position, 0, 0, (position + 5) & M32]
    assert not any(buffer[: 2 * RING_SIZE])
    assert not any(buffer[2 * RING_SIZE + 16 :])


# ---- indices


@given(POSITIONS, POSITIONS)
@example(0, RING_SIZE)
@example(0, RING_SIZE + 1)
@example(5, 4)
@example(M32, RING_SIZE - 1)
@examples(200)
def test_no_more_requests_are_there_than_a_ring_holds(position: int, producer: int) -> None:
    page, _ = fresh()
    page.words[REQ_PROD] = producer
    there = (producer - position) % 2**32
    if there <= RING_SIZE:
        assert page.unread(position) == there
    else:
        with pytest.raises(RingIndexError):
            page.unread(position)


@given(POSITIONS, POSITIONS)
@example(RING_SIZE, 0)
@example(RING_SIZE + 1, 0)
@example(4, 5)
@example(RING_SIZE - 1, M32)
@examples(200)
def test_no_more_responses_wait_than_a_ring_holds(position: int, consumer: int) -> None:
    page, _ = fresh()
    page.words[RSP_CONS] = consumer
    waiting = (position - consumer) % 2**32
    if waiting <= RING_SIZE:
        assert page.room(position) == RING_SIZE - waiting
    else:
        with pytest.raises(RingIndexError):
            page.room(position)


@given(POSITIONS, st.lists(POSITIONS, min_size=4, max_size=4))
@examples(100)
def test_only_the_guests_own_indices_say_how_much_there_is(position: int, indices: list[int]) -> None:
    """The daemon's own in the page are copies: whatever a guest writes there changes nothing."""
    page, _ = fresh()
    for word, value in zip(INDICES, indices, strict=True):
        page.words[word] = value
    page.words[REQ_PROD] = (position + 10) & M32
    page.words[RSP_CONS] = (position - 10) & M32
    assert page.unread(position) == 10
    assert page.room(position) == RING_SIZE - 10


class Words:
    """Words that a guest changes after each look, and that count looks and stores."""

    def __init__(self, page: RingPage, values: Iterator[int]) -> None:
        self.values = values
        self.looks = 0
        self.real = page.words
        page.words = cast("memoryview[int]", self)

    def __getitem__(self, index: int) -> int:
        self.looks += 1
        return next(self.values)

    def __setitem__(self, index: int, value: int) -> None:
        raise AssertionError("a look at an index stores nothing")


@pytest.mark.parametrize("ask", ["unread", "room"])
def test_an_index_of_the_guests_is_read_once(ask: str) -> None:
    """What was checked is what is used, whatever the guest stores meanwhile."""
    page, _ = fresh()
    words = Words(page, iter([M32 - 3, 0x12345678]))
    assert getattr(page, ask)(M32 - 3) in {0, RING_SIZE}
    assert words.looks == 1


# ---- order


class Log:
    """A page whose stores, looks at payload and fences are noted in their order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.page, _ = fresh(lambda: self.log.append("fence"))
        self._words, self._bytes = self.page.words, self.page._bytes
        self.page.words = cast("memoryview[int]", _Noting(self, self._words, "index"))
        self.page._bytes = cast("memoryview[int]", _Noting(self, self._bytes, "bytes"))


class _Noting:
    def __init__(self, log: Log, real: "memoryview[int]", name: str) -> None:
        self.log, self.real, self.name = log.log, real, name

    def __getitem__(self, index: slice) -> object:
        self.log.append(f"load {self.name}")
        return self.real[index]

    def __setitem__(self, index: slice, value: bytes) -> None:
        self.log.append(f"store {self.name}")
        self.real[index] = value


def runs(log: list[str]) -> list[str]:
    """The log without repetitions in a row."""
    return [what for k, what in enumerate(log) if k == 0 or log[k - 1] != what]


@pytest.mark.parametrize("position", [0, RING_SIZE - 3], ids=["straight", "around the end"])
def test_a_fence_stands_between_an_index_and_its_bytes(position: int) -> None:
    """Each side: the guest's index is loaded before the bytes it announces, and those before their room is given back."""
    noted = Log()
    page = noted.page
    page.words[RSP_CONS] = page.words[REQ_PROD] = position
    noted.log.clear()
    page.unread(position)
    page.take(position, 10)
    page.consumed(position + 10)
    assert runs(noted.log) == ["load index", "fence", "load bytes", "fence", "store index"]
    noted.log.clear()
    page.room(position)
    page.give(position, b"0123456789")
    page.produced(position + 10)
    assert runs(noted.log) == ["load index", "fence", "store bytes", "fence", "store index"]


def test_a_connection_is_accepted_behind_a_fence_and_its_features_stand_before_its_indices() -> None:
    noted = Log()
    noted.page.reset(14)
    noted.page.accept()
    assert noted.log == ["store index"] * 2 + ["fence"] + ["store index"] * 4 + ["fence", "store index"]


def test_the_fence_of_machines_that_reorder_can_be_called_again_and_again() -> None:
    fence = ring._strong_fence()
    for _ in range(1000):
        fence()


# ---- the connection


def test_a_reset_page_begins_anew() -> None:
    page, buffer = fresh()
    buffer[2 * RING_SIZE : 2 * RING_SIZE + 32] = b"\xff" * 32
    page.words[CONNECTION] = RECONNECT
    assert page.wants_reconnection
    page.reset(0x0E)
    assert [page.words[i] for i in INDICES] == [0, 0, 0, 0]
    assert (page.words[FEATURES], page.words[ERROR]) == (0x0E, 0)
    assert page.wants_reconnection, "whoever waits may go on only when `accept` says so"
    page.accept()
    assert page.words[CONNECTION] == CONNECTED
    assert not page.wants_reconnection
    assert page.event_port == M32, "the port is the hypervisor's"


@given(st.integers(1, M32))
@examples(30)
def test_every_state_of_a_connection_but_connected_wants_a_fresh_one(state: int) -> None:
    page, _ = fresh()
    assert not page.wants_reconnection
    page.words[CONNECTION] = state
    assert page.wants_reconnection


def test_an_error_changes_nothing_else() -> None:
    page, buffer = fresh()
    page.fail(ERROR_RING_INDEX)
    page.fail(ERROR_COMM)
    assert page.words[ERROR] == ERROR_COMM
    assert sum(map(bool, buffer)) == 1


# ---- wholeness


class TornPage(RingPage):
    """What must not be done: an index stored by `struct`, which clears its target before it writes."""

    def produced(self, position: int) -> None:
        struct.pack_into("=I", self._bytes, RSP_PROD * 4, position)


class WholeWords:
    """Words that take whole stores and know what they should contain."""

    def __init__(self, page: RingPage) -> None:
        self.real = page.words
        self.stored = {index: self.real[index] for index in INDICES}
        page.words = cast("memoryview[int]", self)

    def __getitem__(self, index: int) -> int:
        return self.real[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.stored[index] = self.real[index] = value

    @property
    def changed_otherwise(self) -> list[int]:
        """Indices that were not stored as words."""
        return [index for index, value in self.stored.items() if self.real[index] != value]


@pytest.mark.parametrize("kind", [RingPage, TornPage])
def test_an_index_is_stored_as_one_word(kind: type[RingPage]) -> None:
    page = kind(memoryview(bytearray(PAGE_SIZE)), None)
    words = WholeWords(page)
    page.consumed(5)
    page.give(0, b"reply")
    page.produced(6)
    assert words.changed_otherwise == ([] if kind is RingPage else [RSP_PROD])


class Publisher:
    """A process that stores two values into an index in turn, for ever."""

    VALUES = (0x01010101, 0xFFFFFFFF)

    def __init__(self, kind: type[RingPage]) -> None:
        self.shared = mmap.mmap(-1, PAGE_SIZE)
        self.word = ctypes.c_uint32.from_buffer(self.shared, RSP_PROD * 4)
        self.word.value = self.VALUES[0]
        self.pid = os.fork()
        if not self.pid:
            self._publish(kind)

    def _publish(self, kind: type[RingPage]) -> NoReturn:
        try:
            page, parent = kind(memoryview(self.shared), None), os.getppid()
            while os.getppid() == parent:
                for _ in range(1000):
                    page.produced(self.VALUES[1])
                    page.produced(self.VALUES[0])
        finally:
            os._exit(1)

    def shows_what_never_was(self, seconds: float) -> bool:
        """Whether the index is seen with a value that nobody stored; looks on until both values were seen often."""
        word, seen = self.word, Counter[int]()
        start = time.monotonic()
        while time.monotonic() < start + seconds or min(seen[value] for value in self.VALUES) < OFTEN:
            for _ in range(10_000):
                seen[word.value] += 1
            if not seen.keys() <= set(self.VALUES):
                return True
            assert time.monotonic() < start + PATIENCE, f"the other process does not get to work: {seen}"
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        del self.word
        self.shared.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors: a guest that runs meanwhile")
def test_a_guest_that_looks_all_the_time_never_sees_an_index_that_was_not_published() -> None:
    """The same question of stores by `struct` shows that looking would find them."""
    with Publisher(TornPage) as torn:
        assert torn.shows_what_never_was(PATIENCE / 2)
    with Publisher(RingPage) as whole:
        assert not whole.shows_what_never_was(LOOKS)
