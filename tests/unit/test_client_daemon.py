"""The clients against daemons that run: this project's, and Debian's two where they are installed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from protocol.client import AsyncClient, AsyncTransaction, Client, Permission, Transaction
from protocol.client.cli import main
from protocol.errors import EAGAIN, ENOENT, StoreError
from protocol.ops import SOCKET_FEATURES
from tests.oracle.daemons import EACH_REQUEST, RESTART_POLICY, CXenstored, Daemon, OurDaemon, OXenstored, short_run_dir


@pytest.fixture(
    scope="module",
    params=[OurDaemon, *(pytest.param(kind, marks=pytest.mark.oracle) for kind in (CXenstored, OXenstored))],
    ids=lambda kind: str(kind.name),
)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A running daemon of each kind, skipped with the reason where there is none."""
    kind: type[Daemon] = request.param
    if (reason := kind.available()) is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, kind(run_dir) as running:
        yield running


@pytest.fixture
def path(daemon: Daemon) -> str:
    """The socket of a daemon whose node `/t` is new and empty."""
    path = str(daemon.socket)
    with Client(path, timeout=10) as client:
        client.rm("/t")
        client.mkdir("/t")
    return path


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    with Client(path, timeout=10) as client:
        yield client


@pytest.fixture
def other(path: str) -> Iterator[Client]:
    with Client(path, timeout=10) as client:
        yield client


def only_ours(daemon: Daemon) -> None:
    if not isinstance(daemon, OurDaemon):
        pytest.skip("the released daemons do not have this operation")


# Nodes


def test_a_value_is_kept_byte_for_byte(client: Client) -> None:
    for value in (b"", b"\0", bytes(range(256)), b"x" * 2000):
        client.write("/t/a", value)
        assert client.read("/t/a") == value
    client.write("/t/a", "é")
    assert client.read(b"/t/a") == "é".encode()


def test_nodes_come_and_go(client: Client) -> None:
    assert not client.exists("/t/a/b")
    client.mkdir("/t/a/b")
    assert client.exists("/t/a/b")
    assert client.directory("/t") == ["a"]
    assert client.directory("/t/a/b") == []
    client.rm("/t/a")
    assert not client.exists("/t/a/b")
    with pytest.raises(ENOENT):
        client.read("/t/a")


def test_permissions_are_read_back(client: Client) -> None:
    assert client.get_perms("/t") == [Permission(0, 0)]
    client.set_perms("/t", ["n0", "r0", Permission(3, 0)])
    assert client.get_perms("/t") == [Permission(0, 0), Permission(1, 0), Permission(3, 0)]


def test_a_path_outside_the_alphabet_is_einval(client: Client) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        client.write("/t/a.b", "v")


def test_the_longest_request_is_taken(client: Client) -> None:
    with pytest.raises(ENOENT):
        client.read("/t" + "/abcdefg" * 200)
    with pytest.raises(StoreError, match="E2BIG"):
        client.read("/t" + "x" * 4094)


def test_a_directory_of_any_length_can_be_listed(daemon: Daemon, client: Client) -> None:
    if isinstance(daemon, OXenstored):
        pytest.skip("oxenstored answers with a message that is too long")
    names = [f"a-rather-long-name-{number}" for number in range(250 if EACH_REQUEST else 700)]
    for name in names:
        client.mkdir(f"/t/{name}")
    assert sorted(client.directory("/t")) == sorted(names)


PAUSE = 0.3 if EACH_REQUEST else 0.002
"""Seconds between two changes: a list is read in three requests or more, and must come to its end between two of them."""


def test_a_long_directory_is_listed_whole_while_it_changes(daemon: Daemon, client: Client, other: Client) -> None:
    only_ours(daemon)
    names = {f"a-rather-long-name-{number}" for number in range(300)}
    for name in names:
        client.mkdir(f"/t/{name}")
    stop = threading.Event()

    def disturb() -> None:
        for number in range(10_000):
            if stop.wait(PAUSE):
                return
            other.mkdir(f"/t/z{number}")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            listed = client.directory("/t")
            assert len(listed) == len(set(listed))
            assert {name for name in listed if name.startswith("a-")} == names
    finally:
        stop.set()
        thread.join()


# Transactions


def test_a_transaction_shows_its_writes_at_the_end(client: Client, other: Client) -> None:
    with client.transaction() as tx:
        tx.write("/t/a", "1")
        assert tx.read("/t/a") == b"1"
        assert not other.exists("/t/a")
    assert other.read("/t/a") == b"1"


def test_an_aborted_transaction_leaves_nothing(client: Client) -> None:
    with client.transaction() as tx:
        tx.write("/t/a", "1")
        tx.abort()
    assert not client.exists("/t/a")


def test_a_conflict_is_eagain_and_transact_gets_through(client: Client, other: Client) -> None:
    client.write("/t/n", "0")
    tx = client.transaction()
    value = int(tx.read("/t/n"))
    other.write("/t/n", "10")
    tx.write("/t/n", b"%d" % (value + 1))
    with pytest.raises(EAGAIN):
        tx.commit()
    disturbances = iter(["20", "30"])

    def increment(tx: Transaction) -> int:
        value = int(tx.read("/t/n"))
        if disturbance := next(disturbances, None):
            other.write("/t/n", disturbance)
        tx.write("/t/n", b"%d" % (value + 1))
        return value + 1

    assert client.transact(increment) == 31
    assert client.read("/t/n") == b"31"


