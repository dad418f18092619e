"""What is fuzzed: each target takes bytes, does with them what an attacker would, and checks what must hold whatever they are.

Not only that nothing is raised: one reply a request, errors of the protocol only, bounded memory, State agreeing with Logic,
nothing of a refused record in the tree.  A target raises AssertionError (or whatever the daemon raised) when it fails.
`TARGETS` is the table; where inputs come from is the business of `corpus` and `__main__`.
"""

import struct
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from typing import Any, Final, cast

from protocol.errors import ERROR_NAMES
from protocol.ring import M32, PAGE_SIZE, RingIndexError, RingPage
from protocol.wire import HEADER, HEADER_SIZE, MESSAGE_MAX, PAYLOAD_MAX, Framer, FramingViolation
from recovery_box.box import JOURNAL_SIZE, PAGE, REGION_SIZE, SLOT_SIZE, W_HEAD, Box
from recovery_box.items import Connection
from recovery_box.journal import Consumer, JournalCorrupt
from recovery_box.lanes import prepare_slot
from recovery_box.ringlane import RingLane
from tests.model.harness import InProcess, assert_equal, fields
from tests.model.reference import ERROR, EVENT
from tests.oracle.daemons import short_run_dir
from xenstore_state.effects import Diverged
from xenstore_state.records import Applier, BadRecord, decode, encode
from xenstore_state.store import Store
from xenstore_state.tree import walk
from xenstored.options import OptionError, parse

ERRORS: Final = frozenset(name.encode() + b"\0" for name in ERROR_NAMES)


