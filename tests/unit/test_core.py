"""The core: what is checked first, what must be published, and who is told what in which order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import OPERATIONS
from protocol.wire import PAYLOAD_MAX
from recovery_box.items import Connection
from tests.model.harness import HEADER, answer, message, messages
from tests.model.support import examples
from xenstore_logic.core import Core
from xenstore_logic.embedded import Embedded
from xenstore_logic.requests import HANDLERS, ROWS
from xenstore_state import effects
from xenstore_state.store import Store

CONTROL, DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END = range(8)
WRITE, MKDIR, RM, SET_PERMS, EVENT, ERROR, RESET_WATCHES, DIRECTORY_PART = 11, 12, 13, 14, 15, 16, 21, 22
GET_FEATURE, SET_QUOTA = 23, 26
OK = b"OK\0"
HOME = b"/local/domain/5"


class World:
    """The core on a store of its own, with a toolstack and a guest whose home exists."""

    def __init__(self) -> None:
        store = Store()
        store.domains.learn(5, 5).introduced = True
        self.core = Core(store, ROWS)
        self.toolstack, self.guest = Connection(1, -1, -1, 0, True, True), Connection(2, -1, -1, 5, False, False)
        for connection in (self.toolstack, self.guest):
            store.connect(connection)
        assert self.ask(WRITE, HOME + b"\0") == OK
        assert self.ask(SET_PERMS, HOME + b"\0n5\0") == OK

    def handle(self, by: Connection, op: int, payload: bytes, tx: int = 0) -> tuple[int, int, int, bytes]:
        """One request; what was queued before is forgotten."""
        self.core.effect = None
        self.core.events.clear()
        self.core.late_events.clear()
        (reply,) = messages(self.core.handle(by, op, 77, tx, payload))
        return reply

    def ask(self, op: int, payload: bytes, tx: int = 0, *, by: Connection | None = None) -> bytes | str:
        """The toolstack's request (or somebody else's); the answer or the error's name."""
        kind, req_id, back, body = self.handle(by or self.toolstack, op, payload, tx)
        assert (req_id, back) == (77, tx)
        assert kind in {op, ERROR}
        return body if kind != ERROR else body[:-1].decode()

    def guest_asks(self, op: int, payload: bytes, tx: int = 0) -> bytes | str:
        """The guest's request."""
        return self.ask(op, payload, tx, by=self.guest)

    def events(self) -> list[tuple[int, bytes]]:
        """(connection id, content) of the events queued by the last request."""
        return [(to.id, messages(event)[0][3]) for to, event in self.core.events]


@pytest.fixture
def world() -> World:
    """A fresh one."""
    return World()


# ---- the order of checks (core.c: process_message)


@pytest.mark.parametrize("op", [15, 16, 20, 27, 128, 0xFFFF, 0xFFFFFFFF])
def test_an_unknown_operation_is_enosys_whatever_else_is_wrong(world: World, op: int) -> None:
    for by, tx in itertools.product((world.toolstack, world.guest), (0, 99)):
        assert world.handle(by, op, b"junk", tx) == (ERROR, 77, tx, b"ENOSYS\0")


def test_privilege_comes_before_the_transaction_and_the_payload(world: World) -> None:
    for op in (op for op, row in OPERATIONS.items() if row.privileged):
        assert world.guest_asks(op, b"junk", 99) == "EACCES"
        assert world.ask(op, b"junk", 99) == "ENOENT"


def test_an_unknown_transaction_comes_before_the_payload(world: World) -> None:
    for op, row in OPERATIONS.items():
        if row.uses_tx:
            assert world.ask(op, b"", 99) == "ENOENT"


def test_watches_do_not_care_for_transactions_and_echo_whatever_was_sent(world: World) -> None:
    assert world.ask(WATCH, b"/x\0t\0", 0xFFFFFFFF) == OK
    assert world.ask(UNWATCH, b"/x\0t\0", 12345) == OK


