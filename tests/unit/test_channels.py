"""Channels: output is placed, published, carried out; whoever dies in between, the stream goes on exactly where it was."""

import copy
import socket
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box.box import REGION_SIZE, Box
from recovery_box.items import M32, PENDING_MAX, Connection
from recovery_box.lanes import BestLane, Lane, output_made, prepare_slot
from tests.model.support import examples
from xenstore_logic.channels import Channel
from xenstore_state.access import Subject
from xenstore_state.records import Output


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module."""
    return Box(str(tmp_path_factory.mktemp("channels") / "box"), max_connections=1)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The daemon's end and the peer's."""
    ours, theirs = small_pair()
    with ours, theirs:
        yield ours, theirs


def small_pair() -> tuple[socket.socket, socket.socket]:
    """A connection on which little fits."""
    ours, theirs = socket.socketpair()
    for s in (ours, theirs):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        s.setblocking(False)
    return ours, theirs


def connection(fd: int) -> Connection:
    """The item."""
    return Connection(1, 0, fd, 0, True, True, subject=Subject(0, privileged=True))


def channel(box: Box, fd: int) -> Channel:
    """A channel on a slot that nobody used before."""
    prepare_slot(box, 0, 1)
    return Channel(connection(fd), BestLane(box, 0, fd))


def pattern(start: int, count: int) -> bytes:
    """Bytes of a stream whose every byte tells its position."""
    return bytes((i * 7 + (i >> 8) * 13) & 0xFF for i in range(start, start + count))


class Life:
    """State's item, the Logic of the moment, the peer, and the stream as it ought to be."""

    def __init__(self, box: Box, start: int) -> None:
        self.box = box
        self.ours, self.theirs = small_pair()
        prepare_slot(box, 0, 1)
        lane = BestLane(box, 0, self.ours.fileno())
        lane.publish(start, start)
        words, first = box.words, box.ensure_slot(0) // 8
        words[first + 7] = words[first + 15] = start << 32
        self.in_state = connection(self.ours.fileno())
        self.last: tuple[Output, int] | None = None
        self.stream = self.read = b""
        self.head = start
        self.reborn()

    def reborn(self) -> None:
        """A new Logic: a fork of State, which finishes the last record."""
        self.channel = Channel(copy.deepcopy(self.in_state), BestLane(self.box, 0, self.ours.fileno()))
        if self.last is not None:
            self.channel.repeat(*self.last)
        if self.channel.connection.pending.chunks:
            self.channel.move_pending()

    def record(self, size: int, dies: str) -> None:
        """A request of ten bytes that is answered with `size`; Logic may die before or after it carries that out."""
        data = pattern(len(self.stream), size)
        output = Output._make(self.channel.place(data))
        self.head = (self.head + 10) & M32
        # Published: State applies it, as soon or as late as it likes.
        self.in_state.pending.trim(output_made(self.box, 0))
        if output.pending:
            assert self.in_state.pending.end in {None, output.position}
            self.in_state.pending.append(output.position, output.data)
        self.last = output, self.head
        self.stream += data
        if dies != "before":
            self.channel.carry_out(output, self.head, (0, 0))
        if dies != "no":
            self.reborn()
        assert self.channel.lane.head == self.head

    def send(self) -> None:
        """What the loop does with a channel that has output."""
        done = self.channel.lane.send()
        while done and self.channel.connection.pending.chunks:
            self.channel.move_pending()
            done = self.channel.lane.send()

    def peer_reads(self, n: int) -> None:
        """The peer reads some."""
        try:
            self.read += self.theirs.recv(max(1, n))
        except BlockingIOError:
            pass
        assert self.stream.startswith(self.read)

    def check(self) -> None:
        """Everything is somewhere, once."""
        lane, pending = self.channel.lane, self.channel.connection.pending
        assert 0 <= lane.unsent <= REGION_SIZE
        assert self.channel.end == (lane.made + pending.size) & M32
        if pending.chunks:
            assert pending.chunks[0][0] == lane.made


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["no", "before", "after"]),
            st.one_of(st.integers(1, 60), st.integers(2000, 3 * REGION_SIZE)),
        ),
        st.tuples(st.sampled_from(["send", "peer reads", "dies"]), st.integers(0, 10_000)),
    ),
    max_size=25,
)


