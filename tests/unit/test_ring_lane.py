"""Ring lanes: death between any two stores to shared memory neither loses, repeats nor tears a byte of either stream.

A lane works on a box and a page whose every store is counted; a `Mortal` ends it before any of them (in the middle of a
copy, too), and a new lane that attaches goes on.  A guest that keeps the rules must then always see true indices; one that
writes what it likes gets `RingIndexError` or exactly what the rings say.
"""

import copy
import mmap
from collections.abc import Callable
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ring import M32, PAGE_SIZE, REQ_CONS, REQ_PROD, RING_SIZE, RSP_CONS, RSP_PROD, RingIndexError, RingPage
from recovery_box.box import REGION_SIZE, W_BEAT, Box
from recovery_box.lanes import input_consumed, output_made, prepare_slot
from recovery_box.ringlane import RingLane
from tests.model.support import examples

INDICES: Final = (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD)
POSITIONS = st.one_of(st.sampled_from([0, M32, M32 - 100, M32 - RING_SIZE, M32 - REGION_SIZE]), st.integers(0, M32))


class Died(BaseException):
    """The lane's owner is killed."""


class Mortal:
    """Who makes stores, and dies before one of them."""

    def __init__(self) -> None:
        self.stores = 0
        self.dies_at: int | None = None

    def dies(self) -> bool:
        """Counts a store; whether death comes before it."""
        if self.dies_at is not None and self.stores >= self.dies_at:
            self.dies_at = None
            return True
        self.stores += 1
        return False


class Words:
    """Shared words: a store happens as a whole or, in death, not at all."""

    def __init__(
        self, mortal: Mortal, real: "memoryview[int]", stored: Callable[[int, int], None] | None = None, free: int = -1
    ) -> None:
        """A store of the word `free` does not count."""
        self.mortal, self.real, self.stored, self.free = mortal, real, stored, free

    def __getitem__(self, index: int) -> int:
        return self.real[index]

    def __setitem__(self, index: int, value: int) -> None:
        if index != self.free and self.mortal.dies():
            raise Died
        if self.stored is not None:
            self.stored(index, value)
        self.real[index] = value

    def release(self) -> None:
        """As a memoryview."""
        self.real.release()


class Bytes:
    """Shared bytes: in death, half of a copy happens."""

    def __init__(self, mortal: Mortal, real: Any) -> None:
        self.mortal, self.real = mortal, real

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self.real[where])

    def __setitem__(self, where: slice, data: bytes) -> None:
        dies = self.mortal.dies()
        if dies:
            half = len(data) // 2
            where, data = slice(where.start or 0, (where.start or 0) + half), data[:half]
        self.real[where] = data
        if dies:
            raise Died

    def release(self) -> None:
        """As a memoryview."""
        self.real.release()


def mortal_box(box: Box, mortal: Mortal) -> Box:
    """The same box for one who may die of storing one of its words."""
    shared = copy.copy(box)
    shared.words = copy.copy(box.words)
    shared.words._words = cast("memoryview[int]", Words(mortal, box.words.view, free=W_BEAT))
    return shared


def pattern(start: int, count: int) -> bytes:
    """Bytes of a stream whose every byte tells its position."""
    return bytes((i * 7 + (i >> 8) * 13) & 0xFF for i in range(start, start + count))


