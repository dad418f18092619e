"""A raw XenStore client for the test-suite, written against the wire format alone.

It imports nothing from this project, so that a mistake in the project's own framing cannot hide itself.
It sends exactly the bytes it is told to, valid or not, and keeps every message in the order of arrival;
it does not know paths, permissions or transactions.  Byte order is the host's, as on the wire.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

HEADER = struct.Struct("=IIII")
PAYLOAD_MAX = 4096
PATIENCE = 20.0 if os.environ.get("XOARSTORE_RESTART") else 5.0
"""Seconds within which a daemon that is alive answers, even on a loaded machine; more if it restarts all the time."""


class Op(IntEnum):
    """Operation numbers of `xen/include/public/io/xs_wire.h`."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESTRICT = 20
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class Message(NamedTuple):
    """One message as it arrived; `op` stays a plain number, for it may be any."""

    op: int
    req_id: int
    tx_id: int
    payload: bytes


class Event(NamedTuple):
    """The two strings of a watch event."""

    path: bytes
    token: bytes


class WireError(Exception):
    """The daemon answered a request with an error; `name` is what it wrote, such as `ENOENT`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Closed(Exception):
    """The daemon hung up."""


def pack(op: int, payload: bytes = b"", *, req_id: int = 0, tx: int = 0, length: int | None = None) -> bytes:
    """A whole message; `length` overrides the header's length field."""
    return HEADER.pack(op, req_id, tx, len(payload) if length is None else length) + payload


def strings(*parts: bytes | str | int) -> bytes:
    """The parts, each followed by a NUL: the argument form of most requests."""
    return b"".join((part if isinstance(part, bytes) else str(part).encode("latin-1")) + b"\0" for part in parts)


def connect(path: str | Path) -> socket.socket:
    """A connected socket; waits when the daemon's queue of new connections is full."""
    deadline = time.monotonic() + PATIENCE
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:  # the queue is full, and only a socket without timeout would wait
            if time.monotonic() > deadline:
                sock.close()
                raise
            time.sleep(0.001)
        except OSError:
            sock.close()
            raise
        else:
            return sock


