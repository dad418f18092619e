"""A request that kills Logic again and again is given up on; everybody else is served.

Nothing in the daemon dies on purpose, so the test does it: it waits until Logic handles a certain request (one that takes
milliseconds), stops it there, and sends it the signal that a fault of its own would end in.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conformance.wire import Client, Message, Op, pack, strings
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.boxview import BoxView
from tests.recovery.logic import PATIENCE, kill_logic, wait_for_logic
from xenstore_state.restarts import KILL_TRIES, OWN_TRIES

NODES = 30_000
"""So many that counting them all takes milliseconds."""
BATCH = 500
EIO = b"EIO\0"
CHECK = strings("check")
ATTEMPTS = 10


class Missed(Exception):
    """The request was answered before Logic could be stopped."""


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[OurDaemon]:
    """A daemon with a large store.  Its Logics leave no core files: the deaths are wanted, their remains are not."""
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, Client(daemon.socket) as client:
        resource.prlimit(daemon.pid, resource.RLIMIT_CORE, (0, 0))
        for first in range(0, NODES, BATCH):
            client.pipeline((Op.MKDIR, strings(f"/n/{first}/{k}")) for k in range(BATCH))
        yield daemon


@pytest.fixture
def daemon(shared_daemon: OurDaemon) -> OurDaemon:
    """The daemon; a kill from outside makes it forget the deaths of the test before."""
    kill_logic(shared_daemon)
    return shared_daemon


@pytest.fixture
def view(daemon: OurDaemon) -> Iterator[BoxView]:
    with BoxView(daemon.pid) as opened:
        yield opened


@pytest.fixture
def other(daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as client:
        yield client


@pytest.fixture
def victim(other: Client, daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as client:
        client.watch("/victim", "token")
        yield client


def die_handling(daemon: OurDaemon, view: BoxView, request: tuple[int, int], number: int, other_than: int = 0) -> int:
    """Ends Logic by a signal while it handles a request, named by (slot, position); its pid.  Raises `Missed`."""
    logic = wait_for_logic(daemon, other_than)
    deadline = time.monotonic() + PATIENCE
    try:
        while view.active() != request:
            if view.slot(request[0]).consumed != request[1]:
                raise Missed
            assert time.monotonic() < deadline, "the request is not handled"
        logic.stop()
        if view.slot(request[0]).consumed != request[1]:
            logic.go_on()
            raise Missed
        logic.signal(number)
        if number != signal.SIGKILL:
            logic.go_on()
    finally:
        logic.close()
    return logic.pid


def newest_slot(view: BoxView) -> int:
    """The slot of the connection made last."""
    return max(view.slots(), key=lambda slot: slot.owner).number


def killed_over(
    daemon: OurDaemon, view: BoxView, victim: Client, number: int, times: int, more: bytes = b""
) -> Message:
    """The reply to a request whose handler is killed so often; `more` is sent in the same piece."""
    slot = newest_slot(view)
    for attempt in range(ATTEMPTS):
        request = slot, view.slot(slot).consumed
        victim.send_raw(pack(Op.CONTROL, CHECK, req_id=1000 + attempt) + more)
        pid = 0
        try:
            for _ in range(times):
                pid = die_handling(daemon, view, request, number, pid)
            return victim.reply(1000 + attempt)
        except Missed:
            victim.reply(1000 + attempt)
            kill_logic(daemon)  # so that this attempt does not count
    raise AssertionError(f"the request was too fast {ATTEMPTS} times")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_request_that_kills_logic_twice_by_its_own_fault_is_answered_with_eio(
    daemon: OurDaemon, view: BoxView, victim: Client, other: Client, number: int
) -> None:
    reply = killed_over(daemon, view, victim, number, OWN_TRIES)
    assert (reply.op, reply.payload) == (Op.ERROR, EIO)
    assert "killed Logic again and again" in daemon.output()
    assert other.read("/n/0/0") == b""
    other.write("/victim/still/watches")
    assert victim.events_so_far() == [(b"/victim/still/watches", b"token")]
    assert victim.call(Op.CONTROL, CHECK) == b"OK\0", "the next one of its kind is served"


def test_a_request_that_logic_dies_of_once_is_served_by_the_next(
    daemon: OurDaemon, view: BoxView, victim: Client
) -> None:
    reply = killed_over(daemon, view, victim, signal.SIGABRT, OWN_TRIES - 1)
    assert (reply.op, reply.payload) == (Op.CONTROL, b"OK\0")


def test_kills_from_outside_are_forgiven_oftener(daemon: OurDaemon, view: BoxView, victim: Client) -> None:
    reply = killed_over(daemon, view, victim, signal.SIGKILL, KILL_TRIES - 1)
    assert (reply.op, reply.payload) == (Op.CONTROL, b"OK\0")


def test_but_not_for_ever(daemon: OurDaemon, view: BoxView, victim: Client, other: Client) -> None:
    reply = killed_over(daemon, view, victim, signal.SIGKILL, KILL_TRIES)
    assert (reply.op, reply.payload) == (Op.ERROR, EIO)
    assert other.read("/n/0/0") == b""


def test_requests_behind_it_are_served_once_and_in_order(daemon: OurDaemon, view: BoxView, victim: Client) -> None:
    more = pack(Op.WRITE, strings("/victim/behind"), req_id=1) + pack(Op.READ, strings("/victim/behind"), req_id=2)
    reply = killed_over(daemon, view, victim, signal.SIGABRT, OWN_TRIES, more)
    assert reply.payload == EIO
    behind = [victim.receive() for _ in range(3)]
    assert behind == [
        Message(Op.WATCH_EVENT, 0, 0, strings("/victim/behind", "token")),
        Message(Op.WRITE, 1, 0, b"OK\0"),
        Message(Op.READ, 2, 0, b""),
    ]


def test_requests_that_only_waited_meanwhile_are_not_blamed(
    daemon: OurDaemon, view: BoxView, victim: Client, other: Client
) -> None:
    ids = [other.send(Op.WRITE, strings("/waited")) for _ in range(3)]
    reply = killed_over(daemon, view, victim, signal.SIGABRT, OWN_TRIES)
    assert reply.payload == EIO
    assert [other.reply(req_id).payload for req_id in ids] == [b"OK\0"] * 3
