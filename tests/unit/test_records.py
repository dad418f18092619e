"""Records: what Logic publishes is applied by State to the letter, and what cannot be true is refused and changes nothing.

A hostile record must never raise anything but `BadRecord`: anything else would end State.
"""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import StoreError
from recovery_box.box import REGION_SIZE
from recovery_box.items import M32, PENDING_MAX, Connection
from tests.model.harness import assert_equal, fields
from tests.model.support import examples
from xenstore_state import effects
from xenstore_state.domains import Offer
from xenstore_state.effects import EFFECTS, ENDS_DOMAIN, GLOBAL
from xenstore_state.records import Applier, BadRecord, Output, Record, decode, encode
from xenstore_state.store import Store
from xenstore_state.tree import walk

TOOLSTACK, GUEST, OTHER = 1, 2, 3
HOME = b"/local/domain/5"


def state() -> Applier:
    """State's side: the toolstack, a guest with a node of its own, and another guest; the first two have a transaction."""
    store = Store()
    for domid in (5, 6):
        store.domains.learn(domid, domid).introduced = True
    connections = [
        Connection(TOOLSTACK, 0, -1, 0, True, True),
        Connection(GUEST, 1, -1, 5, False, False),
        Connection(OTHER, 2, -1, 6, False, True),
    ]
    for connection in connections:
        store.connect(connection)
    effects.write(store, connections[0], 0, HOME, b"")
    effects.set_perms(store, connections[0], 0, HOME, ((0, 5),))
    effects.write(store, connections[0], 0, HOME + b"/a", b"v")
    effects.watch(store, connections[1], b"/local", b"token", -1, 0)
    for connection in connections[:2]:
        effects.start(store, connection, 1)
        effects.write(store, connection, 1, HOME, b"inside")
    return Applier(store, lambda connection: 0)


def by(applier: Applier, number: int) -> Connection:
    """A connection."""
    return applier.store.items.connections.find(number)


def record(
    connection: int,
    kind: int,
    arguments: tuple[Any, ...],
    generation: int,
    *outputs: Output,
    outcome: str = "",
    head: int = 10,
) -> bytes:
    """An encoded record."""
    return encode(Record(connection, head, kind, arguments, outcome, generation, outputs))


def knows(applier: Applier) -> list[object]:
    """Everything State knows that a record could change."""
    store = applier.store
    known: list[object] = [sorted(store.tree.owned.items()), list(store.tree.specials), store.watches.count]
    for node in (*walk(store.tree.root), *store.tree.specials.values()):
        known.append(fields(node))
    for c in store.items.connections:
        known.append(
            (c.id, list(c.watches), list(c.transactions), c.last_tx_id, list(c.pending.chunks), c.pending.size)
        )
    known.append([(d.domid, d.features, dict(d.quotas)) for d in store.domains.known])
    known.append((dict(store.domains.quotas), list(store.items.settings)))
    return known


def refused(applier: Applier, body: bytes) -> None:
    """The record is refused, and nothing is known to be different."""
    before, last = knows(applier), applier.last
    with pytest.raises(BadRecord):
        applier.apply(body)
    assert knows(applier) == before
    assert applier.last is last


# ---- true records


def test_a_record_survives_encoding() -> None:
    one = Record(7, M32, effects.WRITE, (0, b"/a", b"\0v"), "", 2**40, (Output(7, 5, b"OK\0", False),))
    assert decode(encode(one)) == one
    assert decode(encode(tuple(one))) == one


def test_a_record_does_what_it_says_and_is_remembered() -> None:
    applier = state()
    generation = applier.store.tree.generation + 1
    done = applier.apply(record(GUEST, effects.WRITE, (0, HOME, b"new"), generation, Output(2, 0, b"OK", False)))
    assert (done.connection, done.kind, applier.store.closed) == (GUEST, effects.WRITE, [])
    assert applier.last == done
    assert applier.store.tree.generation == generation
    assert effects.read(applier.store, by(applier, GUEST), 0, HOME) == b"new"


