"""`kill -9` of Logic at any instruction while it serves guests over rings: no guest notices, nothing is lost, nothing twice.

Guests look at their page only when they were notified, so a notification lost shows as much as a byte lost.  Some scripts of
`load` run over rings here, beside sockets; the killer sees ring steps too (`RingStep`): from outside, with the box, the
pages and the system call.  Then there are domains that come and go, and rewrite their indices, while Logic is killed.

    python -m tests.recovery.test_kill_rings XEN_DIRECTORY SOCKET SEED MIX

is the guests' process, driven like that of `load`.  Default times are short; `XOARSTORE_KILL_SECONDS` and
`XOARSTORE_KILL_SEED` say for how long, and repeat a run.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self, cast

import pytest

from protocol.ops import Op
from protocol.wire import Framer, Message
from recovery_box.box import EVENTS_AT, W_RING
from tests.conformance.processes import STANDS_BY, anonymous_bytes, descriptors
from tests.conformance.wire import Client
from tests.conformance.wire import strings as words
from tests.conformance.xen import EVENT, FIELDS, PAGE, Guest, SimulatedXen
from tests.oracle.daemons import OurDaemon
from tests.recovery.boxview import BoxView, Slot
from tests.recovery.clients import Failure, Herd, Peer, Request, Script, Wait, check, strings
from tests.recovery.clients_process import ClientsProcess
from tests.recovery.killer import AHEAD, BETWEEN_LOOKS, LIFE_MAX, LOOKS, Killer
from tests.recovery.load import COUNTERS, HOME, OK, STREAM, Load, _stream_path, watch
from tests.recovery.logic import (
    EPOLL_WAIT,
    Gone,
    restarts,
    state_stopped,
    wait_for_logic,
    wait_for_restarts,
)
from tests.recovery.steps import Step, step_of

SECONDS: Final = float(os.environ.get("XOARSTORE_KILL_SECONDS", "4"))
SEED: Final = int(os.environ.get("XOARSTORE_KILL_SEED", "0")) or random.SystemRandom().getrandbits(32)
HITS: Final = 1
"""Kills that every step of a ring must have had."""
LONGEST: Final = 6
FIRST: Final = 11
"""Domid of the first guest."""
PORT: Final = 7
PATIENCE: Final = 10.0
GUESTS: Final = 20
WARM: Final = 30
DEATHS: Final = 200
MEMORY_MAX: Final = 512 << 10
"""By how much State may have grown after that."""
MIXES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "busy": (
        ("late", "stream", "quick", "quick", "keys", "keys", "events", "same", "big", "once"),
        ("slow", "keys", "events", "big", "once"),
    ),
    "transactions": (
        ("counter", "counter", "counter", "holder", "events", "keys", "once", "same"),
        ("counter", "holder"),
    ),
}
"""Kinds of guests, and of clients on sockets; each is a script of `RingLoad`."""
AHEAD_MOST: Final = 2000
LATE_MAX: Final = 0.2
"""Seconds."""


# ---- the guests' process


class RingSocket:
    """A guest's ring as what a `Peer` takes for a socket: readable when the guest was notified, and only then."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.full = False
        """There was no room; there is none until the daemon notifies."""

    def fileno(self) -> int:
        """Becomes readable with a notification."""
        return self.guest.events_in.fileno()

    def send(self, data: bytes) -> int:
        """Puts as much as fits."""
        done = 0 if self.full else self.guest._put_what_fits(data)
        self.full = done < len(data)
        if not done:
            raise BlockingIOError
        return done

    def recv(self, _: int) -> bytes:
        """What is in the ring, after a notification."""
        guest = self.guest
        guest._event_within(0)
        self.full = False
        error, connection = guest.field("error"), guest.field("connection")
        check(error == connection == 0, f"the page shows error {error}, connection {connection}")
        used = (guest.field("req_prod") - guest.field("req_cons")) & 0xFFFFFFFF
        check(used <= 1024, f"{used} bytes of requests in the ring: room was taken away")
        data = b"".join(iter(guest._take, b""))
        if not data:
            raise BlockingIOError
        return data


