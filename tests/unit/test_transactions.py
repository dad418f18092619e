"""Transactions: a commit is as if everything in it had been done at once, now; it is refused only if that would differ.

The property tests let two transactions and changes from outside interleave at random on a handful of nodes; the reference
model says for each answer and each commit whether it may be (see `tests.model.reference`).  The examples below name the
rules one by one.
"""

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model import reference
from tests.model.harness import InProcess, answer, message, messages
from tests.model.nodes import DIRECTORY, GET_PERMS, MKDIR, READ, RM, SET_PERMS, WRITE
from tests.model.reference import END, START, WATCH
from tests.model.support import examples
from xenstore_logic.embedded import Embedded
from xenstore_state import tree as tree_module

TOOLSTACK, FIVE, SIX, OTHER = 1, 2, 3, 4
"""Connections: the toolstack's, two guests' and another one of the toolstack's."""

PATHS = st.sampled_from([b"/w", b"/w/x", b"/w/x", b"/w/x/y", b"/w/x/y/v", b"/w/z"])
LISTS = st.sampled_from([b"n0", b"b0", b"w0", b"r0", b"n5", b"n6", b"r5\0b6", b"n0\0b5", b"n0\0r5\0w6", b"w5\0r6"])
STEPS = st.one_of(
    st.tuples(st.sampled_from([READ, DIRECTORY, GET_PERMS, MKDIR, RM, RM]), PATHS, st.just(b"")),
    st.tuples(st.just(WRITE), PATHS, st.sampled_from([b"", b"1", b"2"])),
    st.tuples(st.just(SET_PERMS), PATHS, LISTS.map(lambda entries: entries + b"\0")),
)
Step = tuple[int, bytes, bytes]


class World:
    """A harness and two transactions."""

    def __init__(self, clients: tuple[int, int]) -> None:
        self.all = InProcess((5, 6))
        assert self.all.connect() == OTHER
        self.do(WRITE, b"/w", b"")
        self.do(SET_PERMS, b"/w", b"b0\0")
        for watcher, path, token, depth in (
            (TOOLSTACK, b"/", b"all", b""),
            (OTHER, b"/w/x/y", b"exact", b""),
            (OTHER, b"/w/x/y/v", b"exact", b""),
            (OTHER, b"/w", b"depth", b"1\0"),
            (FIVE, b"/w", b"five", b""),
            (SIX, b"/w/x", b"six", b""),
            (SIX, b"/w/x/y/v", b"deep", b""),
        ):
            self.all.ask(watcher, WATCH, 0, path + b"\0" + token + b"\0" + depth)
        self.clients = clients
        self.ids = [0, 0]

    def do(self, op: int, path: bytes, rest: bytes = b"", *, by: int = TOOLSTACK, tx: int = 0) -> bytes | str:
        """One request; the answer or the error."""
        return self.all.ask(by, op, tx, path + b"\0" + rest)

    def start(self, which: int) -> None:
        """Opens one of the two."""
        said = self.all.ask(self.clients[which], START, 0, b"\0")
        assert isinstance(said, bytes)
        self.ids[which] = int(said[:-1])

    def inside(self, which: int, op: int, path: bytes, rest: bytes = b"") -> bytes | str:
        """A request in one of the two."""
        return self.do(op, path, rest, by=self.clients[which], tx=self.ids[which])

    def commit(self, which: int) -> bytes | str:
        """Ends one of the two."""
        return self.all.ask(self.clients[which], END, self.ids[which], b"T\0")


CLIENTS = st.sampled_from([TOOLSTACK, TOOLSTACK, FIVE, SIX])
INSIDE, INSIDE_OTHER, OUTSIDE, OUTSIDE_FIVE = range(4)


def test_a_removal_repeated_needs_what_the_second_one_needs() -> None:
    """Of a node that is gone, RM asks for the right to write its parent: that too must hold at the commit."""
    world = World((FIVE, OTHER))
    world.do(WRITE, b"/w/x/y")
    world.do(SET_PERMS, b"/w/x/y", b"b5\0")
    world.start(0)
    assert [world.inside(0, RM, b"/w/x/y") for _ in range(2)] == [b"OK\0", b"OK\0"]
    world.do(SET_PERMS, b"/w/x", b"n0\0")
    assert world.commit(0) == "EAGAIN"


