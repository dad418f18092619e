"""Transactions by repetition: a commit does everything again, at once, and must get the same answers.

Theory of operation.  A transaction does not copy the store.  The first access to a node takes a snapshot of that node
(`Seen`); later reads give the same answer whatever happens outside, and nodes not touched yet are read live.  Its own
changes lie in an overlay (`Change`, by path) above the live tree, and removed subtrees are hidden.  Each operation is
logged with what the client was told: so much is all that a commit depends on.

Commit does the logged operations again on the live tree, in order.  Each must end as it did, and each node that was asked
for must end with the permission list that the transaction saw it get; if anything differs, nothing has happened and the
client gets EAGAIN.  So what commits is as if it had happened at once, and nothing is refused that would have come out the
same: creating different children of one parent, or blind writes, never conflict.

Logic and State both run this code on equal trees, so a commit is a small record.  Knows no watches.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from protocol.errors import EAGAIN, ENOSPC, StoreError
from protocol.permissions import WRITE
from xenstore_state.access import Acl, Subject, inherited, names, rights
from xenstore_state.quotas import QuotaExceeded, claim, node_size
from xenstore_state.tree import Node, Parts, Snapshot, SnapshotLost, Tree, walk
from xenstore_state.views import NEW, Face, Fired, Live, View

LOG_MAX: Final = 16 << 20
"""Bytes that the log of one transaction may take, about; a sixteenth of it for a domain that quotas bind."""
NODES_MAX: Final = 1 << 16
"""Nodes that one transaction may touch when no quota says otherwise."""
ENTRY_SIZE: Final = 256
"""Bytes a log entry takes beyond names and values, about."""

Asked = tuple[str, Parts, tuple[Any, ...], str, Any]
"""An operation, the node, its other arguments, and what the client was told: an error's name or "", and the answer."""
_OUT_OF_QUOTA: Final = frozenset({"ENOSPC", "EIO", "ENOMEM"})
_CHANGING: Final = frozenset({"write", "mkdir", "rm", "set_perms"})


class Seen:
    """A node as it was when the transaction first touched it; `node` is None if there was none."""

    __slots__ = ("acl", "generation", "names", "node", "parts", "snapshot", "value")

    def __init__(self, parts: Parts, node: Node | None, snapshot: Snapshot | None) -> None:
        self.parts = parts
        self.node = node
        self.snapshot = snapshot
        self.names: list[bytes] | None = None
        """Of its children, once they were asked for: the answer stays the same."""
        self.acl: Acl = ()
        if node is not None:
            self.value, self.acl, self.generation = node.value, node.acl, node.generation
        else:
            self.value, self.generation = b"", 0

    def then(self) -> list[bytes] | None:
        """Names of its children at that time, or None if that is lost."""
        if self.names is not None:
            return self.names
        if self.node is None:
            return []
        try:
            return self.snapshot.children(self.node) if self.snapshot is not None else None
        except SnapshotLost:
            return None

    def now(self) -> list[bytes]:
        """Names of the children that it has now, or had when it was removed."""
        return list(self.node.children or ()) if self.node is not None else []

    @classmethod
    def restored(
        cls, parts: Parts, node: Node | None, value: bytes, acl: Acl, generation: int, names: list[bytes] | None
    ) -> "Seen":
        """As it was, from a checkpoint.  Without names, `node` is the one that was seen."""
        seen = cls(parts, node, None)
        seen.value, seen.acl, seen.generation, seen.names = value, acl, generation, names
        return seen


class Change:
    """A node that the transaction wrote or made."""

    __slots__ = ("acl", "asked", "value")

    def __init__(self, value: bytes, acl: Acl, *, asked: bool) -> None:
        self.value = value
        self.acl = acl
        self.asked = asked
        """The client asked for it, so commit must end with its permission list."""


