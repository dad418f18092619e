"""Who stands by takes over when Logic dies, with everything that has happened since it was forked."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from recovery_box import remnant
from tests.conformance.wire import Client, Closed, Op, strings
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import RESTART_POLICY, OurDaemon, short_run_dir
from tests.recovery.logic import called, kill_logic
from tests.recovery.test_restarts import counts
from xenstore_logic.process import NAME, NAME_BEFORE
from xenstore_state.standby import NEWCOMERS_MAX

PATIENCE = 20.0
pytestmark = [
    pytest.mark.skipif(
        bool(RESTART_POLICY), reason="Logic is restarted on purpose: who stands by changes all the time"
    ),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="nobody stands by on a single processor"),
]


@pytest.fixture
def client(daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as connected:
        yield connected


def standing_by(daemon: OurDaemon, other_than: int = 0) -> int:
    """Whoever stands by, as soon as there is one, and one other than the process named."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in called(daemon, NAME_BEFORE):
            if pid not in {other_than, daemon.logic_pid()}:
                return pid
        time.sleep(0.005)
    raise AssertionError(f"nobody stands by but {other_than}:\n{daemon.output()}")


def killed(daemon: OurDaemon) -> int:
    """Kills Logic; the next one, when State has said which."""
    before = daemon.logic_pid()
    kill_logic(daemon)
    deadline = time.monotonic() + PATIENCE
    while daemon.logic_pid() == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return daemon.logic_pid()


def took_over(daemon: OurDaemon, who: int) -> None:
    """Kills Logic; `who` stood by, and serves now."""
    assert killed(daemon) == who, daemon.output()


def test_everything_is_there(daemon: OurDaemon, client: Client) -> None:
    client.write("/before", b"1")
    client.watch("/w", "token")
    who = standing_by(daemon)
    client.write("/after", b"2")
    client.watch("/v", "other")
    client.rm("/before")
    tx = client.start()
    client.write("/inside", b"3", tx=tx)
    took_over(daemon, who)
    assert client.read("/after") == b"2"
    assert not client.exists("/before")
    assert client.commit(tx) == "OK"
    assert client.read("/inside") == b"3"
    with Client(daemon.socket) as another:
        another.write("/w/x")
        another.write("/v/x")
    assert client.events_so_far() == [(b"/w/x", b"token"), (b"/v/x", b"other")]


def test_one_after_another(daemon: OurDaemon, client: Client) -> None:
    for number in range(5):
        who = standing_by(daemon)
        client.write(f"/n/{number}")
        took_over(daemon, who)
    assert len(client.directory("/n")) == 5
    assert counts(client)["killed"] == 5


def test_connections_that_came_later_go_on(daemon: OurDaemon, client: Client) -> None:
    stays = Client(daemon.socket)
    who = standing_by(daemon)
    with ExitStack() as stack:
        later = [stack.enter_context(Client(daemon.socket)) for _ in range(20)]
        for number, each in enumerate(later):
            each.watch(f"/w/{number}", "token")
        stays.close()
        for each in later[::2]:
            each.close()
        again = stack.enter_context(Client(daemon.socket))
        client.write("/a")
        took_over(daemon, who)
        for number, each in list(enumerate(later))[1::2]:
            assert each.read("/a") == b""
            client.write(f"/w/{number}")
            assert each.events_so_far() == [(b"/w/%d" % number, b"token")]
        assert again.read("/a") == b""


def test_too_many_that_came_later_take_a_fork(daemon: OurDaemon, client: Client) -> None:
    who = standing_by(daemon)
    with ExitStack() as stack:
        later = [stack.enter_context(Client(daemon.socket)) for _ in range(NEWCOMERS_MAX + 1)]
        for each in later:
            each.write("/a")
        assert killed(daemon) != who
        for each in later:
            assert each.read("/a") == b""
        took_over(daemon, standing_by(daemon))
        for each in later:
            assert each.read("/a") == b""


def test_whom_the_daemon_hangs_up_on_sees_the_end(daemon: OurDaemon, client: Client) -> None:
    """A copy of the descriptor is open in whoever stands by."""
    with Client(daemon.socket) as bad:
        bad.write("/a")
        standing_by(daemon)
        bad.send_raw(b"\xff" * 64)
        with pytest.raises(Closed):
            bad.receive(PATIENCE)
    assert client.read("/a") == b""


