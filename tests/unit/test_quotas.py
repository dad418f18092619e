"""Quotas: what counts, against which number, for whom, and what happens when it is reached (permissions-and-quotas, 6).

Through the core in-process, with a guest (domain 5) whose home is `/local/domain/5`; State's own counting is tested with
records that a lying Logic might publish.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box.items import Connection
from tests.model.harness import answer
from tests.model.support import examples
from xenstore_logic.embedded import Embedded
from xenstore_state import checkpoint, effects, quotas
from xenstore_state.records import Applier, BadRecord, encode
from xenstore_state.store import Store

GET_PERMS, WATCH, UNWATCH, START, END = 3, 4, 5, 6, 7
READ, WRITE, MKDIR, RM, SET_PERMS, GET_QUOTA, SET_QUOTA = 2, 11, 12, 13, 14, 25, 26
OK = b"OK\0"
HOME = b"/local/domain/5"


class World:
    """A store, the toolstack and a guest that owns its home."""

    def __init__(self, **limits: int) -> None:
        self.store = Embedded()
        self.toolstack = self.store.connect()
        self.guest = self.store.connect(domid=5)
        self.does(WRITE, HOME + b"\0")
        self.does(SET_PERMS, HOME + b"\0n5\0")
        for name, value in limits.items():
            self.limit(name.replace("_", "-"), value)

    def limit(self, name: str, value: int) -> None:
        """Sets one of the guest's quotas."""
        self.does(SET_QUOTA, b"5\0%s\0%d\0" % (name.encode(), value))

    def does(self, op: int, payload: bytes) -> None:
        """The toolstack does something, which works."""
        assert answer(self.store, self.toolstack, op, payload) == OK

    def tries(self, op: int, payload: bytes, tx: int = 0) -> bytes | str:
        """The guest tries something."""
        return answer(self.store, self.guest, op, payload, tx)

    def starts(self) -> int:
        """The guest opens a transaction."""
        said = self.tries(START, b"\0")
        assert isinstance(said, bytes)
        return int(said[:-1])

    @property
    def owned(self) -> int:
        """Nodes of the guest."""
        return self.store.store.tree.owned.get(5, 0)


# ---- names and numbers


def test_the_names_in_the_order_in_which_they_are_listed() -> None:
    assert " ".join(quotas.wire_names()) == (
        "nodes watches outstanding memory soft-memory transactions transaction-nodes node-permissions path-max node-size"
    )


def test_the_defaults() -> None:
    assert quotas.defaults() == {
        "nodes": 1000,
        "watches": 128,
        "outstanding": 20,
        "memory": 2621440,
        "soft-memory": 2097152,
        "transactions": 10,
        "transaction-nodes": 1024,
        "node-permissions": 5,
        "path-max": 2048,
        "node-size": 2048,
    }
    assert quotas.defaults() is not quotas.defaults()


def test_what_is_a_name() -> None:
    assert all(quotas.is_name(name) for name in quotas.wire_names())
    assert not any(quotas.is_name(n) for n in ("", "soft-", "soft-nodes", "soft-soft-memory", "path-length", "Nodes"))


@examples(50)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_number_reached_is_too_much_and_zero_is_no_limit(value: int, quota: int) -> None:
    assert quotas.exceeds(value, quota) == (quota != 0 and value >= quota)


def test_a_node_counts_its_header_entries_value_and_names() -> None:
    assert quotas.node_size(b"", 1, 0) == 24
    assert quotas.node_size(bytes(2023), 1, 0) == 2047
    assert quotas.node_size(b"abc", 2, 10) == 16 + 16 + 3 + 10


# ---- watches, transactions, permissions, paths


def test_127_watches_fit_into_the_quota_of_128() -> None:
    world = World()
    for n in range(127):
        assert world.tries(WATCH, b"x\0%d\0" % n) == OK
    assert world.tries(WATCH, b"x\0one more\0") == "ENOSPC"
    assert world.tries(UNWATCH, b"x\0005\0") == OK
    assert world.tries(WATCH, b"x\0one more\0") == OK


