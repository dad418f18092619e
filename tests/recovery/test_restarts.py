"""Restarts on purpose, hangs, and who has to wait when a request kills Logic."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conformance.processes import STANDS_BY, anonymous_bytes, descriptors
from tests.conformance.wire import Client, Op, WireError, pack, strings
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.boxview import BoxView
from tests.recovery.logic import stopped
from xenstore_state.restarts import Policy

PATIENCE = 60.0
MIB = 1 << 20
WARM = 30
RESTARTS = int(os.environ.get("XOARSTORE_RESTARTS", "300"))
"""After so many restarts nothing may have grown; 10,000 take some minutes."""


@contextmanager
def running(*arguments: str) -> Iterator[OurDaemon]:
    with short_run_dir() as run_dir, OurDaemon(run_dir, arguments) as daemon:
        yield daemon


def counts(client: Client) -> dict[str, int]:
    """Restarts by kind."""
    line = client.call(Op.CONTROL, strings("restarts")).decode().splitlines()[2]
    kinds = line.partition("(")[2].rstrip(")").split(", ")
    return {kind: int(number) for kind, number in (each.split() for each in kinds)}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_every_so_often() -> None:
    with running("--restart", "every=0.05") as daemon, Client(daemon.socket) as client:
        client.write("/a", b"0")
        for n in range(1, 40):
            client.write("/a", b"%d" % n)
            assert client.read("/a") == b"%d" % n
            time.sleep(0.01)
        assert counts(client)["planned"] >= 3
        assert counts(client)["failed"] == 0


def test_after_so_many_requests() -> None:
    with running("--restart", "after=10") as daemon, Client(daemon.socket) as client:
        for n in range(100):
            client.write("/a", b"%d" % n)
        assert counts(client)["planned"] >= 9
        assert client.read("/a") == b"99"


def test_per_request_each_connection_is_served_by_a_logic_of_its_own() -> None:
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as one, Client(daemon.socket) as other:
        other.watch("/a", "token")
        for n in range(20):
            one.write("/a", b"%d" % n)
        assert [event.path for event in other.events_so_far()] == [b"/a"] * 20
        assert counts(one)["planned"] >= 20
        assert "took over" not in daemon.output(), "that would be a line for every request"


def test_per_request_who_has_just_come_is_served_alone_too() -> None:
    """Its first request waits already when Logic gets to know it."""
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as client, ExitStack() as stack:
        client.write("/a")
        comes_to_rest(daemon)
        before = counts(client)["planned"]
        with stopped(daemon), BoxView(daemon.pid) as view:
            known = view.youngest
            newcomers = [stack.enter_context(Client(daemon.socket)) for _ in range(10)]
            requests = [one.send(Op.WRITE, strings("/b")) for one in newcomers]
            wait_until(lambda: view.youngest == known + len(newcomers), "not accepted")
        for one, request in zip(newcomers, requests, strict=True):
            assert one.reply(request).payload == b"OK\0"
        assert counts(client)["planned"] >= before + len(newcomers)


def test_half_a_request_is_looked_at_once_and_served_when_it_is_whole() -> None:
    """Else one Logic after another would serve it alone, and nobody whatever else comes of that connection."""
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as one, Client(daemon.socket) as other:
        one.write("/a", b"value")
        request = pack(Op.READ, b"/a\0")
        one.send_raw(request[:-1])
        wait_until(lambda: counts(other)["planned"] >= 5, "no restarts")
        before = counts(other)["planned"]
        time.sleep(0.5)
        assert counts(other)["planned"] <= before + 3
        one.send_raw(request[-1:])
        assert one.receive().payload == b"value"


def test_who_does_not_read_is_not_looked_at_again_and_again() -> None:
    """Else one Logic after another would find that it cannot be served."""
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as one, Client(daemon.socket) as other:
        other.write("/a", b"v" * 1000)
        number = 2000  # more than is received at once, and replies of two megabytes
        one.send_raw(pack(Op.READ, b"/a\0") * number)
        comes_to_rest(daemon)
        assert counts(other)["planned"] < 300
        for _ in range(number):
            assert one.receive().payload == b"v" * 1000
        one.send(Op.READ, b"/a\0")
        assert one.receive().payload == b"v" * 1000


def test_events_for_who_is_slow_to_read_are_all_delivered() -> None:
    """Nobody waits for its socket from the start of a Logic: it has nothing to say."""
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as one, Client(daemon.socket) as slow:
        slow.watch("/w", "t" * 3000)
        paths = [f"/w/{n}" for n in range(200)]  # more than sockets and regions hold
        for path in paths:
            one.write(path)
        for path in paths:
            assert slow.receive().payload == strings(path, "t" * 3000)
        one.write("/w/0")
        assert slow.receive().payload == strings("/w/0", "t" * 3000)
        assert slow.read("/w/0") == b""


def test_a_guest_that_does_not_read_is_not_looked_at_again_and_again() -> None:
    with running("--restart", "per-request") as daemon, Client(daemon.socket) as client:
        assert daemon.xen_dir is not None
        guest = SimulatedXen(daemon.xen_dir).create(5)
        client.write("/local/domain/5")
        client.set_perms("/local/domain/5", "n5")
        assert client.call(Op.INTRODUCE, strings(5, 1, guest.port)) == b"OK\0"
        guest.write("a", b"v" * 2000)
        for _ in range(30):
            guest.send(Op.READ, b"a\0")
        comes_to_rest(daemon)
        client.write("/local/domain/5/b", b"v")  # another Logic: the next one has all to find out anew
        comes_to_rest(daemon)
        for _ in range(30):
            assert guest.receive().payload == b"v" * 2000
        assert guest.read("b") == b"v"
        guest.close()


def comes_to_rest(daemon: OurDaemon) -> None:
    """Returns once no Logic has been replaced for a while."""
    deadline = time.monotonic() + PATIENCE
    while True:
        before = daemon.logic_pid()
        time.sleep(0.4)
        if daemon.logic_pid() == before:
            return
        assert time.monotonic() < deadline, "one Logic after another"


def test_when_asked_by_command_or_by_signal() -> None:
    with running("--no-guardian") as daemon, Client(daemon.socket) as client:
        assert client.call(Op.CONTROL, strings("restart")) == b"OK\0"
        wait_until(lambda: counts(client)["planned"] == 1, "no restart")
        time.sleep(0.2)  # until the new Logic takes signals; before, it would be none the wiser
        os.kill(daemon.pid, signal.SIGUSR1)
        wait_until(lambda: counts(client)["planned"] == 2, "no restart")
        assert b"Nobody would start" in client.call(Op.CONTROL, strings("restart", "slow"))


def test_the_policy_can_be_changed_and_is_shown() -> None:
    with running() as daemon, Client(daemon.socket) as client:
        assert client.call(Op.CONTROL, strings("restart-policy")) == b"on-crash\n\0"
        client.call(Op.CONTROL, strings("restart-policy", "every=0.05,after=1000"))
        wait_until(lambda: counts(client)["planned"] > 2, "no restarts")
        assert client.call(Op.CONTROL, strings("restart-policy")) == b"every=0.05,after=1000\n\0"
        client.call(Op.CONTROL, strings("restart-policy", "on-crash"))
        time.sleep(0.1)
        before = counts(client)
        time.sleep(0.3)
        assert counts(client) == before
        for wrong in ("every=0", "every=x", "after=-1", "sometimes", ""):
            with pytest.raises(WireError, match="EINVAL"):
                client.call(Op.CONTROL, strings("restart-policy", wrong))


def test_a_hang_is_a_death() -> None:
    with running("--watchdog", "0.7") as daemon, Client(daemon.socket) as client:
        client.write("/a", b"v")
        os.kill(daemon.logic_pid(), signal.SIGSTOP)
        assert client.read("/a") == b"v"
        assert counts(client)["hung"] == 1
        time.sleep(1.5)
        assert counts(client)["hung"] == 1, "an idle Logic does not hang"


def test_the_last_restart_is_told_of_with_its_cause() -> None:
    with running() as daemon, Client(daemon.socket) as client:
        for kills in (1, 2):
            pid = daemon.logic_pid()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: counts(client)["killed"] == kills, "no restart")  # noqa: B023  # called at once
            told = client.call(Op.CONTROL, strings("restarts")).decode()
            lines = [line for line in told.splitlines() if "killed by SIGKILL" in line]
            assert len(lines) == kills
            assert f"Logic {pid} " in lines[-1]
            assert all("took over in" in line for line in lines[:-1])


def test_nothing_grows_with_restarts() -> None:
    """Memory, descriptors, processes; no zombie is left."""
    with running("--restart", "every=0.01") as daemon, Client(daemon.socket) as client:
        wait_until(lambda: counts(client)["planned"] > WARM, "no restarts")
        before = descriptors(daemon.pid), anonymous_bytes([daemon.pid])
        done = WARM
        while done < RESTARTS:
            done = counts(client)["planned"]
            client.write("/a", b"%d" % done)
        assert descriptors(daemon.pid) <= before[0] + 1 + STANDS_BY
        assert anonymous_bytes([daemon.pid]) < before[1] + 2 * MIB
        # One may have died this moment, and what was left of the one before; what is never buried only grows.
        wait_until(lambda: zombies(daemon.pid) <= 2, "zombies")
        wait_until(
            lambda: len(daemon.pids()) <= 5,
            "more than State, the guardian, Logic, who stands by, and one that is dying",
        )


def zombies(session: int) -> int:
    """Dead processes that nobody has buried."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            found += fields[0] == "Z" and int(fields[3]) == session
    return found


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("on-crash", Policy()),
        ("every=5", Policy(every=5.0)),
        ("after=7,every=0.5", Policy(every=0.5, after=7)),
        ("per-request", Policy(alone="all")),
        ("per-request=guests,notify", Policy(alone="guests")),
    ],
)
def test_policies_are_read(text: str, policy: Policy) -> None:
    assert Policy.parse(text) == policy
