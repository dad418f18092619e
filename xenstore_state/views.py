"""What an operation on the store does, wherever it is done: on the live tree or inside a transaction.

`View` has each operation once: which right it needs, what is hidden from whom, what an implicit parent is.  `Live` applies
it to the tree; `Transaction` (its own module) to an overlay.  Logic calls these operations to serve a request, State calls
the same ones to apply a record, so State asks every question of access itself.

Hiding (core.c: errno_from_parents): whoever has none of the wanted rights on the nearest existing ancestor is not told
whether anything exists below it.  Quotas bind whoever has some: they are asked for behind the rights.
Knows no paths as text and no watches.
"""

from abc import abstractmethod
from typing import Final, Protocol

from protocol.errors import EACCES, ENOENT, ENOSPC, StoreError
from protocol.permissions import READ, WRITE
from xenstore_state.access import OWNER, Acl, Subject, inherited, rights
from xenstore_state.quotas import exceeds, node_size
from xenstore_state.tree import Node, Tree

Parts = tuple[bytes, ...]
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
        """The nearest existing ancestor."""
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
            self._may_create(parts, who)
            if who.quotas is not None:
                self._may_grow(parts, None, who.quotas, self.nearest(parts).acl, value)
            return self.put(parts, value, who, NEW)
        if not who.privileged and not rights(found.acl, who) & WRITE:
            raise StoreError("EACCES")
        if who.quotas is not None:
            self._may_grow(parts, found, who.quotas, found.acl, value)
        return self.put(parts, value, who, found.acl)

    def mkdir(self, parts: Parts, who: Subject) -> list[Fired]:
        """Creates an empty node; one that exists stays as it is, but needs the right all the same."""
        found = self.find(parts)
        if found is None:
            self._may_create(parts, who)
            return self.make(parts, who)
        if not who.privileged and not rights(found.acl, who) & WRITE:
            raise StoreError("EACCES")
        return []

    def _may_create(self, parts: Parts, who: Subject) -> None:
        if who.privileged:
            return
        parent = self.nearest(parts)
        if not rights(parent.acl, who) & WRITE:
            raise StoreError("EACCES")
        if who.quotas is None:
            return
        if exceeds(self.tree.owned.get(who.domid, 0) + 1, who.quotas["nodes"]):
            raise ENOSPC
        depth = len(parts) - 1
        while self.find(parts[:depth]) is None:
            depth -= 1
        self._may_grow(parts[:depth], parent, who.quotas, parent.acl, parent.value, parts[depth])

    def _may_grow(
        self, parts: Parts, found: Face | None, limits: dict[str, int], acl: Acl, value: bytes, child: bytes = b""
    ) -> None:
        """Whether a node may be written like this, with one more child perhaps.  Raises ENOSPC; then a commit cannot succeed.

        What makes it smaller is always allowed.
        """
        limit = limits["node-size"]
        node = self.tree.find(parts)
        names = len(child) + bool(child)
        for name in (node.children or ()) if node is not None else ():
            if names > limit:
                break  # enough: a node that large is too large anyway
            names += len(name) + 1
        size = node_size(value, len(acl), names)
        before = node_size(found.value, len(found.acl), names) if found is not None and not child else 0
        if exceeds(size, limit) and (not before or size > before):
            self.doom()
            raise ENOSPC

    def rm(self, parts: Parts, who: Subject) -> list[Fired]:
        """Removes a node with everything below it.  A missing one is fine as long as its parent exists."""
        found = self.find(parts)
        if not who.privileged and not rights((found or self.nearest(parts)).acl, who) & WRITE:
            raise StoreError("EACCES")
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
            self._may_grow(parts, found, who.quotas, acl, found.value)
        return self.set_acl(parts, acl)

    # ---- what a view does about it

    @abstractmethod
    def children(self, parts: Parts) -> list[bytes]:
        """Names of the children of an existing node."""

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
        node = self.tree.find(parts)
        return node if node is not None or len(parts) != 2 or parts[0] else self.tree.specials.get(parts[1])

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
        node = tree.remove_child(parent, parts[-1], tree.generation + 1)
        return [(parts, node, node.acl)]

    def remove_nothing(self, parts: Parts) -> list[Fired]:
        """Nothing to do."""
        return []

    def set_acl(self, parts: Parts, acl: Acl) -> list[Fired]:
        """Replaces a permission list."""
        node = self._node(parts)
        before = node.acl
        self.tree.set_acl(node, acl, self.tree.generation + 1)
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
    for name in parts[depth:]:
        depth += 1
        parent = tree.add_child(parent, name, value if depth == len(parts) else b"", acl, tree.generation + 1)
        made.append(parent)
    return made
