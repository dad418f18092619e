"""Survival: how State itself outlives its own death.

What State knows is written down as it happens: a checkpoint of everything, made by a forked child so that nobody waits, and
a ledger of what came after it.  Descriptors are kept by somebody else (`recovery_box.fdstore`).  A new State reads the last
checkpoint that is whole, repeats what the ledgers say, and goes on in the same box, where journal, positions and regions
stand as Logic left them.

Files, in one directory on tmpfs: `checkpoint.N` holds all that happened before `ledger.N` began.
"""

import ctypes
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgpack

from recovery_box.fdstore import FdStore
from recovery_box.items import Connection
from recovery_box.ledger import Ledger, LedgerError, entries
from xenstore_state import checkpoint
from xenstore_state.domains import PRIVILEGED, Offer
from xenstore_state.effects import ENDS_DOMAIN, GONE
from xenstore_state.records import Applier, BadRecord, Record, decode
from xenstore_state.records import encode as encode_record
from xenstore_state.store import Store

log = logging.getLogger(__name__)

LEDGER_MAX: Final = 64 << 20
"""Bytes of a ledger at which another checkpoint is made."""
LEDGER_IDLE: Final = 1 << 20
"""The same when a checkpoint is older than `IDLE_SECONDS`."""
IDLE_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1

RECORD: Final = 0
"""Sequence number, record, how far connections' output had got that this depended on (by connection id)."""
ACCEPTED: Final = 1
"""Connection id, slot, descriptor."""
LEARNED: Final = 2
"""Domid, unique id."""
OFFERED: Final = 3
"""Domid, offer (connection id, slot, port, remote port)."""
BOUND: Final = 4
"""Domid, port (0: none any more), remote port."""
HUNG_UP: Final = 5
"""Connection id."""


class Recovered(NamedTuple):
    """What a State had known that died."""

    store: Store
    last: Record | None
    sequence: int
    """Number of the last record in it."""
    bound: dict[int, tuple[int, int]]
    """(local port, remote port) by domid."""
    next_id: int
    """Connection ids from here on were never used."""


