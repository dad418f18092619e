"""Transactions by observation: they conflict only over what they really depended on.

Theory of operation.  A transaction does not copy the store.  The first access to a node takes a snapshot of that node
(`Seen`); later reads give the same answer whatever happens outside, and nodes not touched yet are read live.  Its own
changes lie in an overlay (`Change`), a tree of path components above the live one.  What the client was *told* is marked
on the `Seen`: a value, a list of children, a permission list, an absence.

Commit, in this order:
1. everything the client was told must still be true of the live tree, and still be permitted to it;
2. the writes are done again, in order, on the live tree; each must be permitted now, and have the outcome it had;
3. each written node must end with the permission list the transaction saw it get.
If anything differs, nothing has happened and the client gets EAGAIN.  Implicit parents were never "absent" to the client:
they are made if missing, at commit.  So creating different children of one parent, or blind writes, never conflict.

Logic and State both run this code on equal trees, so a commit is a small record.  Knows no quotas and no watches.
"""

from typing import Final, Literal

from protocol.errors import EACCES, EAGAIN, ENOENT, StoreError
from protocol.permissions import READ, WRITE
from xenstore_state.access import OWNER, Acl, Subject, allows, inherited, rights
from xenstore_state.tree import Node, Snapshot, SnapshotLost, Tree
from xenstore_state.views import NEW, Face, Fired, Parts, View, create

SAW_ABSENT: Final = 1
SAW_VALUE: Final = 2
SAW_ACL: Final = 4
SAW_CHILDREN: Final = 8


class Seen:
    """A node as it was when the transaction first touched it; `node` is None if there was none."""

    __slots__ = ("acl", "generation", "names", "node", "parts", "saw", "snapshot", "value")

    def __init__(self, parts: Parts, node: Node | None, snapshot: Snapshot) -> None:
        self.parts = parts
        self.node = node
        self.snapshot = snapshot
        self.names: list[bytes] | None = None
        self.saw = 0
        self.acl: Acl = ()
        if node is not None:
            self.value, self.acl, self.generation = node.value, node.acl, node.generation
        else:
            self.value, self.generation = b"", 0

    def children(self) -> list[bytes]:
        """Names of its children at that time."""
        if self.names is None:
            if self.node is None:
                return []
            self.names = self.snapshot.children(self.node)
        return self.names


class Change:
    """What the transaction did to a node; a mere way to changes below when `state` is PASSAGE."""

    __slots__ = ("acl", "assigned", "below", "masked", "state", "value")

    PASSAGE: Final = 0
    WRITTEN: Final = 1
    REMOVED: Final = 2

    def __init__(self) -> None:
        self.state = Change.PASSAGE
        self.masked = False
        """The live node and everything below it was removed by the transaction."""
        self.assigned = False
        """The value is the transaction's own, not that of a node which happened to be created empty."""
        self.value = b""
        self.acl: Acl = ()
        self.below: dict[bytes, Change] = {}


Write = tuple[Literal["write", "mkdir", "rm", "perms"], Parts, bytes, Acl]
"""One change to be done at commit: what, where, the value or the permission list."""


def refusal(tree: Tree, parts: Parts, who: Subject, wanted: int) -> str | None:
    """Error name with which an access to the live tree is refused, or None.  Hides what `who` may not know exists."""
    node = tree.find(parts)
    if node is not None:
        return None if allows(node.acl, who, wanted) else "EACCES"
    while node is None:
        parts = parts[:-1]
        node = tree.find(parts)
    return "ENOENT" if rights(node.acl, who) & wanted else "EACCES"


