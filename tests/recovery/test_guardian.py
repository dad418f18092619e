"""The guardian: a small process that may die too, may hang, and does not spin when State cannot be started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance.wire import Client, Op, strings
from tests.oracle.daemons import OurDaemon, session_members, short_run_dir
from tests.recovery.test_state_dies import kill, kill_state, state_pid

PATIENCE = 20.0
TINY = 6_000
"""KiB of memory of its own that the guardian may use: an interpreter with nothing loaded."""


@pytest.fixture
def daemon() -> Iterator[OurDaemon]:
    with short_run_dir() as run_dir, OurDaemon(run_dir) as running:
        yield running


def name_of(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def guardians(daemon: OurDaemon) -> list[int]:
    return [pid for pid in session_members(daemon.pid) if name_of(pid) == "xenstore-guard"]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def guardian(daemon: OurDaemon, other_than: int = 0) -> int:
    """The one guardian, once it is another than one there was."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = guardians(daemon)
        return len(found) == 1 and found != [other_than]

    wait_until(is_there, "no guardian")
    return found[0]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def replace_guardian(daemon: OurDaemon, number: int = signal.SIGKILL) -> None:
    """Ends the guardian; returns when another one has been given everything."""
    old = guardian(daemon)
    held = settled(old)
    os.kill(old, number)
    new = guardian(daemon, other_than=old)
    wait_until(lambda: settled(new) == held, "the new one does not hold what the old one had")


def settled(pid: int) -> int:
    """How many descriptors a process has once that stays the same: what it is sent, it takes a little later."""
    found: list[int] = []
    while len(found) < 5 or len(set(found[-5:])) > 1:
        found.append(descriptors(pid))
        time.sleep(0.02)
    return found[-1]


def test_it_is_there_unless_it_is_not_wanted() -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--no-guardian"]) as daemon, Client(daemon.socket) as client:
        client.write("/a")
        assert guardians(daemon) == []
        assert not list(run_dir.glob("state-*"))
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--guardian"]) as daemon:
        assert guardian(daemon)


def test_it_is_tiny_however_large_the_store(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        for first in range(0, 3000, 100):
            client.pipeline((Op.WRITE, strings(f"/large/{first + n}", "v" * 1000)) for n in range(100))
        rollup = Path(f"/proc/{guardian(daemon)}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup[1:]}
    assert sizes["Private_Clean"] + sizes["Private_Dirty"] < TINY


def test_it_holds_what_the_connections_need_and_lets_go_of_the_rest(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/a")
        before = settled(guardian(daemon))
        others = [Client(daemon.socket) for _ in range(50)]
        for other in others:
            other.read("/a")
        wait_until(lambda: descriptors(guardian(daemon)) == before + 50, "it does not hold them")
        for other in others:
            other.close()
        wait_until(lambda: descriptors(guardian(daemon)) == before, "it does not let go of them")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_it_is_killed_another_one_is_given_everything(daemon: OurDaemon, number: int) -> None:
    with Client(daemon.socket) as client, Client(daemon.socket) as other:
        other.watch("/w", "token")
        other.forget()
        client.write("/w/before")
        held = settled(guardian(daemon))
        for _ in range(3):
            replace_guardian(daemon, number)
        assert descriptors(guardian(daemon)) == held
        assert "the guardian is gone" in daemon.output()
        kill_state(daemon)
        client.write("/w/after")
        assert other.events_so_far()[-1].path == b"/w/after"


def test_a_guardian_of_a_state_that_it_has_started_may_die_as_well(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        for n in range(3):
            kill_state(daemon)
            client.write("/n", b"%d" % n)
            replace_guardian(daemon)
        assert client.read("/n") == b"2"


def test_when_it_hangs_it_is_replaced_once_state_needs_it(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/a", b"v")
        old = guardian(daemon)
        os.kill(old, signal.SIGSTOP)
        others = []
        deadline = time.monotonic() + PATIENCE
        while "the guardian is gone" not in daemon.output():
            assert time.monotonic() < deadline, "nobody notices"
            others.append(Client(daemon.socket))
            others[-1].read("/a")
        guardian(daemon, other_than=old)
        kill_state(daemon)
        assert all(other.read("/a") == b"v" for other in [client, *others])
        for other in others:
            other.close()


def test_a_state_that_cannot_be_started_is_tried_ever_more_rarely(daemon: OurDaemon) -> None:
    """Its directory is not there for a while: all wait, and go on when it is."""
    with Client(daemon.socket) as client:
        client.write("/a", b"v")
        state = next(iter(daemon.run_dir.glob("state-*")))
        aside = state.with_name("aside")
        state.rename(aside)
        state.write_text("in the way")
        kill(state_pid(daemon))
        time.sleep(2.0)
        tries = daemon.output().count("xenstored: ")
        assert tries < 30, "it spins"
        state.unlink()
        aside.rename(state)
        assert client.read("/a") == b"v"


def test_thousands_of_connections_outlive_state() -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir, sockets_only=True) as daemon:
        clients = [Client(daemon.socket) for _ in range(3000)]
        for client in clients[::100]:
            client.watch("/w", "token")
            client.forget()
        clients[-1].write("/w/before", b"v")  # once the last is answered, none is between accept() and custody any more
        kill_state(daemon)
        assert all(client.read("/w/before") == b"v" for client in clients)
        for client in clients[1::100]:
            client.write("/w/after")
        for client in clients:
            client.close()
