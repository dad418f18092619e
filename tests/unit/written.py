"""State's side of survival without a process: a store, and all that happens to it written down."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from recovery_box.fdstore import FdStore
from recovery_box.items import Connection
from xenstore_state import effects
from xenstore_state.records import Applier, encode
from xenstore_state.store import Store
from xenstore_state.survival import Survival, numbers

PATIENCE = 10.0


class State:
    """What writes down, without a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.store = Store()
        self.applier = Applier(self.store, lambda connection: self.made.setdefault(connection.id, 0))
        self.made: dict[int, int] = {}
        self.sequence = 0
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.survival = Survival(self.directory, FdStore(ours), complete=False)
        self.more: dict[str, Any] = {"last": b"", "bound": {}, "restarts": ({}, [], ((), ())), "unsettled": False}
        self.look()
        self.accept()

    def look(self) -> None:
        self.survival.look_after(self.store, self.sequence, lambda: self.more)

    def accept(self, fd: int = 0) -> Connection:
        """A connection; without a descriptor it gets a number that stands for one."""
        number = self.survival.next_id
        self.survival.next_id += 1
        connection = Connection(number, number, fd or 100 + number, 0, privileged=True, socket=True)
        self.survival.accepted(connection)
        self.store.connect(connection)
        return connection

    def record(self, kind: int, *arguments: object, outputs: tuple[object, ...] = ()) -> bytes:
        """A record of the first connection's that changes one node."""
        generation = self.store.tree.generation + (kind in effects.CHANGES_TREE)
        return encode((1, 0, kind, arguments, "", generation, outputs))

    def do(self, kind: int, *arguments: object, outputs: tuple[object, ...] = ()) -> None:
        self.apply(self.record(kind, *arguments, outputs=outputs))

    def apply(self, body: bytes) -> None:
        """What State does with a record."""
        record = self.applier.apply(body)
        self.sequence += 1
        if record.kind == effects.DIRECTORY:
            self.survival.listed(self.store, record.connection, record.arguments[0])
        self.survival.record(self.sequence, body, self.made)
        self.made = {}

    def write(self, name: str, value: bytes = b"v") -> None:
        self.do(effects.WRITE, 0, f"/{name}".encode(), value)

    def end(self, connection: Connection) -> None:
        """The end of a connection."""
        body = encode((connection.id, 0, effects.CLOSE, (), "", self.store.tree.generation, ()))
        self.applier.apply(body)
        self.sequence += 1
        self.survival.record(self.sequence, body, {})
        self.store.closed.clear()

    def checkpoint(self) -> None:
        """Another checkpoint, by a child; returns once it is there."""
        self.survival.want_checkpoint()
        self.look()
        wanted = max(numbers(self.directory, "ledger"))
        deadline = time.monotonic() + PATIENCE
        while self.survival._child:
            assert time.monotonic() < deadline
            time.sleep(0.002)
            self.look()
        assert max(numbers(self.directory, "checkpoint")) == wanted

    def close(self) -> None:
        self.survival._ledger.close()
        self.survival.keeper.close()
        self.theirs.close()
