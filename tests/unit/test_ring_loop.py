"""Loop and rings in one process, on a hypervisor of the test's: what guests see when Logic dies before any store it makes.

`World` is State (store, registrar, journal's reader, slots), a Logic that is made anew from a copy of State's store
whenever it "dies", a toolstack on a socket and guests on pages.  Guests look at their page only when they were notified.
"""

import copy
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import Op
from protocol.ring import (
    CONNECTED,
    CONNECTION,
    ERROR,
    ERROR_COMM,
    ERROR_RING_INDEX,
    EVTCHN_PORT,
    M32,
    RECONNECT,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP_CONS,
    RSP_PROD,
)
from protocol.wire import Framer, Message
from recovery_box import journal
from recovery_box.box import NO_REQUEST, PAGE, REGION_SIZE, W_ACTIVE, W_NEWS, W_RING, Box
from recovery_box.items import Connection
from recovery_box.journal import Consumer, Producer
from recovery_box.lanes import _DONE, output_made, prepare_slot
from recovery_box.line import Line
from tests.model.harness import assert_equal
from tests.model.support import examples
from tests.unit.test_registrar import FakeXen
from tests.unit.test_ring_lane import Bytes, Died, Mortal, Words, mortal_box
from xenstore_logic.core import Core
from xenstore_logic.host import XenHost
from xenstore_logic.loop import Loop
from xenstore_logic.requests import ROWS
from xenstore_logic.rings import NEWS_TURN, Rings
from xenstore_state.domains import PRIVILEGED
from xenstore_state.effects import ENDS_DOMAIN
from xenstore_state.records import Applier
from xenstore_state.registrar import Registrar
from xenstore_state.store import Store

PORT: Final = 7
OK: Final = b"OK\0"
QUIET: Final = 3
"""Turns in which nothing is stored before the world counts as settled."""
TURNS: Final = 300
SLOTS: Final = 16


def strings(*parts: bytes) -> bytes:
    """The parts, each followed by a NUL."""
    return b"".join(part + b"\0" for part in parts)


class MortalPage:
    """A mapped page for `RingPage`, whose stores are counted."""

    def __init__(self, mortal: Mortal, page: bytearray, stored: Callable[[int, int], None]) -> None:
        self.mortal, self.page, self.stored = mortal, page, stored

    def cast(self, form: str) -> Any:
        """`RingPage` wants bytes first, and words of those."""
        assert form == "B"
        octets = Bytes(self.mortal, memoryview(self.page))
        octets.cast = lambda form: Words(self.mortal, memoryview(self.page).cast("I"), self.stored)  # type: ignore[attr-defined]
        return octets


class MortalXen(FakeXen):
    """A hypervisor; whoever asks it to do something may die before that happens."""

    def __init__(self) -> None:
        super().__init__()
        self.mortal = Mortal()
        self.dies_in = ""
        """A call before which death comes, once."""
        self.on_store: Callable[[int, int, int], None] = lambda domid, index, value: None
        """Called with domid, index and value before a word of a page is stored."""

    def map_ring(self, domid: int) -> memoryview:
        super().map_ring(domid)
        page = MortalPage(self.mortal, self.mapped[domid], lambda i, v: self.on_store(domid, i, v))
        return cast(memoryview, page)

    def receive(self, into: memoryview) -> None:
        self.may_die("receive")
        super().receive(into)
        self.may_die("received")

    def unmask(self, ports: list[int]) -> None:
        self.may_die("unmask")
        super().unmask(ports)

    def notify(self, port: int) -> None:
        self.may_die("notify")
        super().notify(port)

    def may_die(self, what: str) -> None:
        """Counts as a store."""
        if self.dies_in == what:
            self.dies_in = ""
            raise Died
        if self.mortal.dies():
            raise Died