def test_a_closing_says_whose() -> None:
    applier = state()
    guest = by(applier, GUEST)
    applier.apply(record(GUEST, effects.CLOSE, (), applier.store.tree.generation))
    assert applier.store.closed == [guest]
    assert guest.closed
    assert applier.store.items.connections.get(GUEST) is None
    assert applier.store.watches.count == 0


def test_a_refusal_inside_a_transaction_is_a_record_too() -> None:
    applier = state()
    generation = applier.store.tree.generation
    applier.apply(record(GUEST, effects.READ, (1, b"/tool"), generation, outcome="EACCES"))
    applier.apply(record(GUEST, effects.READ, (1, HOME + b"/none"), generation, outcome="ENOENT"))


def test_a_special_node_changed_from_inside_a_transaction_is_a_record_too() -> None:
    """It is changed at once: special nodes are not isolated."""
    applier = state()
    tree = applier.store.tree
    applier.apply(record(TOOLSTACK, effects.SET_PERMS, (1, b"@introduceDomain", ((1, 0),)), tree.generation + 1))
    assert tree.specials[b"@introduceDomain"].acl == ((1, 0),)


def test_a_conflict_is_a_record_too() -> None:
    """With the generation at which it leaves the tree, which was changed and changed back perhaps."""
    applier, logic = state(), state().store
    tree = applier.store.tree
    applier.apply(record(GUEST, effects.READ, (1, HOME + b"/a"), tree.generation))
    applier.apply(record(TOOLSTACK, effects.WRITE, (0, HOME + b"/a", b"x"), tree.generation + 1))
    effects.read(logic, logic.items.connections.find(GUEST), 1, HOME + b"/a")
    effects.write(logic, logic.items.connections.find(TOOLSTACK), 0, HOME + b"/a", b"x")
    with pytest.raises(StoreError, match="EAGAIN"):
        effects.commit(logic, logic.items.connections.find(GUEST), 1)
    applier.apply(record(GUEST, effects.COMMIT, (1,), logic.tree.generation, outcome="EAGAIN"))
    assert not by(applier, GUEST).transactions
    assert_equal(applier.store, logic)


def test_pending_output_is_kept_until_it_has_moved_into_the_region() -> None:
    made = 100
    applier = state()
    applier._made = lambda connection: made
    generation = applier.store.tree.generation
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/a", b"", -1, 0), generation, Output(OTHER, 100, b"abcd", True)))
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/b", b"", -1, 0), generation, Output(OTHER, 104, b"ef", True)))
    assert [chunk[:2] for chunk in by(applier, OTHER).pending.chunks] == [(100, b"abcd"), (104, b"ef")]
    made = 103
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/c", b"", -1, 0), generation, Output(OTHER, 106, b"g", True)))
    assert [chunk[:2] for chunk in by(applier, OTHER).pending.chunks] == [(103, b"d"), (104, b"ef"), (106, b"g")]


def test_empty_pending_output_says_that_the_peer_lets_too_much_pile_up() -> None:
    applier = state()
    generation = applier.store.tree.generation
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/a", b"", -1, 0), generation, Output(OTHER, 0, b"", True)))
    assert by(applier, OTHER).overflowed
    assert not by(applier, TOOLSTACK).overflowed


def test_pending_output_that_has_moved_on_is_forgotten_in_time() -> None:
    made = 0
    applier = state()
    applier._made = lambda connection: made
    generation = applier.store.tree.generation
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/a", b"", -1, 0), generation, Output(OTHER, 0, b"abcd", True)))
    applier.trim()
    assert by(applier, OTHER).pending.size == 4
    made = 4
    applier.trim()
    assert by(applier, OTHER).pending.size == 0
    applier.trim()


