"""Watches, found through a trie of path components: who is told of a change costs O(depth + matches), never O(all watches).

A watch on a path fires for the path and everything below it, down to its depth if it has one.  Special nodes are outside
the tree and match by name.  Knows nothing of permissions: whether a connection may see an event is asked elsewhere.
"""

from collections.abc import Iterator

from protocol.paths import components
from recovery_box.items import Connection
from xenstore_state.tree import Node


class Watch:
    """One registered watch."""

    __slots__ = ("connection", "depth", "parts", "path", "sequence", "strip", "token")

    def __init__(
        self, connection: Connection, path: bytes, token: bytes, depth: int | None, strip: int, sequence: int
    ) -> None:
        self.connection = connection
        self.path = path
        """Canonical."""
        self.token = token
        self.depth = depth
        """Levels below `path` that count; None is all of them."""
        self.strip = strip
        """Bytes cut off the front of event paths: a watch set by a relative path reports relative paths."""
        self.sequence = sequence
        """Order of registration."""
        self.parts = components(path) if path[:1] == b"/" else ()


class _Branch:
    __slots__ = ("branches", "watches")

    def __init__(self) -> None:
        self.branches: dict[bytes, _Branch] = {}
        self.watches: dict[Watch, None] = {}


class WatchTrie:
    """All watches of all connections."""

    def __init__(self) -> None:
        self._root = _Branch()
        self._special: dict[bytes, dict[Watch, None]] = {}
        self.count = 0

    def add(self, watch: Watch) -> None:
        """Registers a watch."""
        self.count += 1
        if watch.path[:1] == b"@":
            self._special.setdefault(watch.path, {})[watch] = None
            return
        branch = self._root
        for name in watch.parts:
            below = branch.branches.get(name)
            if below is None:
                below = branch.branches[name] = _Branch()
            branch = below
        branch.watches[watch] = None

    def remove(self, watch: Watch) -> None:
        """Removes a registered watch, and branches that lead nowhere any more."""
        self.count -= 1
        if watch.path[:1] == b"@":
            named = self._special[watch.path]
            del named[watch]
            if not named:
                del self._special[watch.path]
            return
        trail = [self._root]
        for name in watch.parts:
            trail.append(trail[-1].branches[name])
        del trail[-1].watches[watch]
        for name in reversed(watch.parts):
            branch = trail.pop()
            if branch.watches or branch.branches:
                break
            del trail[-1].branches[name]

    def matching(self, parts: tuple[bytes, ...]) -> list[Watch]:
        """Watches that a change of this node concerns, in order of registration."""
        found: list[Watch] = []
        branch: _Branch | None = self._root
        left = len(parts)
        for name in parts:
            assert branch is not None
            if branch.watches:
                found += [w for w in branch.watches if w.depth is None or w.depth >= left]
            branch = branch.branches.get(name)
            if branch is None:
                break
            left -= 1
        else:
            if branch is not None and branch.watches:
                found += branch.watches
        if len(found) > 1:
            found.sort(key=_registration)
        return found

    def special(self, name: bytes) -> list[Watch]:
        """Watches on exactly this special node."""
        return list(self._special.get(name, ()))

    def below(
        self, parts: tuple[bytes, ...], removed: Node, *, parents_first: bool
    ) -> Iterator[tuple[tuple[bytes, ...], Node, Node, list[Watch]]]:
        """For a removed subtree: (names, node, its parent, watches on exactly it) of each watched node below its root."""
        branch = self._root
        for name in parts:
            found = branch.branches.get(name)
            if found is None:
                return
            branch = found
        # Depth first without recursion: every node comes up twice, before and after what is below it.
        stack: list[tuple[tuple[bytes, ...], Node, Node, _Branch, bool]] = [(parts, removed, removed, branch, True)]
        while stack:
            where, node, parent, branch, before = stack.pop()
            if before == parents_first and branch.watches and node is not removed:
                yield where, node, parent, list(branch.watches)
            if not before:
                continue
            stack.append((where, node, parent, branch, False))
            children = node.children
            if children and branch.branches:
                for name in reversed(_in_both(children, branch.branches)):
                    stack.append(((*where, name), children[name], node, branch.branches[name], True))


def _in_both(children: dict[bytes, Node], branches: dict[bytes, _Branch]) -> list[bytes]:
    """Names of watched children in order of creation; costs the smaller of the two tables."""
    if len(branches) < len(children):
        return sorted((name for name in branches if name in children), key=lambda name: children[name].birth)
    return [name for name in children if name in branches]


def _registration(watch: Watch) -> int:
    return watch.sequence
