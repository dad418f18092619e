"""The trie of watches, against a plain list of them that is searched from one end to the other."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recovery_box.items import Connection
from tests.model.support import examples
from xenstore_state.tree import Node, Tree
from xenstore_state.watches import Watch, WatchTrie, _Branch

Parts = tuple[bytes, ...]
NAMES = st.sampled_from([b"a", b"b", b"c"])
PARTS: st.SearchStrategy[Parts] = st.lists(NAMES, max_size=4).map(tuple)
SPECIALS = st.sampled_from([b"@introduceDomain", b"@releaseDomain", b"@releaseDomain/1"])
DEPTHS = st.none() | st.integers(0, 4)
CONNECTION = Connection(1, -1, -1, 0, True, True)


def path_of(parts: Parts) -> bytes:
    """The path that these names make."""
    return b"/" + b"/".join(parts)


def make(path: bytes, depth: int | None = None, sequence: int = 1) -> Watch:
    """A watch of nobody in particular."""
    return Watch(CONNECTION, path, b"token", depth, 0, sequence)


def naive_matching(watches: list[Watch], path: bytes) -> list[Watch]:
    """Watches at or above the path, as deep as they look, in order of registration."""
    found = []
    for watch in watches:
        above = watch.path if watch.path != b"/" else b""
        if path == watch.path:
            found.append(watch)
        elif watch.path[:1] == b"/" and path.startswith(above + b"/"):
            levels = path[len(above) :].count(b"/")
            if watch.depth is None or levels <= watch.depth:
                found.append(watch)
    return found


def naive_below(
    watches: list[Watch], where: Parts, node: Node, *, parents_first: bool, parent: Node | None = None
) -> list[tuple[Parts, Node, Node, list[Watch]]]:
    """Watched nodes below a removed one, each with its parent and the watches on exactly it."""
    here = [] if parent is None else [(where, node, parent, [w for w in watches if w.path == path_of(where)])]
    here = [found for found in here if found[3]]
    under = []
    for name, child in (node.children or {}).items():
        under += naive_below(watches, (*where, name), child, parents_first=parents_first, parent=node)
    return here + under if parents_first else under + here


def dead_ends(branch: _Branch) -> int:
    """Branches below this one that lead to no watch."""
    return sum((not below.watches and not below.branches) + dead_ends(below) for below in branch.branches.values())


class TrieMachine(RuleBasedStateMachine):
    """Watches come and go; the trie finds what the list finds, in the same order."""

    def __init__(self) -> None:
        super().__init__()
        self.trie = WatchTrie()
        self.all: list[Watch] = []
        self.sequence = 0

    def add(self, path: bytes, depth: int | None) -> None:
        self.sequence += 1
        watch = make(path, depth, self.sequence)
        self.trie.add(watch)
        self.all.append(watch)

    @rule(parts=PARTS, depth=DEPTHS)
    def add_watch(self, parts: Parts, depth: int | None) -> None:
        self.add(path_of(parts), depth)

    @rule(name=SPECIALS)
    def add_special_watch(self, name: bytes) -> None:
        self.add(name, None)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def remove_watch(self, data: st.DataObject) -> None:
        self.trie.remove(self.all.pop(data.draw(st.integers(0, len(self.all) - 1), label="which")))

    @rule(parts=PARTS)
    def change(self, parts: Parts) -> None:
        assert self.trie.matching(parts) == naive_matching(self.all, path_of(parts))

    @rule(name=SPECIALS)
    def change_of_a_special_node(self, name: bytes) -> None:
        assert self.trie.special(name) == [w for w in self.all if w.path == name]

    @rule(where=PARTS, nodes=st.lists(PARTS, max_size=8), parents_first=st.booleans())
    def removal(self, where: Parts, nodes: list[Parts], parents_first: bool) -> None:
        tree = Tree(((0, 0),))
        for parts in nodes:
            node = tree.root
            for depth, name in enumerate(parts, 1):
                node = (node.children or {}).get(name) or tree.add_child(
                    node, b"", ((0, 0),), tree.generation + 1, parts[:depth]
                )
        found = list(self.trie.below(where, tree.root, parents_first=parents_first))
        assert found == naive_below(self.all, where, tree.root, parents_first=parents_first)

    @invariant()
    def nothing_is_kept_that_leads_nowhere(self) -> None:
        assert self.trie.count == len(self.all)
        assert dead_ends(self.trie._root) == 0
        if not self.all:
            assert self.trie._root.branches == {}
            assert self.trie._special == {}


TestTrie = TrieMachine.TestCase
TestTrie.settings = examples(80, steps=30)


@examples(150)
@given(st.lists(st.tuples(PARTS, DEPTHS), max_size=10), PARTS)
def test_a_watch_is_told_of_changes_at_and_below_its_path_down_to_its_depth(
    watches: list[tuple[Parts, int | None]], changed: Parts
) -> None:
    trie = WatchTrie()
    made = [make(path_of(parts), depth, n) for n, (parts, depth) in enumerate(watches)]
    for watch in made:
        trie.add(watch)
    expected = [
        watch
        for watch, (parts, depth) in zip(made, watches, strict=True)
        if changed[: len(parts)] == parts and (depth is None or len(changed) - len(parts) <= depth)
    ]
    assert trie.matching(changed) == expected


def test_depth_counts_levels_below_the_path() -> None:
    """watch.c:is_child: 0 is the node itself, 1 its children; for `/` likewise."""
    trie = WatchTrie()
    watches = [make(b"/", depth, depth) for depth in range(3)]
    for watch in watches:
        trie.add(watch)
    told = {parts: [w.depth for w in trie.matching(parts)] for parts in ((), (b"k",), (b"k", b"l"), (b"k", b"l", b"m"))}
    assert list(told.values()) == [[0, 1, 2], [1, 2], [2], []]


def test_a_name_that_begins_like_another_is_another() -> None:
    trie = WatchTrie()
    trie.add(make(b"/a"))
    assert trie.matching((b"ab",)) == []
    assert trie.matching((b"ab", b"a")) == []


def test_special_nodes_match_by_their_whole_name_only() -> None:
    trie = WatchTrie()
    special, root = make(b"@releaseDomain", None, 1), make(b"/", None, 2)
    trie.add(special)
    trie.add(root)
    assert trie.special(b"@releaseDomain") == [special]
    assert trie.special(b"@releaseDomain/1") == []
    assert trie.matching(()) == [root]


def test_the_order_of_registration_counts_not_that_of_paths() -> None:
    trie = WatchTrie()
    watches = [make(path, None, n) for n, path in enumerate([b"/a/b", b"/", b"/a/b", b"/a"])]
    for watch in watches:
        trie.add(watch)
    assert trie.matching((b"a", b"b", b"c")) == watches


def test_a_change_costs_its_depth_and_its_matches_whatever_else_is_watched() -> None:
    """The same number of look-ups with 10 and with 10,000 unrelated watches."""

    class Counting(dict[bytes, _Branch]):
        looked = 0

        def get(self, key: bytes, default: object = None) -> _Branch | None:  # type: ignore[override]
            Counting.looked += 1
            return super().get(key)

    costs = []
    for unrelated in (10, 10_000):
        trie = WatchTrie()
        trie.add(make(b"/a/b/c"))
        for n in range(unrelated):
            trie.add(make(b"/a/b/x%d/y" % n))
        branch = trie._root
        for name in (b"a", b"b"):
            branch.branches = Counting(branch.branches)
            branch = branch.branches[name]
        branch.branches = Counting(branch.branches)
        Counting.looked = 0
        assert len(trie.matching((b"a", b"b", b"c"))) == 1
        costs.append(Counting.looked)
    assert costs[0] == costs[1] <= 4


def test_a_very_deep_removal_does_not_recurse() -> None:
    tree = Tree(((0, 0),))
    node, parts = tree.root, ()
    parent = node
    trie = WatchTrie()
    deep: Parts = parts
    for generation in range(1, 1500):
        deep = (*deep, b"x")
        parent, node = node, tree.add_child(node, b"", ((0, 0),), generation, deep)
    watch = make(path_of(deep))
    trie.add(watch)
    assert list(trie.below((), tree.root, parents_first=False)) == [(deep, node, parent, [watch])]
    trie.remove(watch)
    assert trie._root.branches == {}
