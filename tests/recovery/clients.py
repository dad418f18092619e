"""Many clients in one process, each a script that knows what must come back to it.

A script is a generator: it sends requests through its `Peer` and waits for messages or for time to pass; the `Herd` runs
all scripts on one epoll set.  A peer checks what holds for every connection: it is never closed, replies come in the order
of requests, each with the right ids and type, and every message is whole.  What replies and events must say is the
business of the scripts (`load`).
Sends as it is told: many requests in one piece, or messages cut into pieces with pauses in between.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from protocol.ops import Op
from protocol.wire import Framer, FramingViolation, Message

PATIENCE: Final = 20.0
"""Seconds within which a message that is waited for must come, restarts of Logic included."""
CUT: Final = 0.2
"""How often what is sent is cut into pieces."""
PAUSE_MAX: Final = 0.004
"""Longest pause between two pieces, in seconds."""
RECEIVE: Final = 65536


class Failure(Exception):
    """What a client got is not what it must get."""


class Request(NamedTuple):
    """One request."""

    op: int
    payload: bytes
    tx: int = 0


class Answer(NamedTuple):
    """What came back: events before the reply, and the reply's payload or the error's name."""

    events: list[bytes]
    body: bytes
    error: str

    @property
    def outcome(self) -> bytes | str:
        return self.error or self.body


class Wait(NamedTuple):
    """What a script waits for: a message, or (if not None) a point in time."""

    until: float | None


Script = Generator[Wait, None, None]
A_MESSAGE: Final = Wait(None)


def check(true: bool, what: str) -> None:
    """Raises `Failure` unless true."""
    if not true:
        raise Failure(what)


def strings(*parts: bytes) -> bytes:
    """The parts, each followed by a NUL."""
    return b"".join(part + b"\0" for part in parts)


class Peer:
    """One connection and what it has on the way."""

    def __init__(self, name: str, path: str, rng: random.Random) -> None:
        self.name = name
        self.rng = rng
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.counts: Counter[str] = Counter()
        self.reading = True
        self._framer = Framer()
        self._inbox: deque[Message] = deque()
        self._outbox: deque[tuple[float, bytes]] = deque()
        """Pieces, each with the pause before it."""
        self._due: float | None = None
        """When the pause before the first piece is over."""
        self._last_id = 0

    # ---- for scripts

    def send(self, requests: Sequence[Request]) -> list[int]:
        """Sends requests in one piece or cut anywhere; their req_ids."""
        ids = []
        data = bytearray()
        for request in requests:
            self._last_id += 1
            ids.append(self._last_id)
            data += Message(request.op, self._last_id, request.tx, request.payload).encode()
        self.counts["requests"] += len(requests)
        cuts = []
        if self.rng.random() < CUT:
            cuts = sorted(self.rng.sample(range(1, len(data)), self.rng.randint(1, 3)))
            self.counts["cut sends"] += 1
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self._outbox.append((self.rng.random() * PAUSE_MAX if start else 0, bytes(data[start:end])))
        return ids

    def message(self) -> Generator[Wait, None, Message]:
        """The next message."""
        while not self._inbox:
            yield A_MESSAGE
        return self._inbox.popleft()

    def event(self) -> Generator[Wait, None, bytes]:
        """The next message, which must be an event; its payload."""
        message = yield from self.message()
        check(message.op == Op.WATCH_EVENT, f"{message} instead of an event")
        return self.checked_event(message)

    def exchange(self, requests: Sequence[Request]) -> Generator[Wait, None, list[Answer]]:
        """Sends requests and waits for the answers."""
        ids = self.send(requests)
        answers = []
        for request, req_id in zip(requests, ids, strict=True):
            answers.append((yield from self.answer(request, req_id)))
        return answers

    def call(self, op: int, payload: bytes, tx: int = 0) -> Generator[Wait, None, Answer]:
        """One round trip."""
        answers = yield from self.exchange([Request(op, payload, tx)])
        return answers[0]

    def answer(self, request: Request, req_id: int) -> Generator[Wait, None, Answer]:
        """The answer to a request already sent."""
        events = []
        message = yield from self.message()
        while message.op == Op.WATCH_EVENT:
            events.append(self.checked_event(message))
            message = yield from self.message()
        check(
            (message.req_id, message.tx_id) == (req_id, request.tx) and message.op in {request.op, Op.ERROR},
            f"{message} answers request {req_id}, {request}",
        )
        if message.op == Op.ERROR:
            return Answer(events, b"", message.payload.rstrip(b"\0").decode())
        return Answer(events, message.payload, "")

    def sleep(self, seconds: float) -> Generator[Wait, None, None]:
        """Lets time pass.  Messages are received meanwhile unless `reading` is off."""
        yield Wait(time.monotonic() + seconds)

    def checked_event(self, message: Message) -> bytes:
        check(message.req_id == message.tx_id == 0, f"an event with ids: {message}")
        check(message.payload.count(b"\0") == 2 and message.payload.endswith(b"\0"), f"a torn event: {message}")
        self.counts["events"] += 1
        return message.payload

    # ---- for the herd

    @property
    def has_message(self) -> bool:
        return bool(self._inbox)

    def take(self) -> bytes:
        """Bytes that are there; none if there are none yet."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise Failure(f"the connection broke: {e}") from None
        check(data != b"", "the daemon closed the connection")
        return data

    def receive(self) -> None:
        """Takes what is there."""
        data = self.take()
        if not data:
            return
        try:
            self._inbox.extend(self._framer.feed(data))
        except FramingViolation as e:
            raise Failure(f"the stream is torn: {e}") from None

    def transmit(self, now: float) -> float | None:
        """Sends what is due; when to come back: a time, 0 for when the socket takes more, None if there is nothing."""
        outbox = self._outbox
        while outbox:
            pause, data = outbox[0]
            if self._due is None:
                self._due = now + pause
            if self._due > now:
                return self._due
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                return 0
            except OSError as e:
                raise Failure(f"the connection broke: {e}") from None
            if sent < len(data):
                outbox[0] = 0, data[sent:]
                return 0
            outbox.popleft()
            self._due = None
        return None