def test_nine_transactions_fit_into_the_quota_of_ten() -> None:
    world = World()
    ids = [world.starts() for _ in range(9)]
    assert world.tries(START, b"\0") == "ENOSPC"
    assert world.tries(END, b"F\0", ids[3]) == OK
    assert world.starts()


def test_four_entries_fit_into_the_quota_of_five() -> None:
    world = World()
    assert world.tries(SET_PERMS, HOME + b"\0n5\0r0\0r0\0r0\0") == OK
    assert world.tries(SET_PERMS, HOME + b"\0n5\0r0\0r0\0r0\0r0\0") == "ENOSPC"
    assert world.tries(SET_PERMS, b"/a.b\0x\0x\0x\0x\0x\0") == "ENOSPC"  # before anything else is looked at


def test_the_path_below_the_home_has_2047_bytes() -> None:
    """core.c: canonicalize; whoever's home it is."""
    world = World()
    home = b"/local/domain/5/"
    for prefix in (home, b"/local/domain/12345/", b"/"):
        rest = b"a" * (2047 - (1 if prefix == b"/" else 0))
        assert world.tries(READ, prefix + rest + b"\0") in {"ENOENT", "EACCES"}
        assert world.tries(READ, prefix + rest + b"a\0") == "EINVAL"
    assert world.tries(READ, b"a" * 2047 + b"\0") == "ENOENT"
    assert world.tries(WATCH, b"a" * 2048 + b"\0t\0") == "EINVAL"


def test_six_digits_are_no_domain_whose_prefix_would_be_free() -> None:
    world = World()
    prefix = b"/local/domain/123456/"
    assert world.tries(READ, prefix + b"a" * (2047 - len(prefix)) + b"\0") == "EACCES"
    assert world.tries(READ, prefix + b"a" * (2048 - len(prefix)) + b"\0") == "EINVAL"


# ---- nodes


def test_a_guest_owns_one_node_less_than_its_quota() -> None:
    world = World(nodes=4)
    assert world.owned == 1
    assert world.tries(WRITE, b"a\0") == OK
    assert world.tries(MKDIR, b"b\0") == OK
    assert world.owned == 3
    assert world.tries(WRITE, b"c\0") == "ENOSPC"
    assert world.tries(MKDIR, b"c\0") == "ENOSPC"
    assert world.tries(WRITE, b"a\0new value") == OK
    assert world.tries(RM, b"a\0") == OK
    assert world.tries(WRITE, b"c\0") == OK


def test_a_deep_write_is_tested_once_and_may_overshoot() -> None:
    """core.c: create_node -> domain_quota_add_exceeds: only the committed count, plus one."""
    world = World(nodes=4)
    assert world.tries(WRITE, b"a/b/c/d/e/f\0") == OK
    assert world.owned == 7
    assert world.tries(WRITE, b"g\0") == "ENOSPC"


def test_the_callers_count_is_tested_whoever_owns_the_parent() -> None:
    world = World(nodes=2)
    world.does(WRITE, b"/shared\0")
    world.does(SET_PERMS, b"/shared\0b0\0")
    assert world.tries(WRITE, b"/shared/mine\0") == "ENOSPC"


def test_the_toolstack_may_give_a_guest_more_than_its_quota() -> None:
    world = World(nodes=2)
    world.does(WRITE, HOME + b"/a/b/c\0")
    assert world.owned == 4
    assert world.tries(WRITE, b"d\0") == "ENOSPC"


def test_ownership_that_is_given_away_counts_for_the_new_owner() -> None:
    world = World()
    world.does(WRITE, b"/given\0")
    world.does(SET_PERMS, b"/given\0n5\0")
    assert world.owned == 2
    world.does(SET_PERMS, b"/given\0n0\0")
    assert world.owned == 1


