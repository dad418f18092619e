"""What a State knew that died: reads back what `survival` wrote down.

The newest checkpoint that is whole, and every ledger behind it.  What cannot be read, or cannot be repeated, ends it there:
the store is as it was at that moment, which is a state that has been, but whatever followed is lost.  No client may go on
believing what was lost, so then the store comes back without connections.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from recovery_box.items import Connection, ItemError
from recovery_box.ledger import LedgerError, entries
from xenstore_state import checkpoint, survival
from xenstore_state.domains import PRIVILEGED, Offer
from xenstore_state.effects import ENDS_DOMAIN, GONE, Diverged
from xenstore_state.records import Applier, BadRecord, Record, decode
from xenstore_state.restarts import Kept
from xenstore_state.store import Store
from xenstore_state.survival import numbers

log = logging.getLogger(__name__)

DAMAGED: Final = "damaged-checkpoint"
"""What a checkpoint is called from then on that cannot be used."""


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


def recover(directory: str) -> Recovered | None:
    """What a State knew that died; None if nothing usable is left, which the log explains."""
    for number in sorted(numbers(directory, "checkpoint"), reverse=True):
        path = os.path.join(directory, f"checkpoint.{number}")
        try:
            repetition = _Repetition(*checkpoint.read(path))
        except (checkpoint.Damaged, OSError, LookupError, TypeError, ValueError) as e:
            log.error("%s cannot be used: %s", path, e)
            os.replace(path, os.path.join(directory, DAMAGED))
            continue
        return repetition.of(directory, number)
    log.error("there is no usable checkpoint in %s: everything begins anew", directory)
    return None


class Incomplete(Exception):
    """What was written down cannot be followed any further; the text says why."""


class _Repetition:
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

    def of(self, directory: str, number: int) -> Recovered:
        """With everything behind the checkpoint of this number."""
        known, store, count = self._so_far, self._so_far.store, 0
        lost = ""
        try:
            for entry in _ledgers(directory, number):
                self._do(entry)
                count += 1
        except Incomplete as e:
            lost = str(e)
        except (BadRecord, Diverged, ItemError, LookupError, ValueError, TypeError) as e:
            lost = f"entry {count + 1}, behind record {known.sequence}, cannot be repeated ({e!r})"
        store.closed.clear()
        store.opened.clear()
        known.last = self._applier.last
        known.restarts = self._counts, self._lines, self._consequences
        if lost:
            log.error("%s: what follows is lost, and all connections are closed", lost)
            known.give_up_connections()
        log.info("checkpoint %d and %d entries behind it: %d nodes", number, count, store.tree.size)
        return known

    def _do(self, entry: tuple[Any, ...]) -> None:
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


def _ledgers(directory: str, first: int) -> Iterator[tuple[Any, ...]]:
    """All entries since a checkpoint.  Raises `Incomplete` where they cannot be read any further."""
    there = sorted(n for n in numbers(directory, "ledger") if n >= first)
    for expected, number in enumerate(there, first):
        if number != expected:
            raise Incomplete(f"ledger.{expected} is missing")
        path = os.path.join(directory, f"ledger.{number}")
        try:
            for entry in entries(path):
                yield msgpack.unpackb(entry, use_list=False, strict_map_key=False)
        except (LedgerError, OSError, msgpack.UnpackException, ValueError) as e:
            raise Incomplete(f"{path}: {e}") from None
    if not there:
        raise Incomplete(f"ledger.{first} is missing")
