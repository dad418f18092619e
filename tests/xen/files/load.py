"""Requests without a pause, until told to stop; reports what it saw.  Runs in guests and in dom0, through device or socket.

    load.py PATH BASE [DISK]

PATH is the xenbus device or the daemon's socket, BASE where it may write.  Several connections have a request each in flight:
values written and read back, transactions that count, nodes made and removed, requests that must be refused.  One more
watches /load/ticks, where somebody writes 0, 1, 2, ... and then "end": it must see each of them once, in order.
DISK is read all the while: its sector N begins with "sector N.".  At the end BASE/result says how much was done, or what went
wrong.  Imports little, because a guest has only the modules that image.py names.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    Request = tuple[int, int, bytes, bytes]
    Body = Generator[Request, bytes, None]

DIRECTORY, READ, WATCH, START, END, WRITE, MKDIR, RM, EVENT, ERROR = 1, 2, 4, 6, 7, 11, 12, 13, 15, 16
HEADER = struct.Struct("=IIII")
TICKS = "/load/ticks"
PATIENCE = 60.0
"""Seconds within which something must arrive."""
SECTOR = 512
SECTORS = 64


class Wrong(Exception):
    """Something that must not be."""


def ask(op: int, *fields: str, tx: int = 0) -> Request:
    """A request to be answered with success; each field ends with a NUL, except a value to be written."""
    text = "\0".join(fields)
    return op, tx, (text if op == WRITE else text + "\0").encode(), b""


def refused(op: int, *fields: str, error: str) -> Request:
    """A request to be refused."""
    return *ask(op, *fields)[:3], error.encode() + b"\0"


def expect(got: bytes, wanted: str, what: str) -> None:
    if got != wanted.encode():
        raise Wrong(f"{what}: {got!r} instead of {wanted!r}")


class Channel:
    """One connection, and the requests that are made through it one after another."""

    def __init__(self, path: str, body: Body, on_event: Callable[[bytes], None]) -> None:
        self.fd = connect(path)
        self.busy = True
        self.answered = 0
        self._body = body
        self._on_event = on_event
        self._buffer = b""
        self._send(next(body))

    def _send(self, request: Request) -> None:
        op, tx, payload, self._refusal = request
        self._op = op
        self.last = f"answer to operation {op} {payload[:60]!r}"
        os.write(self.fd, HEADER.pack(op, 0, tx, len(payload)) + payload)

    def receive(self) -> None:
        """Takes what has arrived, and makes the next request."""
        for op, payload in self._messages():
            if op == EVENT:
                self._on_event(payload)
                continue
            good = payload == self._refusal if op == ERROR else op == self._op and not self._refusal
            if not good:
                raise Wrong(f"{self.last} is {payload[:60]!r} (type {op})")
            self.answered += 1
            try:
                self._send(self._body.send(payload))
            except StopIteration:
                self.busy = False

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        chunk = os.read(self.fd, 8192)
        if not chunk:
            raise Wrong("the connection was closed")
        self._buffer += chunk
        while len(self._buffer) >= HEADER.size:
            op, _, _, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            payload, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
            yield op, payload


def connect(path: str) -> int:
    if path.startswith("/dev/"):
        return os.open(path, os.O_RDWR)
    import socket

    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        return s.detach()


class Load:
    """Everything that goes on until the last tick."""

    def __init__(self, path: str, base: str, disk: str) -> None:
        self._path, self._base, self._disk = path, base, disk
        self._running = True
        self._ticks: list[str] = []
        self._commits = self._disk_reads = 0
        self._channels: list[Channel] = []

    def run(self) -> None:
        bodies = [self._watch(), self._values(), self._count(), self._children()]
        if not self._base.startswith("/"):
            bodies.append(self._refusals())
        self._channels = [Channel(self._path, body, self._event) for body in bodies]
        self._serve()
        if self._ticks != [str(n) for n in range(len(self._ticks))]:
            raise Wrong("ticks seen: " + " ".join(self._ticks))

    def _serve(self) -> None:
        poll = select.poll()
        by_fd = {channel.fd: channel for channel in self._channels}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        disk = self._sectors() if self._disk else None
        heard = time.monotonic()
        while self._running or any(channel.busy for channel in self._channels):
            ready = poll.poll(50)
            if ready:
                heard = time.monotonic()
            elif time.monotonic() > heard + PATIENCE:
                missing = [channel.last for channel in self._channels if channel.busy]
                raise Wrong("nothing arrives: " + (", ".join(missing) or "the next tick"))
            for fd, _ in ready:
                by_fd[fd].receive()
            if disk:
                next(disk)

    # ---- what the connections do

    def _watch(self) -> Body:
        yield ask(WATCH, TICKS, "ticks")

    def _event(self, payload: bytes) -> None:
        path = payload.split(b"\0")[0].decode()
        if path == f"{TICKS}/end":
            self._running = False
        elif path != TICKS:  # the first event only says that the watch stands
            self._ticks.append(path.rpartition("/")[2])

    def _values(self) -> Body:
        node = f"{self._base}/value"
        n = 0
        while self._running:
            n += 1
            yield ask(WRITE, node, str(n))
            expect((yield ask(READ, node)), str(n), "a value read back")
            yield ask(READ, "name")

    def _count(self) -> Body:
        node = f"{self._base}/counter"
        yield ask(WRITE, node, "0")
        while self._running:
            tx = int((yield ask(START, "")).rstrip(b"\0"))
            expect((yield ask(READ, node, tx=tx)), str(self._commits), "the counter in a transaction")
            yield ask(WRITE, node, str(self._commits + 1), tx=tx)
            yield ask(END, "T", tx=tx)
            self._commits += 1

    def _children(self) -> Body:
        parent = f"{self._base}/nodes"
        n = 0
        while self._running:
            n += 1
            yield ask(MKDIR, f"{parent}/{n}")
            expect((yield ask(DIRECTORY, parent)), f"{n}\0", "the children")
            yield ask(RM, f"{parent}/{n}")
            yield refused(READ, f"{parent}/{n}", error="ENOENT")

    def _refusals(self) -> Body:
        while self._running:
            yield refused(WRITE, "/local/domain/0/name", "mine", error="EACCES")

    def _sectors(self) -> Iterator[None]:
        """Reads a sector of the disk at each step, past the kernel's cache."""
        import mmap

        buffer = mmap.mmap(-1, SECTOR)  # aligned, as such reading wants it
        fd = os.open(self._disk, os.O_RDONLY | os.O_DIRECT)
        while True:
            n = self._disk_reads % SECTORS
            os.preadv(fd, [buffer], n * SECTOR)
            expect(buffer[: buffer.find(b".") + 1], f"sector {n}.", "the disk")
            self._disk_reads += 1
            yield

    # ---- the end

    def report(self, error: str) -> None:
        """Writes BASE/result."""
        answered = sum(channel.answered for channel in self._channels)
        text = (
            f"answers={answered} commits={self._commits} ticks={len(self._ticks)} disk={self._disk_reads} error={error}"
        )
        print("load: " + text, flush=True)
        ended = Channel(self._path, iter_once(ask(WRITE, f"{self._base}/result", text)), lambda _: None)
        while ended.busy:
            ended.receive()


def iter_once(request: Request) -> Body:
    yield request


def main() -> int:
    load = Load(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
    error = "none"
    try:
        load.run()
    except (Wrong, OSError, ValueError) as e:
        error = f"{type(e).__name__}: {e}"
    load.report(error)
    return error != "none"


if __name__ == "__main__":
    sys.exit(main())
