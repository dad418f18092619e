"""Domains that take the number of earlier ones, special watches in all their forms, and how refusals are reported.

A domain is more than its number: the hypervisor gives each a unique id, and what was one domain's never becomes another's.
The daemon reports what quotas refuse: the domain's line of CONTROL `quota` counts it, and the log names the first time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.conftest import CHOICE, UnderTest
from tests.conformance.test_guest_basics import (
    MakeGuest,
    account,
    eventually,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    known_process,
    many_turns,
    newborn,
    next_events,
    nodes_owned,
    not_for_c,
    set_quota,
)
from tests.conformance.wire import Client, Event, Op, strings
from tests.conformance.xen import Guest, SimulatedXen

INTRODUCED, RELEASED = "@introduceDomain", "@releaseDomain"

# ---- a number used again


@contextmanager
def replaced(xen: SimulatedXen, client: Client, old: Guest, *, quietly: bool) -> Iterator[Guest]:
    """Another domain with the old one's number; `quietly` without an interrupt between end and beginning."""
    xen.destroy(old.domid, quietly=quietly)
    if not quietly:
        eventually(lambda: not is_introduced(client, old.domid), "the end is noticed")
    old.close()
    with newborn(xen, client, domid=old.domid) as new:
        xen.virq()
        yield new


NOT_BY_UNIQUE_ID = "knows no unique ids: a domain that ends and comes again between two interrupts is the same to it"
both_ways = pytest.mark.parametrize(
    "quietly",
    [
        pytest.param(False, id="end noticed"),
        pytest.param(True, id="end unnoticed", marks=not_for_c(NOT_BY_UNIQUE_ID)),
    ],
)


@pytest.fixture
def first(xen: SimulatedXen, client: Client) -> Iterator[Guest]:
    """The first of two domains with one number, introduced."""
    with newborn(xen, client) as one:
        give_home(client, one)
        introduce(client, one)
        yield one


@both_ways
def test_the_next_domain_of_a_number_is_not_introduced(
    first: Guest, client: Client, xen: SimulatedXen, quietly: bool
) -> None:
    client.watch(RELEASED, "t")
    with replaced(xen, client, first, quietly=quietly) as second:
        assert next_events(client, 1) == [Event(RELEASED.encode(), b"t")]
        assert not is_introduced(client, second.domid)
        many_turns(client)
        assert client.events_so_far() == [], "the end is told once, and the newcomer's beginning is none"
        client.watch(INTRODUCED, "i")
        introduce(client, second)
        assert client.events_so_far() == [Event(INTRODUCED.encode(), b"i")]
        assert is_served(second)


@both_ways
def test_the_next_domain_of_a_number_has_none_of_the_rights_of_the_one_before(
    first: Guest, guest: MakeGuest, client: Client, xen: SimulatedXen, node: str, quietly: bool
) -> None:
    """XSA-322, XSA-417"""
    friend = guest()
    friend.write("x", b"v")
    friend.set_perms("x", f"n{friend.domid}", f"b{first.domid}")
    for name, perms in (("acl", ["n0", f"b{first.domid}"]), ("own", [f"n{first.domid}"])):
        client.write(f"{node}/{name}", b"v")
        client.set_perms(f"{node}/{name}", *perms)
    first.write(f"{node}/acl/mine", b"v")
    shared = [f"{node}/acl", f"{home_of(friend)}/x"]
    assert [first.read(path) for path in shared] == [b"v", b"v"]
    with replaced(xen, client, first, quietly=quietly) as second:
        eventually(lambda: not is_introduced(client, second.domid), "the end is noticed")
        assert client.directory(node) == [b"acl"], "what the first owned is gone"
        assert client.directory(f"{node}/acl") == []
        introduce(client, second)
        for path in shared:
            for op in (Op.READ, Op.WRITE, Op.GET_PERMS, Op.RM):
                assert second.outcome(op, strings(path)) == "EACCES"
        assert second.outcome(Op.READ, strings("x")) == "EACCES"
        assert account(client, second.domid, "nodes").used == 0
        client.set_perms(f"{node}/acl", "n0", f"r{second.domid}")
        assert second.read(f"{node}/acl") == b"v", "given anew"


