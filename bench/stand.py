"""Both halves of the daemon in one process, on one connection: what counts and micro-benchmarks look into.

For: `bench.workload`, `bench.micro`.
Guarantees: requests go through the same loop, lanes, core, journal and applier as in the daemon, over a socket pair; nothing
is left behind after `close`.
Does not know: forks, signals, the hypervisor.
"""

import select
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

from protocol.wire import Message
from recovery_box.box import Box, shared_memory_directory
from recovery_box.items import Connection
from recovery_box.journal import Consumer, Producer
from recovery_box.lanes import output_made, prepare_slot
from xenstore_logic.core import Core
from xenstore_logic.loop import Loop
from xenstore_logic.requests import ROWS
from xenstore_state.domains import PRIVILEGED
from xenstore_state.records import Applier
from xenstore_state.store import Store

SLOT, CONNECTION = 0, 1
SLOTS = 8
RECEIVE = 1 << 16


class Stand:
    """Logic, State and a client, none of which waits for another."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=shared_memory_directory(tempfile.gettempdir()))
        self.box = Box(str(Path(self._folder.name) / "box"), SLOTS)
        prepare_slot(self.box, SLOT, CONNECTION)
        self.client, self._server = socket.socketpair()
        self.client.setblocking(False)
        self.producer = Producer(self.box, 0, self.drain)
        self.core = Core(Store(), ROWS)
        self.epoll = select.epoll()
        self.loop = Loop(self.core, self.box, self.producer, self.epoll, lambda: None)
        self.connection = Connection(CONNECTION, SLOT, self._server.fileno(), PRIVILEGED, True, True)
        self.core.store.connect(self.connection)
        self.channel = self.loop.add(self.connection)
        self.state = Store()
        self.state.connect(Connection(CONNECTION, SLOT, -1, PRIVILEGED, True, True))
        self.consumer = Consumer(self.box)
        self.applier = Applier(self.state, lambda connection: output_made(self.box, connection.slot))

    def drain(self) -> None:
        """State's part: applies whatever was published."""
        for body in self.consumer.records():
            self.applier.apply(body)

    def exchange(self, request: bytes) -> bytes:
        """One turn of Logic's for one request; its reply, with the events that came with it."""
        self.client.send(request)
        self.loop.turn(0)
        return self.client.recv(RECEIVE)

    def close(self) -> None:
        """The end."""
        self.epoll.close()
        self.client.close()
        self._server.close()
        self.box.unlink()
        self._folder.cleanup()


def request(op: int, *strings: bytes, tx_id: int = 0, rest: bytes | None = None) -> bytes:
    """A message whose payload is these strings, each with its NUL, then `rest`."""
    return Message(op, 1, tx_id, b"".join(part + b"\0" for part in strings) + (rest or b"")).encode()


def write(path: bytes, value: bytes) -> bytes:
    """A WRITE."""
    return request(11, path, rest=value)


def all_of(requests: Iterable[bytes]) -> bytes:
    """Requests one behind the other."""
    return b"".join(requests)