class Pair:
    """A guest and a lane that serves it, life after life, and both streams as they ought to be.

    `fair` is whether the guest keeps the rules; then every index it is shown must be true.
    """

    def __init__(self, box: Box, taken: int, given: int, *, fair: bool = True) -> None:
        self.box, self.fair = box, fair
        prepare_slot(box, 0, 1)
        self.buffer = bytearray(PAGE_SIZE)
        self.guest = memoryview(self.buffer).cast("I")
        for index, value in zip(INDICES, (taken, taken, given, given), strict=True):
            self.guest[index] = value
        self.first_in, self.first_out = taken, given
        self.put = self.consumed = self.made = self.read = 0
        self.mortal = Mortal()
        self.deaths = 0
        RingLane(box, 0).begin(taken, given)
        self.born()

    def born(self) -> None:
        """A new lane attaches; it may die of that as well."""
        box = mortal_box(self.box, self.mortal)
        box.memory = cast(mmap.mmap, Bytes(self.mortal, self.box.memory))
        page = RingPage(memoryview(self.buffer), None)
        page._bytes = cast("memoryview[int]", Bytes(self.mortal, page._bytes))
        page.words = cast("memoryview[int]", Words(self.mortal, page.words, self.shown))
        try:
            self.lane = RingLane(box, 0)
            self.lane.attach(page)
        except Died:
            self.deaths += 1
            self.born()

    def shown(self, index: int, value: int) -> None:
        """An index is shown to the guest."""
        if not self.fair:
            return
        assert index in {REQ_CONS, RSP_PROD}, "the guest's own"
        forward = (value - self.guest[index]) & M32
        assert forward <= RING_SIZE, f"index {index} goes back from {self.guest[index]} to {value}"
        if index == REQ_CONS:
            assert (self.guest[REQ_PROD] - value) & M32 <= RING_SIZE, "more taken than there was"
        else:
            assert (value - self.guest[RSP_CONS]) & M32 <= RING_SIZE, "more given than there was room for"

    def mortally(self, act: Callable[[], object]) -> bool:
        """Does something that may end in death, after which another lane is there; whether it was done."""
        try:
            act()
        except Died:
            self.deaths += 1
            self.born()
            return False
        return True

    # ---- the guest

    def puts(self, count: int) -> None:
        """Requests, as far as there is room."""
        producer = self.guest[REQ_PROD]
        room = RING_SIZE - ((producer - self.guest[REQ_CONS]) & M32)
        for k, byte in enumerate(pattern(self.put, min(count, room))):
            self.buffer[(producer + k) % RING_SIZE] = byte
        self.guest[REQ_PROD] = (producer + min(count, room)) & M32
        self.put += min(count, room)

    def reads(self, count: int) -> None:
        """Responses, as far as there are any."""
        consumer = self.guest[RSP_CONS]
        count = min(count, (self.guest[RSP_PROD] - consumer) & M32)
        data = bytes(self.buffer[RING_SIZE + (consumer + k) % RING_SIZE] for k in range(count))
        assert data == pattern(self.read, count)
        self.guest[RSP_CONS] = (consumer + count) & M32
        self.read += count

    # ---- the lane

    def receives(self) -> None:
        """What the lane takes is what stands in the ring."""
        fill = self.lane.fill
        ring = bytes(self.buffer[:RING_SIZE])
        self.mortally(self.lane.receive)
        lane = self.lane
        count = (lane.fill - fill) & M32
        assert count <= RING_SIZE
        start = (fill - lane.head) & M32
        assert lane.peek(start + count)[start:] == bytes(ring[(fill + k) % RING_SIZE] for k in range(count))

    def consumes(self, count: int) -> None:
        """Requests are dealt with, without an answer."""
        self.answers(count, 0)

    def answers(self, count: int, size: int) -> None:
        """Requests of so many bytes are answered with `size` bytes: both count, or neither."""
        lane = self.lane
        count = min(count, (lane.fill - lane.head) & M32)
        size = min(size, lane.room)
        if self.fair:
            assert lane.peek(count) == pattern(self.consumed, count)
        head, made = (lane.head + count) & M32, (lane.made + size) & M32
        self.mortally(lambda: lane.answer(pattern(self.made, size), head))
        after = self.lane.head, self.lane.made
        assert after in {(head, made), ((head - count) & M32, (made - size) & M32)}
        if after == (head, made):
            self.consumed += count
            self.made += size

    def sends(self) -> None:
        """Output goes into the ring."""
        self.mortally(self.lane.send)

    def releases(self, waiting: bool) -> None:
        """Room of requests is given back."""
        self.mortally(lambda: self.lane.release(waiting=waiting))

    def step(self, what: str, n: int) -> None:
        """One step of either."""
        match what:
            case "guest puts":
                self.puts(n)
            case "guest reads":
                self.reads(n)
            case "receive":
                self.receives()
            case "answer":
                self.answers(n, n * 7 % 3000)
            case "consume":
                self.consumes(n)
            case "send":
                self.sends()
            case "release":
                self.releases(waiting=False)
            case "release the answered":
                self.releases(waiting=True)
            case "die soon":
                self.mortal.dies_at = self.mortal.stores + n % 12
            case "die":
                self.deaths += 1
                self.born()

    def check(self) -> None:
        """What the lane knows is what the box says, and both are the truth."""
        lane = self.lane
        assert lane.head == input_consumed(self.box, 0) == (self.first_in + self.consumed) & M32
        assert lane.made == output_made(self.box, 0) == (self.first_out + self.made) & M32
        again = RingLane(self.box, 0)
        assert (again.fill, again.sent) == (lane.fill, lane.sent)
        assert (lane.fill - lane.head) & M32 <= REGION_SIZE
        assert lane.unsent <= REGION_SIZE

    def finish(self) -> None:
        """Everything that was put is consumed, everything made is read, once."""
        for _ in range(40):
            self.receives()
            self.consumes(M32)
            self.releases(waiting=False)
            self.sends()
            self.reads(M32)
        assert self.consumed == self.put
        assert self.read == self.made


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module; each test prepares its slot anew."""
    return Box(str(tmp_path_factory.mktemp("rings") / "box"), max_connections=1)


SIZES = st.one_of(st.sampled_from([1, RING_SIZE, REGION_SIZE]), st.integers(0, 40), st.integers(0, 3000))
FAIR = ["guest puts", "guest reads", "receive", "answer", "consume", "send", "release"]
STEPS = st.lists(st.tuples(st.sampled_from([*FAIR, "die soon", "die soon", "die"]), SIZES), max_size=60)


@examples(300)
@given(POSITIONS, POSITIONS, STEPS)
def test_both_streams_arrive_whole_wherever_lanes_die(
    box: Box, taken: int, given_: int, steps: list[tuple[str, int]]
) -> None:
    pair = Pair(box, taken, given_)
    for what, n in steps:
        pair.step(what, n)
        pair.check()
    pair.mortal.dies_at = None
    pair.finish()


WAITING_STEPS = st.lists(
    st.tuples(st.sampled_from([*FAIR, "release the answered", "release the answered", "die soon", "die"]), SIZES),
    max_size=60,
)


@examples(300)
@given(POSITIONS, WAITING_STEPS)
def test_room_that_was_given_back_is_never_taken_away_again(box: Box, taken: int, steps: list[tuple[str, int]]) -> None:
    """Some requests must wait, others not, and lanes die: the guest's view of what was taken only goes forward."""
    pair = Pair(box, taken, 0)
    for what, n in steps:
        pair.step(what, n)
        pair.check()
    pair.mortal.dies_at = None
    pair.finish()


