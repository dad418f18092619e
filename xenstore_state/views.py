"""What an operation on the store does, wherever it is done: on the live tree or inside a transaction.

`View` has each operation once: which right it needs, what is hidden from whom, what an implicit parent is.  `Live` applies
it to the tree; `Transaction` (its own module) to an overlay.  Logic calls these operations to serve a request, State calls
the same ones to apply a record, so State asks every question of access itself.

Hiding (core.c: errno_from_parents): whoever has none of the wanted rights on the nearest existing ancestor is not told
whether anything exists below it.  Quotas bind whoever has some: they are asked for behind the rights.
Knows no paths as text and no watches.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Final, Protocol

from protocol.errors import EACCES, EINVAL, ENOENT, StoreError
from protocol.permissions import READ, WRITE
from xenstore_state.access import OWNER, Acl, Subject, inherited, rights
from xenstore_state.quotas import QuotaExceeded, claim, exceeds, node_size
from xenstore_state.tree import UNCHARGED, Node, Parts, Tree, is_special

SPECIAL: Final = (b"",)
"""First name of a special node, whose second one is its whole path: no component of an ordinary path is empty."""
NEW: Final[Acl] = ()
"""Permission list "before the change" of a node that was created."""


Fired = tuple[Parts, Node | None, Acl]
"""A change that watches are told of: names, root of the subtree that is gone (None for any other change), and the
permission list before (`NEW` if there was no node).  A plain tuple: one is made for every write."""


class Face(Protocol):
    """A node as one sees it."""

    value: bytes
    acl: Acl


class View:
    """The operations.  Names from the root say which node is meant; StoreErrors say why not."""

    __slots__ = ("tree",)

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @abstractmethod
    def find(self, parts: Parts) -> Face | None:
        """The node, if there is one."""

    def nearest(self, parts: Parts) -> Face:
        """The nearest existing ancestor.  Of a special node `@x/y` that is `@x`, of `@x` it is the root."""
        if is_special(parts):
            above = self.find((parts[0], parts[1].rpartition(b"/")[0]))
            return above if above is not None else self.nearest((b"",))
        while parts:
            parts = parts[:-1]
            found = self.find(parts)
            if found is not None:
                return found
        raise LookupError("the root always exists")

    def permitted(self, parts: Parts, who: Subject, wanted: int) -> Face:
        """The node, if `who` has the wanted rights on it.  Raises ENOENT or EACCES."""
        found = self.find(parts)
        if found is not None:
            if who.privileged or (rights(found.acl, who) & wanted) == wanted:
                return found
            raise StoreError("EACCES")
        if who.privileged or rights(self.nearest(parts).acl, who) & wanted:
            raise StoreError("ENOENT")
        raise StoreError("EACCES")

    def read(self, parts: Parts, who: Subject) -> bytes:
        """The value."""
        found = self.permitted(parts, who, READ)
        return found.value

    def directory(self, parts: Parts, who: Subject) -> list[bytes]:
        """Names of the children in order of creation."""
        self.permitted(parts, who, READ)
        return self.children(parts)

    def get_perms(self, parts: Parts, who: Subject) -> Acl:
        """The permission list."""
        found = self.permitted(parts, who, READ)
        return found.acl

    def write(self, parts: Parts, value: bytes, who: Subject) -> list[Fired]:
        """Sets a value, creating the node and its missing parents."""
        found = self.find(parts)
        if found is None:
            self._may_create(parts, who, value)
            return self.put(parts, value, who, NEW)
        if not who.privileged and not rights(found.acl, who) & WRITE:
            raise StoreError("EACCES")
        if who.quotas is not None:
            self._may_grow(parts, who.quotas, found.acl, value)
            self._may_hold(found.acl[0][1], who, len(value) - len(found.value), "ENOMEM")
        return self.put(parts, value, who, found.acl)

    def mkdir(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates an empty node; one that exists stays as it is, but needs the right all the same."""
        found = self.find(parts)
        if found is None:
            self._may_create(parts, who, b"")
            return self.make(parts, who)
        if not who.privileged and not rights(found.acl, who) & WRITE:
            raise StoreError("EACCES")
        return []

    def _may_create(self, parts: Parts, who: Subject, value: bytes) -> None:
        if who.privileged:
            return
        parent = self.nearest(parts)
        if not rights(parent.acl, who) & WRITE:
            raise StoreError("EACCES")
        if who.quotas is None:
            return
        claim(who, "nodes", self.tree.owned.get(who.domid, 0) + 1)
        self._may_grow(parts, who.quotas, parent.acl, value)
        depth = len(parts) - 1
        while self.find(parts[:depth]) is None:
            depth -= 1
        self._may_grow(parts[:depth], who.quotas, parent.acl, parent.value, parts[depth])
        for name in parts[depth + 1 :]:
            self._may_be(who.quotas, node_size(b"", len(parent.acl), len(name) + 1))
        levels, length = range(depth + 1, len(parts) + 1), sum(map(len, parts)) + len(parts)
        size = len(levels) * (node_size(b"", len(parent.acl), 0) + length) + len(value)
        self._may_hold(who.domid, who, size, "EIO")

    def _may_hold(self, owner: int, who: Subject, size: int, error: str) -> None:
        """Whether the owner of a node may be charged with `size` more bytes; then a commit cannot succeed either."""
        if size <= 0 or owner == UNCHARGED or who.quotas is None:
            return
        held = self.tree.memory.get(owner, 0) + (who.held if owner == who.domid else 0)
        try:
            claim(who, "memory", held + size, error)
        except QuotaExceeded:
            self.doom()
            raise

    def _may_grow(self, parts: Parts, limits: dict[str, int], acl: Acl, value: bytes, child: bytes = b"") -> None:
        """Whether a node may be written like this, with one more child perhaps.  Raises ENOSPC; then a commit cannot succeed."""
        limit = limits["node-size"]
        names = len(child) + bool(child)
        for name in self.some_children(parts):
            if names > limit:
                break  # enough: a node that large is too large anyway
            names += len(name) + 1
        self._may_be(limits, node_size(value, len(acl), names))

    def _may_be(self, limits: dict[str, int], size: int) -> None:
        """Whether a node may be of this size."""
        if exceeds(size, limits["node-size"]):
            self.doom()
            raise QuotaExceeded("ENOSPC", "node-size", limits["node-size"], size)

    def rm(self, parts: Parts, who: Subject) -> list[Fired]:
        """Removes a node with everything below it.  A missing one is fine as long as its parent exists; the root stays."""
        found = self.find(parts)
        if not who.privileged and not rights((found or self.nearest(parts)).acl, who) & WRITE:
            raise StoreError("EACCES")
        if not parts:
            raise EINVAL
        if found is not None:
            return self.remove(parts)
        if self.find(parts[:-1]) is None:
            raise StoreError("ENOENT")
        return self.remove_nothing(parts)

    def set_perms(self, parts: Parts, acl: Acl, who: Subject) -> list[Fired]:
        """Replaces the permission list; only the privileged domain may change the owner (EPERM)."""
        found = self.permitted(parts, who, WRITE | OWNER)
        if not who.privileged and found.acl[0][1] != acl[0][1]:
            raise StoreError("EPERM")
        if who.quotas is not None:
            self._may_grow(parts, who.quotas, acl, found.value)
            size = node_size(b"", len(acl), 0) - node_size(b"", len(found.acl), 0)
            self._may_hold(found.acl[0][1], who, size, "ENOMEM")
        return self.set_acl(parts, acl)

    # ---- what a view does about it

    @abstractmethod
    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node."""

    def some_children(self, parts: Parts) -> Iterable[bytes]:
        """Names of children, one by one, for whoever needs no more than enough of them."""
        node = self.tree.find(parts)
        return node.children or () if node is not None else ()

    @abstractmethod
    def generation(self, parts: Parts) -> int:
        """A number that changes when the node's value, permissions or children do."""

    @abstractmethod
    def put(self, parts: Parts, value: bytes, who: Subject, before: Acl) -> list[Fired]:
        """Sets a value, which is permitted; `before` is NEW if node and perhaps parents must be made."""

    @abstractmethod
    def make(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates a missing node, which is permitted."""

    def doom(self) -> None:
        """A change failed half way."""

    @abstractmethod
    def remove(self, parts: Parts) -> list[Fired]:
        """Removes an existing node, which is permitted."""

    @abstractmethod
    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """Somebody removed what is not there."""

    @abstractmethod
    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list, which is permitted."""


class Live(View):
    """The live tree: operations take effect at once."""

    __slots__ = ()

    def _node(self, parts: Parts) -> Node:
        """The node, which must exist."""
        node = self.find(parts)
        if node is None:
            raise ENOENT
        return node

    def find(self, parts: Parts) -> Node | None:
        """The node, if there is one."""
        return self.tree.specials.get(parts[1]) if is_special(parts) else self.tree.find(parts)

    def read(self, parts: Parts, who: Subject) -> bytes:
        """The value.  (The common case of `View.read`, for speed.)"""
        node = self.tree.find(parts)
        if node is not None and (who.privileged or rights(node.acl, who) & READ):
            return node.value
        return super().read(parts, who)

    def write(self, parts: Parts, value: bytes, who: Subject) -> list[Fired]:
        """Sets a value.  (`View.write` in one piece, for speed.)"""
        if who.quotas is not None:
            return super().write(parts, value, who)
        tree = self.tree
        node = tree.find(parts)
        if node is None:
            create(tree, parts, value, who)
            return [(parts, None, NEW)]
        if who.privileged or rights(node.acl, who) & WRITE:
            tree.set_value(node, value, tree.generation + 1)
            return [(parts, None, node.acl)]
        raise EACCES

    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node."""
        return list(self._node(parts).children or ())

    def generation(self, parts: Parts) -> int:
        """Generation of the node."""
        return self._node(parts).generation

    def put(self, parts: Parts, value: bytes, who: Subject, before: Acl) -> list[Fired]:
        """Sets a value; makes what is missing."""
        if before is NEW:
            create(self.tree, parts, value, who)
        else:
            self.tree.set_value(self._node(parts), value, self.tree.generation + 1)
        return [(parts, None, before)]

    def make(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates a node; makes what is missing."""
        return self.put(parts, b"", who, NEW)

    def remove(self, parts: Parts) -> list[Fired]:
        """Removes a subtree."""
        tree = self.tree
        parent = tree.find(parts[:-1])
        assert parent is not None
        node = tree.remove_child(parent, tree.generation + 1, parts)
        return [(parts, node, node.acl)]

    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """Nothing to do."""
        return []

    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list."""
        node = self._node(parts)
        before = node.acl
        self.tree.set_acl(node, acl, self.tree.generation + 1, parts)
        return [(parts, None, before)]


def create(tree: Tree, parts: Parts, value: bytes, who: Subject) -> list[Node]:
    """Creates a missing node and its missing parents.  Raises EACCES.  The nodes made, the target last."""
    depth, parent = 0, tree.root
    while parent.children and parts[depth] in parent.children:
        parent = parent.children[parts[depth]]
        depth += 1
    if not rights(parent.acl, who) & WRITE:
        raise EACCES
    acl = inherited(parent.acl, who)
    made = []
    while depth < len(parts):
        depth += 1
        here = parts[:depth]
        parent = tree.add_child(parent, value if depth == len(parts) else b"", acl, tree.generation + 1, here)
        made.append(parent)
    return made
