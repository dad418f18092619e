"""The core: one request in; its reply, at most one effect, and watch events out.  No process, no socket, no clock.

`handle` does in order what the protocol prescribes (core.c: process_message): is the operation known, may this caller send
it, is the transaction known, then the operation's own handler.  A handler reads through `look`, changes through `perform`,
and tells watchers through `fire`; what it returns is the payload of the reply.

After `handle`, `effect` is what must be published before any byte leaves, `events` go out before the reply and
`late_events` behind it, in that order (protocol.md 1.5).
"""

import logging
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any, Final

from protocol.errors import EACCES, EINVAL, ENOENT, StoreError
from protocol.ops import OPERATIONS, Op
from protocol.paths import canonical, counted_length, domain_path
from protocol.permissions import READ
from protocol.wire import HEADER, PAYLOAD_MAX, watch_event
from recovery_box.items import Connection
from xenstore_logic.host import Host, NoHost
from xenstore_logic.trace import Trace
from xenstore_state.access import Acl, allows
from xenstore_state.effects import DIRECTORY, PERFORM, REFUSED, in_transaction, names_of
from xenstore_state.quotas import QuotaExceeded, check
from xenstore_state.records import count_refusal
from xenstore_state.store import Store
from xenstore_state.tree import Node, Parts
from xenstore_state.views import SPECIAL, Fired
from xenstore_state.watches import Watch

log = logging.getLogger(__name__)

_ERROR: Final = int(Op.ERROR)
_ENOSYS: Final = StoreError("ENOSYS").payload
_E2BIG: Final = StoreError("E2BIG").payload

Handler = Callable[["Core", Connection, int, bytes], bytes]
Row = tuple[Handler, bool, bool]
"""Who handles an operation, whether only the privileged may send it, whether it looks at the transaction."""


def rows(handlers: dict[int, Handler]) -> dict[int, Row]:
    """By operation, for each of those that there are."""
    return {int(op): (handlers[op], row.privileged, row.uses_tx) for op, row in OPERATIONS.items()}


Performed = tuple[int, tuple[Any, ...], str]
"""An effect that was performed here and must be published: its number, arguments and outcome ("" or an error name)."""