class Client:
    """One connection to a daemon's socket; over another transport (`send_raw`, `receive_raw`, `close`), see `xen.Guest`.

    `call` returns the reply to a request and keeps the events that arrived before it in `events`;
    `arrived` has every message since the last `forget`, in order.
    """

    def __init__(self, path: str | Path) -> None:
        self.sock = connect(path)
        self._begin()

    @classmethod
    def of(cls, sock: socket.socket) -> Self:
        """A client on a socket that is connected already."""
        client = cls.__new__(cls)
        client.sock = sock
        client._begin()
        return client

    def _begin(self) -> None:
        self.pending = bytearray()
        self.arrived: list[Message] = []
        self.events: list[Event] = []
        self._req_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def forget(self) -> None:
        """Drops what is remembered of earlier messages."""
        self.arrived.clear()
        self.events.clear()

    # ---- bytes

    def send_raw(self, data: bytes, *, timeout: float = PATIENCE) -> None:
        """Sends bytes as they are; raises TimeoutError when the daemon does not take them, Closed at its end."""
        self.sock.settimeout(timeout)
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from error

    def receive_raw(self, timeout: float) -> bytes:
        """The next bytes as they are; raises TimeoutError or Closed."""
        self.sock.settimeout(timeout)
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError as error:
            raise Closed(str(error)) from error
        if not data:
            raise Closed(f"{len(self.pending)} bytes of a message were left")
        return data

    def send(self, op: int, payload: bytes = b"", *, tx: int = 0, req_id: int | None = None) -> int:
        """Sends one message and returns its req_id."""
        if req_id is None:
            self._req_id += 1
            req_id = self._req_id
        self.send_raw(pack(op, payload, req_id=req_id, tx=tx))
        return req_id

    def receive(self, timeout: float = PATIENCE) -> Message:
        """The next message; raises TimeoutError or Closed.  A torn message at the end counts as closed."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self.pending) >= HEADER.size:
                op, req_id, tx_id, length = HEADER.unpack_from(self.pending)
                end = HEADER.size + length
                if len(self.pending) >= end:
                    message = Message(op, req_id, tx_id, bytes(self.pending[HEADER.size : end]))
                    del self.pending[:end]
                    self.arrived.append(message)
                    if op == Op.WATCH_EVENT:
                        path, token, *_ = message.payload.split(b"\0")
                        self.events.append(Event(path, token))
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message within the time given")
            self.pending += self.receive_raw(left)

    def is_closed_by_daemon(self, timeout: float = PATIENCE) -> bool:
        """True when the daemon hangs up within the time; whatever comes before is kept in `arrived`."""
        try:
            while True:
                self.receive(timeout)
        except Closed:
            return True
        except TimeoutError:
            return False

    # ---- requests

    def reply(self, req_id: int, timeout: float = PATIENCE) -> Message:
        """The reply to the request with this req_id, error replies included."""
        while True:
            message = self.receive(timeout)
            if message.op != Op.WATCH_EVENT and message.req_id == req_id:
                return message

    def ask(self, op: int, payload: bytes = b"", *, tx: int = 0) -> Message:
        """One round trip; the reply as it came, error replies included."""
        return self.reply(self.send(op, payload, tx=tx))

    def call(self, op: int, payload: bytes = b"", *, tx: int = 0) -> bytes:
        """One round trip; the reply's payload, or WireError."""
        message = self.ask(op, payload, tx=tx)
        if message.op == Op.ERROR:
            raise WireError(message.payload.rstrip(b"\0").decode("latin-1"))
        assert message.op == op, f"the reply to operation {op} has type {message.op}"
        return message.payload

    def outcome(self, op: int, payload: bytes = b"", *, tx: int = 0) -> bytes | str:
        """One round trip; the reply's payload as bytes, or the error's name as a string."""
        try:
            return self.call(op, payload, tx=tx)
        except WireError as error:
            return error.name

    def pipeline(self, requests: Iterable[tuple[int, bytes]]) -> list[Message]:
        """Sends all requests in one piece and returns the replies in order of arrival."""
        data, wanted = bytearray(), set[int]()
        for op, payload in requests:
            self._req_id += 1
            wanted.add(self._req_id)
            data += pack(op, payload, req_id=self._req_id)
        self.send_raw(bytes(data))
        replies: list[Message] = []
        while len(replies) < len(wanted):
            message = self.receive()
            if message.op != Op.WATCH_EVENT:
                assert message.req_id in wanted
                replies.append(message)
        return replies

    def events_so_far(self) -> list[Event]:
        """All events the daemon has caused up to now, and forgets them.

        A daemon answers in order, so a round trip collects every event of what was done before, on whichever
        connection, provided that was answered.
        """
        self.call(Op.GET_DOMAIN_PATH, b"0\0")
        events = list(self.events)
        self.forget()
        return events

    # ---- the operations that nearly every test needs

    def read(self, path: str, *, tx: int = 0) -> bytes:
        return self.call(Op.READ, strings(path), tx=tx)

    def write(self, path: str, value: bytes = b"", *, tx: int = 0) -> None:
        assert self.call(Op.WRITE, strings(path) + value, tx=tx) == b"OK\0"

    def mkdir(self, path: str, *, tx: int = 0) -> None:
        assert self.call(Op.MKDIR, strings(path), tx=tx) == b"OK\0"

    def rm(self, path: str, *, tx: int = 0) -> None:
        assert self.call(Op.RM, strings(path), tx=tx) == b"OK\0"

    def directory(self, path: str, *, tx: int = 0) -> list[bytes]:
        listing = self.call(Op.DIRECTORY, strings(path), tx=tx)
        assert listing == b"" or listing.endswith(b"\0")
        return listing.split(b"\0")[:-1]

    def children(self, path: str) -> list[bytes]:
        """Names of any number of children; none if there is no such node."""
        try:
            return self.directory(path)
        except WireError as error:
            if error.name == "ENOENT":
                return []
            if error.name != "E2BIG":
                raise
        listing = b""
        while not listing.endswith(b"\0\0"):
            listing += self.call(Op.DIRECTORY_PART, strings(path, len(listing))).partition(b"\0")[2]
        return listing.split(b"\0")[:-2]

    def get_perms(self, path: str, *, tx: int = 0) -> list[bytes]:
        return self.call(Op.GET_PERMS, strings(path), tx=tx).split(b"\0")[:-1]

    def set_perms(self, path: str, *perms: str, tx: int = 0) -> None:
        assert self.call(Op.SET_PERMS, strings(path, *perms), tx=tx) == b"OK\0"

    def exists(self, path: str, *, tx: int = 0) -> bool:
        return self.outcome(Op.READ, strings(path), tx=tx) != "ENOENT"

    def watch(self, path: str, token: str, *extra: str) -> None:
        """Sets a watch and takes its initial event away."""
        assert self.call(Op.WATCH, strings(path, token, *extra)) == b"OK\0"
        first = self.receive()
        assert (first.op, first.payload) == (Op.WATCH_EVENT, strings(path, token))
        self.events.pop()

    def start(self) -> int:
        return int(self.call(Op.TRANSACTION_START, b"\0").rstrip(b"\0"))

    def commit(self, tx: int) -> str:
        """`OK`, or the error's name."""
        outcome = self.outcome(Op.TRANSACTION_END, b"T\0", tx=tx)
        return outcome if isinstance(outcome, str) else outcome.rstrip(b"\0").decode()

    def abort(self, tx: int) -> None:
        assert self.call(Op.TRANSACTION_END, b"F\0", tx=tx) == b"OK\0"