# ---- hostile bytes

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=8)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7) | st.dictionaries(st.integers(-9, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def pack(what: object) -> bytes:
    """As msgpack."""
    packed: bytes = msgpack.packb(what)
    return packed


@examples(200)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_refused(body: bytes) -> None:
    refused(state(), body)


@examples(150)
@given(st.data())
def test_a_record_with_flipped_bits_is_a_true_one_or_refused(data: st.DataObject) -> None:
    applier = state()
    body = bytearray(
        record(
            GUEST, effects.WRITE, (0, HOME, b"v"), applier.store.tree.generation + 1, Output(GUEST, 0, b"OK\0", True)
        )
    )
    for at in data.draw(st.lists(st.integers(0, 8 * len(body) - 1), min_size=1, max_size=3)):
        body[at // 8] ^= 1 << at % 8
    try:
        applier.apply(bytes(body))
    except BadRecord:
        pass


@examples(200)
@given(JUNK)
def test_anything_else_that_msgpack_can_say_is_refused(what: object) -> None:
    refused(state(), pack(what))


@examples(300)
@given(st.data())
def test_a_record_with_any_field_replaced_is_refused_or_true(data: st.DataObject) -> None:
    applier = state()
    fields_of: list[object] = [GUEST, 10, effects.WRITE, [0, HOME, b"v"], "", applier.store.tree.generation + 1, []]
    at = data.draw(st.integers(0, 6))
    fields_of[at] = data.draw(JUNK)
    try:
        applier.apply(pack(fields_of))
    except BadRecord:
        pass


VALUES: dict[type, st.SearchStrategy[object]] = {
    int: st.integers(-3, 40) | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, -(2**63)]),
    bytes: st.sampled_from(
        [b"", b"/", HOME, HOME + b"/a", HOME + b"/a/b", b"/tool", b"@releaseDomain", b"@x", b"//", b"/a/", b"x", b"/\0"]
    ),
    str: st.sampled_from(["", "nodes", "soft-memory", "soft-nodes", "trace-file"]),
    tuple: st.lists(st.one_of(st.tuples(st.integers(-1, 4), st.integers(-1, 7)), JUNK), max_size=3),
}


@examples(600)
@given(st.data())
def test_any_effect_with_any_arguments_is_true_or_refused_without_trace(data: st.DataObject) -> None:
    """Of the right types, so that it gets as far as being performed.

    The end of a domain that may be ended happens whatever else the record says, and whole.
    """
    applier = state()
    kind = data.draw(st.sampled_from(sorted(EFFECTS)), label="kind")
    arguments = [data.draw(VALUES[t], label="argument") for t in EFFECTS[kind].arguments]
    number = data.draw(st.sampled_from([TOOLSTACK, GUEST, OTHER]), label="by")
    outcome = data.draw(st.sampled_from(["", "", "ENOENT", "EACCES", "EAGAIN", "EPERM", "x"]), label="outcome")
    generation = applier.store.tree.generation + data.draw(st.integers(-1, 3), label="generation")
    before = state()
    try:
        applier.apply(pack([number, 0, kind, arguments, outcome, generation, []]))
    except BadRecord:
        # What else belongs to the acting connection alone; it is closed then.
        assert changed_by_others(applier) in [
            changed_by_others(before),
            *(changed_by_others(after(kind, number, arguments)) for _ in range(kind in ENDS_DOMAIN)),
        ]


def changed_by_others(applier: Applier) -> list[object]:
    """What State knows beyond one connection's own transactions and watches."""
    known = knows(applier)
    return [[fields(node) for node in walk(applier.store.tree.root)], known[0], *known[-2:]]


def after(kind: int, number: int, arguments: list[Any]) -> Applier:
    """State when an effect has been performed that no record told of."""
    applier = state()
    try:
        EFFECTS[kind].perform(applier.store, by(applier, number), *arguments)
    except StoreError:
        pass
    return applier


def test_a_record_of_a_connection_that_is_not_there_is_refused() -> None:
    for number in (0, 4, -1, 2**63):
        refused(state(), record(number, effects.WRITE, (0, b"/a", b""), 100))


def test_a_record_of_a_closed_connection_is_refused() -> None:
    applier = state()
    generation = applier.store.tree.generation
    applier.apply(record(GUEST, effects.CLOSE, (), generation))
    refused(applier, record(GUEST, effects.WRITE, (0, HOME, b""), generation + 1))
    refused(applier, record(GUEST, effects.CLOSE, (), generation))


@pytest.mark.parametrize("kind", [0, -1, 18, 99, 2**40])
def test_an_effect_that_does_not_exist_is_refused(kind: int) -> None:
    applier = state()
    if kind not in EFFECTS:
        refused(applier, record(GUEST, kind, (), applier.store.tree.generation))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (effects.WRITE, (0, HOME)),
        (effects.WRITE, (0, HOME, b"v", b"more")),
        (effects.WRITE, (0, HOME.decode(), b"v")),
        (effects.WRITE, (False, HOME, b"v")),
        (effects.WRITE, (0, HOME, None)),
        (effects.START, ("1",)),
        (effects.SET_PERMS, (0, HOME, b"n5")),
        (effects.RESET, (1,)),
    ],
)
def test_arguments_of_the_wrong_number_or_type_are_refused(kind: int, arguments: tuple[Any, ...]) -> None:
    applier = state()
    for generation in range(applier.store.tree.generation, applier.store.tree.generation + 2):
        refused(applier, record(GUEST, kind, arguments, generation))


