"""Loop and rings in one process, on a hypervisor of the test's, for tests in which Logic dies before any store that it makes.

`World` is State (store, registrar, journal's reader, slots), a Logic that is made anew from a copy of State's store
whenever it "dies", a toolstack on a socket and guests on pages.  Guests look at their page only when they were notified.
"""

import copy
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from protocol.ops import Op
from protocol.ring import (
    M32,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP_CONS,
    RSP_PROD,
)
from protocol.wire import Framer, Message
from recovery_box.box import NO_REQUEST, PAGE, W_ACTIVE, W_NEWS, W_RING, Box
from recovery_box.items import Connection
from recovery_box.journal import Consumer, Producer
from recovery_box.lanes import output_made, prepare_slot
from recovery_box.line import Line
from tests.model.harness import assert_equal
from tests.unit.test_registrar import FakeXen
from tests.unit.test_ring_lane import Bytes, Died, Mortal, Words, mortal_box
from xenstore_logic.core import Core
from xenstore_logic.host import XenHost
from xenstore_logic.loop import Loop
from xenstore_logic.requests import ROWS
from xenstore_logic.rings import Rings
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