class World:
    """Everything but a second process."""

    def __init__(self, box: Box) -> None:
        """`box` is used again: it becomes as good as new."""
        self.box = box
        box.memory[:PAGE] = bytes(PAGE)
        box.words[W_ACTIVE] = NO_REQUEST
        self.xen = MortalXen()
        self.mortal = self.xen.mortal
        self.store = Store()
        self.registrar = Registrar(self.store, self.xen, self._allocate, self._free, self._tell)
        self.consumer = Consumer(self.box)
        self.applier = Applier(self.store, lambda connection: output_made(self.box, connection.slot))
        self.most_slots = SLOTS
        self.slots: dict[int, int] = {}
        self.last_id = 0
        self.news: deque[bytes] = deque()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll = select.epoll()
        self.deaths = 0
        self.more_deaths: list[int] = []
        """Stores between one death and the next."""
        self.toolstack = Toolstack(self)
        self.start()

    def close(self) -> None:
        self.toolstack.close()
        self.epoll.close()
        os.close(self.bell)
        self.xen.close()

    # ---- State

    def _allocate(self, domid: int) -> tuple[int, int] | None:
        slot = next((slot for slot in range(self.most_slots) if slot not in self.slots), None)
        if slot is None:
            return None
        self.last_id += 1
        self.slots[slot] = self.last_id
        prepare_slot(self.box, slot, self.last_id)
        return self.last_id, slot

    def _free(self, slot: int) -> None:
        del self.slots[slot]

    def _tell(self, message: bytes) -> None:
        self.news.append(message)
        os.eventfd_write(self.bell, 1)

    def drain(self) -> None:
        """Applies what Logic published; a record that cannot be true fails the test."""
        for body in self.consumer.records():
            record = self.applier.apply(body)
            for connection in self.store.closed:
                self._free(connection.slot)
            self.store.closed.clear()
            if record.kind in ENDS_DOMAIN:
                self.registrar.removed(record.arguments[0])

    # ---- the line, as Logic uses it

    @property
    def hearing_fd(self) -> int:
        """Readable when there is news."""
        return self.bell

    def ask(self, question: bytes) -> bytes:
        """State answers; Logic may die before it asked, and after."""
        self.xen.may_die("ask")
        self.drain()
        reply = self.registrar.answer(question)
        self.xen.may_die("answered")
        return reply

    def hear(self) -> bytes | None:
        """The next news."""
        if not self.news:
            with suppress(BlockingIOError):
                os.eventfd_read(self.bell)
            return None
        return self.news.popleft()

    # ---- Logic

    def start(self) -> None:
        """A new Logic, as `process.run_logic` makes it; it may die of that too."""
        self.drain()
        self.consumer.drop_staged()
        self.xen.before_fork()
        self.news.clear()
        os.eventfd_write(self.bell, 1)
        self.epoll.close()
        self.epoll = select.epoll()
        store = copy.deepcopy(self.store)
        for connection in store.items.connections:
            if connection.socket:
                self.epoll.register(connection.fd, select.EPOLLIN)
        self.box.words[W_NEWS] = int(self.store.domains.untold)
        self.registrar.tell_all()
        box = mortal_box(self.box, self.mortal)
        producer = Producer(box, self.consumer.sequence, self.drain)
        host = XenHost(store, cast(Line, self), self.xen)
        try:
            self.core = Core(store, ROWS, host)
            self.loop = Loop(self.core, box, producer, self.epoll, self.drain)
            self.loop.inherit({c.fd: c for c in store.items.connections if c.socket})
            self.rings = Rings(self.loop, host, box)
            self.rings.listen()
            self.loop.recover(self.applier.last)
            self.loop.flush()
        except Died:
            self.dies()

    def dies(self) -> None:
        """Logic is dead; another one takes its place."""
        self.deaths += 1
        if self.more_deaths:
            self.mortal.dies_at = self.mortal.stores + self.more_deaths.pop()
        self.start()

    def turn(self) -> None:
        """One turn of Logic."""
        try:
            self.loop.turn(0)
        except Died:
            self.dies()

    def settle(self) -> None:
        """Turns until there is nothing more to do; then both stores know the same."""
        quiet = 0
        for _ in range(TURNS):
            before = self.mortal.stores, self.deaths
            self.turn()
            quiet = quiet + 1 if before == (self.mortal.stores, self.deaths) else 0
            if quiet == QUIET:
                break
        else:
            raise AssertionError("the world does not come to rest")
        self.drain()
        assert_equal(self.core.store, self.store)
        assert self.xen.masked == set(), "events that were dealt with may come again"
        assert self.box.words[W_RING] == 0

    # ---- inhabitants

    def guest(self, domid: int, port: int = PORT) -> "Guest":
        """A domain that exists."""
        self.xen.create(domid)
        return Guest(self, domid, port)

    def introduced(self, domid: int, port: int = PORT) -> "Guest":
        """A domain that is served, with a home of its own."""
        guest = self.guest(domid, port)
        assert self.toolstack.does(Op.INTRODUCE, b"%d\0000\000%d\0" % (domid, port)) == OK
        home = b"/local/domain/%d" % domid
        assert self.toolstack.does(Op.WRITE, strings(home)) == OK
        assert self.toolstack.does(Op.SET_PERMS, strings(home, b"n%d" % domid)) == OK
        guest.looks()
        return guest


