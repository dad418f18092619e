"""A connection that ends around the death of Logic: its watches and transactions go, its descriptor and slot come back."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.processes import IDLE, cpu_share
from tests.conformance.wire import Client, Op, pack, strings
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.boxview import BoxView
from tests.recovery.killer import Killer
from tests.recovery.logic import PATIENCE, kill_logic, state_stopped, stopped, wait_for_logic, wait_for_restarts

CHURN_SECONDS = 4.0
AT_REST = 3
"""Times in a row that the daemon must be found the same to be at rest."""


@dataclass(frozen=True)
class Held:
    """What a daemon holds, in its own words and in the kernel's."""

    watches: int
    connections: int
    transactions: int
    descriptors: int
    """Open in State."""


def held(daemon: OurDaemon) -> Held:
    """What the daemon holds now; the connection that asks does not count, nor does domain 0's ring."""
    file = daemon.run_dir / "report"
    with Client(daemon.socket) as client:
        client.call(Op.CONTROL, strings("memreport", str(file)))
        descriptors = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    numbers = dict(part.rsplit(" ", 1) for part in _last_line(file).replace(" bytes", "").split(", "))
    connections = int(numbers["connections"]) - 1 - (daemon.xen_dir is not None)
    return Held(int(numbers["watches"]), connections, int(numbers["transactions"]), descriptors - 1)


def at_rest(daemon: OurDaemon) -> Held:
    """What the daemon holds before anything is done to it."""
    deadline = time.monotonic() + PATIENCE
    found, same = held(daemon), 0
    while found.connections or same < AT_REST:
        assert time.monotonic() < deadline, f"the daemon does not come to rest: {found}"
        time.sleep(0.01)
        last, found = found, held(daemon)
        same = same + 1 if last == found else 0
    return found


def _last_line(file: Path) -> str:
    return file.read_text().splitlines()[-1]


def settles_at(daemon: OurDaemon, expected: Held) -> None:
    """Waits until the daemon holds exactly this; connections that were closed may take a moment."""
    deadline = time.monotonic() + PATIENCE
    while (found := held(daemon)) != expected:
        assert time.monotonic() < deadline, f"{found}, not {expected}\n{daemon.output()}"
        time.sleep(0.01)


def slots_used(daemon: OurDaemon) -> int:
    with BoxView(daemon.pid) as view:
        return len(view.slots(4096))


def burdened(daemon: OurDaemon) -> Client:
    """A client with two watches and an open transaction."""
    client = Client(daemon.socket)
    client.watch("/w", "token")
    client.watch("@releaseDomain", "token")
    client.write("/w/uncommitted", tx=client.start())
    return client


def test_closed_while_no_logic_runs(daemon: OurDaemon) -> None:
    before = at_rest(daemon)
    clients = [burdened(daemon) for _ in range(10)]
    assert held(daemon).watches == before.watches + 20
    assert held(daemon).transactions == before.transactions + 10
    logic = wait_for_logic(daemon)
    with state_stopped(daemon):
        logic.kill()
        logic.close()
        for client in clients:
            client.close()
    settles_at(daemon, before)


def test_closed_while_logic_stands_still_and_is_killed_then(daemon: OurDaemon) -> None:
    before = at_rest(daemon)
    clients = [burdened(daemon) for _ in range(10)]
    with stopped(daemon) as logic:
        for client in clients:
            client.close()
        logic.kill()
    settles_at(daemon, before)


def test_killed_right_after_a_peer_closed(daemon: OurDaemon) -> None:
    before = at_rest(daemon)
    for _ in range(30):
        client = burdened(daemon)
        client.close()
        kill_logic(daemon)
    settles_at(daemon, before)


def test_connected_while_no_logic_runs_and_closed_again(daemon: OurDaemon) -> None:
    before = at_rest(daemon)
    logic = wait_for_logic(daemon)
    with state_stopped(daemon):
        logic.kill()
        logic.close()
        for _ in range(10):
            client = Client(daemon.socket)
            client.send(Op.WATCH, strings("/w", "token"))
            client.close()
    settles_at(daemon, before)


