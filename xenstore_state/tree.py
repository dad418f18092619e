"""The tree of nodes, with snapshots that cost nothing to take.

Theory of operation.  A node holds its value, its permission list, the generation of its last change and its children in
order of creation.  `snapshot()` opens an *epoch*; while epochs are open, each change first notes what it overwrites in the
newest epoch, once per (node, fields) and per (node, child name): the *before-images*.  Reading through a snapshot looks
for a before-image in its epoch and all younger ones, and in the live tree if there is none.  So taking a snapshot is O(1),
a change costs O(1) more, and neither nodes nor tables of children are ever copied.

An epoch that holds too many before-images is `lost`: its snapshots can no longer be read, which their owner must treat as
a conflict.  Nothing here recurses.

Kept along: how many nodes each domain owns, how many bytes of nodes each unprivileged domain is charged with, and which
nodes' permission lists name it (an index that may hold more than that, never less).  Knows no rights, quotas or watches.

And a digest of all changes, by which two copies of a tree can be compared: each change notes what it touched, and `digest`
folds what these have become into the digest so far.  So a change costs an addition to a list, and a digest costs as much as
changed since the last one.  Two copies to which the same was done in the same order have equal digests; a value, name or
permission list that differs shows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar
from zlib import crc32

from msgpack import packb

try:
    from mypy_extensions import mypyc_attr
except ImportError:  # it is there where this is compiled, and says nothing to anybody else
    _T = TypeVar("_T")

    def mypyc_attr(*attrs: str, **kwattrs: object) -> Callable[[_T], _T]:
        """Nothing."""
        return lambda it: it


from protocol.ops import DOMID_FIRST_RESERVED
from xenstore_state.access import IGNORED, Acl, mentions
from xenstore_state.quotas import NODE_ENTRY, NODE_HEADER

IMAGES_MAX: Final = 200_000
"""Before-images an epoch may hold."""
IMAGES_BYTES: Final = 4 << 20
"""Bytes of names and values that they may hold."""
TOUCHED_MAX: Final = 1 << 20
"""Changes that are remembered for the next digest."""
UNCHARGED: Final = 0
"""The domain whose nodes are not charged or indexed: the privileged one, which never ends."""
_INDEX_MIN: Final = 1024

Parts = tuple[bytes, ...]
"""Names that lead from the root to a node; a special node's are an empty one and its whole path."""
Fields = tuple[bytes, Acl, int]
_FIELDS: Final = None


@mypyc_attr(acyclic=True)
class Node:
    """One node.  `birth` is the generation at which it was created: children are ordered by it.

    Compiled, it has no header of the garbage collector's (`_acyclic.h`).
    """

    __slots__ = ("acl", "birth", "children", "generation", "value")

    def __init__(self, value: bytes, acl: Acl, generation: int) -> None:
        self.value = value
        self.acl = acl
        self.generation = generation
        self.birth = generation
        self.children: dict[bytes, Node] | None = None


class SnapshotLost(Exception):
    """Too much has changed since the snapshot was taken; it cannot be read any more."""


class _Epoch:
    __slots__ = ("accounts", "count", "images", "kept", "lost", "references", "size")

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        """Never lost: whoever opened it bounds what may change."""
        self.references = 0
        self.images: dict[Node, dict[bytes | None, Fields | Node | None]] = {}
        self.accounts: dict[int, tuple[int, int]] = {}
        self.count = 0
        self.size = 0
        self.lost = False