def scenario(pair: Pair) -> None:
    """A bit of everything, with copies that go around the ends of rings and regions."""
    for n in (10, RING_SIZE, 300, RING_SIZE, 5, RING_SIZE):
        pair.puts(n)
        pair.receives()
        pair.answers(n - n // 4, n * 3 // 2)
        pair.sends()
        pair.releases(waiting=False)
        pair.reads(n // 2)
        pair.sends()


def test_death_before_each_single_store_changes_nothing(box: Box) -> None:
    """One life is counted; then there is one death for each of its stores."""
    start = M32 - 1500
    pair = Pair(box, start, start)
    at_birth = pair.mortal.stores
    scenario(pair)
    stores = pair.mortal.stores
    assert stores > at_birth + 40
    for n in range(stores + 1):
        pair = Pair(box, start, start)
        pair.mortal.dies_at = n
        scenario(pair)
        assert pair.deaths == (n < stores) or n <= at_birth
        pair.mortal.dies_at = None
        pair.check()
        pair.finish()


# ---- a guest that keeps no rules

HOSTILE = st.tuples(st.sampled_from(INDICES), st.one_of(POSITIONS, st.integers(-5, 5), st.integers(-2000, 2000)))
HOSTILE_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([*FAIR[2:], "guest puts", "die soon", "die"]), SIZES),
        st.tuples(st.just("write"), HOSTILE),
        st.tuples(st.just("die, and write meanwhile"), st.lists(HOSTILE, min_size=4, max_size=4)),
    ),
    max_size=40,
)