def test_a_transaction_is_counted_when_it_commits() -> None:
    """transaction.c: acc_fix_domains: each create works, the commit does not, and nothing has happened."""
    world = World(nodes=4)
    tx = world.starts()
    for n in range(5):
        assert world.tries(WRITE, b"n%d\0" % n, tx) == OK
    assert world.tries(END, b"T\0", tx) == "ENOSPC"
    assert world.owned == 1
    assert world.tries(READ, b"n0\0") == "ENOENT"
    assert world.tries(END, b"T\0", tx) == "ENOENT"


def test_a_node_that_only_the_commit_creates_is_counted() -> None:
    """It was there when the transaction wrote it, and was removed since."""
    world = World(nodes=2)
    world.does(WRITE, HOME + b"/a\0")
    tx = world.starts()
    assert world.tries(WRITE, b"a\0", tx) == OK
    world.does(RM, HOME + b"/a\0")
    assert world.tries(END, b"T\0", tx) == "ENOSPC"
    assert world.owned == 1
    assert world.tries(READ, b"a\0") == "ENOENT"


def test_a_transaction_that_removes_as_much_as_it_makes_fits() -> None:
    world = World(nodes=4)
    assert world.tries(WRITE, b"a/b\0") == OK
    tx = world.starts()
    assert world.tries(RM, b"a\0", tx) == OK
    # The committed count alone says no more: it is tested as ever.
    assert world.tries(WRITE, b"c\0", tx) == "ENOSPC"
    assert world.tries(END, b"T\0", tx) == OK
    assert world.owned == 1


def test_a_transaction_that_removes_more_than_it_makes_fits_whatever_came_meanwhile() -> None:
    """domain.c: domain_quota_add_exceeds: what becomes less is never too much."""
    world = World()
    world.does(WRITE, b"/o\0")
    world.does(SET_PERMS, b"/o\0n5\0")
    for name in (b"a", b"b", b"c"):
        assert world.tries(WRITE, name + b"\0") == OK
    world.limit("nodes", 7)
    tx = world.starts()
    assert world.tries(WRITE, b"new\0", tx) == OK
    for n in range(5):
        world.does(WRITE, b"/o/%d\0" % n)
    assert world.tries(RM, b"a\0", tx) == OK
    unchanged = world.starts()
    assert world.tries(WRITE, b"other\0", unchanged) == "ENOSPC"
    for name in (b"b", b"c"):
        assert world.tries(RM, name + b"\0", tx) == OK
    assert world.tries(END, b"T\0", tx) == OK
    assert world.owned == 8


def test_a_transaction_that_makes_as_much_as_it_removes_is_counted() -> None:
    world = World(nodes=4)
    assert world.tries(WRITE, b"a\0") == OK
    tx = world.starts()
    assert [world.tries(WRITE, b"b\0", tx), world.tries(RM, b"a\0", tx)] == [OK, OK]
    for name in (b"/x", b"/y"):
        world.does(WRITE, HOME + name + b"\0")
    assert world.tries(END, b"T\0", tx) == "ENOSPC"


@pytest.mark.parametrize("limit", [5, 8])
def test_a_quota_is_looked_at_before_conflicts_are(limit: int) -> None:
    """transaction.c: do_transaction_end: to try again would be of no use."""
    world = World()
    world.does(WRITE, HOME + b"/r\0")
    world.limit("nodes", limit)
    tx = world.starts()
    assert world.tries(READ, b"r\0", tx) == b""
    for n in range(4):
        assert world.tries(WRITE, b"%d\0" % n, tx) == OK
    world.does(WRITE, HOME + b"/r\0changed")
    assert world.tries(END, b"T\0", tx) == ("ENOSPC" if limit == 5 else "EAGAIN")
    assert world.owned == 2


# ---- sizes


def test_a_leaf_with_one_entry_holds_2023_bytes() -> None:
    world = World()
    assert world.tries(WRITE, b"a\0" + bytes(2023)) == OK
    assert world.tries(WRITE, b"a\0" + bytes(2024)) == "ENOSPC"
    assert world.tries(WRITE, b"b\0" + bytes(2024)) == "ENOSPC"
    assert world.tries(READ, b"a\0") == bytes(2023)
    assert world.tries(READ, b"b\0") == "ENOENT"