def test_what_was_refused_gives_nothing_to_a_domain_that_ends() -> None:
    world = World((TOOLSTACK, OTHER))
    world.start(0)
    assert world.inside(0, SET_PERMS, b"/nowhere", b"n5\0") == "ENOENT"
    world.all.destroy(5)
    assert world.commit(0) == b"OK\0"


@examples(400)
@given(CLIENTS, st.lists(STEPS, max_size=4), st.lists(STEPS, min_size=1, max_size=4), st.lists(STEPS, max_size=2))
def test_a_transaction_is_as_if_it_happened_at_its_commit(
    client: int, before: list[Step], inside: list[Step], outside: list[Step]
) -> None:
    """Small and dense: some nodes, a transaction, and changes from outside behind it."""
    world = World((client, OTHER))
    for step in before:
        world.do(*step)
    world.start(0)
    for step in inside:
        world.inside(0, *step)
    for step in outside:
        world.do(*step)
    world.commit(0)
    world.all.check()


@examples(250)
@given(
    CLIENTS,
    CLIENTS,
    st.lists(STEPS, max_size=4),
    st.lists(st.tuples(st.sampled_from([INSIDE, INSIDE, INSIDE_OTHER, INSIDE_OTHER, OUTSIDE, OUTSIDE_FIVE]), STEPS)),
)
def test_interleaved_transactions_are_as_if_each_happened_at_its_commit(
    one: int, other: int, before: list[Step], steps: list[tuple[int, Step]]
) -> None:
    world = World((one, other))
    for step in before:
        world.do(*step)
    world.start(0)
    world.start(1)
    for where, step in steps:
        if where in {INSIDE, INSIDE_OTHER}:
            world.inside(where, *step)
        else:
            world.do(*step, by=TOOLSTACK if where == OUTSIDE else FIVE)
    for which in (0, 1):
        world.commit(which)
        world.all.check()
    assert world.all.store.store.tree._epochs == []


@examples(60)
@given(CLIENTS, st.lists(STEPS, max_size=5), st.lists(STEPS, max_size=6))
def test_an_aborted_transaction_leaves_nothing(client: int, before: list[Step], inside: list[Step]) -> None:
    world = World((client, OTHER))
    for step in before:
        world.do(*step)
    was = world.all.store.store.tree.generation
    world.start(0)
    for step in inside:
        world.inside(0, *step)
    assert world.all.ask(client, END, world.ids[0], b"F\0") == b"OK\0"
    world.all.check()
    assert world.all.store.store.tree.generation == was


@examples(60)
@given(CLIENTS, st.lists(STEPS, max_size=6), st.lists(STEPS, max_size=4), st.data())
def test_a_transaction_whose_snapshots_are_lost_ends_in_eagain_or_rightly(
    client: int, inside: list[Step], outside: list[Step], data: st.DataObject
) -> None:
    """So much has changed that nobody can tell any more what was there; never an exception, never a wrong answer."""
    most = tree_module.IMAGES_MAX
    world = World((client, OTHER))
    world.do(WRITE, b"/w/x/y", b"1")
    tree_module.IMAGES_MAX = data.draw(st.integers(0, 4))  # type: ignore[misc]
    try:
        world.start(0)
        for step in inside:
            world.inside(0, *step)
        for n in range(data.draw(st.integers(0, 4))):
            world.do(WRITE, b"/w/n%d" % n, b"")
        for step in outside:
            world.do(*step)
        if data.draw(st.booleans()):
            world.inside(0, DIRECTORY, b"/w")
        store = world.all.store.store
        before = [(node, node.value, node.acl) for node in tree_module.walk(store.tree.root)]
        # Not by way of the model, which knows nothing of limits.
        if answer(world.all.store, client, END, b"T\0", world.ids[0]) == "EAGAIN":
            assert [(node, node.value, node.acl) for node in tree_module.walk(store.tree.root)] == before
    finally:
        tree_module.IMAGES_MAX = most  # type: ignore[misc]