def test_others_go_on_when_one_closes_around_a_kill(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as other:
        other.watch("/w", "other")
        client = burdened(daemon)
        with stopped(daemon) as logic:
            client.close()
            logic.kill()
        other.write("/w/x")
        assert other.events_so_far() == [(b"/w/x", b"other")]
        assert not other.exists("/w/uncommitted")


def test_slots_and_descriptors_are_used_again_while_logic_is_killed_again_and_again(daemon: OurDaemon) -> None:
    rng = random.Random(1)
    before = at_rest(daemon)
    at_once = 6
    with ExitStack() as stack:
        view = stack.enter_context(BoxView(daemon.pid))
        steady = [stack.enter_context(Client(daemon.socket)) for _ in range(3)]
        for number, client in enumerate(steady):
            client.watch(f"/steady/{number}", "token")
        killer = Killer(daemon, view, rng)
        end = time.monotonic() + CHURN_SECONDS
        served = 0
        while time.monotonic() < end:
            clients = [Client(daemon.socket) for _ in range(at_once)]
            ids = [client.send(Op.WATCH, strings("/w", "token")) for client in clients]
            killer.at_once(rng.random() * 0.004)
            for client, req_id in zip(clients, ids, strict=True):
                if rng.random() < 0.5:
                    assert client.reply(req_id).payload == b"OK\0"
                    client.write(f"/served/{served}")
                    served += 1
                client.close()
            if rng.random() < 0.5:
                killer.at_once(rng.random() * 0.001)
        for number, client in enumerate(steady):
            client.write(f"/steady/{number}")
            assert client.events_so_far() == [(f"/steady/{number}".encode(), b"token")]
    settles_at(daemon, before)
    assert served > 100
    with Client(daemon.socket) as client:
        assert len(client.children("/served")) == served
    assert slots_used(daemon) < 3 * at_once + (daemon.xen_dir is not None), "slots are not used again"
    wait_for_restarts(daemon, killer.kills)


POLICIES = ["on-crash", "every=0.02", "after=1", "per-request", "per-request=guests"]
PIPELINED = 300


def writes(name: str) -> bytes:
    return b"".join(pack(Op.WRITE, strings(f"/{name}/{n}"), req_id=n) for n in range(PIPELINED))


def answers(client: Client) -> list[int]:
    """Whom the daemon has answered when it hangs up."""
    assert client.is_closed_by_daemon()
    assert client.pending == b"", "a torn reply"
    return [message.req_id for message in client.arrived]


@pytest.fixture
def under_policy(policy: str) -> Iterator[OurDaemon]:
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--restart", policy]) as daemon:
        yield daemon


@pytest.mark.parametrize("policy", POLICIES)
def test_who_says_nothing_more_has_everything_answered(under_policy: OurDaemon) -> None:
    with Client(under_policy.socket) as other:
        with Client(under_policy.socket) as client:
            client.send_raw(writes("done"))
            client.sock.shutdown(socket.SHUT_WR)
            assert answers(client) == list(range(PIPELINED))
        assert len(other.children("/done")) == PIPELINED


@pytest.mark.parametrize("policy", POLICIES)
def test_who_says_nothing_more_may_read_late_and_keeps_nobody_busy(policy: str, under_policy: OurDaemon) -> None:
    with Client(under_policy.socket) as other:
        other.write("/value", b"v" * 4000)
        with Client(under_policy.socket) as client:
            client.send_raw(pack(Op.READ, b"/value\0") * PIPELINED)  # a megabyte of replies
            client.sock.shutdown(socket.SHUT_WR)
            if "every" not in policy:
                time.sleep(0.5)
                before = under_policy.logic_pid()
                assert cpu_share([before]) < IDLE
                assert under_policy.logic_pid() == before, "one Logic after another"
            assert len(answers(client)) == PIPELINED
        assert other.read("/value") == b"v" * 4000


def test_who_says_nothing_more_before_logic_dies_has_everything_done_once(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as other, Client(daemon.socket) as client:
        other.watch("/done", "token")
        with stopped(daemon) as logic:
            client.send_raw(writes("done"))
            client.sock.shutdown(socket.SHUT_WR)
            logic.kill()
        for _ in range(3):
            kill_logic(daemon)
        assert answers(client) == list(range(PIPELINED))
        assert [event.path for event in other.events_so_far()] == [b"/done/%d" % n for n in range(PIPELINED)]


@pytest.mark.parametrize("policy", POLICIES)
def test_who_says_nothing_more_nor_reads_is_forgotten_when_it_is_gone(policy: str) -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--restart", policy]) as daemon:
        before = at_rest(daemon)
        with Client(daemon.socket) as client:
            client.write("/value", b"v" * 4000)
            client.send_raw(pack(Op.READ, b"/value\0") * PIPELINED)
            client.sock.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            assert held(daemon).connections == before.connections + 1
        settles_at(daemon, before)
