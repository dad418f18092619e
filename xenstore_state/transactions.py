"""Transactions by observation: they conflict only over what they really depended on.

Theory of operation.  A transaction does not copy the store.  The first access to a node takes a snapshot of that node
(`Seen`); later reads give the same answer whatever happens outside, and nodes not touched yet are read live.  Its own
changes lie in an overlay (`Change`, by path) above the live tree, and removed subtrees are hidden.  What the client
was *told* is marked on the `Seen`: a value, a list of children, a permission list, an absence.

Commit, in this order:
1. everything the client was told must still be true of the live tree, and still be permitted to it;
2. the writes are done again, in order, on the live tree; each must be permitted now, and have the outcome it had;
3. each written node must end with the permission list the transaction saw it get.
If anything differs, nothing has happened and the client gets EAGAIN.  Implicit parents were never "absent" to the client:
they are made if missing, at commit.  So creating different children of one parent, or blind writes, never conflict.

Logic and State both run this code on equal trees, so a commit is a small record.  Knows no quotas and no watches.
"""

from typing import Final, Literal

from protocol.errors import EACCES, EAGAIN, ENOENT, ENOSPC, StoreError
from protocol.permissions import READ, WRITE
from xenstore_state.access import OWNER, Acl, Subject, allows, inherited, rights
from xenstore_state.quotas import exceeds
from xenstore_state.tree import Node, Snapshot, SnapshotLost, Tree
from xenstore_state.views import NEW, Face, Fired, Parts, View, create

SAW_ABSENT: Final = 1
SAW_VALUE: Final = 2
SAW_ACL: Final = 4
SAW_OWNER: Final = 8
SAW_EMPTY: Final = 16
"""An empty value, of a node that the transaction made, or would have found."""


class Listing:
    """A list of children that the client was told: what of it was the transaction's own doing."""

    __slots__ = ("added", "hidden", "told")

    def __init__(self, names: list[bytes], added: list[bytes], hidden: frozenset[bytes]) -> None:
        self.added = added
        self.hidden = hidden
        self.told = self.of(names)

    def of(self, names: list[bytes]) -> list[bytes]:
        """What the client would be told if these were the live children."""
        if self.hidden:
            names = [name for name in names if name not in self.hidden]
        if not self.added:
            return names
        there = set(names)
        return names + [name for name in self.added if name not in there]


class Seen:
    """A node as it was when the transaction first touched it; `node` is None if there was none."""

    __slots__ = ("acl", "generation", "lists", "names", "node", "parts", "saw", "snapshot", "value")

    def __init__(self, parts: Parts, node: Node | None, snapshot: Snapshot) -> None:
        self.parts = parts
        self.node = node
        self.snapshot = snapshot
        self.names: list[bytes] | None = None
        self.saw = 0
        self.lists: list[Listing] = []
        """Lists of children that the client was told."""
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
    """A node that the transaction wrote or made."""

    __slots__ = ("acl", "asked", "assigned", "fresh", "told", "value")

    def __init__(self, value: bytes, acl: Acl, fresh: bool, written: bool) -> None:
        self.value = value
        self.acl = acl
        self.fresh = fresh
        """Made in place of one that the transaction removed: nothing about it depends on the live tree."""
        self.assigned = written
        """The value was written, not that of a node which happened to be created empty."""
        self.told = False
        """The client was told its permission list or owner."""
        self.asked = written
        """The client asked for it or was told its permission list, which commit must end with."""


