"""Domains that take the number of earlier ones, special watches in all their forms, and how refusals are reported.

A domain is more than its number: the hypervisor gives each a unique id, and what was one domain's never becomes another's.
The daemon reports what quotas refuse: the domain's line of CONTROL `quota` counts it, and the log names the first time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.conftest import CHOICE
from tests.conformance.subject import UnderTest
from tests.conformance.test_guest_basics import (
    MakeGuest,
    account,
    eventually,
    give_home,
    home_of,
    introduce,
    is_introduced,
    known_process,
    many_turns,
    newborn,
    nodes_owned,
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


@pytest.fixture
def first(xen: SimulatedXen, client: Client) -> Iterator[Guest]:
    """The first of two domains with one number, introduced."""
    with newborn(xen, client) as one:
        give_home(client, one)
        introduce(client, one)
        yield one


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