class RingPeer(Peer):
    """A peer on a ring."""

    def __init__(self, name: str, rng: random.Random, guest: Guest) -> None:
        # All that a peer has, but for its socket.
        self.name, self.rng = name, rng
        self.sock = cast(Any, RingSocket(guest))
        self.counts: Counter[str] = Counter()
        self.reading = True
        self._framer = Framer()
        self._inbox: deque[Message] = deque()
        self._outbox: deque[tuple[float, bytes]] = deque()
        self._due: float | None = None
        self._last_id = 0

    def transmit(self, now: float) -> float | None:
        """As a socket's; whoever waits for room waits for a notification."""
        return super().transmit(now) or None


class RingLoad(Load):
    """`Load` with guests among the clients."""

    def __init__(self, xen: SimulatedXen, path: str, seed: int, mix: str) -> None:
        self.herd = Herd()
        self.expected: dict[bytes, bytes] = {}
        self.commits: Counter[bytes] = Counter()
        self.observing = self.streamed = 0
        self.stream_ended = False
        self.late_number = 0
        """Changes of the stream that `late` was told of."""
        self.peers: list[Peer] = []
        rng = random.Random(seed)
        on_rings, on_sockets = MIXES[mix]
        for domid, kind in enumerate(on_rings, FIRST):
            self._add(RingPeer(f"{kind}-ring{domid}", random.Random(rng.random()), Guest(xen, domid, PORT)), kind)
        for number, kind in enumerate(on_sockets):
            self._add(Peer(f"{kind}-socket{number}", path, random.Random(rng.random())), kind)

    def _add(self, peer: Peer, kind: str) -> None:
        self.peers.append(peer)
        self.herd.add(peer, getattr(self, kind)(peer))

    def stream(self, peer: Peer) -> Script:
        """The same, not further ahead of who is late than may be pending for a ring."""
        for wait in super().stream(peer):
            while self.streamed - self.late_number > AHEAD_MOST and not self.herd.stopping:
                yield Wait(time.monotonic() + 0.005)
            yield wait

    def late(self, peer: Peer) -> Script:
        """Watches the stream, reads nothing for a while and everything then: events that wait beside the ring."""
        token = b"late" * 40
        yield from watch(peer, STREAM, token)
        self.observing += 1
        while not self.stream_ended or self.late_number < self.streamed:
            peer.reading = False
            yield from peer.sleep(peer.rng.random() * LATE_MAX)
            peer.reading = True
            while self.late_number < self.streamed:
                event, expected = (yield from peer.event()), strings(_stream_path(self.late_number), token)
                check(event == expected, f"event {event!r:.50}, not {expected!r:.50}")
                self.late_number += 1

    def once(self, peer: Peer) -> Script:
        """Does what cannot be done twice, many times in one piece: a request repeated is an error."""
        path, number = HOME + b"/" + peer.name.encode(), 0
        while not self.herd.stopping:
            tokens = [b"%d" % n for n in range(number, number + peer.rng.choice((1, 3, 20)))]
            number += len(tokens)
            batch = [Request(op, strings(path, token)) for token in tokens for op in (Op.WATCH, Op.UNWATCH)]
            answers = yield from peer.exchange(batch)
            check(all(answer.outcome == OK for answer in answers), f"{answers}")
            events = [event for answer in answers for event in answer.events]
            check(events == [strings(path, token) for token in tokens], f"{len(tokens)} watches made events {events}")


def main() -> None:
    """The command."""
    directory, path, seed, mix = sys.argv[1:]
    load = RingLoad(SimulatedXen(Path(directory)), path, int(seed), mix)
    load.herd.listen_to(0, load.stop)
    print("ready", flush=True)
    load.herd.run()
    if not load.herd.failures:
        try:
            load.verify(path)
        except (Failure, OSError) as e:
            load.herd.failures.append(f"verifying: {e!r}")
    counts = sum((peer.counts for peer in load.peers), Counter[str]())
    print(json.dumps({"failures": load.herd.failures, "counts": counts}), flush=True)


# ---- the guests from outside