@both_ways
def test_the_next_domain_of_a_number_has_neither_watches_nor_transactions(
    first: Guest, client: Client, xen: SimulatedXen, quietly: bool
) -> None:
    first.watch("a", "t")
    first.watch(RELEASED, "t")
    tx = first.start()
    with replaced(xen, client, first, quietly=quietly) as second:
        eventually(lambda: not is_introduced(client, second.domid), "the end is noticed")
        give_home(client, second)
        introduce(client, second)
        client.write(f"{home_of(second)}/a", b"v")
        assert second.events_so_far() == []
        assert second.outcome(Op.READ, strings("a"), tx=tx) == "ENOENT"
        for quota in ("watches", "transactions"):
            assert account(client, second.domid, quota).used == 0


@pytest.mark.skipif(CHOICE == "c", reason=f"C xenstored 4.17: {NOT_BY_UNIQUE_ID}")
def test_a_domain_introduced_in_place_of_one_whose_end_was_unnoticed_has_none_of_its_rights(
    first: Guest, client: Client, xen: SimulatedXen, node: str
) -> None:
    """The toolstack is faster than the interrupt: INTRODUCE comes first."""
    client.set_perms(node, "n0", f"r{first.domid}")
    first.write("secret", b"v")
    xen.destroy(first.domid, quietly=True)
    first.close()
    with newborn(xen, client, domid=first.domid) as second:
        introduce(client, second)
        client.watch(RELEASED, "t")
        xen.virq()
        many_turns(client)
        if not is_introduced(client, second.domid):
            introduce(client, second)
        assert second.outcome(Op.READ, strings("secret")) == "EACCES"
        assert second.outcome(Op.READ, strings(node)) == "EACCES"


@not_for_c("a domain it has not seen has no quota")
def test_quotas_set_for_a_domain_are_not_its_successors(first: Guest, client: Client, xen: SimulatedXen) -> None:
    set_quota(client, first, "nodes", 7)
    with replaced(xen, client, first, quietly=False) as second:
        introduce(client, second)
        assert client.call(Op.GET_QUOTA, strings(second.domid, "nodes")) == b"1000\0"


@not_for_c("has no features")
def test_features_chosen_for_a_domain_are_not_its_successors(client: Client, xen: SimulatedXen) -> None:
    with newborn(xen, client) as one:
        client.call(Op.SET_FEATURE, strings(one.domid, 2))
        introduce(client, one)
        with replaced(xen, client, one, quietly=False) as second:
            introduce(client, second)
            assert client.call(Op.GET_FEATURE, strings(second.domid)) == b"15\0"


def test_a_domain_that_dies_before_its_introduction_goes_silently(
    client: Client, xen: SimulatedXen, guest: MakeGuest, node: str
) -> None:
    """domain.c: known, never introduced"""
    if CHOICE == "c":
        pytest.skip("C xenstored 4.17: forgets nothing of a domain that was never introduced")
    bystander = guest()
    with newborn(xen, client) as early:
        client.write(f"{node}/own/below", b"v")
        client.set_perms(f"{node}/own", f"n{early.domid}")
        client.set_perms(node, "n0", f"r{early.domid}")
        client.watch(RELEASED, "t")
        xen.destroy(early.domid)
        eventually(lambda: client.get_perms(node) == [b"n0"], "it is stripped from the list")
        assert client.directory(node) == []
        xen.destroy(bystander.domid)
        assert next_events(client, 1) == [Event(RELEASED.encode(), b"t")], "of the bystander"
        assert client.events_so_far() == []


