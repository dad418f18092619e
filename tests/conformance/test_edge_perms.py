"""Edge cases of permission lists, as far as sockets can see them.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Domains that are named here do not exist.
Cases of the edge-case table covered here: 73, 74, 75-77 (over a socket), 79, 80, 81, 83, 155 (without its guest).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.wire import Client, Event, Op, strings

ANY_DOMAIN = "32757"


@pytest.fixture
def owned(client: Client, node: str) -> str:
    """A node with a permission list that a failing request must leave alone."""
    client.set_perms(node, "n0", "r5")
    return node


@pytest.mark.parametrize(
    "perms",
    [b"", b"n0", b"x0\0", b"n\0", b"n0\0r\0", b"N0\0", b" n0\0", b"n0 \0", b"nn0\0", b"n0\0r7x\0", b"\0", b"n0\0\0"],
)
def test_a_malformed_permission_list_is_einval_and_changes_nothing(client: Client, owned: str, perms: bytes) -> None:
    """core.c:do_set_perms, xenstore-common.h:xenstore_strings_to_perms"""
    assert client.outcome(Op.SET_PERMS, strings(owned) + perms) == "EINVAL"
    assert client.get_perms(owned) == [b"n0", b"r5"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("r0x10", b"r16"),
        ("r010", b"r8"),
        ("r+7", b"r7"),
        ("r-1", b"r-1"),
        ("r70000", b"r70000"),
        ("b65536", b"b65536"),
        ("w0", b"w0"),
        ("n6", b"n6"),
    ],
)
def test_the_number_of_a_permission_is_read_as_strtol_does(
    client: Client, node: str, written: str, read: bytes
) -> None:
    """xenstore-common.h:xenstore_strings_to_perms"""
    client.set_perms(node, "n0", written)
    assert client.get_perms(node) == [b"n0", read]


def test_an_unterminated_last_permission_is_dropped(client: Client, node: str) -> None:
    """utils: xenstore_count_strings"""
    assert client.outcome(Op.SET_PERMS, strings(node, "n0") + b"r5") == b"OK\0"
    assert client.get_perms(node) == [b"n0"]


@pytest.mark.parametrize("owner", ["n9", "n-1", "n70000"])
def test_an_owner_that_does_not_exist_is_enoent(client: Client, owned: str, owner: str) -> None:
    """domain.c:domain_alloc_permrefs"""
    assert client.outcome(Op.SET_PERMS, strings(owned, owner)) == "ENOENT"
    assert client.get_perms(owned) == [b"n0", b"r5"]


def test_a_right_for_a_domain_that_does_not_exist_is_kept_and_shown(client: Client, node: str) -> None:
    """domain.c:domain_alloc_permrefs"""
    client.set_perms(node, "n0", "r9")
    assert client.get_perms(node) == [b"n0", b"r9"]


def test_a_right_for_any_domain_can_be_given_over_a_socket(client: Client, other: Client, node: str) -> None:
    """domain.c:domain_alloc_permrefs, which crashes C xenstored here: a fault, not a rule"""
    client.set_perms(node, "n0", f"r{ANY_DOMAIN}")
    assert client.get_perms(node) == other.get_perms(node) == [b"n0", f"r{ANY_DOMAIN}".encode()]


def test_a_permission_list_from_a_socket_may_be_long(client: Client, node: str) -> None:
    """domain.c:domain_max_chk: no quota for privileged connections"""
    perms = ["n0", *(f"r{domid}" for domid in range(1, 100))]
    client.set_perms(node, *perms)
    assert client.get_perms(node) == [perm.encode() for perm in perms]


def test_permissions_of_a_missing_node_are_enoent(client: Client, node: str) -> None:
    """core.c:get_node"""
    assert client.outcome(Op.SET_PERMS, strings(f"{node}/missing", "n0")) == "ENOENT"
    assert client.outcome(Op.GET_PERMS, strings(f"{node}/missing")) == "ENOENT"


def test_a_new_node_has_its_nearest_ancestors_permissions(client: Client, node: str) -> None:
    """core.c:construct_node"""
    client.set_perms(node, "r0", "b5", "n6")
    client.write(f"{node}/a/b", b"v")
    assert client.get_perms(f"{node}/a") == client.get_perms(f"{node}/a/b") == [b"r0", b"b5", b"n6"]
    client.set_perms(node, "n0")
    assert client.get_perms(f"{node}/a") == [b"r0", b"b5", b"n6"], "changing the parent later changes nothing"


def test_setting_permissions_causes_one_event(client: Client, node: str) -> None:
    """core.c:do_set_perms"""
    client.write(f"{node}/a/b", b"v")
    client.watch(node, "w")
    client.set_perms(f"{node}/a", "r0")
    assert client.events_so_far() == [Event(f"{node}/a".encode(), b"w")]


@pytest.fixture
def introductions(client: Client) -> Iterator[str]:
    """The special node, with its permissions put back afterwards."""
    before = client.get_perms("@introduceDomain")
    yield "@introduceDomain"
    client.set_perms("@introduceDomain", *(perm.decode() for perm in before))


def test_permissions_of_a_special_node_can_be_set_and_its_watchers_hear_of_it(
    client: Client, other: Client, introductions: str
) -> None:
    """core.c:do_set_perms"""
    other.watch(introductions, "w")
    client.set_perms(introductions, "n0", "r1")
    assert client.get_perms(introductions) == [b"n0", b"r1"]
    assert other.events_so_far() == [Event(b"@introduceDomain", b"w")]


@pytest.mark.parametrize("path", ["@foo", "@releaseDomain/1"])
def test_permissions_of_an_unknown_special_node_are_enoent(client: Client, path: str) -> None:
    """core.c:do_set_perms"""
    assert client.outcome(Op.SET_PERMS, strings(path, "n0")) == "ENOENT"