class Transaction(View):
    """One open transaction: the operations of `View`, taking effect at commit."""

    __slots__ = (
        "_below",
        "_changes",
        "_hidden",
        "_relisted",
        "_since",
        "_size",
        "_snapshots",
        "_who",
        "created",
        "doomed",
        "held",
        "log",
        "seen",
        "stale",
        "tx_id",
    )

    def __init__(self, tx_id: int, tree: Tree, who: Subject) -> None:
        """`who` is charged with the memory it takes."""
        super().__init__(tree)
        self._who = who
        self._since = tree.generation
        self.held = 0
        """Bytes that `who` is charged with."""
        self.stale = False
        """Commit gives EAGAIN: a domain that it knows by its domid is no more, or an answer would be another one now."""
        self.tx_id = tx_id
        self.seen: dict[Parts, Seen | None] = {}
        """Nodes by first access; None for one that was only ever written, about which there is nothing to remember."""
        self._changes: dict[Parts, Change] = {}
        self._below: dict[Parts, dict[bytes, None]] = {}
        """Names of changed nodes by parent, in order of creation."""
        self._hidden: set[Parts] = set()
        """Roots of live subtrees that the transaction removed."""
        self._relisted: Seen | None = None
        """What was last listed as it was at that moment, not at its first access; for `take_relisted`."""
        self.log: list[Asked] = []
        self._size = 0
        self._snapshots: list[Snapshot] = []
        self.doomed = False
        """A failure inside cannot be undone: commit gives ENOMEM."""
        self.created = False
        """It creates nodes, so their owner's quota is tested at commit."""

    # ---- across checkpoints

    def kept(self) -> dict[str, Any]:
        """Everything but what it has seen, as plain data."""
        return {
            "tx_id": self.tx_id,
            "changes": [(parts, c.value, c.acl, c.asked) for parts, c in self._changes.items()],
            "below": [(parts, list(names)) for parts, names in self._below.items()],
            "hidden": sorted(self._hidden),
            "log": self.log,
            "size": self._size,
            "since": self._since,
            "flags": (self.doomed, self.created, self.stale),
            "held": self.held,
        }

    @classmethod
    def restored(cls, tree: Tree, who: Subject, kept: dict[str, Any], seen: dict[Parts, Seen | None]) -> "Transaction":
        """The same again, from `kept`.  Its snapshots are gone; what they could not tell any more is listed live."""
        transaction = cls(kept["tx_id"], tree, who)
        transaction.seen = seen
        for parts, value, acl, asked in kept["changes"]:
            transaction._changes[parts] = Change(value, acl, asked=asked)
        transaction._below = {parts: dict.fromkeys(names) for parts, names in kept["below"]}
        transaction._hidden = set(kept["hidden"])
        transaction.log = [
            (operation, parts, arguments, error, list(answer) if operation == "directory" and not error else answer)
            for operation, parts, arguments, error, answer in kept["log"]
        ]
        transaction._size, transaction._since, transaction.held = kept["size"], kept["since"], kept["held"]
        transaction.doomed, transaction.created, transaction.stale = kept["flags"]
        who.held += transaction.held
        return transaction

    def take_relisted(self) -> tuple[Parts, list[bytes]] | None:
        """The node that was listed last, and its children's names, if its snapshot was lost: the names depend on when that was.

        Given out once.
        """
        seen, self._relisted = self._relisted, None
        return (seen.parts, seen.names) if seen is not None and seen.names is not None else None

    def list_as(self, parts: Parts, names: list[bytes]) -> None:
        """A node that it has seen will be listed like this.  Raises LookupError."""
        seen = self.seen[parts]
        if seen is None:
            raise LookupError(f"nothing is remembered about {parts!r:.200}")
        seen.names = names

    # ---- looking

    def _is_hidden(self, parts: Parts) -> bool:
        hidden = self._hidden
        return bool(hidden) and any(parts[:depth] in hidden for depth in range(1, len(parts) + 1))

    def _touch(self, parts: Parts) -> Seen:
        seen = self.seen.get(parts)
        if seen is None:
            self._count(parts)
            snapshots = self._snapshots
            if not snapshots or not snapshots[-1].current:
                snapshots.append(self.tree.snapshot())
            seen = self.seen[parts] = Seen(parts, self.tree.find(parts), snapshots[-1])
            if seen.node is not None:
                self._hold_copy(parts, seen.value, seen.acl)
        return seen

    def _hold_copy(self, parts: Parts, value: bytes, acl: Acl) -> None:
        if self._who.quotas is not None:
            self._hold(node_size(value, len(acl), 0) + sum(map(len, parts)) + len(parts))

    def _hold(self, size: int) -> None:
        """Charges the caller with so many bytes.  Raises ENOMEM beyond its quota; then a commit cannot succeed."""
        who = self._who
        if who.quotas is None or not size:
            return
        self.held += size
        who.held += size
        self._may_hold(who.domid, who, 1, "ENOMEM")

    def _count(self, parts: Parts) -> None:
        """Whether one more node may be touched.  Raises ENOSPC; then a commit cannot succeed."""
        quotas = self._who.quotas
        limit = (quotas["transaction-nodes"] if quotas is not None else 0) or NODES_MAX + 1
        if len(self.seen) + 1 >= limit and parts not in self.seen:
            self.doomed = True
            raise QuotaExceeded("ENOSPC", "transaction-nodes", limit, len(self.seen) + 1)

    def find(self, parts: Parts) -> Face | None:
        """The node as the transaction sees it."""
        change = self._changes.get(parts)
        if change is not None:
            return change
        seen = self._touch(parts)
        return seen if seen.node is not None and not self._is_hidden(parts) else None

    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node."""
        names = self._listed(self._touch(parts)) if not self._is_hidden(parts) else []
        hidden, below = self._hidden, self._below.get(parts)
        if hidden:
            names = [name for name in names if (*parts, name) not in hidden]
        if not below:
            return names
        there = set(names)
        return names + [name for name in below if name not in there]

    def _listed(self, seen: Seen) -> list[bytes]:
        """Names of a node's children at its first access; at any other time when that is lost: commit will ask again."""
        names = seen.then()
        if names is None:
            names = seen.now()
            self._relisted = seen
        seen.names = names
        return names

    def some_children(self, parts: Parts) -> Iterable[bytes]:
        """Names of children, those that the transaction made first."""
        return chain(self._below.get(parts, ()), () if self._is_hidden(parts) else super().some_children(parts))

    def generation(self, parts: Parts) -> int:
        """A number that changes when the node does, inside this transaction."""
        if parts in self._changes or parts in self._below or self._is_hidden(parts):
            return (1 << 62) + (self._since << 20) + len(self.log)
        return self._touch(parts).generation

    # ---- the operations, logged

    def read(self, parts: Parts, who: Subject) -> bytes:
        """The value."""
        answer: bytes = self._logged("read", parts, (), who)
        return answer

    def directory(self, parts: Parts, who: Subject) -> list[bytes]:
        """Names of the children in order of creation."""
        answer: list[bytes] = self._logged("directory", parts, (), who)
        return answer

    def get_perms(self, parts: Parts, who: Subject) -> Acl:
        """The permission list."""
        answer: Acl = self._logged("get_perms", parts, (), who)
        return answer

    def write(self, parts: Parts, value: bytes, who: Subject) -> list[Fired]:
        """Sets a value.  (The common case first: a node that exists and was not touched is written blindly.)"""
        if parts not in self._changes and parts not in self.seen and not self._hidden:
            node = self.tree.find(parts)
            if node is not None and who.quotas is None and (who.privileged or rights(node.acl, who) & WRITE):
                self._count(parts)
                self._keep("write", parts, (value,), "", None, who)
                self.seen[parts] = None
                self._changes[parts] = Change(value, node.acl, asked=True)
                if parts:
                    self._below.setdefault(parts[:-1], {})[parts[-1]] = None
                return []
        self._logged("write", parts, (value,), who)
        return []

    def mkdir(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates an empty node."""
        self._logged("mkdir", parts, (), who)
        return []

    def rm(self, parts: Parts, who: Subject) -> list[Fired]:
        """Removes a node with everything below it."""
        self._logged("rm", parts, (), who)
        return []

    def set_perms(self, parts: Parts, acl: Acl, who: Subject) -> list[Fired]:
        """Replaces the permission list."""
        self._logged("set_perms", parts, (acl,), who)
        return []

    def _logged(self, operation: str, parts: Parts, arguments: tuple[Any, ...], who: Subject) -> Any:
        error, answer = "", None
        try:
            answer = getattr(View, operation)(self, parts, *arguments, who)
        except StoreError as e:
            error = e.name
            raise
        finally:
            self._keep(operation, parts, arguments, error, None if operation in _CHANGING else answer, who)
        return answer

    def _keep(
        self, operation: str, parts: Parts, arguments: tuple[Any, ...], error: str, answer: Any, who: Subject
    ) -> None:
        """Logs what was asked and answered; the same again, at once, adds nothing.  Raises ENOSPC."""
        entry = (operation, parts, arguments, error, answer)
        if self.log:
            last = self.log[-1]
            if last == entry and (operation != "rm" or error):
                return  # a removal that succeeds twice asks for more the second time: that the parent may be written
            if last[:2] == ("write", parts) and operation == "write" and not last[3] and not error:
                self.log[-1] = entry  # nobody will know what it was in between
                return
        size = ENTRY_SIZE + sum(map(len, parts))
        if operation == "directory":
            size += 64 * len(answer or ())
        elif operation in {"read", "write"}:
            size += len(answer or (arguments and arguments[0]) or b"")
        self._size += size
        if self._size > (LOG_MAX if who.quotas is None else LOG_MAX // 16):
            self.doomed = True
            raise ENOSPC
        self.log.append(entry)

    # ---- changing

    def _make(self, parts: Parts, value: bytes, acl: Acl) -> Change:
        self._hold_copy(parts, value, acl)
        change = self._changes[parts] = Change(value, acl, asked=False)
        if parts:
            siblings = self._below.setdefault(parts[:-1], {})
            siblings.pop(parts[-1], None)
            siblings[parts[-1]] = None
        return change

    def put(self, parts: Parts, value: bytes, who: Subject, before: Acl) -> list[Fired]:
        """Sets a value in the overlay."""
        known = self._changes.get(parts) if before is not NEW else self._create(parts, who)
        change = known or self._make(parts, value, before)
        self._hold(len(value) - len(change.value))
        change.value = value
        change.asked = True
        return []

    def make(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates a node in the overlay."""
        self._create(parts, who).asked = True
        return []

    def _create(self, parts: Parts, who: Subject) -> Change:
        depth = len(parts) - 1
        while (parent := self.find(parts[:depth])) is None:
            depth -= 1
        acl = inherited(parent.acl, who)
        self.created = True
        for level in range(depth + 1, len(parts)):
            self._make(parts[:level], b"", acl)
        return self._make(parts, b"", acl)

    def remove(self, parts: Parts) -> list[Fired]:
        """Hides a subtree."""
        self.find(parts[:-1])
        depth = len(parts)
        for gone in [p for p in self._changes if p[:depth] == parts]:
            del self._changes[gone]
        for above in [p for p in self._below if p[:depth] == parts]:
            del self._below[above]
        self._below.get(parts[:-1], {}).pop(parts[-1], None)
        self._hidden.add(parts)
        return []

    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """At commit there may be something, but not for this transaction."""
        return self.remove(parts)

    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list in the overlay."""
        change = self._changes.get(parts) or self._make(parts, self._touch(parts).value, acl)
        change.acl = acl
        change.asked = True
        return []

    def doom(self) -> None:
        """A change failed half way."""
        self.doomed = True

    # ---- the end

    def close(self) -> None:
        """Gives up the snapshots; the transaction is over."""
        for snapshot in self._snapshots:
            snapshot.close()
        self._snapshots.clear()
        self._who.held -= self.held
        self.held = 0

    def forget(self, domid: int) -> None:
        """A domain is no more.  Permission lists that name it must not come to mean another one with its domid."""
        acls = [change.acl for change in self._changes.values()]
        acls += [
            arguments[0] for operation, _, arguments, error, _ in self.log if operation == "set_perms" and not error
        ]
        self.stale = self.stale or any(names(acl, domid) for acl in acls)

    def commit(self, who: Subject) -> list[Fired]:
        """Does everything again.  Raises ENOMEM if doomed, ENOSPC, EAGAIN if an answer differs; then nothing changes."""
        self.close()
        if self.doomed:
            raise StoreError("ENOMEM")
        if self.stale:
            self._conflict(who)
        plain = self._plain(who) if not self.stale else None
        if plain is not None:
            return self._assign(plain)
        tree = self.tree
        since = tree.generation
        changed = {parts: tree.find(parts) for operation, parts, *_ in self.log if operation in _CHANGING}
        acls = {parts: node.acl for parts, node in changed.items() if node is not None}
        before, owned = tree.savepoint(), tree.owned.get(who.domid, 0)
        try:
            fired = self._again(who, since)
            for parts, change in self._changes.items():
                node = tree.find(parts) if change.asked else None
                if change.asked and (node is None or node.acl != change.acl):
                    self._conflict(who)
            now = tree.owned.get(who.domid, 0)
            if who.quotas and (self.created or now > owned):
                if now >= owned:
                    claim(who, "nodes", now)
                self._parents_fit(who.quotas, since)
            if self.stale:
                raise EAGAIN
        except StoreError:
            tree.rollback(before)
            raise
        finally:
            before.close()
        # In the order of first access; who could read a node before may learn of its change.
        return [(parts, fired[parts], acls.get(parts, NEW)) for parts in self.seen if parts in fired]

    def _conflict(self, who: Subject) -> None:
        """Raises EAGAIN, or remembers it: whoever has exceeded a quota is told of that (transaction.c: do_transaction_end)."""
        if who.quotas is None:
            raise EAGAIN
        self.stale = True

    def _parents_fit(self, limits: dict[str, int], since: int) -> None:
        """Whether parents have room for the nodes made: others may have made some there meanwhile.  Raises ENOSPC."""
        live = Live(self.tree)
        for parts, below in self._below.items():
            parent = self.tree.find(parts)
            children = parent.children if parent is not None else None
            if parent is None or children is None:
                continue
            if any(name in children and children[name].birth > since for name in below):
                live._may_grow(parts, limits, parent.acl, parent.value)

    def _again(self, who: Subject, since: int) -> dict[Parts, Node | None]:
        """All of it.  What watches are told: the root of a subtree that is gone, or None for another change, by node."""
        live = Live(self.tree)
        unlimited = Subject(who.domid, privileged=who.privileged)  # quotas were asked then, and are at the end
        unlimited.target = who.target
        gone: dict[Parts, Node] = {}
        there: dict[Parts, Node | None] = {}
        for operation, parts, arguments, error, answer in self.log:
            if error in _OUT_OF_QUOTA:
                continue
            now, said = None, ""
            try:
                now = getattr(live, operation)(parts, *arguments, unlimited)
            except StoreError as e:
                said = e.name
            if said != error or (operation not in _CHANGING and now != answer):
                self._conflict(who)
            if operation in _CHANGING and now:
                removed = now[0][1]
                if removed is None:
                    there[parts] = self.tree.find(parts)
                elif removed.birth <= since:
                    gone.setdefault(parts, _without_what_came_since(removed, since))
                else:
                    there.pop(parts, None)
        still = {parts: None for parts, node in there.items() if self.tree.find(parts) is node}
        return {**still, **gone}

    def _plain(self, who: Subject) -> list[Node] | None:
        """The nodes of all writes, in order, if nothing but values of existing nodes changes and nothing can go wrong."""
        find, changes = self.tree.find, self._changes
        nodes = []
        for operation, parts, _, error, _ in self.log:
            if operation != "write" or error:
                return None
            node, change = find(parts), changes.get(parts)
            if node is None or change is None or node.acl != change.acl:
                return None
            if not who.privileged and not rights(node.acl, who) & WRITE:
                return None
            nodes.append(node)
        return nodes

    def _assign(self, nodes: list[Node]) -> list[Fired]:
        tree = self.tree
        fired: dict[Parts, Fired] = {}
        for node, (_, parts, arguments, _, _) in zip(nodes, self.log, strict=True):
            tree.set_value(node, arguments[0], tree.generation + 1)
            fired[parts] = (parts, None, node.acl)
        return [fired[parts] for parts in self.seen if parts in fired]


def _without_what_came_since(removed: Node, since: int) -> Node:
    """A removed subtree less what the transaction itself had made in it: of that nobody is told."""
    for node in walk(removed):
        if node.children and next(reversed(node.children.values())).birth > since:
            node.children = {name: child for name, child in node.children.items() if child.birth <= since} or None
    return removed
