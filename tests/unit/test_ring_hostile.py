"""A guest that does whatever it likes with its page, at any moment, in one process with loop, rings and State.

`World` is that of `ring_world`.  Random programs: the hostile guest moves indices, writes bytes and half messages, asks
for fresh connections, also between any two stores that the daemon makes to its page; meanwhile Logic dies, the toolstack
introduces and releases, domains end and come back.  Logic must never raise, both stores must stay equal, and another guest
and the toolstack must get every answer.
"""

import random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import Op
from protocol.ring import CONNECTION, M32, REQ_PROD, RING_SIZE, RSP_CONS
from protocol.wire import Message
from recovery_box.box import Box
from tests.model.support import examples
from tests.unit.ring_world import OK, SLOTS, Guest, World, strings
from xenstore_state.domains import PRIVILEGED

HOSTILE: Final = 5
POLITE: Final = 6
WORDS: Final = range(512, 520)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module."""
    return Box(str(tmp_path_factory.mktemp("hostile") / "box"), max_connections=SLOTS)


class Play:
    """One run."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.hostile = world.introduced(HOSTILE)
        self.polite = world.introduced(POLITE, port=9)
        self.meddling = 0
        """How many stores to its page the hostile guest still answers with one of its own."""
        self.count = 0
        self.dom0 = Guest(world, PRIVILEGED, 2)
        self.dom0_waits = False
        """It is to get a fresh connection, and has not got it yet."""
        assert world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0") == OK
        world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/6", b"n6", b"r5"))
        world.xen.on_store = self._meddle

    def _meddle(self, domid: int, index: int, value: int) -> None:
        if domid == PRIVILEGED and index == CONNECTION and self.dom0_waits:
            self.dom0_waits = False
            self.dom0_says_so()  # it is quick
        if domid == HOSTILE and self.meddling:
            self.meddling -= 1
            self.poke()

    # ---- what the hostile guest does

    def poke(self) -> None:
        """Stores something in a word of its page."""
        words, rng = self.hostile.words, self.rng
        index = rng.choice(WORDS)
        near = words[rng.choice((REQ_PROD, RSP_CONS, index))] + rng.choice(
            (-17, -1, 0, 1, 16, RING_SIZE, RING_SIZE + 1)
        )
        words[index] = rng.choice((near, rng.getrandbits(32), 0, 1)) & M32

    def request(self) -> None:
        """Puts something like a request where its ring says, whole or not."""
        rng, words, page = self.rng, self.hostile.words, self.hostile.page
        op = rng.choice((Op.READ, Op.WRITE, Op.WATCH, Op.RM, Op.TRANSACTION_START, Op.RESET_WATCHES, 99))
        payload = rng.choice((b"a\0t\0", b"/local/domain/6\0t\0", b"/\0t\0", b"@releaseDomain\0t\0", b"", b"\0" * 900))
        data = Message(op, 1, rng.choice((0, 0, 1)), payload).encode()
        data = rng.choice((data, data, data * 3, data[: rng.randrange(len(data))], rng.randbytes(40)))[:RING_SIZE]
        producer = words[REQ_PROD]
        for k, byte in enumerate(data):
            page[(producer + k) % RING_SIZE] = byte
        words[REQ_PROD] = (producer + len(data)) & M32

    def reads(self) -> None:
        """Says that it has read everything."""
        self.hostile.words[RSP_CONS] = self.hostile.words[515]

    def reconnects(self) -> None:
        """Asks for a fresh connection."""
        self.hostile.words[CONNECTION] = self.rng.choice((1, 1, 2, M32))

    def kicks(self) -> None:
        """Sends an event."""
        self.hostile.kicks()

    def meddles(self) -> None:
        """Will store something whenever the daemon does."""
        self.meddling = self.rng.randrange(8)

    # ---- what happens around it

    def turns(self) -> None:
        """Logic makes some turns."""
        for _ in range(self.rng.randrange(1, 4)):
            self.world.turn()

    def death(self) -> None:
        """Logic dies, now or some stores later."""
        if self.rng.random() < 0.5:
            self.world.dies()
        else:
            self.world.mortal.dies_at = self.world.mortal.stores + self.rng.randrange(30)

    def introduced(self) -> None:
        """The toolstack introduces it (again)."""
        self.asks(Op.INTRODUCE, b"%d\0000\0007\0" % HOSTILE, {OK, b"EINVAL\0"})

    def released(self) -> None:
        """The toolstack releases it."""
        self.asks(Op.RELEASE, b"%d\0" % HOSTILE, {OK, b"ENOENT\0"})

    def dom0_begins_anew(self) -> None:
        """The toolstack gives domain 0's own ring a fresh connection; all that was said there has been answered."""
        self.world.settle()
        self.dom0.looks()
        self.dom0_waits = True
        self.asks(Op.INTRODUCE, b"0\0000\0002\0", {OK})

    def asks(self, op: int, payload: bytes, allowed: set[bytes]) -> None:
        """A request of the toolstack's; sometimes it does not wait for the answer."""
        if self.rng.random() < 0.5:
            self.world.toolstack.sends(op, payload)
        else:
            assert self.does(op, payload) in allowed

    def dom0_says_so(self) -> None:
        """The same over domain 0's own ring; what is said there is looked at whenever Logic gets to it."""
        if self.dom0_waits:
            self.world.settle()
        op, payload = self.rng.choice(((Op.INTRODUCE, b"5\0000\0007\0"), (Op.RELEASE, b"5\0"), (Op.READ, b"/tool\0")))
        self.dom0.sends((op, payload))

    def targeted(self) -> None:
        """Another domain stands in for it, or it for another."""
        pair = self.rng.choice((b"%d\0%d\0" % (HOSTILE, POLITE), b"%d\0%d\0" % (POLITE, HOSTILE)))
        self.asks(Op.SET_TARGET, pair, {OK, b"ENOENT\0"})

    def ends(self) -> None:
        """The domain ends; another one gets its number."""
        self.world.xen.destroy(HOSTILE)
        if self.rng.random() < 0.7:
            self.world.xen.virq()
            self.turns()
        self.hostile = self.world.guest(HOSTILE)

    def polite_works(self) -> None:
        """The other guest writes and reads, and gets its answers."""
        self.count += 1
        value = b"%d" % self.count
        assert self.polite.does((Op.WRITE, b"a\0" + value), (Op.READ, b"a\0"), (Op.RM, b"b\0")) == [OK, value, OK]

    def does(self, op: int, payload: bytes) -> bytes:
        """The toolstack's round trip, behind all others."""
        self.world.settle()
        self.world.toolstack.looks()
        self.world.toolstack.take()
        return self.world.toolstack.does(op, payload)

    def end(self) -> None:
        """Everything is still in order."""
        self.meddling = 0
        self.polite_works()
        self.dom0.looks()
        assert [m.req_id for m in self.dom0.take()] == list(range(1, self.dom0.last_id + 1))
        assert self.does(Op.READ, b"/local/domain/6/a\0") == b"%d" % self.count
        self.world.xen.destroy(HOSTILE)
        self.world.xen.virq()
        self.world.settle()
        assert self.does(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % HOSTILE) == b"F\0"
        assert self.does(Op.RELEASE, b"%d\0" % POLITE) == OK
        assert len(self.world.slots) == 2, "slots of rings leak"
        assert list(self.world.xen.bound.values()) == [(PRIVILEGED, 2)], "event channels leak"


ACTIONS: Final = [
    *(Play.poke, Play.poke, Play.request, Play.request, Play.request, Play.reads, Play.reconnects, Play.meddles),
    *(Play.kicks, Play.kicks, Play.kicks, Play.turns, Play.turns, Play.death, Play.introduced, Play.introduced),
    *(
        Play.released,
        Play.dom0_says_so,
        Play.dom0_says_so,
        Play.dom0_begins_anew,
        Play.targeted,
        Play.ends,
        Play.polite_works,
    ),
]


@examples(60)
@given(st.lists(st.sampled_from(ACTIONS), min_size=10, max_size=60), st.integers(0, M32))
def test_whatever_a_guest_does_with_its_page_nobody_else_notices(box: Box, actions: list[object], seed: int) -> None:
    world = World(box)
    play = Play(world, seed)
    for action in actions:
        assert callable(action)
        action(play)
    play.end()
    world.close()
