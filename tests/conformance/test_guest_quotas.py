"""Edge cases of quotas: how much a guest may have, what it is told at the limit, what it may still do then.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
There, what is used must stay below the quota: of 10 transactions a guest can open 9.
"""

from __future__ import annotations

import time

import pytest

from tests.conformance.test_guest_basics import (
    UNKNOWN,
    MakeGuest,
    empty_responses,
    eventually,
    fill_responses,
    give_home,
    home_of,
    introduce,
    is_served,
    many_turns,
    newborn,
    not_for_c,
    own_daemon,
    replies,
    set_quota,
)
from tests.conformance.wire import Client, Event, Op, pack, strings
from tests.conformance.xen import Guest

PER_DOMAIN = not_for_c("has no quotas of single domains")
OUTSTANDING = 20


@pytest.fixture
def one(guest: MakeGuest) -> Guest:
    return guest()


# ---- watches, transactions


@PER_DOMAIN
def test_changing_the_global_quota_changes_no_domain_that_is_known() -> None:
    """domain.c:alloc_domain: the global values are copied at first sight"""
    with own_daemon() as (_, xen, client), newborn(xen, client) as early, newborn(xen, client) as late:
        introduce(client, early)
        assert client.call(Op.SET_QUOTA, strings("watches", 2)) == b"OK\0"
        introduce(client, late)
        for guest_, expected in ((early, b"OK\0"), (late, "ENOSPC")):
            guest_.watch("w", "1")
            assert guest_.outcome(Op.WATCH, strings("w", "2")) == expected


# ---- sizes


def largest(fixed: int) -> int:
    """The most bytes of a value in a node of which so much else counts: 16, 8 for each permission, the child list."""
    return 2047 - fixed


# ---- memory


@PER_DOMAIN
def test_a_guest_at_its_memory_quota_is_not_read_from_until_it_is_raised(one: Guest, client: Client) -> None:
    """domain.c:domain_can_read"""
    one.write("a", b"x" * 1500)
    set_quota(client, one, "memory", 1000)
    before = one.field("req_cons")
    one.put_bytes(pack(Op.READ, b"a\0", req_id=1))
    many_turns(client)
    assert one.field("req_cons") == before
    set_quota(client, one, "memory", 100_000)
    assert len(one.reply(1).payload) == 1500


@PER_DOMAIN
def test_a_guest_at_its_memory_quota_is_read_from_when_domain_0_frees_memory(one: Guest, client: Client) -> None:
    """domain.c:domain_can_read"""
    one.write("a", b"x" * 1500)
    set_quota(client, one, "memory", 1000)
    one.put_bytes(pack(Op.GET_DOMAIN_PATH, b"1\0", req_id=1))
    client.rm(f"{home_of(one)}/a")
    assert one.reply(1).payload == b"/local/domain/1\0"


# ---- outstanding requests


def test_a_guest_that_does_not_read_has_twenty_requests_outstanding(one: Guest, client: Client) -> None:
    """domain.c:domain_can_read"""
    fill_responses(one)
    begin = one.field("req_cons")
    requests = [pack(UNKNOWN, req_id=i) for i in range(40)]
    assert one.put_bytes(b"".join(requests)) == 40 * 16
    eventually(lambda: one.field("req_cons") - begin == OUTSTANDING * 16, "twenty requests are taken")
    many_turns(client)
    assert one.field("req_cons") - begin == OUTSTANDING * 16, "no more than twenty are taken"
    empty_responses(one)
    answers = replies(one, 40)
    assert [(answer.req_id, answer.payload) for answer in answers] == [(i, b"ENOSYS\0") for i in range(40)]
    assert is_served(one)


def test_a_request_is_outstanding_until_its_reply_is_in_the_ring(one: Guest, client: Client) -> None:
    """domain.c:domain_can_read: of replies of 216 bytes four fit, the fifth stands in the ring half"""
    one.write("v", b"x" * 200)
    begin = one.field("req_cons")
    one.put_bytes(b"".join(pack(Op.READ, b"v\0", req_id=i) for i in range(40)))
    eventually(lambda: one.field("req_cons") - begin == (4 + OUTSTANDING) * 18, "24 requests are taken")
    many_turns(client)
    assert one.field("req_cons") - begin == (4 + OUTSTANDING) * 18
    assert [(answer.req_id, len(answer.payload)) for answer in replies(one, 40)] == [(i, 200) for i in range(40)]


def test_a_request_whose_events_are_undelivered_is_outstanding(guest: MakeGuest, client: Client) -> None:
    """domain.c:domain_can_read; XSA-326"""
    one, watcher = guest(), guest()
    one.set_perms(home_of(one), f"n{one.domid}", f"r{watcher.domid}")
    watcher.watch(home_of(one), "t")
    fill_responses(watcher)
    begin = one.field("req_cons")
    one.put_bytes(b"".join(pack(Op.MKDIR, strings(f"{i:02}"), req_id=i) for i in range(40)))
    eventually(lambda: one.field("req_cons") - begin == OUTSTANDING * 19, "twenty requests are taken")
    assert [answer.req_id for answer in replies(one, OUTSTANDING)] == list(range(OUTSTANDING))
    many_turns(client)
    assert one.field("req_cons") - begin == OUTSTANDING * 19, "no more than twenty are taken"
    empty_responses(watcher)
    for _ in range(40):
        watcher.receive()
    assert [event.path for event in watcher.events] == [f"{home_of(one)}/{i:02}".encode() for i in range(40)]
    assert [answer.req_id for answer in replies(one, OUTSTANDING)] == list(range(OUTSTANDING, 40))


EVENT_SECONDS = 1


def test_an_event_that_waits_too_long_is_discarded() -> None:
    """core.c:check_event_timeout"""
    with own_daemon("-w", f"watch-event={EVENT_SECONDS}") as (_, xen, client), newborn(xen, client) as one:
        give_home(client, one)
        introduce(client, one)
        one.watch("a", "t")
        fill_responses(one)
        client.write(f"{home_of(one)}/a/early", b"v")
        time.sleep(EVENT_SECONDS * 1.5)  # the time under test
        client.write(f"{home_of(one)}/a/late", b"v")
        empty_responses(one)
        assert one.events_so_far() == [Event(b"a/late", b"t")]


def test_an_event_that_waits_a_little_is_delivered(one: Guest, client: Client) -> None:
    """core.c:check_event_timeout"""
    one.watch("a", "t")
    fill_responses(one)
    client.write(f"{home_of(one)}/a/early", b"v")
    many_turns(client)
    empty_responses(one)
    assert one.events_so_far() == [Event(b"a/early", b"t")]