def test_more_entries_leave_less_room_for_the_value() -> None:
    world = World()
    assert world.tries(WRITE, b"a\0") == OK
    assert world.tries(SET_PERMS, b"a\0n5\0r0\0r0\0") == OK
    assert world.tries(WRITE, b"a\0" + bytes(2007)) == OK
    assert world.tries(WRITE, b"a\0" + bytes(2008)) == "ENOSPC"


def test_more_entries_than_fit_beside_the_value_are_refused() -> None:
    world = World()
    assert world.tries(WRITE, b"a\0" + bytes(2020)) == OK
    assert world.tries(SET_PERMS, b"a\0n5\0r0\0") == "ENOSPC"
    assert world.tries(GET_PERMS, b"a\0") == b"n5\0"


def test_names_of_children_count_for_their_parent() -> None:
    """The parent's record grows too."""
    world = World(node_size=100)
    for n in range(7):
        assert world.tries(WRITE, b"p/child%04d\0" % n) == OK  # 24 + 7 * 10 = 94
    assert world.tries(WRITE, b"p/child0007\0") == "ENOSPC"
    assert world.tries(WRITE, b"p\000123456") == "ENOSPC"
    assert world.tries(WRITE, b"p\00012345") == OK
    assert world.tries(RM, b"p/child0000\0") == OK
    assert world.tries(WRITE, b"p/c\0") == OK


def test_children_from_several_transactions_fit_into_their_parent_together() -> None:
    """Each does alone; and they do not conflict."""
    world = World(node_size=100)
    assert world.tries(WRITE, b"p/0\0") == OK
    ids = [world.starts() for _ in range(4)]
    for n, tx in enumerate(ids):
        assert world.tries(WRITE, b"p/" + b"%d" % n * 30 + b"\0", tx) == OK
    assert world.tries(WRITE, b"p/0\0changed", ids[3]) == OK
    owned = world.owned
    assert [world.tries(END, b"T\0", tx) for tx in ids] == [OK, OK, "ENOSPC", "ENOSPC"]
    assert world.owned == owned + 2
    assert world.tries(WRITE, b"p\0") == OK


def test_a_parent_that_is_too_large_already_takes_values_below_it_in_a_transaction() -> None:
    world = World()
    for name in (b"/p", b"/p/child"):
        world.does(WRITE, HOME + name + b"\0" + bytes(90))
    assert world.tries(WRITE, b"q\0") == OK
    world.limit("node-size", 50)
    tx = world.starts()
    assert world.tries(WRITE, b"p/child\0", tx) == OK
    assert world.tries(WRITE, b"q/new\0", tx) == OK
    assert world.tries(END, b"T\0", tx) == OK


@pytest.mark.parametrize("made_before", [False, True])
def test_names_of_children_count_for_parents_that_are_made_on_the_way(made_before: bool) -> None:
    world = World()
    if made_before:
        assert world.tries(WRITE, b"a/b\0") == OK
    assert world.tries(WRITE, b"a/b/" + b"x" * 2030 + b"\0") == "ENOSPC"
    assert world.tries(WRITE, b"a/b/" + b"x" * 2022 + b"\0") == OK
    assert world.tries(WRITE, b"a/b\0") == OK


def test_a_node_that_is_too_large_can_be_written_smaller_only_within_the_quota() -> None:
    """Removing it, or what is below it, is always allowed."""
    world = World()
    assert world.tries(WRITE, b"a\0" + bytes(1000)) == OK
    world.limit("node-size", 100)
    assert world.tries(WRITE, b"a\0" + bytes(999)) == "ENOSPC"
    assert world.tries(WRITE, b"a\0") == OK


