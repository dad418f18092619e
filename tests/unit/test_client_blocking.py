"""The blocking client against a daemon that does what the test says."""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from protocol.client import Client, ConnectionLost, RequestTooLong, StoreUnavailable, Transaction, WatchEvent
from protocol.client.blocking import Watch
from protocol.errors import EAGAIN, ENOENT, StoreError
from protocol.ops import Op
from protocol.wire import HEADER, Message
from tests.unit.test_client_fake import Answer, FakeDaemon, event, no, ok, token_of

Pair = tuple[FakeDaemon, Client]
Start = Callable[[Answer], Pair]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a fake daemon and a client that is connected to it."""
    with ExitStack() as stack:

        def begin(answer: Answer) -> Pair:
            daemon = stack.enter_context(FakeDaemon(tmp_path / "socket", answer))
            return daemon, stack.enter_context(Client(daemon.path, timeout=5))

        yield begin


def yes(message: Message) -> bytes:
    """Grants everything; transactions are numbered by their requests."""
    if message.op == Op.TRANSACTION_START:
        return ok(message, b"%d\0" % message.req_id)
    if message.op == Op.WATCH:
        return ok(message) + event("/initial", token_of(message))
    return ok(message)


def ops(daemon: FakeDaemon) -> list[int]:
    return [message.op for message in daemon.received]


# Connecting


def test_the_environment_says_where_the_daemon_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENSTORED_PATH", raising=False)
    monkeypatch.setenv("XENSTORED_RUNDIR", str(tmp_path))
    with FakeDaemon(tmp_path / "socket", yes), Client() as client:
        client.mkdir("/a")


def test_nobody_there_is_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="socket: No such file"):
        Client(str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "socket"))
        with pytest.raises(StoreUnavailable, match="socket: Connection refused"):
            Client(str(tmp_path / "socket"))


def test_an_ordinary_file_is_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreUnavailable, match="file is neither a socket nor a device"):
        Client(str(tmp_path / "file"))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_crowded_socket_is_tried_until_time_runs_out(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with closing(socket.socket(socket.AF_UNIX)) as crowded, ExitStack() as stack:
        crowded.bind(path)
        crowded.listen(0)
        stack.enter_context(Client(path))
        with pytest.raises(StoreUnavailable, match="too many clients"):
            Client(path, timeout=0.05)


def test_a_device_is_used_like_a_socket_with_a_smaller_message(tmp_path: Path) -> None:
    # A pipe stands in for the device: what is written comes back, so a request is its own reply.
    path = tmp_path / "xenbus"
    os.mkfifo(path)
    with Client(str(path), timeout=5) as client:
        assert client.read("/a") == b"/a\0"
        client.write("/a", bytes(4080 - 3))
        with pytest.raises(RequestTooLong, match="4081 bytes of payload, 4080 are allowed"):
            client.write("/a", bytes(4080 - 2))


def test_descriptors_are_closed_with_the_client(tmp_path: Path) -> None:
    path = tmp_path / "xenbus"
    os.mkfifo(path)
    before = sorted(os.listdir("/proc/self/fd"))
    with Client(str(path)) as client:
        assert sorted(os.listdir("/proc/self/fd")) != before
    assert sorted(os.listdir("/proc/self/fd")) == before
    client.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        client.read("/a")


# Requests


def test_a_value_comes_back_byte_for_byte(start: Start) -> None:
    _, client = start(lambda m: ok(m, b"\0\xffvalue\0"))
    assert client.read("/a") == b"\0\xffvalue\0"


def test_a_refusal_is_raised_by_its_class(start: Start) -> None:
    _, client = start(lambda m: no(m, "ENOENT"))
    with pytest.raises(ENOENT):
        client.read("/a")


def test_the_longest_request_fits_a_longer_one_is_not_sent(start: Start) -> None:
    daemon, client = start(yes)
    client.write("/a", bytes(4093))
    with pytest.raises(StoreError, match="E2BIG: the request needs 4097 bytes"):
        client.write("/a", bytes(4094))
    assert len(daemon.received) == 1


def test_a_reply_may_arrive_in_pieces(start: Start) -> None:
    daemon, client = start(lambda m: None)

    def dribble(message: Message) -> None:
        for byte in ok(message, b"v"):
            daemon.send(bytes([byte]))

    daemon._answer = dribble
    assert client.read("/a") == b"v"


def test_the_reply_to_another_request_is_not_mistaken_for_this_ones(start: Start) -> None:
    held: list[Message] = []

    def answer(message: Message) -> bytes | None:
        held.append(message)
        return None if len(held) == 1 else ok(held[1], b"second") + ok(held[0], b"first")

    _, client = start(answer)
    client._timeout = 0.05
    with pytest.raises(TimeoutError, match=r"no answer to READ within 0\.05 s"):
        client.read("/a")
    client._timeout = 5
    assert client.read("/b") == b"second"


def test_time_runs_out_even_when_events_keep_coming(start: Start) -> None:
    daemon, client = start(yes)
    watch = client.watch("/a")
    token = token_of(daemon.received[0])

    def chatter(message: Message) -> None:
        for _ in range(300):
            daemon.send(event("/a", token))
            time.sleep(0.001)

    daemon._answer = chatter
    client._timeout = 0.05
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        client.read("/a")
    assert time.monotonic() - began < 0.25
    client._timeout = 5
    watch.close()


@pytest.mark.parametrize("sent", [b"", HEADER.pack(Op.READ, 1, 0, 10) + b"half"])
def test_a_lost_connection_is_reported_at_once_and_ever_after(start: Start, sent: bytes) -> None:
    daemon, client = start(lambda m: None)

    def leave(_: Message) -> None:
        daemon.send(sent)
        daemon.hang_up()

    daemon._answer = leave
    with pytest.raises(ConnectionLost, match="lost: the daemon closed it"):
        client.read("/a")
    with pytest.raises(ConnectionLost):
        client.read("/a")
    with pytest.raises(ConnectionLost):
        client.watch("/a")


# Transactions


def test_a_block_commits_at_its_end(start: Start) -> None:
    daemon, client = start(yes)
    with client.transaction() as tx:
        tx.write("/a", "v")
        client.write("/outside", "v")
    first = daemon.received[0].req_id
    assert [(m.op, m.tx_id, m.payload) for m in daemon.received] == [
        (Op.TRANSACTION_START, 0, b"\0"),
        (Op.WRITE, first, b"/a\0v"),
        (Op.WRITE, 0, b"/outside\0v"),
        (Op.TRANSACTION_END, first, b"T\0"),
    ]


def test_an_exception_in_the_block_aborts_and_is_passed_on(start: Start) -> None:
    daemon, client = start(yes)
    with pytest.raises(KeyError), client.transaction():
        raise KeyError
    [_, end] = daemon.wait_for(2)
    assert (end.op, end.payload) == (Op.TRANSACTION_END, b"F\0")
    client.mkdir("/the/connection/is/fine")


def test_a_lost_connection_in_the_block_is_what_the_caller_sees(start: Start) -> None:
    daemon, client = start(yes)
    daemon._answer = lambda m: daemon.hang_up() if m.op == Op.READ else yes(m)
    with pytest.raises(ConnectionLost), client.transaction() as tx:
        tx.read("/a")


@pytest.mark.parametrize("end", [Transaction.commit, Transaction.abort])
def test_a_transaction_can_be_ended_inside_its_block_once(start: Start, end: Callable[[Transaction], None]) -> None:
    daemon, client = start(yes)
    with client.transaction() as tx:
        end(tx)
        tx.abort()
        with pytest.raises(ValueError, match="over"):
            tx.read("/a")
        with pytest.raises(ValueError, match="over"):
            tx.commit()
    client.mkdir("/a")
    assert ops(daemon).count(Op.TRANSACTION_END) == 1


def conflicts(times: int) -> Answer:
    """Refuses so many commits."""
    remaining = times

    def answer(message: Message) -> bytes:
        nonlocal remaining
        if message.op == Op.TRANSACTION_END and message.payload == b"T\0" and remaining:
            remaining -= 1
            return no(message, "EAGAIN")
        return yes(message)

    return answer


def test_a_conflict_reaches_the_end_of_the_block(start: Start) -> None:
    _, client = start(conflicts(1))
    with pytest.raises(EAGAIN), client.transaction() as tx:
        tx.write("/a", "v")


def test_transact_tries_again_until_the_commit_meets_no_conflict(start: Start) -> None:
    daemon, client = start(conflicts(3))
    transactions = []

    def body(tx: Transaction) -> str:
        transactions.append(tx)
        tx.write("/a", "v")
        return f"try {len(transactions)}"

    assert client.transact(body) == "try 4"
    assert len(set(transactions)) == 4
    assert ops(daemon) == 4 * [Op.TRANSACTION_START, Op.WRITE, Op.TRANSACTION_END]


def test_transact_gives_up_after_so_many_tries(start: Start) -> None:
    daemon, client = start(conflicts(100))
    with pytest.raises(EAGAIN):
        client.transact(lambda tx: None, attempts=3)
    assert ops(daemon).count(Op.TRANSACTION_START) == 3


def test_transact_does_not_repeat_other_failures(start: Start) -> None:
    daemon, client = start(lambda m: no(m, "ENOENT") if m.op == Op.READ else yes(m))
    with pytest.raises(ENOENT):
        client.transact(lambda tx: tx.read("/a"))
    [start_, read, end] = daemon.wait_for(3)
    assert [start_.op, read.op, end.payload] == [Op.TRANSACTION_START, Op.READ, b"F\0"]


def test_a_transaction_that_comes_into_being_too_late_is_aborted(start: Start) -> None:
    held: list[Message] = []

    def answer(message: Message) -> bytes | None:
        if message.op == Op.TRANSACTION_START:
            held.append(message)
            return None
        return ok(held.pop(), b"77\0") + ok(message) if held else ok(message)

    daemon, client = start(answer)
    client._timeout = 0.05
    with pytest.raises(TimeoutError):
        client.transaction()
    client._timeout = 5
    client.mkdir("/a")
    client.mkdir("/b")
    assert [m.payload for m in daemon.wait_for(4) if m.tx_id == 77] == [b"F\0"]


# Watches


def test_a_watch_yields_its_first_event_and_every_change(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a", timeout=0.05) as watch:
        token = token_of(daemon.received[0])
        daemon.send(event("/a/b", token) + event("/a/c", token))
        assert [e.path for e in watch] == ["/initial", "/a/b", "/a/c"]


def test_watches_on_one_client_do_not_see_each_others_events(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a") as a, client.watch("/b") as b:
        token_a, token_b = map(token_of, daemon.received)
        daemon.send(event("/b/1", token_b) + event("/a/1", token_a))
        assert [a.get(5).path, a.get(5).path] == ["/initial", "/a/1"]
        assert [b.get(5).path, b.get(5).path] == ["/initial", "/b/1"]


def test_one_watch_may_cover_several_paths(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a", b"/b") as watch:
        assert {watch.get(5).watched, watch.get(5).watched} == {"/a", "/b"}
    client.mkdir("/x")
    assert ops(daemon) == [Op.WATCH, Op.WATCH, Op.UNWATCH, Op.UNWATCH, Op.MKDIR]


def test_events_that_come_with_a_reply_are_queued(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a") as watch:
        token = token_of(daemon.received[0])
        daemon._answer = lambda m: event("/a/1", token) + ok(m, b"v") + event("/a/2", token)
        assert client.read("/a") == b"v"
        daemon._answer = yes
        assert [watch.get(5).path for _ in range(3)] == ["/initial", "/a/1", "/a/2"]


def test_requests_can_be_made_while_iterating(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a", timeout=0.05) as watch:
        for _ in watch:
            client.read("/a")
    assert ops(daemon)[:2] == [Op.WATCH, Op.READ]


def test_waiting_for_an_event_can_be_limited(start: Start) -> None:
    _, client = start(yes)
    with client.watch("/a") as watch:
        assert watch.get(timeout=5) == WatchEvent("/initial", "/a")
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="no event within"):
                watch.get(timeout=timeout)


def test_an_event_that_is_there_needs_no_time(start: Start) -> None:
    daemon, client = start(yes)
    with client.watch("/a") as watch:
        watch.get(5)
        daemon.send(event("/a", token_of(daemon.received[0])))
        time.sleep(0.05)
        assert watch.get(timeout=0).path == "/a"


def leave_block(client: Client, watch: Watch) -> None:
    with watch:
        pass


@pytest.mark.parametrize("end", [lambda client, watch: watch.close(), Client.unwatch, leave_block])
def test_a_closed_watch_is_removed_and_yields_nothing(start: Start, end: Callable[[Client, Watch], None]) -> None:
    daemon, client = start(yes)
    watch = client.watch("/a")
    end(client, watch)
    assert list(watch) == []
    with pytest.raises(ValueError, match="closed"):
        watch.get()
    watch.close()
    client.mkdir("/b")
    assert ops(daemon) == [Op.WATCH, Op.UNWATCH, Op.MKDIR]
    assert daemon.received[0].payload == daemon.received[1].payload


def test_a_watch_that_nobody_holds_is_removed_with_the_next_request(start: Start) -> None:
    daemon, client = start(yes)
    for _ in client.watch("/a"):
        break
    gc.collect()
    client.mkdir("/b")
    client.mkdir("/b")
    assert ops(daemon) == [Op.WATCH, Op.UNWATCH, Op.MKDIR, Op.MKDIR]


def test_when_one_path_is_refused_the_others_are_unwatched(start: Start) -> None:
    daemon, client = start(lambda m: no(m, "EINVAL") if b"bad" in m.payload else yes(m))
    with pytest.raises(StoreError, match="EINVAL"):
        client.watch("/good", "/bad.")
    client.mkdir("/b")
    assert ops(daemon) == [Op.WATCH, Op.WATCH, Op.UNWATCH, Op.MKDIR]


def test_too_many_events_become_one_that_says_so(start: Start, tmp_path: Path) -> None:
    daemon, first = start(yes)
    first.close()
    with Client(daemon.path, timeout=5, max_events=2) as client, client.watch("/a") as watch:
        token = token_of(daemon.received[0])
        daemon._answer = lambda m: 2 * event("/a/x", token) + ok(m)
        client.mkdir("/b")
        assert watch.get() == WatchEvent("/a", "/a", overflow=True)


def test_resetting_ends_all_iteration(start: Start) -> None:
    daemon, client = start(yes)
    a, b = client.watch("/a"), client.watch("/b")
    client.reset_watches()
    assert [e.path for e in a] == [e.path for e in b] == ["/initial"]
    a.close()
    client.mkdir("/c")
    assert ops(daemon) == [Op.WATCH, Op.WATCH, Op.RESET_WATCHES, Op.MKDIR]


def test_a_lost_connection_ends_a_watch_after_the_events_that_came(start: Start) -> None:
    daemon, client = start(yes)
    watch = client.watch("/a")
    daemon.hang_up()
    assert watch.get(5).path == "/initial"
    with pytest.raises(ConnectionLost):
        watch.get(5)
    watch.close()