Write = tuple[Literal["write", "mkdir", "rm", "perms", "told"], Parts, bytes, Acl]
"""One change to be done at commit: what, where, the value or the permission list.

`told` changes nothing: at that point the access must be refused with the error in place of the value."""


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
        "_below",
        "_changes",
        "_hidden",
        "_indexed",
        "_limit",
        "_lost",
        "_made",
        "_refused",
        "_snapshots",
        "_told_gone",
        "_values",
        "created",
        "doomed",
        "seen",
        "tx_id",
        "writes",
    )

    def __init__(self, tx_id: int, tree: Tree, limit: int) -> None:
        """At most `limit` nodes may be touched; the one beyond dooms the transaction (ENOSPC, then ENOMEM at commit)."""
        self.tx_id = tx_id
        super().__init__(tree)
        self._limit = limit
        self.seen: dict[Parts, Seen | None] = {}
        """Nodes by first access; None for one that was only ever written, about which there is nothing to remember."""
        self._changes: dict[Parts, Change] = {}
        self._below: dict[Parts, dict[bytes, Change | None]] = {}
        """The same by parent and name, in order, as far as `_indexed` says; None for a mere way to changes further down."""
        self._made: list[Parts] = []
        """Where changes were made, in order."""
        self._indexed = 0
        self._hidden: set[Parts] = set()
        """Roots of live subtrees that the transaction removed."""
        self.writes: list[Write] = []
        self._values: dict[Parts, int] = {}
        """Index in `writes` of values that can still be replaced there."""
        self._told_gone: dict[int, list[tuple[Parts, Acl]]] = {}
        """Permission lists that the client was told, of nodes that the n-th write removes."""
        self._refused: dict[tuple[Parts, int], str] = {}
        self._snapshots: list[Snapshot] = []
        """One for each moment at which a node was first accessed, oldest first."""
        self._lost = False
        """What was there at some first access cannot be told any more: commit gives EAGAIN."""
        self.doomed = False
        """A failure inside cannot be undone: commit gives ENOMEM."""
        self.created = False
        """It creates nodes, so their owner's quota is tested at commit."""

    # ---- looking

    def _is_hidden(self, parts: Parts) -> bool:
        """Whether the live tree is hidden here."""
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
        return seen

    def _count(self, parts: Parts) -> None:
        if len(self.seen) >= self._limit and parts not in self.seen:
            self.doomed = True
            raise ENOSPC

    def find(self, parts: Parts) -> Face | None:
        """The node as the transaction sees it; counts as an access, not as something the client was told."""
        change = self._changes.get(parts)
        if change is not None:
            return change
        seen = self._touch(parts)
        return seen if seen.node is not None and not self._is_hidden(parts) else None

    def told_value(self, parts: Parts) -> None:
        """The client was told the value."""
        change = self._changes.get(parts)
        if change is None:
            self._touch(parts).saw |= SAW_VALUE
        elif not change.fresh and not change.assigned:
            seen = self._touch(parts)
            seen.saw |= SAW_EMPTY if seen.node is None else SAW_VALUE

    def told_acl(self, parts: Parts) -> None:
        """The client was told the permission list."""
        change = self._changes.get(parts)
        if change is None:
            self._touch(parts).saw |= SAW_ACL
        else:
            change.asked = change.told = True

    def told_refusal(self, parts: Parts, who: Subject, wanted: int, error: str) -> None:
        """The client was told that it may not, or that there is nothing."""
        if not who.privileged and (
            self._is_hidden(parts) or isinstance(self.find(parts) or self.nearest(parts), Change)
        ):
            # It depends on what was done before: commit asks again in its turn.
            self._note(("told", parts, error.encode(), ((wanted, 0),)))
            return
        if parts in self._changes or self._is_hidden(parts):
            return
        seen = self._touch(parts)
        if error == "ENOENT":
            seen.saw |= SAW_ABSENT
            if parts in self._index():
                # Something below was written while it was there: in no order of events are both answers right.
                self._lost = True
        if not who.privileged:
            self._refused[parts, wanted] = error

    def told_owner(self, parts: Parts) -> None:
        """The client was told that somebody else is the owner."""
        change = self._changes.get(parts)
        if change is None:
            self._touch(parts).saw |= SAW_OWNER
        else:
            change.asked = change.told = True

    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node; the client is told them."""
        added = [name for name, change in self._index().get(parts, {}).items() if change is not None]
        if self._is_hidden(parts):
            return added
        depth = len(parts) + 1
        hidden = frozenset(p[-1] for p in self._hidden if len(p) == depth and p[:-1] == parts)
        seen = self._touch(parts)
        try:
            names = seen.children()
        except SnapshotLost:
            self._lost = True
            node = self.tree.find(parts)
            names = list(node.children or ()) if node is not None else []
        ways = [name for name, change in self._index().get(parts, {}).items() if change is None]
        if ways and not set(ways) <= set(names) | set(added):
            self._lost = True  # as in `told_refusal`
        listing = Listing(names, added, hidden)
        if not seen.lists or (seen.lists[-1].added, seen.lists[-1].hidden) != (added, hidden):
            seen.lists.append(listing)
        return listing.told

    def generation(self, parts: Parts) -> int:
        """A number that changes when the node does, inside this transaction."""
        if parts in self._changes or parts in self._index() or self._is_hidden(parts):
            return (1 << 62) + len(self.writes)
        return self._touch(parts).generation

    # ---- changing

    def _make(self, parts: Parts, value: bytes, acl: Acl) -> Change:
        change = self._changes[parts] = Change(value, acl, self._is_hidden(parts), False)
        self._made.append(parts)
        return change

    def _note(self, write: Write) -> None:
        """One more change to be done, as many as nodes may be touched.  A value written again is done once."""
        writes, values = self.writes, self._values
        kind, parts, _, _ = write
        if kind == "write":
            known = values.setdefault(parts, len(writes))
            if known < len(writes):
                writes[known] = write
                return
        elif writes and writes[-1] == write:
            return
        else:
            values.clear()  # the order matters
        if len(writes) >= self._limit:
            self.doomed = True
            raise ENOSPC
        writes.append(write)

    def _index(self) -> dict[Parts, dict[bytes, Change | None]]:
        """`_below`, brought up to date."""
        made, below = self._made, self._below
        for parts in made[self._indexed :]:
            change = self._changes.get(parts)
            if change is None or not parts:
                continue
            siblings = below.setdefault(parts[:-1], {})
            siblings.pop(parts[-1], None)
            siblings[parts[-1]] = change
            way = parts[:-1]
            while way and way[-1] not in below.get(way[:-1], ()):
                below.setdefault(way[:-1], {})[way[-1]] = None
                way = way[:-1]
        self._indexed = len(made)
        return below

    def write(self, parts: Parts, value: bytes, who: Subject) -> list[Fired]:
        """Sets a value.  (The common case of `View.write`, for speed: a node that exists and was not touched.)"""
        if parts not in self._changes and parts not in self.seen and not self._hidden and who.quotas is None:
            node = self.tree.find(parts)
            if node is not None and (who.privileged or rights(node.acl, who) & WRITE):
                self._count(parts)
                self.seen[parts] = None
                self._changes[parts] = Change(value, node.acl, False, True)
                self._made.append(parts)
                self._note(("write", parts, value, NEW))
                return []
        return super().write(parts, value, who)

    def put(self, parts: Parts, value: bytes, who: Subject, before: Acl) -> list[Fired]:
        """Sets a value in the overlay."""
        known = self._changes.get(parts) if before is not NEW else self._create(parts, who)
        change = known or self._make(parts, value, before)
        change.value = value
        change.asked = change.assigned = True
        self._note(("write", parts, value, NEW))
        return []

    def make(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates a node in the overlay."""
        self._create(parts, who).asked = True
        self._note(("mkdir", parts, b"", NEW))
        return []

    def _create(self, parts: Parts, who: Subject) -> Change:
        self.created = True
        depth = len(parts) - 1
        while (parent := self.find(parts[:depth])) is None:
            depth -= 1
        acl = inherited(parent.acl, who)
        for missing in range(depth + 1, len(parts)):
            self._make(parts[:missing], b"", acl)
        return self._make(parts, b"", acl)

    def keep(self, parts: Parts, found: Face) -> None:
        """At commit it may be gone."""
        change = self._changes.get(parts) or self._make(parts, found.value, found.acl)
        change.asked = True
        self._note(("mkdir", parts, b"", NEW))

    def remove(self, parts: Parts) -> list[Fired]:
        """Hides a subtree."""
        self.find(parts[:-1])
        return self.remove_nothing(parts)

    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """At commit there may be something, but not for this transaction."""
        below, stack = self._index(), [parts]
        while stack:
            gone = stack.pop()
            change = self._changes.pop(gone, None)
            if change is not None and change.told:
                self._told_gone.setdefault(len(self.writes), []).append((gone, change.acl))
            stack += [(*gone, name) for name in below.pop(gone, ())]
        below.get(parts[:-1], {}).pop(parts[-1], None)
        self._hidden.add(parts)
        self._note(("rm", parts, b"", NEW))
        return []

    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list in the overlay."""
        change = self._changes.get(parts)
        if change is None:
            change = self._make(parts, self._touch(parts).value, acl)
        change.acl = acl
        change.asked = True
        self._note(("perms", parts, b"", acl))
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

    def commit(self, who: Subject) -> list[Fired]:
        """Applies the writes to the live tree.  Raises EAGAIN on a conflict, ENOMEM if doomed; then nothing changes."""
        try:
            if self.doomed:
                raise StoreError("ENOMEM")
            if self._lost or not self._holds(who):
                raise EAGAIN
        finally:
            self.close()
        plain = self._plain(who)
        if plain is not None:
            return self._assign(plain)
        before = self.tree.savepoint()
        originals = {parts: self.tree.find(parts) for _, parts, _, _ in self.writes}
        acls = {parts: node.acl for parts, node in originals.items() if node is not None}
        try:
            fired: dict[Parts, Fired] = {}
            made: dict[Node, Parts] = {}
            for n, write in enumerate(self.writes):
                for parts, acl in self._told_gone.get(n, ()):
                    self._must_have(parts, acl)
                self._do(write, who, fired, made)
            for parts, change in self._changes.items():
                if change.asked:
                    self._must_have(parts, change.acl)
            if self.created and who.quotas and exceeds(self.tree.owned.get(who.domid, 0), who.quotas["nodes"]):
                raise ENOSPC
        except StoreError as e:
            self.tree.rollback(before)
            raise (ENOSPC if e.name == "ENOSPC" else EAGAIN) from None
        finally:
            before.close()
        # Order of events: that of first access, whatever the order of changes.
        # Who could read a node before may learn of its change.
        return [(p, fired[p][1], acls.get(p, NEW)) for p in self.seen if p in fired]

    def _must_have(self, parts: Parts, acl: Acl) -> None:
        node = self.tree.find(parts)
        if node is None or node.acl != acl:
            raise EAGAIN

    def _plain(self, who: Subject) -> list[Node] | None:
        """The nodes of all writes, in order, if nothing but values of existing nodes changes and nothing can go wrong."""
        find, changes = self.tree.find, self._changes
        nodes = []
        for kind, parts, _, _ in self.writes:
            node, change = find(parts), changes.get(parts)
            if kind != "write" or node is None or change is None or node.acl != change.acl:
                return None
            if not who.privileged and not rights(node.acl, who) & WRITE:
                return None
            nodes.append(node)
        return nodes

    def _assign(self, nodes: list[Node]) -> list[Fired]:
        tree = self.tree
        fired: dict[Parts, Fired] = {}
        for node, (_, parts, value, _) in zip(nodes, self.writes, strict=True):
            tree.set_value(node, value, tree.generation + 1)
            fired[parts] = (parts, None, node.acl)
        return [fired[parts] for parts in self.seen if parts in fired]

    def _holds(self, who: Subject) -> bool:
        tree = self.tree
        for seen in self.seen.values():
            if seen is None or not (seen.saw or seen.lists):
                continue
            node, saw = tree.find(seen.parts), seen.saw
            if saw & SAW_ABSENT and node is not None:
                return False
            if seen.lists:
                if node is None and seen.node is not None:
                    return False
                names = list(node.children or ()) if node is not None else []
                if any(listing.of(names) != listing.told for listing in seen.lists):
                    return False
            if saw & SAW_EMPTY and node is not None and node.value:
                return False
            if saw & (SAW_VALUE | SAW_ACL | SAW_OWNER) and (
                node is None
                or (saw & SAW_VALUE and node.value != seen.value)
                or (saw & SAW_ACL and node.acl != seen.acl)
                or (saw & SAW_OWNER and node.acl[0][1] != seen.acl[0][1])
            ):
                return False
            told = saw & (SAW_VALUE | SAW_ACL | SAW_EMPTY) or seen.lists
            if told and node is not None and not allows(node.acl, who, READ):
                return False
        return all(refusal(tree, parts, who, wanted) == e for (parts, wanted), e in self._refused.items())

    def _do(self, write: Write, who: Subject, fired: dict[Parts, Fired], made: dict[Node, Parts]) -> None:
        kind, parts, value, acl = write
        tree = self.tree
        node = tree.find(parts)
        if kind == "told":
            if refusal(tree, parts, who, acl[0][0]) != value.decode():
                raise EACCES
            return
        if kind == "rm":
            self._do_remove(parts, node, who, fired, made)
            return
        if node is None:
            if kind == "perms":
                raise ENOENT
            new = create(tree, parts, value, who)
            made.update((n, parts[: len(parts) - back]) for back, n in enumerate(reversed(new)))
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
        self, parts: Parts, node: Node | None, who: Subject, fired: dict[Parts, Fired], made: dict[Node, Parts]
    ) -> None:
        tree = self.tree
        parent = tree.find(parts[:-1])
        if parent is None:
            raise ENOENT
        if node is None:
            if refusal(tree, parts, who, WRITE) == "EACCES":
                raise EACCES
            return
        if not allows(node.acl, who, WRITE):
            raise EACCES
        if parts in fired and fired[parts][1] is None:
            del fired[parts]
        if node.children:  # a leaf has nothing below that could have been changed
            depth = len(parts)
            for below in [p for p, (_, removed, _) in fired.items() if removed is None and p[:depth] == parts]:
                del fired[below]
        if node not in made:
            fired[parts] = (parts, node, node.acl)
            if node.children:
                self._unmake_below(parts, made)
        tree.remove_child(parent, parts[-1], tree.generation + 1)

    def _unmake_below(self, parts: Parts, made: dict[Node, Parts]) -> None:
        """Of what was created and is removed again nobody is told: takes it out of a subtree that is about to go."""
        tree, depth = self.tree, len(parts)
        for node, where in list(made.items()):
            if where[:depth] == parts and tree.find(where) is node:
                parent = tree.find(where[:-1])
                if parent is not None:
                    tree.remove_child(parent, where[-1], tree.generation + 1)