def test_several_tasks_and_clients_count_together(path: str, client: Client) -> None:
    client.write("/t/n", "0")

    async def increment(tx: AsyncTransaction) -> None:
        await tx.write("/t/n", b"%d" % (int(await tx.read("/t/n")) + 1))

    async def count() -> None:
        async with AsyncClient(path) as one, AsyncClient(path) as two, trio.open_nursery() as nursery:
            for each in 5 * [one, two]:
                nursery.start_soon(each.transact, increment)

    trio.run(count)
    assert client.read("/t/n") == b"10"


# Watches


def test_a_watch_yields_the_path_at_once_and_then_every_change(client: Client, other: Client) -> None:
    with client.watch("/t") as watch:
        assert watch.get(5).path == "/t"
        other.write("/t/a/b", "v")
        assert watch.get(5).path == "/t/a/b"
        client.rm("/t/a/b")
        assert watch.get(5).path == "/t/a/b"
        other.set_perms("/t", ["n0", "r0"])
        assert watch.get(5).path == "/t"


def test_a_relative_watch_yields_relative_paths(client: Client) -> None:
    with client.watch("data") as watch:
        assert watch.get(5).path == "data"
        client.write("/local/domain/0/data/x", "v")
        event = watch.get(5)
        assert (event.path, event.watched) == ("data/x", "data")
    client.rm("/local/domain/0")


def test_depth_limits_events_whether_or_not_the_daemon_knows_it(client: Client) -> None:
    with client.watch("/t", depth=1, timeout=0.2) as watch:
        for path in ("/t/a/b", "/t/a", "/t/c/d/e", "/t"):
            client.write(path, "v")
        assert [event.path for event in watch] == ["/t", "/t/a", "/t"]


def test_a_closed_watch_yields_nothing_and_can_be_set_anew(client: Client, other: Client) -> None:
    for _ in range(3):
        with client.watch("/t", "/t/x") as watch:
            assert [watch.get(5).path, watch.get(5).path] == ["/t", "/t/x"]
        other.write("/t/a", "v")
    with client.watch("/t", timeout=0.1) as watch:
        assert [event.path for event in watch] == ["/t"]


def test_resetting_removes_watches_and_transactions(client: Client, other: Client) -> None:
    watch = client.watch("/t")
    tx = client.transaction()
    client.reset_watches()
    other.write("/t/a", "v")
    assert [event.path for event in watch] == ["/t"]
    with pytest.raises(StoreError):
        tx.commit()


def test_a_task_watches_while_another_writes(path: str) -> None:
    async def both() -> list[str]:
        seen: list[str] = []
        async with AsyncClient(path) as client, trio.open_nursery() as nursery, client.watch("/t") as watch:
            for number in range(5):
                nursery.start_soon(client.write, f"/t/{number}", "v")
            async for event in watch:
                seen.append(event.path)
                if len(seen) == 6:
                    break
        return seen

    assert sorted(trio.run(both)) == ["/t", "/t/0", "/t/1", "/t/2", "/t/3", "/t/4"]


# Domains, features, quotas, control


def test_domains_have_a_home(client: Client) -> None:
    assert client.get_domain_path(7) == "/local/domain/7"
    assert client.is_domain_introduced(12345) is False


def test_domains_that_are_not_there_cannot_be_changed(client: Client) -> None:
    for refused in (client.release, client.resume):
        with pytest.raises(StoreError):
            refused(12345)
    with pytest.raises(StoreError):
        client.set_target(12345, 12346)
    with pytest.raises(StoreError):
        client.introduce(12345, 1, 0)


def test_features_are_numbers(daemon: Daemon, client: Client) -> None:
    only_ours(daemon)
    assert client.get_feature() == SOCKET_FEATURES
    with pytest.raises(StoreError, match=r"EBUSY|ENOENT"):
        client.set_feature(0, 0)


def test_quotas_can_be_read_and_set(daemon: Daemon, client: Client) -> None:
    only_ours(daemon)
    assert {"nodes", "watches", "transactions"} <= set(client.quota_names())
    before = client.get_quota("nodes")
    client.set_quota("nodes", before + 1)
    assert client.get_quota("nodes") == before + 1
    client.set_quota("nodes", before)


def test_control_answers_with_text(client: Client) -> None:
    assert client.control("print", "hello") == "OK"


# The whole


def test_the_command_line_works_on_a_daemon(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        status = main(["--socket", path, *words])
        return status, capsys.readouterr().out

    assert run("write", "/t/a", "x\\ny", "/t/a/b", "z") == (0, "")
    assert run("chmod", "-r", "/t/a", "n0", "r0") == (0, "")
    assert run("ls", "-p", "/t") == (0, 'a = "x\\ny"   (n0,r0)\n b = "z"   (n0,r0)\n')
    assert run("read", "/t/nope") == (1, "")
    assert run("rm", "-t", "/t/a/b") == (0, "")
    assert run("list", "/t") == (0, "a\n")
    assert run("watch", "-n", "1", "/t") == (0, "/t\n")


def kill_logic(daemon: OurDaemon) -> None:
    """Whoever is Logic now: one may have gone by itself, on purpose, since it was named."""
    while True:
        with suppress(ProcessLookupError):
            os.kill(daemon.logic_pid(), signal.SIGKILL)
            return
        assert RESTART_POLICY, "Logic had died already"


def test_a_client_does_not_notice_that_logic_is_killed(daemon: Daemon, client: Client, other: Client) -> None:
    if not isinstance(daemon, OurDaemon):
        pytest.skip("only this daemon survives")
    with client.watch("/t/n") as watch, client.transaction() as tx:
        assert watch.get(5).path == "/t/n"
        tx.write("/t/tx", "1")
        for number in range(30):
            if number % 10 == 5:
                kill_logic(daemon)
            other.write("/t/n", b"%d" % number)
            assert client.read("/t/n") == b"%d" % number
        assert watch.get(5).path == "/t/n"
    assert other.read("/t/tx") == b"1"