class Input:
    """Bytes that are taken from the front; zeros when they have run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "little")

    def word(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def piece(self) -> bytes:
        """As many bytes as the next byte says."""
        return self.take(self.byte())


# ---- the framer


def framer(data: bytes) -> None:
    """A byte stream in pieces of any size: what comes out is what stands in it, and no more than a message is held."""
    source = Input(data)
    sizes = source.piece() or b"\xff"
    stream = data[source.at :]
    wanted, broken, at = [], False, 0
    while len(stream) - at >= HEADER_SIZE:
        op, req_id, tx_id, length = HEADER.unpack_from(stream, at)
        if length > PAYLOAD_MAX:
            broken = True
            break
        end = at + HEADER_SIZE + length
        if end > len(stream):
            break
        wanted.append((op, req_id, tx_id, stream[at + HEADER_SIZE : end]))
        at = end
    under_test, found, violated, turn = Framer(), [], False, 0
    while stream and not violated:
        size = sizes[turn % len(sizes)] + 1
        piece, stream = stream[:size], stream[size:]
        turn += 1
        try:
            for message in under_test.feed(piece):
                found.append(tuple(message))
        except FramingViolation:
            violated = True
        assert len(under_test.pending) < MESSAGE_MAX
    assert (found, violated) == (wanted, broken)


# ---- requests


def requests(data: bytes) -> None:
    """Requests of a toolstack and two guests, any operation with any payload, pipelined and in pieces."""
    world, source = InProcess((5, 6)), Input(data)
    second = world.connect()
    for path in (b"/a", b"/a/b", b"/local/domain/5/x"):
        world.ask(1, 11, 0, path + b"\0v")
    world.ask(1, 14, 0, b"/a\0b5\0r6\0")
    for number in (1, 2, 3, second):
        world.ask(number, 4, 0, b"/a\0t\0")
        world.ask(number, 6, 0, b"\0")
    while source:
        number = (1, 2, 3, second)[source.byte() & 3]
        if number not in world.model.connections or world.store.store.connection(number) is None:
            continue  # it was released, or has broken its stream
        op, tx_id = source.byte(), source.byte() & 3
        request(world, number, op if op < 64 else source.word(), tx_id, source.piece())
    assert_equal(world.store.store, world.twin)


def request(world: InProcess, number: int, op: int, tx_id: int, payload: bytes) -> None:
    """One of them.  (Not judged by the model: it may be anything.)"""
    said = world.send(number, HEADER.pack(op, 9, tx_id, len(payload)) + payload)
    replies = [m for m in said.get(number, []) if m[0] != EVENT]
    assert [(m[1], m[2]) for m in replies] == [(9, tx_id)], f"one reply, not {replies}"
    assert replies[0][0] in {op, ERROR}
    if replies[0][0] == ERROR and op != ERROR:
        assert replies[0][3] in ERRORS, replies[0]
    for heard in said.values():
        assert all(len(m[3]) <= PAYLOAD_MAX for m in heard)


# ---- the ring page


class HostileWords:
    """The page's words, which the guest changes whenever the daemon looks at them, as the input says."""

    def __init__(self, real: "memoryview[int]", source: Input) -> None:
        self.real, self.source = real, source

    def __getitem__(self, index: int) -> int:
        what = self.source.byte()
        if what & 3 == 1:
            self.real[index] = (self.real[index] + self.source.byte()) & M32
        elif what & 3 == 2:
            self.real[self.source.byte() & 7 | 512] = self.source.word()
        return self.real[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.real[index] = value

    def release(self) -> None:
        self.real.release()


@cache
def box() -> Box:
    """A box of this process; the memory is made anew by whoever uses it."""
    with short_run_dir() as folder:
        return Box(str(folder / "box"), 4)


def ring(data: bytes) -> None:
    """A guest that writes all over its page, also between two looks at the same word.

    The daemon says `RingIndexError` or goes on; what it has taken does not change under it, and it touches nothing but this
    ring's slot.
    """
    source, shared = Input(data), box()
    prepare_slot(shared, 0, 1)
    shared.ensure_slot(1)
    beyond = shared.ensure_slot(1)
    canary = shared.memory[beyond : beyond + SLOT_SIZE]
    buffer = bytearray(PAGE_SIZE)
    page = RingPage(memoryview(buffer), None)
    page.words = cast("memoryview[int]", HostileWords(page.words, source))
    lane = RingLane(shared, 0)
    lane.begin(source.word(), source.word())
    lane.attach(page)
    stream, framing = bytearray(), Framer()
    try:
        while source:
            what = source.byte()
            if what & 7 < 2:
                put = source.piece()
                where = source.word() % PAGE_SIZE
                buffer[where : where + len(put)] = put[: PAGE_SIZE - where]
            elif what & 7 < 5:
                before = lane.fill
                count = lane.receive()
                assert (lane.fill - before) & M32 == max(count, 0)
                assert (lane.fill - lane.head) & M32 <= REGION_SIZE
                stream += region(shared, lane.in_offset, before, max(count, 0))
                assert bytes(stream) == region(shared, lane.in_offset, lane.head, len(stream)), "it changed"
            elif what & 7 == 5:
                for _ in framing.feed(bytes(stream)):
                    pass
                lane.head = lane.fill
                stream.clear()
                lane.release(waiting=bool(what & 8))
            elif what & 7 == 6 and (lane.made - lane.sent) & M32 < REGION_SIZE - 64:
                put_output(shared, lane, source.piece()[:64])
            else:
                sent, made = lane.sent, lane.made
                lane.send()
                assert (lane.sent - sent) & M32 <= (made - sent) & M32
    except (RingIndexError, FramingViolation):
        pass  # the ring is ignored from here on
    assert len(buffer) == PAGE_SIZE
    assert shared.memory[beyond : beyond + SLOT_SIZE] == canary


def region(shared: Box, offset: int, position: int, count: int) -> bytes:
    """Bytes of a region from a stream position on."""
    return bytes(shared.memory[offset + ((position + i) & REGION_SIZE - 1)] for i in range(count))


def put_output(shared: Box, lane: RingLane, data: bytes) -> None:
    """As the loop does it."""
    for i, each in enumerate(data):
        shared.memory[lane.out_offset + ((lane.made + i) & REGION_SIZE - 1)] = each
    lane.made = (lane.made + len(data)) & M32


# ---- records


def small_store() -> Store:
    """Two connections, some nodes, a watch, a transaction."""
    store = Store()
    store.domains.learn(5, 5).introduced = True
    store.connect(Connection(1, -1, -1, 0, True, True))
    store.connect(Connection(2, -1, -1, 5, False, False))
    applier = Applier(store, lambda connection: 0)
    for kind, arguments in (
        (4, (0, b"/a/b", b"v")),
        (7, (0, b"/a", ((3, 5), (1, 0)))),
        (11, (b"/a", b"t", -1, 0)),
        (8, (1,)),
    ):
        by = 2 if kind in {8, 11} else 1
        generation = store.tree.generation + {4: 2, 7: 1}.get(kind, 0)
        applier.apply(encode((by, 0, kind, arguments, "", generation, ())))
    return store


VALUES: Final[tuple[Any, ...]] = (
    0,
    1,
    2,
    -1,
    M32,
    1 << 63,
    b"",
    b"/a",
    b"/a/b",
    b"/c",
    b"@x",
    b"//",
    "nodes",
    "EACCES",
    "",
    (),
)


def records(data: bytes) -> None:
    """Records as State takes them: bytes that are none, and well-formed ones of which nothing is true.

    `BadRecord` (or `Diverged`, of a wrong digest) and the tree as it was, or the record is one that could have been.
    """
    source = Input(data)
    store = small_store()
    applier = Applier(store, lambda connection: 0)
    while source:
        body = source.piece() if source.byte() & 1 else encode(made_up(source, store))
        before = contents(store)
        try:
            record = applier.apply(body)
        except (BadRecord, Diverged):
            assert contents(store) == before, f"of a refused record something is in the tree: {body!r}"
            return  # State reads no further
        assert decode(body) == record
        assert store.tree.generation == record.generation
        assert sum(store.tree.owned.values()) == sum(1 for _ in walk(store.tree.root))


def contents(store: Store) -> object:
    """Everything there is to the tree but its generation, which only ever grows."""
    return [fields(node) for node in walk(store.tree.root)], dict(store.tree.owned), dict(store.tree.memory)


def made_up(source: Input, store: Store) -> tuple[Any, ...]:
    """A record with the right types in most places."""
    kind = source.byte() % 36
    count = source.byte() % 5
    arguments = tuple(value(source) for _ in range(count))
    outcome = ("", "", "", "EACCES", "ENOENT", "EAGAIN")[source.byte() % 6]
    generation = store.tree.generation + source.byte() % 4
    outputs: tuple[Any, ...] = ()
    if source.byte() % 4 == 0:
        outputs = ((source.byte() % 4, source.word(), source.piece(), bool(source.byte() & 1), value(source)),)
    return source.byte() % 4, source.word(), kind, arguments, outcome, generation, outputs


def value(source: Input) -> Any:
    """Something an argument may be."""
    what = source.byte()
    if what < 200:
        return VALUES[what % len(VALUES)]
    return ((source.byte() & 19, source.word()),) if what < 220 else source.piece()


def journal(data: bytes) -> None:
    """A journal full of what a broken Logic may have left: `JournalCorrupt`, or records with a true checksum, and an end."""
    source, shared = Input(data), box()
    shared.words[W_HEAD] = 0
    shared.words[16] = 0
    body = data[9:]
    shared.memory[PAGE : PAGE + len(body)] = body
    shared.memory[PAGE + len(body) : PAGE + len(body) + 64] = bytes(64)
    shared.words[W_HEAD] = struct.unpack("<Q", source.take(8).ljust(8, b"\0"))[0]
    consumer = Consumer(shared)
    read = 0
    try:
        for record in consumer.records():
            read += 16 + len(record)
            assert read <= JOURNAL_SIZE
    except JournalCorrupt:
        consumer.discard()
        assert consumer.empty
    shared.memory[PAGE : PAGE + len(body) + 64] = bytes(len(body) + 64)


# ---- the command line


def options(data: bytes) -> None:
    """A command line and an environment: options, or `OptionError` in a line that one can read."""
    words = data.decode("latin-1").replace("\0", "\n").split("\n")
    environment = {"XENSTORED_RUNDIR": words[0]} if words[0] else {}
    out = StringIO()
    with redirect_stdout(out), suppress(OptionError, SystemExit):
        found = parse(words[1:], environment)
        assert all(0 <= number < 1 << 32 for number in found.quotas.values())
        assert found.socket.startswith("/")
    assert not out.getvalue() or "usage" in out.getvalue()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "framer": framer,
    "requests": requests,
    "ring": ring,
    "records": records,
    "journal": journal,
    "options": options,
}
