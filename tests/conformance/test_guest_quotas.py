"""Edge cases of quotas: how much a guest may have, what it is told at the limit, what it may still do then.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
There, what is used must stay below the quota: of 10 transactions a guest can open 9.
Cases of the edge-case table covered here: 89, 137, 139-141, 143-147, 157-159.
"""

from __future__ import annotations

import time

import pytest

from tests.conformance.test_guest_basics import (
    UNKNOWN,
    MakeGuest,
    account,
    differs,
    empty_responses,
    eventually,
    fill_responses,
    give_home,
    home_of,
    introduce,
    is_served,
    many_turns,
    newborn,
    nodes_owned,
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


# ---- nodes


@differs("allows 1000")
def test_a_guest_owns_999_nodes_at_most(one: Guest, client: Client) -> None:
    """domain.c:domain_quota_add_exceeds"""
    made = 1  # its home
    for i in range(1, 11):
        answers = one.pipeline([(Op.MKDIR, strings(f"d{i}/{j}")) for j in range(99)])
        made += sum(answer.op == Op.MKDIR for answer in answers) + 1
    assert made == account(client, one.domid, "nodes").used == 999
    assert one.outcome(Op.WRITE, strings("more")) == "ENOSPC"
    assert one.outcome(Op.MKDIR, strings("x/y/z")) == "ENOSPC"
    assert not one.exists("x")
    one.write("d1/0", b"what is there can be changed")
    one.rm("d1/0")
    one.mkdir("more")


@PER_DOMAIN
def test_nodes_made_in_one_request_are_counted_afterwards(one: Guest, client: Client) -> None:
    """core.c:create_node: the count before the request, and one more, must stay below the quota"""
    set_quota(client, one, "nodes", 4)
    one.write("a/b/c/d/e/f", b"v")
    assert account(client, one.domid, "nodes").used == 7
    assert one.outcome(Op.MKDIR, strings("g")) == "ENOSPC"
    one.rm("a")
    assert [one.outcome(Op.MKDIR, strings(name)) for name in "123"] == [b"OK\0", b"OK\0", "ENOSPC"]


@PER_DOMAIN
def test_nodes_made_in_a_transaction_are_counted_at_its_end(one: Guest, client: Client) -> None:
    """transaction.c:do_transaction_end, acc_fix_domains"""
    set_quota(client, one, "nodes", 4)
    tx = one.start()
    for name in "12345":
        one.mkdir(name, tx=tx)
    assert one.commit(tx) == "ENOSPC"
    assert one.commit(tx) == "ENOENT"
    assert one.directory(home_of(one)) == []
    assert account(client, one.domid, "nodes").used == 1


@PER_DOMAIN
def test_a_transaction_may_stay_at_its_guests_limit(one: Guest, client: Client) -> None:
    """transaction.c: it is the difference that counts"""
    set_quota(client, one, "nodes", 4)
    for name in "ab":
        one.mkdir(name)
    tx = one.start()
    one.rm("a", tx=tx)
    one.write("b", b"v", tx=tx)
    assert one.commit(tx) == "OK"
    one.mkdir("c")
    assert one.directory(home_of(one)) == [b"b", b"c"]


def test_what_domain_0_makes_for_a_guest_counts_and_is_never_refused(one: Guest, client: Client) -> None:
    """core.c:construct_node"""
    client.pipeline([(Op.MKDIR, strings(f"{home_of(one)}/{i}")) for i in range(40)])
    client.write(f"{home_of(one)}/a/b", b"v")
    assert account(client, one.domid, "nodes").used == nodes_owned(client, one.domid, home_of(one)) == 43


@PER_DOMAIN
def test_domain_0_may_take_a_guest_over_its_quota(one: Guest, client: Client) -> None:
    """domain.c:domain_quota_add_exceeds: the caller's quota, not the owner's"""
    set_quota(client, one, "nodes", 3)
    client.pipeline([(Op.MKDIR, strings(f"{home_of(one)}/{i}")) for i in range(40)])
    assert account(client, one.domid, "nodes").used == 41
    assert one.outcome(Op.MKDIR, strings("more")) == "ENOSPC"
    set_quota(client, one, "nodes", 0)
    one.mkdir("more")


@PER_DOMAIN
def test_making_a_node_below_anothers_counts_for_the_maker(guest: MakeGuest, client: Client) -> None:
    """core.c:create_node"""
    one, host = guest(), guest()
    host.set_perms(home_of(host), f"n{host.domid}", f"b{one.domid}")
    set_quota(client, one, "nodes", 3)
    assert one.outcome(Op.MKDIR, strings(f"{home_of(host)}/1")) == b"OK\0"
    assert one.outcome(Op.MKDIR, strings(f"{home_of(host)}/2")) == "ENOSPC"
    assert account(client, one.domid, "nodes").used == 2
    assert account(client, host.domid, "nodes").used == 1


# ---- watches, transactions


@differs("allows 129, then E2BIG")
def test_a_guest_has_127_watches_at_most(one: Guest) -> None:
    """watch.c:do_watch"""
    answers = one.pipeline([(Op.WATCH, strings("w", i)) for i in range(130)])
    assert [answer.payload for answer in answers] == [b"OK\0"] * 127 + [b"ENOSPC\0"] * 3
    assert one.outcome(Op.WATCH, strings("w", 5)) == "EEXIST", "before the quota is asked"
    assert one.outcome(Op.UNWATCH, strings("w", 5)) == b"OK\0"
    assert one.outcome(Op.WATCH, strings("w", "again")) == b"OK\0"
    assert one.outcome(Op.WATCH, strings("w", "more")) == "ENOSPC"
    assert one.outcome(Op.RESET_WATCHES, b"\0") == b"OK\0"
    assert one.outcome(Op.WATCH, strings("w", "more")) == b"OK\0"


@differs("allows 11")
def test_a_guest_has_9_open_transactions_at_most(one: Guest, client: Client) -> None:
    """domain.c:domain_quota_val_exceeds"""
    outcomes = [one.outcome(Op.TRANSACTION_START, b"\0") for _ in range(12)]
    assert outcomes == [strings(i) for i in range(1, 10)] + ["ENOSPC"] * 3
    assert account(client, one.domid, "transactions").used == 9
    assert one.commit(3) == "OK"
    assert one.start() == 10, "a refused start uses no number up"


@PER_DOMAIN
@pytest.mark.parametrize("quota", ["watches", "transactions"])
def test_a_quota_of_a_domain_can_be_changed_and_lifted(one: Guest, client: Client, quota: str) -> None:
    """domain.c:do_set_quota"""

    def more(number: int) -> bool:
        request = (Op.WATCH, strings("w", number)) if quota == "watches" else (Op.TRANSACTION_START, b"\0")
        return isinstance(one.outcome(*request), bytes)

    set_quota(client, one, quota, 3)
    assert [more(i) for i in range(4)] == [True, True, False, False]
    assert account(client, one.domid, quota).used == 2
    set_quota(client, one, quota, 0)
    assert all(more(i) for i in range(4, 200 if quota == "watches" else 24))


@PER_DOMAIN
def test_changing_the_global_quota_changes_no_domain_that_is_known(guest: MakeGuest) -> None:
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


@differs("counts a node's header as 24 bytes")
def test_a_node_of_a_guest_has_less_than_2048_bytes(one: Guest) -> None:
    """domain.c:domain_max_chk"""
    one.write("v", b"x" * largest(24))
    assert largest(24) == 2023
    assert one.outcome(Op.WRITE, strings("v") + b"x" * 2024) == "ENOSPC"
    assert len(one.read("v")) == 2023
    assert one.outcome(Op.SET_PERMS, strings("v", f"n{one.domid}", "r0")) == "ENOSPC", "8 bytes more"
    assert one.outcome(Op.WRITE, strings("v/kid")) == "ENOSPC", "4 bytes more"
    one.write("v", b"x" * largest(24 + 4))
    one.write("v/kid", b"")
    one.write("v", b"x" * largest(24 + 4))
    assert one.outcome(Op.WRITE, strings("v") + b"x" * (largest(24 + 4) + 1)) == "ENOSPC"


def test_a_deep_node_that_is_too_large_leaves_no_parents(one: Guest, client: Client) -> None:
    """core.c:create_node; XSA-414"""
    assert one.outcome(Op.WRITE, strings("a/b/c") + b"x" * 3000) == "ENOSPC"
    assert one.directory(home_of(one)) == []
    assert account(client, one.domid, "nodes").used == 1


def test_domain_0_may_make_a_guests_node_larger(one: Guest, client: Client) -> None:
    """domain.c:domain_max_chk: no quota for privileged connections"""
    client.write(f"{home_of(one)}/v", b"x" * 3000)
    assert len(one.read("v")) == 3000
    assert one.outcome(Op.WRITE, strings("v") + b"x" * 2500) == "ENOSPC", "smaller, and still too large"
    one.write("v", b"x" * 100)


@differs("allows 2048 bytes")
def test_the_longest_path_of_a_guest(one: Guest) -> None:
    """core.c:canonicalize: 2047 bytes, not counting /local/domain/N/"""
    for prefix in ("", f"{home_of(one)}/", "/local/domain/0/", "/local/domain/99999/"):
        outcome = one.outcome(Op.READ, strings(prefix + "x" * 2047))
        assert outcome == ("ENOENT" if str(one.domid) in prefix or not prefix else "EACCES")
        assert one.outcome(Op.READ, strings(prefix + "x" * 2048)) == "EINVAL"
    assert one.outcome(Op.READ, strings("/" + "x" * 2046)) == "EACCES"
    assert one.outcome(Op.READ, strings("/" + "x" * 2047)) == "EINVAL"
    assert one.outcome(Op.READ, strings("/local/domain/123456/" + "x" * 2040)) == "EINVAL", "no domain's"
    assert one.outcome(Op.WATCH, strings("x" * 2048, "t")) == "EINVAL"


@PER_DOMAIN
def test_the_length_of_paths_is_a_quota(one: Guest, client: Client) -> None:
    """core.c:canonicalize"""
    set_quota(client, one, "path-max", 10)
    one.write("123456789", b"v")
    assert one.read(f"{home_of(one)}/123456789") == b"v"
    assert one.outcome(Op.WRITE, strings("1234567890")) == "EINVAL"
    assert one.outcome(Op.READ, strings("/tool/xens")) == "EINVAL"
    assert one.outcome(Op.READ, strings("/tool/xen")) == "EACCES"


# ---- what a transaction may touch


@PER_DOMAIN
def test_a_transaction_that_touches_too_many_nodes_fails(one: Guest, client: Client) -> None:
    """core.c:access_node: missing nodes count, and so do the ancestors that are asked instead of them"""
    set_quota(client, one, "transaction-nodes", 6)
    tx = one.start()
    outcomes = [one.outcome(Op.READ, strings(f"missing{i}"), tx=tx) for i in range(7)]
    assert outcomes == ["ENOENT"] * 4 + ["ENOSPC"] * 3
    assert one.outcome(Op.WRITE, strings("a"), tx=tx) == "ENOSPC"
    assert one.commit(tx) == "ENOMEM"
    assert one.commit(tx) == "ENOENT"
    assert one.directory(home_of(one)) == []


def test_a_write_that_is_too_large_dooms_its_transaction(one: Guest) -> None:
    """transaction.c:fail_transaction"""
    tx = one.start()
    assert one.outcome(Op.WRITE, strings("big") + b"x" * 2040, tx=tx) == "ENOSPC"
    one.write("small", b"v", tx=tx)
    assert one.read("small", tx=tx) == b"v"
    assert one.commit(tx) == "ENOMEM"
    assert one.directory(home_of(one)) == []


# ---- memory


def test_the_memory_that_a_guest_uses_is_shown(one: Guest, client: Client) -> None:
    """domain.c: nodes with their paths, watches with their tokens, what transactions hold"""

    def used() -> int:
        return account(client, one.domid, "memory").used

    begin = used()
    one.write("a", b"x" * 1500)
    with_node = used()
    assert begin + 1500 < with_node < begin + 1800
    one.watch("a", "t" * 100)
    with_watch = used()
    assert with_node + 100 < with_watch < with_node + 400
    tx = one.start()
    one.write("b", b"x" * 1500, tx=tx)
    assert used() > with_watch + 1500
    one.abort(tx)
    assert used() == with_watch
    one.call(Op.UNWATCH, strings("a", "t" * 100))
    assert used() == with_node
    one.rm("a")
    assert used() == begin


@PER_DOMAIN
def test_over_the_memory_quota_nothing_can_grow(one: Guest, client: Client) -> None:
    """domain.c:domain_memory_add_chk, core.c:write_node_raw, send_reply"""
    set_quota(client, one, "memory", 4000)
    one.write("a", b"x" * 1500)
    one.write("b", b"x" * 1500)
    assert one.outcome(Op.WRITE, strings("c") + b"x" * 1500) == "EIO"
    assert one.outcome(Op.WATCH, strings("a", "t" * 1500)) == "ENOMEM"
    assert one.outcome(Op.READ, strings("a")) == "ENOMEM", "a reply needs memory too"
    assert is_served(one)
    one.rm("a")
    one.write("c", b"x" * 500)
    assert len(one.read("c")) == 500


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
