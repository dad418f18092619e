"""`FakeDaemon`: a scripted daemon in a thread, for the tests of the clients, and the tests of itself.

It follows the wire format with the project's own framer and does only what the test tells it to: it knows no nodes.
"""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import StoreError
from protocol.ops import Op
from protocol.wire import ACK, Framer, Message, error_reply, watch_event

Answer = Callable[[Message], bytes | None]
"""What to send for a message, if anything."""
PATIENCE = 5.0


def ok(request: Message, payload: bytes = ACK) -> bytes:
    """The encoded reply that grants a request."""
    return Message(request.op, request.req_id, request.tx_id, payload).encode()


def no(request: Message, name: str) -> bytes:
    """The encoded reply that refuses it."""
    return error_reply(request, StoreError(name)).encode()


def event(path: str, token: bytes) -> bytes:
    """An encoded watch event."""
    encoded = watch_event(path.encode(), token)
    assert encoded is not None
    return encoded


def token_of(request: Message) -> bytes:
    """The token of a WATCH."""
    return request.payload.split(b"\0")[1]


class FakeDaemon:
    """Listens at `path`; calls `answer` for every message; keeps what it `received`, in order."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = str(path)
        self.received: list[Message] = []
        self.connections = 0
        self._answer = answer
        self._changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.may_read = threading.Event()
        """Cleared: the daemon reads nothing."""
        self.may_read.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self.may_read.set()
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive()

    def send(self, data: bytes) -> None:
        """Sends bytes to the client that connected last."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._peer, PATIENCE)
            peer = self._peer
        assert peer is not None
        peer.sendall(data)

    def hang_up(self) -> None:
        """Closes the present connection."""
        with self._changed:
            if self._peer is not None:
                self._peer.shutdown(socket.SHUT_RDWR)

    def wait_for(self, count: int) -> list[Message]:
        """What was received, once it is so many messages."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, PATIENCE), self.received
            return list(self.received)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                with self._changed:
                    self._peer = peer
                    self.connections += 1
                    self._changed.notify_all()
                try:
                    self._talk(peer)
                except OSError:
                    pass
                with self._changed:
                    self._peer = None

    def _talk(self, peer: socket.socket) -> None:
        framer = Framer()
        while self.may_read.wait() and (data := peer.recv(65536)):
            for message in framer.feed(data):
                with self._changed:
                    self.received.append(message)
                    self._changed.notify_all()
                answer = self._answer(message)
                if answer is not None:
                    peer.sendall(answer)


def test_the_fake_daemon_answers_as_it_is_told(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "s", lambda m: ok(m, b"v")) as daemon, socket.socket(socket.AF_UNIX) as client:
        request = Message(Op.READ, 5, 6, b"/a\0")
        client.connect(daemon.path)
        client.sendall(request.encode())
        assert client.recv(100) == Message(Op.READ, 5, 6, b"v").encode()
        assert daemon.wait_for(1) == [request]
        daemon.send(b"more")
        assert client.recv(100) == b"more"
        daemon.hang_up()
        assert client.recv(100) == b""


def test_the_fake_daemon_may_stop_before_anybody_connects(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "s", ok):
        pass
