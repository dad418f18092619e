"""Repetition: what a State has written down (`survival`) is done again, entry by entry, to a store as it was before.

A State that comes back begins with the store of a checkpoint (`recovered`), a Logic that stands by with the one it was forked
with (`standby`).  Either ends where the State is, or was, that has written the entries.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from recovery_box.items import Connection, ItemError
from xenstore_state import survival
from xenstore_state.domains import PRIVILEGED, Offer
from xenstore_state.effects import ENDS_DOMAIN, GONE, Diverged
from xenstore_state.records import Applier, BadRecord, Record, decode
from xenstore_state.restarts import Kept
from xenstore_state.store import Store
from xenstore_state.transactions import Transaction

FAILURES: Final = (BadRecord, Diverged, ItemError, LookupError, ValueError, TypeError, msgpack.UnpackException)
"""What an entry that cannot be repeated ends in."""


@dataclass
class Recovered:
    """What a State had known that died."""

    store: Store
    last: Record | None
    sequence: int
    """Number of the last record in it."""
    bound: dict[int, tuple[int, int]]
    """(local port, remote port) by domid."""
    next_id: int
    """Connection ids from here on were never used."""
    restarts: Kept
    unsettled: bool
    """Domains that were there before the daemon may not all have been introduced."""
    staged: list[tuple[int, bytes]] = field(default_factory=list)
    """Pieces, with their numbers, of a record that was not read completely."""
    newcomers: list[int] = field(default_factory=list)
    """Descriptors of connections that State had accepted, and had not come to write down."""
    complete: bool = True
    """Nothing is lost."""

    def give_up_connections(self) -> None:
        """Something is lost: the store goes on, nobody's connection does."""
        self.complete = False
        for connection in list(self.store.items.connections):
            self.store.disconnect(connection)
        self.store.closed.clear()
        for domain in self.store.domains.known:
            domain.connection = None
            domain.error = 0
        self.store.domains.offers.clear()
        self.last = None
        self.bound.clear()
        self.staged.clear()
        self.unsettled = True
        self.sequence = 0


class Incomplete(Exception):
    """What was written down cannot be followed any further; the text says why."""


class Repetition:
    """Does again what the ledgers say."""

    def __init__(self, store: Store, parts: dict[str, Any]) -> None:
        self._made: dict[int, int] = {}
        self._applier = Applier(store, lambda connection: self._made[connection.id])
        if parts["last"]:
            self._applier.remember(parts["last"])
        self._counts, self._lines, self._consequences = parts["restarts"]
        self._counts, self._lines = dict(self._counts), list(self._lines)
        self._so_far = Recovered(
            store,
            None,
            parts["sequence"],
            dict(parts["bound"]),
            parts["next_id"],
            ({}, [], ((), ())),
            parts["unsettled"],
        )

    @property
    def known(self) -> Recovered:
        """What State knew after what was repeated so far."""
        known = self._so_far
        known.last = self._applier.last
        known.restarts = self._counts, self._lines, self._consequences
        return known

    @property
    def waiting(self) -> list[Connection]:
        """Connections that may have pending output, whatever has moved on since."""
        return self._applier.waiting

    def do(self, packed: bytes) -> tuple[Any, ...]:
        """Does one entry again: its kind, and what else is in it.  Raises `Incomplete`, or one of `FAILURES`."""
        entry: tuple[Any, ...] = msgpack.unpackb(packed, use_list=False, strict_map_key=False)
        known, (kind, *fields) = self._so_far, entry
        store = known.store
        if kind == survival.RECORD:
            self._record(*fields)
        elif kind == survival.SEGMENT:
            if known.staged and known.staged[-1][0] != fields[0] - 1:
                known.staged.clear()  # the Logic that had begun it died
            known.staged.append((fields[0], fields[1]))
        elif kind == survival.SEGMENTED:
            sequence, piece, made = fields
            self._record(sequence, b"".join(part for _, part in known.staged) + piece, made)
        elif kind == survival.RELISTED:
            identity, tx_id, parts, names = fields
            transaction: Transaction = store.items.transactions.find((identity, tx_id))
            transaction.list_as(parts, list(names))
        elif kind == survival.ACCEPTED:
            identity, slot, fd = fields
            store.connect(Connection(identity, slot, fd, PRIVILEGED, privileged=True, socket=True))
            known.next_id = max(known.next_id, identity + 1)
        elif kind == survival.LEARNED:
            store.domains.learn(*fields)
        elif kind == survival.OFFERED:
            store.domains.offers[fields[0]] = Offer(*fields[1:])
            known.next_id = max(known.next_id, fields[1] + 1)
        elif kind == survival.BOUND:
            domid, port, remote_port = fields
            known.bound[domid] = port, remote_port
            if not port:
                del known.bound[domid]
        elif kind == survival.HUNG_UP:
            connection = store.items.connections.find(fields[0])
            store.disconnect(connection) if connection.socket else store.ignore(connection.domid, 1)
        elif kind == survival.SETTLED:
            known.unsettled = False
        elif kind == survival.RESTARTED:
            death, self._consequences = fields
            self._counts[death] = self._counts.get(death, 0) + 1
        elif kind == survival.NOTED:
            self._lines.append(fields[0])
        else:
            raise Incomplete(f"an entry of kind {kind!r:.20}")
        return entry

    def _record(self, sequence: int, body: bytes, made: dict[int, int]) -> None:
        known = self._so_far
        known.staged.clear()
        if sequence > known.sequence:
            known.sequence = sequence
            self._made.update(made)
            _apply_again(self._applier, body)


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