@pytest.mark.parametrize(
    "acl", [(), ((0,),), ((0, 5, 5),), ((4, 5),), ((-1, 5),), ((16, 5),), (5,), (("n", 5),), ((0, 5.0),)]
)
def test_a_list_that_is_none_is_refused(acl: tuple[Any, ...]) -> None:
    applier = state()
    refused(applier, record(TOOLSTACK, effects.SET_PERMS, (0, HOME, acl), applier.store.tree.generation + 1))


# ---- lies


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (effects.WRITE, (0, b"/tool", b"v")),
        (effects.WRITE, (0, b"/tool/new", b"v")),
        (effects.MKDIR, (0, b"/new")),
        (effects.RM, (0, b"/tool")),
        (effects.RM, (0, b"/")),
        (effects.SET_PERMS, (0, b"/tool", ((3, 5),))),
        (effects.SET_PERMS, (0, HOME, ((3, 6),))),
        (effects.SET_PERMS, (0, b"@introduceDomain", ((1, 0),))),
        (effects.WRITE, (0, b"@releaseDomain", b"")),
        (effects.WRITE, (0, b"//", b"")),
        (effects.WRITE, (0, b"/a.b", b"")),
        (effects.WRITE, (7, HOME, b"v")),
        (effects.COMMIT, (7,)),
        (effects.ABORT, (0,)),
        (effects.START, (1,)),
        (effects.START, (0,)),
        (effects.START, (2**32,)),
        (effects.WATCH, (b"/local", b"token", -1, 0)),
        (effects.WATCH, (b"local", b"t", -1, 0)),
        (effects.WATCH, (b"/local", b"t", -1, 7)),
        (effects.UNWATCH, (b"/other", b"token")),
        (effects.SET_QUOTA, (5, "nodes", 10)),
        (effects.SET_QUOTA, (GLOBAL, "nodes", 10)),
        (effects.SET_FEATURE, (5, 0)),
        (effects.SETTING, ("trace-file", "/etc/passwd")),
        (effects.READ, (7, b"@releaseDomain")),
        (effects.DIRECTORY, (7, b"@releaseDomain")),
        (effects.RELEASE, (5,)),
        (effects.RESUME, (5,)),
        (effects.SET_TARGET, (5, 0)),
        (effects.GONE, (5,)),
        (effects.SHUTDOWN, (5,)),
        (effects.SCANNED, ()),
        (effects.IGNORE, (6, 1)),
        (effects.EXPIRE, (1, 2**40)),
        (effects.REFUSED, ("no such quota",)),
        (effects.RESTART, ()),
        (effects.SNAPSHOT, ("name",)),
        (effects.ROLLBACK, ("name",)),
        (effects.FORGET_PEAKS, ()),
    ],
)
def test_what_a_guest_may_not_do_is_refused_whatever_the_record_says(kind: int, arguments: tuple[Any, ...]) -> None:
    applier = state()
    now = applier.store.tree.generation
    for generation in (now, now + 1, now + 2, now + 3):
        refused(applier, record(GUEST, kind, arguments, generation))


