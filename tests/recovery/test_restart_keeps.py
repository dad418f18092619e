"""What a client has with the daemon when Logic is killed, it has afterwards, over the same connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.wire import Client, Message, Op, pack, strings
from tests.oracle.daemons import OurDaemon
from tests.recovery.boxview import BoxView
from tests.recovery.logic import PATIENCE, kill_logic, state_stopped, stopped, wait_for_logic

REGION = 8192


@pytest.fixture
def client(daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as connected:
        yield connected


@pytest.fixture
def other(daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as connected:
        yield connected


def wait_until_received(daemon: OurDaemon, unread: int) -> None:
    """Waits until this much input lies unconsumed in the regions."""
    deadline = time.monotonic() + PATIENCE
    with BoxView(daemon.pid) as view:
        while (found := sum(slot.unread for slot in view.slots(1024))) != unread:
            assert time.monotonic() < deadline, f"{found} bytes of {unread} were received"
            time.sleep(0.001)


def test_watches_stay_with_paths_as_written_tokens_and_depths(daemon: OurDaemon, client: Client, other: Client) -> None:
    client.watch("/w", "absolute")
    client.watch("relative", "rel")
    client.watch("/deep", "only one level", "1")
    client.watch("/gone", "not any more")
    client.call(Op.UNWATCH, strings("/gone", "not any more"))
    kill_logic(daemon)
    kill_logic(daemon)
    for path in ("/w", "/w/x", "/local/domain/0/relative/y", "/deep/1", "/deep/1/2", "/gone", "/elsewhere"):
        other.write(path)
    assert client.events_so_far() == [
        (b"/w", b"absolute"),
        (b"/w/x", b"absolute"),
        (b"relative/y", b"rel"),
        (b"/deep/1", b"only one level"),
    ]
    assert client.outcome(Op.WATCH, strings("/w", "absolute")) == "EEXIST"
    assert client.call(Op.UNWATCH, strings("/w", "absolute")) == b"OK\0"
    other.write("/w")
    assert client.events_so_far() == []


def test_events_come_in_the_order_in_which_watches_were_set_before_and_after_a_restart(
    daemon: OurDaemon, client: Client, other: Client
) -> None:
    client.watch("/w/a", "1")
    kill_logic(daemon)
    client.watch("/w", "2")
    kill_logic(daemon)
    client.watch("/w/a", "3")
    other.write("/w/a")
    assert [event.token for event in client.events_so_far()] == [b"1", b"2", b"3"]


def test_a_transaction_stays_open_with_its_reads_and_writes(daemon: OurDaemon, client: Client, other: Client) -> None:
    client.write("/t/read", b"old")
    client.write("/t/removed", b"")
    tx = client.start()
    assert client.read("/t/read", tx=tx) == b"old"
    assert client.directory("/t", tx=tx) == [b"read", b"removed"]
    client.write("/t/written", b"uncommitted", tx=tx)
    client.rm("/t/removed", tx=tx)
    kill_logic(daemon)
    other.write("/t/read", b"new")
    kill_logic(daemon)
    assert client.read("/t/read", tx=tx) == b"old"
    assert client.directory("/t", tx=tx) == [b"read", b"written"]
    assert client.read("/t/written", tx=tx) == b"uncommitted"
    assert not client.exists("/t/removed", tx=tx)
    assert not other.exists("/t/written")
    assert other.exists("/t/removed")
    kill_logic(daemon)
    assert client.commit(tx) == "EAGAIN"
    assert client.outcome(Op.READ, strings("/t/read"), tx=tx) == "ENOENT"


def test_a_transaction_commits_after_a_restart(daemon: OurDaemon, client: Client, other: Client) -> None:
    client.write("/t/a", b"1")
    other.watch("/t", "")
    tx = client.start()
    value = int(client.read("/t/a", tx=tx))
    kill_logic(daemon)
    client.write("/t/a", b"%d" % (value + 1), tx=tx)
    client.set_perms("/t/a", "n0", "r7", tx=tx)
    kill_logic(daemon)
    assert other.events_so_far() == []
    assert client.commit(tx) == "OK"
    assert other.events_so_far() == [(b"/t/a", b"")]
    kill_logic(daemon)
    assert other.read("/t/a") == b"2"
    assert other.get_perms("/t/a") == [b"n0", b"r7"]
    assert client.start() == tx + 1


def test_an_aborted_transaction_stays_aborted(daemon: OurDaemon, client: Client) -> None:
    tx = client.start()
    client.write("/t", b"", tx=tx)
    client.abort(tx)
    kill_logic(daemon)
    assert client.outcome(Op.TRANSACTION_END, strings("T"), tx=tx) == "ENOENT"
    assert not client.exists("/t")


def test_values_permissions_and_order_of_children_stay(daemon: OurDaemon, client: Client) -> None:
    for name in ("z", "a", "m"):
        client.write(f"/n/{name}", name.encode())
    client.set_perms("/n/a", "b0", "r4")
    client.rm("/n/z")
    client.mkdir("/n/z")
    before = client.call(Op.DIRECTORY_PART, strings("/n", "0"))
    kill_logic(daemon)
    assert client.directory("/n") == [b"a", b"m", b"z"]
    assert client.call(Op.DIRECTORY_PART, strings("/n", "0")) == before, "the generation has changed"
    assert client.read("/n/m") == b"m"
    assert client.read("/n/z") == b""
    assert client.get_perms("/n/a") == [b"b0", b"r4"]


def test_events_that_were_not_read_are_all_there_in_order(daemon: OurDaemon, client: Client, other: Client) -> None:
    token = "t" * 300
    client.watch("/w", token)
    number = 0
    for n in (500, 500, 100, 1):
        other.pipeline((Op.WRITE, strings(f"/w/{number + k}")) for k in range(n))
        number += n
        kill_logic(daemon)
    assert number * len(token) > 20 * REGION
    kill_logic(daemon)
    for k in range(number):
        assert client.receive().payload == strings(f"/w/{k}", token)
        if k in {10, 400, 700}:
            kill_logic(daemon)
    assert client.read("/w/0") == b""
    assert client.events == [(f"/w/{k}".encode(), token.encode()) for k in range(number)]


@pytest.mark.parametrize("since", [1 << 24, 1 << 31, 0x9000_0000, (1 << 32) - (1 << 24)])
def test_what_was_pending_long_ago_is_not_sent_again(
    daemon: OurDaemon, client: Client, other: Client, since: int
) -> None:
    """Positions run modulo 2**32: after gigabytes of output an old one may look like one to come."""
    client.watch("/w", "t" * 300)
    for first in range(0, 2000, 500):
        other.pipeline((Op.WRITE, strings(f"/w/{first + k}")) for k in range(500))
    for _ in range(2000):
        client.receive()
    time.sleep(1.2)  # State looks for what has moved on at every wake-up, and wakes up once a second at least
    with stopped(daemon) as logic, BoxView(daemon.pid, writable=True) as view:
        view.shift_output(max(view.slots(), key=lambda slot: slot.made).number, since)
        logic.kill()
    assert client.ask(Op.READ, strings("/w/0")).payload == b""
    assert len(client.arrived) == 1 + 1 + 2000 + 1, "the reply to WATCH, its first event, the events, the reply to READ"


def test_replies_that_were_not_read_are_all_there_in_order(daemon: OurDaemon, client: Client) -> None:
    values = [bytes([k]) * (4000 - k) for k in range(120)]
    for k, value in enumerate(values):
        client.write(f"/v/{k}", value)
    client.send_raw(b"".join(pack(Op.READ, strings(f"/v/{k}"), req_id=1000 + k) for k in range(120)))
    time.sleep(0.05)  # until the socket is full: nobody reads
    for _ in range(3):
        kill_logic(daemon)
        time.sleep(0.01)
    for k, value in enumerate(values):
        assert client.receive() == Message(Op.READ, 1000 + k, 0, value)
        if k % 40 == 20:
            kill_logic(daemon)


def test_half_a_request_waits_for_its_other_half(daemon: OurDaemon) -> None:
    def request(cut: int) -> bytes:
        return pack(Op.WRITE, strings(f"/half/{cut:03}") + b"%d" % cut * 20, req_id=cut)

    cuts = range(1, len(request(0)))
    with ExitStack() as stack:
        clients = {cut: stack.enter_context(Client(daemon.socket)) for cut in cuts}
        for cut, client in clients.items():
            client.send_raw(request(cut)[:cut])
        wait_until_received(daemon, sum(cuts))
        kill_logic(daemon)
        for cut, client in clients.items():
            client.send_raw(request(cut)[cut:])
        for cut, client in clients.items():
            assert client.receive() == Message(Op.WRITE, cut, 0, b"OK\0")
            assert client.read(f"/half/{cut:03}") == b"%d" % cut * 20


def test_a_request_that_comes_in_single_bytes_survives_a_kill_between_them(daemon: OurDaemon, client: Client) -> None:
    first, second = pack(Op.WRITE, strings("/a") + b"1", req_id=1), pack(Op.READ, strings("/a"), req_id=2)
    data = first + second
    for k in range(len(data)):
        client.send_raw(data[k : k + 1])
        if k % 4 == 0:
            kill_logic(daemon)
    assert client.receive() == Message(Op.WRITE, 1, 0, b"OK\0")
    assert client.receive() == Message(Op.READ, 2, 0, b"1")


def test_what_is_sent_while_no_logic_runs_is_served_by_the_next(daemon: OurDaemon, client: Client) -> None:
    client.write("/a", b"1")
    logic = wait_for_logic(daemon)
    with state_stopped(daemon):
        logic.kill()
        logic.close()
        client.send_raw(b"".join(pack(Op.WRITE, strings(f"/n/{k}"), req_id=1000 + k) for k in range(300)))
        newcomer = Client(daemon.socket)
        newcomer.send_raw(pack(Op.READ, strings("/a"), req_id=5))
    with newcomer:
        assert newcomer.receive() == Message(Op.READ, 5, 0, b"1")
    for k in range(300):
        assert client.receive() == Message(Op.WRITE, 1000 + k, 0, b"OK\0")
    assert len(client.directory("/n")) == 300


def test_trace_settings_stay(daemon: OurDaemon, client: Client) -> None:
    file = daemon.run_dir / "trace"
    assert client.call(Op.CONTROL, strings("logfile", str(file))) == b"OK\0"
    assert client.call(Op.CONTROL, strings("log", "+acc")) == b"OK\0"
    assert client.call(Op.CONTROL, strings("log", "-obj")) == b"OK\0"
    settings = client.call(Op.CONTROL, strings("log"))
    kill_logic(daemon)
    assert client.call(Op.CONTROL, strings("log")) == settings
    client.watch("/watched/after/the/kill", "token")
    text = file.read_text().rpartition("***")[2]
    assert "/watched/after/the/kill" in text
    assert "CREATE" not in text
    assert client.call(Op.CONTROL, strings("log", "off")) == b"OK\0"
    size = file.stat().st_size
    kill_logic(daemon)
    client.read("/tool/xenstored")
    assert file.stat().st_size == size


def test_quotas_stay(daemon: OurDaemon, client: Client) -> None:
    client.call(Op.SET_QUOTA, strings("watches", "77"))
    assert client.call(Op.CONTROL, strings("quota", "set", "nodes", "1234")) == b"OK\0"
    kill_logic(daemon)
    assert client.call(Op.GET_QUOTA, strings("watches")) == b"77\0"
    assert client.call(Op.GET_QUOTA, strings("nodes")) == b"1234\0"