def test_domains_that_came_later_are_served(daemon: OurDaemon, client: Client) -> None:
    assert daemon.xen_dir is not None
    xen = SimulatedXen(daemon.xen_dir)
    client.mkdir("/local/domain/5")
    first = xen.create(5)
    client.call(Op.INTRODUCE, strings(5, 1, first.port))
    who = standing_by(daemon)
    second = xen.create(6)
    client.call(Op.INTRODUCE, strings(6, 1, second.port))
    client.watch("@releaseDomain", "end")
    took_over(daemon, who)
    for guest in (first, second):
        assert guest.call(Op.GET_DOMAIN_PATH, b"0\0") == b"/local/domain/0\0"
    client.call(Op.RELEASE, strings(6))
    assert (b"@releaseDomain", b"end") in client.events_so_far()
    for guest in (first, second):
        guest.close()


def test_a_request_with_much_output_is_the_last_one(daemon: OurDaemon, client: Client) -> None:
    """More than is said with a turn; quotas let a guest have it."""
    assert daemon.xen_dir is not None
    guest = SimulatedXen(daemon.xen_dir).create(5)
    client.mkdir("/local/domain/5")
    client.set_perms("/local/domain/5", "n5")
    client.call(Op.INTRODUCE, strings(5, 1, guest.port))
    tokens = [f"{number:04}" + "t" * 3000 for number in range(100)]
    for token in tokens:
        guest.watch("w", token)
    guest.events_so_far()
    who = standing_by(daemon)
    guest.write("w/x")
    took_over(daemon, who)
    assert guest.events_so_far() == [(b"w/x", token.encode()) for token in tokens]
    assert client.read("/local/domain/5/w/x") == b""
    guest.close()


def test_its_own_death_is_nobodys(daemon: OurDaemon, client: Client) -> None:
    logic, who = daemon.logic_pid(), standing_by(daemon)
    os.kill(who, signal.SIGKILL)
    another = standing_by(daemon, other_than=who)
    client.write("/a")
    assert daemon.logic_pid() == logic
    assert sum(counts(client).values()) == 0
    took_over(daemon, another)
    assert client.read("/a") == b""


def test_both_die(daemon: OurDaemon, client: Client) -> None:
    client.write("/a", b"1")
    who = standing_by(daemon)
    fd = os.pidfd_open(who)
    os.kill(who, signal.SIGKILL)
    assert select.select([fd], [], [], PATIENCE)[0]  # before that it may be given its turn, and dies of it then
    os.close(fd)
    assert killed(daemon) != who
    assert client.read("/a") == b"1"


def test_one_that_was_stopped_is_not_waited_for_by_any_client(daemon: OurDaemon, client: Client) -> None:
    """It gets its turn, does nothing, and is killed as one that hangs."""
    client.write("/a", b"1")
    who = standing_by(daemon)
    os.kill(who, signal.SIGSTOP)
    client.write("/b", b"2")
    assert killed(daemon) == who
    assert client.read("/b") == b"2"
    assert counts(client)["hung"] == 1


def test_what_is_left_of_the_dead_goes_too(daemon: OurDaemon, client: Client) -> None:
    for _ in range(4):
        took_over(daemon, standing_by(daemon))
    standing_by(daemon)
    deadline = time.monotonic() + PATIENCE
    while len(called(daemon, remnant.NAME)) != 2:
        assert time.monotonic() < deadline, "one of Logic, and one of whoever stands by"
        client.write("/a")
        time.sleep(0.05)


@pytest.mark.parametrize("argument", ["--no-standby", "--no-guardian"])
def test_nobody_stands_by_if_not_wanted_or_without_a_ledger(argument: str) -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir, [argument]) as daemon, Client(daemon.socket) as client:
        client.write("/a", b"1")
        time.sleep(0.5)
        assert called(daemon, NAME_BEFORE) == []
        assert len(called(daemon, NAME)) == 1
        kill_logic(daemon)
        assert client.read("/a") == b"1"
