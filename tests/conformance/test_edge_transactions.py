"""Edge cases of transactions.

The forms of START and END are those of the newest C xenstored.  Which transactions conflict is this project's own rule:
a commit fails with EAGAIN only when something that the client was told in the transaction - a value, a list of
children, a permission list, that a node is missing - would be told differently now.  C xenstored aborts more: there, any
write to a node that the transaction has touched is a conflict.
Cases of the edge-case table covered here: 123-136, 138, 148.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.wire import Client, Event, Op, strings

# ---- START and END


def test_a_start_needs_no_payload_and_answers_a_decimal_id(client: Client) -> None:
    """transaction.c:do_transaction_start"""
    first, second = (client.call(Op.TRANSACTION_START, payload) for payload in (b"", b"\0"))
    assert first == b"1\0"
    assert second == b"2\0"


def test_transactions_do_not_nest(client: Client) -> None:
    """transaction.c:do_transaction_start"""
    tx = client.start()
    assert client.outcome(Op.TRANSACTION_START, b"\0", tx=tx) == "EBUSY"
    assert client.commit(tx) == "OK"


@pytest.mark.parametrize("payload", [b"X\0", b"T", b"T\0\0", b"", b"\0", b"t\0", b"TF\0"])
def test_an_end_that_is_neither_t_nor_f_leaves_the_transaction_open(client: Client, node: str, payload: bytes) -> None:
    """transaction.c:do_transaction_end"""
    tx = client.start()
    client.write(f"{node}/a", b"v", tx=tx)
    assert client.outcome(Op.TRANSACTION_END, payload, tx=tx) == "EINVAL"
    assert client.read(f"{node}/a", tx=tx) == b"v"
    assert client.commit(tx) == "OK"


@pytest.mark.parametrize("payload", [b"T\0", b"F\0"])
def test_an_end_of_no_transaction_is_enoent(client: Client, payload: bytes) -> None:
    """transaction.c:do_transaction_end"""
    assert client.outcome(Op.TRANSACTION_END, payload) == "ENOENT"


def test_a_transaction_ends_once_even_by_a_conflict(client: Client, other: Client, node: str) -> None:
    """transaction.c:transaction_lookup"""
    tx = client.start()
    client.read(node, tx=tx)
    other.write(node, b"v")
    assert client.commit(tx) == "EAGAIN"
    assert client.commit(tx) == "ENOENT"
    assert client.outcome(Op.READ, strings(node), tx=tx) == "ENOENT"


def test_a_socket_may_have_thirty_open_transactions(client: Client) -> None:
    """domain.c:domain_quota_val_exceeds: no quota for privileged connections"""
    ids = [client.start() for _ in range(30)]
    assert len(set(ids)) == 30
    for i, tx in enumerate(ids):
        assert client.outcome(Op.TRANSACTION_END, b"F\0" if i % 2 else b"T\0", tx=tx) == b"OK\0"


def test_reset_watches_ends_the_transaction_it_is_in(client: Client, node: str) -> None:
    """watch.c:do_reset_watches; XSA-484"""
    tx = client.start()
    client.write(f"{node}/a", b"v", tx=tx)
    assert client.outcome(Op.RESET_WATCHES, b"\0", tx=tx) == b"OK\0"
    assert client.commit(tx) == "ENOENT"
    assert not client.exists(f"{node}/a")


def test_a_failed_request_does_not_spoil_the_transaction(client: Client, node: str) -> None:
    """transaction.c"""
    tx = client.start()
    assert client.outcome(Op.READ, strings(f"{node}/missing"), tx=tx) == "ENOENT"
    assert client.outcome(Op.WRITE, strings(f"{node}//x"), tx=tx) == "EINVAL"
    client.write(f"{node}/a", b"v", tx=tx)
    assert client.commit(tx) == "OK"
    assert client.read(f"{node}/a") == b"v"


def test_a_connection_that_ends_takes_its_transactions_along(
    client: Client, connect: Callable[[], Client], node: str
) -> None:
    """transaction.c:conn_delete_all_transactions"""
    leaving = connect()
    leaving.write(f"{node}/a", b"v", tx=leaving.start())
    leaving.close()
    assert client.directory(node) == []


# ---- isolation


def test_changes_are_seen_inside_at_once_and_outside_after_the_commit(client: Client, other: Client, node: str) -> None:
    """transaction.c:do_transaction_end"""
    tx = client.start()
    client.write(f"{node}/a", b"v", tx=tx)
    assert client.directory(node, tx=tx) == [b"a"]
    assert client.directory(node) == other.directory(node) == []
    assert client.commit(tx) == "OK"
    assert other.directory(node) == [b"a"]


def test_an_aborted_transaction_leaves_nothing(client: Client, node: str) -> None:
    """transaction.c:do_transaction_end"""
    client.write(f"{node}/a", b"old")
    client.watch(node, "w")
    tx = client.start()
    client.write(f"{node}/a", b"new", tx=tx)
    client.write(f"{node}/b/c", b"new", tx=tx)
    client.set_perms(node, "r0", tx=tx)
    client.abort(tx)
    assert client.events_so_far() == []
    assert (client.directory(node), client.read(f"{node}/a"), client.get_perms(node)) == ([b"a"], b"old", [b"n0"])


def test_what_was_written_before_the_first_access_is_seen(client: Client, other: Client, node: str) -> None:
    """transaction.c: nothing is copied by a start"""
    client.write(f"{node}/a", b"old")
    tx = client.start()
    other.write(f"{node}/a", b"new")
    assert client.read(f"{node}/a", tx=tx) == b"new"
    assert client.commit(tx) == "OK"


def test_a_read_is_repeatable(client: Client, other: Client, node: str) -> None:
    """transaction.c:access_node"""
    client.write(f"{node}/a", b"old")
    tx = client.start()
    assert client.read(f"{node}/a", tx=tx) == b"old"
    other.write(f"{node}/a", b"new")
    assert client.read(f"{node}/a", tx=tx) == b"old"
    client.abort(tx)


# ---- events


def test_a_commit_causes_one_event_a_node_before_its_reply(client: Client, node: str) -> None:
    """transaction.c:finalize_transaction"""
    client.watch(node, "w")
    tx = client.start()
    for value in (b"1", b"2", b"3"):
        client.write(f"{node}/a", value, tx=tx)
    client.forget()
    assert client.commit(tx) == "OK"
    assert [message.op for message in client.arrived] == [Op.WATCH_EVENT, Op.TRANSACTION_END]
    assert client.events == [Event(f"{node}/a".encode(), b"w")]


def test_a_node_made_and_removed_inside_causes_no_event(client: Client, node: str) -> None:
    """transaction.c:finalize_transaction; XSA-421"""
    client.watch(node, "w")
    tx = client.start()
    client.write(f"{node}/x", b"v", tx=tx)
    client.rm(f"{node}/x", tx=tx)
    client.write(f"{node}/y", b"v", tx=tx)
    assert client.commit(tx) == "OK"
    assert client.events_so_far() == [Event(f"{node}/y".encode(), b"w")]
    assert client.directory(node) == [b"y"]


def test_an_empty_transaction_commits(client: Client) -> None:
    """transaction.c:do_transaction_end"""
    assert client.commit(client.start()) == "OK"


# ---- conflicts: only when something told to the client would be told differently


def test_a_blind_write_conflicts_with_nothing(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"old")
    tx = client.start()
    client.write(f"{node}/a", b"inside", tx=tx)
    other.write(f"{node}/a", b"outside")
    assert client.commit(tx) == "OK"
    assert other.read(f"{node}/a") == b"inside"


def test_reading_back_what_one_wrote_oneself_conflicts_with_nothing(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"old")
    tx = client.start()
    client.write(f"{node}/a", b"inside", tx=tx)
    assert client.read(f"{node}/a", tx=tx) == b"inside"
    other.write(f"{node}/a", b"outside")
    assert client.commit(tx) == "OK"
    assert other.read(f"{node}/a") == b"inside"


def test_two_makers_of_different_children_do_not_conflict(client: Client, other: Client, node: str) -> None:
    inside, outside = client.start(), other.start()
    client.write(f"{node}/parent/a", b"1", tx=inside)
    other.write(f"{node}/parent/b", b"2", tx=outside)
    assert client.commit(inside) == "OK"
    assert other.commit(outside) == "OK"
    assert sorted(client.directory(f"{node}/parent")) == [b"a", b"b"]


def test_a_value_rewritten_with_the_same_bytes_is_no_conflict(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"same")
    tx = client.start()
    client.read(f"{node}/a", tx=tx)
    client.write(f"{node}/b", b"v", tx=tx)
    other.write(f"{node}/a", b"same")
    assert client.commit(tx) == "OK"


@pytest.mark.parametrize("writes", [True, False], ids=["writing", "read-only"])
def test_a_value_read_and_changed_outside_is_a_conflict(client: Client, other: Client, node: str, writes: bool) -> None:
    client.write(f"{node}/a", b"old")
    tx = client.start()
    client.read(f"{node}/a", tx=tx)
    if writes:
        client.write(f"{node}/b", b"v", tx=tx)
    other.write(f"{node}/a", b"new")
    assert client.commit(tx) == "EAGAIN"
    assert not client.exists(f"{node}/b")


@pytest.mark.parametrize("writes", [True, False], ids=["writing", "read-only"])
def test_a_node_found_missing_and_made_outside_is_a_conflict(
    client: Client, other: Client, node: str, writes: bool
) -> None:
    tx = client.start()
    assert client.outcome(Op.READ, strings(f"{node}/a"), tx=tx) == "ENOENT"
    if writes:
        client.write(f"{node}/b", b"v", tx=tx)
    other.write(f"{node}/a", b"")
    assert client.commit(tx) == "EAGAIN"
    assert not client.exists(f"{node}/b")


def test_a_node_read_and_removed_outside_is_a_conflict(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"v")
    tx = client.start()
    client.read(f"{node}/a", tx=tx)
    other.rm(f"{node}/a")
    assert client.commit(tx) == "EAGAIN"


@pytest.mark.parametrize("change", ["make", "remove"])
def test_a_list_of_children_that_changes_outside_is_a_conflict(
    client: Client, other: Client, node: str, change: str
) -> None:
    client.write(f"{node}/a", b"v")
    tx = client.start()
    assert client.directory(node, tx=tx) == [b"a"]
    if change == "make":
        other.mkdir(f"{node}/b")
    else:
        other.rm(f"{node}/a")
    assert client.commit(tx) == "EAGAIN"


def test_a_list_of_children_does_not_depend_on_their_values(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"old")
    tx = client.start()
    client.directory(node, tx=tx)
    client.write(f"{node}/b", b"v", tx=tx)
    other.write(f"{node}/a", b"new")
    assert client.commit(tx) == "OK"


def test_a_permission_list_read_and_changed_outside_is_a_conflict(client: Client, other: Client, node: str) -> None:
    tx = client.start()
    client.get_perms(node, tx=tx)
    other.set_perms(node, "n0", "r5")
    assert client.commit(tx) == "EAGAIN"


def test_a_siblings_value_is_no_conflict(client: Client, other: Client, node: str) -> None:
    client.write(f"{node}/a", b"v")
    client.write(f"{node}/b", b"v")
    tx = client.start()
    client.read(f"{node}/a", tx=tx)
    other.write(f"{node}/b", b"new")
    assert client.commit(tx) == "OK"


def test_a_child_made_outside_is_no_conflict_for_a_reader_of_the_value(
    client: Client, other: Client, node: str
) -> None:
    tx = client.start()
    client.read(node, tx=tx)
    client.write(f"{node}/a", b"v", tx=tx)
    other.write(f"{node}/b", b"v")
    assert client.commit(tx) == "OK"
    assert sorted(client.directory(node)) == [b"a", b"b"]


def test_of_two_read_modify_writes_one_is_told_to_try_again(client: Client, other: Client, node: str) -> None:
    client.write(node, b"0")
    for _ in range(5):
        first, second = client.start(), other.start()
        for one, tx in ((client, first), (other, second)):
            one.write(node, b"%d" % (int(one.read(node, tx=tx)) + 1), tx=tx)
        assert client.commit(first) == "OK"
        assert other.commit(second) == "EAGAIN"
        again = other.start()
        other.write(node, b"%d" % (int(other.read(node, tx=again)) + 1), tx=again)
        assert other.commit(again) == "OK"
    assert client.read(node) == b"10"


def test_two_transactions_that_remove_the_same_nodes_leave_the_daemon_alive(
    client: Client, other: Client, node: str
) -> None:
    """XSA-440"""
    paths = [f"{node}/{i}" for i in range(50)]
    for path in paths:
        client.write(path, b"v")
    first, second = client.start(), other.start()
    for path in paths:
        client.rm(path, tx=first)
        other.rm(path, tx=second)
    assert client.commit(first) == "OK"
    assert other.commit(second) in ("OK", "EAGAIN")
    assert client.directory(node) == []


# ---- what all this is for: many toolstacks at once

TOGETHER = 64


def device_requests(node: str, domid: int) -> list[tuple[Op, bytes]]:
    """What a toolstack sends, in one transaction, to give a domain a network card."""
    frontend, backend = f"{node}/domain/{domid}/device/vif/0", f"{node}/domain/0/backend/vif/{domid}/0"
    requests: list[tuple[Op, bytes]] = []
    for path, peer, perms in ((frontend, backend, ("n0", f"r{domid}")), (backend, frontend, ("r0", f"b{domid}"))):
        requests += [
            (Op.RM, strings(path)),
            (Op.MKDIR, strings(path)),
            (Op.SET_PERMS, strings(path, *perms)),
        ]
        for key, value in (("peer", peer), ("state", "1"), ("handle", "0"), ("mac", "00:16:3e:00:00:01")):
            requests.append((Op.WRITE, strings(f"{path}/{key}") + value.encode()))
    return requests


@pytest.mark.parametrize("parents", ["absent", "present"])
def test_interleaved_device_creations_all_commit_at_the_first_try(
    client: Client, connect: Callable[[], Client], node: str, parents: str
) -> None:
    domids = range(1, TOGETHER + 1)
    if parents == "present":
        for domid in domids:
            client.mkdir(f"{node}/domain/{domid}/device/vif")
            client.mkdir(f"{node}/domain/0/backend/vif/{domid}")
    toolstacks = [(connect(), device_requests(node, domid)) for domid in domids]
    open_ones = [(one, one.start(), requests) for one, requests in toolstacks]
    for turn in range(len(open_ones[0][2])):
        for one, tx, requests in open_ones:
            op, payload = requests[turn]
            outcome = one.outcome(op, payload, tx=tx)
            assert outcome == b"OK\0" or (op == Op.RM and outcome == "ENOENT")
    assert [one.commit(tx) for one, tx, _ in open_ones] == ["OK"] * TOGETHER
    for domid in domids:
        assert client.read(f"{node}/domain/{domid}/device/vif/0/state") == b"1"
        assert client.get_perms(f"{node}/domain/0/backend/vif/{domid}/0/mac") == [b"r0", f"b{domid}".encode()]
    assert len(client.directory(f"{node}/domain/0/backend/vif")) == TOGETHER
