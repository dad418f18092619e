"""Lanes: two streams over a real pair of sockets, whose positions anybody who looks at the shared words can tell.

Every property is tried with the positions starting anywhere, near 2**32 above all, and with both kinds of lane: the one
written in Python and, where there was a compiler, the compiled one.
"""

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box import lanes
from recovery_box.box import CONTROL_SIZE, REGION_SIZE, SLOT_SIZE, Box, BoxFull
from recovery_box.lanes import (
    M32,
    BestLane,
    CompiledLane,
    Lane,
    input_consumed,
    output_made,
    owner_of,
    prepare_slot,
    unfinished_slots,
)
from tests.model.support import examples

KINDS = [Lane] if BestLane is Lane else [Lane, CompiledLane]
IN_WORD = lanes._IN_HEADER + lanes._BYTES
OUT_WORD = lanes._OUT_HEADER + lanes._BYTES
POSITIONS = st.one_of(st.sampled_from([0, M32, M32 - 100, M32 - REGION_SIZE]), st.integers(0, M32))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module; each test prepares its slots anew."""
    return Box(str(tmp_path_factory.mktemp("lanes") / "box"), max_connections=3)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Lane]:
    """A kind of lane."""
    chosen: type[Lane] = request.param
    return chosen


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection: the daemon's and the peer's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def prepare(box: Box, received: int, sent: int, slot: int = 0) -> int:
    """A slot whose positions begin there; the index of its first word."""
    prepare_slot(box, slot, slot + 1)
    first = box.ensure_slot(slot) // 8
    box.words[first + IN_WORD] = received << 32
    box.words[first + OUT_WORD] = sent << 32
    box.words[first + lanes._DONE] = received << 32 | sent
    return first


def pattern(start: int, count: int) -> bytes:
    """Bytes of a stream whose every byte tells its position."""
    return bytes((i * 7 + (i >> 8) * 13) & 0xFF for i in range(start, start + count))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["peer sends", "receive", "consume", "make", "send", "peer reads", "die"]),
        st.one_of(st.integers(0, 50), st.integers(0, 9000)),
    ),
    max_size=40,
)


class Pair:
    """A lane, its peer, and both streams as they ought to be."""

    def __init__(self, box: Box, kind: type[Lane], received: int, sent: int) -> None:
        self.box, self.kind = box, kind
        prepare(box, received, sent)
        self.ours, self.theirs = socket.socketpair()
        for s in (self.ours, self.theirs):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            s.setblocking(False)
        self.lane = kind(box, 0, self.ours.fileno())
        self.first_in, self.first_out = received, sent
        self.written = self.arrived = self.consumed = 0  # input: by the peer, in the region, done with
        self.made = self.sent = self.read = 0  # output: in the region, given to the kernel, by the peer

    def step(self, what: str, n: int) -> None:
        lane = self.lane
        match what:
            case "peer sends":
                try:
                    self.written += self.theirs.send(pattern(self.written, n))
                except BlockingIOError:
                    pass
            case "receive":
                room = REGION_SIZE - (self.arrived - self.consumed)
                there = self.written - self.arrived
                got = lane.receive()
                if not room or not there:
                    assert got == -1
                else:
                    assert 0 < got <= min(room, there)
                    self.arrived += got
            case "consume":
                n = min(n, self.arrived - self.consumed)
                assert lane.peek(n) == pattern(self.consumed, n)
                self.consumed += n
                lane.publish((lane.head + n) & M32, lane.made)
            case "make":
                n = min(n, lane.room)
                lane.put(pattern(self.made, n), lane.made)
                self.made += n
                lane.publish(lane.head, (lane.made + n) & M32)
            case "send":
                before = lane.sent
                assert lane.send() == (lane.sent == lane.made)
                self.sent += (lane.sent - before) & M32
            case "peer reads":
                try:
                    data = self.theirs.recv(max(n, 1))
                except BlockingIOError:
                    assert self.read == self.sent
                else:
                    assert data == pattern(self.read, len(data))
                    self.read += len(data)
            case "die":
                self.lane = self.kind(self.box, 0, self.ours.fileno())

    def check(self) -> None:
        lane, other = self.lane, self.kind(self.box, 0, self.ours.fileno())
        for one in (lane, other):
            assert one.fill == (self.first_in + self.arrived) & M32
            assert one.head == (self.first_in + self.consumed) & M32
            assert one.made == (self.first_out + self.made) & M32
            assert one.sent == (self.first_out + self.sent) & M32
            assert one.unsent == self.made - self.sent
            assert one.room == REGION_SIZE - one.unsent
        assert output_made(self.box, 0) == lane.made
        assert input_consumed(self.box, 0) == lane.head

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@examples(120)
@given(st.sampled_from(KINDS), POSITIONS, POSITIONS, STEPS)
def test_both_streams_arrive_whole_whatever_the_steps_and_a_new_lane_sees_the_same_positions(
    box: Box, kind: type[Lane], received: int, sent: int, steps: list[tuple[str, int]]
) -> None:
    pair = Pair(box, kind, received, sent)
    try:
        for what, n in steps:
            pair.step(what, n)
            pair.check()
        for _ in range(8):  # and let everything through
            for what in ("receive", "consume", "send", "peer reads"):
                pair.step(what, 1 << 16)
        assert pair.consumed == pair.written
        assert pair.read == pair.made
    finally:
        pair.close()


@examples(60)
@given(POSITIONS, POSITIONS, st.integers(0, REGION_SIZE), st.integers(0, REGION_SIZE))
def test_positions_are_base_plus_what_the_kernel_counted(
    box: Box, received: int, sent: int, more_in: int, more_out: int
) -> None:
    """After a death inside the system call the length stands in the low half and nobody has added it up yet."""
    first = prepare(box, received, sent)
    box.words[first + IN_WORD] = received << 32 | more_in
    box.words[first + OUT_WORD] = sent << 32 | more_out
    box.words[first + lanes._DONE] = received << 32 | (sent + more_out) & M32
    lane = BestLane(box, 0, -1)
    assert (lane.fill, lane.head) == ((received + more_in) & M32, received)
    assert (lane.sent, lane.unsent) == ((sent + more_out) & M32, 0)


# ---- receiving


def test_nothing_to_receive_is_minus_one_and_moves_nothing(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, 5, 9)
    lane = kind(box, 0, pair[0].fileno())
    assert lane.receive() == -1
    assert (lane.fill, kind(box, 0, -1).fill) == (5, 5)


def test_the_end_of_the_stream_is_zero_again_and_again(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, M32, 0)
    lane = kind(box, 0, pair[0].fileno())
    pair[1].sendall(b"last words")
    pair[1].close()
    assert lane.receive() == 10
    assert lane.peek(10) == b"last words"
    assert [lane.receive(), lane.receive()] == [0, 0]
    assert lane.fill == 9


def test_a_bad_descriptor_is_nothing_to_receive(box: Box, kind: type[Lane]) -> None:
    prepare(box, 0, 0)
    assert kind(box, 0, -1).receive() == -1


def test_a_full_region_takes_no_more_until_something_is_consumed(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, M32 - 10, 0)
    lane = kind(box, 0, pair[0].fileno())
    pair[1].sendall(pattern(0, REGION_SIZE + 100))
    got = 0
    while got < REGION_SIZE:
        more = lane.receive()
        assert more > 0
        got += more
    assert lane.receive() == -1
    assert lane.peek(REGION_SIZE) == pattern(0, REGION_SIZE)
    lane.publish((lane.head + 60) & M32, lane.made)
    assert lane.receive() == 60
    assert lane.peek(REGION_SIZE) == pattern(60, REGION_SIZE)


# ---- sending


def test_nothing_to_send_is_done(box: Box, kind: type[Lane]) -> None:
    prepare(box, 0, 77)
    assert kind(box, 0, -1).send()


def test_output_counts_only_when_it_is_published(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, 0, M32 - 2)
    lane = kind(box, 0, pair[0].fileno())
    lane.put(b"hello", lane.made)
    assert lane.send()
    with pytest.raises(BlockingIOError):
        pair[1].recv(10)
    lane.publish(lane.head, (lane.made + 5) & M32)
    assert lane.send()
    assert pair[1].recv(10) == b"hello"
    assert lane.sent == lane.made == 2


@pytest.mark.parametrize("straight", [1, 37, 4000])
def test_output_that_wraps_leaves_by_one_call(box: Box, kind: type[Lane], straight: int) -> None:
    """On a socket that keeps messages apart, so that calls can be told apart; and the next one is straight again."""
    prepare(box, 0, REGION_SIZE - straight)
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        lane = kind(box, 0, ours.fileno())
        for start, n in ((0, 4112), (4112, 5)):
            lane.put(pattern(start, n), lane.made)
            lane.publish(0, (lane.made + n) & M32)
            assert lane.send()
            assert theirs.recv(REGION_SIZE) == pattern(start, n)


def test_no_more_than_a_region_is_sent_whatever_the_positions_say(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    """What lies behind it is another connection's."""
    prepare(box, 0, REGION_SIZE - 10)
    lane = kind(box, 0, pair[0].fileno())
    lane.publish(0, 3 * REGION_SIZE)
    assert not lane.send()
    assert len(pair[1].recv(4 * REGION_SIZE)) == REGION_SIZE