def test_a_transaction_belongs_to_its_connection(world: World) -> None:
    assert world.ask(START, b"\0") == b"1\0"
    assert world.guest_asks(READ, HOME + b"\0", 1) == "ENOENT"
    assert world.ask(READ, HOME + b"\0", 1) == b""


def test_every_operation_has_a_handler_and_no_other_number_has() -> None:
    assert set(HANDLERS) == set(OPERATIONS)


# ---- what must be published


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (READ, b"/tool\0"),
        (DIRECTORY, b"/\0"),
        (DIRECTORY_PART, b"/\0000\0"),
        (GET_PERMS, b"/tool\0"),
        (GET_PERMS, b"@releaseDomain\0"),
        (READ, b"/none\0"),
        (GET_FEATURE, b""),
        (CONTROL, b"help\0"),
        (WRITE, b"//\0"),
        (RM, b"/none/none\0"),
        (END, b"T\0"),
        (UNWATCH, b"/none\0t\0"),
    ],
)
def test_what_changes_nothing_has_no_effect(world: World, op: int, payload: bytes) -> None:
    world.ask(op, payload)
    assert world.core.effect is None


@pytest.mark.parametrize(
    ("op", "payload", "kind"),
    [
        (WRITE, b"/x\0v", effects.WRITE),
        (MKDIR, b"/x\0", effects.MKDIR),
        (RM, b"/tool\0", effects.RM),
        (SET_PERMS, b"/tool\0r0\0", effects.SET_PERMS),
        (SET_PERMS, b"@introduceDomain\0r0\0", effects.SET_PERMS),
        (WATCH, b"/x\0t\0", effects.WATCH),
        (START, b"\0", effects.START),
        (RESET_WATCHES, b"", effects.RESET),
        (SET_QUOTA, b"nodes\0009\0", effects.SET_QUOTA),
    ],
)
def test_what_changes_something_has_one_effect(world: World, op: int, payload: bytes, kind: int) -> None:
    world.ask(op, payload)
    assert world.core.effect is not None
    assert world.core.effect[0] == kind
    assert world.core.effect[2] == ""


@pytest.mark.parametrize(
    ("op", "payload", "outcome"),
    [
        (READ, b"/tool\0", ""),
        (DIRECTORY, b"/\0", ""),
        (DIRECTORY_PART, b"/\0000\0", ""),
        (GET_PERMS, b"/tool\0", ""),
        (READ, b"/none\0", "ENOENT"),
        (WRITE, b"/tool\0v", ""),
        (RM, b"/none/none\0", "ENOENT"),
        (END, b"T\0", ""),
        (END, b"F\0", ""),
    ],
)
def test_inside_a_transaction_what_the_client_was_told_is_an_effect(
    world: World, op: int, payload: bytes, outcome: str
) -> None:
    world.ask(START, b"\0")
    world.ask(op, payload, 1)
    assert world.core.effect is not None
    assert world.core.effect[1][0] == 1
    assert world.core.effect[2] == outcome


def test_a_special_node_is_never_part_of_a_transaction(world: World) -> None:
    world.ask(START, b"\0")
    assert world.ask(SET_PERMS, b"@releaseDomain\0r0\0", 1) == OK
    assert world.ask(GET_PERMS, b"@releaseDomain\0") == b"r0\0"
    assert world.ask(GET_PERMS, b"@releaseDomain\0", 1) == b"r0\0"
    assert world.ask(END, b"F\0", 1) == OK
    assert world.ask(GET_PERMS, b"@releaseDomain\0") == b"r0\0"


def test_a_malformed_request_in_a_transaction_has_no_effect(world: World) -> None:
    world.ask(START, b"\0")
    for op in (READ, WRITE, RM, SET_PERMS, END):
        assert world.ask(op, b"/tool", 1) == "EINVAL"
        assert world.core.effect is None


# ---- any payload at all

