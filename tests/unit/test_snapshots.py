"""Snapshots: going back changes what differs, tells watches of just that, and gives nobody a right that was another's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import Op
from protocol.wire import Message
from tests.model.support import examples
from xenstore_logic.embedded import Embedded
from xenstore_state.tree import Node

OK = b"OK\0"


class World:
    """A store with a toolstack."""

    def __init__(self) -> None:
        self.embedded = Embedded()
        self.toolstack = self.embedded.connect()

    def asks(self, op: Op, payload: bytes, *, by: int = 0) -> list[tuple[int, bytes]]:
        """Type and payload of all messages that come back to who asked."""
        number = by or self.toolstack
        output = self.embedded.feed(number, Message(op, 1, 0, payload).encode()).output.get(number, b"")
        found = []
        while output:
            length = int.from_bytes(output[12:16], "little")
            found.append((int.from_bytes(output[:4], "little"), output[16 : 16 + length]))
            output = output[16 + length :]
        return found

    def does(self, op: Op, payload: bytes) -> None:
        assert self.asks(op, payload)[-1] == (op, OK)

    def tree(self) -> object:
        def plain(node: Node) -> object:
            return node.value, node.acl, [(name, plain(child)) for name, child in (node.children or {}).items()]

        return plain(self.embedded.store.tree.root)


PATHS = st.sampled_from([b"/a", b"/a/b", b"/a/b/c", b"/a/d", b"/e"])
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just(Op.WRITE), PATHS.flatmap(lambda p: st.sampled_from([p + b"\0", p + b"\0v", p + b"\0w"]))),
        st.tuples(st.just(Op.RM), PATHS.map(lambda p: p + b"\0")),
        st.tuples(st.just(Op.SET_PERMS), PATHS.map(lambda p: p + b"\0n0\0r0\0")),
    ),
    max_size=8,
)


@examples(150)
@given(ACTS, ACTS)
def test_the_tree_is_what_it_was(before: list[tuple[Op, bytes]], after: list[tuple[Op, bytes]]) -> None:
    """Children that were removed and made again may stand in another order: they are made anew."""
    world = World()
    for op, payload in before:
        world.asks(op, payload)
    then = sorted_tree(world.tree())
    world.does(Op.CONTROL, b"snapshot\0one\0")
    for op, payload in after:
        world.asks(op, payload)
    world.does(Op.CONTROL, b"rollback\0one\0")
    assert sorted_tree(world.tree()) == then
    store = world.embedded.store
    assert store.tree.owned == {0: store.tree.size}


def sorted_tree(tree: object) -> object:
    assert isinstance(tree, tuple)
    value, acl, children = tree
    return value, acl, sorted((name, sorted_tree(child)) for name, child in children)


def test_watches_are_told_of_what_changed_and_nothing_else() -> None:
    world = World()
    world.does(Op.WRITE, b"/same\0v")
    world.does(Op.WRITE, b"/changed\0before")
    world.does(Op.WRITE, b"/removed\0v")
    world.does(Op.CONTROL, b"snapshot\0one\0")
    world.does(Op.WRITE, b"/changed\0after")
    world.does(Op.RM, b"/removed\0")
    world.does(Op.WRITE, b"/new/below\0v")
    world.asks(Op.WATCH, b"/\0t\0")
    messages = world.asks(Op.CONTROL, b"rollback\0one\0")
    events = [payload for op, payload in messages if op == Op.WATCH_EVENT]
    assert events == [b"/new\0t\0", b"/changed\0t\0", b"/removed\0t\0"]


def test_rights_of_a_domain_that_is_gone_are_not_given_to_the_next_one_of_its_number() -> None:
    world = World()
    store = world.embedded.store
    store.domains.learn(5, 100).introduced = True
    world.does(Op.WRITE, b"/his\0v")
    world.does(Op.SET_PERMS, b"/his\0n5\0")
    world.does(Op.WRITE, b"/shared\0v")
    world.does(Op.SET_PERMS, b"/shared\0n0\0r5\0")
    world.does(Op.CONTROL, b"snapshot\0one\0")
    store.remove_domain(5)
    guest = world.embedded.connect(5)  # another unique id
    world.does(Op.CONTROL, b"rollback\0one\0")
    for path in (b"/his\0", b"/shared\0"):
        assert world.asks(Op.READ, path, by=guest)[-1] == (Op.ERROR, b"EACCES\0")
        assert world.asks(Op.READ, path)[-1] == (Op.READ, b"v")


def test_there_are_so_many_snapshots_and_they_are_listed() -> None:
    world = World()
    for n in range(8):
        world.does(Op.CONTROL, b"snapshot\0s%d\0" % n)
    world.does(Op.CONTROL, b"snapshot\0s3\0")
    assert world.asks(Op.CONTROL, b"snapshot\0s8\0")[-1] == (Op.ERROR, b"EINVAL\0")
    assert world.asks(Op.CONTROL, b"rollback\0s8\0")[-1] == (Op.ERROR, b"EINVAL\0")
    listed = world.asks(Op.CONTROL, b"snapshots\0")[-1][1]
    assert listed.splitlines()[:2] == [b"s0: 3 nodes", b"s1: 3 nodes"]
