"""Xen's security advisories about xenstored: who may do what, who learns what, who inherits what.

One test or more for each advisory, named after it; https://xenbits.xen.org/xsa/advisory-N.html is its text.  After each, the
daemon's processes are the same as before and domain 0 can still read /.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conformance.conftest import UnderTest
from tests.conformance.test_guest_basics import (
    MakeGuest,
    account,
    differs,
    eventually,
    give_home,
    home_of,
    introduce,
    is_introduced,
    newborn,
    nodes_owned,
    unharmed,
)
from tests.conformance.wire import PATIENCE, Client, Event, Op, pack, strings
from tests.conformance.xen import SimulatedXen


@pytest.fixture(autouse=True)
def harmless(daemon: UnderTest) -> Iterator[None]:
    with unharmed(daemon):
        yield


# ---- XSA-115: names of all changes could be learned by watching


def test_xsa_115_a_watch_tells_nothing_of_what_may_not_be_read(guest: MakeGuest, client: Client, node: str) -> None:
    one, two = guest(), guest()
    for path in ("/", node, f"{node}/secret", home_of(two), "/local/domain"):
        one.watch(path, "t")
    client.write(f"{node}/secret", b"v")
    client.write(f"{node}/secret/deeper", b"v")
    client.set_perms(f"{node}/secret", "n0", f"r{two.domid}")
    two.write("x", b"v")
    client.rm(f"{node}/secret")
    assert one.events_so_far() == []


def test_xsa_115_a_right_gained_or_lost_is_told(guest: MakeGuest, client: Client, node: str) -> None:
    one = guest()
    one.watch("/", "t")
    client.write(f"{node}/x", b"v")
    client.set_perms(f"{node}/x", "n0", f"r{one.domid}")
    client.write(f"{node}/x", b"w")
    client.set_perms(f"{node}/x", "n0")
    client.write(f"{node}/x", b"v")
    events = one.events_so_far()
    assert events == [Event(f"{node}/x".encode(), b"t")] * len(events)
    assert 1 <= len(events) <= 3
    assert one.outcome(Op.READ, strings(f"{node}/x")) == "EACCES"


def test_xsa_115_introductions_are_not_for_guests(guest: MakeGuest) -> None:
    one = guest()
    one.watch("@introduceDomain", "t")
    other = guest()
    assert one.events_so_far() == []
    assert one.outcome(Op.IS_DOMAIN_INTRODUCED, strings(other.domid)) == "EACCES"


def test_xsa_115_watches_ignore_transactions(guest: MakeGuest) -> None:
    one = guest()
    assert one.outcome(Op.WATCH, strings("a", "t"), tx=0xDEAD) == b"OK\0"
    assert one.outcome(Op.UNWATCH, strings("a", "t"), tx=0xDEAD) == b"OK\0"


# ---- XSA-206: a guest that writes all the time made every transaction fail


def test_xsa_206_a_guest_that_writes_all_the_time_does_not_stop_transactions(
    guest: MakeGuest, client: Client, node: str
) -> None:
    one = guest()
    client.set_perms(node, "n0", f"b{one.domid}")
    client.write(node, b"0")
    unsent = b""
    begin, tries = time.monotonic(), 0
    for _ in range(10):
        while True:
            tries += 1
            tx = client.start()
            value = client.read(node, tx=tx)
            unsent = unsent or b"".join(pack(Op.WRITE, strings(node) + b"%d-%d" % (tries, i)) for i in range(10))
            unsent = unsent[one.put_bytes(unsent, timeout=0) :]
            with suppress(TimeoutError):
                one.receive_raw(0)
            client.write(node, value + b".", tx=tx)
            if client.commit(tx) == "OK":
                break
            assert time.monotonic() - begin < 2 * PATIENCE, f"no commit in {tries} tries"
    print(f"{tries} tries for 10 commits")
    assert one.field("req_cons") > 0, "the guest was served, too"


# ---- XSA-322: a domain inherited the rights of an earlier one with its number


@pytest.mark.parametrize("how", ["death", "RELEASE"])
def test_xsa_322_a_domid_used_again_brings_no_rights(
    client: Client, other: Client, xen: SimulatedXen, node: str, how: str
) -> None:
    with newborn(xen, client) as one:
        introduce(client, one)
        client.write(f"{node}/acl", b"v")
        client.set_perms(f"{node}/acl", "n0", f"b{one.domid}")
        client.write(f"{node}/own", b"v")
        client.set_perms(f"{node}/own", f"n{one.domid}")
        client.set_perms("@introduceDomain", "n0", f"r{one.domid}")
        try:
            if how == "RELEASE":
                client.call(Op.RELEASE, strings(one.domid))
            xen.destroy(one.domid)
            eventually(lambda: not is_introduced(other, one.domid), "the end is noticed")
            one.close()
            with newborn(xen, client, domid=one.domid) as again:
                introduce(client, again)
                for path in (f"{node}/acl", f"{node}/own"):
                    assert again.outcome(Op.READ, strings(path)) == "EACCES"
                    assert again.outcome(Op.WRITE, strings(path)) == "EACCES"
                again.watch("@introduceDomain", "t")
                with newborn(xen, client) as third:
                    introduce(client, third)
                    assert again.events_so_far() == []
        finally:
            client.set_perms("@introduceDomain", "n0")


# ---- XSA-323: a long relative path could not be removed by its absolute name


def test_xsa_323_the_longest_relative_path_can_be_handled_by_its_absolute_name(
    guest: MakeGuest, client: Client
) -> None:
    one = guest()
    names = ["x" * 100] * 20 + ["y" * 27]
    path = "/".join(names)
    assert len(path) == 2047
    one.write(path, b"v")
    absolute = f"{home_of(one)}/{path}"
    assert client.read(absolute) == b"v"
    assert client.directory(absolute.rpartition("/")[0]) == [names[-1].encode()]
    assert client.get_perms(absolute) == [f"n{one.domid}".encode()]
    client.rm(absolute)
    assert not client.exists(absolute)
    client.rm(f"{home_of(one)}/{names[0]}")


# ---- XSA-352: a guest could give its nodes to others, and with them its quota


def test_xsa_352_a_guest_cannot_give_its_nodes_away(guest: MakeGuest, client: Client) -> None:
    one, two = guest(), guest()
    one.write("x/y", b"v")
    for owner in (two.domid, 0):
        assert one.outcome(Op.SET_PERMS, strings("x", f"n{owner}")) == "EPERM"
    assert [account(client, each.domid, "nodes").used for each in (one, two)] == [3, 1]
    client.set_perms(f"{home_of(one)}/x", f"n{two.domid}")
    assert [account(client, each.domid, "nodes").used for each in (one, two)] == [2, 2]
    assert nodes_owned(client, two.domid, home_of(one)) == 1


# ---- XSA-353: the root was open to all


@pytest.mark.parametrize("tx", [False, True], ids=["outside", "in a transaction"])
@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (Op.SET_PERMS, b"n%d\0"),
        (Op.RM, b""),
        (Op.WRITE, b"v"),
        (Op.GET_PERMS, b""),
        (Op.DIRECTORY, b""),
        (Op.DIRECTORY_PART, b"0\0"),
        (Op.READ, b""),
        (Op.MKDIR, b""),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else "",
)
def test_xsa_353_the_root_is_not_for_guests(guest: MakeGuest, client: Client, op: Op, rest: bytes, tx: bool) -> None:
    one = guest()
    before = client.get_perms("/"), client.directory("/")
    payload = strings("/") + (rest % one.domid if b"%" in rest else rest)
    assert one.outcome(op, payload, tx=one.start() if tx else 0) == "EACCES"
    assert (client.get_perms("/"), client.directory("/")) == before


# ---- XSA-417: a new domain had access where a permission had named its number too early


def test_xsa_417_a_permission_for_a_domain_that_is_not_there_never_holds(
    client: Client, xen: SimulatedXen, node: str
) -> None:
    with newborn(xen, client) as early:
        xen.destroy(early.domid)
        client.write(node, b"v")
        client.set_perms(node, "n0", f"b{early.domid}")
        early.close()
        for _ in range(2):  # there, gone, and there again, before it has a node
            with newborn(xen, client, domid=early.domid) as late:
                introduce(client, late)
                assert late.outcome(Op.READ, strings(node)) == "EACCES"
                assert late.outcome(Op.WRITE, strings(node)) == "EACCES"
        with newborn(xen, client, domid=early.domid) as late:
            give_home(client, late)
            introduce(client, late)
            assert late.outcome(Op.READ, strings(node)) == "EACCES"


# ---- XSA-419: a dead guest's nodes went to domain 0, which has no quota


@pytest.mark.parametrize("how", ["death", "RELEASE"])
def test_xsa_419_a_guests_nodes_in_anothers_tree_end_with_it(
    guest: MakeGuest, client: Client, xen: SimulatedXen, how: str
) -> None:
    host = guest()
    host.write("box", b"v")
    host.write("own", b"v")
    for _ in range(5):
        with newborn(xen, client) as one:
            introduce(client, one)
            host.set_perms("box", f"n{host.domid}", f"b{one.domid}")
            for i in range(10):
                one.write(f"{home_of(host)}/box/{i}/deep", b"v")
            if how == "RELEASE":
                client.call(Op.RELEASE, strings(one.domid))
            else:
                xen.destroy(one.domid)
                eventually(lambda one=one: not is_introduced(client, one.domid), "its end is noticed")  # type: ignore[misc]
            assert host.directory("box") == []
    assert host.directory(home_of(host)) == [b"box", b"own"]
    assert account(client, host.domid, "nodes").used == nodes_owned(client, host.domid, home_of(host)) == 3


@differs("a permission list may still name the dead domain")
def test_xsa_419_nothing_names_a_dead_domain(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    host = guest()
    host.write("box", b"v")
    with newborn(xen, client) as one:
        introduce(client, one)
        host.set_perms("box", f"n{host.domid}", f"b{one.domid}")
        client.call(Op.RELEASE, strings(one.domid))
        assert host.get_perms("box") == [f"n{host.domid}".encode()]
        assert nodes_owned(client, one.domid) == 0