class Peer:
    """Who sends requests and gets messages."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.framer = Framer()
        self.got: list[Message] = []
        self.last_id = 0

    def encoded(self, *requests: tuple[int, bytes]) -> bytes:
        """Requests with ids of their own."""
        data = b""
        for op, payload in requests:
            self.last_id += 1
            data += Message(op, self.last_id, 0, payload).encode()
        return data

    def take(self) -> list[Message]:
        """What came since the last look."""
        got, self.got = self.got, []
        return got


class Toolstack(Peer):
    """On a socket."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        self.fd = ours.detach()
        given = world._allocate(0)
        assert given is not None
        world.store.connect(Connection(*given, self.fd, 0, True, True))

    def close(self) -> None:
        self.sock.close()
        os.close(self.fd)

    def sends(self, op: int, payload: bytes) -> None:
        """A request; nothing is done about it yet."""
        self.sock.send(self.encoded((op, payload)))

    def looks(self) -> None:
        """Takes what has come."""
        try:
            self.got += self.framer.feed(self.sock.recv(1 << 20))
        except BlockingIOError:
            pass

    def does(self, op: int, payload: bytes) -> bytes:
        """One round trip; events are dropped."""
        self.sends(op, payload)
        self.world.settle()
        self.looks()
        (reply,) = [m for m in self.take() if m.op != Op.WATCH_EVENT]
        assert reply.req_id == self.last_id
        return reply.payload


class Guest(Peer):
    """On a page, at which it looks when it was notified."""

    def __init__(self, world: World, domid: int, port: int) -> None:
        super().__init__(world)
        self.domid, self.port = domid, port
        self.page = world.xen.pages[domid]
        self.words = memoryview(self.page).cast("I")
        self.to_put = b""
        self.notices = 0

    def kicks(self) -> None:
        self.world.xen.kick(self.domid, self.port)

    def sends(self, *requests: tuple[int, bytes]) -> None:
        """Requests; as much as the ring takes now, the rest when the guest is notified."""
        self.to_put += self.encoded(*requests)
        self._puts()

    def _puts(self) -> None:
        producer = self.words[REQ_PROD]
        used = (producer - self.words[REQ_CONS]) & M32
        assert used <= RING_SIZE, "what was taken is not taken any more"
        part, self.to_put = self.to_put[: RING_SIZE - used], self.to_put[RING_SIZE - used :]
        for k, byte in enumerate(part):
            self.page[(producer + k) % RING_SIZE] = byte
        self.words[REQ_PROD] = (producer + len(part)) & M32
        if part:
            self.kicks()

    def _reads(self) -> None:
        consumer = self.words[RSP_CONS]
        count = (self.words[RSP_PROD] - consumer) & M32
        assert count <= RING_SIZE
        self.got += self.framer.feed(bytes(self.page[RING_SIZE + (consumer + k) % RING_SIZE] for k in range(count)))
        self.words[RSP_CONS] = (consumer + count) & M32
        if count:
            self.kicks()

    def notified(self) -> bool:
        """Whether it was, since it asked last."""
        notices = self.world.xen.notified[self.domid, self.port]
        new, self.notices = notices != self.notices, notices
        return new

    def looks(self) -> None:
        """Reads and puts as long as it is notified."""
        while self.notified():
            self._reads()
            self._puts()
            self.world.settle()

    def does(self, *requests: tuple[int, bytes]) -> list[bytes]:
        """Requests in one piece; the replies' payloads."""
        self.sends(*requests)
        self.world.settle()
        self.looks()
        replies = [m for m in self.take() if m.op != Op.WATCH_EVENT]
        assert [m.req_id for m in replies] == list(range(self.last_id - len(requests) + 1, self.last_id + 1))
        return [m.payload for m in replies]


@pytest.fixture(autouse=True)
def journal_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose single stores one can die of."""
    monkeypatch.setattr(journal, "_journal", None)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module."""
    return Box(str(tmp_path_factory.mktemp("loop") / "box"), max_connections=SLOTS)


@pytest.fixture
def world(box: Box) -> Iterator[World]:
    """One with Logic running."""
    made = World(box)
    yield made
    made.close()


# ---- service


def test_a_guest_is_served_over_its_ring(world: World) -> None:
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0value"), (Op.READ, b"a\0"), (Op.READ, b"b\0")) == [OK, b"value", b"ENOENT\0"]
    assert (guest.words[ERROR], guest.words[CONNECTION]) == (0, CONNECTED)


def test_messages_larger_than_the_ring_go_both_ways(world: World) -> None:
    guest = world.introduced(5)
    value = bytes(range(256)) * 7
    assert guest.does((Op.WRITE, b"a\0" + value), *[(Op.READ, b"a\0")] * 10) == [OK, *[value] * 10]


