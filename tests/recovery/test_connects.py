"""Connecting never restarts anything, and a restart costs no connection, however many there are."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.processes import highest_descriptor
from tests.conformance.wire import Client
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.logic import PATIENCE, kill_logic, restarts, wait_for_restarts
from tests.recovery.test_restarts import comes_to_rest
from tests.recovery.test_state_dies import kill_state

MANY = 1000
DESCRIPTORS = MANY + 200


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """This process may open as many files as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_one_after_another_restart_nothing(daemon: OurDaemon) -> None:
    before = daemon.logic_pid()
    for _ in range(MANY):
        with Client(daemon.socket) as client:
            assert client.read("/tool/xenstored") == b""
    assert daemon.logic_pid() == before
    assert restarts(daemon) == []


def test_a_thousand_connections_at_once_restart_nothing_and_survive_a_restart(daemon: OurDaemon) -> None:
    before = daemon.logic_pid()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.socket)) for _ in range(MANY)]
        for number, client in enumerate(clients):
            client.write(f"/many/{number}", b"%d" % number)
        assert daemon.logic_pid() == before
        assert restarts(daemon) == []
        for _ in range(3):
            kill_logic(daemon)
            for number, client in enumerate(clients):
                assert client.read(f"/many/{number}") == b"%d" % number
        wait_for_restarts(daemon, 3)
    with Client(daemon.socket) as client:
        assert len(client.directory("/many")) == MANY


@pytest.mark.parametrize("policy", ["on-crash", "per-request"])
def test_a_state_that_may_open_few_files_serves_as_many_as_it_can(policy: str) -> None:
    with short_run_dir() as run_dir, ExitStack() as stack:
        daemon = stack.enter_context(OurDaemon(run_dir, ["--restart", policy]))
        first = stack.enter_context(Client(daemon.socket))
        assert first.read("/tool/xenstored") == b""
        comes_to_rest(daemon)
        limit = highest_descriptor(daemon.pids()[:2]) + 10
        for pid in daemon.pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        kill_state(daemon)
        assert first.read("/tool/xenstored") == b""
        waiting = [stack.enter_context(Client(daemon.socket)) for _ in range(40)]
        deadline = time.monotonic() + PATIENCE
        while "no more connections are accepted" not in daemon.output():
            assert time.monotonic() < deadline
            assert first.read("/tool/xenstored") == b""
        for number in range(50):
            first.write("/few", b"%d" % number)
        for client in waiting:  # who comes makes room for who waits
            assert client.read("/few") == b"49"
            client.close()
        assert first.read("/few") == b"49"
        output = daemon.output()
        assert "Traceback" not in output
        assert "given up" not in output
        assert output.count("no more connections are accepted") < len(waiting) / 2, "says so ever again"


def test_without_descriptors_a_logic_that_dies_is_followed_by_another(daemon: OurDaemon) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Client(daemon.socket))
        limit = highest_descriptor(daemon.pids()) + 4
        for pid in daemon.pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(12):
            waiting = socket.socket(socket.AF_UNIX)
            stack.callback(waiting.close)
            waiting.settimeout(PATIENCE)
            waiting.connect(str(daemon.socket))
        deadline = time.monotonic() + PATIENCE
        while "no more connections are accepted" not in daemon.output():
            assert time.monotonic() < deadline
            assert first.read("/tool/xenstored") == b""
        for _ in range(5):
            kill_logic(daemon)
            assert first.read("/tool/xenstored") == b""
            assert daemon.running()