# ---- examples: what does not conflict


@pytest.fixture
def world() -> World:
    """The first transaction is the toolstack's, the second one guest 5's; both are open."""
    made = World((TOOLSTACK, FIVE))
    made.do(WRITE, b"/w/x", b"0")
    made.start(0)
    made.start(1)
    return made


def commits(world: World, which: int = 0) -> bool:
    """Whether it does; the model agrees with the answer."""
    said = world.commit(which)
    assert said in {b"OK\0", "EAGAIN"}
    world.all.check()
    return said == b"OK\0"


def test_two_creators_under_one_parent_both_commit(world: World) -> None:
    world.inside(0, WRITE, b"/w/one", b"1")
    world.inside(1, WRITE, b"/w/two", b"2")
    assert commits(world, 1)
    assert commits(world, 0)
    assert world.do(DIRECTORY, b"/w") == b"x\0two\0one\0"


def test_two_who_make_the_same_missing_parent_both_commit(world: World) -> None:
    world.clients = (TOOLSTACK, OTHER)
    world.start(1)
    world.inside(0, WRITE, b"/new/one", b"1")
    world.inside(1, WRITE, b"/new/two", b"2")
    assert commits(world, 1)
    assert commits(world, 0)


def test_a_blind_write_does_not_conflict_with_another(world: World) -> None:
    world.inside(0, WRITE, b"/w/x", b"mine")
    world.do(WRITE, b"/w/x", b"theirs")
    assert commits(world)
    assert world.do(READ, b"/w/x") == b"mine"


def test_the_same_value_written_again_is_no_conflict(world: World) -> None:
    world.inside(0, READ, b"/w/x")
    world.do(WRITE, b"/w/x", b"0")
    assert commits(world)


def test_a_change_and_its_undoing_are_no_conflict(world: World) -> None:
    world.inside(0, READ, b"/w/x")
    world.do(WRITE, b"/w/x", b"1")
    world.do(WRITE, b"/w/x", b"0")
    assert commits(world)


def test_a_blind_removal_does_not_conflict_with_a_creation(world: World) -> None:
    """The client was told OK, and would be told OK now."""
    assert world.inside(0, RM, b"/w/new") == b"OK\0"
    world.do(WRITE, b"/w/new", b"theirs")
    assert commits(world)
    assert world.do(READ, b"/w/new") == "ENOENT"


def test_what_was_hidden_by_ones_own_removal_was_not_seen(world: World) -> None:
    world.inside(0, RM, b"/w/x")
    assert world.inside(0, READ, b"/w/x") == "ENOENT"
    world.do(WRITE, b"/w/x", b"theirs")
    assert commits(world)
    assert world.do(READ, b"/w/x") == "ENOENT"


def test_a_mkdir_of_what_exists_is_done_again_if_it_is_gone(world: World) -> None:
    assert world.inside(0, MKDIR, b"/w/x") == b"OK\0"
    world.do(RM, b"/w/x")
    assert commits(world)
    assert world.do(READ, b"/w/x") == b""


def test_a_sibling_or_a_childs_value_is_no_business_of_the_transactions(world: World) -> None:
    world.inside(0, DIRECTORY, b"/w")
    world.inside(0, READ, b"/w")
    world.do(WRITE, b"/w/x", b"1")
    assert commits(world)


# ---- examples: what does


@pytest.mark.parametrize(
    ("op", "outside"),
    [
        (READ, lambda w: w.do(WRITE, b"/w/x", b"1")),
        (READ, lambda w: w.do(RM, b"/w/x")),
        (DIRECTORY, lambda w: w.do(WRITE, b"/w/x/new", b"1")),
        (GET_PERMS, lambda w: w.do(SET_PERMS, b"/w/x", b"r0\0")),
    ],
)
def test_another_answer_is_a_conflict(world: World, op: int, outside: Callable[[World], object]) -> None:
    world.inside(0, op, b"/w/x")
    world.inside(0, WRITE, b"/w/z", b"1")
    outside(world)
    assert not commits(world)
    assert world.do(READ, b"/w/z") == "ENOENT"