def test_a_guest_is_told_of_what_it_watches(world: World) -> None:
    guest, other = world.introduced(5), world.introduced(6)
    guest.sends((Op.WATCH, b"a\0token\0"))
    world.settle()
    guest.looks()
    guest.take()
    assert world.toolstack.does(Op.WRITE, strings(b"/local/domain/5/a") + b"x") == OK
    guest.looks()
    assert [m.payload for m in guest.take()] == [b"a\0token\0"]
    other.looks()
    assert other.take() == []


# ---- death before any store


def both(world: World) -> list[object]:
    """Two guests and a toolstack do a bit of everything; what they are told."""
    first = world.introduced(5)
    second = world.introduced(6, port=9)
    watched = [(Op.WATCH, b"/local/domain/5\0token\0"), (Op.WATCH, b"@releaseDomain\0t\0")]
    said: list[object] = [second.does(*watched), first.does((Op.TRANSACTION_START, b"\0"))]
    said += [
        world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/5", b"n5", b"r6")),
        world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"token")),
        first.does((Op.WRITE, b"a\0" + bytes(1500)), *[(Op.READ, b"a\0")] * 3, (Op.MKDIR, b"b\0")),
    ]
    second.looks()
    said.append([m.payload for m in second.take()])
    first.words[CONNECTION] = RECONNECT
    first.kicks()
    world.settle()
    assert first.words[CONNECTION] == CONNECTED
    first.framer, first.to_put = Framer(), b""
    first.looks()
    said.append(first.does((Op.WRITE, b"c\0again"), (Op.RM, b"b\0"), (Op.DIRECTORY, b"/local/domain/5\0")))
    second.looks()
    second.take()
    world.xen.destroy(5)
    world.xen.virq()
    world.settle()
    second.looks()
    world.toolstack.looks()
    said.append([m.payload for m in second.take()])
    said.append([m.payload for m in world.toolstack.take()])
    said.append(second.does((Op.READ, b"/local/domain/5\0"), (Op.WRITE, b"x\0y"), (Op.READ, b"x\0")))
    said.append((world.toolstack.does(Op.RELEASE, b"6\0"), dict(world.xen.bound), len(world.slots)))
    return said