class Survival:
    """What State writes down."""

    def __init__(self, directory: str, keeper: FdStore) -> None:
        self.keeper = keeper
        self._directory = directory
        self._number = max(_numbers(directory, "ledger") + _numbers(directory, "checkpoint"), default=0) + 1
        self._ledger = Ledger(self._path("ledger", self._number))
        self._child = 0
        self._writing = 0
        self._made = time.monotonic()
        self._has_one = bool(_numbers(directory, "checkpoint"))
        self._given_up = False

    def _path(self, what: str, number: int) -> str:
        return os.path.join(self._directory, f"{what}.{number}")

    # ---- what happens

    def record(self, sequence: int, body: bytes, made: dict[int, int]) -> None:
        """A record was applied, and depended on how far these connections' output had got."""
        self._note((RECORD, sequence, body, made))

    def accepted(self, connection: Connection) -> None:
        """A connection was accepted; from now on it will not be lost."""
        self._tell(lambda: self.keeper.keep(f"c{connection.id}", connection.fd))
        self._note((ACCEPTED, connection.id, connection.slot, connection.fd))

    def closed(self, connection: Connection) -> None:
        """A connection is no more; the record of that was noted already."""
        if connection.socket:
            self._tell(lambda: self.keeper.drop(f"c{connection.id}", connection.fd))

    def learned(self, domid: int, unique_id: int) -> None:
        """A domain has become known."""
        self._note((LEARNED, domid, unique_id))

    def offered(self, domid: int, offer: Offer) -> None:
        """A domain's ring was offered a connection."""
        self._note((OFFERED, domid, *offer))

    def bound(self, domid: int, port: int, remote_port: int) -> None:
        """A domain's event channel was bound, or (0) given up."""
        self._note((BOUND, domid, port, remote_port))

    def hung_up(self, connection: Connection) -> None:
        """State has closed a connection itself."""
        self._note((HUNG_UP, connection.id))

    def _note(self, entry: tuple[Any, ...]) -> None:
        self._tell(lambda: self._ledger.add(_pack(entry)))

    def _tell(self, act: Callable[[], None]) -> None:
        """Writes down, or has kept; when that is not possible, State goes on without: dying for it would help nobody."""
        if self._given_up:
            return
        try:
            act()
        except OSError as e:
            self._given_up = True
            log.error("State would not survive its death from now on: %s", e)
            try:
                self.keeper.say("STOPPING=1")
            except OSError:
                pass

    # ---- checkpoints

    def look_after(self, store: Store, sequence: int, last: Record | None, bound: dict[int, tuple[int, int]]) -> None:
        """Makes a checkpoint when it is time for one; to be called every now and then."""
        if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = 0
            self._clean_up()
        grown = self._ledger.end
        old = time.monotonic() - self._made > IDLE_SECONDS
        if (
            self._given_up
            or self._child
            or (self._has_one and grown < LEDGER_MAX and not (old and grown > LEDGER_IDLE))
        ):
            return
        self._made = time.monotonic()
        first, self._has_one = not self._has_one, True
        self._number += 1
        self._ledger.close()
        self._ledger = Ledger(self._path("ledger", self._number))
        next_id = max(
            [c.id for c in store.items.connections] + [o.connection for o in store.domains.offers.values()] + [0]
        )
        more = {
            "last": encode_record(last) if last is not None else b"",
            "bound": bound,
            "next_id": max(next_id + 1, self.next_id),
        }
        if first:  # nothing is known yet, and before this is there, nobody may be told anything
            self._tell(lambda: checkpoint.write(self._path("checkpoint", self._number), store, sequence, more))
            return
        self._child = os.fork()
        if not self._child:
            self._write(store, sequence, more)

    next_id = 1
    """Connection ids from here on were never used; whoever gives them out keeps this true."""

    def _write(self, store: Store, sequence: int, more: dict[str, Any]) -> None:
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            os.nice(5)
            checkpoint.write(self._path("checkpoint", self._number), store, sequence, more)
        except OSError as e:
            log.error("no checkpoint could be written: %s", e)
        finally:
            os._exit(0)

    def _clean_up(self) -> None:
        """What the newest checkpoint makes superfluous."""
        newest = max(_numbers(self._directory, "checkpoint"), default=0)
        for what in ("checkpoint", "ledger"):
            for number in _numbers(self._directory, what):
                if number < newest:
                    os.unlink(self._path(what, number))

    def ready(self) -> None:
        """State serves: a death before this would have been the fault of what it has read."""
        self._tell(lambda: self.keeper.say("READY=1"))

    def end(self) -> None:
        """State ends in order: nothing of this is needed any more."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._ledger.close()
        forget(self._directory)
        self._tell(lambda: self.keeper.say("STOPPING=1"))


# ---- reading it back


def recover(directory: str) -> Recovered | None:
    """What a State knew that died; None if nothing usable is left, which the log explains."""
    for number in sorted(_numbers(directory, "checkpoint"), reverse=True):
        path = os.path.join(directory, f"checkpoint.{number}")
        try:
            store, parts = checkpoint.read(path)
        except (checkpoint.Damaged, OSError) as e:
            log.error("%s cannot be used: %s", path, e)
            continue
        return _repeat(directory, number, store, parts)
    log.error("there is no checkpoint in %s: everything begins anew", directory)
    return None


def _repeat(directory: str, number: int, store: Store, parts: dict[str, Any]) -> Recovered:
    made: dict[int, int] = {}
    applier = Applier(store, lambda connection: made[connection.id])
    if parts["last"]:
        applier.remember(parts["last"])
    sequence, bound, next_id = parts["sequence"], dict(parts["bound"]), parts["next_id"]
    count = 0
    for kind, *fields in _ledgers(directory, number):
        count += 1
        if kind == RECORD:
            if fields[0] > sequence:
                sequence = fields[0]
                made.update(fields[2])
                try:
                    _apply_again(applier, fields[1])
                except BadRecord as e:
                    log.error("record %d cannot be repeated (%s): what follows is lost", sequence, e)
                    break
        elif kind == ACCEPTED:
            identity, slot, fd = fields
            store.connect(Connection(identity, slot, fd, PRIVILEGED, privileged=True, socket=True))
            next_id = max(next_id, identity + 1)
        elif kind == LEARNED:
            store.domains.learn(*fields)
        elif kind == OFFERED:
            store.domains.offers[fields[0]] = Offer(*fields[1:])
            next_id = max(next_id, fields[1] + 1)
        elif kind == BOUND:
            bound[fields[0]] = fields[1], fields[2]
            if not fields[1]:
                del bound[fields[0]]
        elif kind == HUNG_UP:
            connection = store.items.connections.find(fields[0])
            store.disconnect(connection) if connection.socket else store.ignore(connection.domid, 1)
    store.closed.clear()
    store.opened.clear()
    log.info("checkpoint %d and %d entries behind it: %d nodes", number, count, store.tree.size)
    return Recovered(store, applier.last, sequence, bound, next_id)


def _apply_again(applier: Applier, body: bytes) -> None:
    """Applies a record that was applied before: what the hypervisor had to say to it, it has said."""
    record = decode(body)
    if record.kind == GONE and record.arguments:
        domain = applier.store.domains.known.get(record.arguments[0])
        if domain is not None:
            domain.gone = True
    applier.apply(body)
    if record.kind in ENDS_DOMAIN:
        applier.store.domains.offers.pop(record.arguments[0], None)


def _ledgers(directory: str, first: int) -> Iterator[tuple[Any, ...]]:
    """All entries since a checkpoint, as far as they can be read."""
    for number in sorted(n for n in _numbers(directory, "ledger") if n >= first):
        path = os.path.join(directory, f"ledger.{number}")
        try:
            for entry in entries(path):
                yield msgpack.unpackb(entry, use_list=False, strict_map_key=False)
        except (LedgerError, OSError) as e:
            log.error("%s: %s; what follows is lost", path, e)
            return


def forget(directory: str) -> None:
    """Removes all files."""
    for what in ("checkpoint", "ledger"):
        for number in _numbers(directory, what):
            os.unlink(os.path.join(directory, f"{what}.{number}"))


def _numbers(directory: str, what: str) -> list[int]:
    found = (re.fullmatch(rf"{what}\.([0-9]+)", name) for name in os.listdir(directory))
    return [int(match[1]) for match in found if match is not None]


def _pack(entry: tuple[Any, ...]) -> bytes:
    packed: bytes = msgpack.packb(entry, use_bin_type=True)
    return packed