OPS = sorted(set(OPERATIONS) - {CONTROL})
PIECES = st.one_of(
    st.sampled_from(
        [b"\0", b"\0", b"/", b"/tool", b"/tool/xenstored", b"x", b"@releaseDomain", b"@foo", b"0", b"1", b"5"]
    ),
    st.sampled_from(
        [b"-1", b"99999999999999999999", b"n0", b"r5", b"nodes", b"soft-memory", b"T", b"F", b"\xff", b"a" * 3000]
    ),
    st.binary(max_size=5),
)
PAYLOADS = st.lists(PIECES, max_size=8).map(lambda pieces: b"".join(pieces)[:PAYLOAD_MAX])


@examples(300)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(OPS), st.integers(0, 2), PAYLOADS), max_size=12))
def test_every_request_gets_one_well_formed_reply(requests: list[tuple[bool, int, int, bytes]]) -> None:
    world = World()
    for guest, op, tx, payload in requests:
        kind, req_id, back, body = world.handle(world.guest if guest else world.toolstack, op, payload, tx)
        assert kind in {op, ERROR}
        assert (req_id, back) == (77, tx)
        assert len(body) <= PAYLOAD_MAX
        if kind == ERROR:
            assert body[:1] == b"E"
            assert body[-1:] == b"\0"
        for _, event in (*world.core.events, *world.core.late_events):
            ((kind, req_id, back, body),) = messages(event)
            assert (kind, req_id, back) == (EVENT, 0, 0)
            assert body.count(b"\0") == 2


COMMANDS = st.sampled_from(
    [b"check", b"log", b"help", b"print", b"quota", b"quota-soft", b"live-update", b"bogus", b""]
)


@examples(150)
@given(
    COMMANDS,
    st.lists(st.sampled_from([b"", b"set", b"max", b"-r", b"nodes", b"5", b"x", b"+io", b"-obj", b"-a", b"-s"])),
)
def test_every_command_gets_text_or_an_error(command: bytes, arguments: list[bytes]) -> None:
    world = World()
    said = world.ask(CONTROL, b"".join(word + b"\0" for word in (command, *arguments)))
    assert said in {"EINVAL", "ENOENT"} or (isinstance(said, bytes) and said[-1:] == b"\0" and said.count(b"\0") == 1)


# ---- lists


@examples(60)
@given(st.lists(st.sampled_from([1, 2, 3, 30, 250, 2030]), max_size=60), st.booleans())
def test_a_list_of_any_length_can_be_read_part_by_part(lengths: list[int], inside: bool) -> None:
    world = World()
    names = [b"%d" % n + b"x" * length for n, length in enumerate(lengths)]
    world.ask(MKDIR, b"/d\0")
    for name in names:
        world.ask(MKDIR, b"/d/" + name + b"\0")
    if inside:
        world.ask(START, b"\0")
    tx = int(inside)
    found, generations = b"", set()
    while not found.endswith(b"\0\0") and found != b"\0":
        said = world.ask(DIRECTORY_PART, b"/d\0%d\0" % len(found), tx)
        assert isinstance(said, bytes)
        generation, _, part = said.partition(b"\0")
        assert part
        assert part[-1:] == b"\0"
        generations.add(generation)
        found += part
    assert len(generations) == 1
    assert found[:-1].split(b"\0")[:-1] == names
    whole = world.ask(DIRECTORY, b"/d\0", tx)
    assert whole == (found[:-1] if len(found) - 1 <= PAYLOAD_MAX else "E2BIG")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ls", "ls", "write", "child", "remove", "commit", "conflict", "new node"]),
        st.sampled_from([b"a", b"b", b"c"]),
    ),
    max_size=20,
)