class Guests(ClientsProcess):
    """The guests' process, and their pages as they can be looked at from outside."""

    def __init__(self, daemon: OurDaemon, view: BoxView, mix: str) -> None:
        assert daemon.xen_dir is not None
        self.daemon = daemon
        self.slots: dict[int, int] = {}
        """By domid."""
        self.pages: dict[int, memoryview[int]] = {}
        """By slot."""
        on_rings, on_sockets = MIXES[mix]
        with Client(daemon.socket) as client:
            client.mkdir(HOME.decode())
            client.set_perms(HOME.decode(), "b0")
            for counter in range(COUNTERS):
                client.write(f"{HOME.decode()}/counter/{counter}", b"0")
            client.call(Op.SET_QUOTA, words("node-size", 8000))
            client.call(Op.SET_QUOTA, words("memory", 0))  # beyond it, events are dropped
            for domid, kind in enumerate(on_rings, FIRST):
                self._introduce(client, SimulatedXen(daemon.xen_dir), view, domid)
                if domid % 2 or kind == "stream":  # who watches the stream reads only what was acknowledged
                    client.call(Op.SET_QUOTA, words(domid, "outstanding", 0))
            last = max(slot.owner for slot in view.slots())
            arguments = [str(daemon.xen_dir), str(daemon.socket), str(SEED), mix]
            super().__init__("tests.recovery.test_kill_rings", *arguments)
        owners = [view.slot(slot).owner for slot in self.slots.values()]
        owners += range(last + 1, last + 1 + len(on_sockets))
        self.idle = {
            owner for owner, kind in zip(owners, on_rings + on_sockets, strict=True) if kind in {"slow", "big"}
        }
        """Who lets output lie, by connection."""

    def counts(self) -> dict[str, int]:
        """Lets the guests come to their end; what they counted.  Fails with what they found."""
        report = self.finish()
        assert not report["failures"], (report["failures"], unusual(self.daemon))
        counts: dict[str, int] = report["counts"]
        return counts

    def _introduce(self, client: Client, xen: SimulatedXen, view: BoxView, domid: int) -> None:
        page = xen.ring(domid)
        page.write_bytes(bytes(PAGE))
        (xen.domains / str(domid)).write_text("")
        known = {slot.owner for slot in view.slots()}
        client.call(Op.INTRODUCE, words(domid, 0, PORT))
        (slot,) = [slot.number for slot in view.slots() if slot.owner not in known]
        self.slots[domid] = slot
        with page.open("r+b") as file:
            self.pages[slot] = memoryview(mmap.mmap(file.fileno(), PAGE)).cast("I")


# ---- where Logic falls


class RingStep(Enum):
    """Where Logic is with a ring when it dies."""

    EVENT = "ring: taking an event, in readv"
    TAKEN = "ring: event taken, requests not received"
    COPYING = "ring: output made, nothing of it counted"
    COUNTED = "ring: output in the ring and counted, index not published"
    PUBLISHED = "ring: index published, guest not notified"
    NOTIFYING = "ring: notifying, in sendto"


READV: Final = {"x86_64": 19, "aarch64": 65}.get(os.uname().machine, -2)
SENDTO: Final = {"x86_64": 44, "aarch64": 206}.get(os.uname().machine, -2)
AnyStep = Step | RingStep
STEPS: Final[tuple[AnyStep, ...]] = (*Step, *RingStep)


class RingKiller(Killer):
    """A killer that knows the pages."""

    def __init__(self, daemon: OurDaemon, view: BoxView, rng: random.Random, guests: Guests) -> None:
        super().__init__(daemon, view, rng, guests.idle)
        self.guests = guests
        self.fallen: Counter[AnyStep] = Counter()
        self.looked: Counter[AnyStep] = Counter()

    @property
    def kills(self) -> int:
        return self.blind + self.fallen.total()

    def at_a_step(self) -> None:
        """Kills Logic at a step that was not hit often yet."""
        logic = wait_for_logic(self.daemon)
        try:
            for look in range(LOOKS):
                time.sleep(self.rng.random() * BETWEEN_LOOKS)
                logic.stop()
                step = self.step(logic.system_call())
                self.looked[step] += 1
                if look == LOOKS - 1 or self.wanted(step):
                    logic.kill()
                    self.fallen[step] += 1
                    return
                logic.go_on()
        except Gone:
            pass
        finally:
            logic.close()

    def wanted(self, step: AnyStep) -> bool:
        """Whether to kill here; never twice in the same request, which would be answered with EIO one day."""
        if step is Step.HANDLING:
            last, self._last = self._last, self.view.active()
            if self._last == last:
                return False
        return self.fallen[step] <= min(self.fallen[s] for s in STEPS) + AHEAD or self.rng.random() < 0.02

    def step(self, system_call: int) -> AnyStep:
        """Where a stopped Logic stands."""
        if system_call in {READV, SENDTO}:
            return RingStep.EVENT if system_call == READV else RingStep.NOTIFYING
        number = self.view.words[W_RING] - 1
        if number in self.guests.pages:
            return self._sending(self.view.slot(number), self.guests.pages[number])
        step = step_of(self.view, system_call, self.idle)
        if step in {Step.MADE, Step.MADE_MORE, Step.SENT, Step.RECEIVED}:
            domid, _ = EVENT.unpack_from(self.view.memory, EVENTS_AT)
            slot = self.guests.slots.get(domid)
            if slot is not None and self.guests.pages[slot][FIELDS["req_prod"]] != self.view.slot(slot).received:
                return RingStep.TAKEN
        return step

    def _sending(self, slot: Slot, page: memoryview[int]) -> AnyStep:
        if page[FIELDS["rsp_prod"]] != slot.sent:
            return RingStep.COUNTED
        return RingStep.COPYING if slot.unsent else RingStep.PUBLISHED

    def table(self) -> str:
        """What fell where."""
        rows = [f"  {self.fallen[step]:6}  {self.looked[step]:6}  {step.value}" for step in STEPS]
        rows.append(f"  {self.blind:6}       -  anywhere: killed without looking")
        downtimes = sorted(float(line.split(" in ")[-1].split()[0]) for line in restarts(self.daemon))
        longest = f"{downtimes[len(downtimes) // 2]:.1f} ms (median), {downtimes[-1]:.1f} ms (longest)"
        rows.append(f"  {self.kills:6}          in all; Logic taken over from in {longest}")
        return "\n".join(["   kills   looks  where Logic fell", *rows])