class Transaction(View):
    """One open transaction: the operations of `View`, taking effect at commit."""

    __slots__ = (
        "_expected",
        "_refused",
        "_root",
        "_snapshots",
        "_tree",
        "created",
        "doomed",
        "seen",
        "tx_id",
        "writes",
    )

    def __init__(self, tx_id: int, tree: Tree) -> None:
        self.tx_id = tx_id
        self._tree = tree
        self.seen: dict[Parts, Seen | None] = {}
        """Nodes by first access; None where the transaction's own removal hid them."""
        self._root = Change()
        self.writes: list[Write] = []
        self._expected: dict[Parts, Acl] = {}
        """Permission lists with which written nodes must end."""
        self._refused: dict[tuple[Parts, int], str] = {}
        self._snapshots: list[Snapshot] = []
        """One for each moment at which a node was first accessed, oldest first."""
        self.doomed = False
        """A failure inside cannot be undone: commit gives ENOMEM."""
        self.created = False
        """It creates nodes, so their owner's quota is tested at commit."""

    # ---- looking

    def _change(self, parts: Parts) -> tuple[Change | None, bool]:
        """The change at these names, if any, and whether the live tree is hidden there."""
        change = self._root
        masked = change.masked
        for name in parts:
            below = change.below.get(name)
            if below is None:
                return None, masked
            change = below
            masked = masked or change.masked
        return change, masked

    def _touch(self, parts: Parts) -> Seen:
        seen = self.seen.get(parts)
        if seen is None:
            snapshots = self._snapshots
            if not snapshots or not snapshots[-1].current:
                snapshots.append(self._tree.snapshot())
            seen = self.seen[parts] = Seen(parts, self._tree.find(parts), snapshots[-1])
        return seen

    def find(self, parts: Parts) -> Face | None:
        """The node as the transaction sees it; counts as an access, not as something the client was told."""
        change, masked = self._change(parts)
        if masked:
            self.seen.setdefault(parts, None)
        if change is not None and change.state:
            return change if change.state == Change.WRITTEN else None
        if masked:
            return None
        seen = self._touch(parts)
        return seen if seen.node is not None else None

    def told_value(self, parts: Parts) -> None:
        """The client was told the value."""
        change, masked = self._change(parts)
        if change is None or not change.state:
            self._touch(parts).saw |= SAW_VALUE
        elif not masked and not change.assigned:
            seen = self._touch(parts)
            seen.saw |= SAW_ABSENT if seen.node is None else SAW_VALUE

    def told_acl(self, parts: Parts) -> None:
        """The client was told the permission list.  (That of a written node is checked at commit anyway.)"""
        change, masked = self._change(parts)
        if change is None or not change.state:
            self._touch(parts).saw |= SAW_ACL
        elif not masked:
            self._expected[parts] = change.acl

    def told_refusal(self, parts: Parts, who: Subject, wanted: int, error: str) -> None:
        """The client was told that it may not, or that there is nothing."""
        change, masked = self._change(parts)
        if masked or (change is not None and change.state):
            return
        seen = self._touch(parts)
        if error == "ENOENT":
            seen.saw |= SAW_ABSENT
        if not who.privileged and isinstance(self.find(parts) or self.nearest(parts), Seen):
            self._refused[parts, wanted] = error

    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node; the client is told them."""
        change, masked = self._change(parts)
        names: list[bytes] = []
        if not masked:
            seen = self._touch(parts)
            seen.saw |= SAW_ABSENT if seen.node is None else SAW_CHILDREN
            names = list(seen.children())
        if change is None:
            return names
        gone = {n for n, c in change.below.items() if c.state == Change.REMOVED or c.masked}
        if gone:
            names = [n for n in names if n not in gone]
        there = set(names)
        return names + [n for n, c in change.below.items() if c.state == Change.WRITTEN and n not in there]

    def generation(self, parts: Parts) -> int:
        """A number that changes when the node does, inside this transaction."""
        change, masked = self._change(parts)
        if masked or change is not None:
            return (1 << 62) + len(self.writes)
        return self._touch(parts).generation

    # ---- changing

    def _make(self, parts: Parts, acl: Acl) -> Change:
        change = self._root
        for i, name in enumerate(parts):
            below = change.below.get(name)
            if below is None:
                below = change.below[name] = Change()
            elif below.state == Change.REMOVED and i + 1 == len(parts):
                del change.below[name]  # created again: it comes last among its siblings
                change.below[name] = below
            change = below
        change.state = Change.WRITTEN
        change.acl = acl
        return change

    def write(self, parts: Parts, value: bytes, who: Subject) -> list[Fired]:
        """Sets a value.  (The common case of `View.write`, for speed: a node that exists and was not removed.)"""
        change, masked = self._change(parts)
        if not masked:
            if change is None or not change.state:
                seen = self._touch(parts)
                if seen.node is not None and (who.privileged or rights(seen.acl, who) & WRITE):
                    return self.put(parts, value, who, seen.acl)
            elif change.state == Change.WRITTEN and (who.privileged or rights(change.acl, who) & WRITE):
                return self.put(parts, value, who, change.acl)
        return super().write(parts, value, who)

    def put(self, parts: Parts, value: bytes, who: Subject, before: Acl) -> list[Fired]:
        """Sets a value in the overlay."""
        change = self._create(parts, who) if before is NEW else self._make(parts, before)
        change.value = value
        change.assigned = True
        self.writes.append(("write", parts, value, ()))
        self._expected[parts] = change.acl
        return []

    def make(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates a node in the overlay."""
        change = self._create(parts, who)
        self.writes.append(("mkdir", parts, b"", ()))
        self._expected[parts] = change.acl
        return []

    def _create(self, parts: Parts, who: Subject) -> Change:
        acl = inherited(self.nearest(parts).acl, who)
        self.created = True
        for depth in range(1, len(parts)):
            if self.find(parts[:depth]) is None:
                change = self._make(parts[:depth], acl)
                change.value, change.assigned = b"", change.masked
        change = self._make(parts, acl)
        change.value, change.assigned = b"", change.masked
        return change

    def remove(self, parts: Parts) -> list[Fired]:
        """Hides a subtree."""
        self.find(parts[:-1])
        change = self._make(parts, ())
        change.state = Change.REMOVED
        change.masked = True
        change.below = {}
        return self.remove_nothing(parts)

    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """At commit there may be something."""
        self.writes.append(("rm", parts, b"", ()))
        depth = len(parts)
        self._expected = {p: acl for p, acl in self._expected.items() if p[:depth] != parts}
        return []

    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list in the overlay."""
        found = self.find(parts)
        if found is None:
            raise ENOENT
        value, known = found.value, isinstance(found, Change)
        change = self._make(parts, acl)
        if not known:
            change.value = value
        self.writes.append(("perms", parts, b"", acl))
        self._expected[parts] = acl
        return []

    # ---- the end

    def close(self) -> None:
        """Gives up the snapshots; the transaction is over."""
        for snapshot in self._snapshots:
            snapshot.close()
        self._snapshots.clear()

    def commit(self, who: Subject) -> list[Fired]:
        """Applies the writes to the live tree.  Raises EAGAIN on a conflict, ENOMEM if doomed; then nothing changes."""
        try:
            if self.doomed:
                raise StoreError("ENOMEM")
            if not self._holds(who):
                raise EAGAIN
        except SnapshotLost:
            raise EAGAIN from None
        finally:
            self.close()
        plain = self._plain(who)
        if plain is not None:
            return self._assign(plain)
        before = self._tree.snapshot()
        try:
            fired: dict[Parts, Fired] = {}
            made: set[Node] = set()
            for write in self.writes:
                self._do(write, who, fired, made)
            for parts, acl in self._expected.items():
                node = self._tree.find(parts)
                if node is None or node.acl != acl:
                    raise EAGAIN
        except StoreError:
            self._tree.rollback(before)
            raise EAGAIN from None
        finally:
            before.close()
        # Order of events: that of first access, whatever the order of changes.
        return [fired[parts] for parts in self.seen if parts in fired]

    def _plain(self, who: Subject) -> list[Node] | None:
        """The nodes of all writes, in order, if nothing but values of existing nodes changes and nothing can go wrong."""
        find, expected = self._tree.find, self._expected
        nodes = []
        for kind, parts, _, _ in self.writes:
            node = find(parts) if kind == "write" else None
            if node is None or node.acl != expected[parts] or not (who.privileged or rights(node.acl, who) & WRITE):
                return None
            nodes.append(node)
        return nodes

    def _assign(self, nodes: list[Node]) -> list[Fired]:
        tree = self._tree
        fired: dict[Parts, Fired] = {}
        for node, (_, parts, value, _) in zip(nodes, self.writes, strict=True):
            tree.set_value(node, value, tree.generation + 1)
            fired[parts] = (parts, None, node.acl)
        return [fired[parts] for parts in self.seen if parts in fired]

    def _holds(self, who: Subject) -> bool:
        tree = self._tree
        for seen in self.seen.values():
            if seen is None or not seen.saw:
                continue
            node, saw = tree.find(seen.parts), seen.saw
            if saw & SAW_ABSENT and node is not None:
                return False
            if not saw & ~SAW_ABSENT:
                continue
            if (
                node is None
                or (saw & SAW_VALUE and node.value != seen.value)
                or (saw & SAW_ACL and node.acl != seen.acl)
                or (saw & SAW_CHILDREN and list(node.children or ()) != seen.children())
                or not allows(node.acl, who, READ)
            ):
                return False
        return all(refusal(tree, parts, who, wanted) == e for (parts, wanted), e in self._refused.items())

    def _do(self, write: Write, who: Subject, fired: dict[Parts, Fired], made: set[Node]) -> None:
        kind, parts, value, acl = write
        tree = self._tree
        node = tree.find(parts)
        if kind == "rm":
            self._do_remove(parts, node, who, fired, made)
            return
        if node is None:
            if kind == "perms":
                raise ENOENT
            made.update(create(tree, parts, value, who))
            fired.setdefault(parts, (parts, None, NEW))
            return
        if not who.privileged and not allows(node.acl, who, WRITE | OWNER if kind == "perms" else WRITE):
            raise EACCES
        if kind == "mkdir":
            return
        if parts not in fired:
            fired[parts] = (parts, None, node.acl)
        if kind == "perms":
            tree.set_acl(node, acl, tree.generation + 1)
        else:
            tree.set_value(node, value, tree.generation + 1)

    def _do_remove(
        self, parts: Parts, node: Node | None, who: Subject, fired: dict[Parts, Fired], made: set[Node]
    ) -> None:
        tree = self._tree
        parent = tree.find(parts[:-1])
        if parent is None:
            raise ENOENT
        if node is None:
            return
        if not allows(node.acl, who, WRITE):
            raise EACCES
        for below in [p for p in fired if p[: len(parts)] == parts]:
            del fired[below]
        if node not in made:  # created and removed again: nobody is told
            fired[parts] = (parts, node, node.acl)
        tree.remove_child(parent, parts[-1], tree.generation + 1)
