"""The tree and its snapshots, against deep copies of a plain tree.

The plain tree is a dictionary of dictionaries that is copied whole whenever the real one takes a snapshot; whatever
happens afterwards, and in whatever order snapshots are closed, each open one must go on reading exactly its copy.
"""

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.model.support import examples
from xenstore_state import tree as tree_module
from xenstore_state.access import Acl
from xenstore_state.tree import Node, Snapshot, SnapshotLost, Tree, walk

NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.binary(max_size=2)
ACLS: st.SearchStrategy[Acl] = st.sampled_from([((0, 0),), ((1, 0), (2, 5)), ((0, 5),), ((3, 6), (0, 5))])
Parts = tuple[bytes, ...]


@dataclass
class Plain:
    """A node of the plain tree."""

    value: bytes
    acl: Acl
    generation: int
    children: "dict[bytes, Plain]" = field(default_factory=dict)

    def find(self, parts: Parts) -> "Plain":
        node = self
        for name in parts:
            node = node.children[name]
        return node

    def paths(self) -> list[Parts]:
        """Of all nodes, parents first."""
        found: list[Parts] = [()]
        for path in found:
            found += [(*path, name) for name in self.find(path).children]
        return found


def assert_live(tree: Tree, plain: Plain) -> None:
    """The live tree is the plain one."""
    for path in plain.paths():
        expected, node = plain.find(path), tree.find(path)
        assert node is not None
        assert (node.value, node.acl, node.generation) == (expected.value, expected.acl, expected.generation)
        assert list(node.children or ()) == list(expected.children)
        assert node.children is None or node.children
        births = [child.birth for child in (node.children or {}).values()]
        assert births == sorted(set(births))
        for name in (b"a", b"b", b"c", b"d"):
            assert (tree.find((*path, name)) is not None) == (name in expected.children)
    owned: dict[int, int] = {}
    for path in plain.paths():
        owner = plain.find(path).acl[0][1]
        owned[owner] = owned.get(owner, 0) + 1
    assert tree.owned == owned
    assert tree.size == len(plain.paths()) == len(list(walk(tree.root)))


def assert_reads(snapshot: Snapshot, plain: Plain) -> None:
    """A snapshot reads exactly the copy."""
    for path in plain.paths():
        expected, node = plain.find(path), snapshot.find(path)
        assert node is not None
        assert snapshot.fields(node) == (expected.value, expected.acl, expected.generation)
        assert snapshot.children(node) == list(expected.children)
        for name in (b"a", b"b", b"c", b"d"):
            there = name in expected.children
            assert (snapshot.child(node, name) is not None) == there
            assert (snapshot.find((*path, name)) is not None) == there


