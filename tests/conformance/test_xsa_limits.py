"""Xen's security advisories about xenstored: memory, quotas, accounting.

One test or more for each advisory, named after it; https://xenbits.xen.org/xsa/advisory-N.html is its text.  Counts are scaled
down so that each takes seconds at most; they still are many times what a daemon with the fault could hide.  After each, the
daemon's processes are the same as before and domain 0 can still read /.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.conformance.processes import anonymous_bytes
from tests.conformance.subject import UnderTest
from tests.conformance.test_guest_basics import (
    MIB,
    UNKNOWN,
    MakeGuest,
    account,
    empty_responses,
    eventually,
    fill_responses,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    known_process,
    many_turns,
    newborn,
    nodes_owned,
    not_for_c,
    own_daemon,
    replies,
    set_quota,
    unharmed,
)
from tests.conformance.wire import PATIENCE, Client, Op, pack, strings
from tests.conformance.xen import Guest, SimulatedXen
from tests.oracle.daemons import EACH_REQUEST

MEMORY_QUOTA = 600_000 if EACH_REQUEST else 2621440
NODES = 200 if EACH_REQUEST else 1000


@pytest.fixture(autouse=True)
def harmless(daemon: UnderTest) -> Iterator[None]:
    with unharmed(daemon):
        yield


def make_until_refused(guest: Guest, prefix: str, limit: int) -> int:
    """Makes nodes, 50 at a time below a node each; how many were made, that node included."""
    made = 0
    for batch in range(limit):
        answers = guest.pipeline([(Op.MKDIR, strings(f"{prefix}{batch}/{i}")) for i in range(50)])
        done = sum(answer.op == Op.MKDIR for answer in answers)
        made += done + (done > 0)
        if done < 50:
            assert {answer.payload for answer in answers if answer.op == Op.ERROR} == {b"ENOSPC\0"}
            return made
    raise AssertionError(f"{made} nodes made, and no end")


# ---- XSA-272: a quota that was never updated


def test_xsa_272_nodes_are_counted_and_limited(guest: MakeGuest, client: Client) -> None:
    one = guest()
    if EACH_REQUEST:
        set_quota(client, one, "nodes", NODES)
    made = make_until_refused(one, "d", 30) + 1
    assert NODES - 10 <= made <= NODES
    assert account(client, one.domid, "nodes").used == nodes_owned(client, one.domid, home_of(one)) == made
    assert one.outcome(Op.MKDIR, strings("more")) == "ENOSPC"
    one.rm("d0")
    assert account(client, one.domid, "nodes").used == nodes_owned(client, one.domid, home_of(one)) == made - 51
    assert make_until_refused(one, "e", 30) == 51


# ---- XSA-326: ways to use up the daemon's memory

CAP = 4 * MIB
"""Far less than what the tests below would cost a daemon that keeps everything."""


def test_xsa_326_a_requests_of_a_guest_that_does_not_read_are_not_read_either(
    guest: MakeGuest, client: Client, daemon: UnderTest
) -> None:
    """CVE-2022-42312"""
    process = known_process(daemon)
    guests = [guest() for _ in range(10)]
    pids = process.lasting_pids()
    before = anonymous_bytes(pids)
    for one in guests:
        fill_responses(one)
        begin = one.field("req_cons")
        assert one.put_bytes(pack(UNKNOWN) * 100_000, timeout=0.1) <= 20 * 16 + 1024
        assert one.field("req_cons") - begin == 20 * 16
        assert is_served(client)
    assert anonymous_bytes(pids) - before < CAP
    for one in guests:
        empty_responses(one)
        assert len(replies(one, 20)) == 20


EXPIRY_SECONDS = 1


def test_xsa_326_b_events_nobody_reads_expire_and_do_not_stop_others_for_ever() -> None:
    """CVE-2022-42311"""
    with (
        own_daemon("-w", f"watch-event={EXPIRY_SECONDS}") as (process, xen, client),
        newborn(xen, client) as sleeper,
        newborn(xen, client) as worker,
    ):
        for each in (sleeper, worker):
            give_home(client, each)
            introduce(client, each)
        worker.set_perms(home_of(worker), f"n{worker.domid}", f"r{sleeper.domid}")
        sleeper.watch(home_of(worker), "T" * 1000)
        fill_responses(sleeper)
        before = anonymous_bytes(process.lasting_pids())
        begin = time.monotonic()
        for i in range(50):
            worker.send(Op.WRITE, strings(f"n{i}") + b"v")
        for _ in range(50):
            assert worker.receive(4 * EXPIRY_SECONDS + PATIENCE).payload == b"OK\0"
        assert time.monotonic() - begin < 50 / 20 * EXPIRY_SECONDS + PATIENCE
        assert is_served(client)
        assert anonymous_bytes(process.lasting_pids()) - before < CAP
        time.sleep(EXPIRY_SECONDS * 1.5)  # the time under test
        empty_responses(sleeper)
        assert sleeper.events_so_far() == []


def test_xsa_326_c_transactions_of_a_guest_stay_below_its_memory_quota(
    guest: MakeGuest, client: Client, daemon: UnderTest
) -> None:
    """CVE-2022-42315"""
    process = known_process(daemon)
    one = guest()
    if EACH_REQUEST:
        set_quota(client, one, "memory", MEMORY_QUOTA)
    before = anonymous_bytes(process.lasting_pids())
    written = 0
    refusal = ""
    for _ in range(9):
        tx = one.start()
        for i in range(MEMORY_QUOTA // 10_000):
            outcome = one.outcome(Op.WRITE, strings(f"n{i}") + b"x" * 2000, tx=tx)
            if isinstance(outcome, str):
                refusal = outcome
                break
            written += 2000
        if refusal:
            break
    assert refusal in ("EIO", "ENOMEM", "ENOSPC")
    assert MEMORY_QUOTA / 2 < written <= MEMORY_QUOTA
    assert account(client, one.domid, "memory").used <= MEMORY_QUOTA
    assert anonymous_bytes(process.lasting_pids()) - before < 6 * MEMORY_QUOTA
    assert one.outcome(Op.RESET_WATCHES, b"\0") == b"OK\0", "this ends its transactions"
    assert account(client, one.domid, "memory").used < 1000


def test_xsa_326_e_nodes_made_before_the_introduction_count(client: Client, xen: SimulatedXen) -> None:
    """CVE-2022-42313"""
    with newborn(xen, client) as one:
        give_home(client, one)
        client.pipeline([(Op.MKDIR, strings(f"{home_of(one)}/d{i // 100}/{i}")) for i in range(500)])
        introduce(client, one)
        assert account(client, one.domid, "nodes").used == nodes_owned(client, one.domid, home_of(one)) == 506
        assert make_until_refused(one, "e", 30) <= 1000 - 506


def test_xsa_326_f_all_guests_together_stay_below_what_their_quotas_add_up_to() -> None:
    """All of CVE-2022-42311 to 42318: ten guests do all of it at once"""
    quota, count = 100_000, 10
    with own_daemon() as (process, xen, client), ExitStack() as stack:
        assert client.call(Op.CONTROL, strings("quota", "set", "memory", quota)) == b"OK\0"
        guests = [stack.enter_context(newborn(xen, client)) for _ in range(count)]
        for one in guests:
            give_home(client, one)
            introduce(client, one)
        pids = process.lasting_pids()
        before = anonymous_bytes(pids)
        for requests in (
            [(Op.WATCH, strings(f"w{i}", "t" * 100)) for i in range(100)],
            [(Op.WRITE, strings(f"n{i}") + b"x" * 2000) for i in range(60)],
            [(Op.TRANSACTION_START, b"")] * 20,  # last: while any is open, writes are rationed
        ):
            for one in guests:
                with suppress(TimeoutError):  # at its memory quota it is not read from any more
                    for op, payload in requests:
                        one.send_raw(pack(op, payload), timeout=0.2)
        for one in guests:
            assert account(client, one.domid, "memory").used <= quota + 4096
            fill_responses(one)
            one.put_bytes(pack(UNKNOWN) * 1000, timeout=0)
        for one in guests:
            client.write(f"{home_of(one)}/w0", b"v")
        assert is_served(client)
        assert process.lasting_pids() == pids
        assert anonymous_bytes(pids) - before < 10 * count * quota


# ---- XSA-330: watches that were not freed by RESET_WATCHES


def test_xsa_330_watches_that_are_reset_are_freed(guest: MakeGuest, client: Client, daemon: UnderTest) -> None:
    process = known_process(daemon)
    one = guest()
    watches = [(Op.WATCH, strings(f"{'w' * 50}{i}", "t" * 50)) for i in range(100)]
    before = 0
    rounds = 60 if EACH_REQUEST else 150
    for i in range(rounds):
        if i == rounds // 5:
            before = anonymous_bytes(process.lasting_pids())
        one.pipeline(watches)
        one.call(Op.RESET_WATCHES, b"\0")
        one.forget()
    assert anonymous_bytes(process.lasting_pids()) - before < CAP / 2
    client.write(f"{home_of(one)}/{'w' * 50}1", b"v")
    assert one.events_so_far() == []
    assert account(client, one.domid, "watches").used == 0


# ---- XSA-416: memory of a request was kept until its reply was read


def test_xsa_416_large_requests_of_a_guest_that_does_not_read_cost_little(
    guest: MakeGuest, client: Client, daemon: UnderTest
) -> None:
    process = known_process(daemon)
    guests = [guest() for _ in range(20)]
    before = anonymous_bytes(process.lasting_pids())
    request = pack(Op.WRITE, strings("v") + b"x" * 4000)
    for one in guests:
        fill_responses(one)
        assert one.put_bytes(request) == len(request), "the first one is taken"
        one.put_bytes(request * 39, timeout=0.05)
    many_turns(client)
    assert anonymous_bytes(process.lasting_pids()) - before < CAP
    for one in guests:
        empty_responses(one)
        assert one.receive().payload == b"ENOSPC\0"


# ---- XSA-414, XSA-415, XSA-421: accounts after failures


def test_xsa_421_a_node_made_and_removed_in_a_transaction_is_not_counted(guest: MakeGuest, client: Client) -> None:
    one = guest()
    for i in range(60 if EACH_REQUEST else 300):
        tx = one.start()
        one.write("x/deep", b"v", tx=tx)
        one.rm("x", tx=tx)
        one.write(f"y{i % 5}", b"v", tx=tx)
        assert one.commit(tx) == "OK"
    assert sorted(one.directory(home_of(one))) == [b"y0", b"y1", b"y2", b"y3", b"y4"]
    assert account(client, one.domid, "nodes").used == nodes_owned(client, one.domid, home_of(one)) == 6
    assert account(client, one.domid, "transactions").used == 0


# ---- XSA-483: accounts that survived their domain

QUOTA = 20


@pytest.mark.parametrize("how", ["death", "RELEASE"])
def test_xsa_483_a_domid_used_again_has_its_whole_quota(how: str) -> None:
    with own_daemon() as (_, xen, client):
        assert client.call(Op.CONTROL, strings("quota", "set", "nodes", QUOTA)) == b"OK\0"
        counts = set()
        for _ in range(10 if EACH_REQUEST else 30):
            with newborn(xen, client, domid=77) as one:
                give_home(client, one)
                introduce(client, one)
                counts.add(sum(isinstance(one.outcome(Op.MKDIR, strings(i)), bytes) for i in range(QUOTA + 2)))
                if how == "RELEASE":
                    client.call(Op.RELEASE, b"77\0")
                else:
                    xen.destroy(77)
                    eventually(lambda: not is_introduced(client, 77), "its end is noticed")
        assert len(counts) == 1, f"each domain could make another number of nodes: {counts}"
        assert counts.pop() in (QUOTA - 2, QUOTA - 1)


# ---- and the limits that XSA-326 brought are those of the newest daemon


@not_for_c("has no quotas of single domains")
def test_xsa_326_quotas_are_asked_for_each_domain_alone(guest: MakeGuest, client: Client) -> None:
    one, two = guest(), guest()
    client.call(Op.SET_QUOTA, strings(one.domid, "nodes", 5))
    assert make_until_refused(one, "d", 3) == 4 - 1
    assert two.pipeline([(Op.MKDIR, strings(f"d/{i}")) for i in range(50)])[-1].payload == b"OK\0"