class _Running:
    """A peer with its script and where that stands."""

    def __init__(self, peer: Peer, script: Script) -> None:
        self.peer = peer
        self.script = script
        self.until: float | None = time.monotonic()
        self.since = time.monotonic()
        self.interest = 0
        self.retry: float | None = None


class Herd:
    """Runs scripts until all have ended."""

    def __init__(self) -> None:
        self.stopping = False
        """Scripts should come to their end."""
        self.failures: list[str] = []
        self.tolerant = False
        """Whether the others go on when one has failed."""
        self.patience = PATIENCE
        self._running: dict[int, _Running] = {}
        self._epoll = select.epoll()
        self._others: dict[int, Callable[[], None]] = {}

    def add(self, peer: Peer, script: Script) -> None:
        """A client."""
        running = _Running(peer, script)
        self._running[peer.sock.fileno()] = running
        self._epoll.register(peer.sock.fileno(), 0)

    def listen_to(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back once a descriptor is readable."""
        self._others[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Until every script has ended or one has failed."""
        while self._running and (self.tolerant or not self.failures):
            now = time.monotonic()
            timeout = 0.5
            for running in list(self._running.values()):
                timeout = min(timeout, self._advance(running, now))
            for fd, mask in self._epoll.poll(max(timeout, 0)):
                if fd in self._others:
                    self._epoll.unregister(fd)
                    self._others.pop(fd)()
                elif fd in self._running and mask & ~select.EPOLLOUT:
                    self._guarded(self._running[fd], self._running[fd].peer.receive)

    def _advance(self, running: _Running, now: float) -> float:
        """Runs a script as far as it goes; seconds until it must be looked at again."""
        peer = running.peer

        def go() -> None:
            while peer.has_message if running.until is None else running.until <= now:
                running.until = next(running.script).until
                running.since = now
            running.retry = peer.transmit(now)
            waited = now - running.since
            check(running.until is not None or waited < self.patience, f"nothing came for {waited:.0f} s")

        if not self._guarded(running, go):
            return 0
        interest = (select.EPOLLIN if peer.reading else 0) | (select.EPOLLOUT if running.retry == 0 else 0)
        if interest != running.interest:
            running.interest = interest
            self._epoll.modify(peer.sock.fileno(), interest)
        times = [t - now for t in (running.until, running.retry) if t]
        return min(times, default=0.5)

    def _guarded(self, running: _Running, go: Callable[[], None]) -> bool:
        """Does something for a script; False when that has ended it."""
        try:
            go()
        except StopIteration:
            pass
        except Failure as e:
            self.failures.append(f"{running.peer.name}: {e}")
        else:
            return True
        del self._running[running.peer.sock.fileno()]
        self._epoll.unregister(running.peer.sock.fileno())
        return False