def slow_reader(world: World) -> list[object]:
    """A guest that puts more requests than may be outstanding, in parts, and reads late; another one goes on."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    said: list[object] = [guest.does((Op.WRITE, b"a\0" + bytes(range(200))))]
    guest.sends(*[(Op.READ, b"a\0")] * 60)
    for _ in range(5):
        world.settle()
        guest._puts()
    said.append(other.does((Op.WRITE, b"a\0b"), (Op.READ, b"a\0")))
    guest.notices = -1
    guest.looks()
    said.append([(m.req_id, m.payload) for m in guest.take()])
    return said


def shutdowns(world: World) -> list[object]:
    """Two domains shut down at once; who watches releases plainly is told once, who watches in depth of each."""
    for domid in (5, 6):
        world.introduced(domid)
    world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"plain"))
    world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"deep", b"1"))
    for domid in (5, 6):
        world.xen.shut_down(domid)
    world.xen.virq()
    world.settle()
    world.toolstack.looks()
    return [[m.payload for m in world.toolstack.take()]]


def taken_over(world: World) -> list[object]:
    """A domain that was there before the daemon, in the middle of a request, goes on over the ring it has."""
    guest = world.guest(5)
    data = guest.encoded((Op.WRITE, b"/local\0x"), (Op.READ, b"/tool\0"), (Op.GET_DOMAIN_PATH, b"5\0"))
    start = M32 - 20
    guest.words[REQ_CONS] = guest.words[REQ_PROD] = guest.words[RSP_CONS] = guest.words[RSP_PROD] = start
    guest.words[EVTCHN_PORT] = PORT
    guest.to_put = data[:30]
    guest._puts()
    world.registrar.begin()
    world.dies()
    world.settle()
    guest.to_put += data[30:]
    guest._puts()
    world.settle()
    guest.looks()
    return [[(m.op, m.payload) for m in guest.take()], guest.words[REQ_CONS], list(world.xen.bound.values())]


def itself(world: World) -> list[object]:
    """Domain 0 introduces itself anew, over the ring that this ends: the answer comes over the new one."""
    dom0 = Guest(world, PRIVILEGED, 2)
    said: list[object] = [world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0")]
    dom0.looks()
    for _ in range(2):
        dom0.sends((Op.INTRODUCE, b"0\0000\0002\0"))
        world.settle()
        dom0.looks()
        (answer,) = dom0.take()
        said.append((answer.req_id == dom0.last_id, answer.payload))
    said.append(dom0.does((Op.WRITE, b"/a\0b"), (Op.READ, b"/a\0")))
    return said


SCENARIOS: Final = [both, slow_reader, shutdowns, taken_over, itself]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_death_before_each_single_store_is_not_noticed(box: Box, scenario: Callable[[World], list[object]]) -> None:
    """One run without death is counted; then there is one run for each of its stores."""
    world = World(box)
    expected = scenario(world)
    stores, deaths = world.mortal.stores, world.deaths
    world.close()
    assert stores > 80
    for n in range(stores):
        world = World(box)
        world.mortal.dies_at = n
        said = scenario(world)
        assert world.deaths == deaths + 1
        assert said == expected, f"death after {n} stores"
        world.close()


@examples(40)
@given(st.sampled_from(SCENARIOS), st.lists(st.integers(0, 120), max_size=30))
def test_death_upon_death_is_not_noticed(
    box: Box, scenario: Callable[[World], list[object]], deaths: list[int]
) -> None:
    world = World(box)
    expected = scenario(world)
    world.close()
    world = World(box)
    world.more_deaths = deaths
    world.dies()
    assert scenario(world) == expected
    world.close()


# ---- death at certain points


def test_events_that_a_dead_logic_had_taken_are_unmasked_although_others_come_meanwhile(world: World) -> None:
    first, second = world.introduced(5), world.introduced(6, port=9)
    first.sends((Op.READ, b"a\0"))
    world.xen.dies_in = "unmask"
    world.turn()
    assert world.deaths == 1
    second.sends((Op.READ, b"a\0"))
    world.settle()
    for guest in (first, second):
        guest.looks()
        assert len(guest.take()) == 1
        assert guest.does((Op.WRITE, b"a\0b")) == [OK]


@pytest.mark.parametrize("port", [PORT, 8], ids=["the same port", "another port"])
def test_death_in_the_middle_of_a_second_introduction_ends_in_a_fresh_connection(world: World, port: int) -> None:
    """The event channel of the connection that is to end may be gone already; there is output for it."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    guest.does((Op.WRITE, b"a\0" + bytes(500)))
    guest.sends(*[(Op.READ, b"a\0")] * 6)
    world.settle()
    world.xen.dies_in = "answered"
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\000%d\0" % port) == OK
    assert world.deaths == 1
    assert sorted(world.xen.bound.values()) == [(5, port), (6, 9)]
    assert other.does((Op.READ, b"a\0")) == [b"ENOENT\0"]
    again = Guest(world, 5, port)
    assert again.does((Op.READ, b"a\0")) == [bytes(500)]


def test_an_introduction_with_a_port_that_cannot_be_bound_harms_nobody(world: World) -> None:
    world.introduced(5)
    other = world.introduced(6, port=9)
    world.xen.unbindable.add(8)
    world.toolstack.does(Op.INTRODUCE, b"5\0000\0008\0")
    assert world.deaths == 0
    assert other.does((Op.WRITE, b"a\0b")) == [OK]
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert Guest(world, 5, PORT).does((Op.WRITE, b"a\0b")) == [OK]