@examples(100)
@given(STEPS)
def test_a_list_that_is_kept_is_never_an_old_one(steps: list[tuple[str, bytes]]) -> None:
    world = World()
    world.ask(MKDIR, b"/d\0")
    names: list[bytes] = []
    for what, name in steps:
        match what:
            case "write":
                world.ask(WRITE, b"/d\0" + name)
            case "child" | "commit":
                tx = 0
                if what == "commit":
                    said = world.ask(START, b"\0")
                    assert isinstance(said, bytes)
                    tx = int(said[:-1])
                world.ask(MKDIR, b"/d/" + name + b"\0", tx)
                if what == "commit":
                    assert world.ask(END, b"T\0", tx) == OK
                names += [name] if name not in names else []
            case "remove":
                world.ask(RM, b"/d/" + name + b"\0")
                names = [n for n in names if n != name]
            case "conflict":  # is undone
                said = world.ask(START, b"\0")
                assert isinstance(said, bytes)
                tx = int(said[:-1])
                world.ask(READ, b"/tool\0", tx)
                world.ask(RM, b"/d\0", tx)
                world.ask(WRITE, b"/d/new\0", tx)
                world.ask(WRITE, b"/tool\0" + said)
                assert world.ask(END, b"T\0", tx) == "EAGAIN"
            case "new node":
                world.ask(RM, b"/d\0")
                world.ask(MKDIR, b"/d\0")
                names = []
        assert world.ask(DIRECTORY, b"/d\0") == b"".join(n + b"\0" for n in names)


# ---- paths


def test_a_relative_path_means_something_else_to_everybody(world: World) -> None:
    assert world.guest_asks(WRITE, b"x\0guest's") == OK
    assert world.ask(WRITE, b"x\0toolstack's") == OK
    assert world.guest_asks(READ, b"x\0") == b"guest's"
    assert world.ask(READ, b"x\0") == b"toolstack's"
    assert world.ask(READ, b"/local/domain/0/x\0") == b"toolstack's"


# ---- events


def watched(world: World, *paths: bytes, by: Connection | None = None) -> None:
    """Watches with their path as token."""
    for path in paths:
        assert world.ask(WATCH, path + b"\0" + path + b"\0", by=by) == OK


def test_the_first_event_comes_behind_the_reply_and_says_the_path_as_written(world: World) -> None:
    world.guest_asks(WATCH, b"x/y\0t\0")
    assert world.core.events == []
    assert [(to.id, messages(e)[0][3]) for to, e in world.core.late_events] == [(2, b"x/y\0t\0")]


def test_a_removed_subtree_is_told_children_first_and_only_to_who_watches_it_exactly(world: World) -> None:
    for path in (b"/t/a/b/c", b"/t/a/d"):
        world.ask(WRITE, path + b"\0")
    watched(world, b"/t/a/d", b"/t", b"/t/a", b"/t/a/zz", b"/t/a/b", b"/t/a/b/c")
    world.ask(RM, b"/t/a\0")
    assert [content.split(b"\0")[:2] for _, content in world.events()] == [
        [b"/t/a/b/c", b"/t/a/b/c"],
        [b"/t/a/b", b"/t/a/b"],
        [b"/t/a/d", b"/t/a/d"],
        [b"/t/a", b"/t"],
        [b"/t/a", b"/t/a"],
    ]


def test_a_watch_set_by_a_relative_path_reports_relative_paths(world: World) -> None:
    world.guest_asks(WATCH, b"x\0rel\0")
    world.guest_asks(WATCH, HOME + b"/x\0abs\0")
    world.ask(WRITE, HOME + b"/x/y\0")
    assert world.events() == [(2, b"x/y\0rel\0"), (2, HOME + b"/x/y\0abs\0")]


@pytest.mark.parametrize(
    ("parent", "child", "told"),
    [
        (b"n0", b"n0", False),
        (b"r0", b"n0", True),
        (b"n0", b"r0", True),
        (b"w0", b"w0", False),
        (b"n0", b"n0\0r5", True),
    ],
)
def test_a_guest_is_told_of_what_it_may_read_or_whose_parent_it_may_read(
    world: World, parent: bytes, child: bytes, told: bool
) -> None:
    """watch.c: watch_permitted"""
    world.ask(WRITE, b"/p/c\0")
    world.ask(SET_PERMS, b"/p\0" + parent + b"\0")
    world.ask(SET_PERMS, b"/p/c\0" + child + b"\0")
    watched(world, b"/p", by=world.guest)
    world.ask(WRITE, b"/p/c\0v")
    assert bool(world.events()) == told
    world.ask(RM, b"/p/c\0")
    assert bool(world.events()) == told