# ---- tests

USUAL: Final = (
    "killed by SIGKILL",
    "serving on",
    "requests outstanding",
    "writes too fast",
    "connects anew",
    "no ring to be continued",
)


def unusual(daemon: OurDaemon) -> list[str]:
    """What the daemon logged, but for its start, Logics that were killed, and guests that were held back."""
    return [line for line in daemon.output().splitlines() if not any(text in line for text in USUAL)]


def only_killed(daemon: OurDaemon, kills: int, *also: str) -> None:
    """Every Logic that ended was killed by this test; none died of itself.  What else may stand in the log is in `also`."""
    lines = wait_for_restarts(daemon, kills)
    assert all("killed by SIGKILL" in line for line in lines), daemon.output()
    assert not [line for line in unusual(daemon) if not any(text in line for text in also)]


@contextmanager
def under_load(daemon: OurDaemon, mix: str) -> Iterator[tuple[Guests, RingKiller]]:
    """Guests and clients at work, and a killer."""
    with BoxView(daemon.pid) as view:
        guests = Guests(daemon, view, mix)
        try:
            yield guests, RingKiller(daemon, view, random.Random(SEED), guests)
        finally:
            guests.end()


@pytest.mark.slow
@pytest.mark.skipif(not EPOLL_WAIT or READV < 0, reason="the numbers of system calls are not known for this machine")
def test_killed_at_every_step_of_a_ring_no_guest_notices(daemon: OurDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    with under_load(daemon, "busy") as (guests, killer):
        start = time.monotonic()
        while guests.works:
            elapsed = time.monotonic() - start
            missing = [step for step in RingStep if killer.fallen[step] < HITS]
            if elapsed > SECONDS and (not missing or elapsed > LONGEST * SECONDS):
                break
            match rng.randrange(4):
                case 0:
                    killer.at_once(rng.random() * LIFE_MAX)
                case 1:
                    killer.at_once()
                case _:
                    killer.at_a_step()
        with capsys.disabled():
            print(f"\nseed {SEED}, {elapsed:.0f} s\n{killer.table()}")
        counts = guests.counts()
    with capsys.disabled():
        print(f"  {counts}")
    assert not missing, f"too seldom hit: {missing}"
    only_killed(daemon, killer.kills)


@pytest.mark.parametrize("mix", list(MIXES))
def test_killed_as_fast_as_it_restarts_no_guest_notices(
    daemon: OurDaemon, capsys: pytest.CaptureFixture[str], mix: str
) -> None:
    rng = random.Random(SEED)
    with under_load(daemon, mix) as (guests, killer):
        end = time.monotonic() + SECONDS / 2
        while guests.works and time.monotonic() < end:
            killer.at_once(rng.choice((0, 0, rng.random() * LIFE_MAX)))
        counts = guests.counts()
    with capsys.disabled():
        print(f"\nseed {SEED}: {killer.kills} kills\n  {counts}")
    only_killed(daemon, killer.kills)
    if mix == "transactions":
        assert counts["commits"]


class Killing(threading.Thread):
    """Kills Logic at random until the block ends."""

    def __init__(self, daemon: OurDaemon, view: BoxView) -> None:
        super().__init__(daemon=True)
        self.killer = Killer(daemon, view, random.Random(SEED))
        self.over = threading.Event()

    @property
    def kills(self) -> int:
        return self.killer.kills

    def run(self) -> None:
        while not self.over.is_set():
            self.killer.at_once(self.killer.rng.choice((0, LIFE_MAX, LIFE_MAX)) * self.killer.rng.random())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.join()


class Lives:
    """Domains that come and go, and what watchers of that are owed."""

    DEEP, PLAIN = b"deep", b"plain"

    def __init__(self, daemon: OurDaemon) -> None:
        assert daemon.xen_dir is not None
        self.xen = SimulatedXen(daemon.xen_dir)
        self.toolstack, self.watcher = Client(daemon.socket), Client(daemon.socket)
        self.owed: dict[bytes, list[bytes]] = {self.DEEP: [], self.PLAIN: []}
        for name in ("@introduceDomain", "@releaseDomain"):
            self.watcher.watch(name, self.PLAIN.decode())
            self.watcher.watch(name, self.DEEP.decode(), "1")

    def close(self) -> None:
        self.toolstack.close()
        self.watcher.close()

    def _owe(self, name: bytes, domid: int) -> None:
        self.owed[self.PLAIN].append(name)
        self.owed[self.DEEP].append(b"%s/%d" % (name, domid))

    def _told(self) -> None:
        """Waits until the watcher was told of everything owed so far."""
        while self.got(self.DEEP) != self.owed[self.DEEP] or len(self.got(self.PLAIN)) < len(self.owed[self.PLAIN]):
            assert len(self.got(self.DEEP)) <= len(self.owed[self.DEEP]), (self.watcher.events, self.owed)
            self.watcher.receive()

    def got(self, token: bytes) -> list[bytes]:
        return [event.path for event in self.watcher.events if event.token == token]

    def live(self, domid: int, how: str) -> None:
        """A domain is made, introduced and served, and ends."""
        home, guest = f"/local/domain/{domid}", self.xen.create(domid, port=PORT)
        assert self.toolstack.call(Op.INTRODUCE, words(domid, 0, PORT)) == OK
        self._owe(b"@introduceDomain", domid)
        assert not self.toolstack.exists(home), "the nodes of the one before"
        self.toolstack.mkdir(home)
        self.toolstack.set_perms(home, f"n{domid}")
        guest.write("node", b"value")
        assert guest.read("node") == b"value"
        assert (guest.field("error"), guest.field("connection")) == (0, 0)
        if how == "shut down first":
            self.xen.set_state(domid, "shutdown")
            self._owe(b"@releaseDomain", domid)
            self._told()
            assert guest.read("node") == b"value"
        self.xen.destroy(domid, quietly=how == "replaced unnoticed")
        self._owe(b"@releaseDomain", domid)
        if how != "replaced unnoticed":
            self._told()
            assert not self.toolstack.exists(home)
        guest.close()


def test_domains_that_come_and_go_are_told_of_exactly_once(
    daemon: OurDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are used again at once, so that a shutdown or an end that comes too late would hit the wrong domain."""
    rng, lives, number = random.Random(SEED), Lives(daemon), 0
    with BoxView(daemon.pid) as view, Killing(daemon, view) as killing:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            domid, how = FIRST + rng.randrange(2), "replaced unnoticed"
            while how == "replaced unnoticed":
                how = rng.choice(("shut down first", "destroyed", "replaced unnoticed"))
                number += 1
                lives.live(domid, how)
    assert {token: lives.got(token) for token in lives.owed} == lives.owed
    lives.watcher.forget()
    assert lives.watcher.events_so_far() == []
    lives.close()
    with capsys.disabled():
        print(f"\nseed {SEED}: {number} domains, {killing.kills} kills")
    # What is left of a domain may meet nothing any more, or the page of the next one, before it is noticed that it ended.
    only_killed(daemon, killing.kills, "cannot be mapped", "is ignored")


@pytest.mark.parametrize("field", ["req_prod", "rsp_cons", "req_cons", "rsp_prod", "all"])
def test_indices_rewritten_while_no_logic_lives_are_error_2_as_at_any_other_time(daemon: OurDaemon, field: str) -> None:
    """The guest's own, which cannot be true; and the daemon's, which the box knows better."""
    rng = random.Random(SEED)
    assert daemon.xen_dir is not None
    xen = SimulatedXen(daemon.xen_dir)
    with Client(daemon.socket) as client, served(xen, client, 2) as (guest, other):
        guest.watch("home", "token")
        assert (
            client.read("/") == b""
        )  # the guest's page is not being changed any more: the next Logic would publish it anew
        with state_stopped(daemon):
            logic = wait_for_logic(daemon)
            logic.kill()
            logic.close()
            for name in ("req_prod", "rsp_cons", "req_cons", "rsp_prod") if field == "all" else (field,):
                far = rng.randrange(5000, 1 << 31)
                guest.set_field(name, guest.field(name) + (far if name == "req_prod" else -far))
        guest.kick()
        if field == "rsp_cons":
            client.write(f"/local/domain/{guest.domid}/home")  # only who is given something shows how far it has read
        assert other.read("home") == b""
        wait_until(lambda: guest.field("error") == 2)
        page = bytes(guest.page)
        guest.kick()
        assert other.read("home") == b""
        assert bytes(guest.page) == page, "it is left alone"
        assert client.call(Op.INTRODUCE, words(guest.domid, 0, PORT)) == OK
        guest.pending.clear()
        assert guest.read("home") == b""
    only_killed(daemon, 1, f"the ring of domain {guest.domid} is ignored")


def test_nothing_grows_with_the_number_of_deaths(daemon: OurDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Descriptors, slots and State's memory, while guests work, connect anew and are introduced again."""
    rng = random.Random(SEED)
    assert daemon.xen_dir is not None
    xen = SimulatedXen(daemon.xen_dir)

    def held() -> tuple[int, int]:
        """Descriptors and slots, once they stay the same."""
        found: list[tuple[int, int]] = []
        while len(found) < 3 or len(set(found[-3:])) > 1:
            time.sleep(0.01)
            found.append((descriptors(daemon.pid), len(view.slots(4096))))
        return found[-1]

    with Client(daemon.socket) as client, served(xen, client, GUESTS) as guests, BoxView(daemon.pid) as view:
        killer = Killer(daemon, view, rng)
        found = []
        for kills in (WARM, DEATHS):
            end = killer.kills + kills
            while killer.kills < end:
                for guest in rng.sample(guests, 2):
                    act(rng.choice(("serve", "serve", "introduce", "reconnect")), guest, client)
                killer.at_once(rng.random() * LIFE_MAX / 4)
            for guest in guests:
                act("serve", guest, client)
            wait_for_restarts(daemon, killer.kills)
            found.append((held(), anonymous_bytes([daemon.pid])))
    with capsys.disabled():
        print(f"\nseed {SEED}: (descriptors, slots), bytes of State after {WARM} and {WARM + DEATHS} deaths: {found}")
    (things, memory), (things_later, memory_later) = found
    assert things_later[0] <= things[0] + STANDS_BY
    assert things_later[1] == things[1]
    assert memory_later - memory < MEMORY_MAX
    only_killed(daemon, killer.kills)


def act(what: str, guest: Guest, client: Client) -> None:
    """Something that a guest does, or has done to it."""
    if what == "introduce":
        assert client.call(Op.INTRODUCE, words(guest.domid, 0, PORT)) == OK
        guest.pending.clear()
    elif what == "reconnect":
        guest.set_field("connection", 1)
        guest.kick()
        wait_until(lambda: guest.field("connection") == 0)
        guest.pending.clear()
    guest.watch("home", "token")
    guest.write("home", b"value")
    assert guest.read("home") == b"value"
    assert guest.call(Op.UNWATCH, words("home", "token")) == OK
    assert guest.start() > 0
    assert guest.call(Op.RESET_WATCHES) == OK
    guest.forget()


@contextmanager
def served(xen: SimulatedXen, client: Client, count: int) -> Iterator[list[Guest]]:
    """Guests that are introduced, each with a home of its own."""
    guests = [xen.create(domid, port=PORT) for domid in range(FIRST, FIRST + count)]
    for guest in guests:
        assert client.call(Op.INTRODUCE, words(guest.domid, 0, PORT)) == OK
        home = f"/local/domain/{guest.domid}"
        client.mkdir(f"{home}/home")
        for path in (home, f"{home}/home"):
            client.set_perms(path, f"n{guest.domid}")
    yield guests
    for guest in guests:
        guest.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Returns once something is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


if __name__ == "__main__":
    main()