def test_positions_that_cannot_be_true_end_one_ring_and_no_other(world: World) -> None:
    """Whoever died had gone mad."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    ring = world.store.domains.known.find(5).connection
    assert ring is not None
    world.box.words[world.box.slot_word(ring.slot) + _DONE] += (REGION_SIZE + 1) << 32
    world.dies()
    world.settle()
    assert guest.words[ERROR] == ERROR_COMM
    assert guest.words[CONNECTION] == CONNECTED
    assert other.does((Op.WRITE, b"a\0b")) == [OK]


# ---- news that comes too late


def test_the_end_of_a_domain_is_not_taken_for_that_of_the_next_one_of_its_number(world: World) -> None:
    """State tells that 5 is gone; before Logic hears of it, another 5 is introduced."""
    world.introduced(5)
    world.xen.destroy(5)
    world.registrar.scan()
    world.xen.create(5)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"T\0"
    assert Guest(world, 5, PORT).does((Op.READ, b"/tool\0")) != []


def test_the_shutdown_of_a_domain_is_not_taken_for_that_of_the_next_one_of_its_number(world: World) -> None:
    world.introduced(5)
    world.xen.shut_down(5)
    world.registrar.scan()
    world.xen.create(5)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert not world.store.domains.known.find(5).shutdown


def test_a_page_is_not_taken_for_that_of_the_next_domain_of_its_number(world: World) -> None:
    """The first one could not be introduced for want of room."""
    world.xen.create(5)
    world.most_slots = len(world.slots)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == b"ENOMEM\0"
    world.most_slots = SLOTS
    world.xen.destroy(5)
    world.xen.virq()
    world.settle()
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0b")) == [OK]


# ---- guests that keep no rules


def test_a_guest_that_asks_for_a_fresh_connection_all_the_time_is_alone_with_that(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guest, other = world.introduced(5), world.introduced(6, port=9)

    def ask_again(domid: int, index: int, value: int) -> None:
        if domid == 5 and index != CONNECTION:
            guest.words[CONNECTION] = RECONNECT

    world.xen.on_store = ask_again
    guest.words[CONNECTION] = RECONNECT
    guest.kicks()
    before = world.last_id
    for _ in range(100):
        world.turn()
        time.sleep(0.001)
    assert 1 < world.last_id - before < 50
    assert caplog.text.count("connects anew") == 1, "the log is not a guest's to fill"
    assert other.does((Op.WRITE, b"a\0b")) == [OK]
    assert len(world.slots) == 3


@pytest.mark.parametrize("ahead", [RING_SIZE + 1, -1, 1 << 31])
@pytest.mark.parametrize("index", [REQ_PROD, RSP_CONS], ids=["requests", "responses"])
def test_an_index_that_cannot_be_is_an_error_wherever_logic_is(world: World, index: int, ahead: int) -> None:
    for dead in (False, True):
        guest, other = world.introduced(5), world.introduced(6, port=9)
        guest.does((Op.WATCH, b"a\0token\0"))
        guest.words[index] = (guest.words[index] + (ahead if index == REQ_PROD else -ahead)) & M32
        if dead:
            world.dies()
        guest.kicks()
        world.toolstack.does(Op.WRITE, b"/local/domain/5/a\0")  # only who is given something shows how far it has read
        assert guest.words[ERROR] == ERROR_RING_INDEX
        assert other.does((Op.READ, b"a\0")) == [b"ENOENT\0"]
        for domid in (b"5\0", b"6\0"):
            assert world.toolstack.does(Op.RELEASE, domid) == OK


OVERWRITES = st.lists(st.tuples(st.sampled_from([REQ_CONS, RSP_PROD]), st.integers(0, M32)), min_size=1)


@examples(60)
@given(OVERWRITES, st.booleans(), st.booleans())
def test_the_daemons_own_indices_overwritten_while_nobody_lives_are_an_error_as_at_any_other_time(
    box: Box, writes: list[tuple[int, int]], busy: bool, first: bool
) -> None:
    """Nobody is to see by what becomes of a guest that misbehaves whether Logic has been another one since."""
    world = World(box)
    guest, other = world.introduced(5), world.introduced(6)
    assert guest.does((Op.WRITE, b"a\0" + bytes(700))) == [OK]
    if busy:
        guest.sends(*[(Op.READ, b"a\0")] * 3)
        world.settle()
    before = bytes(guest.page)
    for index, value in writes:
        guest.words[index] = value
    forged = bytes(guest.page) != before
    world.dies()
    if not first:
        other.kicks()
        world.settle()
        world.dies()  # one that has looked at another ring only
    guest.kicks()
    world.settle()
    assert guest.words[ERROR] == (ERROR_RING_INDEX if forged else 0)
    if not forged:
        guest.notices = -1
        guest.looks()
        assert [m.payload for m in guest.take()] == ([bytes(700)] * 3 if busy else [])
        assert guest.does((Op.READ, b"a\0")) == [bytes(700)]
    assert other.does((Op.GET_DOMAIN_PATH, b"7\0")) == [b"/local/domain/7\0"]
    world.close()


@examples(60)
@given(OVERWRITES, st.booleans())
def test_indices_that_a_logic_was_storing_when_it_died_are_stored_again_whatever_they_are(
    box: Box, writes: list[tuple[int, int]], busy: bool
) -> None:
    world = World(box)
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0" + bytes(700))) == [OK]
    if busy:
        guest.sends(*[(Op.READ, b"a\0")] * 3)
        world.settle()
    for index, value in writes:
        guest.words[index] = value
    ring = world.store.domains.known.find(5).connection
    assert ring is not None
    world.box.words[W_RING] = ring.slot + 1
    world.dies()
    world.settle()
    guest.notices = -1
    guest.looks()
    assert [m.payload for m in guest.take()] == ([bytes(700)] * 3 if busy else [])
    assert guest.does((Op.READ, b"a\0")) == [bytes(700)]
    assert guest.words[ERROR] == 0
    world.close()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_reconnection_that_must_wait_is_made_by_the_next_logic(world: World, turns: int) -> None:
    guest = world.introduced(5)
    for _ in range(2):
        assert guest.words[CONNECTION] == 0
        guest.words[CONNECTION] = 1
        guest.kicks()
        world.turn()
    assert guest.words[CONNECTION] == 1, "that was too soon"
    for _ in range(turns):
        world.turn()
    world.dies()
    world.settle()
    assert guest.words[CONNECTION] == 0
    guest.notified()
    assert guest.does((Op.GET_DOMAIN_PATH, b"7\0")) == [b"/local/domain/7\0"]


@pytest.mark.parametrize("dies", [False, True])
def test_a_request_put_while_others_are_given_back_is_taken_by_whoever_is_logic_then(world: World, dies: bool) -> None:
    """A guest that finds its requests not taken yet sends no event for one more."""
    guest = world.introduced(5)
    first, second = ((Op.GET_DOMAIN_PATH, b"%d\0" % number) for number in (7, 8))
    guest.sends(first)
    one_more = guest.encoded(second)

    def put_one_more(domid: int, index: int, value: int) -> None:
        if index == REQ_CONS:
            world.xen.on_store = lambda domid, index, value: None
            producer = guest.words[REQ_PROD]
            for k, byte in enumerate(one_more):
                guest.page[(producer + k) % RING_SIZE] = byte
            guest.words[REQ_PROD] = (producer + len(one_more)) & M32

    world.xen.on_store = put_one_more
    while world.xen.on_store == put_one_more:
        world.turn()
    if dies:
        world.dies()
    world.settle()
    assert guest.words[REQ_CONS] == guest.words[REQ_PROD], "not all is taken"
    guest.looks()
    assert [m.payload for m in guest.take()] == [b"/local/domain/7\0", b"/local/domain/8\0"]


@pytest.mark.parametrize("dies", [False, True])
def test_an_event_that_waits_for_a_socket_is_not_queued_again_by_the_next_logic_either(
    world: World, dies: bool
) -> None:
    writer = Guest(world, PRIVILEGED, 2)
    assert world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0") == OK
    writer.looks()
    home = b"/local/domain/0/"
    for name, token in ((b"fill", b"T" * 3900), (b"x", b"t"), (b"y", b"t")):
        assert world.toolstack.does(Op.WATCH, home + name + b"\0" + token + b"\0") == OK
    filling = 100  # more than the socket takes
    for number in range(filling):
        assert writer.does((Op.WRITE, b"fill/%d\0" % number)) == [OK]
    for number in range(7):
        if dies:
            world.dies()
        assert writer.does((Op.WRITE, b"xy"[number % 2 : number % 2 + 1] + b"\0%d" % number)) == [OK]
    got: list[bytes] = []
    while True:
        world.settle()
        world.toolstack.looks()
        messages = world.toolstack.take()
        if not messages:
            break
        got += [message.payload.partition(b"\0")[0] for message in messages]
    assert got == [*(home + b"fill/%d" % number for number in range(filling)), home + b"x", home + b"y"]


@pytest.mark.parametrize("where", ["received", "ask", "answered", "unmask"])
def test_a_domains_end_is_dealt_with_before_the_first_request_whoever_heard_of_it(world: World, where: str) -> None:
    world.introduced(5)
    world.xen.destroy(5)
    world.xen.virq()
    world.xen.dies_in = where
    world.turn()
    assert world.deaths == 1
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"


def test_of_many_ends_those_that_the_last_logic_had_not_come_to_are_dealt_with_before_the_first_request(
    world: World,
) -> None:
    domids = range(5, 5 + NEWS_TURN + 2)
    for domid in domids:
        world.introduced(domid)
    for domid in domids:
        world.xen.destroy(domid)
    world.xen.virq()
    world.turn()
    assert len([d for d in world.core.store.domains.known if d.domid in domids]) == 2
    world.dies()
    for domid in reversed(domids):
        world.toolstack.sends(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)
    world.turn()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [b"F\0"] * len(domids)


def test_a_ring_with_an_error_is_left_alone_and_an_introduction_revives_it(world: World) -> None:
    guest = world.introduced(5)
    guest.words[REQ_PROD] += RING_SIZE + 1
    guest.kicks()
    for _ in range(2):
        world.settle()
        assert guest.words[ERROR] == ERROR_RING_INDEX
        before = bytes(guest.page)
        guest.kicks()
        world.settle()
        assert bytes(guest.page) == before
        world.dies()
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    guest.looks()
    assert guest.words[ERROR] == 0
    assert guest.does((Op.WRITE, b"a\0b"), (Op.READ, b"a\0")) == [OK, b"b"]


def test_requests_whose_events_others_do_not_read_stay_outstanding_when_logic_dies(world: World) -> None:
    busy, deaf = world.introduced(5), world.introduced(6, port=9)
    assert world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/5", b"n5", b"r6")) == OK
    deaf.sends((Op.WATCH, strings(b"/local/domain/5", b"t" * 900)))  # one such event fills its ring
    world.settle()
    for round_ in range(3):
        busy.sends(*[(Op.WRITE, b"n%d-%d\0" % (round_, k)) for k in range(15)])
        world.settle()
        busy.looks()
        assert world.toolstack.does(Op.WRITE, b"/tool\0") == OK  # the last record is not about them
        world.dies()
        world.settle()
        busy.looks()
    made = world.toolstack.does(Op.DIRECTORY, b"/local/domain/5\0").count(b"\0")
    assert made == 1 + world.store.domains.quotas["outstanding"]  # the first event is on its way


def test_replies_that_a_guest_has_not_read_stay_outstanding_when_logic_dies(world: World) -> None:
    guest = world.introduced(5)
    guest.does((Op.WRITE, b"a\0" + bytes(60)))
    before = guest.words[REQ_CONS]
    guest.sends(*[(Op.READ, b"a\0")] * 50)
    for _ in range(3):
        world.settle()
        assert world.toolstack.does(Op.WRITE, b"/tool\0") == OK  # the last record is not about it
        world.dies()
    world.settle()
    answered = (guest.words[REQ_CONS] - before) // len(guest.encoded((Op.READ, b"a\0")))
    guest.last_id -= 1
    assert answered == world.store.domains.quotas["outstanding"] + 13  # that many replies are in its ring
    guest.notices = -1
    guest.looks()
    assert [m.req_id for m in guest.take()] == list(range(guest.last_id - 49, guest.last_id + 1))


def test_an_event_that_waits_is_not_queued_again_when_logic_dies(world: World) -> None:
    deaf = world.introduced(5)
    deaf.sends((Op.WATCH, strings(b"a", b"t" * 900)))  # its first event fills the ring
    world.settle()
    for _ in range(3):
        assert world.toolstack.does(Op.WRITE, b"/local/domain/5/a\0") == OK
        world.dies()
    world.settle()
    deaf.looks()
    assert len(deaf.take()) == 3  # the reply, the first event, and one for all writes


# ---- connections that end while others are being dealt with


def test_a_ring_may_release_a_domain_whose_ring_is_to_be_looked_at_next(world: World) -> None:
    """Both were introduced in this turn, and domain 0 is quick."""
    world.guest(5)
    dom0 = Guest(world, PRIVILEGED, 2)

    def releases(domid: int, index: int, value: int) -> None:
        if domid == PRIVILEGED and index == CONNECTION:
            dom0.sends((Op.RELEASE, b"5\0"))

    world.xen.on_store = releases
    introductions = (Op.INTRODUCE, b"0\0000\0002\0"), (Op.INTRODUCE, b"5\0000\0007\0")
    world.toolstack.sock.send(world.toolstack.encoded(*introductions))
    world.settle()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [OK, OK]
    dom0.looks()
    assert [m.payload for m in dom0.take()] == [OK]
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"


def test_a_ring_that_ended_in_the_same_turn_has_no_requests(world: World) -> None:
    world.introduced(5)
    ring = world.core.store.domains.known.find(5).connection
    assert ring is not None
    channel = world.loop.channel(ring)
    assert world.toolstack.does(Op.RELEASE, b"5\0") == OK
    assert not world.rings.has_requests(channel)


def test_rings_that_a_dead_logic_left_half_done_may_end_each_other(world: World) -> None:
    """Domain 0's ring was being written when Logic died, and what stands in it releases another such ring's domain."""
    world.guest(5)
    dom0 = Guest(world, PRIVILEGED, 2)
    assert world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0") == OK
    dom0.looks()
    world.toolstack.sends(Op.INTRODUCE, b"5\0000\0007\0")
    world.xen.on_store = lambda domid, index, value: dies_if(domid == 5)

    def dies_if(now: bool) -> None:
        if now:
            world.xen.on_store = lambda domid, index, value: None
            dom0.sends((Op.RELEASE, b"5\0"))
            ring = world.store.domains.known.find(PRIVILEGED).connection
            assert ring is not None
            world.box.words[W_RING] = ring.slot + 1
            raise Died

    world.settle()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [OK]
    dom0.looks()
    assert [m.payload for m in dom0.take()] == [OK]
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"
