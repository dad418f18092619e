"""The clients of the torture: fifty whose history is checked, and some that know exactly what they must be told.

    python -m tests.torture.workload SOCKET SEED ROUND [--history]

prints `ready` when all are connected, works until a line comes on stdin, lets every client finish, checks everything, and
prints one line of JSON (`Report`).

Ten groups of five: three that read, write, remove, list and swap in transactions, one after the other; one that sends
several requests at once; and a watcher, of which some read seldom.  Every request and answer is recorded with its times.
Beside them work the clients of `tests.recovery.load`, who compare each message with what they predict, and two that ask for
the same again and again, a hundred requests in a piece: they see to it that Logic always has something to do.
`--history` leaves the former out, and lets the others go on when one of them has failed.
Knows the protocol, nothing of how the daemon is made or what is done to it.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Generator
from typing import Any, Final, TypeVar

from protocol.ops import Op
from protocol.wire import Message
from tests.conformance.wire import Client
from tests.recovery.clients import Answer, Failure, Peer, Request, Script, Wait, check, strings
from tests.recovery.load import EVERYBODY, OK, SLOW, Load, start, watch
from tests.torture import checker, watching
from tests.torture.flood import Flooder
from tests.torture.history import LIST, NEVER, READ, REMOVE, WRITE, Operation, Step

GROUPS: Final = 10
ACTORS: Final = 3
NAMES: Final = (b"a", b"b", b"c", b"d")
SHOTS: Final = 50
"""Nodes that are written once each, before all of them are removed."""
LAZY: Final = 3
"""One watcher in so many reads seldom."""
LAZY_PAUSE: Final = 0.3
PATIENCE: Final = 60.0
IMPATIENCE: Final = 4.0
"""Seconds to wait for a message while all of State is started again and again; and where answers are expected to be lost."""
HOLD: Final = 0.02
"""Longest time that a transaction is kept open, in seconds."""
FLOODS: Final = 2
FLOOD: Final = 100
SomePeer = TypeVar("SomePeer", bound=Peer)


def idle_connections(last: int) -> set[int]:
    """Ids of the connections that read seldom, given the id of the last one that is made before anybody works."""
    each = ACTORS + 3  # one that prepares the store, the actors, the one with several requests, the watcher
    groups = range(last - FLOODS - 1 - GROUPS * each, last - FLOODS - 1, each)
    first = groups[0] - sum(n for _, n in EVERYBODY)
    return {first + 1 + n for n in range(SLOW)} | {start + each for g, start in enumerate(groups) if g % LAZY == 0}


class Group:
    """A few nodes, what was done to them, and who watches."""

    def __init__(self, home: bytes) -> None:
        self.home = home
        self.history: list[Operation] = []
        self.changes: list[watching.Change] = []
        self.events: list[watching.Event] = []
        self.observed = False
        self.active = 0

    def path(self, name: bytes) -> bytes:
        return self.home + b"/keys/" + name


def request_of(group: Group, step: Step, tx: int = 0) -> Request:
    """What is asked for."""
    if step.kind == LIST:
        return Request(Op.DIRECTORY, strings(group.home + b"/keys"), tx)
    path = strings(group.path(step.name))
    if step.kind == WRITE:
        assert isinstance(step.value, bytes)
        return Request(Op.WRITE, path + step.value, tx)
    return Request(Op.READ if step.kind == READ else Op.RM, path, tx)


def answered(step: Step, answer: Answer) -> Step:
    """The step with what came back.  Raises `Failure` if that can be no answer to it."""
    if step.kind in {WRITE, REMOVE}:
        check(answer.outcome == OK, f"{step}: {answer.outcome!r:.80}")
        return step
    if step.kind == READ:
        check(answer.error in {"", "ENOENT"}, f"{step}: {answer.error}")
        return step._replace(value=None if answer.error else answer.body)
    check(answer.error == "" and answer.body[-1:] in {b"", b"\0"}, f"{step}: {answer}")
    return step._replace(value=tuple(answer.body.split(b"\0")[:-1]))


class Actor:
    """One client of a group."""

    def __init__(self, group: Group, peer: Peer, number: int) -> None:
        self.group = group
        self.peer = peer
        self.number = number
        self._values = 0
        self._shots = 0
        group.active += 1

    def some_step(self) -> Step:
        rng = self.peer.rng
        kind = rng.choices((READ, WRITE, REMOVE, LIST), (40, 40, 8, 12))[0]
        name = rng.choice(NAMES) if kind != LIST else b""
        return Step(kind, name, self.new_value() if kind == WRITE else None)

    def new_value(self) -> bytes:
        """One that was never written before."""
        self._values += 1
        return b"%d.%d" % (self.number, self._values)

    def record(self, asked: float, steps: tuple[Step, ...], answered_at: float | None = None) -> None:
        """Something was done, and answered just now; or (`NEVER`) nobody knows."""
        when = time.monotonic() if answered_at is None else answered_at
        self.group.history.append(Operation(self.number, asked, when, steps))
        for name, step in {s.name: s for s in steps if s.kind in {WRITE, REMOVE}}.items():
            self.group.changes.append(watching.Change(self.group.path(name), asked, step.kind == WRITE))

    def act(self, several: int) -> Generator[Wait, None, None]:
        """Some steps, sent in one piece."""
        steps = deque(self.some_step() for _ in range(several))
        asked = time.monotonic()
        requests = [request_of(self.group, step) for step in steps]
        try:
            for request, req_id in zip(requests, self.peer.send(requests), strict=True):
                answer = yield from self.peer.answer(request, req_id)
                self.record(asked, (answered(steps[0], answer),))
                steps.popleft()
        finally:  # of what this client was not told when it failed, the changes may have happened
            for step in steps:
                if step.kind in {WRITE, REMOVE}:
                    self.record(asked, (step,), NEVER)

    def swap(self, last_tx: int) -> Generator[Wait, None, int]:
        """Reads two nodes and writes them, in a transaction (or writes one and then reads the other); its id."""
        peer, group, rng = self.peer, self.group, self.peer.rng
        tx = yield from start(peer, last_tx)
        one, other = rng.sample(NAMES, 2)
        change = Step(REMOVE, one) if rng.random() < 0.1 else Step(WRITE, one, self.new_value())
        first = [rng.choice((change, Step(READ, one))), Step(READ, other)]
        if first[0] is not change and rng.random() < 0.2:
            first.append(Step(LIST))
        answers = yield from peer.exchange([request_of(group, step, tx) for step in first])
        done = [answered(step, answer) for step, answer in zip(first, answers, strict=True)]
        then = [Step(WRITE, other, self.new_value())]
        if first[0] is not change:
            then.append(change)
        if rng.random() < 0.5:
            yield from peer.sleep(rng.random() * HOLD)
        how = rng.choice((b"T", b"T", b"T", b"F"))
        requests = [*(request_of(group, step, tx) for step in then), Request(Op.TRANSACTION_END, strings(how), tx)]
        asked, end = time.monotonic(), b"" if how == b"T" else b"-"
        try:
            answers = yield from peer.exchange(requests)
            done += [answered(step, answer) for step, answer in zip(then, answers[:-1], strict=True)]
            end = answers[-1].body or b"-"
            check(answers[-1].outcome in ({OK, "EAGAIN"} if how == b"T" else {OK}), f"{how!r} ends in {answers[-1]}")
        finally:
            if not end:
                self.record(asked, (*done, *then), NEVER)
        peer.counts["aborts" if how == b"F" else "commits" if end == OK else "conflicts"] += 1
        if how == b"T" and end == OK:
            self.record(asked, tuple(done))
        return tx

    def shoot(self) -> Generator[Wait, None, None]:
        """Writes a node that nobody has written before; or removes them all."""
        epoch, n = divmod(self._shots, SHOTS + 1)
        path = self.group.home + b"/shots/%d-%d" % (self.number, epoch)
        path += b"/%d" % n if n < SHOTS else b""
        asked = time.monotonic()
        answer = yield from self.peer.call(Op.WRITE if n < SHOTS else Op.RM, strings(path))
        check(answer.outcome == OK, f"{path!r}: {answer.outcome!r}")
        self._shots += 1
        self.group.changes.append(watching.Change(path, asked, True))


class Torture(Load):
    """All clients.  Those of `Load` come first."""

    def __init__(self, path: str, seed: int, number: int, kinds: tuple[tuple[str, int], ...]) -> None:
        super().__init__(path, seed, kinds)
        rng = random.Random(f"{seed} {number}")
        self.groups = []
        peers: list[tuple[Peer, Script]] = []

        def peer(name: str, kind: type[SomePeer]) -> SomePeer:
            return kind(name, path, random.Random(rng.random()))

        for g in range(GROUPS):
            home = b"/torture/%d/%d" % (number, g)
            group = Group(home)
            with Client(path) as client:
                client.mkdir((home + b"/keys").decode())
            self.groups.append(group)
            for a in range(ACTORS + 1):
                actor = Actor(group, peer(f"group {g} actor {a}", Peer), len(peers))
                peers.append((actor.peer, self.act(actor, several=a == ACTORS)))
            watcher = peer(f"group {g} watcher", Peer)
            peers.append((watcher, self.observe(group, watcher, lazy=g % LAZY == 0)))
        for f in range(FLOODS):
            flooder = peer(f"flood {f}", Flooder)
            peers.append((flooder, self.flood(flooder)))
        for client_, script in peers:
            self.peers.append(client_)
            self.herd.add(client_, script)

    def act(self, actor: Actor, *, several: bool) -> Script:
        """Works on its group's nodes in competition with others: whatever is lost, repeated, torn or half seen."""
        rng, last_tx = actor.peer.rng, 0
        try:
            while not (actor.group.observed or self.herd.stopping):  # a watcher that has failed observes nothing
                yield from actor.peer.sleep(0.01)
            while not self.herd.stopping:
                what = rng.random()
                if several:
                    yield from actor.act(rng.randint(2, 6))
                elif what < 0.7:
                    yield from actor.act(1)
                elif what < 0.85:
                    last_tx = yield from actor.swap(last_tx)
                else:
                    yield from actor.shoot()
            for step in (*(Step(READ, name) for name in NAMES), Step(LIST)):
                asked = time.monotonic()
                answer = yield from actor.peer.call(*request_of(actor.group, step)[:2])
                actor.record(asked, (answered(step, answer),))
        finally:
            actor.group.active -= 1

    def observe(self, group: Group, peer: Peer, *, lazy: bool) -> Script:
        """Is told of every change in its group."""
        token = b"token" * (100 if lazy else 1)
        yield from watch(peer, group.home, token)
        group.observed = True
        req_id = 0
        while True:
            while peer.has_message or req_id:
                message = yield from peer.message()
                if message.op != Op.WATCH_EVENT:
                    check(message.req_id == req_id, f"{message} answers nothing")
                    return
                path, told, end = peer.checked_event(message).split(b"\0")
                check((told, end) == (token, b""), f"an event with token {told!r:.50}")
                group.events.append(watching.Event(path, time.monotonic()))
            if not group.active:  # whoever is answered has been told of everything before
                (req_id,) = peer.send([Request(Op.GET_DOMAIN_PATH, strings(b"0"))])
                continue
            peer.reading = not lazy
            yield from peer.sleep(peer.rng.random() * LAZY_PAUSE if lazy else 0.002)
            peer.reading = True
            yield from peer.sleep(0.001)

    def flood(self, peer: Flooder) -> Script:
        """Asks a hundred times for the same at once, and must get it, byte for byte."""
        path = b"/torture/" + peer.name.encode().replace(b" ", b"/")
        value = bytes(peer.rng.choices(b"0123456789abcdef", k=60))
        check((yield from peer.call(Op.WRITE, strings(path) + value)).outcome == OK, "WRITE")
        asked = Message(Op.READ, 0, 0, strings(path)).encode() * FLOOD
        expected = Message(Op.READ, 0, 0, value).encode() * FLOOD
        while not self.herd.stopping:
            yield from peer.flood(asked, expected, FLOOD)

    # ---- the end

    def judge(self) -> dict[str, Any]:
        """What the histories say."""
        found: list[str] = []
        kinds: Counter[str] = Counter()
        for group in self.groups:
            try:
                verdict = checker.check(group.history)
            except checker.TooHard as e:
                kinds["undecided"] += 1
                found.append(f"{group.home!r}: {e}")
                continue
            if not verdict.linearizable:
                kinds[verdict.kind] += 1
                found.append(f"{group.home!r}: {checker.KINDS[verdict.kind]}; after {verdict.placed}: {verdict}"[:2000])
            if self.herd.failures:
                continue  # it was broken off: not all events can have come
            told = watching.check(group.changes, group.events)
            kinds["missed"] += len(told.missed)
            kinds["doubled"] += len(told.doubled)
            if told.missed or told.doubled:
                found.append(f"{group.home!r}: events {told}"[:1000])
        return {
            "rejected": found,
            "kinds": kinds,
            "operations": sum(len(group.history) for group in self.groups),
            "changes": sum(len(group.changes) for group in self.groups),
            "events": sum(len(group.events) for group in self.groups),
        }


def main() -> None:
    """The command."""
    path, seed, number, *options = sys.argv[1:]
    alone = "--history" in options
    load = Torture(path, int(seed), int(number), () if alone else EVERYBODY)
    load.herd.tolerant = alone
    load.herd.patience = IMPATIENCE if alone else PATIENCE
    with Client(path) as client:
        client.exists("/")  # whoever connected before has been accepted
    load.herd.listen_to(0, load.stop)
    print("ready", flush=True)
    load.herd.run()
    failures = load.herd.failures
    if not failures:
        try:
            load.verify(path)
            with Client(path) as client:
                client.rm("/torture")
                client.rm("/kill")
        except (Failure, OSError) as e:
            failures.append(f"verifying: {e!r}")
    counts = sum((peer.counts for peer in load.peers), Counter[str]())
    print(json.dumps({"failures": failures, "counts": counts, **load.judge()}), flush=True)


if __name__ == "__main__":
    main()