def overwrite(pair: Pair, index: int, value: int) -> None:
    """An index becomes `value`, or (small ones) moves by so much."""
    pair.guest[index] = (pair.guest[index] + value if abs(value) <= 2000 else value) & M32


@examples(300)
@given(POSITIONS, POSITIONS, HOSTILE_STEPS)
def test_whatever_stands_in_the_page_is_an_error_or_exact_service(
    box: Box, taken: int, given_: int, steps: list[tuple[str, Any]]
) -> None:
    """Positions go on only as far as the rings reach, what is taken is what stood there, what is given is what was made."""
    pair = Pair(box, taken, given_, fair=False)
    try:
        for what, how in steps:
            match what:
                case "write":
                    overwrite(pair, *how)
                case "die, and write meanwhile":
                    for index, value in how:
                        overwrite(pair, index, value)
                    pair.born()
                case "guest puts":
                    overwrite(pair, REQ_PROD, how % 2000)
                case "send":
                    given_before = pair.lane.sent
                    pair.sends()
                    check_given(pair, given_before)
                case _:
                    pair.step(what, how)
            pair.check()
    except RingIndexError:
        return


def check_given(pair: Pair, before: int) -> None:
    """What a send has put into the ring are the bytes that were made, at their places; no more than the ring holds stands."""
    sent = pair.lane.sent
    start = (before - pair.first_out) & M32
    count = (sent - before) & M32
    assert count <= RING_SIZE
    ring = pair.buffer[RING_SIZE : 2 * RING_SIZE]
    assert bytes(ring[(before + k) % RING_SIZE] for k in range(count)) == pattern(start, count)


@pytest.mark.parametrize("index", [REQ_CONS, RSP_PROD], ids=["taken", "given"])
def test_the_daemons_indices_overwritten_while_nobody_lives_are_published_again(box: Box, index: int) -> None:
    pair = Pair(box, 7, 9)
    pair.puts(100)
    pair.receives()
    pair.answers(60, 200)
    pair.sends()
    pair.releases(waiting=False)
    pair.guest[index] = 0xDEADBEEF
    pair.fair = False
    pair.born()
    pair.receives()
    pair.sends()
    pair.releases(waiting=False)
    assert (pair.guest[REQ_CONS], pair.guest[RSP_PROD]) == (107, 209)
    pair.reads(200)
    assert pair.read == 200


@pytest.mark.parametrize("ahead", [RING_SIZE + 1, -1, 1 << 31])
def test_the_guests_indices_overwritten_while_nobody_lives_to_what_cannot_be_are_an_error(box: Box, ahead: int) -> None:
    for index, act in ((REQ_PROD, "receive"), (RSP_CONS, "send")):
        pair = Pair(box, 7, 9, fair=False)
        pair.answers(0, 10)
        pair.guest[index] = (pair.guest[index] + (ahead if index == REQ_PROD else -ahead)) & M32
        pair.born()
        with pytest.raises(RingIndexError):
            getattr(pair.lane, act)()


@pytest.mark.parametrize("index", [REQ_CONS, RSP_PROD])
def test_the_daemons_indices_overwritten_while_it_serves_are_an_error(box: Box, index: int) -> None:
    pair = Pair(box, 7, 9, fair=False)
    pair.puts(10)
    pair.receives()
    pair.answers(10, 10)
    pair.releases(waiting=False)
    pair.guest[index] += 1
    pair.puts(1)
    with pytest.raises(RingIndexError):
        pair.lane.receive() if index == REQ_CONS else pair.lane.send()


