"""With a Logic for each request, a template forks them; whatever becomes of it, nobody who is served notices."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from recovery_box import sibling
from tests.conformance.wire import Client, Op, strings
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import RESTART_POLICY, OurDaemon, short_run_dir
from tests.recovery.logic import called, parent_of
from tests.recovery.test_restarts import counts
from xenstore_logic.process import NAME_BEFORE, NAME_OF_TEMPLATE
from xenstore_state.nursery import READY
from xenstore_state.standby import NEWCOMERS_MAX

PATIENCE = 20.0
LOOKS = 10
ORDER_DESCRIPTORS = 6
"""What State has open for somebody whom it has ordered and who is not there: the ends of three pairs."""
FORK_DESCRIPTORS = 8
"""What it has open for a moment while it forks somebody itself."""
pytestmark = [
    pytest.mark.skipif(not sibling.POSSIBLE, reason="the compiled helper that forks siblings is missing"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="nobody stands by on a single processor"),
    pytest.mark.skipif(bool(RESTART_POLICY), reason="these tests say themselves when Logic is restarted"),
]


@pytest.fixture
def alone() -> Iterator[OurDaemon]:
    """A daemon with a Logic for each request."""
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--restart", "per-request"]) as daemon:
        yield daemon


@pytest.fixture
def client(alone: OurDaemon) -> Iterator[Client]:
    with Client(alone.socket) as connected:
        yield connected


def template(daemon: OurDaemon, client: Client, other_than: int = 0) -> int:
    """The template, as soon as there is one, and one other than the process named; requests are made meanwhile.

    Whom it forks is called like it for a moment: the template is who keeps the name.
    """
    deadline = time.monotonic() + PATIENCE
    seen: Counter[int] = Counter()
    while time.monotonic() < deadline:
        client.write("/asked")
        seen = Counter({pid: seen[pid] + 1 for pid in called(daemon, NAME_OF_TEMPLATE) if pid != other_than})
        for pid, looks in seen.items():
            if looks == LOOKS:
                return pid
        time.sleep(0.02)
    raise AssertionError(f"there is no template but {other_than}:\n{daemon.output()}")


def all_there(daemon: OurDaemon) -> list[int]:
    """Those that the template has forked, once as many wait as should."""
    deadline = time.monotonic() + PATIENCE
    while len(found := called(daemon, NAME_BEFORE)) != READY + 1:
        assert time.monotonic() < deadline, daemon.output()
        time.sleep(0.01)
    return found


def test_it_forks_children_of_states(alone: OurDaemon, client: Client) -> None:
    first = template(alone, client)
    for number in range(50):
        client.write(f"/n/{number}", b"%d" % number)
    assert [client.read(f"/n/{number}") for number in range(50)] == [b"%d" % number for number in range(50)]
    assert counts(client)["planned"] >= 100
    assert {parent_of(pid) for pid in (first, *all_there(alone))} == {alone.pid}
    assert template(alone, client) == first


def test_whoever_comes_and_goes_is_served(alone: OurDaemon, client: Client) -> None:
    template(alone, client)
    with ExitStack() as stack:
        for number in range(2 * NEWCOMERS_MAX):
            each = stack.enter_context(Client(alone.socket))
            each.watch(f"/w/{number}", "token")
            if number % 3 == 0:
                each.close()
            else:
                client.write(f"/w/{number}")
                assert each.events_so_far() == [(b"/w/%d" % number, b"token")]
    assert client.read("/w/1") == b""


def test_many_at_once_are_served(alone: OurDaemon, client: Client) -> None:
    template(alone, client)
    with ExitStack() as stack:
        everybody = [stack.enter_context(Client(alone.socket)) for _ in range(NEWCOMERS_MAX + 5)]
        for each in everybody:
            each.write("/a", b"1")
        for each in everybody:
            assert each.read("/a") == b"1"
    assert template(alone, client)


def test_domains_come_and_go(alone: OurDaemon, client: Client) -> None:
    assert alone.xen_dir is not None
    xen = SimulatedXen(alone.xen_dir)
    client.watch("@releaseDomain", "end")
    template(alone, client)
    for domid in range(1, 6):
        guest = xen.create(domid)
        client.call(Op.INTRODUCE, strings(domid, 1, guest.port))
        assert guest.call(Op.GET_DOMAIN_PATH, b"0\0") == b"/local/domain/0\0"
        client.call(Op.RELEASE, strings(domid))
        assert (b"@releaseDomain", b"end") in client.events_so_far()
        guest.close()


def test_its_death_disturbs_nobody(alone: OurDaemon, client: Client) -> None:
    last = 0
    for number in range(3):
        last = template(alone, client, other_than=last)
        os.kill(last, signal.SIGKILL)
        client.write("/n", b"%d" % number)
        assert client.read("/n") == b"%d" % number
    assert set(counts(client)) == {"planned", "killed", "hung", "failed", "orphaned"}
    assert sum(count for kind, count in counts(client).items() if kind != "planned") == 0


def test_one_that_stands_still_is_replaced(alone: OurDaemon, client: Client) -> None:
    first = template(alone, client)
    os.kill(first, signal.SIGSTOP)
    assert template(alone, client, other_than=first)
    assert client.read("/asked") == b""


def test_one_that_stands_still_is_not_asked_for_ever_more(alone: OurDaemon, client: Client) -> None:
    """Each order takes descriptors, and there may be few."""
    descriptors = f"/proc/{alone.pid}/fd"
    first = template(alone, client)
    all_there(alone)
    before = len(os.listdir(descriptors))
    os.kill(first, signal.SIGSTOP)
    try:
        most = 0
        for _ in range(30):
            client.write("/asked")
            most = max(most, len(os.listdir(descriptors)))
    finally:
        os.kill(first, signal.SIGKILL)
    assert most <= before + READY * ORDER_DESCRIPTORS + FORK_DESCRIPTORS


def test_another_policy_needs_none(alone: OurDaemon, client: Client) -> None:
    template(alone, client)
    client.call(Op.CONTROL, strings("restart-policy", "on-crash"))
    client.write("/a", b"1")
    deadline = time.monotonic() + PATIENCE
    while called(alone, NAME_OF_TEMPLATE) or len(called(alone, NAME_BEFORE)) != 1:
        assert time.monotonic() < deadline, alone.output()
        time.sleep(0.01)
    client.call(Op.CONTROL, strings("restart-policy", "per-request"))
    assert template(alone, client)


def test_another_state_has_another_template(alone: OurDaemon, client: Client) -> None:
    first = template(alone, client)
    os.kill(parent_of(first), signal.SIGKILL)
    assert template(alone, client, other_than=first)
    assert client.read("/asked") == b""


@pytest.mark.parametrize("argument", ["--no-standby", "--no-guardian", "--restart=on-crash"])
def test_there_is_none_where_nobody_stands_by_for_one_request(argument: str) -> None:
    arguments = ["--restart=per-request", argument]
    with short_run_dir() as run_dir, OurDaemon(run_dir, arguments) as daemon, Client(daemon.socket) as client:
        for _ in range(20):
            client.write("/a", b"1")
        assert called(daemon, NAME_OF_TEMPLATE) == []
