"""A guest that does all a guest can do to harm, while domain 0 introduces and releases it; everybody else is served.

`XOARSTORE_HOSTILE_SECONDS` says for how long (5 s unless given; 300 for the long run).  The guest moves indices at random,
fills its page with random bytes, sends nearly sensible requests, half headers and impossible lengths, lets the responses
pile up, asks for reconnections and sends events for nothing, from its own thread, as fast as it can.

Bounds: while that goes on, no round trip of domain 0 or of a polite guest takes longer than `WORST_SECONDS`, the daemon
has less than `GROWTH` more memory afterwards, none of its processes ends, and it is idle as soon as the guest is.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.conformance.processes import anonymous_bytes, becomes_idle
from tests.conformance.subject import UnderTest
from tests.conformance.test_bad_input import noise
from tests.conformance.test_guest_basics import (
    MIB,
    MakeGuest,
    eventually,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    known_process,
    not_for_c,
)
from tests.conformance.wire import PATIENCE, PAYLOAD_MAX, Client, Event, Op, pack, strings
from tests.conformance.xen import PAGE, RING, Guest
from tests.oracle.daemons import EACH_REQUEST

HOSTILE_SECONDS = float(os.environ.get("XOARSTORE_HOSTILE_SECONDS", "5"))
LONGEST_SECONDS = HOSTILE_SECONDS + 60
"""Until the guest was served at least once: without that nothing was tested."""
WORST_SECONDS = PATIENCE if EACH_REQUEST else 1.0
"""For one round trip, on a machine that has other things to do as well; who can be kept waiting waits for ever."""
GROWTH = 24 * MIB
OPERATIONS = [*Op, *[Op.WRITE] * 8, *[Op.RM] * 4]
FIELDS = ("req_cons", "req_prod", "rsp_cons", "rsp_prod", "features", "connection", "error", "evtchn_port")


class Hostile:
    """What the guest does, one act at a time; every act is a store into its page, an event, or both.

    It keeps to one manner for a while, for a ring that has an error soon would show nothing else.
    """

    def __init__(self, guest: Guest, rng: random.Random) -> None:
        self.guest, self.rng = guest, rng
        asking = [*[self.send_requests, self.take_all_responses] * 3, self.flood]
        self.manners: list[list[Callable[[], None]]] = [
            [self.move_an_index, self.move_an_index_a_little, self.let_responses_pile_up, *asking],
            [self.fill_the_page, self.announce_random_bytes, self.send_noise, self.take_all_responses],
            [self.send_half_a_header, self.send_an_impossible_length, self.send_noise, *asking],
            [self.let_responses_pile_up, self.kick_for_nothing, *asking],
            [self.reconnect, *asking],
            [self.kick_for_nothing, *asking],
        ]
        self.acts = self.manners[0]
        self.unsent = b""

    def act(self) -> None:
        if self.rng.random() < 0.01:
            self.acts = self.rng.choice(self.manners)
            self.guest.set_field("evtchn_port", 0)  # else the next introduction would bind that port
        self.rng.choice(self.acts)()
        if self.rng.random() < 0.8:
            self.guest.kick()

    def put(self, data: bytes) -> None:
        """Goes on with what is left of the last bytes, except in a fresh ring: out of step, a ring soon has an error."""
        if not self.unsent or self.guest.field("req_prod") == 0:
            self.unsent = data
        self.unsent = self.unsent[self.guest.put_bytes(self.unsent, timeout=0) :]

    def move_an_index(self) -> None:
        self.guest.set_field(self.rng.choice(FIELDS), self.rng.getrandbits(32))

    def move_an_index_a_little(self) -> None:
        name = self.rng.choice(FIELDS[:4])
        self.guest.set_field(name, self.guest.field(name) + self.rng.choice([-1025, -1024, -16, -1, 1, 16, 1024, 1025]))

    def fill_the_page(self) -> None:
        at = self.rng.randrange(2 * RING)
        self.guest.page[at : 2 * RING] = self.rng.randbytes(2 * RING - at)
        if self.rng.random() < 0.05:
            self.guest.page[:] = self.rng.randbytes(PAGE)

    def announce_random_bytes(self) -> None:
        self.guest.set_field("req_prod", self.guest.field("req_cons") + self.rng.randrange(RING + 1))

    def send_requests(self) -> None:
        path = strings(self.rng.choice(["r", "r/a", "r/b/c", "r/a/d", "/", "@releaseDomain"]))
        rest = self.rng.choice([b"", strings("t"), strings("n0"), b"x" * self.rng.randrange(3000)])
        requests = [
            pack(self.rng.choice(OPERATIONS), path + rest, tx=self.rng.choice([0, 0, 0, 1, 2, 3]))
            for _ in range(self.rng.randrange(1, 8))
        ]
        self.put(b"".join(requests))

    def send_noise(self) -> None:
        self.put(b"".join(noise(self.rng) for _ in range(self.rng.randrange(1, 8))))

    def flood(self) -> None:
        request = self.rng.choice([(Op.READ, b"v\0"), (Op.WATCH, strings("v", "t" * 100)), (Op.TRANSACTION_START, b"")])
        self.put(pack(*request) * 64)

    def send_half_a_header(self) -> None:
        self.put(pack(Op.READ, b"v\0")[: self.rng.randrange(16)])

    def send_an_impossible_length(self) -> None:
        self.put(pack(Op.WRITE, length=self.rng.choice([PAYLOAD_MAX + 1, 1 << 31, 0xFFFFFFFF])))

    def let_responses_pile_up(self) -> None:
        self.guest.set_field("rsp_cons", self.guest.field("rsp_prod") - RING)

    def take_all_responses(self) -> None:
        self.guest.set_field("rsp_cons", self.guest.field("rsp_prod"))

    def reconnect(self) -> None:
        self.guest.set_field("connection", self.rng.choice([0, 1, 1, 2, 0xFFFFFFFF]))

    def kick_for_nothing(self) -> None:
        for _ in range(20):
            self.guest.kick()


@contextmanager
def running_wild(hostile: Hostile) -> Iterator[Callable[[], int]]:
    """The guest's own thread; yields how to ask for the number of its acts so far."""
    stop = threading.Event()
    count = 0

    def run() -> None:
        nonlocal count
        while not stop.is_set():
            with suppress(TimeoutError):  # the daemon's queue of events is full: it has other things to do
                hostile.act()
            count += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: count
    finally:
        stop.set()
        thread.join()


