"""A Logic that stands by: forked ahead, it follows what State writes down, and serves as soon as the one before it is gone.

Theory of operation.  A fork and all that a fresh process must do before it can serve take longer the more there is in the
store.  So State forks the next Logic while the last one still serves.  From then on the two differ by what State has learned
since, and State writes down just that, in its ledger.  The Logic that stands by repeats it entry by entry, as a State would
that comes back (`repetition`): now and then, when State *pokes* it, and once more when it is given its *turn*.  What the
ledger does not hold, State says with the turn.  Descriptors of connections that came meanwhile are handed over like to any
Logic; those of connections that have ended are closed.

Whoever lags too far behind, lacks too many connections, or cannot follow is never given a turn: State forks then, as it does
when nobody stands by.
"""

import logging
import os
import select
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from recovery_box.box import W_FOLLOWED, Box
from recovery_box.items import Connection
from recovery_box.ledger import LedgerError, Reader
from xenstore_state import survival
from xenstore_state.repetition import Incomplete, Repetition
from xenstore_state.survival import Place, Survival
from xenstore_state.worker import Inheritance, Worker

log = logging.getLogger(__name__)

LAG_MAX: Final = 500
"""Records that it may still have to repeat when its turn comes: more take longer than a fork."""
NEWCOMERS_MAX: Final = 64
"""Connections since its fork that are handed over when its turn comes."""
FOLLOW_BYTES: Final = 4 << 10
"""Bytes that State writes down before it pokes."""
RENEW_BYTES: Final = 1 << 20
"""Bytes that it has followed when another one is forked in its place, once there is time: what it has changed is not shared
with State any more."""
RENEW_ANYHOW: Final = 32 << 20
"""The same when there never is time."""
SETTLED_SECONDS: Final = 0.02
"""How long a new Logic serves before the next is forked."""
AGAIN_SECONDS: Final = 1.0
"""Seconds from one fork to the next, when the first was never given its turn; doubles with each, at most to `AGAIN_MAX`."""
AGAIN_MAX: Final = 30.0
TURN_MAX: Final = 128 << 10
"""Bytes of the message that gives it its turn."""
_POKE: Final = struct.Struct("=cQQ")
"""A dot, and how far to follow (number of the ledger, bytes of it): it may be heard when its turn has come already, and what is
written after that is not its to repeat."""


class Turn(NamedTuple):
    """What it is told when its turn comes; the epoll set that it will wait with comes with it."""

    newcomers: int
    """How many descriptors wait for it."""
    place: tuple[int, int]
    """How far State has written (number of the ledger, bytes of it)."""
    sequence: int
    begun: Sequence[int] | None
    """Connection ids; see `Inheritance`, as for the rest."""
    poison: Sequence[tuple[int, int]]
    penalties: dict[int, float]
    pending: dict[int, int]
    """Where the pending output begins of connections that have any, by id: what went before is not in the ledger."""
    history: str

    def packed(self) -> bytes | None:
        """The message that says so; None if none can be long enough."""
        packed: bytes = msgpack.packb(self, use_bin_type=True)
        if len(packed) > TURN_MAX:  # so many that looking for them costs no more
            packed = msgpack.packb(self._replace(begun=None, history=""), use_bin_type=True)
        return packed if len(packed) <= TURN_MAX else None