class Core:
    """Serves requests on a store."""

    def __init__(self, store: Store, table: dict[int, Row], host: Host | None = None) -> None:
        self.store = store
        self.has_hypervisor = host is not None
        self.host: Host = host if host is not None else NoHost()
        self.effect: Performed | None = None
        self.events: list[tuple[Connection, bytes]] = []
        self.late_events: list[tuple[Connection, bytes]] = []
        self.trace = Trace()
        self.retiring = False
        """This Logic was asked to make room for another."""
        self.guarded = False
        """Somebody would start State again if it ended."""
        self.history = ""
        """What is known of restarts of Logic."""
        self.outstanding: Callable[[Connection], int] = lambda ring: 0
        """How many requests of a ring are outstanding; who serves rings knows."""
        self._rows = table
        self._told: dict[int, int] = {}
        """Bytes of events made by this request, by id of the connection that quotas bind."""
        self._listing: tuple[Node, int, bytes] | None = None

    def handle(self, by: Connection, op: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
        """Serves one request and returns the whole reply message."""
        op, body = self.serve(by, op, tx_id, payload)
        return HEADER.pack(op, req_id, tx_id, len(body)) + body

    def serve(self, by: Connection, op: int, tx_id: int, payload: bytes) -> tuple[int, bytes]:
        """Serves one request and returns operation and payload of the reply."""
        row = self._rows.get(op)
        if self._told:
            self._told.clear()
        try:
            if row is None:
                return _ERROR, _ENOSYS
            run, privileged, uses_tx = row
            if privileged and not by.privileged:
                raise EACCES
            if tx_id and uses_tx and tx_id not in by.transactions:
                raise ENOENT
            body = run(self, by, tx_id, payload)
        except QuotaExceeded as quota:
            self.refused(by, quota)
            return _ERROR, quota.payload
        except StoreError as e:
            return _ERROR, e.payload
        return (op, body) if len(body) <= PAYLOAD_MAX else (_ERROR, _E2BIG)

    def refused(self, by: Connection, e: QuotaExceeded) -> None:
        """Counts a refusal; the first one of each quota stands in the log, since the guest's own software rarely says why."""
        if count_refusal(self.store, by, e) == 1:
            log.warning("domain %d is refused something by quota %s: %d of %d", by.domid, e.quota, e.used, e.limit)
        if self.effect is None:
            self.effect = (REFUSED, (e.quota,), "")

    # ---- for handlers

    def path(self, by: Connection, written: bytes, *, special: bool = False) -> bytes:
        """The canonical form of a path a client wrote.  Raises EINVAL."""
        path = written if written[:1] == b"/" else canonical(written, domain_path(by.domid))
        names_of(path)
        if path[:1] == b"@" and not special:
            raise EINVAL
        quotas = by.subject.quotas
        if quotas is not None:
            check(quotas, "path-max", counted_length(path), "EINVAL")
        return path

    def look(self, kind: int, by: Connection, tx_id: int, path: bytes) -> Any:
        """Reads.  Outside transactions nothing depends on it; inside one, what was read is part of it."""
        if tx_id:
            return self.perform(kind, by, tx_id, path)
        return PERFORM[kind](self.store, by, 0, path)

    def perform(self, kind: int, by: Connection, *arguments: Any) -> Any:
        """Performs an effect.  Inside a transaction a refusal is an effect too: the client was told of it."""
        try:
            result = PERFORM[kind](self.store, by, *arguments)
        except StoreError as e:
            if in_transaction(kind, arguments):
                self.effect = (kind, arguments, e.name)
            raise
        self.effect = (kind, arguments, "")
        return result

    def fire(self, fired: list[Fired]) -> None:
        """Queues the events of changes.  Of a removed subtree, watched descendants are told before its root."""
        watches = self.store.watches
        if not watches.count:
            return
        for parts, removed, before in fired:
            if parts[:1] == SPECIAL:
                self._tell(watches.special(parts[1]), parts[1], self._acls(parts, None, before))
                continue
            if removed is not None:
                for where, node, parent, exact in watches.below(parts, removed, parents_first=False):
                    self._tell(exact, b"/" + b"/".join(where), [node.acl, parent.acl])
            matching = watches.matching(parts)
            if matching:
                self._tell(matching, b"/" + b"/".join(parts), self._acls(parts, removed, before))

    def fire_committed(self, fired: list[Fired], accessed: Iterable[Parts]) -> None:
        """The same for a transaction, with the nodes it `accessed`: in the order in which it first did.

        A descendant of a removed node that it had not accessed before is told behind that one, and one with an event of its
        own by that alone.
        """
        watches = self.store.watches
        if not watches.count or all(removed is None for _, removed, _ in fired):
            self.fire(fired)
            return
        places = {parts: place for place, parts in enumerate(accessed)}
        own = {parts for parts, _, _ in fired}
        events: list[tuple[int, Parts, list[Watch], list[Acl]]] = []
        for parts, removed, before in fired:
            here = places[parts]
            events.append((here, parts, watches.matching(parts), self._acls(parts, removed, before)))
            if removed is not None:
                for where, node, parent, exact in watches.below(parts, removed, parents_first=True):
                    if where not in own:
                        place = min(here, places.get(where, here))
                        events.append((place, where, exact, [node.acl, parent.acl]))
        for _, parts, told, acls in sorted(events, key=itemgetter(0)):
            self._tell(told, b"/" + b"/".join(parts), acls)

    def fire_special(self, name: bytes, domid: int | None, *, plain: bool = True) -> None:
        """Queues the events of a domain that came or went.

        Who watches the plain name without a depth is told so much; who watches the name with the domid behind it, or all
        of them by a depth of at least 1, is told which domain it is.
        """
        watches = self.store.watches
        if not watches.count:
            return
        node = self.store.tree.specials[name]
        acls = [node.acl, self.store.tree.root.acl]
        if plain:
            self._tell([w for w in watches.special(name) if w.depth is None], name, acls)
        if domid is not None:
            full = b"%s/%d" % (name, domid)
            deep = [w for w in watches.special(name) if w.depth]
            self._tell(sorted(deep + watches.special(full), key=lambda w: w.sequence), full, acls)

    def _tell(self, watches: list[Watch], path: bytes, acls: list[Acl]) -> None:
        """Queues events for those who may read by any of the permission lists (watch.c: watch_permitted)."""
        for watch in watches:
            connection = watch.connection
            if connection.privileged or any(allows(acl, connection.subject, READ) for acl in acls):
                if connection.subject.quotas is not None and self._tells_too_much(connection, path, watch):
                    continue
                event = watch_event(path[watch.strip :], watch.token)
                if event is not None:
                    self.events.append((connection, event))

    def _tells_too_much(self, connection: Connection, path: bytes, watch: Watch) -> bool:
        """Whether one more event of this request would be more than a guest may ever have waiting: it would be dropped."""
        told = self._told.get(connection.id, 0) + len(path) + len(watch.token)
        limit = connection.subject.quotas["memory"]
        if limit and told >= limit:
            return True
        self._told[connection.id] = told
        return False

    def _acls(self, parts: Parts, removed: Node | None, before: Acl) -> list[Acl]:
        """Permission lists by which one may learn of a change: the node's, also as it was before, and its parent's.

        One that a transaction has removed may be there again.
        """
        node = self.store.live.find(parts)
        parent = self.store.tree.find(parts[:-1] if parts[:1] != SPECIAL else ())
        acls = [found.acl for found in (node, parent, removed) if found is not None]
        return [before, *acls] if before else acls

    def listing(self, by: Connection, tx_id: int, path: bytes) -> tuple[int, bytes]:
        """(generation, children's names, each with its NUL) of a node, for DIRECTORY and DIRECTORY_PART.

        The last list made of a live node is kept: who reads a long one part by part pays for it once.
        """
        if tx_id:
            names = self.perform(DIRECTORY, by, tx_id, path)
            return self.store.view(by, tx_id).generation(names_of(path)), _listed(names)
        node = self.store.live.permitted(names_of(path), by.subject, READ)
        assert isinstance(node, Node)
        kept = self._listing
        if kept is None or kept[0] is not node or kept[1] != node.generation:
            kept = self._listing = node, node.generation, _listed(node.children)
        return kept[1], kept[2]


def _listed(names: Collection[bytes] | None) -> bytes:
    """Names as a reply has them, each with its NUL."""
    return b"\0".join(names) + b"\0" if names else b""
