"""Everything the daemon knows, in one place: tree, watches, domains, connections, settings.

Logic works on one, State keeps an equal one by applying Logic's records; a new Logic starts with State's own.  Items are
inserted and removed here, so that nothing is ever registered in one place and forgotten in another.
Knows no bytes of the protocol and no processes.
"""

from typing import Final

from protocol.errors import EINVAL, ENOENT, ENOSPC, StoreError
from protocol.ops import DOMID_ANY, FEATURE_DOMID_ANY
from protocol.permissions import READ
from recovery_box.items import Connection, Items
from xenstore_state.access import IGNORED, Acl, Subject, without
from xenstore_state.domains import PRIVILEGED, Domain, Domains
from xenstore_state.quotas import claim
from xenstore_state.snapshots import Copy
from xenstore_state.transactions import Transaction
from xenstore_state.tree import Node, Parts, Tree, is_special
from xenstore_state.views import Fired, Live, View
from xenstore_state.watches import Watch, WatchTrie

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"
TX_ID_MAX: Final = 0xFFFFFFFF
TRANSACTIONS_MAX: Final = 4096
"""Open transactions of one connection that no quota binds."""
WATCHES_MAX: Final = 1 << 20
"""Watches of one connection that no quota binds."""


class Store:
    """The whole state."""

    def __init__(self) -> None:
        acl: Acl = ((0, PRIVILEGED),)
        self.tree = Tree(acl)
        self.live = Live(self.tree)
        self.watches = WatchTrie()
        self.items = Items()
        self.domains = Domains(self.items.accounts)
        self.watch_sequence = 0
        self.snapshots: dict[str, Copy] = {}
        """Of the whole tree, by name."""
        self.house = Connection(0, -1, -1, PRIVILEGED, privileged=True, socket=True)
        """On whose behalf the daemon itself acts.  Nobody is at its other end, and it is not among the connections."""
        self.house.subject = Subject(PRIVILEGED, privileged=True)
        self.opened: list[Connection] = []
        """Connections of rings that have begun; for whoever serves them to take."""
        self.closed: list[Connection] = []
        """Connections that have ended; for whoever keeps their slots, descriptors and ports to take."""
        tool = self.tree.add_child(self.tree.root, b"", acl, 1, (b"tool",))
        self.tree.add_child(tool, b"", acl, 2, (b"tool", b"xenstored"))
        self.tree.specials[INTRODUCE_DOMAIN] = Node(b"", acl, 3)
        self.tree.specials[RELEASE_DOMAIN] = Node(b"", (*acl, (READ, DOMID_ANY)), 4)
        self.tree.generation = 4

    # ---- connections

    def connect(self, connection: Connection) -> None:
        """A new connection.  Raises `ItemError` if its id is known."""
        self.items.connections.insert(connection.id, connection)
        domain = self.domains.known.get(connection.domid)
        bound = not connection.socket and not connection.privileged
        connection.subject = Subject(
            connection.domid,
            privileged=connection.privileged,
            quotas=domain.quotas if bound and domain is not None else None,
        )
        if bound and domain is not None:
            connection.subject.target = domain.target
            connection.subject.peaks = domain.peaks, self.domains.peaks

    def disconnect(self, connection: Connection) -> None:
        """The end of a connection: its watches and transactions go with it."""
        self.items.connections.delete(connection.id)
        connection.closed = True
        self.reset(connection)
        self.closed.append(connection)

    def connection(self, number: int) -> Connection | None:
        """The connection with this id, the daemon's own included."""
        return self.items.connections.get(number) if number else self.house

    def reset(self, connection: Connection) -> None:
        """Forgets watches and transactions of a connection (RESET_WATCHES)."""
        for path, token in list(connection.watches):
            self.unwatch(connection, path, token)
        for tx_id in list(connection.transactions):
            self.end(connection, tx_id).close()

    # ---- watches

    def watch(
        self, connection: Connection, path: bytes, token: bytes, depth: int | None, strip: int, *, checked: bool = True
    ) -> Watch:
        """Registers a watch.  Raises EEXIST, or, unless it was `checked` at another time, ENOSPC or ENOMEM."""
        if path[:1] not in {b"/", b"@"} or not 0 <= strip <= len(path):
            raise EINVAL
        key = path, token
        if key in connection.watches:
            raise StoreError("EEXIST")
        count = len(connection.watches) + 1
        subject: Subject = connection.subject
        if subject.quotas is not None:
            size = len(path) + len(token)
            if checked:
                claim(subject, "watches", count)
                claim(subject, "memory", self.memory(subject) + size, "ENOMEM")
            subject.held += size
        elif count > WATCHES_MAX:
            raise ENOSPC
        self.watch_sequence += 1
        watch = Watch(connection, path, token, depth, strip, self.watch_sequence)
        self.items.watches.insert((connection.id, path, token), watch)
        connection.watches[key] = watch
        self.watches.add(watch)
        return watch

    def unwatch(self, connection: Connection, path: bytes, token: bytes) -> None:
        """Removes a watch.  Raises ENOENT."""
        watch = connection.watches.pop((path, token), None)
        if watch is None:
            raise ENOENT
        self.items.watches.delete((connection.id, path, token))
        self.watches.remove(watch)
        if connection.subject.quotas is not None:
            connection.subject.held -= len(path) + len(token)

    def memory(self, subject: Subject) -> int:
        """Bytes that a domain is charged with for nodes, watches and transactions."""
        return self.tree.memory.get(subject.domid, 0) + subject.held

    # ---- transactions

    def next_tx_id(self, connection: Connection) -> int:
        """The id a new transaction of this connection gets: never 0, never one in use."""
        tx_id = connection.last_tx_id
        while True:
            tx_id = tx_id % TX_ID_MAX + 1
            if tx_id not in connection.transactions:
                return tx_id

    def start(self, connection: Connection, tx_id: int) -> Transaction:
        """Opens a transaction.  Raises ENOSPC."""
        count = len(connection.transactions) + 1
        if connection.subject.quotas is not None:
            claim(connection.subject, "transactions", count)
        elif count > TRANSACTIONS_MAX:
            raise ENOSPC
        if tx_id in connection.transactions or not 0 < tx_id <= TX_ID_MAX:
            raise EINVAL
        connection.last_tx_id = tx_id
        transaction = Transaction(tx_id, self.tree, connection.subject)
        self.items.transactions.insert((connection.id, tx_id), transaction)
        connection.transactions[tx_id] = transaction
        return transaction

    def end(self, connection: Connection, tx_id: int) -> Transaction:
        """Forgets an open transaction and returns it, to be committed or closed.  Raises ENOENT."""
        transaction: Transaction | None = connection.transactions.pop(tx_id, None)
        if transaction is None:
            raise ENOENT
        self.items.transactions.delete((connection.id, tx_id))
        return transaction

    def view(self, connection: Connection, tx_id: int) -> View:
        """What a request with this transaction id works on.  Raises ENOENT for an unknown one."""
        if not tx_id:
            return self.live
        view: View | None = connection.transactions.get(tx_id)
        if view is None:
            raise ENOENT
        return view

    # ---- domains

    def introduce(self, domid: int) -> Connection:
        """A domain's ring gets the connection that was offered; one it had before ends.  Raises ENOENT without an offer."""
        domain = self.domains.known.get(domid)
        offer = self.domains.offers.pop(domid, None)
        if domain is None or offer is None:
            raise ENOENT
        ring = Connection(offer.connection, offer.slot, -1, domid, domid == PRIVILEGED, socket=False, port=offer.port)
        if domain.connection is not None:
            ring.last_tx_id = domain.connection.last_tx_id
            self.disconnect(domain.connection)
        domain.introduced = True
        domain.error = 0
        self.connect(ring)
        domain.connection = ring
        self.opened.append(ring)
        return ring

    def ignore(self, domid: int, error: int) -> None:
        """A ring that cannot be followed is not served any more; the domain stays what it is.  Raises ENOENT."""
        domain = self.domains.introduced(domid)
        if domain is None or domain.connection is None:
            raise ENOENT
        self.disconnect(domain.connection)
        domain.connection = None
        domain.error = error

    def set_target(self, domid: int, target: int) -> None:
        """A domain may stand in for another.  Raises ENOENT unless both are introduced."""
        domain = self.domains.introduced(domid)
        if domain is None or self.domains.introduced(target) is None:
            raise ENOENT
        self._set_target(domain, target)

    def _set_target(self, domain: Domain, target: int | None) -> None:
        domain.target = target
        if domain.connection is not None and not domain.connection.privileged:
            domain.connection.subject.target = target

    def remove_domain(self, domid: int) -> list[Fired]:
        """A domain is no more: its ring, its nodes, and every right that it was given.  Raises ENOENT or EINVAL."""
        if domid == PRIVILEGED:
            raise EINVAL
        domain = self.domains.known.get(domid)
        if domain is None:
            raise ENOENT
        if domain.connection is not None:
            self.disconnect(domain.connection)
        for transaction in self.items.transactions:
            transaction.forget(domid)
        fired = [change for parts in self.tree.naming(domid) for change in self._disown(parts, domid)]
        self.tree.forget(domid)
        self.domains.known.delete(domid)
        for other in self.domains.known:
            if other.target == domid:
                self._set_target(other, None)
        return fired

    def _disown(self, parts: Parts, domid: int) -> list[Fired]:
        """What becomes of one node that names a domain which is no more."""
        tree = self.tree
        node = tree.find_any(parts)
        if node is None:  # it went with one above it
            return []
        acl = without(node.acl, domid)
        if acl[0][1] == domid:
            if parts and not is_special(parts) and not self.domains.keep_orphans:
                return self.live.remove(parts)
            acl = ((acl[0][0], PRIVILEGED), *acl[1:])
        tree.set_acl(node, acl, tree.generation + 1, parts)
        return []

    # ---- permission lists

    def counts(self, domid: int, by: Connection) -> bool:
        """Whether an entry for this domain counts: it exists; any domain (`DOMID_ANY`) does if the caller's ring offers that."""
        if domid != DOMID_ANY:
            return domid in self.domains.known
        domain = None if by.socket else self.domains.known.get(by.domid)
        return domain is None or bool(domain.features & FEATURE_DOMID_ANY)

    def checked_acl(self, acl: Acl, by: Connection) -> Acl:
        """A list as it will be stored: entries that do not count are marked.  Raises ENOENT for such an owner."""
        if not self.counts(acl[0][1], by):
            raise ENOENT
        return (acl[0], *((access if self.counts(d, by) else access | IGNORED, d) for access, d in acl[1:]))
