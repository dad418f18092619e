"""Nodes and what is done with them: one dictionary by path, in order of creation, and each operation in a few lines.

Half of the reference model (see `tests.model.reference`).  Knows nothing of connections, watches and transactions.
"""

from collections.abc import Callable
from copy import copy
from typing import Final, NamedTuple

DIRECTORY, READ, GET_PERMS, WRITE, MKDIR, RM, SET_PERMS, DIRECTORY_PART = 1, 2, 3, 11, 12, 13, 14, 22
ON_NODES: Final = frozenset({DIRECTORY, READ, GET_PERMS, WRITE, MKDIR, RM, SET_PERMS, DIRECTORY_PART})
PAYLOAD_MAX: Final = 4096
ANYBODY: Final = 32757
LETTERS: Final = {"n": frozenset[str](), "r": frozenset("r"), "w": frozenset("w"), "b": frozenset("rw")}
EVERYTHING: Final = frozenset("rwo")
OK: Final = b"OK\0"


class Refused(Exception):
    """A request is answered with this error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Entry(NamedTuple):
    """One entry of a permission list; it counts only if its domain existed when it was written."""

    letter: str
    domid: int
    counts: bool = True


Acl = tuple[Entry, ...]


class Node(NamedTuple):
    """A node.  Its place in the dictionary says when it was created."""

    value: bytes
    acl: Acl


class Who(NamedTuple):
    """Who asks."""

    domid: int
    privileged: bool
    target: int | None = None
    """The domain for which it may stand in."""
    full: bool = False
    """It owns as many nodes as it may."""


def rights(acl: Acl, who: Who) -> frozenset[str]:
    """permissions-and-quotas, section 2."""
    mine = {who.domid, who.target, ANYBODY}
    if who.privileged or acl[0].domid in mine:
        return EVERYTHING
    for entry in acl[1:]:
        if entry.counts and entry.domid in mine:
            return LETTERS[entry.letter]
    return LETTERS[acl[0].letter]


def parent_of(path: bytes) -> bytes:
    """The path above; that of a special node is the root."""
    return path[: path.rfind(b"/")] if path.rfind(b"/") > 0 else b"/"


def levels(path: bytes) -> int:
    """0 for the root, 1 for its children..."""
    return 0 if path == b"/" else path.count(b"/")


def is_below(path: bytes, above: bytes) -> bool:
    """Whether it lies somewhere below; never true of special nodes."""
    return path != above and path.startswith(above if above == b"/" else above + b"/")


class Request(NamedTuple):
    """A well-formed request about a node."""

    op: int
    path: bytes
    value: bytes = b""
    acl: Acl = ()
    offset: int = 0


class Happening(NamedTuple):
    """Something that watchers are told of."""

    path: bytes
    exact: bool
    """Only watches on exactly this path."""
    lists: tuple[Acl, ...]
    """Permission lists any of which lets a domain know: the node's before and after, and its parent's."""


class Tree:
    """All nodes by path, in order of creation; special nodes among them."""

    keeps_entries = False
    """What was given to a domain that has ended stays in the lists, and counts no more: so in C 4.17."""
    inherits_owner = False
    """A guest's new node belongs to whom the one above it belongs: so in oxenstored."""

    def __init__(self, nodes: dict[bytes, Node]) -> None:
        self.nodes = nodes

    def copy(self) -> "Tree":
        tree = copy(self)
        tree.nodes = dict(self.nodes)
        return tree

    def children(self, path: bytes) -> list[bytes]:
        return [p[p.rfind(b"/") + 1 :] for p in self.nodes if p[:1] == b"/" and p != b"/" and parent_of(p) == path]

    def acl(self, path: bytes) -> Acl:
        return self.nodes[path].acl

    def ancestor(self, path: bytes) -> bytes:
        """The nearest one that exists."""
        path = parent_of(path)
        while path not in self.nodes:
            path = parent_of(path)
        return path

    def need(self, who: Who, path: bytes, wanted: str) -> Node:
        """The node, if `who` has all the wanted rights; else the error that hides what `who` may not know."""
        node = self.nodes.get(path)
        if node is not None and rights(node.acl, who) >= set(wanted):
            return node
        if node is None and rights(self.acl(self.ancestor(path)), who) & set(wanted):
            raise Refused("ENOENT")
        raise Refused("EACCES")

    def create(self, who: Who, path: bytes, value: bytes) -> None:
        """With all missing parents, which get an empty value."""
        above = self.ancestor(path)
        if "w" not in rights(self.acl(above), who):
            raise Refused("EACCES")
        if who.full:
            raise Refused("ENOSPC")
        acl = self.acl(above)
        if not who.privileged and not self.inherits_owner:
            acl = (acl[0]._replace(domid=who.domid), *acl[1:])
        missing = [path]
        while parent_of(missing[0]) != above:
            missing.insert(0, parent_of(missing[0]))
        for each in missing:
            self.nodes[each] = Node(value if each == path else b"", acl)

    def change(self, path: bytes) -> list[Happening]:
        """What happens when a node is there afterwards."""
        return [Happening(path, False, (self.acl(path), self.acl(parent_of(path))))]

    def below(self, path: bytes) -> list[bytes]:
        """Everything below, children before their parents."""
        found: list[bytes] = []
        for name in self.children(path):
            child = (path if path != b"/" else b"") + b"/" + name
            found += [*self.below(child), child]
        return found

    def perform(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        """Does it.  The reply's payload, and what watchers are told."""
        return PERFORM[request.op](self, who, request)

    def read(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        return self.need(who, request.path, "r").value, []

    def directory(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        self.need(who, request.path, "r")
        names = b"".join(name + b"\0" for name in self.children(request.path))
        if len(names) > PAYLOAD_MAX:
            raise Refused("E2BIG")
        return names, []

    def directory_part(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        """Without the generation.  (So few names always fit.)"""
        self.need(who, request.path, "r")
        names = b"".join(name + b"\0" for name in self.children(request.path))
        return (names[request.offset :] if request.offset >= 0 else b"") + b"\0", []

    def get_perms(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        acl = self.need(who, request.path, "r").acl
        return b"".join(b"%s%d\0" % (entry.letter.encode(), entry.domid) for entry in acl), []

    def write(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        path = request.path
        if path in self.nodes:
            self.nodes[path] = Node(request.value, self.need(who, path, "w").acl)
        else:
            self.create(who, path, request.value)
        return OK, self.change(path)

    def mkdir(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        path = request.path
        if path in self.nodes:
            self.need(who, path, "w")
            return OK, []
        self.create(who, path, b"")
        return OK, self.change(path)

    def rm(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        path = request.path
        try:
            self.need(who, path, "w")
        except Refused as e:
            if e.name != "ENOENT" or parent_of(path) not in self.nodes:
                raise
            return OK, []
        if path == b"/":
            raise Refused("EINVAL")
        return OK, self.remove(path)

    def remove(self, path: bytes) -> list[Happening]:
        """With everything below."""
        told = [Happening(p, p != path, (self.acl(p), self.acl(parent_of(p)))) for p in (*self.below(path), path)]
        for each in told:
            del self.nodes[each.path]
        return told

    def set_perms(self, who: Who, request: Request) -> tuple[bytes, list[Happening]]:
        path = request.path
        node = self.need(who, path, "wo")
        if not who.privileged and request.acl[0].domid != node.acl[0].domid:
            raise Refused("EPERM")
        self.nodes[path] = Node(node.value, request.acl)
        return OK, [Happening(path, False, (node.acl, request.acl, self.acl(parent_of(path))))]

    # ---- domains

    def owned(self, domid: int) -> int:
        """How many nodes a domain owns; special ones do not count."""
        return sum(path[:1] == b"/" and node.acl[0].domid == domid for path, node in self.nodes.items())

    def walk(self, path: bytes = b"/") -> list[bytes]:
        """Everything, parents before their children."""
        prefix = path if path != b"/" else b""
        return [path] + [p for name in self.children(path) for p in self.walk(prefix + b"/" + name)]

    def forget(self, domid: int) -> list[Happening]:
        """A domain is no more: its nodes go, and what it was given (XSA-322).  Root and special nodes pass to domain 0."""
        told: list[Happening] = []
        special = [path for path in self.nodes if path[:1] == b"@"]
        for path in [*special, *self.walk()]:
            if path not in self.nodes:
                continue  # it went with one above it
            value, acl = self.nodes[path]
            if acl[0].domid == domid and path not in {b"/", *special}:
                told += self.remove(path)
                continue
            owner = acl[0]._replace(domid=0) if acl[0].domid == domid else acl[0]
            kept = [entry._replace(counts=entry.counts and entry.domid != domid) for entry in acl[1:]]
            if not self.keeps_entries:
                kept = [entry for entry in acl[1:] if entry.domid != domid]
            self.nodes[path] = Node(value, (owner, *kept))
        return told


PERFORM: Final[dict[int, Callable[[Tree, Who, Request], tuple[bytes, list[Happening]]]]] = {
    READ: Tree.read,
    DIRECTORY: Tree.directory,
    DIRECTORY_PART: Tree.directory_part,
    GET_PERMS: Tree.get_perms,
    WRITE: Tree.write,
    MKDIR: Tree.mkdir,
    RM: Tree.rm,
    SET_PERMS: Tree.set_perms,
}