def test_many_domains_that_end_at_once_are_all_noticed(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    """One interrupt stands for any number of changes"""
    guests = [guest() for _ in range(30)]
    for one in guests:
        one.write("a/b", b"v")
    for one in guests:
        xen.destroy(one.domid, quietly=True)
    xen.virq()
    for one in guests:
        eventually(lambda one=one: not is_introduced(client, one.domid), f"the end of {one.domid}")  # type: ignore[misc]
        assert not client.exists(home_of(one))


def test_a_number_can_be_used_again_and_again(client: Client, xen: SimulatedXen) -> None:
    """XSA-483"""
    domid = 5000
    for i in range(30):
        with newborn(xen, client, domid=domid) as one:
            give_home(client, one)
            introduce(client, one)
            one.watch("a", "t")
            one.write("a", str(i).encode())
            assert one.start() == 1
            assert one.events_so_far() == [Event(b"a", b"t")]
            assert account(client, domid, "nodes").used == nodes_owned(client, domid, home_of(one)) == 2


# ---- special watches


@not_for_c("special watches have no depth")
@pytest.mark.parametrize("name", [INTRODUCED, RELEASED])
def test_the_depth_of_a_special_watch(client: Client, xen: SimulatedXen, name: str) -> None:
    """watch.c:fire_watches: without depth only the plain event, with depth of one or more only the one with the domid"""
    for depth in ("", "0", "1", "2", "100"):
        client.watch(name, f"d{depth}", *([depth] if depth else []))
    with newborn(xen, client) as one:
        own, strange = f"{name}/{one.domid}", f"{name}/{one.domid}x"
        for path in (own, strange, f"{own}/deeper"):
            client.watch(path, path)
        introduce(client, one)
        events = client.events_so_far()
        if name == RELEASED:
            assert events == []
            client.call(Op.RELEASE, strings(one.domid))
            events = client.events_so_far()
        assert [event for event in events if event.path == name.encode()] == [Event(name.encode(), b"d")]
        with_domid = [event.token.decode() for event in events if event.path == own.encode()]
        assert sorted(with_domid) == sorted(["d1", "d2", "d100", own])
        assert len(events) == 5


@not_for_c("special watches have no depth")
def test_a_guest_sees_releases_in_all_forms(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    """core.c:setup_structure: any domain may read the node that stands for releases"""
    one, two = guest(), guest()
    one.watch(RELEASED, "plain")
    one.watch(RELEASED, "deep", "1")
    one.watch(f"{RELEASED}/{two.domid}", "own")
    own = f"{RELEASED}/{two.domid}".encode()
    xen.set_state(two.domid, "shutdown")
    assert next_events(one, 3) == [Event(own, b"deep"), Event(own, b"own"), Event(RELEASED.encode(), b"plain")]
    client.call(Op.RELEASE, strings(two.domid))
    assert next_events(one, 3) == [Event(RELEASED.encode(), b"plain"), Event(own, b"deep"), Event(own, b"own")]


@not_for_c("does not let guests see releases at first, and special watches have no depth")
def test_the_permissions_of_the_special_node_hold_for_its_forms_with_a_domid(
    guest: MakeGuest, client: Client, dom0_ring: Guest
) -> None:
    """watch.c:watch_permitted"""
    one, two = guest(), guest()
    for each in (one, two):
        each.watch(RELEASED, "deep", "1")
    try:
        client.set_perms(RELEASED, "n0", f"r{one.domid}")
        for each in (one, two):
            each.events_so_far()
        third = guest()
        client.call(Op.RELEASE, strings(third.domid))
        assert one.events_so_far() == [Event(f"{RELEASED}/{third.domid}".encode(), b"deep")]
        assert two.events_so_far() == []
    finally:
        dom0_ring.set_perms(RELEASED, "n0", "r32757")


def test_special_events_are_not_merged(guest: MakeGuest, client: Client) -> None:
    """core.c:send_event: two releases are two events, even for one who reads them late"""
    one = guest()
    one.call(Op.WATCH, strings("a", "t"))
    watcher = client
    watcher.watch(RELEASED, "t")
    for _ in range(3):
        gone = guest()
        client.call(Op.RELEASE, strings(gone.domid))
    assert watcher.events_so_far() == [Event(RELEASED.encode(), b"t")] * 3


# ---- refusals

ours_only = pytest.mark.skipif(CHOICE != "ours", reason="refusals are counted by this daemon only")
Refused = Callable[[Guest], str | bytes]


def one_too_many(quota: str) -> tuple[int, Refused]:
    """A limit, and a request that is refused once that limit is set for a guest that owns its home."""
    requests: dict[str, tuple[int, Refused]] = {
        "nodes": (1, lambda g: g.outcome(Op.MKDIR, strings("more"))),
        "watches": (1, lambda g: g.outcome(Op.WATCH, strings("w", "t"))),
        "transactions": (1, lambda g: g.outcome(Op.TRANSACTION_START, b"\0")),
        "node-permissions": (2, lambda g: g.outcome(Op.SET_PERMS, strings(home_of(g), f"n{g.domid}", "r1"))),
        "node-size": (100, lambda g: g.outcome(Op.WRITE, strings("v") + b"x" * 100)),
        "path-max": (10, lambda g: g.outcome(Op.WRITE, strings("1234567890"))),
        "memory": (1000, lambda g: g.outcome(Op.WRITE, strings("v") + b"x" * 1000)),
        "transaction-nodes": (1, in_a_transaction),
    }
    return requests[quota]


def in_a_transaction(guest: Guest) -> str | bytes:
    """What the guest is told when it makes a node in a transaction of its own, which it gives up again."""
    tx = guest.start()
    told = guest.outcome(Op.MKDIR, strings("t"), tx=tx)
    guest.abort(tx)
    return told


every_quota = pytest.mark.parametrize(
    "quota",
    ["nodes", "watches", "transactions", "node-permissions", "node-size", "path-max", "memory", "transaction-nodes"],
)


@ours_only
@every_quota
def test_refusals_are_counted_for_domain_and_quota(guest: MakeGuest, client: Client, quota: str) -> None:
    one, two = guest(), guest()
    limit, refused = one_too_many(quota)
    set_quota(client, one, quota, limit)
    assert account(client, one.domid, quota).refused == 0
    for count in (1, 2, 3):
        assert isinstance(refused(one), str)
        assert account(client, one.domid, quota).refused == count
    for other_quota in {"nodes", "watches", "transactions"} - {quota}:
        assert account(client, one.domid, other_quota).refused == 0
    assert account(client, two.domid, quota).refused == 0
    set_quota(client, one, quota, 0)
    assert isinstance(refused(one), bytes)
    assert account(client, one.domid, quota).refused == 3


@ours_only
@every_quota
def test_the_log_names_the_first_refusal_and_no_other(
    guest: MakeGuest, client: Client, daemon: UnderTest, quota: str
) -> None:
    process = known_process(daemon)
    one = guest()
    limit, refused = one_too_many(quota)
    set_quota(client, one, quota, limit)
    said = len(process.output())

    def lines() -> list[str]:
        return [line for line in process.output()[said:].splitlines() if f"domain {one.domid}" in line]

    assert isinstance(refused(one), str)
    eventually(lambda: bool(lines()), "a line about the domain")
    for _ in range(5):
        refused(one)
    many_turns(client)
    about = [line for line in lines() if quota in line]
    assert len(about) == 1, about
    assert re.search(rf"\b{limit}\b", about[0].split(f"domain {one.domid}", 1)[1]), about[0]


@ours_only
def test_a_refused_end_of_a_transaction_is_counted(guest: MakeGuest, client: Client) -> None:
    one = guest()
    set_quota(client, one, "nodes", 3)
    tx = one.start()
    for name in "1234":
        one.mkdir(name, tx=tx)
    assert one.commit(tx) == "ENOSPC"
    assert account(client, one.domid, "nodes").refused == 1


@ours_only
def test_refusals_end_with_their_domain(client: Client, xen: SimulatedXen) -> None:
    with newborn(xen, client) as one:
        introduce(client, one)
        set_quota(client, one, "watches", 1)
        assert one.outcome(Op.WATCH, strings("w", "t")) == "ENOSPC"
        with replaced(xen, client, one, quietly=False) as second:
            introduce(client, second)
            assert account(client, second.domid, "watches").refused == 0
