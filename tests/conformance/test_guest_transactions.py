"""Transactions of guests: what they depend on besides what was read, namely rights and permission lists.

A commit fails with EAGAIN only when something that the guest was told, an access decision, or the permission list of a node
that it makes would be different now.  C xenstored aborts more: there, any write to a node that the transaction has touched
is a conflict.
Cases of the edge-case table covered here: 128-131 and 136, with guests.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.test_guest_basics import MakeGuest, account, differs, home_of, nodes_owned
from tests.conformance.wire import Client, Event, Op, strings
from tests.conformance.xen import Guest

Act = Callable[[Guest, str, int], None]


def write(guest: Guest, path: str, tx: int) -> None:
    guest.write(path, b"new", tx=tx)


def make_below(guest: Guest, path: str, tx: int) -> None:
    guest.mkdir(f"{path}/kid", tx=tx)


def remove(guest: Guest, path: str, tx: int) -> None:
    guest.rm(path, tx=tx)


def make_deep_below(guest: Guest, path: str, tx: int) -> None:
    guest.write(f"{path}/a/b/c", b"new", tx=tx)


CHANGES = [write, make_below, remove, make_deep_below]


@pytest.fixture
def one(guest: MakeGuest) -> Guest:
    return guest()


@pytest.fixture
def shared(one: Guest, client: Client, node: str) -> str:
    """A node that the guest may read and write."""
    path = f"{node}/shared"
    client.write(path, b"old")
    client.set_perms(path, "n0", f"b{one.domid}")
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_right_taken_away_before_the_end_is_not_used(one: Guest, client: Client, shared: str, change: Act) -> None:
    client.watch(shared, "t")
    tx = one.start()
    change(one, shared, tx)
    client.set_perms(shared, "n0", f"r{one.domid}")
    assert client.events_so_far() == [Event(shared.encode(), b"t")]
    assert one.commit(tx) == "EAGAIN"
    assert client.events_so_far() == []
    assert (client.read(shared), client.directory(shared)) == (b"old", [])


@differs("EAGAIN: any write to a touched node is a conflict")
@pytest.mark.parametrize("change", CHANGES)
def test_a_right_that_is_given_again_in_time_is_used(one: Guest, client: Client, shared: str, change: Act) -> None:
    """What counts is whether the answers would be the same at the end"""
    tx = one.start()
    change(one, shared, tx)
    client.set_perms(shared, "n0", f"r{one.domid}")
    client.set_perms(shared, "n0", f"b{one.domid}")
    assert one.commit(tx) == "OK"


def test_a_refusal_that_would_be_none_any_more_is_a_conflict(one: Guest, client: Client, node: str) -> None:
    tx = one.start()
    assert one.outcome(Op.READ, strings(node), tx=tx) == "EACCES"
    one.write("a", b"v", tx=tx)
    client.set_perms(node, "n0", f"r{one.domid}")
    assert one.commit(tx) == "EAGAIN"
    assert one.directory(home_of(one)) == []


def test_a_missing_node_that_would_be_hidden_now_is_a_conflict(one: Guest, client: Client, shared: str) -> None:
    tx = one.start()
    assert one.outcome(Op.READ, strings(f"{shared}/missing"), tx=tx) == "ENOENT"
    client.set_perms(shared, "n0")
    assert one.commit(tx) == "EAGAIN"


def test_a_new_node_whose_permissions_would_differ_is_a_conflict(one: Guest, client: Client, shared: str) -> None:
    tx = one.start()
    one.mkdir(f"{shared}/kid", tx=tx)
    client.set_perms(shared, "r0", f"b{one.domid}", "r9")
    assert one.commit(tx) == "EAGAIN"
    assert client.directory(shared) == []


@differs("EAGAIN: any write to a touched node is a conflict")
def test_guests_that_make_different_children_of_one_node_do_not_disturb_each_other(
    guest: MakeGuest, client: Client, node: str
) -> None:
    guests = [guest() for _ in range(3)]
    client.set_perms(node, "n0", *(f"b{one.domid}" for one in guests))
    transactions = [(one, one.start()) for one in guests]
    for one, tx in transactions:
        one.write(f"{node}/{one.domid}/x", b"v", tx=tx)
    assert [one.commit(tx) for one, tx in transactions] == ["OK"] * 3
    assert sorted(client.directory(node)) == sorted(str(one.domid).encode() for one in guests)
    for one in guests:
        assert account(client, one.domid, "nodes").used == 3
        assert nodes_owned(client, one.domid, node) == 2


@differs("EAGAIN: any write to a touched node is a conflict")
def test_writes_without_reading_do_not_disturb_each_other(guest: MakeGuest, client: Client, node: str) -> None:
    first, second = guest(), guest()
    client.set_perms(node, "n0", f"b{first.domid}", f"b{second.domid}")
    transactions = [(one, one.start()) for one in (first, second)]
    for one, tx in transactions:
        one.write(node, str(one.domid).encode(), tx=tx)
    assert [one.commit(tx) for one, tx in transactions] == ["OK", "OK"]
    assert client.read(node) == str(second.domid).encode()


def test_of_two_guests_that_read_and_write_one_is_told_to_try_again(
    guest: MakeGuest, client: Client, node: str
) -> None:
    first, second = guest(), guest()
    client.write(node, b"0")
    client.set_perms(node, "n0", f"b{first.domid}", f"b{second.domid}")
    transactions = [(one, one.start()) for one in (first, second)]
    for one, tx in transactions:
        one.write(node, one.read(node, tx=tx) + b"+", tx=tx)
    assert [one.commit(tx) for one, tx in transactions] == ["OK", "EAGAIN"]
    assert client.read(node) == b"0+"


def test_a_transaction_ends_with_its_guests_connection(one: Guest, client: Client, shared: str) -> None:
    """domain.c:domain_conn_reset"""
    client.watch(shared, "t")
    tx = one.start()
    one.write(shared, b"new", tx=tx)
    client.call(Op.INTRODUCE, strings(one.domid, 1, one.port))
    one.pending.clear()
    assert one.commit(tx) == "ENOENT"
    assert client.events_so_far() == []
    assert client.read(shared) == b"old"
    assert account(client, one.domid, "transactions").used == 0


def test_events_of_a_guests_transaction_come_once_for_each_node_before_its_reply(one: Guest, client: Client) -> None:
    """transaction.c:finalize_transaction"""
    one.watch("a", "t")
    tx = one.start()
    for value in (b"1", b"2"):
        one.write("a/x", value, tx=tx)
        one.write("a/y", value, tx=tx)
    one.write("a/gone", b"v", tx=tx)
    one.rm("a/gone", tx=tx)
    one.forget()
    assert one.commit(tx) == "OK"
    assert [message.op for message in one.arrived] == [Op.WATCH_EVENT, Op.WATCH_EVENT, Op.TRANSACTION_END]
    assert one.events == [Event(b"a/x", b"t"), Event(b"a/y", b"t")]
