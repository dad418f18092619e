"""Twenty clients that keep a daemon saturated and know exactly what it owes them.

    python -m tests.recovery.load SOCKET SEED

prints `ready` when all are connected (the slow ones first), works until a line comes on stdin, then lets every client
finish, compares the whole store with what was acknowledged, and prints one line of JSON: failures and counts.

Each kind of client is one script; its docstring says what it would notice.  None touches what another one predicts.
Knows the protocol, nothing of how the daemon is made or what is done to it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Generator
from typing import Final

from protocol.ops import Op
from tests.conformance.wire import Client
from tests.recovery.clients import Failure, Herd, Peer, Request, Script, Wait, check, strings

OK: Final = b"OK\0"
HOME: Final = b"/kill"
STREAM: Final = HOME + b"/stream"
EPOCH: Final = 200
"""Nodes the stream writes before it removes them all."""
SLOW: Final = 2
KINDS: Final = (
    ("stream", 1),
    ("quick", 2),
    ("keys", 4),
    ("events", 4),
    ("same", 2),
    ("counter", 3),
    ("holder", 1),
    ("big", 1),
)
"""How many clients there are of each other kind; a kind is a method of `Load`."""
EVERYBODY: Final = (("slow", SLOW), *KINDS)
SLOW_PAUSE_MAX: Final = 0.8
"""Seconds in which the stream makes less than may be pending for one connection."""
COUNTERS: Final = 2
OBSERVERS: Final = SLOW + 2
SLOW_TOKEN: Final = b"slow" * 200
"""Long, so that events soon outgrow the region of a client that does not read."""


class Load:
    """What the clients share: which acknowledged values must be in the store at the end."""

    def __init__(self, path: str, seed: int, kinds: tuple[tuple[str, int], ...] = EVERYBODY) -> None:
        self.herd = Herd()
        self.expected: dict[bytes, bytes] = {}
        self.commits: Counter[bytes] = Counter()
        self.observing = 0
        self.streamed = 0
        """Changes of the stream that were acknowledged: whoever watches it is owed as many events."""
        self.stream_ended = False
        rng = random.Random(seed)
        self.peers: list[Peer] = []
        clients = [(getattr(self, kind), f"{kind}{i}") for kind, n in kinds for i in range(n)]
        with Client(path) as client:
            for counter in range(COUNTERS):
                client.write(f"{HOME.decode()}/counter/{counter}", b"0")
        for script, name in clients:
            peer = Peer(name, path, random.Random(rng.random()))
            self.peers.append(peer)
            self.herd.add(peer, script(peer))

    # ---- kinds of clients

    def keys(self, peer: Peer) -> Script:
        """Reads, writes and removes its own nodes, many requests at a time: lost or repeated writes, wrong replies."""
        rng, home = peer.rng, HOME + b"/" + peer.name.encode()
        model: dict[bytes, bytes] = {}
        check((yield from peer.call(Op.MKDIR, strings(home))).body == OK, "MKDIR")
        while not self.herd.stopping:
            batch, expected = [], list[bytes | str]()
            for _ in range(rng.choice((1, 1, 1, 2, 6, 40))):
                request, outcome = _act_on_key(rng, home, model)
                batch.append(request)
                expected.append(outcome)
            answers = yield from peer.exchange(batch)
            for request, answer, outcome in zip(batch, answers, expected, strict=True):
                check(answer.outcome == outcome, f"{request}: {answer.outcome!r:.80}, not {outcome!r:.80}")
        self.expected.update({home + b"/" + name: value for name, value in model.items()})

    def events(self, peer: Peer) -> Script:
        """Watches its own nodes while it changes them: an event lost, made twice or in the wrong place."""
        rng, home, token = peer.rng, HOME + b"/" + peer.name.encode(), b"own token"
        there: set[bytes] = set()
        yield from watch(peer, home, token)
        number = 0
        while not self.herd.stopping:
            batch, expected, late = [], list[list[bytes]](), list[bytes]()
            for name in rng.sample(range(60), rng.choice((1, 1, 3, 10, 30))):
                path = home + b"/%d" % name
                request, fires = _change(rng, path, there)
                batch.append(request)
                expected.append([*late, strings(path, token)] if fires else late)
                late = []
                if rng.random() < 0.1:
                    number += 1
                    other = strings(b"/nowhere/%s/%d" % (peer.name.encode(), number % 7), b"%d" % number)
                    batch += [Request(Op.WATCH, other), Request(Op.UNWATCH, other)]
                    expected += [[], [other]]
            answers = yield from peer.exchange(batch)
            for request, answer, events in zip(batch, answers, expected, strict=True):
                check(answer.error == "", f"{request}: {answer.error}")
                check(answer.events == events, f"{request}: events {answer.events}, not {events}")

    def same(self, peer: Peer) -> Script:
        """Watches one node and writes it: exactly one event for a write, at least one for several in one piece."""
        rng, path = peer.rng, HOME + b"/" + peer.name.encode()
        event = strings(path, b"t")
        yield from watch(peer, path, b"t")
        value = 0
        while not self.herd.stopping:
            n = rng.choice((1, 1, 1, 5))
            batch = [Request(Op.WRITE, strings(path) + b"%d" % (value + k)) for k in range(n)]
            value += n
            answers = yield from peer.exchange(batch)
            events = [e for answer in answers for e in answer.events]
            check(set(events) == {event} and len(events) <= n, f"{n} writes made events {events}")
            last = (yield from peer.call(Op.READ, strings(path))).outcome
            check(last == b"%d" % (value - 1), f"{path!r} is {last!r}, not {value - 1}")
        if value:  # it got round to writing at all
            self.expected[path] = b"%d" % (value - 1)

    def counter(self, peer: Peer) -> Script:
        """Counts up in transactions, in competition with others: a commit lost or done twice, a START done twice."""
        rng, last_tx = peer.rng, 0
        while not self.herd.stopping:
            path = HOME + b"/counter/%d" % rng.randrange(COUNTERS)
            tx = yield from start(peer, last_tx)
            last_tx = tx
            reads = yield from peer.exchange([Request(Op.READ, strings(path), tx)] * rng.choice((1, 2)))
            check(all(r.body.isdigit() and r.body == reads[0].body for r in reads), f"reads differ: {reads}")
            value = b"%d" % (int(reads[0].body) + 1)
            write, back = Request(Op.WRITE, strings(path) + value, tx), Request(Op.READ, strings(path), tx)
            answers = yield from peer.exchange([write, back, Request(Op.TRANSACTION_END, strings(b"T"), tx)])
            check([a.outcome for a in answers[:2]] == [OK, value], f"in a transaction: {answers}")
            check(answers[2].outcome in {OK, "EAGAIN"}, f"a commit ends in {answers[2].outcome!r}")
            peer.counts["commits" if answers[2].body else "conflicts"] += 1
            self.commits[path] += answers[2].body == OK

    def holder(self, peer: Peer) -> Script:
        """Keeps transactions open for long: reads that are not repeatable, writes that leak, are lost or committed wrongly."""
        rng, last_tx, home = peer.rng, 0, HOME + b"/" + peer.name.encode()
        a, b, c = (strings(home + b"/" + name) for name in (b"a", b"b", b"c"))
        number = 0
        check((yield from peer.call(Op.WRITE, c + b"0")).body == OK, "WRITE")
        while not self.herd.stopping:
            number += 1
            old, new = b"old %d" % number, b"new %d" % number
            before = (yield from peer.call(Op.READ, c)).body
            check((yield from peer.call(Op.WRITE, a + old)).body == OK, "WRITE")
            tx = last_tx = yield from start(peer, last_tx)
            answers = yield from peer.exchange([Request(Op.READ, a, tx), Request(Op.WRITE, c + new, tx)])
            check([x.outcome for x in answers] == [old, OK], f"at first: {answers}")
            yield from peer.sleep(rng.random() * 0.05)
            conflict = rng.random() < 0.5
            yield from peer.exchange([Request(Op.WRITE, (a if conflict else b) + new)])
            yield from peer.sleep(rng.random() * 0.05)
            answers = yield from peer.exchange([Request(Op.READ, a, tx), Request(Op.READ, c, tx), Request(Op.READ, c)])
            check([x.outcome for x in answers] == [old, new, before], f"later: {answers}")
            how = rng.choice((b"T", b"T", b"F"))
            end = (yield from peer.call(Op.TRANSACTION_END, strings(how), tx)).outcome
            check(end == ("EAGAIN" if conflict and how == b"T" else OK), f"{how!r}, conflict {conflict}: {end!r}")
            after = (yield from peer.call(Op.READ, c)).outcome
            check(
                after == (new if how == b"T" and not conflict else before), f"{how!r}, conflict {conflict}: {after!r}"
            )
            again = (yield from peer.call(Op.READ, c, tx)).outcome
            check(again == "ENOENT", f"a transaction that is over: {again!r}")

    def big(self, peer: Peer) -> Script:
        """Asks for far more than fits its regions and reads it late: output lost, repeated or torn."""
        rng, path = peer.rng, HOME + b"/" + peer.name.encode()
        while not self.herd.stopping:
            value = rng.randbytes(rng.randint(0, 4000 - len(path)))
            reads = [Request(Op.READ, strings(path))] * rng.randint(1, 120)
            batch = [Request(Op.WRITE, strings(path) + value), *reads]
            ids = peer.send(batch)
            peer.reading = rng.random() < 0.3
            yield from peer.sleep(rng.random() * 0.1)
            peer.reading = True
            for request, req_id in zip(batch, ids, strict=True):
                answer = yield from peer.answer(request, req_id)
                check(answer.outcome == (OK if request is batch[0] else value), f"READ {answer.outcome!r:.80}")
            self.expected[path] = value

    def stream(self, peer: Peer) -> Script:
        """Makes the events that the slow clients watch."""
        while self.observing < OBSERVERS:
            yield from peer.sleep(0.01)
        while not self.herd.stopping:
            batch = []
            for number in range(self.streamed, self.streamed + peer.rng.choice((1, 5, 25))):
                path = _stream_path(number)
                batch.append(Request(Op.RM if number % (EPOCH + 1) == EPOCH else Op.WRITE, strings(path)))
            answers = yield from peer.exchange(batch)
            check(all(a.outcome == OK for a in answers), f"the stream: {answers}")
            self.streamed += len(batch)
        self.stream_ended = True

    def slow(self, peer: Peer) -> Script:
        """Watches the stream and seldom reads: events beyond its region lost, repeated, torn or out of order."""
        yield from self._observe(peer, SLOW_TOKEN, SLOW_PAUSE_MAX)

    def quick(self, peer: Peer) -> Script:
        """Watches the stream and reads what comes: the same of events that go out at once."""
        yield from self._observe(peer, b"quick", 0)

    def _observe(self, peer: Peer, token: bytes, pause_max: float) -> Script:
        yield from watch(peer, STREAM, token)
        self.observing += 1
        number = 0
        while not self.stream_ended or number < self.streamed:
            peer.reading = not pause_max
            yield from peer.sleep(peer.rng.random() * pause_max or 0.001)
            peer.reading = True
            for n in range(number, self.streamed):
                event = yield from peer.event()
                expected = strings(_stream_path(n), token)
                check(event == expected, f"event {event!r:.50}, not {expected!r:.50}")
                number = n + 1

    # ---- the end

    def stop(self) -> None:
        os.read(0, 1)
        self.herd.stopping = True

    def verify(self, path: str) -> None:
        """Compares what a new connection finds with what was acknowledged."""
        for counter in range(COUNTERS):
            node = HOME + b"/counter/%d" % counter
            self.expected[node] = b"%d" % self.commits[node]
        with Client(path) as client:
            for node, value in self.expected.items():
                found = client.outcome(Op.READ, strings(node))
                if found != value:
                    self.herd.failures.append(f"{node!r} is {found!r:.80} in the end, not {value!r:.80}")


def _act_on_key(rng: random.Random, home: bytes, model: dict[bytes, bytes]) -> tuple[Request, bytes | str]:
    """A request on one of 40 nodes and its outcome, given those before it."""
    name = b"%d" % rng.randrange(40)
    path = strings(home + b"/" + name)
    match rng.choices(("write", "read", "rm", "mkdir", "directory", "wrong"), (45, 30, 10, 5, 5, 5))[0]:
        case "write":
            model[name] = rng.randbytes(rng.choice((0, 8, 8, 100, 100, 3000)))
            return Request(Op.WRITE, path + model[name]), OK
        case "read":
            return Request(Op.READ, path), model.get(name, "ENOENT")
        case "rm":
            model.pop(name, None)
            return Request(Op.RM, path), OK
        case "mkdir":
            model.setdefault(name, b"")
            return Request(Op.MKDIR, path), OK
        case "directory":
            return Request(Op.DIRECTORY, strings(home)), strings(*model)
    return Request(Op.READ, path.rstrip(b"\0")), "EINVAL"


def _change(rng: random.Random, path: bytes, there: set[bytes]) -> tuple[Request, bool]:
    """A request on a node and whether it makes an event."""
    op = rng.choice((Op.WRITE, Op.WRITE, Op.MKDIR, Op.RM))
    existed = path in there
    if op == Op.RM:
        there.discard(path)
        # There is nothing below which nothing could be removed, so make sure of the parent.
        return (Request(op, strings(path)), True) if existed else (Request(Op.GET_DOMAIN_PATH, strings(b"1")), False)
    there.add(path)
    return Request(op, strings(path)), op == Op.WRITE or not existed


def watch(peer: Peer, path: bytes, token: bytes) -> Generator[Wait, None, None]:
    check((yield from peer.call(Op.WATCH, strings(path, token))).outcome == OK, "WATCH")
    event = yield from peer.event()
    check(event == strings(path, token), f"first event {event!r}")


def start(peer: Peer, last: int) -> Generator[Wait, None, int]:
    """Starts a transaction: ids of one connection follow one another, or a START was done twice."""
    answer = yield from peer.call(Op.TRANSACTION_START, b"\0")
    check(answer.body[:-1].isdigit(), f"TRANSACTION_START: {answer}")
    tx = int(answer.body[:-1])
    check(tx == last + 1, f"transaction {tx} follows {last}")
    return tx


def _stream_path(number: int) -> bytes:
    epoch, k = divmod(number, EPOCH + 1)
    return STREAM + b"/%d" % epoch + (b"/%d" % k if k < EPOCH else b"")


def main() -> None:
    """The command."""
    path, seed = sys.argv[1:]
    load = Load(path, int(seed))
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


if __name__ == "__main__":
    main()