def test_a_size_refused_inside_a_transaction_dooms_it() -> None:
    """core.c: write_node -> fail_transaction: later requests still work, the commit does not."""
    world = World()
    tx = world.starts()
    assert world.tries(WRITE, b"a\0" + bytes(3000), tx) == "ENOSPC"
    assert world.tries(WRITE, b"b\0", tx) == OK
    assert world.tries(END, b"T\0", tx) == "ENOMEM"
    assert world.tries(READ, b"b\0") == "ENOENT"


def test_a_transaction_that_touches_too_many_nodes_is_doomed() -> None:
    world = World(transaction_nodes=4)
    tx = world.starts()
    for n in range(4):
        assert world.tries(WRITE, b"a\0%d" % n, tx) == OK  # always the same two: the node and its parent
    assert world.tries(WRITE, b"c/d/e\0", tx) == "ENOSPC"
    assert world.tries(END, b"T\0", tx) == "ENOMEM"


def test_how_many_nodes_a_transaction_may_touch_is_looked_up_whenever_it_touches_one() -> None:
    """transaction.c: access_node"""
    world = World(transaction_nodes=3)
    tx = world.starts()
    world.limit("transaction-nodes", 0)
    for n in range(10):
        assert world.tries(WRITE, b"%d\0" % n, tx) == OK
    world.limit("transaction-nodes", 5)
    assert world.tries(WRITE, b"0\0again", tx) == OK
    assert world.tries(READ, b"new\0", tx) == "ENOSPC"
    assert world.tries(END, b"T\0", tx) == "ENOMEM"


def test_an_aborted_transaction_is_over_even_if_it_was_doomed() -> None:
    world = World(transaction_nodes=3)
    tx = world.starts()
    assert world.tries(WRITE, b"c/d/e\0", tx) == "ENOSPC"
    assert world.tries(END, b"F\0", tx) == OK


# ---- whom they bind


def test_nothing_binds_the_toolstack() -> None:
    world = World()
    for name in quotas.QUOTAS:
        world.does(SET_QUOTA, b"0\0%s\0001\0" % name.encode())
    for n in range(20):
        world.does(WATCH, b"/x\0%d\0" % n)
        assert isinstance(answer(world.store, world.toolstack, START, b"\0"), bytes)
    world.does(WRITE, b"/x/" + b"y" * 3000 + b"\0" + bytes(1000))
    world.does(SET_PERMS, b"/x\0" + b"r5\0" * 20)


def test_zero_is_no_limit() -> None:
    world = World(nodes=0, watches=0, transactions=0, node_permissions=0, path_max=0, node_size=0, transaction_nodes=0)
    for n in range(200):
        assert world.tries(WATCH, b"x\0%d\0" % n) == OK
        assert world.starts() == n + 1
    assert world.tries(WRITE, b"a" * 2500 + b"\0" + bytes(1000)) == OK
    assert world.tries(SET_PERMS, HOME + b"\0n5\0" + b"r0\0" * 20) == OK


def test_what_one_may_not_do_is_refused_before_any_quota() -> None:
    """core.c: get_node comes first."""
    world = World(nodes=1)
    assert world.tries(WRITE, b"/tool\0" + bytes(3000)) == "EACCES"
    assert world.tries(WRITE, b"/tool/new\0") == "EACCES"
    assert world.tries(MKDIR, b"/tool/new\0") == "EACCES"


def test_a_global_quota_is_copied_by_domains_that_come_later() -> None:
    world = World()
    world.does(SET_QUOTA, b"watches\0003\0")
    later = world.store.connect(domid=6)
    assert [answer(world.store, later, WATCH, b"x\0%d\0" % n) for n in range(3)] == [OK, OK, "ENOSPC"]
    assert world.tries(WATCH, b"x\0a\0") == OK
    assert answer(world.store, world.toolstack, GET_QUOTA, b"5\0watches\0") == b"128\0"
    assert answer(world.store, world.toolstack, GET_QUOTA, b"6\0watches\0") == b"3\0"