class Follower:
    """In the forked process: does what State does, until its turn comes."""

    def __init__(self, given: Inheritance, known: dict[str, Any], place: Place) -> None:
        """`known` is what State knew beside the store when it forked, `place` how far it had written."""
        self._given = given
        self._repetition = Repetition(given.store, known)
        self._directory, self._number = place.directory, place.number
        self._reader = Reader(survival.file_path(self._directory, "ledger", self._number), place.end)
        self._sockets = given.sockets
        self._missing: set[int] = set()
        """Descriptors of connections that are not open here yet."""
        self._surplus: set[int] = set()
        """Descriptors that are open here and no connection's."""
        self._ports: dict[int, tuple[int, int]] = dict(known["bound"])

    def fileno(self) -> int:
        """Readable when State has something to say."""
        return self._given.line.hearing_fd

    def hear(self) -> Inheritance | None:
        """Follows; what to serve with, once the turn has come.

        Raises `EOFError` when State is gone, `Incomplete` or one of `FAILURES` when State cannot be followed.
        """
        received = self._given.line.receive(1)
        if received is None:
            return None
        message, descriptors = received
        turn = None
        if message[:1] == b".":
            _, *until = _POKE.unpack(message)
            self._catch_up((until[0], until[1]))
        else:
            turn = Turn(*msgpack.unpackb(message, use_list=False, strict_map_key=False))
            self._catch_up(turn.place)
        self._given.box.words[W_FOLLOWED] = self._repetition.known.sequence
        return self._begin(turn, descriptors[0]) if turn is not None else None

    def _catch_up(self, until: tuple[int, int]) -> None:
        """Does what State had done when it had written so far (number of the ledger, bytes of it)."""
        try:
            for packed in self._entries(until):
                self._repeat(packed)
        except LedgerError as e:
            raise Incomplete(f"{self._reader.path}: {e}") from None
        bound = self._repetition.known.bound
        if self._given.hypervisor is not None and bound != self._ports:
            for domid, (port, remote_port) in bound.items():
                if self._ports.get(domid) != (port, remote_port):
                    self._given.hypervisor.know_port(port, domid, remote_port)
            self._ports = dict(bound)

    def _entries(self, until: tuple[int, int]) -> Iterator[bytes]:
        while self._number != until[0]:
            yield from self._reader.new()  # all: State went on with another file
            following = survival.file_path(self._directory, "ledger", self._number + 1)
            if not os.path.exists(following):
                raise Incomplete(f"{following} is missing")
            self._reader.close()
            self._number += 1
            self._reader = Reader(following)
        yield from self._reader.new(until[1])

    def _repeat(self, packed: bytes) -> None:
        store = self._given.store
        kind, *fields = self._repetition.do(packed)
        if kind == survival.ACCEPTED:
            connection = store.items.connections.find(fields[0])
            self._sockets[connection.fd] = connection
            self._missing.add(connection.fd)
        for connection in store.closed:
            if connection.socket and self._sockets.get(connection.fd) is connection:
                del self._sockets[connection.fd]
                if connection.fd in self._missing:
                    self._missing.remove(connection.fd)
                else:
                    os.close(connection.fd)
        store.closed.clear()
        store.opened.clear()

    def _take(self, newcomers: int) -> None:
        """Takes connections that have come since; it has followed to where they came."""
        for _ in range(newcomers):
            taken = self._given.handover.take()
            if taken is None:
                raise Incomplete("a connection was not handed over")
            (self._missing.remove if taken[2] in self._missing else self._surplus.add)(taken[2])

    def _begin(self, turn: Turn, epoll: int) -> Inheritance:
        self._reader.close()
        connections = self._given.store.items.connections
        for connection in self._repetition.waiting:
            position = turn.pending.get(connection.id)
            if position is not None:
                connection.pending.begin_at(position)
            else:
                connection.pending.clear()
        self._take(turn.newcomers)
        if self._missing or self._surplus:
            raise Incomplete(f"descriptors {self._surplus} are those of no connection, {self._missing} are missing")
        given = self._given
        given.epoll = select.epoll.fromfd(epoll)
        given.begun = [connections.find(number) for number in turn.begun] if turn.begun is not None else None
        given.last = self._repetition.known.last
        given.sequence = turn.sequence
        given.poison = frozenset((number, position) for number, position in turn.poison)
        given.penalties, given.history = turn.penalties, turn.history
        given.stand_by = None
        return given


