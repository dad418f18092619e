"""What a transcript cannot say of a daemon's sockets: signals, a reader that does not read, numbers repeated, a fresh store.

Expected is what the newest C xenstored answers; a test's docstring names the function that decides it there.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import running
from tests.conformance.wire import PATIENCE, Client, Event, Op, pack, strings
from tests.oracle.daemons import Daemon


def test_a_fresh_store_has_tool_and_xenstored(fresh_daemon: Daemon) -> None:
    """core.c:setup_structure"""
    with Client(fresh_daemon.socket) as client:
        assert client.directory("/") == [b"tool"]
        assert client.directory("/tool") == [b"xenstored"]
        assert client.get_perms("/") == client.get_perms("/tool/xenstored") == [b"n0"]


def test_any_domain_may_see_releases_but_not_introductions(fresh_daemon: Daemon) -> None:
    """core.c:setup_structure"""
    with Client(fresh_daemon.socket) as client:
        assert client.get_perms("@releaseDomain") == [b"n0", b"r32757"]
        assert client.get_perms("@introduceDomain") == [b"n0"]


def test_a_very_deep_tree_can_be_made_read_and_removed(client: Client, node: str) -> None:
    """XSA-418: nothing recurses on what a client sends"""
    path = node + "/d" * 1900
    client.write(path, b"v")
    assert client.read(path) == b"v"
    assert client.outcome(Op.CONTROL, b"check\0") == b"OK\0"
    client.rm(f"{node}/d")
    assert client.directory(node) == []


def test_children_are_listed_in_the_order_of_their_making(client: Client, node: str) -> None:
    """core.c:add_child"""
    for name in "cab":
        client.mkdir(f"{node}/{name}")
    assert client.directory(node) == [b"c", b"a", b"b"]
    client.rm(f"{node}/a")
    client.mkdir(f"{node}/a")
    client.write(f"{node}/c", b"again")
    assert client.directory(node) == [b"c", b"b", b"a"]


UNKNOWN_TX = 4242


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """core.c:main"""
    replies = client.pipeline([(Op.READ, b"/tool\0")] * 10)
    assert [reply.req_id for reply in replies] == sorted(reply.req_id for reply in replies)
    assert [(reply.op, reply.payload) for reply in replies] == [(Op.READ, b"")] * 10


def test_requests_may_arrive_byte_by_byte(client: Client) -> None:
    """core.c:handle_input"""
    for byte in pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=9):
        client.send_raw(bytes([byte]))
        time.sleep(0.001)
    assert client.reply(9).payload == b"/local/domain/7\0"


@pytest.mark.parametrize(
    "part", [pack(Op.READ, length=5)[:7], pack(Op.READ, b"/tool", length=50)], ids=["header", "body"]
)
def test_the_end_of_the_stream_in_a_message_closes_the_connection(client: Client, other: Client, part: bytes) -> None:
    """posix.c:readfd"""
    client.send_raw(part)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed_by_daemon()
    assert client.arrived == []
    assert other.read("/tool") == b""


def test_whatever_came_before_the_end_of_the_stream_is_done(client: Client, other: Client, node: str) -> None:
    """core.c:main: the end is met when everything before it was read"""
    number = 300
    client.send_raw(b"".join(pack(Op.WRITE, strings(f"{node}/{n}")) for n in range(number)))
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed_by_daemon()
    assert len(other.children(node)) == number


def test_a_reply_repeats_type_request_id_and_transaction_id(client: Client) -> None:
    """core.c:send_reply"""
    tx = client.start()
    for req_id in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        client.send(Op.READ, b"/tool\0", tx=tx, req_id=req_id)
        assert client.receive() == (Op.READ, req_id, tx, b"")


def test_an_error_repeats_request_id_and_transaction_id_and_names_an_errno(client: Client) -> None:
    """core.c:send_error"""
    tx = client.start()
    client.send(Op.READ, b"/missing\0", tx=tx, req_id=77)
    assert client.receive() == (Op.ERROR, 77, tx, b"ENOENT\0")


def test_a_child_made_outside_is_no_conflict_for_a_reader_of_the_value(
    client: Client, other: Client, node: str
) -> None:
    tx = client.start()
    client.read(node, tx=tx)
    client.write(f"{node}/a", b"v", tx=tx)
    other.write(f"{node}/b", b"v")
    assert client.commit(tx) == "OK"
    assert sorted(client.directory(node)) == [b"a", b"b"]


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


def test_an_event_that_is_still_waiting_is_not_queued_again(client: Client, other: Client, node: str) -> None:
    """core.c:send_event"""
    filling = 100  # of nearly 4 KiB each: more than a socket's buffer takes
    client.watch(f"{node}/fill", "T" * 3900)
    client.watch(f"{node}/x", "t")
    client.watch(f"{node}/y", "t")
    for i in range(filling):
        other.write(f"{node}/fill/{i}", b"")
    for i in range(7):
        other.write(f"{node}/{'xy'[i % 2]}", str(i).encode())
    events = client.events_so_far()
    assert [event.path for event in events[:filling]] == [f"{node}/fill/{i}".encode() for i in range(filling)]
    assert sorted(event.path for event in events[filling:]) == [f"{node}/x".encode(), f"{node}/y".encode()]


def test_ten_thousand_changes_leave_a_reader_that_sleeps_few_events(client: Client, other: Client, node: str) -> None:
    """core.c:send_event; XSA-349"""
    client.watch(node, "T" * 3000)
    for _ in range(100):
        replies = other.pipeline([(Op.WRITE, strings(node) + b"v")] * 100)
        assert all(reply.op == Op.WRITE for reply in replies)
    events = client.events_so_far()
    assert set(events) == {Event(node.encode(), b"T" * 3000)}
    assert len(events) < 500


def wait_for(path: Path) -> bool:
    """True when the file is there and not empty before patience ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.02)
    return False


def test_sighup_reopens_the_trace_file(tmp_path: Path) -> None:
    """posix.c"""
    trace, rotated = tmp_path / "trace", tmp_path / "trace.1"
    with running("-T", str(trace)) as daemon, Client(daemon.socket) as client:
        client.write("/before", b"")
        assert wait_for(trace)
        trace.rename(rotated)
        os.kill(daemon.pid, signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while not trace.exists() and time.monotonic() < deadline:
            client.write("/after", b"")
            time.sleep(0.02)
        client.write("/after", b"")
        assert wait_for(trace)
        assert client.read("/before") == b""


def test_sigterm_ends_the_daemon_and_another_can_take_its_place(fresh_daemon: Daemon) -> None:
    """posix.c"""
    with Client(fresh_daemon.socket) as client:
        client.write("/x", b"v")
        pids = fresh_daemon.pids()
        os.kill(fresh_daemon.pid, signal.SIGTERM)
        assert client.is_closed_by_daemon()
    deadline = time.monotonic() + PATIENCE
    while fresh_daemon.running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not fresh_daemon.running()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    fresh_daemon.stop()
    fresh_daemon.start()
    with Client(fresh_daemon.socket) as client:
        assert client.read("/tool") == b""
