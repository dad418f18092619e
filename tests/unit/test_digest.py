"""The digest of a tree: equal where the same was done, another one where anything came out otherwise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.model.support import examples
from xenstore_state.access import Acl
from xenstore_state.tree import TOUCHED_MAX, Tree

ACL: Acl = ((0, 0),)
NAMES = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.binary(max_size=2)
ACLS = st.sampled_from([((0, 0),), ((0, 0), (1, 5)), ((3, 0),)])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), NAMES, VALUES),
        st.tuples(st.just("acl"), NAMES, ACLS),
        st.tuples(st.just("remove"), NAMES, st.none()),
        st.tuples(st.just("digest"), st.none(), st.none()),
    ),
    max_size=30,
)


def play(changes: list[tuple[str, bytes, object]]) -> tuple[Tree, list[int]]:
    """A tree to which this was done, and the digests asked for on the way."""
    tree, digests = Tree(ACL), []
    for what, name, value in changes:
        if what == "digest":
            digests.append(tree.digest())
            continue
        node, generation = tree.find((name,)), tree.generation + 1
        if node is None:
            if what != "remove":
                given_acl = value if isinstance(value, tuple) else ACL
                given_value = value if isinstance(value, bytes) else b""
                tree.add_child(tree.root, given_value, given_acl, generation, (name,))
        elif isinstance(value, bytes):
            tree.set_value(node, value, generation)
        elif isinstance(value, tuple):
            tree.set_acl(node, value, generation, (name,))
        else:
            tree.remove_child(tree.root, generation, (name,))
    digests.append(tree.digest())
    return tree, digests


@examples(200)
@given(CHANGES)
def test_the_same_changes_give_the_same_digests(changes: list[tuple[str, bytes, object]]) -> None:
    assert play(changes)[1] == play(changes)[1]


@examples(200)
@given(CHANGES, st.integers(0, 29), st.sampled_from(["set", "acl"]), NAMES, VALUES, ACLS)
def test_a_change_that_differs_shows(
    changes: list[tuple[str, bytes, object]], at: int, what: str, name: bytes, value: bytes, acl: Acl
) -> None:
    extra = (what, name, value if what == "set" else acl)
    one, mine = play([*changes[:at], extra])
    other, others = play(changes[:at])
    same = [(n, one.find((n,)), other.find((n,))) for n in (b"a", b"b", b"c")]
    differs = any(
        (a is None) != (b is None) or (a is not None and b is not None and (a.value, a.acl) != (b.value, b.acl))
        for _, a, b in same
    )
    assert not differs or mine[-1] != others[-1]


def test_a_copy_whose_digest_is_not_known_believes_one_and_compares_from_then_on() -> None:
    one, other = Tree(ACL), Tree(ACL)
    one.digest()
    for tree in (one, other):
        tree.add_child(tree.root, b"x", ACL, 1, (b"a",))
    other.begin_digest()
    assert other.same(one.digest())
    for tree in (one, other):
        tree.set_value(tree.root, b"v", 2)
    assert other.same(one.digest())
    other.set_value(other.root, b"w", 3)
    assert not other.same(one.digest())


def test_what_is_remembered_for_a_digest_that_nobody_asks_for_is_bounded() -> None:
    tree = Tree(ACL)
    tree._made = [()] * TOUCHED_MAX
    tree.bound_digest()
    assert len(tree._made) == TOUCHED_MAX
    tree.set_value(tree.root, b"v", 1)
    tree.bound_digest()
    assert not tree._made
    assert tree.same(12345)