def test_an_absence_that_was_reported_is_a_conflict_when_it_ends(world: World) -> None:
    assert world.inside(0, READ, b"/w/new") == "ENOENT"
    world.do(WRITE, b"/w/new", b"")
    assert not commits(world)


def test_a_parent_that_was_reported_missing_is_a_conflict_when_it_comes(world: World) -> None:
    assert world.inside(0, RM, b"/new/child") == "ENOENT"
    world.do(WRITE, b"/new", b"")
    assert not commits(world)


def test_an_owner_that_was_reported_is_a_conflict_when_it_changes(world: World) -> None:
    """EPERM said that guest 5 does not own what it may write; it does now."""
    world.do(SET_PERMS, b"/w/x", b"n5\0")
    assert world.inside(1, SET_PERMS, b"/w/x", b"n6\0") == "EPERM"
    world.do(SET_PERMS, b"/w/x", b"n6\0b5\0")
    assert not commits(world, 1)


def test_a_right_revoked_before_the_end_is_not_used(world: World) -> None:
    assert world.inside(1, WRITE, b"/w/x", b"mine") == b"OK\0"
    world.do(SET_PERMS, b"/w/x", b"r0\0")
    assert not commits(world, 1)
    assert world.do(READ, b"/w/x") == b"0"


def test_a_right_to_read_revoked_before_the_end_is_a_conflict(world: World) -> None:
    assert world.inside(1, READ, b"/w/x") == b"0"
    world.do(SET_PERMS, b"/w/x", b"n0\0")
    assert not commits(world, 1)


def test_a_right_granted_before_the_end_is_a_conflict_for_who_was_refused(world: World) -> None:
    world.do(SET_PERMS, b"/w/x", b"n0\0")
    assert world.inside(1, READ, b"/w/x") == "EACCES"
    world.do(SET_PERMS, b"/w/x", b"r0\0")
    assert not commits(world, 1)


def test_a_node_that_would_get_another_permission_list_is_a_conflict(world: World) -> None:
    world.inside(0, WRITE, b"/w/new", b"")
    world.do(SET_PERMS, b"/w", b"r0\0")
    assert not commits(world)


def test_after_a_conflict_nothing_has_happened_and_nobody_was_told(world: World) -> None:
    before = world.all.store.store.tree.owned.copy()
    world.inside(0, WRITE, b"/w/a/b/c", b"1")
    world.inside(0, RM, b"/w/x")
    world.inside(0, READ, b"/w")
    world.do(WRITE, b"/w", b"changed")
    assert not commits(world)  # the model knows that there are no events
    assert world.all.store.store.tree.owned == before


def test_special_nodes_are_not_part_of_it(world: World) -> None:
    assert world.inside(0, SET_PERMS, b"@introduceDomain", b"r0\0") == b"OK\0"
    assert world.inside(0, GET_PERMS, b"@introduceDomain") == b"r0\0"
    assert world.inside(1, GET_PERMS, b"@foo") == "EACCES"
    assert world.inside(0, GET_PERMS, b"@foo") == "ENOENT"
    assert world.all.ask(TOOLSTACK, END, world.ids[0], b"F\0") == b"OK\0"
    assert world.do(GET_PERMS, b"@introduceDomain") == b"r0\0"
    world.all.check()


# ---- what it remembers