class Reserve:
    """In State: whoever stands by, when to fork it, and whether it may have the turn."""

    def __init__(self, box: Box, survival: Survival | None, epoll: select.epoll) -> None:
        """Without `survival` nobody ever stands by: nothing is written down that could be followed."""
        self._box = box
        self._survival = survival
        self._epoll = epoll
        self._worker: Worker | None = None
        self._newcomers: list[Connection] = []
        self._began = self._poked = Place("", 0, 0, 0)
        self._due = 0.0
        self._wait = AGAIN_SECONDS

    @property
    def pid(self) -> int:
        """Of whoever stands by; 0 if nobody does."""
        return self._worker.pid if self._worker is not None else 0

    def wanted(self, now: float) -> bool:
        """Whether another one is to be forked now (seconds of the monotonic clock)."""
        return (
            self._worker is None and self._survival is not None and now >= self._due and self._survival.can_be_followed
        )

    def after(self, began: float, *, at_once: bool) -> None:
        """A Logic begins to serve: the next one is forked a moment later, or at once if this one's life is short."""
        self._due = began if at_once else began + SETTLED_SECONDS

    def begin(
        self, worker: Worker, place: Place, sequence: int, now: float, newcomers: Iterable[Connection] = ()
    ) -> None:
        """Somebody stands by from now on, who was forked when State had written so far, and applied so many records.

        `newcomers` have come since then.
        """
        self._worker = worker
        self._began = self._poked = place
        self._newcomers[:] = newcomers
        self._box.words[W_FOLLOWED] = sequence
        self._due = now + self._wait
        self._wait = min(AGAIN_MAX, self._wait * 2)
        self._epoll.register(worker.fd, select.EPOLLIN)

    def welcome(self, connection: Connection) -> None:
        """A connection was accepted."""
        if self._worker is not None:
            self._newcomers.append(connection)

    def look_after(self, *, resting: bool) -> None:
        """Pokes when there is enough to follow, or State is about to rest; to be called every now and then."""
        if self._worker is None or self._survival is None:
            return
        if not self._survival.can_be_followed:
            self.dismiss()
            return
        if len(self._newcomers) > NEWCOMERS_MAX:
            self._newcomers = [c for c in self._newcomers if not c.closed]
            if len(self._newcomers) > NEWCOMERS_MAX and time.monotonic() >= self._due:
                self.dismiss()
                return
        place = self._survival.place
        behind = place.total - self._poked.total
        followed = place.total - self._began.total
        if followed >= (RENEW_BYTES if resting else RENEW_ANYHOW) and time.monotonic() >= self._due:
            self.dismiss()
        elif behind >= FOLLOW_BYTES or (resting and behind):
            self._poked = place
            self._worker.line.tell(_POKE.pack(b".", place.number, place.end))

    def later(self, now: float) -> None:
        """Nobody can stand by now."""
        self._due = now + AGAIN_SECONDS

    def turn(self, sequence: int, *, shared: bool = False) -> tuple[Worker, int] | None:
        """Whoever stands by, if it can serve now, and how many connections were handed over to it; it stands by no more.

        `sequence` is that of the last record.  With `shared`, it must share its memory with State but for little.  The word of
        a process that is there for longer is believed: it only says how long the rest will take.
        """
        worker = self._worker
        if worker is None:
            return None
        newcomers = [c for c in self._newcomers if not c.closed]
        lag = sequence - self._box.words[W_FOLLOWED]
        if (
            worker.ended(0)
            or self._survival is None
            or not self._survival.can_be_followed
            or (shared and self._survival.place.total - self._began.total >= RENEW_BYTES)
            or not 0 <= lag <= LAG_MAX
            or len(newcomers) > NEWCOMERS_MAX
            or not all(worker.handover.give(c.id, c.slot, c.fd, c.domid) for c in newcomers)
        ):
            self.dismiss()
            return None
        self._worker, self._wait = None, AGAIN_SECONDS
        self._epoll.unregister(worker.fd)
        return worker, len(newcomers)

    def has_ended(self, fd: int) -> bool:
        """Whether `fd` says that whoever stood by has ended, which is looked after then."""
        if self._worker is None or fd != self._worker.fd or not self._worker.ended(0):
            return False
        log.warning("the Logic that stood by has ended; another one will be forked")
        self.dismiss()
        return True

    def dismiss(self) -> None:
        """Nobody stands by any more."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._epoll.unregister(worker.fd)
            worker.end()

    def in_logic(self) -> None:
        """In a fresh process: whoever stands by is none of its business."""
        if self._worker is not None:
            self._worker.in_another()