def test_who_loses_the_right_to_read_is_told_of_that_and_of_nothing_more(world: World) -> None:
    world.ask(WRITE, b"/p\0")
    world.ask(SET_PERMS, b"/p\0r0\0")
    watched(world, b"/p", by=world.guest)
    world.ask(SET_PERMS, b"/p\0n0\0")
    assert len(world.events()) == 1
    world.ask(WRITE, b"/p\0v")
    assert world.events() == []


@pytest.mark.parametrize(
    ("readable", "told"),
    [((), False), ((b"/t/a/b/c",), True), ((b"/t/a/b",), True), ((b"/t/a",), False), ((b"/t",), False)],
)
def test_a_removed_descendant_is_told_to_who_could_read_it_or_its_parent(
    world: World, readable: tuple[bytes, ...], told: bool
) -> None:
    world.ask(WRITE, b"/t/a/b/c\0")
    for path in readable:
        world.ask(SET_PERMS, path + b"\0r0\0")
    watched(world, b"/t/a/b/c", by=world.guest)
    world.ask(RM, b"/t\0")
    assert bool(world.events()) == told


def test_an_event_that_would_not_fit_a_message_is_not_sent(world: World) -> None:
    world.ask(WATCH, b"/\0" + b"t" * 4000 + b"\0")
    world.ask(WRITE, b"/" + b"x" * 93 + b"\0")
    assert len(world.events()) == 1
    world.ask(WRITE, b"/" + b"x" * 94 + b"\0")
    assert world.events() == []


def test_special_nodes_tell_their_own_watches_only(world: World) -> None:
    watched(world, b"/", b"@introduceDomain", b"@releaseDomain", b"@foo")
    world.ask(SET_PERMS, b"@introduceDomain\0n0\0r5\0")
    assert world.events() == [(1, b"@introduceDomain\0@introduceDomain\0")]


def test_a_guest_asking_for_a_special_node_that_is_none_is_refused(world: World) -> None:
    for op, payload in ((GET_PERMS, b"@foo\0"), (SET_PERMS, b"@foo\0n5\0"), (GET_PERMS, b"@introduceDomain\0")):
        assert world.guest_asks(op, payload) == "EACCES"
    assert world.guest_asks(GET_PERMS, b"@releaseDomain\0") == b"n0\0r32757\0"
    assert world.ask(GET_PERMS, b"@foo\0") == "ENOENT"


@pytest.mark.parametrize(("features", "answer"), [(6, "ENOENT"), (14, "EPERM")])
def test_any_domain_is_no_owner_for_whom_that_was_not_offered(world: World, features: int, answer: str) -> None:
    """domain.c: domain_alloc_permrefs: it is a domain that does not exist, which comes before anything else."""
    world.core.store.domains.known.find(5).features = features
    assert world.guest_asks(SET_PERMS, HOME + b"\0n32757\0") == answer
    assert world.guest_asks(SET_PERMS, b"/a//b\0n32757\0") == ("ENOENT" if features == 6 else "EINVAL")


def test_a_closed_connection_is_told_nothing(world: World) -> None:
    watched(world, b"/x", by=world.guest)
    world.core.store.disconnect(world.guest)
    world.ask(WRITE, b"/x\0")
    assert world.events() == []


def test_answers_through_the_core_and_through_bytes_are_the_same() -> None:
    embedded = Embedded()
    number = embedded.connect()
    assert answer(embedded, number, READ, b"/tool\0") == World().ask(READ, b"/tool\0")
    assert message(READ, 3, b"x")[:16] == HEADER.pack(READ, 77, 3, 1)