@dataclass
class Stopwatch:
    """The longest round trips."""

    worst: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.worst[what] = max(self.worst.get(what, 0), time.monotonic() - started)


def live(client: Client, number: int) -> None:
    """One polite round: a write, its event, a transaction."""
    value = b"%d" % number
    client.write("polite/v", value)
    assert client.events_so_far() == [Event(b"polite/v", b"t")]
    tx = client.start()
    assert client.read("polite/v", tx=tx) == value
    assert client.commit(tx) == "OK"


def change_its_life(client: Client, guest: Guest, rng: random.Random) -> None:
    """Domain 0 does one of the things that it does with domains."""
    choice = rng.random()
    if choice < 0.2:
        client.outcome(Op.RELEASE, strings(guest.domid))
    elif choice < 0.3:
        client.outcome(Op.RESUME, strings(guest.domid))
    elif choice < 0.4:
        give_home(client, guest)
    else:
        client.outcome(Op.INTRODUCE, strings(guest.domid, 1, guest.port))


@not_for_c("dies of it within seconds")
def test_a_hostile_guest_harms_nobody_else(
    guest: MakeGuest, client: Client, other: Client, daemon: UnderTest, home: str
) -> None:
    process = known_process(daemon)
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = random.Random(seed)
    polite, wild = guest(), guest()
    clients = {"domain 0": other, "polite guest": polite}
    for each in clients.values():
        each.watch("polite/v", "t")
    client.watch(home_of(wild), "h")
    carried_out = 0
    pids = process.lasting_pids()
    said = len(process.output())
    stopwatch, before, rounds = Stopwatch(), 0, 0
    begin = time.monotonic()
    with running_wild(Hostile(wild, random.Random(seed))) as acts:
        while (passed := time.monotonic() - begin) < HOSTILE_SECONDS or (not carried_out and passed < LONGEST_SECONDS):
            if not before and passed > HOSTILE_SECONDS / 5:
                before = anonymous_bytes(pids)
            rounds += 1
            if rng.random() < 0.3:
                with stopwatch.timing("INTRODUCE and the like"):
                    change_its_life(client, wild, rng)
            for name, each in clients.items():
                with stopwatch.timing(f"{name}'s life"):
                    live(each, rounds)
            below = f"{home_of(wild)}/".encode()
            carried_out += sum(event.path.startswith(below) for event in client.events_so_far())
    print(f"{acts()} hostile acts, {carried_out} changes by them, {rounds} rounds, worst: {stopwatch.worst}")
    assert max(stopwatch.worst.values()) < WORST_SECONDS, stopwatch.worst
    assert carried_out > 0, "the guest was never served, so nothing was tested"
    assert process.lasting_pids() == pids, "a process ended and was replaced"
    assert "Traceback" not in process.output()[said:]
    assert anonymous_bytes(pids) - before < GROWTH
    assert other.read("/") == b""

    client.outcome(Op.RELEASE, strings(wild.domid))
    wild.page[:] = bytes(PAGE)
    give_home(client, wild)
    introduce(client, wild)
    wild.pending.clear()
    assert is_served(wild), "if it behaves, it is served"
    assert becomes_idle(pids), "busy although nobody asks for anything"
    assert client.read(home_of(wild)) == b""


def test_events_without_data_do_not_keep_the_others_waiting(
    guest: MakeGuest, client: Client, daemon: UnderTest
) -> None:
    """Many guests that do nothing but send events"""
    process = known_process(daemon)
    guests = [guest() for _ in range(5)]
    begin, stopwatch = time.monotonic(), Stopwatch()
    while time.monotonic() - begin < min(HOSTILE_SECONDS / 5, 10):
        for each in guests:
            for _ in range(20):
                each.kick()
        with stopwatch.timing("round trip"):
            assert is_served(client)
    assert max(stopwatch.worst.values()) < WORST_SECONDS
    for each in guests:
        assert is_served(each)
    assert becomes_idle(process.lasting_pids())


def test_a_guest_that_is_introduced_and_released_all_the_time_with_full_rings_leaks_nothing(
    guest: MakeGuest, client: Client, daemon: UnderTest
) -> None:
    """XSA-425"""
    process = known_process(daemon)
    one = guest()
    pids = process.lasting_pids()
    before = 0
    for i in range(300):
        if i == 60:
            before = anonymous_bytes(pids)
        give_home(client, one)
        introduce(client, one)
        one.set_field("rsp_cons", one.field("rsp_prod") - RING)
        one.put_bytes(
            pack(Op.WATCH, strings("v", "t" * 40)) + pack(Op.TRANSACTION_START) * 10 + pack(99) * 15, timeout=0
        )
        client.write(f"{home_of(one)}/v", b"x" * 2000)
        client.call(Op.RELEASE, strings(one.domid))
        assert not is_introduced(client, one.domid)
        one.page[:] = bytes(PAGE)
    assert anonymous_bytes(pids) - before < 4 * MIB
    eventually(lambda: is_served(client), "the daemon lives")