class TreeMachine(RuleBasedStateMachine):
    """Random changes, with snapshots opened and closed in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(((0, 0),))
        self.plain = Plain(b"", ((0, 0),), 0)
        self.open: list[tuple[Snapshot, Plain, bool]] = []
        """With whether it is a savepoint."""
        self.changes = 0

    def next_generation(self) -> int:
        self.changes += 1
        return self.tree.generation + 1

    def pick(self, data: st.DataObject) -> tuple[Parts, Node, Plain]:
        path = data.draw(st.sampled_from(self.plain.paths()), label="path")
        node = self.tree.find(path)
        assert node is not None
        return path, node, self.plain.find(path)

    @rule(data=st.data(), name=NAMES, value=VALUES, acl=ACLS)
    def add_child(self, data: st.DataObject, name: bytes, value: bytes, acl: Acl) -> None:
        path, node, plain = self.pick(data)
        if name in plain.children:
            return
        generation = self.next_generation()
        child = self.tree.add_child(node, value, acl, generation, (*path, name))
        assert (child.value, child.acl, child.children) == (value, acl, None)
        plain.children[name] = Plain(value, acl, generation)
        plain.generation = generation

    @rule(data=st.data())
    def remove_child(self, data: st.DataObject) -> None:
        path, node, plain = self.pick(data)
        if not path:
            return
        parent = self.tree.find(path[:-1])
        assert parent is not None
        generation = self.next_generation()
        removed = self.tree.remove_child(parent, generation, path)
        assert removed is node
        assert len(list(walk(removed))) == len(plain.paths())
        above = self.plain.find(path[:-1])
        del above.children[path[-1]]
        above.generation = generation

    @rule(data=st.data(), value=VALUES)
    def set_value(self, data: st.DataObject, value: bytes) -> None:
        _, node, plain = self.pick(data)
        plain.value, plain.generation = value, self.next_generation()
        self.tree.set_value(node, value, plain.generation)

    @rule(data=st.data(), acl=ACLS)
    def set_acl(self, data: st.DataObject, acl: Acl) -> None:
        path, node, plain = self.pick(data)
        plain.acl, plain.generation = acl, self.next_generation()
        self.tree.set_acl(node, acl, plain.generation, path)

    @rule()
    def take_snapshot(self) -> None:
        self.open.append((self.tree.snapshot(), copy.deepcopy(self.plain), False))

    @rule()
    def take_savepoint(self) -> None:
        self.open.append((self.tree.savepoint(), copy.deepcopy(self.plain), True))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close_snapshot(self, data: st.DataObject) -> None:
        snapshot, _, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1), label="which"))
        snapshot.close()
        snapshot.close()  # once is enough

    @precondition(lambda self: self.open and self.open[-1][2])
    @rule()
    def roll_back_to_the_youngest(self) -> None:
        savepoint, plain, _ = self.open[-1]
        before = self.tree.generation
        self.tree.rollback(savepoint)
        self.plain = copy.deepcopy(plain)
        assert self.tree.generation == before  # a generation never comes twice

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def nothing_else_can_be_rolled_back_to(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.open) - 1), label="which")
        if i != len(self.open) - 1 or not self.open[i][2]:
            with pytest.raises(ValueError, match="youngest savepoint"):
                self.tree.rollback(self.open[i][0])

    @invariant()
    def the_live_tree_is_the_plain_one(self) -> None:
        assert_live(self.tree, self.plain)

    @invariant()
    def every_open_snapshot_reads_its_copy(self) -> None:
        for snapshot, plain, _ in self.open:
            assert_reads(snapshot, plain)

    @invariant()
    def owners_are_charged_with_their_nodes(self) -> None:
        memory: dict[int, int] = {}
        for path in self.plain.paths():
            node = self.plain.find(path)
            size = 16 + 8 * len(node.acl) + len(node.value) + sum(len(name) + 1 for name in (*node.children, *path))
            memory[node.acl[0][1]] = memory.get(node.acl[0][1], 0) + size
        memory.pop(0, None)
        assert self.tree.memory == memory

    @invariant()
    def nodes_that_name_a_domain_are_found_in_the_order_of_a_walk(self) -> None:
        for domid in (5, 6):
            naming = [path for path in self.plain.paths() if domid in {d for _, d in self.plain.find(path).acl}]
            assert set(self.tree.naming(domid)) == set(naming)
            assert self.tree.naming(domid) == sorted(naming, key=self.tree._place)

    def teardown(self) -> None:
        for snapshot, _, _ in self.open:
            snapshot.close()
        assert self.tree._epochs == []


TestTree = TreeMachine.TestCase
TestTree.settings = examples(60, steps=30)


class LosingMachine(TreeMachine):
    """The same where an epoch holds only a few before-images: a snapshot may be lost, but never read wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.most, tree_module.IMAGES_MAX = tree_module.IMAGES_MAX, 4  # type: ignore[misc]

    @invariant()
    def every_open_snapshot_reads_its_copy(self) -> None:
        for snapshot, plain, kept in self.open:
            try:
                assert_reads(snapshot, plain)
            except SnapshotLost:
                assert not kept or snapshot is not self.open[-1][0]

    @rule()
    def a_fresh_snapshot_is_never_lost(self) -> None:
        snapshot = self.tree.snapshot()
        assert_reads(snapshot, self.plain)
        snapshot.close()

    @invariant()
    def before_images_are_bounded(self) -> None:
        for epoch in self.tree._epochs:
            # Closing a snapshot passes what it held to the next older epoch.
            assert sum(map(len, epoch.images.values())) == epoch.count <= 5 * (self.changes + 1)

    def teardown(self) -> None:
        super().teardown()
        tree_module.IMAGES_MAX = self.most  # type: ignore[misc]