class Tree:
    """The live tree.  Changes go through its methods only."""

    def __init__(self, acl: Acl) -> None:
        self.root = Node(b"", acl, 0)
        self.specials: dict[bytes, Node] = {}
        """Special nodes by name, outside the tree."""
        self.generation = 0
        """Generation of the youngest change; strictly increasing."""
        self.owned: dict[int, int] = {acl[0][1]: 1}
        """Nodes by owner's domid.  Special nodes do not count."""
        self.memory: dict[int, int] = {}
        """Bytes of nodes by owner's domid, `UNCHARGED` apart: what `quotas.node_size` counts, and the path."""
        self._named: dict[int, dict[Parts, None]] = {}
        """Where nodes stand whose list names a domain, or did, in an entry that counts: so there are few such domains."""
        self._ignored: set[int] = set()
        """Domains for which there may be entries that do not count, anywhere."""
        self._index_limits: dict[int, int] = {}
        self._overgrown: set[int] = set()
        """Domains whose index is to be looked through, once nothing can be rolled back any more."""
        self._epochs: list[_Epoch] = []
        self._touched: list[Node] = []
        """Nodes whose value was set since the last digest."""
        self._made: list[object] = []
        """Where nodes were made or removed since then, and permission lists that were given."""
        self._digest: int | None = 0

    @property
    def size(self) -> int:
        """Number of nodes, the root included."""
        return sum(self.owned.values())

    def find(self, parts: tuple[bytes, ...]) -> Node | None:
        """The node below the root that these names lead to."""
        node = self.root
        for name in parts:
            children = node.children
            if children is None:
                return None
            found = children.get(name)
            if found is None:
                return None
            node = found
        return node

    def find_any(self, parts: Parts) -> Node | None:
        """The same, special nodes too."""
        return self.specials.get(parts[1]) if is_special(parts) else self.find(parts)

    # ---- changes

    def set_value(self, node: Node, value: bytes, generation: int) -> None:
        """Replaces a value."""
        if self._epochs:
            self._note(node, _FIELDS, (node.value, node.acl, node.generation))
        owner = node.acl[0][1]
        if owner != UNCHARGED:
            self._account(owner, 0, len(value) - len(node.value))
        node.value = value
        self._touched.append(node)
        node.generation = self.generation = generation

    def set_acl(self, node: Node, acl: Acl, generation: int, parts: Parts) -> None:
        """Replaces the permission list of the node that `parts` lead to; it may change owner."""
        if self._epochs:
            self._note(node, _FIELDS, (node.value, node.acl, node.generation))
        if not is_special(parts):
            before, after = node.acl[0][1], acl[0][1]
            length = _path_length(parts)
            self._account(before, -1, -_charge(node, length) if before != UNCHARGED else 0)
            node.acl = acl
            self._account(after, 1, _charge(node, length) if after != UNCHARGED else 0)
        node.acl = acl
        self._made += (parts, acl)
        self._index(parts, acl)
        node.generation = self.generation = generation

    def add_child(self, parent: Node, value: bytes, acl: Acl, generation: int, parts: Parts) -> Node:
        """Creates the child that `parts` lead to and that is not there yet; the parent changes too."""
        name = parts[-1]
        child = Node(value, acl, generation)
        if self._epochs:
            self._note(parent, _FIELDS, (parent.value, parent.acl, parent.generation))
            self._note(parent, name, None)
        if parent.children is None:
            parent.children = {}
        parent.children[name] = child
        self._made += (parts, acl)
        self._touched.append(child)
        parent.generation = self.generation = generation
        owner, above = acl[0][1], parent.acl[0][1]
        self._account(owner, 1, _charge(child, _path_length(parts)) if owner != UNCHARGED else 0)
        if above != UNCHARGED:
            self._account(above, 0, len(name) + 1)
        if owner != UNCHARGED or len(acl) > 1:
            self._index(parts, acl)
        return child

    def remove_child(self, parent: Node, generation: int, parts: Parts) -> Node:
        """Removes the child that `parts` lead to, with everything below it; the parent changes too.  Raises KeyError."""
        name = parts[-1]
        children = parent.children or {}
        child = children[name]
        if self._epochs:
            self._note(parent, _FIELDS, (parent.value, parent.acl, parent.generation))
            self._note(parent, name, child)
        del children[name]
        self._made.append(parts)
        if not children:
            parent.children = None
        parent.generation = self.generation = generation
        if parent.acl[0][1] != UNCHARGED:
            self._account(parent.acl[0][1], 0, -len(name) - 1)
        counts: dict[int, int] = {}
        charges: dict[int, int] = {}
        stack = [(child, _path_length(parts))]
        while stack:
            node, length = stack.pop()
            acl = node.acl
            owner, count, charge = acl[0][1], 1, 0
            charged = owner != UNCHARGED
            if charged:
                charge = _charge(node, length)
            if node.children:
                for name, below in node.children.items():
                    if below.acl is not acl or below.children is not None:
                        stack.append((below, length + len(name) + 1))
                        continue
                    count += 1  # like most: nothing below it, and its parent's list
                    if charged:
                        charge += _charge(below, length + len(name) + 1)
            counts[owner] = counts.get(owner, 0) + count
            if charged:
                charges[owner] = charges.get(owner, 0) + charge
        for owner, count in counts.items():
            self._account(owner, -count, -charges.get(owner, 0))
        return child

    def _account(self, domid: int, nodes: int, size: int) -> None:
        now, held = self.owned.get(domid, 0), self.memory.get(domid, 0)
        if self._epochs:
            self._epochs[-1].accounts.setdefault(domid, (now, held))
        self._set_account(domid, now + nodes, held + size)

    def _set_account(self, domid: int, nodes: int, size: int) -> None:
        for table, value in ((self.owned, nodes), (self.memory, size)):
            if value:
                table[domid] = value
            else:
                table.pop(domid, None)

    # ---- the digest

    def digest(self) -> int:
        """The digest of all changes up to now."""
        if self._touched or self._made or self._digest is None:
            changes = packb(([node.value for node in self._touched], self._made))
            self._digest = crc32(changes, self._digest or 0)
            self._touched.clear()
            self._made.clear()
        return self._digest

    def same(self, digest: int) -> bool:
        """Whether a copy with this digest is equal, as far as digests tell.  One that was given up is taken on trust."""
        if self._digest is not None:
            return self.digest() == digest
        self.begin_digest()
        self._digest = digest
        return True

    def begin_digest(self) -> None:
        """What the digest was is not known; the next one that is compared will be believed."""
        self._digest = None
        self._touched.clear()
        self._made.clear()

    def bound_digest(self) -> None:
        """Gives the digest up if nobody has asked for it for so long that remembering all changes would cost too much."""
        if len(self._touched) + len(self._made) > TOUCHED_MAX:
            self.begin_digest()

    # ---- which nodes name a domain

    def _index(self, parts: Parts, acl: Acl) -> None:
        for access, domid in acl:
            if domid == UNCHARGED:
                continue
            if access & IGNORED:
                if domid < DOMID_FIRST_RESERVED:
                    self._ignored.add(domid)
                continue
            named = self._named.setdefault(domid, {})
            named[parts] = None
            if len(named) > self._index_limits.get(domid, _INDEX_MIN):
                self._overgrown.add(domid)
        if self._overgrown:
            self._prune_index()

    def _prune_index(self) -> None:
        """Drops what does not name a domain any more; never while something may be rolled back, for that would come back."""
        if any(epoch.kept for epoch in self._epochs):
            return
        for domid in self._overgrown:
            named = {there: None for there in self._named.get(domid, ()) if self._names(there, domid)}
            self._index_limits[domid] = max(_INDEX_MIN, 2 * len(named))
            self._named[domid] = named
        self._overgrown.clear()

    def _names(self, parts: Parts, domid: int) -> bool:
        node = self.find_any(parts)
        return node is not None and mentions(node.acl, domid)

    def naming(self, domid: int) -> list[Parts]:
        """Where all nodes stand, special ones too, whose permission list names a domain, in the order of a walk."""
        places: Iterable[Parts] = self._named.get(domid, ())
        if domid in self._ignored:
            places = [*((b"", name) for name in self.specials), *(parts for parts, _ in walk_places(self))]
        return sorted((parts for parts in places if self._names(parts, domid)), key=self._place)

    def forget(self, domid: int) -> None:
        """No node names this domain any more."""
        self._named.pop(domid, None)
        self._ignored.discard(domid)
        self._index_limits.pop(domid, None)

    def _place(self, parts: Parts) -> tuple[int, ...]:
        """Sorts nodes as a walk in order of creation, parents first, comes by them; special ones first."""
        births, node = [], self.root
        for name in () if is_special(parts) else parts:
            node = (node.children or {})[name]
            births.append(node.birth)
        return tuple(births)

    def _note(self, node: Node, key: bytes | None, before: Fields | Node | None) -> None:
        epoch = self._epochs[-1]
        images = epoch.images.setdefault(node, {})
        if key not in images:
            images[key] = before
            epoch.count += 1
            epoch.size += _image_size(key, before)
            self._bound(epoch)

    def _bound(self, epoch: _Epoch) -> None:
        """An epoch that holds too much is lost."""
        if (epoch.count > IMAGES_MAX or epoch.size > IMAGES_BYTES) and not epoch.kept:
            epoch.lost = True
            epoch.images.clear()
            epoch.count = epoch.size = 0

    # ---- snapshots

    def snapshot(self) -> "Snapshot":
        """The tree as it is now.  O(1).  Close it when done."""
        last = self._epochs[-1] if self._epochs else None
        if last is None or last.count or last.accounts or last.lost or last.kept:
            self._epochs.append(_Epoch(kept=False))
        epoch = self._epochs[-1]
        epoch.references += 1
        return Snapshot(self, epoch)

    def savepoint(self) -> "Snapshot":
        """A snapshot to roll back to, never lost: keep it open for a bounded number of changes only."""
        epoch = _Epoch(kept=True)
        epoch.references = 1
        self._epochs.append(epoch)
        return Snapshot(self, epoch)

    def rollback(self, savepoint: "Snapshot") -> None:
        """Undoes everything since the savepoint.  All snapshots taken after it must be closed."""
        epoch = savepoint._epoch
        if not epoch.kept or self._epochs[-1] is not epoch:
            raise ValueError("only the youngest savepoint can be rolled back to")
        for node, images in epoch.images.items():
            moved = False
            for key, before in images.items():
                if isinstance(before, tuple):
                    node.value, node.acl, node.generation = before
                    continue
                assert key is not None
                if node.children is None:
                    node.children = {}
                if before is None:
                    node.children.pop(key, None)
                else:
                    moved = True
                    node.children[key] = before
            if moved:
                node.children = dict(_by_birth(node.children or {}))
            elif not node.children:
                node.children = None
        for domid, (nodes, size) in epoch.accounts.items():
            self._set_account(domid, nodes, size)
        epoch.images.clear()
        epoch.accounts.clear()
        epoch.count = 0

    def _release(self, epoch: _Epoch) -> None:
        epoch.references -= 1
        epochs = self._epochs
        while epochs and not epochs[0].references:
            del epochs[0]
        if self._overgrown:
            self._prune_index()
        if epoch.references or epoch not in epochs:
            return
        at = epochs.index(epoch)
        older = epochs[at - 1]
        older.lost = older.lost or epoch.lost
        for node, images in epoch.images.items():
            kept = older.images.setdefault(node, {})
            for key, before in images.items():
                if key not in kept:
                    kept[key] = before
                    older.count += 1
                    older.size += _image_size(key, before)
        for domid, account in epoch.accounts.items():
            older.accounts.setdefault(domid, account)
        self._bound(older)
        if older.lost:
            older.images.clear()
            older.count = older.size = 0
        del epochs[at]