def test_nothing_but_the_daemons_indices_and_its_data_is_ever_written(box: Box) -> None:
    pair = Pair(box, 0, 0)
    pair.buffer[RING_SIZE * 2 + 16 :] = b"\xaa" * (PAGE_SIZE - RING_SIZE * 2 - 16)
    before = bytes(pair.buffer[:RING_SIZE])
    pair.answers(0, 5000)
    pair.sends()
    assert bytes(pair.buffer[:RING_SIZE]) == before
    assert bytes(pair.buffer[RING_SIZE * 2 + 16 :]) == b"\xaa" * (PAGE_SIZE - RING_SIZE * 2 - 16)


# ---- bounds and news


def test_a_ring_is_taken_from_only_as_far_as_the_region_has_room(box: Box) -> None:
    pair = Pair(box, M32 - 3000, 0)
    for _ in range(REGION_SIZE // RING_SIZE + 2):
        pair.puts(RING_SIZE)
        pair.receives()
        pair.releases(waiting=False)
    assert pair.put == REGION_SIZE + RING_SIZE
    assert (pair.lane.fill - pair.lane.head) & M32 == REGION_SIZE
    assert pair.lane.receive() == -1
    pair.consumes(10)
    assert pair.lane.receive() == 10


def test_a_guest_whose_requests_wait_sees_its_ring_fill_up(box: Box) -> None:
    pair = Pair(box, 0, 0)
    pair.puts(RING_SIZE)
    pair.receives()
    pair.consumes(100)
    pair.releases(waiting=True)
    assert pair.guest[REQ_CONS] == 100
    pair.puts(RING_SIZE)
    assert pair.put == RING_SIZE + 100


def test_room_is_what_the_ring_takes_at_once(box: Box) -> None:
    pair = Pair(box, 0, 0)
    assert pair.lane.ring_room() == RING_SIZE
    pair.answers(0, 1000)
    assert pair.lane.ring_room() == 0, "output waits"
    pair.sends()
    assert pair.lane.ring_room() == 24
    pair.guest[RSP_CONS] = 2000
    with pytest.raises(RingIndexError):
        pair.lane.ring_room()


def test_a_lane_without_a_page_has_no_room(box: Box) -> None:
    prepare_slot(box, 0, 1)
    lane = RingLane(box, 0)
    assert lane.ring_room() == 0
    lane.release(waiting=False)
    lane.skip(16)


def test_a_guest_has_news_when_an_index_was_moved_and_only_then(box: Box) -> None:
    pair = Pair(box, 0, 0)
    lane = pair.lane
    assert lane.news, "whoever attaches does not know whether the last one notified"

    def news_of(act: Callable[[], object]) -> bool:
        lane.news = False
        act()
        return lane.news

    pair.puts(10)
    assert not news_of(lambda: lane.release(waiting=False))
    assert not news_of(lane.send)
    assert not news_of(lane.receive)
    assert news_of(lambda: lane.release(waiting=False))
    assert not news_of(lambda: lane.release(waiting=False))
    lane.answer(b"reply", lane.fill)
    assert news_of(lane.send)
    assert not news_of(lane.send)


def test_requests_skipped_are_taken_from_the_ring(box: Box) -> None:
    pair = Pair(box, M32, 0)
    pair.puts(100)
    pair.lane.skip(16)
    assert pair.guest[REQ_CONS] == 15


def test_a_ring_that_was_in_use_goes_on_where_it_is(box: Box) -> None:
    prepare_slot(box, 0, 1)
    lane = RingLane(box, 0)
    lane.begin(1000, 77)
    assert (lane.fill, lane.head, lane.made, lane.sent) == (1000, 1000, 77, 77)
    again = RingLane(box, 0)
    assert (again.fill, again.head, again.made, again.sent) == (1000, 1000, 77, 77)


def test_the_stage_of_a_ring_outlives_its_lane_and_not_its_slot(box: Box) -> None:
    prepare_slot(box, 0, 1)
    lane = RingLane(box, 0)
    assert lane.stage == 0
    lane.stage = 2
    assert RingLane(box, 0).stage == 2
    prepare_slot(box, 0, 2)
    assert RingLane(box, 0).stage == 0
