"""Everything the daemon knows, in one place: tree, watches, domains, connections, settings.

Logic works on one, State keeps an equal one by applying Logic's records; a new Logic starts with State's own.  Items are
inserted and removed here, so that nothing is ever registered in one place and forgotten in another.
Knows no bytes of the protocol and no processes.
"""

from typing import Final

from protocol.errors import EINVAL, ENOENT, ENOSPC, StoreError
from protocol.ops import DOMID_ANY
from protocol.permissions import READ
from recovery_box.items import Connection, Items
from xenstore_state.access import IGNORED, Acl, Subject
from xenstore_state.domains import PRIVILEGED, Domains
from xenstore_state.quotas import exceeds
from xenstore_state.transactions import Transaction
from xenstore_state.tree import Node, Tree
from xenstore_state.views import Live, View
from xenstore_state.watches import Watch, WatchTrie

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"
TX_ID_MAX: Final = 0xFFFFFFFF
TRANSACTIONS_MAX: Final = 4096
"""Open transactions of one connection that no quota binds."""
TRANSACTION_NODES_MAX: Final = 1 << 16
"""Nodes that one transaction may touch when no quota binds it."""
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
        self._watch_sequence = 0
        tool = self.tree.add_child(self.tree.root, b"tool", b"", acl, 1)
        self.tree.add_child(tool, b"xenstored", b"", acl, 2)
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

    def disconnect(self, connection: Connection) -> None:
        """The end of a connection: its watches and transactions go with it."""
        self.items.connections.delete(connection.id)
        connection.closed = True
        self.reset(connection)

    def reset(self, connection: Connection) -> None:
        """Forgets watches and transactions of a connection (RESET_WATCHES)."""
        for path, token in list(connection.watches):
            self.unwatch(connection, path, token)
        for tx_id in list(connection.transactions):
            self.end(connection, tx_id).close()

    # ---- watches

    def watch(self, connection: Connection, path: bytes, token: bytes, depth: int | None, strip: int) -> Watch:
        """Registers a watch.  Raises EEXIST or ENOSPC."""
        if path[:1] not in {b"/", b"@"} or not 0 <= strip <= len(path):
            raise EINVAL
        key = path, token
        if key in connection.watches:
            raise StoreError("EEXIST")
        count = len(connection.watches) + 1
        quotas = connection.subject.quotas
        if exceeds(count, quotas["watches"]) if quotas is not None else count > WATCHES_MAX:
            raise ENOSPC
        self._watch_sequence += 1
        watch = Watch(connection, path, token, depth, strip, self._watch_sequence)
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
        quotas = connection.subject.quotas
        if exceeds(count, quotas["transactions"]) if quotas is not None else count > TRANSACTIONS_MAX:
            raise ENOSPC
        if tx_id in connection.transactions or not 0 < tx_id <= TX_ID_MAX:
            raise EINVAL
        connection.last_tx_id = tx_id
        nodes = quotas["transaction-nodes"] - 1 if quotas is not None else TRANSACTION_NODES_MAX
        transaction = Transaction(tx_id, self.tree, nodes if nodes >= 0 else TRANSACTION_NODES_MAX)
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

    # ---- permission lists

    def checked_acl(self, acl: Acl) -> Acl:
        """A list as it will be stored: entries of domains that do not exist are marked.  Raises ENOENT for such an owner."""
        exists = self.domains.exists
        if not exists(acl[0][1]):
            raise ENOENT
        return (acl[0], *((access if exists(d) else access | IGNORED, d) for access, d in acl[1:]))