def _image_size(key: bytes | None, before: Fields | Node | None) -> int:
    return len(key or b"") + (len(before[0]) if isinstance(before, tuple) else 0)


class Snapshot:
    """The tree as it was when this was taken.  Read-only."""

    __slots__ = ("_epoch", "_open", "_tree")

    def __init__(self, tree: Tree, epoch: _Epoch) -> None:
        self._tree = tree
        self._epoch = epoch
        self._open = True

    @property
    def current(self) -> bool:
        """Whether nothing has changed since it was taken."""
        epoch = self._epoch
        return not epoch.count and epoch is self._tree._epochs[-1] and not epoch.lost

    def close(self) -> None:
        """Gives the snapshot up; before-images that only it needed are dropped."""
        if self._open:
            self._open = False
            self._tree._release(self._epoch)

    def _since(self, node: Node) -> Iterator[dict[bytes | None, Fields | Node | None]]:
        epochs = self._tree._epochs
        for epoch in epochs[epochs.index(self._epoch) :]:
            if epoch.lost:
                raise SnapshotLost
            images = epoch.images.get(node)
            if images is not None:
                yield images

    def fields(self, node: Node) -> Fields:
        """(value, permission list, generation) of a node then.  Raises `SnapshotLost`."""
        for images in self._since(node):
            before = images.get(_FIELDS)
            if isinstance(before, tuple):
                return before
        return node.value, node.acl, node.generation

    def child(self, node: Node, name: bytes) -> Node | None:
        """A child then.  Raises `SnapshotLost`."""
        for images in self._since(node):
            if name in images:
                before = images[name]
                return before if isinstance(before, Node) else None
        return (node.children or {}).get(name)

    def children(self, node: Node) -> list[bytes]:
        """Names of the children then, in order of creation.  Raises `SnapshotLost`."""
        images: dict[bytes | None, Fields | Node | None] = {}
        for younger in self._since(node):
            images = {**younger, **images}
        images.pop(_FIELDS, None)
        if not images:
            return list(node.children or ())
        then = dict(node.children or {})
        for name, before in images.items():
            assert name is not None
            if isinstance(before, Node):
                then[name] = before
            else:
                then.pop(name, None)
        return [name for name, _ in _by_birth(then)]

    def find(self, parts: tuple[bytes, ...]) -> Node | None:
        """The node that these names led to then; read its fields through this snapshot."""
        node = self._tree.root
        for name in parts:
            found = self.child(node, name)
            if found is None:
                return None
            node = found
        return node


def _by_birth(children: dict[bytes, Node]) -> list[tuple[bytes, Node]]:
    return sorted(children.items(), key=lambda item: item[1].birth)


def is_special(parts: Parts) -> bool:
    """Whether names lead to a special node, outside the tree."""
    return len(parts) == 2 and not parts[0]


def _path_length(parts: Parts) -> int:
    return sum(map(len, parts)) + len(parts)


def _charge(node: Node, path_length: int) -> int:
    """Bytes a node's owner is charged with: its record, with its children's names, and its path."""
    size = NODE_HEADER + NODE_ENTRY * len(node.acl) + len(node.value) + path_length
    if node.children:
        size += sum(map(len, node.children)) + len(node.children)
    return size


def walk_places(tree: Tree) -> Iterator[tuple[Parts, Node]]:
    """All nodes of the tree with their places, parents first, in order of creation."""
    stack: list[tuple[Parts, Node]] = [((), tree.root)]
    while stack:
        parts, node = stack.pop()
        yield parts, node
        if node.children:
            stack += [((*parts, name), child) for name, child in reversed(node.children.items())]


def walk(node: Node) -> Iterator[Node]:
    """The node and all nodes below it, parents first, in no order beyond that."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if node.children:
            stack.extend(node.children.values())
