"""Whoever stands by, without a daemon: State in this process, and a child."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from recovery_box.box import W_FOLLOWED, Box
from recovery_box.items import Connection
from tests.model.harness import fields
from tests.unit.written import State
from xenstore_state.records import encode
from xenstore_state.repetition import FAILURES, Incomplete
from xenstore_state.standby import Follower, Reserve, Turn
from xenstore_state.store import Store
from xenstore_state.survival import Place
from xenstore_state.tree import walk
from xenstore_state.worker import Inheritance, StandBy, Worker

PATIENCE: Final = 20.0
FIRST_NUMBER: Final = 200


class Fork:
    """State in this process, and a child that stands by."""

    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.box = Box(str(directory / "box"))
        self.epoll = select.epoll()
        self.reserve = Reserve(self.box, self.state.survival, self.epoll)
        self.worker = Worker()
        self.sockets: dict[int, Connection] = {}
        self._said, self._says = os.pipe()

    # ---- in State

    def open(self) -> Connection:
        """A connection, with the lowest descriptor that connections may have."""
        ours, theirs = socket.socketpair()
        connection = self.state.accept(fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER))
        ours.close()
        theirs.close()
        self.sockets[connection.fd] = connection
        self.reserve.welcome(connection)
        return connection

    def end(self, connection: Connection) -> None:
        """Its record, and what State does then."""
        self.state.end(connection)
        del self.sockets[connection.fd]
        os.close(connection.fd)

    def fork(self) -> None:
        """Somebody stands by."""
        place = self.forked()
        self.reserve.begin(self.worker, place, self.state.sequence, 0.0)

    def forked(self) -> Place:
        """Makes the child; how far State had written then."""
        known = self.state.more | {"sequence": self.state.sequence, "next_id": self.state.survival.next_id}
        last = self.state.applier.last
        known["last"] = encode(last) if last is not None else b""
        place = self.state.survival.place
        pid = os.fork()
        if not pid:
            self._stand_by(known, place)
        self.worker.in_keeper(pid)
        return place

    def write_down(self, total: int) -> None:
        """Changes a node until more than so many bytes are written down."""
        while self.state.survival.place.total <= total:
            self.state.write("large", bytes(2048))

    def turn(self, **more: Any) -> dict[str, Any]:
        """Gives it its turn; what it is then."""
        ready = self.reserve.turn(self.state.sequence)
        assert ready is not None
        worker, newcomers = ready
        place = self.state.survival.place
        told = {"begun": [], "poison": [], "penalties": {}, "pending": {}, "history": ""} | more
        turn = Turn(newcomers, (place.number, place.end), self.state.sequence, **told)
        worker.line.entrust(turn.packed() or b"", (self.epoll.fileno(),))
        return self.said()

    def said(self) -> dict[str, Any]:
        assert select.select([self._said], [], [], PATIENCE)[0]
        with os.fdopen(os.dup(self._said), "rb") as f:
            said: dict[str, Any] = pickle.load(f)  # our own child's
        return said

    def followed(self) -> None:
        """Waits until it has done all that State has written."""
        deadline = time.monotonic() + PATIENCE
        while self.box.words[W_FOLLOWED] != self.state.sequence:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def close(self) -> None:
        self.reserve.dismiss()
        if self.worker.pid:
            self.worker.signal(signal.SIGKILL)
            self.worker.reap()
        self.worker.close()
        self.state.close()
        self.epoll.close()
        for fd in (*self.sockets, self._said, self._says):
            os.close(fd)

    # ---- in the child

    def role(self, given: Inheritance, known: dict[str, Any], place: Place) -> StandBy:
        """What the child does until its turn comes."""
        return Follower(given, known, place)

    def _stand_by(self, known: dict[str, Any], place: Place) -> None:
        said: dict[str, Any] = {}
        try:
            self.worker.in_worker()
            given = Inheritance(
                self.state.store, self.box, None, self.worker.handover, self.worker.line, None, self.sockets,
                [], None, 0, frozenset(), {}, True, "", "", -1,
            )  # fmt: skip
            follower = self.role(given, known, place)
            turn = None
            while turn is None:
                select.select([follower], [], [])
                turn = follower.hear()
            said = {
                "state": described(turn.store),
                "digest": turn.store.tree.digest(),
                "sockets": {fd: c.id for fd, c in turn.sockets.items()},
                "open": sorted(fd for fd in turn.sockets if is_open(fd)),
                "begun": [c.id for c in turn.begun] if turn.begun is not None else None,
                "pending": {c.id: list(c.pending.chunks) for c in turn.store.items.connections if c.pending.size},
                "last": turn.last,
                "rest": (turn.sequence, turn.poison, turn.penalties, turn.history, turn.stand_by),
            }
        except (Incomplete, *FAILURES) as e:
            said = {"fails": str(e)}
        finally:
            with suppress(BaseException):
                os.write(self._says, pickle.dumps(said))
            os._exit(0)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def described(store: Store) -> list[object]:
    """Everything in a store that two of them can be compared by."""
    return [
        [fields(node) for node in walk(store.tree.root)],
        store.tree.generation,
        store.watches.count,
        [(c.id, c.slot, c.fd, c.domid, list(c.watches)) for c in store.items.connections],
        [(t.tx_id, list(t.seen), t.log) for t in store.items.transactions],
        [(d.domid, d.unique_id, d.introduced, dict(d.quotas)) for d in store.domains.known],
        dict(store.domains.offers),
    ]


def same(said: dict[str, Any], fork: Fork, *, digest: bool = True) -> None:
    """It is what State is, with State's descriptors, all of them open.

    A `digest` tells from which on changes have been noted; whoever asks for it makes that different from what others have.
    """
    assert said.get("fails") is None
    assert said["state"] == described(fork.state.store)
    assert said["sockets"] == {fd: c.id for fd, c in fork.sockets.items()}
    assert said["open"] == sorted(fork.sockets)
    assert said["last"] == fork.state.applier.last
    assert not digest or said["digest"] == fork.state.store.tree.digest()