def test_a_peer_that_is_gone_is_not_done_and_no_signal(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, 0, 0)
    lane = kind(box, 0, pair[0].fileno())
    pair[1].close()
    lane.put(b"hello", 0)
    lane.publish(0, 5)
    assert not lane.send()
    assert (lane.sent, kind(box, 0, -1).sent) == (0, 0)


def test_a_lane_that_dies_between_parts_of_its_output_is_continued_exactly(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    prepare(box, 0, M32 - 1000)
    lane = kind(box, 0, ours.fileno())
    made, received = b"", b""
    while True:  # until the kernel takes no more
        part = pattern(len(made), lane.room)
        lane.put(part, lane.made)
        lane.publish(0, (lane.made + len(part)) & M32)
        made += part
        if not lane.send():
            break
    while len(received) < len(made):
        received += theirs.recv(1500)
        kind(box, 0, ours.fileno()).send()
    assert received == made


# ---- frames


LIMIT = 4096
MESSAGES = st.lists(
    st.tuples(*[st.integers(0, M32)] * 3, st.integers(0, LIMIT).map(lambda n: pattern(n, n))), max_size=6
)


@pytest.mark.parametrize("kind_of_lane", KINDS, ids=lambda kind: kind.__name__)
@examples(100)
@given(messages=MESSAGES, start=POSITIONS, piece=st.integers(1, 3000))
def test_messages_come_out_whole_however_they_arrive_and_replies_go_out_as_they_are(
    box: Box, kind_of_lane: type[Lane], messages: list[tuple[int, int, int, bytes]], start: int, piece: int
) -> None:
    prepare(box, start, start)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        lane = kind_of_lane(box, 0, ours.fileno())
        stream = b"".join(struct.pack("=IIII", *m[:3], len(m[3])) + m[3] for m in messages)
        found, echoed = [], b""
        for at in range(0, len(stream), piece):
            theirs.sendall(stream[at : at + piece])
            lane.receive()
            while (frame := lane.frame(LIMIT)) is not None:
                assert isinstance(frame, tuple)
                found.append(frame)
                head = (lane.head + 16 + len(frame[3])) & M32
                lane.reply(*frame, head)
                assert (output_made(box, 0), input_consumed(box, 0)) == (lane.made, head)
                assert lane.send()
                echoed += theirs.recv(REGION_SIZE)
                lane.receive()
        assert found == messages
        assert echoed == stream


def test_a_length_beyond_the_limit_is_told_as_soon_as_the_header_is_there(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    prepare(box, M32 - 7, 0)
    lane = kind(box, 0, pair[0].fileno())
    pair[1].sendall(struct.pack("=IIII", 1, 2, 3, 0xFFFFFFFF)[:15])
    lane.receive()
    assert lane.frame(LIMIT) is None
    pair[1].sendall(b"\xff")
    lane.receive()
    assert lane.frame(LIMIT) == 0xFFFFFFFF


# ---- slots


def test_a_prepared_slot_has_all_positions_zero_whoever_had_it_before(box: Box) -> None:
    first = prepare(box, 123, 456)
    box.words[first + IN_WORD] |= 77
    prepare_slot(box, 0, 99)
    lane = BestLane(box, 0, -1)
    assert (lane.fill, lane.head, lane.made, lane.sent) == (0, 0, 0, 0)
    assert box.words[first + lanes._OWNER] == 99


def test_a_slots_control_words_leave_room_for_all_of_them() -> None:
    assert max(lanes._DONE, lanes._OWNER, lanes._OUT_IOV + 3) < CONTROL_SIZE // 8


def test_lanes_touch_no_slot_but_their_own(
    box: Box, kind: type[Lane], pair: tuple[socket.socket, socket.socket]
) -> None:
    starts = [box.ensure_slot(slot) for slot in range(3)]
    for slot in range(3):
        prepare(box, M32 - 5, M32 - 5, slot)
    for slot in (0, 2):
        box.memory[starts[slot] : starts[slot] + SLOT_SIZE] = b"\xee" * SLOT_SIZE
    lane = kind(box, 1, pair[0].fileno())
    for _ in range(4):
        pair[1].sendall(pattern(0, 5000))
        while lane.receive() > 0:
            pass
        n = (lane.fill - lane.head) & M32
        part = lane.peek(n)
        lane.put(part, lane.made)
        lane.publish(lane.fill, (lane.made + n) & M32)
        assert lane.send()
        assert pair[1].recv(5000) == pattern(0, 5000)
    for slot in (0, 2):
        assert box.memory[starts[slot] : starts[slot] + SLOT_SIZE] == b"\xee" * SLOT_SIZE


def test_there_are_only_so_many_slots(box: Box) -> None:
    with pytest.raises(BoxFull):
        prepare_slot(box, 3, 1)


@pytest.mark.parametrize("compiled", [False, True])
def test_slots_with_something_left_to_do_are_found(
    box: Box, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if compiled and BestLane is Lane:
        pytest.skip("the lanes are not compiled")
    if not compiled:
        monkeypatch.setattr(lanes, "_lanes", None)
    ours, theirs = pair
    for slot in range(3):
        prepare(box, M32 - 1, M32 - 1, slot)
    reading, writing = (Lane(box, slot, ours.fileno()) for slot in (1, 2))
    assert unfinished_slots(box, 3) == []
    theirs.send(b"abc")
    reading.receive()
    writing.put(b"reply", writing.made)
    writing.publish(writing.head, (writing.made + 5) & M32)
    assert unfinished_slots(box, 3) == [1, 2]
    assert [owner_of(box, slot) for slot in (1, 2)] == [2, 3]
    assert unfinished_slots(box, 2) == [1]
    reading.publish((reading.head + 3) & M32, reading.made)
    writing.send()
    assert unfinished_slots(box, 3) == []