@pytest.mark.parametrize("outcome", ["EACCES", "ENOENT", "EAGAIN", "x", "success"])
def test_a_wrong_outcome_is_refused_and_nothing_of_it_stays(outcome: str) -> None:
    applier = state()
    now = applier.store.tree.generation
    for generation in (now, now + 1):
        refused(applier, record(GUEST, effects.WRITE, (0, HOME, b"v"), generation, outcome=outcome))
        refused(applier, record(GUEST, effects.RM, (0, HOME + b"/a"), generation, outcome=outcome))
        refused(applier, record(GUEST, effects.WATCH, (b"/x", b"", -1, 0), generation, outcome=outcome))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (effects.WRITE, (0, HOME, b"v")),
        (effects.WRITE, (0, HOME + b"/new/deep", b"v")),
        (effects.MKDIR, (0, HOME + b"/new")),
        (effects.RM, (0, HOME + b"/a")),
        (effects.SET_PERMS, (0, HOME, ((1, 5),))),
        (effects.WATCH, (b"/x", b"", -1, 0)),
        (effects.UNWATCH, (b"/local", b"token")),
        (effects.RESET, ()),
        (effects.CLOSE, ()),
    ],
)
@pytest.mark.parametrize("wrong", [-1, 4, 100, 2**50])
def test_a_wrong_generation_is_refused_and_nothing_of_it_stays(
    kind: int, arguments: tuple[Any, ...], wrong: int
) -> None:
    applier = state()
    refused(applier, record(GUEST, kind, arguments, applier.store.tree.generation + wrong))


def test_a_wrong_generation_of_a_commit_leaves_the_tree_as_it_was() -> None:
    applier = state()
    tree = applier.store.tree
    before = [fields(node) for node in walk(tree.root)]
    with pytest.raises(BadRecord):
        applier.apply(record(GUEST, effects.COMMIT, (1,), tree.generation + 5))
    assert [fields(node) for node in walk(tree.root)] == before
    assert tree._epochs == [] or by(applier, TOOLSTACK).transactions


def test_after_a_refusal_true_records_are_applied_as_ever() -> None:
    """Whatever generation State is at then is the one the next Logic begins with."""
    applier, other = state(), state()
    refused(applier, record(GUEST, effects.RM, (0, HOME), applier.store.tree.generation + 9))
    for one in (applier, other):
        tree = one.store.tree
        one.apply(record(GUEST, effects.WRITE, (0, HOME + b"/b", b"v"), tree.generation + 1))
        one.apply(record(GUEST, effects.RM, (0, HOME + b"/a"), tree.generation + 1))
    assert list(applier.store.tree.owned.items()) == list(other.store.tree.owned.items())
    for a, b in zip(walk(applier.store.tree.root), walk(other.store.tree.root), strict=True):
        assert (a.value, a.acl, list(a.children or ())) == (b.value, b.acl, list(b.children or ()))


# ---- output


@pytest.mark.parametrize(
    "outputs",
    [
        [Output(4, 0, b"x", False)],
        [Output(4, 0, b"x", True)],
        [Output(GUEST, -1, b"x", False)],
        [Output(GUEST, M32 + 1, b"x", False)],
        [Output(GUEST, 0, "x", False)],  # type: ignore[arg-type]
        [Output(GUEST, 0, b"x", 1)],  # type: ignore[arg-type]
        [Output(GUEST, 0, b"x", None)],  # type: ignore[arg-type]
        [(GUEST, 0, b"x")],
        [(GUEST, 0, b"x", False)],
        [(GUEST, 0, b"x", False, None)],
        [(GUEST, 0, b"x", False, 0, 1)],
        [7],
        7,
        None,
    ],
)
def test_output_that_is_none_or_for_nobody_is_refused(outputs: Any) -> None:
    applier = state()
    generation = applier.store.tree.generation + 1
    refused(applier, pack([GUEST, 0, effects.WRITE, [0, HOME, b"v"], "", generation, outputs]))


