"""Edge cases of permissions as guests meet them: who may do what, what is hidden, who owns what is made.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 12, 13, 21, 26-29, 66-72, 75-78, 80, 82-88.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conformance.test_guest_basics import MakeGuest, differs, give_home, home_of, introduce, newborn, set_quota
from tests.conformance.wire import Client, Op, strings
from tests.conformance.xen import Guest, SimulatedXen

ANY = 32757
"""The domid that stands for any domain in a permission list."""


@dataclass(frozen=True)
class Pair:
    """Two guests, and the permission lists written with `1` and `2` for their domids."""

    one: Guest
    two: Guest

    def perms(self, text: str) -> list[str]:
        number = {"1": self.one.domid, "2": self.two.domid}
        return [word[0] + str(number.get(word[1:], word[1:])) for word in text.split()]


@pytest.fixture
def pair(guest: MakeGuest) -> Pair:
    return Pair(guest(), guest())


def shared(client: Client, path: str, *perms: str) -> str:
    """A node that domain 0 makes, with these permissions."""
    client.write(path, b"v")
    client.set_perms(path, *perms)
    return path


# ---- the rule: the owner may all; else the first entry that names the domain counts; else the first letter does


@pytest.mark.parametrize(
    ("acl", "rights"),
    [
        ("n0", "-"),
        ("r0", "r"),
        ("w0", "w"),
        ("b0", "rw"),
        ("n0 r1", "r"),
        ("n0 w1", "w"),
        ("n0 b1", "rw"),
        ("b0 n1", "-"),
        ("r0 w1", "w"),
        ("w0 r1", "r"),
        ("n1", "rw"),
        ("r1", "rw"),
        ("n0 n1 b1", "-"),
        ("n0 b1 n1", "rw"),
        ("n0 r1 w1", "r"),
        ("r0 n1", "-"),
        ("n2", "-"),
        ("r2", "r"),
        ("n0 b2", "-"),
        ("n2 b1", "rw"),
        ("b2 n1", "-"),
        ("n1 n1", "rw"),
    ],
)
def test_what_a_permission_list_grants(pair: Pair, client: Client, node: str, acl: str, rights: str) -> None:
    """core.c:perm_for_conn"""
    path = shared(client, f"{node}/x", *pair.perms(acl))
    outcomes = {
        "r": [pair.one.outcome(op, strings(path)) for op in (Op.READ, Op.DIRECTORY, Op.GET_PERMS)]
        + [pair.one.outcome(Op.DIRECTORY_PART, strings(path, 0))],
        "w": [pair.one.outcome(op, strings(path)) for op in (Op.WRITE, Op.MKDIR, Op.RM)],
    }
    for right, results in outcomes.items():
        if right in rights:
            assert all(isinstance(result, bytes) for result in results), results
        else:
            assert results == ["EACCES"] * len(results)


def test_making_a_node_takes_the_right_to_write_the_nearest_ancestor(pair: Pair, client: Client, node: str) -> None:
    """core.c:create_node"""
    writable, readable = (shared(client, f"{node}/{right}", "n0", f"{right}{pair.one.domid}") for right in "wr")
    for op in (Op.WRITE, Op.MKDIR):
        assert pair.one.outcome(op, strings(f"{writable}/{op}/b/c")) == b"OK\0"
        assert pair.one.outcome(op, strings(f"{readable}/{op}/b/c")) == "EACCES"
        assert pair.two.outcome(op, strings(f"{writable}/{op}/b/d")) == "EACCES"


def test_mkdir_on_an_existing_node_takes_the_right_to_write_it(pair: Pair, client: Client, node: str) -> None:
    """core.c:do_mkdir"""
    path = shared(client, f"{node}/x", "n0", f"r{pair.one.domid}")
    assert pair.one.outcome(Op.MKDIR, strings(path)) == "EACCES"


def test_a_node_that_may_be_written_only_can_be_removed(pair: Pair, client: Client, node: str) -> None:
    """core.c:do_rm"""
    path = shared(client, f"{node}/x", "n0", f"w{pair.one.domid}")
    assert pair.one.outcome(Op.RM, strings(path)) == b"OK\0"
    assert client.directory(node) == []


def test_removing_a_subtree_asks_at_its_top_only(pair: Pair, client: Client, node: str) -> None:
    """core.c:rm_node"""
    client.write(f"{node}/x/private/deep", b"v")
    shared(client, f"{node}/x/private", "n0")
    path = shared(client, f"{node}/x", "n0", f"w{pair.one.domid}")
    assert pair.one.outcome(Op.RM, strings(f"{path}/private")) == "EACCES"
    assert pair.one.outcome(Op.RM, strings(path)) == b"OK\0"
    assert client.directory(node) == []


# ---- hiding: nobody learns whether a node exists where it may not look


def test_a_node_that_may_not_be_read_is_eacces(pair: Pair, client: Client, node: str) -> None:
    """core.c:get_node_chk_perm"""
    shared(client, f"{node}/x", "n0")
    assert pair.one.outcome(Op.READ, strings(f"{node}/x")) == "EACCES"


@pytest.mark.parametrize("op", [Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.RM])
def test_a_missing_node_below_what_a_guest_may_not_touch_is_eacces(pair: Pair, op: Op) -> None:
    """core.c:errno_from_parents"""
    assert pair.one.outcome(op, strings("/missing")) == "EACCES"
    assert pair.one.outcome(op, strings("/missing/deeper")) == "EACCES"
    assert pair.one.outcome(op, strings(f"{home_of(pair.two)}/missing")) == "EACCES"


def test_a_missing_node_in_a_guests_own_tree_is_enoent(pair: Pair) -> None:
    """core.c:errno_from_parents"""
    for op in (Op.READ, Op.DIRECTORY, Op.GET_PERMS):
        assert pair.one.outcome(op, strings("missing")) == "ENOENT"
        assert pair.one.outcome(op, strings("missing/deeper")) == "ENOENT"
    assert pair.one.outcome(Op.SET_PERMS, strings("missing", f"n{pair.one.domid}")) == "ENOENT"
    assert pair.one.outcome(Op.RM, strings("missing")) == b"OK\0"
    assert pair.one.outcome(Op.RM, strings("missing/deeper")) == "ENOENT"


@pytest.mark.parametrize(("right", "expected"), [("r", "ENOENT"), ("w", "EACCES"), ("b", "ENOENT"), ("n", "EACCES")])
def test_reading_a_missing_child_tells_only_those_who_may_read_the_parent(
    pair: Pair, client: Client, node: str, right: str, expected: str
) -> None:
    """core.c:errno_from_parents"""
    path = shared(client, f"{node}/x", "n0", f"{right}{pair.one.domid}")
    assert pair.one.outcome(Op.READ, strings(f"{path}/missing")) == expected


@pytest.mark.parametrize(
    ("right", "child", "grandchild"), [("w", b"OK\0", "ENOENT"), ("b", b"OK\0", "ENOENT"), ("r", "EACCES", "EACCES")]
)
def test_removing_a_missing_node_tells_only_those_who_may_write_above(
    pair: Pair, client: Client, node: str, right: str, child: bytes | str, grandchild: str
) -> None:
    """core.c:do_rm, errno_from_parents"""
    path = shared(client, f"{node}/x", "n0", f"{right}{pair.one.domid}")
    assert pair.one.outcome(Op.RM, strings(f"{path}/missing")) == child
    assert pair.one.outcome(Op.RM, strings(f"{path}/missing/deeper")) == grandchild


def test_setting_permissions_of_a_missing_node_is_eacces_outside_ones_own_tree(pair: Pair, client: Client) -> None:
    """core.c:get_node"""
    assert pair.one.outcome(Op.SET_PERMS, strings("/nonex", f"n{pair.one.domid}")) == "EACCES"
    assert client.outcome(Op.SET_PERMS, strings("/nonex", "n0")) == "ENOENT"


@differs("knows no GET_PERMS of special nodes (EINVAL)")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("@introduceDomain", "EACCES"),
        ("@introduceDomain/1", "EACCES"),
        ("@foo", "EACCES"),
        ("@releaseDomain/1", "ENOENT"),  # all may read what is above it
    ],
)
def test_special_nodes_are_hidden_as_others_are(pair: Pair, path: str, expected: str) -> None:
    """core.c:get_node_chk_perm, do_get_perms"""
    assert pair.one.outcome(Op.GET_PERMS, strings(path)) == expected


@differs("EAGAIN")
@pytest.mark.parametrize("path", ["@introduceDomain", "@releaseDomain", "@foo"])
def test_permissions_of_special_nodes_are_not_for_guests_to_set(pair: Pair, path: str) -> None:
    """core.c:do_set_perms"""
    assert pair.one.outcome(Op.SET_PERMS, strings(path, f"n{pair.one.domid}")) == "EACCES"


# ---- setting permissions


def test_an_owner_cannot_give_its_node_away(pair: Pair) -> None:
    """core.c:do_set_perms; XSA-352"""
    pair.one.write("x", b"v")
    for owner in (pair.two.domid, 0):
        assert pair.one.outcome(Op.SET_PERMS, strings("x", f"n{owner}")) == "EPERM"
        assert pair.one.outcome(Op.SET_PERMS, strings("x", f"r{owner}", f"b{pair.one.domid}")) == "EPERM"
    assert pair.one.get_perms("x") == [f"n{pair.one.domid}".encode()]


@pytest.mark.parametrize("acl", ["n0 b1", "n0 w1", "n0 r1", "b0", "n2 b1", "n0"])
def test_only_the_owner_sets_permissions(pair: Pair, client: Client, node: str, acl: str) -> None:
    """core.c:do_set_perms"""
    path = shared(client, f"{node}/x", *pair.perms(acl))
    assert pair.one.outcome(Op.SET_PERMS, strings(path, *pair.perms(acl))) == "EACCES"
    assert pair.one.outcome(Op.SET_PERMS, strings(path, f"n{pair.one.domid}")) == "EACCES"


def test_domain_0_gives_nodes_to_anyone(pair: Pair, client: Client, node: str) -> None:
    """core.c:do_set_perms"""
    path = shared(client, f"{node}/x", f"n{pair.one.domid}")
    assert pair.one.read(path) == b"v"
    client.set_perms(path, f"n{pair.two.domid}")
    assert pair.one.outcome(Op.READ, strings(path)) == "EACCES"
    assert pair.two.read(path) == b"v"


def test_a_permissions_number_is_read_in_any_base(pair: Pair) -> None:
    """xenstore-common.h:xenstore_strings_to_perms"""
    pair.one.write("x", b"v")
    pair.one.set_perms("x", f"n0x{pair.one.domid:x}", f"r0{pair.two.domid:o}")
    assert pair.one.get_perms("x") == [f"n{pair.one.domid}".encode(), f"r{pair.two.domid}".encode()]


@pytest.mark.parametrize("entry", ["r-1", "r70000"])
def test_a_permission_may_name_a_number_that_is_no_domid(pair: Pair, entry: str) -> None:
    """xenstore-common.h:xenstore_strings_to_perms"""
    pair.one.write("x", b"v")
    pair.one.set_perms("x", f"n{pair.one.domid}", entry)
    assert pair.one.get_perms("x") == [f"n{pair.one.domid}".encode(), entry.encode()]


def test_a_guests_unterminated_last_permission_is_dropped(pair: Pair) -> None:
    """utils: xenstore_count_strings"""
    pair.one.write("x", b"v")
    assert pair.one.outcome(Op.SET_PERMS, strings("x", f"n{pair.one.domid}") + b"r0") == b"OK\0"
    assert pair.one.get_perms("x") == [f"n{pair.one.domid}".encode()]


@differs("allows five entries")
def test_a_guests_permission_list_has_four_entries_at_most(pair: Pair, client: Client) -> None:
    """domain.c:domain_max_chk"""
    pair.one.write("x", b"v")
    four = [f"n{pair.one.domid}", "r1", "r2", "r3"]
    pair.one.set_perms("x", *four)
    assert pair.one.outcome(Op.SET_PERMS, strings("x", *four, "r4")) == "ENOSPC"
    assert pair.one.get_perms("x") == [entry.encode() for entry in four]
    client.set_perms(f"{home_of(pair.one)}/x", *four, "r4")


@differs("has no quotas of single domains")
def test_the_number_of_permissions_is_a_quota(pair: Pair, client: Client) -> None:
    """domain.c:domain_max_chk"""
    pair.one.write("x", b"v")
    set_quota(client, pair.one, "node-permissions", 3)
    perms = [f"n{pair.one.domid}", "r1", "r2"]
    assert pair.one.outcome(Op.SET_PERMS, strings("x", *perms)) == "ENOSPC"
    pair.one.set_perms("x", *perms[:2])
    set_quota(client, pair.one, "node-permissions", 0)
    pair.one.set_perms("x", *perms, "r3", "r4", "r5", "r6")


def test_a_right_given_to_a_domain_that_is_not_there_is_shown_and_never_holds(
    pair: Pair, client: Client, xen: SimulatedXen
) -> None:
    """domain.c:domain_alloc_permrefs; XSA-417"""
    with newborn(xen, client) as late:
        xen.destroy(late.domid)
        pair.one.write("x", b"v")
        perms = [f"n{pair.one.domid}", f"r{late.domid}"]
        pair.one.set_perms("x", *perms)
        assert pair.one.get_perms("x") == [entry.encode() for entry in perms]
        late.close()
        with newborn(xen, client, domid=late.domid) as again:
            introduce(client, again)
            assert again.outcome(Op.READ, strings(f"{home_of(pair.one)}/x")) == "EACCES"
            assert pair.one.get_perms("x") == [entry.encode() for entry in perms]
            pair.one.set_perms("x", *perms)
            assert again.read(f"{home_of(pair.one)}/x") == b"v", "given anew, now that it is there"


def test_a_right_given_to_a_domain_before_its_introduction_holds_after_it(
    client: Client, xen: SimulatedXen, node: str
) -> None:
    """domain.c:domain_alloc_permrefs"""
    with newborn(xen, client) as early:
        shared(client, f"{node}/x", "n0", f"r{early.domid}")
        give_home(client, early)
        introduce(client, early)
        assert early.read(f"{node}/x") == b"v"
        early.write("mine", b"v")


# ---- any domain

KNOWS_ANY = differs("does not know any domain")


@KNOWS_ANY
def test_domain_0s_ring_grants_rights_to_any_domain(pair: Pair, dom0_ring: Guest, client: Client, node: str) -> None:
    """core.c:perm_allows_conn"""
    client.write(f"{node}/x", b"v")
    dom0_ring.set_perms(f"{node}/x", "n0", f"r{ANY}")
    assert client.get_perms(f"{node}/x") == [b"n0", f"r{ANY}".encode()]
    assert pair.one.read(f"{node}/x") == pair.two.read(f"{node}/x") == b"v"
    assert pair.one.outcome(Op.WRITE, strings(f"{node}/x")) == "EACCES"


@pytest.mark.parametrize(
    ("acl", "rights"),
    [
        pytest.param(f"n1 r{ANY}", "r", marks=KNOWS_ANY),
        pytest.param(f"n1 w{ANY}", "w", marks=KNOWS_ANY),
        pytest.param(f"n1 b{ANY}", "rw", marks=KNOWS_ANY),
        (f"n1 n2 b{ANY}", "-"),
        pytest.param(f"n1 b{ANY} n2", "rw", marks=KNOWS_ANY),
        pytest.param(f"n1 w{ANY} r2", "w", marks=KNOWS_ANY),
        pytest.param(f"b1 n{ANY}", "-", marks=KNOWS_ANY),
    ],
)
def test_any_domain_is_an_entry_like_others(pair: Pair, acl: str, rights: str) -> None:
    """core.c:perm_allows_conn: the first entry that fits counts"""
    pair.one.write("x", b"v")
    pair.one.set_perms("x", *pair.perms(acl))
    path = f"{home_of(pair.one)}/x"
    assert pair.two.outcome(Op.READ, strings(path)) == (b"v" if "r" in rights else "EACCES")
    assert pair.two.outcome(Op.WRITE, strings(path)) == (b"OK\0" if "w" in rights else "EACCES")


@differs("has no features")
def test_a_domain_without_that_feature_grants_nothing_to_any_domain(
    pair: Pair, client: Client, xen: SimulatedXen
) -> None:
    """domain.c:domain_alloc_permrefs"""
    with newborn(xen, client) as plain:
        client.call(Op.SET_FEATURE, strings(plain.domid, 7))
        give_home(client, plain)
        introduce(client, plain)
        plain.write("x", b"v")
        plain.set_perms("x", f"n{plain.domid}", f"r{ANY}")
        assert plain.get_perms("x") == [f"n{plain.domid}".encode(), f"r{ANY}".encode()]
        assert pair.one.outcome(Op.READ, strings(f"{home_of(plain)}/x")) == "EACCES"


@differs("ENOENT, and any domain is none to it")
def test_any_domain_is_no_owner_that_a_guest_may_name(pair: Pair) -> None:
    """core.c:do_set_perms"""
    pair.one.write("x", b"v")
    assert pair.one.outcome(Op.SET_PERMS, strings("x", f"n{ANY}")) == "EPERM"


# ---- who owns what is made


def test_a_guest_owns_what_it_makes_and_the_rest_of_the_list_is_the_parents(
    pair: Pair, client: Client, node: str
) -> None:
    """core.c:construct_node"""
    path = shared(client, f"{node}/x", *pair.perms("r0 w1 b2"))
    pair.one.write(f"{path}/a/b", b"v")
    expected = [entry.encode() for entry in pair.perms("r1 w1 b2")]
    assert client.get_perms(f"{path}/a") == client.get_perms(f"{path}/a/b") == expected


def test_what_domain_0_makes_below_a_guests_node_is_the_guests(pair: Pair, client: Client) -> None:
    """core.c:construct_node"""
    client.write(f"{home_of(pair.one)}/a/b", b"v")
    for path in ("a", "a/b"):
        assert pair.one.get_perms(path) == [f"n{pair.one.domid}".encode()]
    pair.one.write("a/b", b"mine")


def test_what_a_guest_makes_below_its_targets_node_is_its_own(pair: Pair, client: Client) -> None:
    """core.c:construct_node"""
    assert client.call(Op.SET_TARGET, strings(pair.one.domid, pair.two.domid)) == b"OK\0"
    pair.one.write(f"{home_of(pair.two)}/x", b"v")
    assert pair.one.get_perms(f"{home_of(pair.two)}/x") == [f"n{pair.one.domid}".encode()]
    assert pair.two.outcome(Op.READ, strings("x")) == "EACCES", "it is not the target's"


def test_a_right_refused_in_a_transaction_does_not_spoil_it(pair: Pair) -> None:
    """transaction.c"""
    tx = pair.one.start()
    assert pair.one.outcome(Op.WRITE, strings("/no/x"), tx=tx) == "EACCES"
    assert pair.one.outcome(Op.READ, strings("/no"), tx=tx) == "EACCES"
    pair.one.write("a", b"v", tx=tx)
    assert pair.one.outcome(Op.SET_PERMS, strings("a", "n0"), tx=tx) == "EPERM"
    assert pair.one.commit(tx) == "OK"
    assert pair.one.read("a") == b"v"