def test_a_lower_quota_takes_nothing_away() -> None:
    world = World()
    assert world.tries(WATCH, b"x\0a\0") == OK
    assert world.tries(WATCH, b"x\0b\0") == OK
    world.limit("watches", 2)
    assert world.tries(WATCH, b"x\0c\0") == "ENOSPC"
    assert world.tries(WRITE, b"x\0") == OK


# ---- State counts for itself


@pytest.fixture
def state() -> tuple[Applier, Connection]:
    """State's side with a guest whose quotas are tight."""
    store = Store()
    store.domains.learn(5, 5).introduced = True
    toolstack, guest = Connection(1, -1, -1, 0, True, True), Connection(2, -1, -1, 5, False, False)
    store.connect(toolstack)
    store.connect(guest)
    effects.write(store, toolstack, 0, HOME, b"")
    effects.set_perms(store, toolstack, 0, HOME, ((0, 5),))
    for name, value in (
        ("nodes", 3),
        ("watches", 2),
        ("transactions", 2),
        ("node-size", 100),
        ("transaction-nodes", 3),
    ):
        effects.set_quota(store, toolstack, 5, name, value)
    return Applier(store, lambda connection: 0), guest


@pytest.mark.parametrize(
    "steps",
    [
        [(effects.WRITE, (0, HOME + b"/a", b"")), (effects.WRITE, (0, HOME + b"/b", b""))],
        [(effects.WRITE, (0, HOME + b"/a", bytes(77)))],
        [(effects.WATCH, (b"/a", b"1", -1, 0)), (effects.WATCH, (b"/a", b"2", -1, 0))],
        [(effects.START, (1,)), (effects.START, (2,))],
        [(effects.START, (1,)), (effects.WRITE, (1, HOME + b"/a/b/c/d", b""))],
    ],
)
def test_a_record_beyond_a_quota_is_not_believed(
    state: tuple[Applier, Connection], steps: list[tuple[int, tuple[object, ...]]]
) -> None:
    applier, guest = state
    tree = applier.store.tree
    for kind, arguments in steps[:-1]:
        generation = tree.generation + (kind == effects.WRITE)
        applier.apply(encode((guest.id, 0, kind, arguments, "", generation, ())))
    kind, arguments = steps[-1]
    owned = tree.owned.copy()
    for generation in (tree.generation, tree.generation + 1, tree.generation + 2):
        with pytest.raises(BadRecord):
            applier.apply(encode((guest.id, 0, kind, arguments, "", generation, ())))
    assert (tree.owned, len(guest.watches), len(guest.transactions)) == (
        owned,
        sum(k == effects.WATCH for k, _ in steps[:-1]),
        sum(k == effects.START for k, _ in steps[:-1]),
    )


def test_the_most_that_was_used_is_noted_when_it_is(tmp_path: Path) -> None:
    """Nobody need ask at that time, and State notes the same: a checkpoint has it."""
    world = World()
    for n in range(7):
        assert world.tries(MKDIR, b"n%d\0" % n) == OK
        assert world.tries(WATCH, b"n%d\0t\0" % n) == OK
    for n in range(7):
        assert world.tries(RM, b"n%d\0" % n) == OK
        assert world.tries(UNWATCH, b"n%d\0t\0" % n) == OK
    checkpoint.write(str(tmp_path / "kept"), world.store.store, 0, {})
    for store in (world.store.store, checkpoint.read(str(tmp_path / "kept"))[0]):
        domain = store.domains.known.find(5)
        for peaks in (domain.peaks, store.domains.peaks):
            assert (peaks["nodes"], peaks["watches"]) == (8, 7)
    assert b"watches          :        0 (max        7)\n" in answer(world.store, world.toolstack, 0, b"quota\x005\0")
    assert b"watches          :        7\n" in answer(world.store, world.toolstack, 0, b"quota\0max\0")
    assert b"watches          :        0\n" in answer(world.store, world.toolstack, 0, b"quota\0max\0-r\0")