@examples(100)
@given(st.sampled_from([0, M32 - 50, M32 - REGION_SIZE - 50]), STEPS)
def test_the_peer_gets_every_reply_once_and_in_order_wherever_logic_dies(
    box: Box, start: int, steps: list[tuple[str, int]]
) -> None:
    life = Life(box, start)
    try:
        for what, n in steps:
            match what:
                case "send":
                    life.send()
                case "peer reads":
                    life.peer_reads(n)
                case "dies":
                    life.reborn()
                case _:
                    life.record(n, what)
            life.check()
        for _ in range(4 + len(life.stream) // 1000):
            life.send()
            life.peer_reads(1 << 16)
        assert life.read == life.stream
        assert not life.channel.connection.pending.chunks
    finally:
        life.ours.close()
        life.theirs.close()


@examples(60)
@given(st.integers(1, 2 * REGION_SIZE), st.booleans())
def test_repeating_a_record_that_was_carried_out_changes_nothing(box: Box, size: int, consumed: bool) -> None:
    one = channel(box, -1)
    one.carry_out(Output(1, 0, b"before", False), 5, (0, 0))
    output = one.place(pattern(0, size))
    head = 15 if consumed else None
    one.carry_out(output, head, (0, 0))
    before = (one.lane.head, one.lane.made, one.lane.sent, list(one.connection.pending.chunks))
    for _ in range(2):
        one.repeat(output, head)
        assert (one.lane.head, one.lane.made, one.lane.sent, list(one.connection.pending.chunks)) == before


def test_input_is_never_given_back(box: Box) -> None:
    """A record older than what the lane says cannot move its head backwards."""
    one = channel(box, -1)
    one.lane.publish(M32, 0)
    one.lane.publish(4, 0)
    one.repeat(Output(1, 0, b"x", True), M32 - 10)
    assert one.lane.head == 4


# ---- where output goes


def test_output_goes_into_the_region_as_long_as_it_fits(box: Box) -> None:
    one = channel(box, -1)
    assert one.place(bytes(REGION_SIZE)) == Output(1, 0, bytes(REGION_SIZE), False)
    assert one.place(bytes(REGION_SIZE + 1)) == Output(1, 0, bytes(REGION_SIZE + 1), True)


def test_what_does_not_fit_waits_and_everything_later_waits_behind_it(box: Box) -> None:
    one = channel(box, -1)
    first, second, third = (bytes([n]) * 5000 for n in (1, 2, 3))
    for data, pending, position in (
        (first, False, 0),
        (second, True, 5000),
        (b"tiny", True, 10000),
        (third, True, 10004),
    ):
        output = one.place(data)
        assert output == Output(1, position, data, pending)
        one.carry_out(output, None, (0, 0))
    assert one.end == 15004
    assert (one.lane.made, one.connection.pending.size) == (5000, 10004)


def test_a_peer_that_lets_too_much_pile_up_is_hung_up_on(box: Box) -> None:
    """The output itself says so, for State and for the next Logic: it is pending, and empty."""
    one = channel(box, -1)
    half = bytes(PENDING_MAX // 2)
    for _ in range(2):
        one.carry_out(one.place(half), None, (0, 0))
    assert not one.connection.overflowed
    assert one.place(b"x") == Output(1, PENDING_MAX, b"", True)
    assert one.connection.overflowed
    assert one.place(half) == Output(1, PENDING_MAX, b"", True)


def test_pending_output_moves_as_far_as_there_is_room(box: Box, pair: tuple[socket.socket, socket.socket]) -> None:
    one = channel(box, pair[0].fileno())
    data = pattern(0, REGION_SIZE + 100)
    one.carry_out(one.place(data), None, (0, 0))
    one.move_pending()
    assert (one.lane.made, one.lane.room, one.connection.pending.size) == (REGION_SIZE, 0, 100)
    one.move_pending()
    assert one.connection.pending.size == 100


# ---- events that wait already


def test_an_event_that_waits_unsent_is_not_queued_again(box: Box, pair: tuple[socket.socket, socket.socket]) -> None:
    """core.c: send_event drops duplicates, wherever in the queue they are."""
    one = channel(box, pair[0].fileno())
    event, other = b"event of sixteen", b"another event..."
    for data in (event, other):
        assert not one.is_queued(data, (one.end + len(data)) & M32)
        one.carry_out(one.place(data), None, (0, 0))
    assert one.is_queued(event, one.end + 16)
    assert one.is_queued(other, one.end + 16)
    assert one.lane.send()
    assert not one.is_queued(event, one.end + 16)


class FakeLane:
    """As much of a lane as `is_queued` looks at.  It counts how often it does."""

    def __init__(self, sent: int, made: int) -> None:
        self._sent, self.made = sent, made
        self.looked = 0

    @property
    def sent(self) -> int:
        self.looked += 1
        return self._sent


@pytest.mark.parametrize("start", [0, M32 - 250])
@pytest.mark.parametrize("sent", [0, 1, 99, 100, 101, 250, 299])
def test_an_event_partly_sent_still_counts_as_queued_one_sent_whole_does_not(start: int, sent: int) -> None:
    one = Channel(connection(-1), cast(Lane, FakeLane(start, (start + 300) & M32)))
    for n in range(3):
        assert not one.is_queued(b"event %d" % n, (start + 100 * (n + 1)) & M32)
    one.lane = cast(Lane, FakeLane((start + sent) & M32, (start + 300) & M32))
    for n in range(3):
        assert one.is_queued(b"event %d" % n, (start + 400) & M32) == (sent < 100 * (n + 1))


def test_an_event_costs_the_same_however_many_wait() -> None:
    lane = FakeLane(0, 100)
    one = Channel(connection(-1), cast(Lane, lane))
    for n in range(1, 6001):
        assert not one.is_queued(b"%d" % n, 100 + n)
    assert lane.looked < 10 * 6000
    assert all(one.is_queued(b"%d" % n, 99) for n in (1, 3000, 6000))


def test_events_that_were_sent_are_forgotten_sooner_or_later(box: Box) -> None:
    one = channel(box, -1)
    one.lane.publish(0, 100)
    for n in range(20_000):
        one.lane.sent = 99 + n
        one.lane.publish(0, 101 + n)
        assert not one.is_queued(b"%d" % n, one.end)
    assert len(one.queued) < 15_000
