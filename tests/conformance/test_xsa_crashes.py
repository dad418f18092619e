"""Xen's security advisories about xenstored: what made the daemon crash, hang, or forget a domain.

One test or more for each advisory, named after it; https://xenbits.xen.org/xsa/advisory-N.html is its text.  After each, the
daemon's processes are the same as before and domain 0 can still read /.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from tests.conformance.processes import becomes_idle
from tests.conformance.subject import UnderTest
from tests.conformance.test_guest_basics import (
    UNKNOWN,
    MakeGuest,
    account,
    eventually,
    fill_responses,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    known_process,
    many_turns,
    next_events,
    not_for_c,
    replies,
    unharmed,
)
from tests.conformance.wire import PAYLOAD_MAX, Client, Event, Op, pack, strings
from tests.conformance.xen import Guest, SimulatedXen


@pytest.fixture(autouse=True)
def harmless(daemon: UnderTest) -> Iterator[None]:
    with unharmed(daemon):
        yield


# ---- XSA-38: indices taken as they came

PRODUCERS = {"1025 ahead": 1025, "2^31 ahead": 1 << 31, "behind": -1, "far behind": -1025}


@pytest.mark.parametrize("distance", PRODUCERS.values(), ids=PRODUCERS.keys())
def test_xsa_38_an_impossible_producer_ends_the_connection(guest: MakeGuest, distance: int) -> None:
    one, two = guest(), guest()
    one.write("a", b"v")
    one.set_field("req_prod", one.field("req_cons") + distance)
    one.kick()
    eventually(lambda: one.field("error") == 2, "the error is told")
    assert is_served(two)


def test_xsa_38_a_producer_that_changes_while_it_is_read_is_read_once(guest: MakeGuest) -> None:
    one, two = guest(), guest()
    stop = threading.Event()

    def race() -> None:
        while not stop.is_set():
            for value in (16, 1025, 32, 0x80000000, 1024, 0xFFFFFFFF):
                one.set_field("req_prod", one.field("req_cons") + value)

    racer = threading.Thread(target=race, daemon=True)
    racer.start()
    try:
        for _ in range(200):
            one.kick()
            assert is_served(two)
    finally:
        stop.set()
        racer.join()
    one.set_field("req_prod", one.field("req_cons") + 1025)
    one.kick()
    eventually(lambda: one.field("error") != 0, "its end is an error like any other")


def test_xsa_38_a_full_ring_is_served(guest: MakeGuest) -> None:
    one = guest()
    for _ in range(5):
        assert one.put_bytes(pack(UNKNOWN) * 64, timeout=0) == 1024
        assert len(replies(one, 64)) == 64
    assert one.field("error") == 0


# ---- XSA-233: a guest and its stub domain died at once


@pytest.mark.parametrize("order", ["stub first", "target first", "together"])
@pytest.mark.parametrize("numbers", ["stub lower", "target lower"])
def test_xsa_233_a_guest_and_its_stub_domain_may_die_at_once(
    guest: MakeGuest, client: Client, xen: SimulatedXen, order: str, numbers: str
) -> None:
    for _ in range(5):
        lower, higher = guest(), guest()
        stub, target = (lower, higher) if numbers == "stub lower" else (higher, lower)
        client.call(Op.SET_TARGET, strings(stub.domid, target.domid))
        stub.write(f"{home_of(target)}/x", b"v")
        for each in (stub, target):
            each.watch("@releaseDomain", "t")
            fill_responses(each)
        first, second = (target, stub) if order == "target first" else (stub, target)
        xen.destroy(first.domid, quietly=True)
        xen.destroy(second.domid, quietly=order == "together")
        xen.virq()
        for each in (stub, target):
            eventually(lambda each=each: not is_introduced(client, each.domid), "its end is noticed")  # type: ignore[misc]
            assert not client.exists(home_of(each))


# ---- XSA-325: the end of a connection was taken for the end of the domain


@pytest.mark.parametrize("death", ["shutdown first", "at once"])
def test_xsa_325_a_domain_whose_ring_is_dead_is_released_when_it_dies(
    guest: MakeGuest, client: Client, xen: SimulatedXen, death: str
) -> None:
    one = guest()
    one.write("a", b"v")
    client.watch("@releaseDomain", "t")
    one.set_field("req_prod", one.field("req_cons") + 5000)
    one.kick()
    eventually(lambda: one.field("error") == 2, "the error is told")
    many_turns(client)
    assert client.events_so_far() == []
    assert is_introduced(client, one.domid)
    assert client.read(f"{home_of(one)}/a") == b"v"
    if death == "shutdown first":
        xen.set_state(one.domid, "shutdown")
        assert next_events(client, 1) == [Event(b"@releaseDomain", b"t")]
        assert client.exists(f"{home_of(one)}/a")
    xen.destroy(one.domid)
    assert next_events(client, 1) == [Event(b"@releaseDomain", b"t")]
    xen.virq()
    many_turns(client)
    assert client.events_so_far() == []
    assert not is_introduced(client, one.domid)


# ---- XSA-418: deep trees


def test_xsa_418_a_tree_of_more_than_a_thousand_levels_does_no_harm(
    guest: MakeGuest, client: Client, xen: SimulatedXen, node: str
) -> None:
    one = guest()
    deep = "a" + "/a" * 900
    one.write(deep, b"v")
    assert one.read(deep) == b"v"
    one.watch("a", "t")
    assert client.call(Op.CONTROL, b"check\0") == b"OK\0"
    tx = one.start()
    one.write(deep, b"w", tx=tx)
    assert one.commit(tx) == "OK"
    one.rm("a")
    assert one.directory(home_of(one)) == []
    client.pipeline([(Op.MKDIR, strings(node + "/d" * depth)) for depth in (500, 1000, 1019)])
    client.set_perms(node, f"n{one.domid}")
    client.set_perms(f"{node}/d", f"n{one.domid}")
    xen.destroy(one.domid)
    eventually(lambda: not client.exists(node), "a deep tree goes with its owner")
    client.mkdir(node)


@not_for_c("does not make so many nodes in one request")
def test_xsa_418_a_guests_deepest_path_can_be_made_and_removed(guest: MakeGuest, client: Client) -> None:
    one = guest()
    deepest = "/".join("a" * 1024)
    assert len(deepest) == 2047
    one.write(deepest, b"v")
    assert account(client, one.domid, "nodes").used == 1025
    assert client.read(f"{home_of(one)}/{deepest}") == b"v"
    assert one.outcome(Op.MKDIR, strings("b")) == "ENOSPC"
    one.rm("a")
    assert account(client, one.domid, "nodes").used == 1


# ---- XSA-420: lengths of gigabytes

LENGTHS = [PAYLOAD_MAX + 1, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@pytest.mark.parametrize("length", LENGTHS, ids=hex)
def test_xsa_420_an_impossible_length_ends_a_guests_connection(
    guest: MakeGuest, client: Client, daemon: UnderTest, length: int
) -> None:
    one = guest()
    one.put_bytes(pack(Op.READ, b"a\0", length=length))
    eventually(lambda: one.field("error") == 3, "the error is told")
    one.put_bytes(b"x" * 2000, timeout=0)
    assert is_served(client)
    assert becomes_idle(known_process(daemon).lasting_pids())


# ---- XSA-425: a connection freed while all were looked at


@pytest.mark.parametrize("over", ["socket", "ring"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_xsa_425_domains_with_pending_output_can_be_released_in_any_order(
    guest: MakeGuest, client: Client, dom0_ring: Guest, over: str, order: tuple[int, ...]
) -> None:
    caller = client if over == "socket" else dom0_ring
    guests = [guest() for _ in range(3)]
    bystander = guest()
    for one in guests:
        one.watch("a", "t" * 500)
        fill_responses(one)
        one.put_bytes(pack(UNKNOWN) * 30)
        client.write(f"{home_of(one)}/a", b"v")
        client.write(f"{home_of(one)}/a/b", b"v")
    bystander.put_bytes(pack(UNKNOWN) * 5)
    sent = [caller.send(Op.RELEASE, strings(guests[i].domid)) for i in order]
    for req_id in sent:
        assert caller.reply(req_id).payload == b"OK\0"
    assert len(replies(bystander, 5)) == 5
    for one in guests:
        assert not is_introduced(client, one.domid)
        one.page[:] = bytes(len(one.page))
        give_home(client, one)
        introduce(client, one)
        one.pending.clear()
        assert is_served(one)


# ---- XSA-481: paths that end where a name should be

PATHS = ["/local/domain/", "//", "/a/", "", "a/", "/local/domain//", "/local//domain", "/local/domain/1/"]


# ---- XSA-484: RESET_WATCHES inside a transaction


@pytest.mark.parametrize("how", ["the one it is in", "all"])
def test_xsa_484_reset_watches_ends_transactions(guest: MakeGuest, client: Client, how: str) -> None:
    one = guest()
    for _ in range(50):
        one.watch("a", "t")
        transactions = [one.start() for _ in range(3)]
        for tx in transactions:
            one.write("a/b", b"v", tx=tx)
            one.read("a/b", tx=tx)
        assert one.outcome(Op.RESET_WATCHES, b"\0", tx=0 if how == "all" else transactions[1]) == b"OK\0"
        assert [one.outcome(Op.READ, strings("a/b"), tx=tx) for tx in transactions] == ["ENOENT"] * 3
        assert account(client, one.domid, "transactions").used == 0
    assert one.directory(home_of(one)) == []


def test_xsa_484_the_end_of_a_ring_inside_a_transaction_ends_it(guest: MakeGuest, client: Client) -> None:
    one = guest()
    tx = one.start()
    one.put_bytes(pack(Op.WRITE, strings("a/b") + b"v", tx=tx) + pack(Op.WRITE, tx=tx, length=PAYLOAD_MAX + 1))
    eventually(lambda: one.field("error") == 3, "the error is told")
    assert account(client, one.domid, "transactions").used == 0
    assert client.directory(home_of(one)) == []
    assert client.call(Op.CONTROL, b"check\0") == b"OK\0"


def test_xsa_484_a_release_inside_ones_own_transaction_is_carried_out(guest: MakeGuest, dom0_ring: Guest) -> None:
    """Domain 0 releases a domain, and introduces its own ring again, inside a transaction."""
    one = guest()
    tx = dom0_ring.start()
    assert dom0_ring.outcome(Op.RELEASE, strings(one.domid), tx=tx) == b"OK\0"
    assert not is_introduced(dom0_ring, one.domid)
    assert dom0_ring.commit(tx) == "OK"
    begin = time.monotonic()
    assert is_served(dom0_ring)
    assert time.monotonic() - begin < 5