TestLosing = LosingMachine.TestCase
TestLosing.settings = examples(40, steps=25)


# ---- examples


def small_tree() -> tuple[Tree, Node]:
    """A root with children a, b and c; and b."""
    tree = Tree(((0, 0),))
    nodes = [tree.add_child(tree.root, name, ((0, 0),), tree.generation + 1, (name,)) for name in (b"a", b"b", b"c")]
    return tree, nodes[1]


def test_a_child_created_again_comes_last_and_rollback_puts_it_back() -> None:
    tree, b = small_tree()
    snapshot = tree.savepoint()
    tree.remove_child(tree.root, 10, (b"b",))
    tree.add_child(tree.root, b"new", ((0, 0),), 11, (b"b",))
    assert list(tree.root.children or ()) == [b"a", b"c", b"b"]
    assert snapshot.children(tree.root) == [b"a", b"b", b"c"]
    assert snapshot.child(tree.root, b"b") is b
    tree.rollback(snapshot)
    assert list(tree.root.children or ()) == [b"a", b"b", b"c"]
    assert tree.find((b"b",)) is b
    snapshot.close()


def test_rollback_undoes_changes_below_a_node_that_was_removed_later() -> None:
    tree, b = small_tree()
    snapshot = tree.savepoint()
    tree.add_child(b, b"", ((0, 5),), 10, (b"b", b"deep"))
    tree.set_value(b, b"changed", 11)
    tree.remove_child(tree.root, 12, (b"b",))
    tree.rollback(snapshot)
    snapshot.close()
    assert (b.value, b.children, tree.owned) == (b"b", None, {0: 4})


def test_two_rollbacks_to_one_snapshot_both_work() -> None:
    tree, b = small_tree()
    snapshot = tree.savepoint()
    for value in (b"1", b"2"):
        tree.set_value(b, value, tree.generation + 1)
        tree.rollback(snapshot)
        assert b.value == b"b"
    snapshot.close()


def test_a_snapshot_survives_a_rollback_to_a_younger_one() -> None:
    tree, b = small_tree()
    older = tree.snapshot()
    tree.set_value(b, b"1", 10)
    younger = tree.savepoint()
    tree.set_value(b, b"2", 11)
    tree.rollback(younger)
    younger.close()
    assert b.value == b"1"
    assert older.fields(b)[0] == b"b"
    tree.set_value(b, b"3", 12)
    assert older.fields(b)[0] == b"b"
    older.close()


def test_a_special_nodes_owner_has_no_node_counted_for_it() -> None:
    tree, _ = small_tree()
    special = tree.specials[b"@special"] = Node(b"", ((0, 0),), 1)
    tree.set_acl(special, ((0, 5),), 20, (b"", b"@special"))
    assert tree.owned == {0: 4}
    assert special.acl == ((0, 5),)


def test_snapshots_of_an_unchanged_tree_share_their_epoch() -> None:
    tree, b = small_tree()
    many = [tree.snapshot() for _ in range(1000)]
    tree.set_value(b, b"1", 10)
    more = [tree.snapshot() for _ in range(1000)]
    assert len(tree._epochs) == 2
    for snapshot in more + many:
        snapshot.close()
    assert tree._epochs == []


def test_without_snapshots_a_change_notes_nothing() -> None:
    tree, b = small_tree()
    tree.snapshot().close()
    tree.set_value(b, b"1", 10)
    assert tree._epochs == []


def test_removing_a_very_deep_subtree_does_not_recurse() -> None:
    tree, node = small_tree()
    path: Parts = (b"b",)
    for generation in range(10, 3_000):
        path = (*path, b"x")
        node = tree.add_child(node, b"", ((0, 7),), generation, path)
    assert tree.owned[7] == 2_990
    snapshot = tree.savepoint()
    tree.remove_child(tree.root, 30_000, (b"b",))
    assert tree.owned == {0: 3}
    tree.rollback(snapshot)
    assert tree.owned == {0: 4, 7: 2_990}
    snapshot.close()


def test_a_missing_child_cannot_be_removed() -> None:
    tree, b = small_tree()
    with pytest.raises(KeyError):
        tree.remove_child(b, 10, (b"b", b"none"))
    assert tree.generation == 3