@pytest.mark.parametrize(
    "requests",
    [
        [(WRITE, b"x\0" + bytes(2000))],
        [(WRITE, b"x\0" + bytes(2000)), (RM, b"x\0")],
        [(READ, b"v\0")],
        [(READ, b"none\0")],
        [(DIRECTORY, b"many\0")],
        [(MKDIR, b"x\0"), (RM, b"x\0")],
        [(SET_PERMS, b"v\0n5\0r0\0r0\0")],
    ],
    ids=["write", "write and remove", "read", "read in vain", "list", "make and remove", "set permissions"],
)
def test_what_a_guests_transaction_remembers_is_bounded(requests: list[tuple[int, bytes]]) -> None:
    """Asking the same again and again costs nothing more, or is refused some time; it is not remembered for ever."""
    store = Embedded()
    toolstack, guest = store.connect(), store.connect(domid=5)
    for path in (b"", b"/v", *(b"/many/%d" % n for n in range(100))):
        answer(store, toolstack, WRITE, b"/local/domain/5" + path + b"\0" + bytes(2000))
        answer(store, toolstack, SET_PERMS, b"/local/domain/5" + path + b"\0n5\0")
    answer(store, toolstack, SET_PERMS, b"/local/domain/5/many\0n5\0")
    assert answer(store, guest, START, b"\0") == b"1\0"
    tracemalloc.start()
    try:
        for n in range(4000):
            op, payload = requests[n % len(requests)]
            if answer(store, guest, op, payload, 1) == "ENOSPC":
                break
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 << 20


# ---- what watchers are told


def told(world: World, which: int = 0, whom: int = TOOLSTACK, token: bytes = b"all") -> list[bytes]:
    """Paths of the events that a watch (the toolstack's on `/`) gets for a commit, in order."""
    client = world.clients[which]
    turn = world.all.store.feed(client, message(END, world.ids[which], b"T\0"))
    events = [content for op, _, _, content in messages(turn.output.get(whom, b"")) if op == reference.EVENT]
    return [event.split(b"\0")[0] for event in events if event.split(b"\0")[1] == token]


def test_events_come_in_the_order_in_which_nodes_were_first_accessed(world: World) -> None:
    """transaction.c: finalize_transaction: `/w` was touched as the parent of the first new node."""
    world.inside(0, WRITE, b"/w/b", b"")
    world.inside(0, WRITE, b"/w/c/d/e", b"")
    world.inside(0, SET_PERMS, b"/w", b"b0\0")
    world.inside(0, WRITE, b"/w/b", b"again")
    assert told(world) == [b"/w/b", b"/w", b"/w/c/d/e"]


def test_a_node_made_and_removed_again_is_told_to_nobody(world: World) -> None:
    world.inside(0, WRITE, b"/w/new/child", b"")
    world.inside(0, RM, b"/w/new")
    assert told(world) == []


def test_a_node_removed_before_its_parent_is_told(world: World) -> None:
    world.inside(0, RM, b"/w/x")
    world.inside(0, RM, b"/w")
    assert sorted(told(world)) == [b"/w", b"/w/x"]


def test_what_goes_with_a_removed_node_is_told_where_it_was_first_accessed(world: World) -> None:
    """transaction.c: finalize_transaction; what was never asked for comes with the removal."""
    for path in (b"/w/x/y", b"/w/x/y/v", b"/w/x/z"):
        world.do(WRITE, path)
        world.all.ask(TOOLSTACK, WATCH, 0, path + b"\0all\0")
    world.inside(0, READ, b"/w/x/y/v")
    world.inside(0, WRITE, b"/w/other")
    world.inside(0, RM, b"/w/x")
    world.inside(0, READ, b"/w/x/z")
    assert told(world) == [b"/w/x/y/v", b"/w/other", b"/w/x", b"/w/x/y", b"/w/x/z"]


@pytest.mark.parametrize(("entries", "heard"), [(b"n0\0r6\0", [b"/w/x"]), (b"n0\0", [])])
def test_who_may_read_a_node_that_was_removed_and_made_again_is_told(
    world: World, entries: bytes, heard: list[bytes]
) -> None:
    """watch.c: watch_permitted: the node as it is now decides, too."""
    world.do(SET_PERMS, b"/w", b"n0\0")
    world.do(SET_PERMS, b"/w/x", b"n0\0")
    world.inside(0, RM, b"/w/x")
    world.inside(0, WRITE, b"/w/x", b"new")
    world.inside(0, SET_PERMS, b"/w/x", entries)
    assert told(world, whom=SIX, token=b"six") == heard