@pytest.mark.parametrize(
    "outputs",
    [
        # more than the region: a new Logic would write over whatever lies behind it
        [Output(GUEST, 0, bytes(REGION_SIZE + 1), False)],
        [Output(GUEST, M32, bytes(3 * REGION_SIZE), False)],
        # pending output that does not follow what is pending, or is too much
        [Output(OTHER, 3, b"x", True)],
        [Output(OTHER, 4, bytes(PENDING_MAX), True)],
        # two that contradict each other
        [Output(GUEST, 0, b"one", True), Output(GUEST, 0, b"two", True)],
        [
            Output(GUEST, 0, bytes(PENDING_MAX // 2 + 1), True),
            Output(GUEST, PENDING_MAX // 2 + 1, bytes(PENDING_MAX // 2), True),
        ],
    ],
)
def test_output_that_cannot_be_placed_is_refused(outputs: list[Output]) -> None:
    applier = state()
    now = applier.store.tree.generation
    applier.apply(record(TOOLSTACK, effects.WATCH, (b"/a", b"", -1, 0), now, Output(OTHER, 0, b"wait", True)))
    refused(applier, record(GUEST, effects.WRITE, (0, HOME, b"v"), now + 1, *outputs))


def test_a_closing_with_output_for_the_closed_connection_is_refused_or_harmless() -> None:
    for pending in (False, True):
        applier = state()
        try:
            applier.apply(
                record(GUEST, effects.CLOSE, (), applier.store.tree.generation, Output(GUEST, 0, b"x", pending))
            )
        except BadRecord:
            assert by(applier, GUEST)


def test_what_no_client_can_have_sent_is_refused() -> None:
    """A payload has at most 4,096 bytes; State does not store more because a record says so."""
    applier = state()
    generation = applier.store.tree.generation
    huge = b"x" * 10_000
    refused(applier, record(TOOLSTACK, effects.WRITE, (0, HOME, huge), generation + 1))
    refused(applier, record(TOOLSTACK, effects.WRITE, (1, HOME, huge), generation))
    refused(applier, record(TOOLSTACK, effects.WRITE, (0, b"/" + huge, b""), generation + 1))
    refused(applier, record(TOOLSTACK, effects.WATCH, (b"/a", huge, -1, 0), generation))
    refused(applier, record(TOOLSTACK, effects.SET_PERMS, (0, HOME, ((0, 5),) * 10_000), generation + 1))


# ---- equal stores


def test_two_states_that_apply_the_same_records_are_equal() -> None:
    one, other = state(), state()
    tree = one.store.tree
    steps: list[tuple[int, int, tuple[Any, ...], int]] = [
        (TOOLSTACK, effects.WRITE, (0, b"/x/y/z", b"v"), 3),
        (GUEST, effects.WATCH, (b"/x", b"t", 2, 0), 0),
        (TOOLSTACK, effects.SET_PERMS, (0, b"/x", ((3, 5), (1, 6))), 1),
        (GUEST, effects.MKDIR, (0, b"/x/mine"), 1),
        (TOOLSTACK, effects.RM, (0, b"/x/y"), 1),
        (OTHER, effects.START, (1,), 0),
        (OTHER, effects.READ, (1, b"/x"), 0),
        (TOOLSTACK, effects.COMMIT, (1,), 1),
        (GUEST, effects.RESET, (), 0),
    ]
    for number, kind, arguments, changes in steps:
        for applier in (one, other):
            applier.apply(record(number, kind, arguments, (applier.store.tree.generation + changes)))
        assert_equal(one.store, other.store)
    assert tree.generation == other.store.tree.generation


def test_a_guest_cannot_introduce_a_domain_even_if_its_ring_is_offered() -> None:
    store = Store()
    store.domains.learn(5, 5).introduced = True
    store.domains.learn(6, 6)
    store.domains.offers[6] = Offer(3, -1, 7, 7)
    store.connect(Connection(2, -1, -1, 5, privileged=False, socket=False))
    with pytest.raises(BadRecord):
        Applier(store, lambda connection: 0).apply(
            encode((2, 0, effects.INTRODUCE, (6,), "", store.tree.generation, ()))
        )
    assert store.domains.introduced(6) is None
